"""Every call of the clients against a real `afterwords serve`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from afterwords import Audio, Client, Voice
from afterwords.audio.wav import canonical_wav
from afterwords.errors import (
    ConflictError,
    FileError,
    InsufficientScopeError,
    InvalidBundleError,
    InvalidInputError,
    InvalidOptionError,
    InvalidRequestError,
    InvalidResponseError,
    JobError,
    JobFailedError,
    JobTimeoutError,
    NotFoundError,
    RecordingError,
    UnauthorizedError,
    UnavailableError,
    VoiceNotFoundError,
)
from afterwords.models import FormatName, JobStatus
from afterwords.provenance import read_mark
from tests.client.both_clients import ClientFactory
from tests.client.faulty_proxy import FaultyServer
from tests.e2e.served import READER, RECORDING, Served
from tests.error_codes import has_code

TEXT = "A tone lasts sixty milliseconds for each character."
LONG = f"fault-slow {'and so on, ' * 30}"
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


def open_file(path: Path) -> BinaryIO:
    return path.open("rb")


class TestVoices:
    @pytest.mark.parametrize("convert", [Path, str, Path.read_bytes, open_file])
    def test_recording_can_be_a_path_bytes_or_an_open_file(
        self, client: Client, convert: Callable[[Path], Path | str | bytes | BinaryIO]
    ) -> None:
        recording = convert(READER)
        created = client.voices.create(recording, name="me", text="What I say.", lang="en", consent="public-domain")
        if not isinstance(recording, Path | str | bytes):
            recording.close()
        shown = client.voices.get(created)
        assert (created.name, created.backend, created.ref_text) == ("me", "tone", "What I say.")
        assert (shown.voice_id, shown.ref_text, shown.family) == (created.voice_id, "What I say.", None)
        assert shown.reference is not None
        assert shown.consent is not None

    def test_mp3_is_decoded_before_upload(self, client: Client, tmp_path: Path) -> None:
        wave = np.sin(np.arange(24_000 * 6, dtype=np.float32) / 9) * np.float32(0.4)
        Audio(wave, 24_000).save(tmp_path / "me.mp3")
        voice = client.voices.get(client.voices.create(tmp_path / "me.mp3", name="me"))
        assert voice.reference is not None
        assert voice.reference.duration_s == pytest.approx(6, abs=0.2)

    @pytest.mark.parametrize(
        ("recording", "refusal"),
        [
            (b"not audio", RecordingError),
            ("nowhere.wav", FileError),
            (canonical_wav(np.full(24_000, 0.1, np.float32), 24_000), RecordingError),
        ],
    )
    def test_unusable_recording_is_refused(
        self, client: Client, recording: bytes | str, refusal: type[InvalidInputError]
    ) -> None:
        with pytest.raises(refusal):
            client.voices.create(recording, name="me")

    def test_list_fetches_all_pages(self, client: Client) -> None:
        created = [client.voices.create(RECORDING, name=name).voice_id for name in ("a", "b", "c")]
        for page_size in (1, 2, 3, 100):
            assert [voice.voice_id for voice in client.voices.list(page_size=page_size)] == created

    def test_new_account_has_no_voices(self, client: Client) -> None:
        assert list(client.voices.list()) == []

    def test_voice_is_found_by_name_id_and_object(self, client: Client, voice: Voice) -> None:
        for which in ("me", "  me ", voice.voice_id, voice):
            assert client.voices.get(which).voice_id == voice.voice_id

    @pytest.mark.parametrize("which", ["mee", UNKNOWN_ID, "../keys", ""])
    @pytest.mark.usefixtures("voice")
    def test_unknown_voice_is_not_found(self, client: Client, which: str) -> None:
        with pytest.raises(VoiceNotFoundError):
            client.voices.get(which)

    @pytest.mark.usefixtures("voice")
    def test_similar_names_are_suggested(self, client: Client) -> None:
        with pytest.raises(VoiceNotFoundError) as caught:
            client.voices.get("mee")
        assert "me" in f"{caught.value.message} {caught.value.hint}"

    def test_newer_of_two_voices_with_one_name_speaks(self, client: Client, voice: Voice) -> None:
        newer = client.voices.create(RECORDING, name="me")
        assert client.voices.get(voice).voice_id == voice.voice_id  # seeing the older voice again
        assert next(iter(client.voices.list(page_size=1))).voice_id == voice.voice_id  # does not change that
        assert client.synthesize(TEXT, voice="me").voice_id == newer.voice_id

    @pytest.mark.usefixtures("voice")
    def test_renamed_voice_loses_its_old_name(self, client: Client) -> None:
        assert client.voices.update("me", name="you", text="New.", metadata={"a": 1}).metadata == {"a": 1}
        with pytest.raises(VoiceNotFoundError):
            client.voices.get("me")
        assert client.voices.get("you").ref_text == "New."

    @pytest.mark.usefixtures("voice")
    def test_name_is_looked_up_once(self, faulty: Client, faults: FaultyServer) -> None:
        for n in range(3):
            faulty.synthesize(f"{TEXT} {n}", voice="me")
        assert [seen.path for seen in faults.seen] == ["/v1/voices", *["/v1/synthesize"] * 3]

    def test_name_of_a_replaced_voice_is_looked_up_again(self, client: Client, direct: Client, voice: Voice) -> None:
        assert client.say(TEXT, voice="me").duration_s > 0
        direct.voices.delete(voice)
        again = direct.voices.create(RECORDING, name="me")
        assert client.synthesize(TEXT, voice="me").voice_id == again.voice_id

    def test_deleted_voice_is_gone(self, client: Client, voice: Voice) -> None:
        client.voices.delete("me")
        assert list(client.voices.list()) == []
        with pytest.raises(VoiceNotFoundError):
            client.voices.delete(voice)

    def test_voice_is_copied_to_another_account(
        self, make_client: ClientFactory, server: Served, client: Client, voice: Voice
    ) -> None:
        bundle = client.voices.export("me")
        there = make_client(server.url, server.new_key()).voices
        copied = there.get(there.import_(bundle))
        assert (copied.name, copied.ref_sha256) == ("me", client.voices.get(voice).ref_sha256)
        with pytest.raises(InvalidBundleError):
            there.import_(bundle[:-30])

    def test_idempotency_key_creates_one_voice(self, client: Client) -> None:
        created = {client.voices.create(RECORDING, name="me", idempotency_key="once").voice_id for _ in range(2)}
        assert [voice.voice_id for voice in client.voices.list()] == list(created)
        with pytest.raises(ConflictError, check=has_code("idempotency_conflict")):
            client.voices.create(RECORDING, name="you", idempotency_key="once")

    def test_each_call_without_a_key_creates_a_voice(self, client: Client) -> None:
        assert client.voices.create(RECORDING, name="me") != client.voices.create(READER, name="me")


class TestSpeech:
    def test_timestamps_belong_to_the_audio(self, client: Client, voice: Voice) -> None:
        audio = client.say("With its times.", voice=voice, timestamps=True)
        assert audio.alignment is not None
        assert "".join(audio.alignment.characters) == "With its times."
        assert audio.alignment.end_s[-1] == pytest.approx(audio.duration_s, abs=0.01)
        assert client.say("With its times.", voice=voice).alignment is None

    def test_unverified_job_has_no_report(self, client: Client, voice: Voice) -> None:
        job = client.synthesize("It is not verified.", voice=voice).wait()
        with pytest.raises(UnavailableError, check=has_code("verification_unavailable")):
            job.verification()

    def test_say_returns_marked_audio(self, client: Client, voice: Voice) -> None:
        audio = client.say(TEXT, voice="me")
        assert audio.duration_s == pytest.approx(len(TEXT) * 0.06)
        mark = read_mark(audio.tags)
        assert mark is not None
        assert mark.voice_id == voice.voice_id

    def test_cached_speech_returns_at_once(self, client: Client, voice: Voice) -> None:
        first = client.say(TEXT, voice=voice)
        job = client.synthesize(TEXT, voice=voice)
        assert (job.status, job.job_id, job.is_cached, job.backend) == (JobStatus.READY, None, True, "tone")
        assert np.array_equal(job.wait().audio().samples, first.samples)
        with pytest.raises(ConflictError, check=has_code("job_final")):
            job.cancel()

    def test_speed_seed_backend_and_language_are_sent(self, client: Client, voice: Voice) -> None:
        audio = client.say(TEXT, voice=voice, speed=2.0, seed=7, backend="tone", lang="de")
        assert audio.duration_s == pytest.approx(len(TEXT) * 0.03, rel=0.1)

    def test_estimate_is_that_of_the_speech(self, client: Client, voice: Voice) -> None:
        before = client.estimate(TEXT, voice="me", lang="fr", speed=0.5, seed=7)
        client.say(TEXT, voice=voice, lang="fr", speed=0.5, seed=7)
        after = client.estimate(TEXT, voice=voice, lang="fr", speed=0.5, seed=7)
        assert (before.characters, before.charged_characters, before.is_cached) == (len(TEXT), len(TEXT), False)
        assert (after.charged_characters, after.is_cached, after.synthesis_s) == (0, True, 0)
        assert (after.backend, after.lang, after.remaining_characters) == ("tone", "fr", None)
        with pytest.raises(VoiceNotFoundError):
            client.estimate(TEXT, voice=UNKNOWN_ID)

    def test_stream_has_the_same_samples(self, client: Client, voice: Voice) -> None:
        with client.stream(TEXT, voice=voice) as speech:
            chunks = list(speech)
        assert (speech.sample_rate, speech.backend, speech.is_cached) == (24_000, "tone", False)
        assert len(chunks) > 1
        assert np.array_equal(np.concatenate([c.samples for c in chunks]), client.say(TEXT, voice=voice).samples)

    @pytest.mark.parametrize("suffix", ["wav", "mp3", "opus", "flac", "pcm"])
    def test_job_is_downloaded_in_its_format(
        self, client: Client, voice: Voice, tmp_path: Path, suffix: FormatName
    ) -> None:
        job = client.synthesize(TEXT, voice=voice, format=suffix).wait()
        path = job.download(tmp_path / f"speech.{suffix}")
        magic = {"wav": b"RIFF", "opus": b"OggS", "flac": b"fLaC"}.get(suffix, b"")
        assert path.read_bytes().startswith(magic)
        assert client.jobs.download(str(job.job_id), tmp_path / "again").stat().st_size == path.stat().st_size
        if suffix != "pcm":
            assert job.audio().duration_s == pytest.approx(len(TEXT) * 0.06, abs=0.15)
        else:
            assert path.stat().st_size == pytest.approx(len(TEXT) * 0.06 * 48_000, abs=2)
            with pytest.raises(InvalidResponseError):
                job.audio()

    def test_job_is_used_by_its_id(self, client: Client, voice: Voice) -> None:
        job_id = str(client.synthesize(TEXT, voice=voice).job_id)
        job = client.jobs.wait(job_id)
        assert (job.status, client.jobs.get(job_id).status) == (JobStatus.READY, JobStatus.READY)
        assert np.array_equal(client.jobs.audio(job_id).samples, job.audio().samples)

    def test_idempotency_key_creates_one_job(self, client: Client, voice: Voice) -> None:
        created = {client.synthesize(LONG, voice=voice, idempotency_key="once").job_id for _ in range(2)}
        assert [job.job_id for job in client.jobs.list()] == list(created)

    def test_cancelled_job_raises(self, client: Client, voice: Voice) -> None:
        job = client.synthesize(LONG, voice=voice)
        assert job.cancel().status is JobStatus.CANCELLED
        assert client.jobs.cancel(str(job.job_id)).status is JobStatus.CANCELLED
        with pytest.raises(JobError, check=has_code("job_cancelled")):
            job.wait()

    def test_failed_job_raises_with_its_reason(self, client: Client, voice: Voice) -> None:
        with pytest.raises(JobFailedError) as caught:
            client.say("This is a fault-fail.", voice=voice)
        assert (caught.value.reason, caught.value.exit_code) == ("synthesis_failed", 7)

    @pytest.mark.parametrize("timeout_s", [0, 0.05, -1])
    def test_timeout_leaves_the_job_running(self, client: Client, voice: Voice, timeout_s: float) -> None:
        job = client.synthesize(LONG, voice=voice)
        with pytest.raises(JobTimeoutError) as caught:
            job.wait(timeout_s=timeout_s)
        with pytest.raises(JobTimeoutError):
            client.say(LONG, voice=voice, timeout_s=timeout_s)
        assert caught.value.job_id == job.job_id
        assert job.cancel().status is JobStatus.CANCELLED

    def test_timeout_can_be_infinite(self, client: Client, voice: Voice) -> None:
        assert client.say(TEXT, voice=voice, timeout_s=float("inf")).duration_s > 0

    def test_jobs_are_listed_newest_first_and_by_status(self, client: Client, voice: Voice) -> None:
        ready = [client.synthesize(f"{TEXT} {n}", voice=voice).wait().job_id for n in range(3)]
        pending = client.synthesize(LONG, voice=voice)
        assert [job.job_id for job in client.jobs.list(page_size=1)] == [pending.job_id, *reversed(ready)]
        assert {job.job_id for job in client.jobs.list(status="ready")} == set(ready)
        assert [job.job_id for job in client.jobs.list(status=JobStatus.PENDING)] == [pending.cancel().job_id]

    @pytest.mark.parametrize("job_id", [UNKNOWN_ID, "..", "a/b", "", "\ud800", "x" * 100_000])
    def test_unknown_job_is_not_found(self, client: Client, job_id: str) -> None:
        with pytest.raises(NotFoundError, check=has_code("job_not_found")):
            client.jobs.get(job_id)

    @pytest.mark.parametrize("url", ["https://127.0.0.1/hook", "https://localhost/", "http://example.com/"])
    def test_private_webhook_url_is_refused(self, client: Client, voice: Voice, url: str) -> None:
        with pytest.raises(InvalidRequestError, check=has_code("invalid_webhook_url")) as caught:
            client.synthesize(TEXT, voice=voice, webhook_url=url)
        assert caught.value.param == "webhook_url"

    def test_invalid_option_is_refused_before_it_is_sent(self, client: Client, voice: Voice) -> None:
        for call in (
            lambda: client.synthesize(TEXT, voice=voice, format="aiff"),  # type: ignore[arg-type]
            lambda: client.jobs.list(status="unknown"),
            lambda: client.voices.create(RECORDING, name="me", consent="unknown"),  # type: ignore[arg-type]
        ):
            with pytest.raises(InvalidOptionError):
                call()

    @pytest.mark.parametrize("invalid", ["", "two words", "line\nbreak", "ключ", "x" * 256])
    def test_invalid_idempotency_key_is_refused(self, client: Client, voice: Voice, invalid: str) -> None:
        with pytest.raises(InvalidInputError):
            client.synthesize(TEXT, voice=voice, idempotency_key=invalid)
        with pytest.raises(InvalidInputError):
            client.voices.create(RECORDING, name="me", idempotency_key=invalid)

    def test_argument_that_can_not_be_encoded_is_refused(self, client: Client, voice: Voice) -> None:
        for text, speed in ((f"half \ud800 {TEXT}", 1.0), (TEXT, float("nan"))):
            with pytest.raises(InvalidInputError) as caught:
                client.say(text, voice=voice, speed=speed)
            assert TEXT not in str(caught.value)
        with pytest.raises(InvalidInputError):
            client.voices.create(RECORDING, name="half \ud800")


class TestService:
    def test_health_needs_no_key(self, make_client: ClientFactory, server: Served) -> None:
        health = make_client(server.url).health()
        assert (health.status, health.backends, bool(health.version)) == ("ok", ("tone",), True)

    def test_usage_counts_characters(self, client: Client, voice: Voice) -> None:
        client.say(TEXT, voice=voice)
        usage = client.usage()
        assert (usage.characters, usage.limit) == (len(TEXT), None)

    def test_admin_manages_keys(self, make_client: ClientFactory, server: Served, client: Client) -> None:
        created = client.keys.create(label="theirs", scopes=["voices:read"], character_limit=9)
        (listed,) = [key for key in client.keys.list() if key.key_id == created.key_id]
        assert (listed.label, listed.scopes, listed.character_limit) == ("theirs", ("voices:read",), 9)
        rotated = client.keys.rotate(str(created.key_id))
        assert list(make_client(server.url, rotated.api_key).voices.list()) == []
        client.keys.revoke(str(rotated.key_id))
        for key in (created.api_key, rotated.api_key):
            with pytest.raises(UnauthorizedError) as caught:
                list(make_client(server.url, key).voices.list())
            assert caught.value.request_id

    def test_user_manages_keys_of_own_account_only(self, make_client: ClientFactory, server: Served, key: str) -> None:
        user = make_client(server.url, key)
        assert len(user.keys.list()) == 1
        for call in (user.keys.create, user.keys.accounts):
            with pytest.raises(UnauthorizedError, match="requires the admin secret", check=has_code("admin_required")):
                call()
        created = user.keys.create(scopes=["synthesize"])
        assert created.account_id == user.keys.list()[0].account_id
        with pytest.raises(InsufficientScopeError):
            list(make_client(server.url, created.api_key).voices.list())

    def test_call_without_a_key_is_refused(self, make_client: ClientFactory, server: Served) -> None:
        anonymous = make_client(server.url)
        for call in (
            anonymous.usage,
            anonymous.keys.create,
            anonymous.keys.list,
            lambda: anonymous.say("", voice="me"),
        ):
            with pytest.raises(UnauthorizedError, check=has_code("not_logged_in")):
                call()
