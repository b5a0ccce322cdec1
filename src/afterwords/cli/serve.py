"""`afterwords serve`: the /v1 API on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output

if TYPE_CHECKING:
    from afterwords.server.services.keys import MintedKey
    from afterwords.server.settings import Settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. (default: 127.0.0.1)")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one. (default: 7860)")] = None,
) -> None:
    """Serve the /v1 API: voices, speech and jobs for other programs. Ctrl-C stops it.

    Settings come from AFTERWORDS_* variables and config.toml in the home folder: see docs/server.md.
    """
    require_server("Serving")
    from afterwords.server.serving import EXIT_BY_SIGNAL, configure_log
    from afterwords.server.serving import serve as run
    from afterwords.server.settings import load_settings

    given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = load_settings(**given)
    configure_log()
    signal = run(settings, on_first_key=_show_key, on_listening=_show_address)
    raise typer.Exit(EXIT_BY_SIGNAL.get(signal, 0))


def require_server(purpose: str) -> None:
    """Refuse in one line where the extra is not installed."""
    from importlib.util import find_spec

    from afterwords.errors import MissingExtraError

    if any(find_spec(name) is None for name in ("fastapi", "sqlalchemy", "pydantic_settings")):
        raise MissingExtraError("server", purpose=purpose)


def _show_key(minted: MintedKey) -> None:
    output.note("The database is new. Its first key, shown this once:")
    output.result(minted.secret)


def _show_address(settings: Settings) -> None:
    output.result(settings.local_url)
    output.flush()  # whoever started us may wait for this line
    output.note("[dim]Next: curl -s " + output.shown(settings.local_url) + "/v1/health · Ctrl-C stops it.[/dim]")
