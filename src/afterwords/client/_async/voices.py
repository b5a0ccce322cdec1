"""The voices of a server."""

from __future__ import annotations

import asyncio
import builtins
import unicodedata
from collections.abc import AsyncIterator, Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from afterwords.client._async.session import AsyncSession
from afterwords.client.files import parse_option, read_recording, read_source
from afterwords.client.parsing import parse_model, parse_models, parse_object, parse_voice
from afterwords.client.requests import PAGE_MAX, Request, Response, drop_none, ensure_idempotency_key, voice_request
from afterwords.errors import VoiceNotFoundError
from afterwords.models import BUNDLE_TYPE, NAME_MAX_CHARS, Alias, ConsentKind, ConsentName, Voice, parse_id


class AsyncVoices:
    """The voices of a server: `client.voices`."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._ids: dict[str, str] = {}  # by name

    async def create(
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
        """Create a voice from a recording. (`afterwords.push` copies a voice of this machine.)

        Args:
            recording: 5 to 60 s. A WAV file is sent as it is, anything else is decoded here. An open file is read
                from its position, or from its beginning if it is at its end.
            name: A name for the voice.
            text: Transcript of the recording.
            lang: Language of the recording.
            backend: The backend that speaks with the voice; None lets the server choose.
            family: Groups voices of one speaker.
            consent: The right to clone the voice: "self", "granted", "public-domain" or "synthetic".
            idempotency_key: Requests with the same key and recording create one voice. None generates a key for this
                call.

        Raises:
            RecordingError: The recording can't be used.
        """
        fields = {
            "name": name,
            "lang": lang,
            "ref_text": text,
            "backend": backend,
            "family": family,
            "consent": None if consent is None else parse_option(ConsentKind, consent, name="consent").value,
        }
        request = Request(
            "POST",
            "/v1/voices",
            form=drop_none(**fields),
            file=await asyncio.to_thread(read_recording, recording),
            is_repeatable=False,
            idempotency_key=ensure_idempotency_key(idempotency_key),
        )
        response = await self._session.request(request)
        created = {"lang": lang, "ref_text": text, "family": family, **parse_object(response)}
        return self._remember(parse_voice(created, response))

    def list(self, *, page_size: int = 100) -> AsyncIterator[Voice]:
        """Iterate over all voices, oldest first; a page is fetched when it is needed.

        The voices of a list lack some fields; `get` returns all of them.
        """
        limit = max(1, min(page_size, PAGE_MAX))
        return self._session.pages("/v1/voices", parse_voice, id_field="voice_id", limit=limit)

    async def get(self, voice: Voice | str) -> Voice:
        """Return a voice, by its name or ID, with all its fields.

        Raises:
            VoiceNotFoundError: The server has no such voice.
        """
        _, response = await self._request(voice, lambda voice_id: voice_request("GET", voice_id))
        return parse_voice(parse_object(response), response)

    async def update(
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
        """Update fields of a voice; None leaves a field unchanged.

        Raises:
            UnsupportedByServerError: The hosted service can't update voices.
        """
        fields = drop_none(name=name, ref_text=text, lang=lang, backend=backend, family=family, metadata=metadata)
        voice_id, response = await self._request(
            voice, lambda voice_id: voice_request("PATCH", voice_id, json=fields, feature="changing a voice")
        )
        self._forget(voice_id)  # the name may have changed
        return parse_voice(parse_object(response), response)

    async def delete(self, voice: Voice | str) -> None:
        """Delete a voice from the server, with its recording, its jobs and all their audio."""
        voice_id, _ = await self._request(
            voice, lambda voice_id: voice_request("DELETE", voice_id, is_done_if_gone=True)
        )
        self._forget(voice_id)

    async def aliases(self) -> builtins.list[Alias]:
        """Return the further names of voices, which programs made for OpenAI may send."""
        request = Request("GET", "/v1/aliases", feature="aliases")
        return parse_models(await self._session.request(request), Alias)

    async def set_alias(self, alias: str, voice: Voice | str) -> Alias:
        """Give a voice a further name, such as `alloy`, for programs made for OpenAI.

        Raises:
            ConflictError: A voice has this name.
        """
        path = f"/v1/aliases/{quote(alias, safe='')}"
        _, response = await self._request(
            voice, lambda voice_id: Request("PUT", path, json={"voice": voice_id}, feature="aliases")
        )
        return parse_model(response, Alias)

    async def remove_alias(self, alias: str) -> None:
        """Remove a further name; its voice stays."""
        path = f"/v1/aliases/{quote(alias, safe='')}"
        await self._session.request(Request("DELETE", path, feature="aliases"))

    async def export(self, voice: Voice | str) -> bytes:
        """Return a voice as one portable file.

        Raises:
            UnsupportedByServerError: The hosted service can't export voices.
        """

        def build(voice_id: str) -> Request:
            params = {"prompts": "true"}
            return voice_request(
                "GET", voice_id, "/export", params=params, is_download=True, feature="exporting a voice"
            )

        _, response = await self._request(voice, build, is_resumed=True)
        return response.body

    async def import_(self, bundle: Path | str | bytes | BinaryIO, *, idempotency_key: str | None = None) -> Voice:
        """Create a voice from a portable file, with its consent and provenance.

        Raises:
            InvalidBundleError: The file is not a voice, or was altered.
            UnsupportedByServerError: The hosted service can't import voices.
        """
        request = Request(
            "POST",
            "/v1/voices/import",
            body=await asyncio.to_thread(read_source, bundle),
            headers={"Content-Type": BUNDLE_TYPE},
            is_repeatable=False,
            idempotency_key=ensure_idempotency_key(idempotency_key),
            feature="importing a voice",
        )
        response = await self._session.request(request)
        return self._remember(parse_voice(parse_object(response), response))

    async def _request(
        self, voice: Voice | str, build: Callable[[str], Request], *, is_resumed: bool = False
    ) -> tuple[str, Response]:
        """Send a request about a voice, and return the ID of the voice with the response.

        A name is looked up once; if its ID is no longer known to the server, the name is looked up again.
        """
        send = self._session.download if is_resumed else self._session.request
        voice_id = voice.voice_id if isinstance(voice, Voice) else parse_id(voice)
        if voice_id is not None:
            return voice_id, await send(build(voice_id))
        name = unicodedata.normalize("NFC", str(voice)).strip()
        voice_id = self._ids.get(name)
        if voice_id is not None:
            try:
                return voice_id, await send(build(voice_id))
            except VoiceNotFoundError:
                self._forget(voice_id)
        # The oldest voice comes first, so of two with one name the newer one is used.
        ids = {voice.name: voice.voice_id async for voice in self.list(page_size=PAGE_MAX)}
        self._ids = dict(ids)  # a copy, because other threads change it
        if name not in ids:
            nearest = get_close_matches(name[:NAME_MAX_CHARS], ids)
            raise VoiceNotFoundError.for_name(
                name[:NAME_MAX_CHARS], nearest=nearest, where="`afterwords voices --remote`"
            )
        return ids[name], await send(build(ids[name]))

    def _remember(self, voice: Voice) -> Voice:
        self._ids[voice.name] = voice.voice_id
        return voice

    def _forget(self, voice_id: str) -> None:
        for name, known in list(self._ids.items()):
            if known == voice_id:
                self._ids.pop(name, None)
