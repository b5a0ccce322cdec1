"""`afterwords models`: the weights that engines need and that are not in the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output
from afterwords.cli.help import HelpCommand, HelpGroup

if TYPE_CHECKING:
    from afterwords.weights.catalog import Progress, Standing

app = typer.Typer(cls=HelpGroup, help="List, download, check and remove model weights.", invoke_without_command=True)


def complete_model(incomplete: str) -> list[str]:
    from afterwords.weights.catalog import CHECKPOINTS

    return [name for name in CHECKPOINTS if name.startswith(incomplete)]


Name = Annotated[str, typer.Argument(help="Model, as `models list` names it.", autocompletion=complete_model)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def models(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_models(as_json=False)


@app.command("list", cls=HelpCommand)
def list_models(as_json: AsJson = False) -> None:
    """List the models that can be downloaded, and which are here."""
    from afterwords.weights.catalog import listing

    found = listing()
    if as_json:
        output.result_json([_facts(standing) for standing in found])
        return
    rows = [
        (
            standing.checkpoint.name,
            standing.state.value,
            _size_told(standing),
            standing.checkpoint.repository,
            standing.revision[:12] if standing.revision else "-",
            str(standing.path or "-"),
        )
        for standing in found
    ]
    output.result_table(("name", "state", "size", "repository", "revision", "where"), rows)
    for standing in found:
        if standing.problem is not None:
            output.note(f"{output.shown(standing.problem.message)}\n  Fix: {output.shown(standing.problem.hint)}")


@app.command(cls=HelpCommand)
def pull(
    name: Name,
    update: Annotated[bool, typer.Option("--update", help="Download the newest revision.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Check the files here, and download those that were changed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Download a model. It resumes where it stopped, and checks the hashes of the hub."""
    from afterwords.weights.catalog import standing
    from afterwords.weights.download import pull as bring

    with output.progress_bar() as bar:
        path = bring(name, is_update=update, is_repair=repair, progress=_told_to(bar))
    if as_json:
        output.result_json(_facts(standing(name)))
    else:
        output.result(str(path))
    output.note(f"[bold green]✓[/bold green] {output.shown(name)} is here. See what can speak: afterwords backends")


@app.command(cls=HelpCommand)
def path(name: Name, as_json: AsJson = False) -> None:
    """Print the folder of a model that is complete here."""
    from afterwords.weights.catalog import locate

    folder = locate(name)
    if as_json:
        output.result_json({"name": name, "path": str(folder)})
    else:
        output.result(str(folder))


@app.command(cls=HelpCommand)
def verify(name: Name, as_json: AsJson = False) -> None:
    """Check every file of a model against the hash that it was downloaded with."""
    from afterwords.weights.catalog import verify as check

    with output.progress_bar() as bar:
        standing = check(name, progress=_told_to(bar))
    if as_json:
        output.result_json(_facts(standing))
    else:
        output.result(str(standing.path))
    what = (
        "every file has its hash" if standing.is_pulled else "no file is cut; hashes are known only of what was pulled"
    )
    output.note(f"[bold green]✓[/bold green] {output.shown(name)}: {what}.")


@app.command(cls=HelpCommand)
def rm(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a model that was downloaded."""
    from afterwords.weights.catalog import remove, standing

    found = standing(name)
    if found.is_pulled and not yes:
        output.confirm_removal(f"This removes {output.shown(str(found.path))}: {_sized(found.present_bytes)}.")
    folder = remove(name)
    if as_json:
        output.result_json({"removed": name, "path": str(folder)})
    output.note(f"[bold green]✓[/bold green] {output.shown(name)} is gone: {_sized(found.present_bytes)}.")


def _facts(standing: Standing) -> dict[str, object]:
    return {
        "name": standing.checkpoint.name,
        "repository": standing.checkpoint.repository,
        "state": standing.state.value,
        "path": str(standing.path) if standing.path else None,
        "revision": standing.revision,
        "size_bytes": standing.size_bytes,
        "present_bytes": standing.present_bytes,
        "is_pulled": standing.is_pulled,
        "problem": standing.problem.message if standing.problem else None,
        "fix": standing.problem.hint if standing.problem else None,
    }


def _told_to(bar: output.Bar) -> Progress:
    def tell(done: int, total: int, step: str) -> None:
        bar(done / max(total, 1), f"{step}  {_sized(done)} of {_sized(total)}" if total > 1 else step)

    return tell


def _size_told(standing: Standing) -> str:
    present = _sized(standing.present_bytes) if standing.present_bytes else "-"
    if standing.size_bytes is None or standing.size_bytes == standing.present_bytes:
        return present
    return f"{present} of {_sized(standing.size_bytes)}"


def _sized(n_bytes: int) -> str:
    """A number of bytes as people read it, in powers of ten, as disks are sold."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.{2 if unit == 'GB' else 0}f} {unit}"
    return f"{n_bytes} B"
