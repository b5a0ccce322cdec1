"""Do one piece of work: a text and a voice in, PCM out; or a voice in, its prompt out.

Worker processes of a server and machines elsewhere run the same code. It knows no pipe, no request and no database.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import Any, Protocol

from afterwords.audio.wav import pcm16, read_wav
from afterwords.backends import registry, speech_check
from afterwords.backends.base import (
    CachingEngine,
    Engine,
    InvalidPromptError,
    Progress,
    Reference,
    ResumableEngine,
    SaveCheckpoint,
    ignore_progress,
)
from afterwords.backends.speech_check import SpeechChecker
from afterwords.errors import AfterwordsError
from afterwords.models import Alignment, Reading, SpeechResult, SpeechTask, WordTiming
from afterwords.server.dispatch.messages import INVALID_PROMPT, Message
from afterwords.speech import Aligner, speak


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One utterance to synthesize, with every choice made.

    Attributes:
        text: None: only the prompt is made.
        lang: Language of the text, two letters.
        voice_id: Key for the engine's caches.
        speed: 0.25 to 4.
        prompt: What the backend derived from the reference earlier; None if it has to be made.
        checkpoint: Where an interrupted preparation of the prompt stopped, if known.
        is_fast: Make the prompt in less time, for less similarity.
        timestamps: Find when each character is spoken.
        verify: Compare the speech with the text, and speak faulty sentences again.
        reference: The recording, a WAV; required without a prompt, and to verify.
        ref_text: Transcript of the recording, if there is one.
        ref_lang: Language of the recording.
        reading: The `Reading` of the text, as JSON; None: an empty one.
    """

    text: str | None = field(repr=False)
    lang: str
    backend: str
    voice_id: str
    speed: float = 1.0
    seed: int | None = None
    prompt: bytes | None = field(default=None, repr=False)
    checkpoint: bytes | None = field(default=None, repr=False)
    is_fast: bool = False
    timestamps: bool = False
    verify: bool = False
    reference: bytes | None = field(default=None, repr=False)
    ref_text: str | None = field(default=None, repr=False)
    ref_lang: str = "en"
    reading: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.prompt is None and self.reference is None:
            raise ValueError("work needs a prompt or a reference")

    @classmethod
    def from_message(cls, message: Message) -> Work:
        """Return the work of a message `speak`: its parts follow each other in the body."""
        parts: dict[str, Any] = {}
        start = 0
        for name, n_bytes in message.facts["parts"].items():
            parts[name] = message.body[start : start + n_bytes]
            start += n_bytes
        return cls(**message.facts["work"], **parts)


class Send(Protocol):
    """Sends a message: a kind, facts that JSON can hold, and bytes."""

    def __call__(self, kind: str, body: bytes = b"", **facts: Any) -> None: ...


class UtteranceCancelledError(Exception):
    """Raised through an engine's `prepare` to cancel it."""


class Worker:
    """The engines of this process. Its methods may be called from several threads."""

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}

    def engine(self, backend: str) -> Engine:
        """Return the engine that runs a backend.

        Raises:
            InvalidInputError, BackendUnavailableError: It can't run here.
        """
        if backend not in self._engines:  # a look through the installed engines takes milliseconds
            self._engines[backend] = registry.engine_for(registry.choose(backend))
        return self._engines[backend]

    def speak(self, work: Work, cancelled: Event, send: Send) -> dict[str, Any]:
        """Speak, and send messages meanwhile: `preparing` and `checkpoint`, then `speaking`, `audio`, `report`.

        Before a report about the times, there are `aligning` messages if the words have to be recognized. While
        sentences are verified, there are `verifying` messages.

        Args:
            cancelled: Set by another thread to stop.

        Returns:
            Facts for the message `ended`: `synth_ms`, or the error. Empty: there was no text, or it was cancelled.
        """

        def save(checkpoint: bytes) -> None:
            send("checkpoint", checkpoint)

        def progress(fraction: float, step: str, kind: str = "preparing") -> None:
            if cancelled.is_set():
                raise UtteranceCancelledError
            send(kind, fraction=clip(fraction), step=step)

        try:
            if work.text is None:
                send("speaking", self.prepare(work, progress, save), is_new=True)
                return {}
            with closing(self.start(work, progress, save, aligning=partial(progress, kind="aligning"))) as stream:
                send("speaking", stream.new_prompt or b"", is_new=stream.new_prompt is not None)
                for pcm in stream:
                    if cancelled.is_set():
                        return {}
                    if not pcm and work.verify:
                        send("verifying")
                        continue
                    words = [word.model_dump() for word in stream.words]
                    send("audio", pcm, sample_rate=stream.sample_rate, **({"words": words} if stream.is_timed else {}))
                if stream.timing is not None:
                    send("report", stream.timing, report="timing")
                if stream.checker is not None:
                    report = stream.checker.verification.model_dump_json().encode()
                    send("report", report, report="verification")
            return {"synth_ms": stream.result.synth_ms} if stream.result else {}
        except UtteranceCancelledError:
            return {}
        except Exception as error:  # noqa: BLE001 - engines fail in any way; the server decides what follows
            return describe_error(error)

    def forget_voices(self) -> None:
        """Remove all voices from the memory of the engines, and their recordings."""
        speech_check.forget_voices()
        for engine in [*self._engines.values()]:
            if isinstance(engine, CachingEngine):
                engine.forget_voices()

    def prepare(self, work: Work, progress: Progress, save: SaveCheckpoint) -> bytes:
        """Return the prompt made from the reference; see `start`."""
        engine = self.engine(work.backend)
        assert work.reference is not None, "checked by Work"
        samples, sample_rate = read_wav(work.reference, source="the reference")
        reference = Reference(samples, sample_rate, work.ref_text, work.ref_lang)
        if isinstance(engine, ResumableEngine) and not work.is_fast:
            return engine.resume(reference, progress, checkpoint=work.checkpoint, save=save)
        return engine.prepare(reference, progress, fast=work.is_fast)

    def start(
        self,
        work: Work,
        progress: Progress = ignore_progress,
        save: SaveCheckpoint = lambda _checkpoint: None,
        *,
        aligning: Progress = ignore_progress,
    ) -> PcmStream:
        """Make the prompt if needed, and return the audio of the text, which is synthesized while it is read.

        Args:
            progress: Called with the progress of the preparation; an exception that it raises ends it.
            save: Called with checkpoints of the preparation, if the engine makes any.
            aligning: Called while the words are recognized, after the audio; an exception that it raises ends it.

        Raises:
            RecordingError: The reference can't be used.
            InvalidInputError, BackendUnavailableError: The backend can't run here.
            InvalidPromptError: The engine can't read the prompt.
            UnavailableError: The timestamps can't be found here, or speech can't be verified.
        """
        assert work.text is not None, "there is a text to speak"
        engine = self.engine(work.backend)
        checker = None
        if work.verify:
            assert work.reference is not None, "fetched by the attempt"
            checker = SpeechChecker(Reference(*read_wav(work.reference, source="the reference")))
            checker.load(work.lang, progress)
        new_prompt = None
        if work.prompt is not None:
            engine.describe(work.prompt)  # it may come from anyone, with a voice
            prompt = work.prompt
        else:
            prompt = new_prompt = self.prepare(work, progress, save)
        reading = Reading.model_validate_json(work.reading or "{}")
        task = SpeechTask(
            text=work.text,
            lang=work.lang,
            backend=work.backend,
            voice_id=work.voice_id,
            prompt=prompt,
            seed=work.seed,
            lexicon=reading.lexicon,
            emotions=reading.emotions,
        )
        aligner = Aligner(engine, task, work.text) if work.timestamps else None
        return PcmStream(
            engine,
            task,
            speed=work.speed,
            new_prompt=new_prompt,
            aligner=aligner,
            aligning=aligning,
            checker=checker,
        )


class PcmStream:
    """Speech while it is synthesized: iterate once for 16-bit little-endian mono PCM.

    Attributes:
        sample_rate: In Hz.
        new_prompt: The prompt made from the reference; None if the work had one.
        is_timed: There is an aligner, and the engine reports words.
        words: Words in the PCM that was read last, if it is timed.
        result: The figures, once all was read.
        timing: An `Alignment` as JSON, once all was read; None if there is no aligner.
        checker: It has the verification, once all was read; None if the speech is not verified.
    """

    def __init__(
        self,
        engine: Engine,
        task: SpeechTask,
        *,
        speed: float,
        new_prompt: bytes | None,
        aligner: Aligner | None = None,
        aligning: Progress = ignore_progress,
        checker: SpeechChecker | None = None,
    ) -> None:
        self.sample_rate = engine.sample_rate
        self.new_prompt = new_prompt
        self.is_timed = aligner is not None and aligner.is_timed
        self.words: tuple[WordTiming, ...] = ()
        self.result: SpeechResult | None = None
        self.timing: bytes | None = None
        self._aligner, self._aligning = aligner, aligning
        self._backend = task.backend
        self.checker = checker
        self._chunks = speak(engine, task, speed, ignore_progress, checker=checker)

    def __iter__(self) -> Iterator[bytes]:
        """Yield PCM as it is synthesized.

        Raises:
            SynthesisError: The engine failed.
            RecordingError: The engine returned samples that are NaN or infinite.
            UnavailableError: No word was recognized, which the timing would be based on.
        """
        n_frames, work_s, first_audio_ms = 0, 0.0, None
        started = time.perf_counter()
        for chunk in self._chunks:
            pcm = pcm16(chunk.samples)
            work_s += time.perf_counter() - started
            if first_audio_ms is None and pcm:
                first_audio_ms = round(work_s * 1000)
            n_frames += len(chunk.samples)
            if self._aligner:
                self._aligner.add(chunk)
            self.words = chunk.words
            yield pcm
            started = time.perf_counter()  # the reader's time is not counted
        if self._aligner:
            self.timing = _pack(self._aligner.alignment(self._aligning))
        work_s += time.perf_counter() - started
        self.result = SpeechResult(
            backend=self._backend,
            sample_rate=self.sample_rate,
            duration_s=n_frames / self.sample_rate,
            synth_ms=round(work_s * 1000),
            first_audio_ms=first_audio_ms,
        )

    def close(self) -> None:
        """Stop; other utterances of the engine continue."""
        self._chunks.close()


def _pack(alignment: Alignment) -> bytes:
    """Return an alignment as JSON, with its text as one string and its times in whole milliseconds."""
    times = {name: [round(time_s, 3) for time_s in getattr(alignment, name)] for name in ("start_s", "end_s")}
    facts = {"characters": "".join(alignment.characters), **times, "confidence": alignment.confidence}
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode()


def clip(fraction: float) -> float:
    """Return a fraction in [0, 1]; 0 for NaN."""
    return min(1.0, max(0.0, float(fraction)))


def describe_error(error: Exception) -> dict[str, Any]:
    """Return the code and class of an error, and its message only if afterwords wrote it: others may quote the text."""
    code, words = (error.code, str(error)) if isinstance(error, AfterwordsError) else ("synthesis_failed", "")
    if isinstance(error.__cause__ or error, InvalidPromptError):
        code = INVALID_PROMPT
    return {
        "error": code,
        "words": words,
        "error_kind": type(error.__cause__ or error).__name__,
        "is_out_of_memory": is_out_of_memory(error),
    }


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that caused it, means that memory ran out: of this machine or of a device."""
    while error is not None:
        # torch.cuda.OutOfMemoryError is found by its name, without importing torch; ONNX Runtime has no class for it
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "bad_alloc" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
