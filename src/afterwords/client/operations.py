"""Every call of the API, once: generators that `Client` and `AsyncClient` drive alike. No I/O.

What only an afterwords server knows, and the hosted service does not, is one typed error there.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from afterwords.client.downloads import fetched
from afterwords.client.parsing import (
    Sound,
    Submitted,
    accepted,
    all_shaped,
    array_of,
    checked,
    given,
    has_next,
    job_of,
    object_of,
    path_of,
    ready,
    shaped,
    sound_of,
    voice_of,
)
from afterwords.client.requests import (
    Answer,
    Ask,
    Known,
    Operation,
    Pause,
    check_audio,
    is_damaged,
    is_own,
    once,
    sent,
)
from afterwords.errors import (
    AfterwordsError,
    JobTimeoutError,
    UnsupportedByServerError,
    VoiceNotFoundError,
)
from afterwords.models import (
    BUNDLE_TYPE,
    NAME_MAX_CHARS,
    Account,
    ApiKey,
    Health,
    Job,
    JobStatus,
    NewApiKey,
    SpeechFormat,
    Usage,
    Voice,
    as_id,
)

if TYPE_CHECKING:
    from afterwords.backends.base import Progress

T = TypeVar("T")

JOB_TIMEOUT_S: Final = 600.0
"""How long a job is waited for, unless something else is said."""
WAIT_S: Final = 20
"""How long one request waits for a job; several follow one another."""
PROGRESS_S: Final = 1
"""How long one request waits where somebody looks at the progress."""
POLL_MIN_S, POLL_MAX_S = 0.1, 2.0
"""How often a server is asked that does not wait."""
FIRST_SOUND_S: Final = 600.0
"""How long a stream may keep silent at first: jobs before it, and a voice that is prepared."""
PAGE_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a list, and after which item the next one begins; None: it was the last."""

    items: list[T]
    after: str | None


@dataclass(frozen=True, slots=True)
class Speech:
    """What is asked for.

    Attributes:
        voice: a voice of the server, its name there, or its identifier.
    """

    text: str = field(repr=False)
    voice: Voice | str
    lang: str | None = None
    backend: str | None = None
    speed: float = 1.0
    seed: int | None = None


def patience(left_s: float) -> int:
    """How long one request waits for a job that may take so long, in whole seconds."""
    return max(0, round(min(WAIT_S, left_s)))


class Operations:
    """The calls, with what was learned of the server on the way."""

    def __init__(self) -> None:
        self._known = Known()

    # -- the service -----------------------------------------------------------------------------------------

    def health(self) -> Operation[Health]:
        answer = yield from sent(Ask("GET", "/v1/health", is_public=True), self._known)
        return shaped(answer, Health)

    def usage(self) -> Operation[Usage]:
        return shaped((yield from self._get("/v1/usage")), Usage)

    # -- keys ------------------------------------------------------------------------------------------------

    def create_key(
        self,
        *,
        label: str | None,
        scopes: Sequence[str],
        character_limit: int | None,
        account_id: str | None,
        for_key: str | None,
    ) -> Operation[NewApiKey]:
        more = given(
            scopes=list(scopes) or None, character_limit=character_limit, account_id=account_id, for_key=for_key
        )
        if more:
            yield from self._only_own("keys with scopes, limits or a given account")
        body = {**given(label=label), **more}
        ask = Ask("POST", "/v1/keys", json=body, is_repeatable=False, is_admin=True)
        return shaped((yield from sent(ask, self._known)), NewApiKey)

    def list_accounts(self) -> Operation[list[Account]]:
        answer = yield from self._own(Ask("GET", "/v1/accounts", is_admin=True), "listing accounts")
        return all_shaped(answer, Account)

    def list_keys(self) -> Operation[list[ApiKey]]:
        answer = yield from self._own(Ask("GET", "/v1/keys", is_admin=True), "listing keys")
        return all_shaped(answer, ApiKey)

    def revoke_key(self, key_id: str) -> Operation[None]:
        ask = Ask("DELETE", path_of("/v1/keys", key_id), is_admin=True, missing="key_not_found")
        yield from self._own(ask, "revoking keys")

    def rotate_key(self, key_id: str, *, overlap_s: float) -> Operation[NewApiKey]:
        path = f"{path_of('/v1/keys', key_id)}/rotate"
        ask = Ask(
            "POST", path, json={"overlap_s": overlap_s}, is_repeatable=False, is_admin=True, missing="key_not_found"
        )
        return shaped((yield from self._own(ask, "rotating keys")), NewApiKey)

    # -- voices ----------------------------------------------------------------------------------------------

    def create_voice(
        self,
        wav: bytes,
        *,
        name: str,
        ref_text: str | None,
        lang: str,
        backend: str | None,
        family: str | None,
        consent: str | None,
        idempotency_key: str | None,
    ) -> Operation[Voice]:
        form = given(name=name, lang=lang, ref_text=ref_text, backend=backend, family=family, consent=consent)
        ask = Ask(
            "POST",
            "/v1/voices",
            form=form,
            file=wav,
            is_repeatable=False,
            idempotency_key=once(idempotency_key),
        )
        answer = yield from sent(ask, self._known)
        facts = {"lang": lang, "ref_text": ref_text, "family": family, **object_of(answer)}
        return self._made(voice_of(facts, answer))

    def import_voice(self, bundle: bytes, *, idempotency_key: str | None) -> Operation[Voice]:
        ask = Ask(
            "POST",
            "/v1/voices/import",
            body=bundle,
            headers={"Content-Type": BUNDLE_TYPE},
            is_repeatable=False,
            idempotency_key=once(idempotency_key),
        )
        answer = yield from self._own(ask, "importing a voice")
        return self._made(voice_of(object_of(answer), answer))

    def export_voice(self, voice: Voice | str) -> Operation[bytes]:
        def export(voice_id: str) -> Operation[bytes]:
            path = f"{path_of('/v1/voices', voice_id)}/export"
            ask = Ask("GET", path, params={"prompts": "true"}, missing="voice_not_found", is_download=True)
            answer = yield from self._own(ask, "exporting a voice", is_fetched=True)
            return answer.body

        return (yield from self._with_voice(voice, export))

    def voices_page(self, after: str | None, *, limit: int) -> Operation[Page[Voice]]:
        answer = yield from self._get("/v1/voices", **given(limit=limit, after=after))
        voices = [voice_of(item, answer) for item in array_of(answer)]
        return Page(voices, voices[-1].voice_id if voices and has_next(answer) else None)

    def get_voice(self, voice: Voice | str) -> Operation[Voice]:
        def get(voice_id: str) -> Operation[Voice]:
            answer = yield from self._get(path_of("/v1/voices", voice_id), missing="voice_not_found")
            return voice_of(object_of(answer), answer)

        return (yield from self._with_voice(voice, get))

    def update_voice(self, voice: Voice | str, **changes: Any) -> Operation[Voice]:
        def update(voice_id: str) -> Operation[Voice]:
            ask = Ask("PATCH", path_of("/v1/voices", voice_id), json=given(**changes), missing="voice_not_found")
            answer = yield from self._own(ask, "changing a voice")
            self._forget(voice_id)  # it may have another name now
            return voice_of(object_of(answer), answer)

        return (yield from self._with_voice(voice, update))

    def delete_voice(self, voice: Voice | str) -> Operation[None]:
        def delete(voice_id: str) -> Operation[None]:
            path = path_of("/v1/voices", voice_id)
            yield from sent(Ask("DELETE", path, missing="voice_not_found", gone_is_done=True), self._known)
            self._forget(voice_id)

        yield from self._with_voice(voice, delete)

    # -- speech ----------------------------------------------------------------------------------------------

    def say(self, speech: Speech, *, timeout_s: float) -> Operation[Sound]:
        """All of the audio: at once where it was spoken before, else as soon as it is ready."""
        ends = time.monotonic() + timeout_s
        done = yield from self.submit(speech, wait_s=patience(timeout_s))
        if done.sound is not None:
            return done.sound
        yield from self.wait_for_job(str(done.job.job_id), timeout_s=max(0.0, ends - time.monotonic()))
        data = yield from self.job_audio(str(done.job.job_id))
        return Sound(data, done.job.voice_id, done.backend, done.job.job_id)

    def submit(
        self,
        speech: Speech,
        *,
        response_format: SpeechFormat = SpeechFormat.WAV,
        webhook_url: str | None = None,
        idempotency_key: str | None = None,
        wait_s: int = 0,
    ) -> Operation[Submitted]:
        """Ask for speech."""
        more = given(
            response_format=None if response_format is SpeechFormat.WAV else response_format.value,
            webhook_url=webhook_url,
        )
        key = once(idempotency_key)

        def ask(voice_id: str) -> Operation[Submitted]:
            asked = self._asked(speech, voice_id, more, key, wait_s=wait_s)
            answer = yield from sent(asked, self._known)
            if answer.status == 200:
                return (yield from self._sounded(answer, asked, voice_id))
            return accepted(answer, voice_id)

        yield from self._check_options(speech, more)
        return (yield from self._with_voice(speech.voice, ask))

    def stream(self, speech: Speech, *, response_format: SpeechFormat = SpeechFormat.WAV) -> Operation[Sound]:
        """Return the audio while it is made; where the server can't do that, once it is ready."""
        more = {} if response_format is SpeechFormat.WAV else {"response_format": response_format.value}

        def ask(voice_id: str) -> Operation[Sound]:
            asked = self._asked(speech, voice_id, {"stream": True, **more}, once(), is_stream=True)
            answer = yield from sent(asked, self._known)
            if answer.status == 200:
                check_audio(answer)  # what is none was not left open
                return sound_of(answer, voice_id)
            done = accepted(answer, voice_id)
            job_id = str(done.job.job_id)
            yield from self.wait_for_job(job_id, timeout_s=FIRST_SOUND_S)
            audio = Ask("GET", f"{path_of('/v1/jobs', job_id)}/audio", is_stream=True, missing="job_not_found")
            answer = yield from sent(audio, self._known)
            check_audio(answer)
            sound = sound_of(answer, voice_id)
            return replace(sound, backend=done.backend, job_id=job_id, left_out=done.left_out)

        yield from self._check_options(speech, more)
        return (yield from self._with_voice(speech.voice, ask))

    # -- jobs ------------------------------------------------------------------------------------------------

    def get_job(self, job_id: str, *, wait_s: int = 0) -> Operation[Job]:
        params = {"wait": wait_s} if wait_s else {}
        ask = Ask("GET", path_of("/v1/jobs", job_id), params=params, missing="job_not_found", wait_s=wait_s)
        return job_of((yield from sent(ask, self._known)))

    def wait_for_job(self, job_id: str, *, timeout_s: float, progress: Progress | None = None) -> Operation[Job]:
        """Follow a job until it is ready; `progress` is told after every answer what the server does for it.

        Raises:
            JobFailedError, JobCancelledError: it has no audio.
            JobTimeoutError: it is pending still; it goes on.
        """
        ends = time.monotonic() + timeout_s
        pause_s = POLL_MIN_S
        while True:
            began = time.monotonic()
            wait_s = patience(ends - began)
            job = yield from self.get_job(job_id, wait_s=min(PROGRESS_S, wait_s) if progress else wait_s)
            if job.status is not JobStatus.PENDING:
                return ready(job)
            if progress:
                progress(job.progress or 0.0, job.step or "waiting")
            left_s = ends - time.monotonic()
            if left_s <= 0:
                raise JobTimeoutError(job_id, waited_s=round(timeout_s, 1))
            if time.monotonic() - began < 1.0:  # this server does not wait
                yield Pause(min(pause_s, left_s))
                pause_s = min(POLL_MAX_S, pause_s * 1.5)

    def jobs_page(self, after: str | None, *, status: JobStatus | None, limit: int) -> Operation[Page[Job]]:
        params = given(status=status.value if status else None, limit=limit, after=after)
        answer = yield from self._own(Ask("GET", "/v1/jobs", params=params), "listing jobs")
        jobs = [checked(Job, item, answer) for item in array_of(answer)]
        return Page(jobs, jobs[-1].job_id if jobs and has_next(answer) else None)

    def cancel_job(self, job_id: str) -> Operation[Job]:
        ask = Ask("DELETE", path_of("/v1/jobs", job_id), missing="job_not_found")
        return job_of((yield from self._own(ask, "cancelling a job")))

    def job_audio(self, job_id: str) -> Operation[bytes]:
        path = f"{path_of('/v1/jobs', job_id)}/audio"
        answer = yield from fetched(Ask("GET", path, missing="job_not_found", is_download=True), self._known)
        check_audio(answer)
        return answer.body

    # -- what they share -------------------------------------------------------------------------------------

    def _get(self, path: str, *, missing: str = "not_found", **params: str | int) -> Operation[Answer]:
        return sent(Ask("GET", path, params=params, missing=missing), self._known)

    def _own(self, ask: Ask, what: str, *, is_fetched: bool = False) -> Operation[Answer]:
        """Ask what only an afterwords server knows.

        Raises:
            UnsupportedByServerError: this is the hosted service.
        """
        try:
            return (yield from (fetched if is_fetched else sent)(ask, self._known))
        except AfterwordsError as error:
            if error.http_status in (404, 405, 501) and not (yield from is_own(self._known)):
                raise UnsupportedByServerError(what) from error
            raise

    def _only_own(self, what: str) -> Operation[None]:
        """Refuse what the hosted service would ignore without a word."""
        if not (yield from is_own(self._known)):
            raise UnsupportedByServerError(what)

    def _check_options(self, speech: Speech, more: Mapping[str, Any]) -> Operation[None]:
        if speech.speed != 1.0 or speech.seed is not None or more:
            yield from self._only_own("speed, seed, other formats than wav, and webhooks")

    def _asked(
        self,
        speech: Speech,
        voice_id: str,
        more: Mapping[str, Any],
        idempotency_key: str,
        *,
        wait_s: int = 0,
        is_stream: bool = False,
    ) -> Ask:
        options = given(
            lang=speech.lang,
            backend=speech.backend,
            speed=None if speech.speed == 1.0 else speech.speed,
            seed=speech.seed,
        )
        return Ask(
            "POST",
            "/v1/synthesize",
            json={"voice_id": voice_id, "text": speech.text, **options, **more},
            headers={"Prefer": f"wait={wait_s}"} if wait_s else {},
            is_repeatable=False,
            idempotency_key=idempotency_key,
            missing="voice_not_found",
            is_stream=is_stream,
            is_download=True,
            wait_s=FIRST_SOUND_S if is_stream else wait_s,
        )

    def _sounded(self, answer: Answer, asked: Ask, voice_id: str) -> Operation[Submitted]:
        """Audio that came with the answer. What came broken is fetched again: it is kept by then."""
        check_audio(answer)
        job_id = answer.headers.get("x-job-id")
        if not answer.is_whole or is_damaged(answer):
            if job_id is not None:
                data = yield from self.job_audio(job_id)
                answer = Answer(200, answer.headers, data)
            else:
                answer = yield from fetched(asked, self._known)
                check_audio(answer)
        sound = sound_of(answer, voice_id)
        job = Job(job_id=job_id, voice_id=voice_id, status=JobStatus.READY)
        return Submitted(job, sound.backend, sound, sound.left_out)

    def _with_voice(self, voice: Voice | str, use: Callable[[str], Operation[T]]) -> Operation[T]:
        """Use a voice by its identifier. A name is looked up, and once more if what was known of it is gone."""
        if isinstance(voice, Voice):
            return (yield from use(voice.voice_id))
        if (voice_id := as_id(voice)) is not None:
            return (yield from use(voice_id))
        name = unicodedata.normalize("NFC", voice).strip()
        if (known := self._known.voices.get(name)) is not None:
            try:
                return (yield from use(known))
            except VoiceNotFoundError:
                self._forget(known)
        voices = yield from self._look_up()
        if (found := voices.get(name)) is None:
            near = get_close_matches(name[:NAME_MAX_CHARS], voices)
            raise VoiceNotFoundError(voice[:NAME_MAX_CHARS], nearest=near, where="`afterwords voices --remote`")
        return (yield from use(found))

    def _look_up(self) -> Operation[dict[str, str]]:
        """Learn every name; the list begins with the oldest, so of two voices with one name the newer has it."""
        voices: dict[str, str] = {}
        after: str | None = None
        while True:
            page = yield from self.voices_page(after, limit=PAGE_MAX)
            voices.update((voice.name, voice.voice_id) for voice in page.items)
            if page.after is None or page.after == after:
                break
            after = page.after
        self._known.voices = dict(voices)  # the one that is returned is nobody else's: threads share this
        return voices

    def _made(self, voice: Voice) -> Voice:
        self._known.voices[voice.name] = voice.voice_id
        return voice

    def _forget(self, voice_id: str) -> None:
        for name, known in list(self._known.voices.items()):
            if known == voice_id:
                self._known.voices.pop(name, None)
