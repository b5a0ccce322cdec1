"""`afterwords jobs`: the speech jobs of a server."""

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
from afterwords.cli.options import AsJson, OutFile, Profile, Timeout, check_group_options
from afterwords.cli.remote import command, connect, explain_interrupt, job_timeout_s, option_value

if TYPE_CHECKING:
    from afterwords.backends.base import Progress
    from afterwords.models import Job

jobs = typer.Typer(cls=HelpGroup, invoke_without_command=True)

STEPS: Final = {
    "waiting": "waiting for the speech",
    "loading": "waiting for the server to load its model",
    "preparing": "preparing the voice, once",
    "speaking": "speaking",
}
"""What to show for each step of a job."""

JobId = Annotated[str, typer.Argument(help="ID of a job, from `afterwords jobs list`.")]


@jobs.callback()
def options(context: typer.Context, profile: Profile = None) -> None:
    if context.invoked_subcommand is None:
        list_jobs(profile=profile)
    else:
        check_group_options(context, profile=profile)


@jobs.command("list", cls=HelpCommand)
def list_jobs(
    status: Annotated[
        str | None, typer.Option("--status", help="Only pending, ready, failed or cancelled jobs.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Maximum number of jobs to list.")] = 20,
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
                job.status.value
                if job.step is None
                else f"{job.status.value}: {_with_percent(job.step, job.progress)}",
                "-" if job.char_count is None else str(job.char_count),
                f"{job.created_at:%Y-%m-%d %H:%M}" if job.created_at else "-",
                job.error or "",
            )
            for job in found
        ]
        output.result_table(("id", "status", "characters", "created (UTC)", "error"), rows)
    else:
        output.note('There are no jobs. Submit one: afterwords say "Hello" --remote -o hello.wav')


@jobs.command(cls=HelpCommand)
def show(job_id: JobId, profile: Profile = None, as_json: AsJson = False) -> None:
    """Show the status of a job."""
    with output.waiting("asking the server"), connect(profile) as client:
        _print_job(client.jobs.get(job_id), as_json=as_json)


@jobs.command(cls=HelpCommand)
def wait(job_id: JobId, timeout: Timeout = None, profile: Profile = None, as_json: AsJson = False) -> None:
    """Wait until a job is ready. Ctrl-C leaves the job running."""
    resume = command("jobs", "wait", job_id, profile=profile)
    with connect(profile) as client, show_progress(resume) as progress:
        job = client.jobs.wait(job_id, timeout_s=job_timeout_s(timeout), progress=progress)
    _print_job(job, as_json=as_json)
    output.note(f"Next: {output.shown(command('jobs', 'download', job_id, profile=profile))}")


@jobs.command(cls=HelpCommand)
def cancel(job_id: JobId, profile: Profile = None, as_json: AsJson = False) -> None:
    """Cancel a pending job. Its characters are not charged."""
    with output.waiting("asking the server"), connect(profile) as client:
        _print_job(client.jobs.cancel(job_id), as_json=as_json)


@jobs.command(cls=HelpCommand)
def download(
    job_id: JobId,
    out: OutFile = None,
    format: Annotated[
        str | None, typer.Option("--format", help="wav, mp3, opus, webm, flac, aac, pcm, mulaw or alaw.")
    ] = None,
    timeout: Timeout = None,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Download the audio of a job. Waits for a pending job."""
    from afterwords.cli.save_audio import detect_format, parse_output, save_audio
    from afterwords.client.parsing import SpeechResponse
    from afterwords.errors import InvalidResponseError

    if out == "-" and as_json:
        raise output.UsageError("stdout can't carry both audio and JSON.", hint="name a file: -o hello.wav.")
    destination = parse_output(out, format) if out is not None else None
    options = ("-o", option_value(out)) if out is not None else ()
    resume = command("jobs", "download", job_id, *options, profile=profile)
    with connect(profile) as client:
        with show_progress(resume) as progress:
            job = client.jobs.wait(job_id, timeout_s=job_timeout_s(timeout), progress=progress)
        with explain_interrupt("Nothing was written. Run it again:", resume), output.waiting("downloading"):
            data = client.jobs.data(job_id)
    if destination is None:
        stem, suffix = re.sub(r"[^\w-]", "-", str(job.job_id))[:60], format or detect_format(data) or "wav"
        destination = parse_output(str(output.free_path(Path(f"{stem}.{suffix}"))), format)
    try:
        duration_s = save_audio(SpeechResponse(data, job.voice_id, None, job.job_id), destination)
    except InvalidResponseError as error:
        if detect_format(data) is None:
            error.hint = "if the job was submitted for raw samples, add --format pcm."
        raise
    if as_json:
        rounded = None if duration_s is None else round(duration_s, 3)
        output.result_json({"job_id": job.job_id, "file": destination.file, "duration_s": rounded})
    elif out is None:
        output.result(output.plain(destination.out))
    if destination.file is not None:
        length = "" if duration_s is None else f": {duration_s:.1f} s"
        output.note(f"[bold green]✓[/bold green] {output.shown(destination.file)}{length}")
        if destination.is_tagged:
            output.note(f"Next: afterwords verify {output.quoted(option_value(destination.file))}")


@contextmanager
def show_progress(resume: str) -> Iterator[Progress]:
    """Yield a callback that shows the progress of a job; Ctrl-C and a timeout print the command that resumes."""
    from afterwords.errors import JobTimeoutError

    def describe(fraction: float | None, step: str) -> str:
        return f"{_with_percent(STEPS.get(step, step), fraction or None)}; Ctrl-C leaves the job running"

    interrupted = explain_interrupt("The job goes on. Resume with:", resume)
    with interrupted, output.waiting(describe(None, "waiting")) as show:
        try:
            yield lambda fraction, step: show(describe(fraction, step))
        except JobTimeoutError as error:
            error.hint = f"the job goes on; resume with: {resume}"
            raise


def _with_percent(step: str, fraction: float | None) -> str:
    return step if fraction is None else f"{step}, {100 * fraction:.0f} %"


def _facts(job: Job) -> dict[str, object]:
    return job.model_dump(mode="json", exclude_none=True)


def _print_job(job: Job, *, as_json: bool) -> None:
    if as_json:
        output.result_json(_facts(job))
    else:
        output.result_facts(_facts(job))
