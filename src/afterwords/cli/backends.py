"""`afterwords backends`: which backends can speak on this machine, and what the others lack."""

from __future__ import annotations

from typing import Annotated

import typer

from afterwords.cli import output


def backends(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the backends that can speak on this machine, and for the others what is missing."""
    from afterwords.backends import registry
    from afterwords.backends.base import Available, Unavailable
    from afterwords.errors import AfterwordsError
    from afterwords.install import pip_install

    offered = registry.backends()
    try:
        auto = registry.choose().name
    except AfterwordsError:
        auto = None
    if as_json:
        output.result_json(
            [
                {
                    "backend": backend.name,
                    "engine": backend.engine_name,
                    "is_available": backend.is_available,
                    "is_auto": backend.name == auto,
                    "languages": sorted(backend.languages),
                    "note": backend.state.note if isinstance(backend.state, Available) else None,
                    "reason": backend.state.reason if isinstance(backend.state, Unavailable) else None,
                    "fix": backend.state.fix if isinstance(backend.state, Unavailable) else None,
                }
                for backend in offered
            ]
        )
        return
    if not offered:
        output.note(
            f"No backend is offered here.\n  Fix: {output.shown(pip_install('lite'))}, and clear AFTERWORDS_BACKENDS."
        )
        return
    rows = []
    for backend in offered:
        state = backend.state
        told = state.note if isinstance(state, Available) else f"{state.reason}; fix: {state.fix}"
        mark = "auto" if backend.name == auto else "yes" if backend.is_available else "no"
        rows.append((backend.name, mark, " ".join(sorted(backend.languages)), told))
    output.result_table(("backend", "runs", "languages", "about"), rows)
