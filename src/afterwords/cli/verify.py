"""`afterwords verify`: check whether a file is marked as synthetic speech."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afterwords.cli import output
from afterwords.cli.options import AsJson


def verify(
    file: Annotated[Path, typer.Argument(help="Audio file to check.")],
    as_json: AsJson = False,
) -> None:
    """Check whether a file is marked as synthetic speech. The exit code is 1 if it is not.

    The mark is metadata that anyone can remove, so a file without one proves nothing.
    """
    from afterwords import provenance

    mark = provenance.verify(file)
    facts = mark.model_dump(mode="json") if mark else {}
    if as_json:
        output.result_json({"is_marked": mark is not None, **facts})
    elif mark is not None:
        output.result("synthetic speech" if mark.is_synthetic else "marked, but not as synthetic speech")
        for field in ("generator", "backend", "voice_name", "voice_id", "made_at"):
            output.result(f"  {field:<11} {output.plain(str(facts[field] or 'not stated'))}")
    else:
        output.result("no mark of afterwords: that proves nothing either way")
    if mark is None:
        raise typer.Exit(1)
