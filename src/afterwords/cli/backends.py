"""`afterwords backends`: which backends can run on this machine, and what the others need."""

from __future__ import annotations

from afterwords.cli import output
from afterwords.cli.options import AsJson


def backends(as_json: AsJson = False) -> None:
    """List the backends that can run on this machine, and what the others need."""
    from afterwords.backends import registry
    from afterwords.backends.base import Available, Unavailable
    from afterwords.errors import AfterwordsError, pip_install

    found = registry.backends()
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
                for backend in found
            ]
        )
    elif found:
        rows = []
        for backend in found:
            state = backend.state
            about = state.note if isinstance(state, Available) else f"{state.reason}; fix: {state.fix}"
            runs = "auto" if backend.name == auto else "yes" if backend.is_available else "no"
            rows.append((backend.name, runs, " ".join(sorted(backend.languages)), about))
        output.result_table(("backend", "runs", "languages", "about"), rows)
    else:
        install = output.shown(pip_install("lite"))
        output.note(f"No backend is offered here.\n  Fix: {install}, and clear AFTERWORDS_BACKENDS.")
