"""The pip command that installs an extra of afterwords, from wherever this copy of it was installed."""

from __future__ import annotations


def pip_install(extra: str = "", *, options: str = "") -> str:
    """Return a command that a person can paste into a shell.

    pip records the origin of what did not come from an index (PEP 610, `direct_url.json`): a copy that was installed
    from a folder or from Git is named by that, since no index may have it.

    Args:
        extra: Name of the extra, or empty for the package alone.
        options: Further options of `pip install`, for example `--upgrade`.
    """
    extras = f"[{extra}]" if extra else ""
    command = " ".join(filter(None, ("pip install", options)))
    origin = _origin()
    url = str(origin.get("url", ""))
    if not url:
        return f'{command} "afterwords{extras}"'
    if "vcs_info" in origin:
        return f'{command} "afterwords{extras} @ {origin["vcs_info"]["vcs"]}+{url}"'
    if "dir_info" not in origin:
        return f'{command} "afterwords{extras} @ {url}"'
    folder = _folder(url)
    if folder is None:
        return f'{command} ".{extras}" in a clone of the repository of afterwords'
    editable = "--editable " if origin["dir_info"].get("editable") else ""
    return f'{command} {editable}"{folder}{extras}"'


def _origin() -> dict[str, dict[str, str]]:
    import json
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        recorded = distribution("afterwords").read_text("direct_url.json")
    except PackageNotFoundError:  # run from its source
        return {}
    found: dict[str, dict[str, str]] = json.loads(recorded) if recorded else {}
    return found


def _folder(url: str) -> str | None:
    from pathlib import Path
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    folder = Path(url2pathname(urlsplit(url).path))
    return str(folder) if folder.is_dir() else None
