"""`afterwords jobs`: what a server was asked to speak."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from afterwords.cli import output
from afterwords.cli.help import HelpCommand, HelpGroup
from afterwords.cli.options import AsJson, Profile, Timeout
from afterwords.cli.remote import command, connect, explain_interrupt, job_timeout_s, option_value

if TYPE_CHECKING:
    from afterwords.backends.base import Progress
    from afterwords.cli.save_audio import Place
    from afterwords.client import RemoteJob
    from afterwords.models import Job

app = typer.Typer(
    cls=HelpGroup, help="List, show, wait for, cancel and download jobs of a server.", invoke_without_command=True
)

STEPS: Final = {
    "waiting": "waiting for the speech",
    "loading": "waiting for the server to load its model",
    "preparing": "preparing the voice, once",
    "speaking": "speaking",
}
"""The steps of a job in words for people."""

JobId = Annotated[str, typer.Argument(help="Id of a job, as `afterwords jobs list` shows it.")]


@app.callback()
def jobs(context: typer.Context, profile: Profile = None) -> None:
    if context.invoked_subcommand is None:
        list_jobs(profile=profile)
    elif profile is not None:
        raise output.UsageError(
            "--profile goes last here.", hint=f"afterwords jobs {context.invoked_subcommand} … --profile {profile}."
        )


@app.command("list", cls=HelpCommand)
def list_jobs(
    status: Annotated[str | None, typer.Option("--status", help="pending | ready | failed | cancelled.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The most that are listed.")] = 20,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """List the jobs, newest first."""
    with output.waiting("asking the server"), connect(profile) as client:
        found = list(islice(client.jobs.list(status=status, page_size=limit), limit))
    if as_json:
        output.result_json([_facts(job) for job in found])
    elif found:
        rows = [
            (
                str(job.job_id),
                job.status.value if job.step is None else f"{job.status.value}: {_at(job.step, job.progress)}",
                "-" if job.char_count is None else str(job.char_count),
                f"{job.created_at:%Y-%m-%d %H:%M}" if job.created_at else "-",
                job.error or "",
            )
            for job in found
        ]
        output.result_table(("id", "status", "characters", "asked (UTC)", "error"), rows)
    else:
        output.note('There are no jobs. Ask for one: afterwords say "Hello" --remote -o hello.wav')


@app.command(cls=HelpCommand)
def show(job_id: JobId, profile: Profile = None, as_json: AsJson = False) -> None:
    """Show where a job stands."""
    with output.waiting("asking the server"), connect(profile) as client:
        _print(client.jobs.get(job_id), as_json=as_json)


@app.command(cls=HelpCommand)
def wait(job_id: JobId, timeout: Timeout = None, profile: Profile = None, as_json: AsJson = False) -> None:
    """Wait until a job is ready. Ctrl-C leaves it running."""
    again = command("jobs", "wait", job_id, profile=profile)
    with connect(profile) as client, _goes_on(again) as progress:
        job = client.jobs.wait(job_id, timeout_s=job_timeout_s(timeout), progress=progress)
    _print(job, as_json=as_json)
    output.note(f"Next: {output.shown(command('jobs', 'download', job_id, profile=profile))}")


@app.command(cls=HelpCommand)
def cancel(job_id: JobId, profile: Profile = None, as_json: AsJson = False) -> None:
    """Cancel a job that is pending; what it reserved is given back."""
    with output.waiting("asking the server"), connect(profile) as client:
        _print(client.jobs.cancel(job_id), as_json=as_json)


@app.command(cls=HelpCommand)
def download(
    job_id: JobId,
    out: Annotated[str | None, typer.Option("--out", "-o", help="File to write; - writes to stdout.")] = None,
    format: Annotated[str | None, typer.Option("--format", help="wav | mp3 | opus | flac | pcm.")] = None,
    timeout: Timeout = None,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Write the audio of a job into a file; one that is pending is waited for."""
    from afterwords.cli.save_audio import deliver, format_in, place_for
    from afterwords.client.parsing import Sound
    from afterwords.errors import StrangeAnswerError

    if out == "-" and as_json:
        raise output.UsageError("stdout can't carry both audio and JSON.", hint="name a file: -o hello.wav.")
    place = place_for(out, format) if out is not None else None
    words = ("-o", option_value(out)) if out is not None else ()
    again = command("jobs", "download", job_id, *words, profile=profile)
    with connect(profile) as client:
        with _goes_on(again) as progress:
            job = client.jobs.wait(job_id, timeout_s=job_timeout_s(timeout), progress=progress)
        with explain_interrupt("Nothing was written. Again:", again), output.waiting("downloading"):
            data = client.jobs.data(job_id)
    place = place or _place_of(job, data, format)
    try:
        duration_s = deliver(Sound(data, job.voice_id, None, job.job_id), place)
    except StrangeAnswerError as error:
        if format_in(data) is None:
            error.hint = "if it was asked for as raw samples, fetch it so: --format pcm."
        raise
    if as_json:
        length = None if duration_s is None else round(duration_s, 3)
        output.result_json({"job_id": job.job_id, "file": place.file, "duration_s": length})
    elif out is None:
        output.result(output.plain(place.out))
    if place.file is not None:
        length_told = "" if duration_s is None else f": {duration_s:.1f} s"
        output.note(f"[bold green]✓[/bold green] {output.shown(place.file)}{length_told}")
        if place.format != "pcm":
            output.note(f"Next: afterwords verify {output.quoted(option_value(place.file))}")


@contextmanager
def _goes_on(again: str) -> Iterator[Progress]:
    """Wait for a job, and show its progress, which is yielded; Ctrl-C and a timeout say how to come back to it."""
    from afterwords.errors import JobTimeoutError

    told = explain_interrupt("The job goes on. Come back to it with:", again)
    with told, output.waiting(doing("waiting for the speech")) as show:
        try:
            yield lambda fraction, step: show(doing(step, fraction))
        except JobTimeoutError as error:
            error.hint = f"it goes on; come back to it with: {again}"
            raise


def doing(step: str, fraction: float = 0.0) -> str:
    """What a server does for a job that is waited for, in words."""
    return f"{_at(STEPS.get(step, step), fraction or None)}; Ctrl-C leaves the job running"


def _at(step: str, fraction: float | None) -> str:
    return step if fraction is None else f"{step}, {100 * fraction:.0f} %"


def _place_of(job: RemoteJob, data: bytes, format: str | None) -> Place:
    """A file of the job's own, where none was named; one that is there already is kept."""
    from afterwords.cli.save_audio import format_in, place_for

    ending = format or format_in(data) or "wav"
    path = output.free_path(Path(re.sub(r"[^\w-]", "-", str(job.job_id))[:60] + f".{ending}"))
    return place_for(str(path), format)


def _facts(job: Job) -> dict[str, object]:
    return job.model_dump(mode="json", exclude_none=True)


def _print(job: Job, *, as_json: bool) -> None:
    if as_json:
        output.result_json(_facts(job))
    else:
        output.result_facts(_facts(job))
