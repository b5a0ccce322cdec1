"""`afterwords say --remote`: a server speaks.

Into a file, the job is the server's from the moment it is taken: whoever stops waiting is told how to fetch it. Aloud,
it is heard while it is made, and stopping cancels it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from afterwords.cli import output
from afterwords.cli.jobs import doing
from afterwords.cli.remote import command, connect, explain_interrupt, option_value
from afterwords.cli.save_audio import Place, deliver

if TYPE_CHECKING:
    from afterwords.audio.wav import Samples
    from afterwords.audio.writer import AudioWriter
    from afterwords.client import Client, RemoteJob, RemoteSpeech
    from afterwords.models import Voice


@dataclass(frozen=True, slots=True)
class Order:
    """What shall be said, and how.

    Attributes:
        how: lang, backend, speed and seed, as `Client.say` takes them.
        timeout_s: how long to wait for a job, in seconds.
    """

    text: str = field(repr=False)
    voice: str | None
    how: dict[str, Any]
    timeout_s: float
    profile: str | None

    def command(self, *words: str) -> str:
        """A command that asks the same server."""
        return command(*words, profile=self.profile)


def say_remote(order: Order, place: Place | None, *, is_heard: bool, as_json: bool) -> None:
    """Have a server say something."""
    from afterwords.text import check_text

    check_text(order.text)
    with connect(order.profile) as client, output.without_text_warnings():
        voice = order.voice if order.voice is not None else _only_voice(client, order)
        facts = _played(client, order, voice, place) if is_heard else _fetched(client, order, voice, place)
    _tell({"voice": voice if isinstance(voice, str) else voice.name, **facts}, place, as_json=as_json)


def _only_voice(client: Client, order: Order) -> Voice:
    """The voice of a server that has just one."""
    voices = list(client.voices.list())
    if len(voices) == 1:
        return voices[0]
    if not voices:
        raise output.UsageError(
            f"{client.base_url} has no voice yet.", hint=f"bring one there: {order.command('push', 'NAME')}"
        )
    raise output.UsageError(
        f"{client.base_url} has {len(voices)} voices and none was named.",
        hint=f"add --voice NAME ({', '.join(output.plain(voice.name) for voice in voices[:5])}).",
    )


# -- into a file ----------------------------------------------------------------------------------------------


def _fetched(client: Client, order: Order, voice: Voice | str, place: Place | None) -> dict[str, Any]:
    from afterwords.client.parsing import Sound
    from afterwords.errors import JobTimeoutError

    assert place is not None, "what is not heard goes somewhere"
    with output.waiting("asking the server"):
        job = _submitted(client, order, voice, place)
    resume = order.command("jobs", "download", str(job.job_id), "-o", option_value(place.out))
    with explain_interrupt("The job goes on. Fetch its audio with:", resume) if job.job_id else nullcontext():
        with output.waiting(doing("waiting for the speech")) as show:
            try:
                done = job.wait(timeout_s=order.timeout_s, progress=lambda fraction, step: show(doing(step, fraction)))
            except JobTimeoutError as error:
                error.hint = f"it goes on; fetch its audio with: {resume}"
                raise
        with output.waiting("downloading"):
            data = done.data()
    name = voice if isinstance(voice, str) else voice.name
    duration_s = deliver(Sound(data, done.voice_id, done.backend, done.job_id), place, voice=name)
    return _facts(done, duration_s)


def _submitted(client: Client, order: Order, voice: Voice | str, place: Place) -> RemoteJob:
    """Ask for the speech; where the server knows WAV alone, the other formats are made here."""
    from afterwords.errors import UnsupportedByServerError
    from afterwords.models import SpeechFormat

    listed = order.command("jobs", "list")
    with explain_interrupt("The server may have taken it all the same. See what it has:", listed):
        try:
            return client.synthesize(order.text, voice=voice, format=place.format, **order.how)
        except UnsupportedByServerError:
            if place.format is SpeechFormat.WAV or order.how["speed"] != 1 or order.how["seed"] is not None:
                raise
        return client.synthesize(order.text, voice=voice, **order.how)


# -- aloud ----------------------------------------------------------------------------------------------------


def _played(client: Client, order: Order, voice: Voice | str, place: Place | None) -> dict[str, Any]:
    """Play the speech while it comes, and write it too if it has a place."""
    from afterwords.audio.devices import play

    with ExitStack() as stack:
        with output.waiting("waiting for the speech"):
            speech = stack.enter_context(client.stream(order.text, voice=voice, **order.how))
        writer = stack.enter_context(_writer(place, speech)) if place else None
        heard = _Heard(speech, writer)
        with output.waiting("playing; Ctrl-C stops it, and the job"):
            play(heard, speech.sample_rate)
    return _facts(speech, heard.n_samples / speech.sample_rate)


def _writer(place: Place, speech: RemoteSpeech) -> AudioWriter:
    from afterwords.audio.writer import AudioWriter

    return AudioWriter(place.target, format=place.format, sample_rate=speech.sample_rate, tags=speech.tags)


class _Heard:
    """The samples of a speech, each chunk written before it is passed on, and how many there were."""

    def __init__(self, speech: RemoteSpeech, writer: AudioWriter | None) -> None:
        self._speech, self._writer = speech, writer
        self.n_samples = 0

    def __iter__(self) -> Iterator[Samples]:
        for chunk in self._speech:
            if self._writer is not None:
                self._writer.write(chunk.samples)
            self.n_samples += len(chunk.samples)
            yield chunk.samples


# -- what was done --------------------------------------------------------------------------------------------


def _facts(done: RemoteJob | RemoteSpeech, duration_s: float | None) -> dict[str, Any]:
    return {
        "voice_id": done.voice_id,
        "backend": done.backend,
        "job_id": done.job_id,
        "cached": done.is_cached,
        "duration_s": None if duration_s is None else round(duration_s, 3),
        "left_out": list(done.left_out),
    }


def _tell(facts: dict[str, Any], place: Place | None, *, as_json: bool) -> None:
    file = place.file if place else None
    if as_json:
        output.result_json({"file": file, **facts})
    where = "" if file is None else f"{output.shown(file)}: "
    long = "" if facts["duration_s"] is None else f"{facts['duration_s']:.1f} s "
    how = ", ".join(filter(None, (facts["backend"], "spoken before, free of charge" if facts["cached"] else "")))
    output.note(
        f"[bold green]✓[/bold green] {where}{long}in the voice {output.shown(facts['voice'])}"
        f"{f' ({output.shown(how)})' if how else ''}"
    )
    output.note_left_out(facts["backend"] or "the server", facts["left_out"])
    if place and file is not None and place.format != "pcm":
        output.note(f"Next: afterwords verify {output.quoted(option_value(file))}")
