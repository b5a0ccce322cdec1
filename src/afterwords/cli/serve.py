"""`afterwords serve`: the /v1 API on this machine."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output

if TYPE_CHECKING:
    from afterwords.server.services.home import HomeVoices
    from afterwords.server.services.keys import MintedKey
    from afterwords.server.settings import Settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. (default: 127.0.0.1)")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one. (default: 7860)")] = None,
    library: Annotated[
        bool, typer.Option("--library/--no-library", help="Whether to offer the voices of this machine.")
    ] = True,
) -> None:
    """Serve the /v1 API: voices, speech and jobs for other programs. Ctrl-C stops it.

    Settings come from AFTERWORDS_* variables and config.toml in the home folder: see docs/server.md.
    """
    require_server("Serving")
    from afterwords.server.run import EXIT_BY_SIGNAL, configure_log
    from afterwords.server.run import serve as run
    from afterwords.server.settings import load_settings

    serve_library = None if library else False  # absent, the setting decides
    options = {"host": host, "port": port, "serve_library": serve_library}
    given = {name: value for name, value in options.items() if value is not None}
    settings = load_settings(**given)
    configure_log(settings)
    signal = run(settings, on_first_key=partial(_show_key, settings), on_listening=_show_address)
    raise typer.Exit(EXIT_BY_SIGNAL.get(signal, 0))


def require_server(purpose: str) -> None:
    """Refuse in one line where the extra is not installed."""
    from importlib.util import find_spec

    from afterwords.errors import MissingExtraError

    if any(find_spec(name) is None for name in ("fastapi", "sqlalchemy", "pydantic_settings")):
        raise MissingExtraError("server", purpose=purpose)


def _show_key(settings: Settings, minted: MintedKey) -> None:
    if settings.log == "text":  # stderr carries only JSON otherwise
        output.note("The database is new. Its first key, shown this once:")
    output.result(minted.secret)


def _show_address(settings: Settings, home: HomeVoices) -> None:
    output.result(settings.local_url)
    output.flush()  # whoever started us may wait for this line
    if settings.log == "json":  # stderr carries only JSON
        return
    if settings.serve_library:
        output.note(_about_voices(home))
    output.note("[dim]Next: curl -s " + output.shown(settings.local_url) + "/v1/health · Ctrl-C stops it.[/dim]")


def _about_voices(home: HomeVoices) -> str:
    """Say how many voices of this machine are offered, and which keys see them."""
    if not home.n_offered:
        return "0 voices. Clone one (afterwords clone), or push one from another machine (afterwords push)."
    voices = f"{home.n_offered} voice{'s' if home.n_offered > 1 else ''} of this machine"
    if home.has_account:
        return f"{voices}, for the first key. Another key for them: afterwords keys create --home"
    return f"{voices}. No key can use them yet: afterwords keys create --home"
