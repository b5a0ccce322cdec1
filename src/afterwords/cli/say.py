"""`afterwords say`: speak a text on this machine or on a server, into a file, a pipe or the loudspeaker."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from afterwords.cli import output
from afterwords.cli.jobs import show_progress
from afterwords.cli.options import Profile, Remote, Timeout, complete_voice, is_remote
from afterwords.cli.remote import command, connect, explain_interrupt, job_timeout_s, option_value

if TYPE_CHECKING:
    from io import BufferedReader

    from afterwords.audio.wav import Samples
    from afterwords.audio.writer import AudioWriter
    from afterwords.cli.save_audio import AudioOutput
    from afterwords.client import Client, LiveSpeech, RemoteJob, RemoteSpeech
    from afterwords.markup import Script
    from afterwords.models import Alignment, SpeechOptions, Verification, Voice
    from afterwords.speech import Speech

SHOWN_FAULTY: Final = 20
Text = Annotated[str | None, typer.Argument(help="Text to speak, in quotes; - reads stdin.")]
TextFile = Annotated[Path | None, typer.Option("--file", "-f", help="Text file to speak.")]
VoiceOption = Annotated[
    str | None,
    typer.Option(
        "--voice",
        "-v",
        help="Voice, by name or ID. (default: the default voice, or the only one)",
        autocompletion=complete_voice,
    ),
]
Out = Annotated[
    str | None,
    typer.Option("--out", "-o", help="Audio file to write; - writes to stdout. Without it, the speech is played."),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="wav, mp3, opus, webm, flac, aac, pcm, mulaw or alaw. (default: by the file extension of --out)",
    ),
]
Speed = Annotated[float, typer.Option("--speed", help="0.25 to 4. The pitch stays the same.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Random seed: the same seed gives the same speech.")]
Lang = Annotated[str | None, typer.Option("--lang", help="Language of the text, such as en. (default: the voice's)")]
Backend = Annotated[
    str | None,
    typer.Option("--backend", help="Backend to speak with; see `afterwords backends`. (default: the voice's)"),
]
Emotion = Annotated[
    str | None, typer.Option("--emotion", help="Speak with the voice's take for this emotion; see clone --emotion.")
]
Play = Annotated[
    bool | None, typer.Option("--play/--no-play", help="Play the speech. (default: play, unless --out is given)")
]
Srt = Annotated[Path | None, typer.Option("--srt", help="Subtitle file to write, in SRT format.")]
Vtt = Annotated[Path | None, typer.Option("--vtt", help="Subtitle file to write, in WebVTT format.")]
Timing = Annotated[
    Path | None,
    typer.Option("--timing", help="JSON file to write, with the times of characters and words. (--json is the result)"),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Compare each sentence with its text by speech recognition, and speak a faulty one again, at most twice. "
        "The exit code is 1 if one stays faulty.",
    ),
]
Report = Annotated[Path | None, typer.Option("--report", help="JSON file to write, with the result of --verify.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Speak nothing: print the characters, the expected length, and with --remote what it would cost. The exit "
        "code is 0 even if the characters exceed the limit.",
    ),
]
Live = Annotated[
    bool,
    typer.Option("--live", help="Speak what stdin has so far, sentence by sentence, until it ends; the text is -."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@dataclass(frozen=True, slots=True)
class SayRequest:
    """What to say, and where the speech goes."""

    text: str | Iterator[str] = field(repr=False)
    voice: str | None
    emotion: str | None
    options: SpeechOptions
    destination: AudioOutput | None
    is_played: bool
    timing: dict[str, Path]
    verify: bool
    report: Path | None


def say(
    text: Text = None,
    file: TextFile = None,
    voice: VoiceOption = None,
    emotion: Emotion = None,
    out: Out = None,
    format: Format = None,
    speed: Speed = 1.0,
    seed: Seed = None,
    lang: Lang = None,
    backend: Backend = None,
    play: Play = None,
    srt: Srt = None,
    vtt: Vtt = None,
    timing: Timing = None,
    verify: Verify = False,
    report: Report = None,
    remote: Remote = False,
    profile: Profile = None,
    timeout: Timeout = None,
    live: Live = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Speak a text with a voice, on this machine or on a server."""
    if (text is None) == (file is None):
        raise output.UsageError(
            "say needs exactly one text.", hint="give it once: in quotes, as - for stdin, or with --file FILE."
        )
    times: dict[str, Path | None] = {"--srt": srt, "--vtt": vtt, "--timing": timing}
    checks = {"--verify": verify or None, "--report": report}
    ways_out = {"--out": out, "--format": format, "--play/--no-play": play, **times, **checks, "--timeout": timeout}
    if report and not verify:
        raise output.UsageError("--report writes the result of --verify.", hint="add --verify, or remove --report.")
    if live:
        _check_live(text, needs_whole=dry_run or any(times.values()) or verify or timeout is not None)
    if dry_run and (useless := [name for name, value in ways_out.items() if value is not None]):
        raise output.UsageError(
            f"--dry-run writes and plays nothing, so it can't be combined with {', '.join(useless)}.",
            hint="remove one of them.",
        )
    is_played = (out is None) if play is None else play
    if out is None and not is_played and (not any(times.values()) or is_remote(remote, profile)):
        raise output.UsageError("The speech would go nowhere.", hint="add -o FILE, or remove --no-play.")
    if out == "-" and as_json:
        raise output.UsageError("stdout can't carry both audio and JSON.", hint="name a file: -o hello.wav.")
    if timeout is not None and not is_remote(remote, profile):
        raise output.UsageError("--timeout is for jobs of a server.", hint="add --remote, or remove --timeout.")
    from afterwords.audio.output import check_writable
    from afterwords.cli.save_audio import parse_output
    from afterwords.models import SpeechOptions
    from afterwords.text import read_pieces, read_text

    if not live and (file is not None or text == "-"):
        text = read_text(file or sys.stdin.buffer)
    request = SayRequest(
        read_pieces(cast("BufferedReader", sys.stdin.buffer)) if live else str(text),
        voice,
        emotion,
        SpeechOptions.check(lang=lang, backend=backend, speed=speed, seed=seed),
        parse_output(out, format) if out is not None else None,
        is_played,
        {name.removeprefix("--"): value for name, value in times.items() if value is not None},
        verify,
        report,
    )
    for path in (*request.timing.values(), *([report] if report else [])):
        check_writable(path)
    with output.without_text_warnings():
        if dry_run:
            _estimate(request, profile, on_server=is_remote(remote, profile), as_json=as_json)
        elif is_remote(remote, profile):
            _print_result(request, *_say_on_server(request, profile, job_timeout_s(timeout)), as_json=as_json)
        else:
            _print_result(request, *_say_here(request), as_json=as_json)


def _check_live(text: str | None, *, needs_whole: bool) -> None:
    if text != "-":
        raise output.UsageError(
            "--live reads a text that is still being written from stdin.", hint="say - --live, or remove --live."
        )
    if needs_whole:
        raise output.UsageError(
            "--dry-run, --srt, --vtt, --timing, --verify and --timeout need the whole text, which --live lacks.",
            hint="remove --live.",
        )


def _print_result(request: SayRequest, facts: dict[str, Any], detail: str, *, as_json: bool) -> None:
    if as_json:
        output.result_json(facts)
    destination = request.destination
    name = destination.file if destination else None
    subject = "" if name is None else f"{output.shown(name)}: "
    length = "" if facts["duration_s"] is None else f"{facts['duration_s']:.1f} s "
    detail = f" ({output.shown(detail)})" if detail else ""
    output.note(f"[bold green]✓[/bold green] {subject}{length}in the voice {output.shown(facts['voice'])}{detail}")
    output.note_left_out(facts["backend"] or "the server", facts["left_out"])
    if destination and name is not None and destination.is_tagged:
        output.note_how_to_listen(option_value(name))
        output.note(f"Next: afterwords verify {output.quoted(option_value(name))}")
    if request.verify and not facts["verification"]["has_passed"]:
        raise typer.Exit(1)


def _estimate(request: SayRequest, profile: str | None, *, on_server: bool, as_json: bool) -> None:
    """Print what the speech would take and cost."""
    assert isinstance(request.text, str), "a live text has no estimate"
    options = request.options.model_dump()
    shown: dict[str, str]
    more: dict[str, Any] = {}
    if on_server:
        from afterwords.text import check_text

        check_text(request.text)
        with output.waiting("asking the server"), connect(profile) as client:
            voice = _choose_voice(client, request, profile)
            found = client.estimate(request.text, voice=voice, emotion=request.emotion, **options)
        charged = "0, the audio is cached" if found.is_cached else f"{found.charged_characters:,}"
        left = "unlimited" if found.remaining_characters is None else f"{found.remaining_characters:,} in this period"
        shown = {"charged": charged, "left": left}
    else:
        from afterwords import local

        voice = local.library().choose(request.voice)
        found = local.estimate(request.text, voice=voice, emotion=request.emotion, **options)
        is_prepared = (
            local.must_prepare(voice=voice, emotion=request.emotion, lang=found.lang, backend=found.backend) is None
        )
        shown = {"prepared": "yes" if is_prepared else "no, which takes more time, once"}
        more = {"is_prepared": is_prepared}
    name = voice if isinstance(voice, str) else voice.name
    if as_json:
        output.result_json({"voice": name, **found.model_dump(mode="json"), **more})
        return
    work = f"about {output.duration(found.synthesis_s)}" if found.synthesis_s else None
    output.result_facts(
        {
            "voice": name,
            "backend": found.backend,
            "characters": f"{found.characters:,}",
            "audio": f"about {output.duration(found.duration_s)}",
            "synthesis": work,
            **shown,
        }
    )
    if not found.is_within_limit:
        output.note("[yellow]![/yellow] The server would refuse this text, which has more characters than are left.")


def _say_here(request: SayRequest) -> tuple[dict[str, Any], str]:
    """Speak on this machine; return the facts for JSON, and how the speech was made."""
    from afterwords import local
    from afterwords.text import MAX_LOCAL_CHARS, check_text

    if isinstance(request.text, str):
        check_text(request.text, max_chars=MAX_LOCAL_CHARS)
    voice, emotion, options = request.voice, request.emotion, request.options
    if preparing := local.must_prepare(voice=voice, emotion=emotion, lang=options.lang, backend=options.backend):
        about = ", about 15 s on two cores" if preparing == "lite" else ""
        output.note(f"Preparing the voice for {output.shown(preparing)}, once{about}.")
    with output.progress_bar() as progress, ExitStack() as stack:
        speech = local.stream(
            request.text,
            voice=voice,
            emotion=emotion,
            **options.model_dump(),
            timestamps=bool(request.timing),
            verify=request.verify,
            progress=progress,
        )
        samples = _SampleStream(speech, request.destination, stack)
        if request.is_played:
            from afterwords.audio.devices import play

            play(samples, speech.sample_rate)
        else:
            samples.write()
    if speech.alignment is not None and speech.script is not None:
        _write_times(speech.alignment, speech.script, request.timing)
    done = speech.result
    assert done is not None, "the speech was read to its end"
    facts = {
        "voice": speech.voice.name,
        "voice_id": speech.voice.voice_id,
        "file": request.destination.file if request.destination else None,
        "left_out": list(speech.left_out),
        "notices": list(speech.notices),
        "real_time_factor": round(done.real_time_factor, 3),
        **done.model_dump(mode="json"),
        **{kind: str(path) for kind, path in request.timing.items()},
        **_report(speech.verification, request),
    }
    _note_all(speech.notices)
    if speech.backend != speech.voice.backend:
        output.note(f"Spoken with {done.backend}: {output.shown(speech.reason)}")
    return facts, f"{done.backend}, took {output.duration(done.synth_ms / 1000)}"


def _note_all(notices: Sequence[str]) -> None:
    for notice in notices:
        output.note(f"[yellow]![/yellow] {output.shown(notice)}")


def note_faults(verification: Verification | None) -> dict[str, Any]:
    """Name the sentences that have a fault, and return the verification for the result."""
    if verification is None:
        return {}
    faulty = [(number, each) for number, each in enumerate(verification.sentences, 1) if each.faults]
    for number, sentence in faulty[:SHOWN_FAULTY]:
        faults = ", ".join(fault.replace("_", " ") for fault in sentence.faults)
        tries = f"after {len(sentence.attempts)} attempts" if len(sentence.attempts) > 1 else "in its only attempt"
        output.note(
            f"[yellow]![/yellow] Sentence {number}, at {output.duration(sentence.start_s)}, has faults {tries}: "
            f"{faults}. {output.shown(sentence.text)}"
        )
    if len(faulty) > SHOWN_FAULTY:
        output.note(f"[yellow]![/yellow] {len(faulty) - SHOWN_FAULTY:,} more sentences have faults; see the report.")
    return {"verification": verification.model_dump(mode="json")}


def _report(verification: Verification | None, request: SayRequest) -> dict[str, Any]:
    from afterwords.audio.output import write_atomically

    if verification and request.report:
        write_atomically(request.report, verification.model_dump_json(indent=2).encode())
    return note_faults(verification)


def _write_times(alignment: Alignment, script: Script, files: dict[str, Path]) -> None:
    import json

    from afterwords.audio.output import write_atomically
    from afterwords.audio.subtitles import to_srt, to_vtt
    from afterwords.speech import without_markup

    spoken = without_markup(alignment, script)
    words = [word.model_dump() for word in alignment.words]
    content = {
        "srt": to_srt(spoken),
        "vtt": to_vtt(spoken),
        "timing": json.dumps({"words": words, **alignment.model_dump()}),
    }
    for kind, path in files.items():
        write_atomically(path, content[kind].encode())


def _say_on_server(request: SayRequest, profile: str | None, timeout_s: float) -> tuple[dict[str, Any], str]:
    """Have a server speak; return the facts for JSON, and how the speech was made."""
    from afterwords.markup import parse
    from afterwords.text import check_text

    text, options = request.text, {"emotion": request.emotion, **request.options.model_dump()}
    text = check_text(text) if isinstance(text, str) else text
    with connect(profile) as client:
        voice = _choose_voice(client, request, profile)
        done: RemoteSpeech | LiveSpeech | RemoteJob
        duration_s: float | None
        if request.is_played or not isinstance(text, str):
            with ExitStack() as stack:
                with output.waiting("waiting for the speech"):
                    if isinstance(text, str):
                        options |= {"timestamps": bool(request.timing), "verify": request.verify}
                        done = stack.enter_context(client.stream(text, voice=voice, **options))
                    else:
                        done = stack.enter_context(client.speak(text, voice=voice, **options))
                samples = _SampleStream(done, request.destination, stack)
                if request.is_played:
                    from afterwords.audio.devices import play

                    with output.waiting("playing; Ctrl-C stops it, and the job"):
                        play(samples, done.sample_rate)
                else:
                    samples.write()
            duration_s = samples.duration_s
        else:
            done, duration_s = _download_speech(client, request, voice, profile, timeout_s)
        verification = None
        if request.timing or request.verify:
            job = client.jobs.wait(str(done.job_id), timeout_s=timeout_s)  # a stream ends before its job
            verification = job.verification() if request.verify else None
        if isinstance(text, str) and request.timing:
            script = parse(text, emotions=_find_emotions(client, str(done.voice_id)) if "[" in text else ())
            _write_times(job.alignment(), script, request.timing)
    _note_all(done.notices)
    facts = {
        "file": request.destination.file if request.destination else None,
        "voice": voice if isinstance(voice, str) else voice.name,
        "voice_id": done.voice_id,
        "backend": done.backend,
        "job_id": done.job_id,
        "cached": done.is_cached,
        "duration_s": None if duration_s is None else round(duration_s, 3),
        "left_out": list(done.left_out),
        "notices": list(done.notices),
        **{kind: str(path) for kind, path in request.timing.items()},
        **_report(verification, request),
    }
    return facts, ", ".join(filter(None, (done.backend, "from the cache, free of charge" if done.is_cached else "")))


def _choose_voice(client: Client, request: SayRequest, profile: str | None) -> Voice | str:
    """Return the voice with the name, or the only one of the server."""
    if request.voice is not None:
        return request.voice
    voices = list(client.voices.list())
    voices = [voice for voice in voices if not voice.emotion] or voices
    if not voices:
        push = command("push", "NAME", profile=profile)
        raise output.UsageError(f"{client.base_url} has no voices yet.", hint=f"copy one there: {push}")
    if len(voices) > 1:
        raise output.UsageError(
            f"{client.base_url} has {len(voices)} voices and none was named.",
            hint=f"add --voice NAME ({', '.join(output.plain(voice.name) for voice in voices[:5])}).",
        )
    return voices[0]


def _find_emotions(client: Client, voice_id: str) -> list[str]:
    """Return the names that are tags in a text of a voice of the server."""
    from afterwords.library.takes import NEUTRAL, takes

    voices = list(client.voices.list())
    palette = next((takes(voices, speaker) for speaker in voices if speaker.voice_id == voice_id), {})
    return [*palette, NEUTRAL] if palette else []


def _download_speech(
    client: Client, request: SayRequest, voice: Voice | str, profile: str | None, timeout_s: float
) -> tuple[RemoteJob, float | None]:
    """Submit a job, wait for it and save its audio; return the job, and the duration in seconds if it is known."""
    from afterwords.cli.save_audio import save_audio
    from afterwords.client.parsing import SpeechResponse
    from afterwords.errors import UnsupportedByServerError
    from afterwords.models import SpeechFormat

    destination, options = request.destination, request.options
    fields = {
        "emotion": request.emotion,
        **options.model_dump(),
        "timestamps": bool(request.timing),
        "verify": request.verify,
    }
    assert isinstance(request.text, str), "a live text has no job"
    assert destination is not None, "speech that is not played has an output"
    listing = command("jobs", "list", profile=profile)
    interrupted = explain_interrupt("The server may have accepted the job already. List its jobs with:", listing)
    with interrupted, output.waiting("asking the server"):
        try:
            job = client.synthesize(request.text, voice=voice, format=destination.format, **fields)
        except UnsupportedByServerError:
            if (
                destination.format is SpeechFormat.WAV
                or options.speed != 1
                or options.seed is not None
                or request.timing
                or request.verify
                or request.emotion
            ):
                raise
            job = client.synthesize(request.text, voice=voice, **fields)  # converted below
    if job.job_id is None:  # cached: the audio came with the response
        data = job.data()
    else:
        resume = command("jobs", "download", job.job_id, "-o", option_value(destination.out), profile=profile)
        with show_progress(resume) as progress:
            job = job.wait(timeout_s=timeout_s, progress=progress)
        with explain_interrupt("Nothing was written. Download it with:", resume), output.waiting("downloading"):
            data = job.data()
    name = voice if isinstance(voice, str) else voice.name
    return job, save_audio(SpeechResponse(data, job.voice_id, job.backend, job.job_id), destination, voice=name)


class _SampleStream:
    """The samples of streamed speech; each chunk is written to the output, if there is one, before it is yielded."""

    def __init__(
        self, speech: Speech | RemoteSpeech | LiveSpeech, destination: AudioOutput | None, stack: ExitStack
    ) -> None:
        self._speech = speech
        self._writer: AudioWriter | None = None
        self.duration_s = 0.0
        if destination is not None:
            from afterwords.audio.writer import AudioWriter

            rate, tags = speech.sample_rate, speech.tags
            writer = AudioWriter(destination.target, format=destination.format, sample_rate=rate, tags=tags)
            self._writer = stack.enter_context(writer)

    def __iter__(self) -> Iterator[Samples]:
        for chunk in self._speech:
            if self._writer is not None:
                self._writer.write(chunk.samples)
            self.duration_s += len(chunk.samples) / self._speech.sample_rate
            yield chunk.samples

    def write(self) -> None:
        """Write the speech; on Ctrl-C, say that nothing was written."""
        try:
            for _ in self:
                pass
        except KeyboardInterrupt:
            made = output.duration(self.duration_s)
            output.note(f"{made} of speech were discarded: a file is written completely or not at all.")
            raise
