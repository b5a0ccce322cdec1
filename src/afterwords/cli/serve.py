"""`afterwords serve`: run the /v1 API on this machine. The other server commands share its helpers."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from afterwords.cli import output

if TYPE_CHECKING:
    from afterwords.server.ports import Store
    from afterwords.server.services.home import HomeVoices
    from afterwords.server.services.keys import MintedKey
    from afterwords.server.settings import Settings

T = TypeVar("T")


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. (default: 127.0.0.1)")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one. (default: 7860)")] = None,
    certfile: Annotated[
        Path | None, typer.Option(help="PEM file with the TLS certificate and its chain. (default: no TLS)")
    ] = None,
    keyfile: Annotated[
        Path | None, typer.Option(help="PEM file with the key of the certificate. (default: in --certfile)")
    ] = None,
    library: Annotated[
        bool, typer.Option("--library/--no-library", help="Whether to offer the voices of this machine.")
    ] = True,
    log_format: Annotated[
        Literal["text", "json"] | None, typer.Option(help="Format of the log. (default: text)")
    ] = None,
) -> None:
    """Serve the /v1 API: voices, speech and jobs for other programs. Ctrl-C stops it.

    Settings come from AFTERWORDS_* variables and config.toml in the home folder: see docs/server.md.
    """
    require_server("Serving")
    gc.disable()  # the imports create no garbage, and looking for it takes an eighth of the start
    from afterwords.server.run import EXIT_BY_SIGNAL
    from afterwords.server.run import serve as run
    from afterwords.server.settings import load_settings

    gc.freeze()
    gc.enable()
    serve_library = None if library else False  # without the flag, the setting decides
    options = {
        "host": host,
        "port": port,
        "certfile": certfile,
        "keyfile": keyfile,
        "serve_library": serve_library,
        "log": log_format,
    }
    settings = load_settings(**{name: value for name, value in options.items() if value is not None})

    def show_key(minted: MintedKey) -> None:
        if settings.log == "text":  # otherwise stderr carries only JSON
            output.note("The database is new. Its first key, shown this once:")
        output.result(minted.secret)

    signal = run(settings, on_first_key=show_key, on_listening=_show_address)
    raise typer.Exit(EXIT_BY_SIGNAL.get(signal, 0))


def _show_address(settings: Settings, home: HomeVoices) -> None:
    output.result(settings.local_url)  # a parent process may wait for this line
    if settings.log == "json":  # stderr carries only JSON
        return
    if settings.offers_library:
        if not home.n_offered:
            note = "0 voices. Clone one (afterwords clone), or push one from another machine (afterwords push)."
        else:
            note = f"{home.n_offered} voice{'s' if home.n_offered > 1 else ''} of this machine"
            note += ", for the first key. Another key for them" if home.has_account else ". No key can use them yet"
            note += ": afterwords keys create --home"
        output.note(note)
    output.note(f"[dim]Next: curl -s {output.shown(settings.local_url)}/v1/health · Ctrl-C stops it.[/dim]")


def require_server(purpose: str) -> None:
    """Raise MissingExtraError if the extra `server` is not installed."""
    from importlib.util import find_spec

    from afterwords.errors import MissingExtraError

    if any(find_spec(name) is None for name in ("fastapi", "sqlalchemy", "pydantic_settings")):
        raise MissingExtraError.for_extra("server", purpose=purpose)


def run_with_store(use: Callable[[Settings, Store], Awaitable[T]], *, purpose: str) -> T:
    """Open the database of the server on this machine, await `use`, and close it."""
    require_server(purpose)
    import asyncio

    from afterwords.server.app_state import open_store
    from afterwords.server.settings import load_settings

    async def run() -> T:
        settings = load_settings()
        store = open_store(settings)
        try:
            await store.open()
            return await use(settings, store)
        finally:
            await store.close()

    return asyncio.run(run())
