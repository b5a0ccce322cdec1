"""`afterwords models`: list, download, verify and remove the weights of engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output
from afterwords.cli.help import HelpCommand, HelpGroup
from afterwords.cli.options import AsJson

if TYPE_CHECKING:
    from afterwords.weights.catalog import ModelStatus, Progress

models = typer.Typer(cls=HelpGroup, invoke_without_command=True)


def complete_model(incomplete: str) -> list[str]:
    from afterwords.weights.catalog import CHECKPOINTS

    return [name for name in CHECKPOINTS if name.startswith(incomplete)]


Name = Annotated[
    str, typer.Argument(help="Name of a model, as printed by `models list`.", autocompletion=complete_model)
]


@models.callback()
def options(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_models(as_json=False)


@models.command("list", cls=HelpCommand)
def list_models(as_json: AsJson = False) -> None:
    """List the models and their state on this machine."""
    from afterwords.weights.catalog import list_statuses

    found = list_statuses()
    if as_json:
        output.result_json([_facts(status) for status in found])
        return
    rows = []
    for status in found:
        size = _format_size(status.present_bytes) if status.present_bytes else "-"
        if status.size_bytes not in (None, status.present_bytes):
            size += f" of {_format_size(status.size_bytes or 0)}"
        revision = status.revision[:12] if status.revision else "-"
        place = str(status.path or "-")
        rows.append((status.checkpoint.name, status.state.value, size, status.checkpoint.repository, revision, place))
    output.result_table(("name", "state", "size", "repository", "revision", "where"), rows)
    for status in found:
        if status.problem is not None:
            output.note(f"{output.shown(status.problem.message)}\n  Fix: {output.shown(status.problem.hint)}")


@models.command(cls=HelpCommand)
def pull(
    name: Name,
    update: Annotated[bool, typer.Option("--update", help="Download the newest revision.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Verify the files, and download altered ones again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Download a model, or resume a download, and verify its hashes."""
    from afterwords.weights.catalog import ModelState, get_status
    from afterwords.weights.download import pull as download

    status = get_status(name)
    if status.state is ModelState.ABSENT and status.checkpoint.terms:
        output.note(output.shown(status.checkpoint.terms))
    with output.progress_bar() as bar:
        path = download(name, is_update=update, is_repair=repair, progress=_bar_progress(bar))
    if as_json:
        output.result_json(_facts(get_status(name)))
    else:
        output.result(str(path))
    output.note(f"[bold green]✓[/bold green] {output.shown(name)} is ready. List the backends: afterwords backends")


@models.command(cls=HelpCommand)
def path(name: Name, as_json: AsJson = False) -> None:
    """Print the folder of a complete model."""
    from afterwords.weights.catalog import locate

    folder = locate(name)
    if as_json:
        output.result_json({"name": name, "path": str(folder)})
    else:
        output.result(str(folder))


@models.command(cls=HelpCommand)
def verify(name: Name, as_json: AsJson = False) -> None:
    """Compare every file of a model with its hash at the hub."""
    from afterwords.weights.catalog import verify as check

    with output.progress_bar() as bar:
        status = check(name, progress=_bar_progress(bar))
    if as_json:
        output.result_json(_facts(status))
    else:
        output.result(str(status.path))
    what = "all hashes match" if status.is_pulled else "no file is truncated; hashes are known for pulled models only"
    output.note(f"[bold green]✓[/bold green] {output.shown(name)}: {what}.")


@models.command(cls=HelpCommand)
def rm(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove a model that was downloaded."""
    from afterwords.weights.catalog import get_status, remove

    found = get_status(name)
    size = _format_size(found.present_bytes)
    if found.is_pulled and not yes:
        output.confirm_removal(f"This removes {output.shown(str(found.path))}: {size}.")
    folder = remove(name)
    if as_json:
        output.result_json({"removed": name, "path": str(folder)})
    output.note(f"[bold green]✓[/bold green] Removed {output.shown(name)}: {size}.")


def _facts(status: ModelStatus) -> dict[str, object]:
    return {
        "name": status.checkpoint.name,
        "repository": status.checkpoint.repository,
        "state": status.state.value,
        "path": str(status.path) if status.path else None,
        "revision": status.revision,
        "size_bytes": status.size_bytes,
        "present_bytes": status.present_bytes,
        "is_pulled": status.is_pulled,
        "problem": status.problem.message if status.problem else None,
        "fix": status.problem.hint if status.problem else None,
    }


def _bar_progress(bar: output.Bar) -> Progress:
    """Return a callback that shows the progress of a download or check on a bar."""
    return lambda done, total, step: bar(
        done / max(total, 1), f"{step}  {_format_size(done)} of {_format_size(total)}" if total > 1 else step
    )


def _format_size(n_bytes: int) -> str:
    """Format a number of bytes in decimal units, as disks are sold."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.{2 if unit == 'GB' else 0}f} {unit}"
    return f"{n_bytes} B"
