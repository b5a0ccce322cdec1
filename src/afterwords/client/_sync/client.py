"""`Client`: a server's voices from any program.

    with afterwords.Client("https://voices.example.com", api_key="aw_...") as client:
        client.say("Hello", voice="me").save("hello.wav")

Made from `aio` by `make client`: change that, and run it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar

import httpx

from afterwords.client import transport
from afterwords.client.files import bytes_of, consent_of, format_named, wav_of
from afterwords.client.operations import JOB_TIMEOUT_S, PAGE_MAX, Operations, Page, Speech
from afterwords.client.profiles import find_access
from afterwords.client.requests import Answer, Ask, Operation, Pause
from afterwords.client._sync.jobs import Jobs, RemoteBytes, RemoteJob, RemoteSpeech
from afterwords.client.transport import Body, answer_of, is_left_open, named, opened_of, request_for, settings_for
from afterwords.errors import AfterwordsError
from afterwords.models import (
    Account,
    ApiKey,
    ConsentKind,
    ConsentName,
    FormatName,
    Health,
    NewApiKey,
    SpeechFormat,
    Usage,
    Voice,
)
from afterwords.network import checked_network

if TYPE_CHECKING:
    from afterwords.audio.audio import Audio

T = TypeVar("T")

TIMEOUT_S: Final = 60.0
"""How long a server may be silent."""


class Client:
    """A server. Threads may share it. Close it, or use it in `with`.

    Args:
        base_url: the server's address; None takes AFTERWORDS_BASE_URL, else the profile that `afterwords login` chose,
            else this machine.
        api_key: None takes AFTERWORDS_API_KEY, or the profile's. It is sent to no other address.
        admin_secret: opens `keys`; None takes AFTERWORDS_ADMIN_SECRET.
        profile: the profile to use.
        timeout_s: how long the server may be silent, in seconds.
        transport: in place of the network, for tests and proxies.

    Raises:
        InvalidInputError: the address, a secret or the profile can't be used.
        ServiceError: from every method that asks the server: it refused. The class says why, `request_id` which request
            it was.
        RemoteError: from every such method: it could not be reached, or what it answered can't be believed.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        admin_secret: str | None = None,
        profile: str | None = None,
        timeout_s: float = TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._access = find_access(base_url, api_key=api_key, admin_secret=admin_secret, profile=profile)
        self._timeout_s = timeout_s
        with checked_network():
            self._http = httpx.Client(transport=transport, **settings_for(self._access))
        self._operations = Operations()
        self.voices: Final = Voices(self)
        self.jobs: Final = Jobs(self)
        self.keys: Final = Keys(self)

    def __repr__(self) -> str:
        return f"Client({self.base_url!r})"

    @property
    def base_url(self) -> str:
        """The address of the server."""
        return self._access.base_url

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- speaking --------------------------------------------------------------------------------------------

    def say(
        self,
        text: str,
        *,
        voice: Voice | str,
        lang: str | None = None,
        backend: str | None = None,
        speed: float = 1.0,
        seed: int | None = None,
        timeout_s: float = JOB_TIMEOUT_S,
    ) -> Audio:
        """Speak a text, and wait for all of it.

        Args:
            text: 1 to 5,000 characters.
            voice: a voice of the server, its name there, or its identifier. Of two with one name the newer speaks.
            lang: language of the text; None takes the voice's.
            backend: what shall speak; None takes the voice's.
            speed: 0.25 to 4; the pitch is kept.
            seed: makes an engine that samples repeat itself.
            timeout_s: how long to wait for the job, in seconds.

        Raises:
            VoiceNotFoundError: there is no such voice.
            JobFailedError: it could not be spoken.
            JobTimeoutError: it takes longer; the job goes on.
        """
        from afterwords.client.audio import decoded

        speech = Speech(text, voice, lang, backend, speed, seed)
        return decoded(self._run(self._operations.say(speech, timeout_s=timeout_s)), voice)

    def stream(
        self,
        text: str,
        *,
        voice: Voice | str,
        lang: str | None = None,
        backend: str | None = None,
        speed: float = 1.0,
        seed: int | None = None,
    ) -> RemoteSpeech:
        """Speak a text, and give the audio while it is made: iterate over what comes back.

        Leaving it unfinished cancels the job. A server that can't stream gives it once it is ready.
        The arguments and errors are those of `say`.
        """
        speech = Speech(text, voice, lang, backend, speed, seed)
        return RemoteSpeech(self, self._run(self._operations.stream(speech)), voice).begun()

    def stream_bytes(
        self,
        text: str,
        *,
        voice: Voice | str,
        format: SpeechFormat | FormatName = SpeechFormat.WAV,
        lang: str | None = None,
        backend: str | None = None,
        speed: float = 1.0,
        seed: int | None = None,
    ) -> RemoteBytes:
        """Speak a text, and give the bytes of an audio file while it is made, to send on or to save.

        Closing it early cancels the job. A server that can't stream gives the bytes once the job is ready.

        Args:
            text: as for `say`, and the other arguments and errors too.
            format: wav, mp3, opus, flac or pcm (16-bit little-endian mono).
        """
        speech = Speech(text, voice, lang, backend, speed, seed)
        asked = self._operations.stream(speech, response_format=format_named(format))
        return RemoteBytes(self, self._run(asked))

    def synthesize(
        self,
        text: str,
        *,
        voice: Voice | str,
        lang: str | None = None,
        backend: str | None = None,
        speed: float = 1.0,
        seed: int | None = None,
        format: SpeechFormat | FormatName = SpeechFormat.WAV,
        webhook_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> RemoteJob:
        """Ask for speech, and come back at once with the job.

        Args:
            text: as for `say`, and the other arguments too.
            format: wav, mp3, opus, flac or pcm, for `job.download`.
            webhook_url: told when the job is final; https and public.
            idempotency_key: the same key for the same request makes one job; None makes one up for this call.
        """
        speech = Speech(text, voice, lang, backend, speed, seed)
        submitted = self._run(
            self._operations.submit(
                speech,
                response_format=format_named(format),
                webhook_url=webhook_url,
                idempotency_key=idempotency_key,
            )
        )
        return RemoteJob.of(
            self, submitted.job, submitted.sound, backend=submitted.backend, left_out=submitted.left_out
        )

    # -- the service -----------------------------------------------------------------------------------------

    def health(self) -> Health:
        """Ask whether the server answers, and what it speaks. Needs no key."""
        return self._run(self._operations.health())

    def usage(self) -> Usage:
        """Ask what was spent in this billing period."""
        return self._run(self._operations.usage())

    # -- carrying out ----------------------------------------------------------------------------------------

    def _run(self, operation: Operation[T]) -> T:
        """Do what an operation asks for, until it is done."""
        try:
            step = next(operation)
            while True:
                try:
                    answer = self._do(step)
                except AfterwordsError as error:
                    step = operation.throw(error)
                else:
                    step = operation.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result

    def _do(self, step: Ask | Pause) -> Answer | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        request = request_for(self._http, step, self._access, self._timeout_s)
        with named(self._access, request):
            response = self._http.send(request, stream=True)
            if is_left_open(step, response):
                return opened_of(response)
            body = Body(step)
            try:
                for piece in transport.iter_bytes(response):
                    body.add(piece)
            except httpx.TransportError:
                return answer_of(response, body.all(), is_whole=False)
            finally:
                transport.close(response)
        return answer_of(response, body.all(), is_whole=True)

    def _pages(self, page: Callable[[str | None], Operation[Page[T]]]) -> Iterator[T]:
        """Every item of a list, page by page."""
        after: str | None = None
        while True:
            found = self._run(page(after))
            yield from found.items
            if found.after is None or found.after == after:
                return
            after = found.after


class Voices:
    """The voices of a server: `client.voices`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._operations = client._operations

    def create(
        self,
        recording: Path | str | bytes | BinaryIO,
        *,
        name: str,
        text: str | None = None,
        lang: str = "en",
        backend: str | None = None,
        family: str | None = None,
        consent: ConsentKind | ConsentName | None = None,
        idempotency_key: str | None = None,
    ) -> Voice:
        """Register a voice from a recording. (`afterwords.push` brings one that was cloned at home.)

        Args:
            recording: 5 to 60 s; a WAV goes as it is, anything else is decoded here. An open file is read from where
                it stands, and from its beginning if it stands at its end.
            name: what to call it.
            text: transcript of the recording.
            lang: language of the recording.
            backend: what speaks it; None leaves that to the server.
            family: groups voices of one speaker.
            consent: by what right: "self", "granted", "public-domain" or "synthetic".
            idempotency_key: the same key for the same recording makes one voice; None makes one up for this call.

        Raises:
            RecordingError: the recording can't be used.
        """
        return self._client._run(
            self._operations.create_voice(
                wav_of(recording),
                name=name,
                ref_text=text,
                lang=lang,
                backend=backend,
                family=family,
                consent=consent_of(consent),
                idempotency_key=idempotency_key,
            )
        )

    def list(self, *, page_size: int = 100) -> Iterator[Voice]:
        """Go through all voices, oldest first; pages are fetched as they are needed.

        What a list tells is short: `get` tells everything.
        """
        limit = max(1, min(page_size, PAGE_MAX))
        return self._client._pages(lambda after: self._operations.voices_page(after, limit=limit))

    def get(self, voice: Voice | str) -> Voice:
        """Find a voice by its name or identifier, with all that the server tells of it.

        Raises:
            VoiceNotFoundError: there is none.
        """
        return self._client._run(self._operations.get_voice(voice))

    def update(
        self,
        voice: Voice | str,
        *,
        name: str | None = None,
        text: str | None = None,
        lang: str | None = None,
        backend: str | None = None,
        family: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Voice:
        """Change what is said about a voice; None leaves a field as it is.

        Raises:
            UnsupportedByServerError: the hosted service can't.
        """
        return self._client._run(
            self._operations.update_voice(
                voice, name=name, ref_text=text, lang=lang, backend=backend, family=family, metadata=metadata
            )
        )

    def delete(self, voice: Voice | str) -> None:
        """Delete a voice on the server, with its recording, its jobs and all audio that was made with it."""
        self._client._run(self._operations.delete_voice(voice))

    def export(self, voice: Voice | str) -> bytes:
        """Fetch a voice as one portable file.

        Raises:
            UnsupportedByServerError: the hosted service can't.
        """
        return self._client._run(self._operations.export_voice(voice))

    def import_(self, bundle: Path | str | bytes | BinaryIO, *, idempotency_key: str | None = None) -> Voice:
        """Register a voice from a portable file, with its consent and where it came from.

        Raises:
            InvalidBundleError: it is none, or a byte of it was changed.
            UnsupportedByServerError: the hosted service can't.
        """
        return self._client._run(self._operations.import_voice(bytes_of(bundle), idempotency_key=idempotency_key))


class Keys:
    """The API keys of a server: `client.keys`.

    The admin secret makes any key. A key without scopes and limit makes keys with scopes for its own account.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._operations = client._operations

    def create(
        self,
        *,
        label: str | None = None,
        scopes: Sequence[str] = (),
        character_limit: int | None = None,
        account_id: str | None = None,
        for_key: str | None = None,
    ) -> NewApiKey:
        """Make a key. It is shown this once. Made by the admin and without an account, it gets a new one.

        Args:
            label: what to call it.
            scopes: `voices:read`, `voices:write`, `synthesize`; none: everything.
            character_limit: characters that it may spend in a month.
            account_id: the account that it is for, which owns its voices.
            for_key: the id of a key whose account it is for.
        """
        return self._client._run(
            self._operations.create_key(
                label=label, scopes=scopes, character_limit=character_limit, account_id=account_id, for_key=for_key
            )
        )

    def accounts(self) -> list[Account]:
        """List all accounts with what they have and have spent this month. It needs the admin secret."""
        return self._client._run(self._operations.list_accounts())

    def list(self) -> list[ApiKey]:
        """List the keys of this account; for the admin, all."""
        return self._client._run(self._operations.list_keys())

    def revoke(self, key_id: str) -> None:
        """Make a key useless at once."""
        self._client._run(self._operations.revoke_key(key_id))

    def rotate(self, key_id: str, *, overlap_s: float = 0.0) -> NewApiKey:
        """Put a new key in the place of one, which stays valid for `overlap_s` seconds."""
        return self._client._run(self._operations.rotate_key(key_id, overlap_s=overlap_s))
