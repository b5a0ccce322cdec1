"""Downloads: resumed after a lost connection, checked by length and digest, complete or refused."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from afterwords import Client, Voice
from afterwords.audio.wav import canonical_wav
from afterwords.client.requests import RETRIES, Request, Response
from afterwords.errors import ConnectionLostError, InvalidRequestError, InvalidResponseError, NotFoundError
from afterwords.models import FormatName
from afterwords.testing import Fault
from tests.client.both_clients import ClientFactory, n_busy
from tests.client.canned import canned_responses
from tests.client.faulty_proxy import FaultyServer, Seen
from tests.client.scripted import ScriptedSession
from tests.e2e.served import RECORDING
from tests.error_codes import has_code
from tests.hosted.http_server import HttpResponse
from tests.hosted.service import HostedService

TEXT = "Half of this is lost on the way and fetched again."
WAV = canonical_wav(np.sin(np.arange(4_800, dtype=np.float32) / 9) * np.float32(0.3), 24_000)
AUDIO = {"content-type": "audio/wav"}


@pytest.fixture
def job_id(direct: Client, voice: Voice) -> str:
    return str(direct.synthesize(TEXT, voice=voice).wait().job_id)


def download_requests(faults: FaultyServer) -> list[Seen]:
    return [seen for seen in faults.seen if seen.path.endswith("/audio")]


class TestRange:
    @pytest.mark.parametrize("times", [1, 2, 3])
    def test_lost_connection_is_resumed(
        self, faulty: Client, faults: FaultyServer, direct: Client, job_id: str, times: int
    ) -> None:
        whole = direct.jobs.data(job_id)
        faults.inject(Fault.HALF_BODY, path="/v1/jobs", times=times)
        assert faulty.jobs.data(job_id) == whole
        first, *rest = download_requests(faults)
        assert first.headers["Range"] is None
        have = 0
        for seen in rest:
            have += (len(whole) - have) // 2
            assert seen.headers["Range"] == f"bytes={have}-"
            assert len(seen.headers["If-Range"].strip('"')) == 64

    def test_downloaded_file_is_complete_and_follows_the_umask(
        self, faulty: Client, faults: FaultyServer, direct: Client, job_id: str, tmp_path: Path
    ) -> None:
        faults.inject(Fault.HALF_BODY, path="/v1/jobs")
        before = os.umask(0o027)
        try:
            path = faulty.jobs.download(job_id, tmp_path / "speech.wav")
        finally:
            os.umask(before)
        assert path.read_bytes() == direct.jobs.data(job_id)
        assert path.stat().st_mode & 0o777 == 0o640
        assert [entry.name for entry in tmp_path.glob("speech*")] == ["speech.wav"]

    def test_failed_download_keeps_the_existing_file(
        self, faulty: Client, faults: FaultyServer, job_id: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "speech.wav"
        path.write_bytes(b"before")
        faults.inject(Fault.WRONG_BYTES, times=99)
        with pytest.raises(InvalidResponseError):
            faulty.jobs.download(job_id, path)
        assert path.read_bytes() == b"before"

    @pytest.mark.parametrize("form", ["mp3", "opus", "flac", "pcm"])
    def test_format_encoded_on_the_fly_is_fetched_from_the_start(
        self, faulty: Client, faults: FaultyServer, direct: Client, voice: Voice, form: FormatName
    ) -> None:
        job = direct.synthesize(TEXT, voice=voice, format=form).wait()
        faults.inject(Fault.HALF_BODY, path="/v1/jobs")
        assert len(faulty.jobs.data(str(job.job_id))) == len(job.data())
        assert [seen.headers["Range"] for seen in download_requests(faults)] == [None, None]

    def test_bundle_is_resumed(self, faulty: Client, faults: FaultyServer, direct: Client, voice: Voice) -> None:
        faults.inject(Fault.HALF_BODY, path="/v1/voices")
        imported = direct.voices.import_(faulty.voices.export(voice))
        assert direct.voices.get(imported).ref_sha256 == direct.voices.get(voice).ref_sha256

    def test_connection_lost_in_every_attempt_raises(self, faulty: Client, faults: FaultyServer, job_id: str) -> None:
        faults.inject(Fault.HALF_BODY, path="/v1/jobs", times=99)
        with pytest.raises(ConnectionLostError):
            faulty.jobs.data(job_id)
        assert len(download_requests(faults)) == RETRIES + 1
        assert n_busy(faulty) == 0


class TestDigest:
    @pytest.mark.parametrize("fault", [Fault.WRONG_BYTES, Fault.SHORT_LENGTH])
    def test_damaged_body_is_fetched_again(
        self, faulty: Client, faults: FaultyServer, direct: Client, job_id: str, fault: Fault
    ) -> None:
        faults.inject(fault, path="/v1/jobs", times=2)
        assert faulty.jobs.data(job_id) == direct.jobs.data(job_id)
        assert [seen.headers["Range"] for seen in download_requests(faults)] == [None] * 3

    @pytest.mark.parametrize("fault", [Fault.WRONG_BYTES, Fault.SHORT_LENGTH])
    def test_body_damaged_in_every_attempt_is_refused(
        self, faulty: Client, faults: FaultyServer, job_id: str, fault: Fault
    ) -> None:
        faults.inject(fault, path="/v1/jobs", times=99)
        with pytest.raises(InvalidResponseError) as caught:
            faulty.jobs.data(job_id)
        assert caught.value.request_id
        assert len(download_requests(faults)) == RETRIES + 1

    def test_second_half_of_another_body_is_detected(
        self, faulty: Client, faults: FaultyServer, direct: Client, job_id: str
    ) -> None:
        faults.inject(Fault.HALF_BODY, path="/v1/jobs")
        faults.inject(Fault.WRONG_BYTES, path="/v1/jobs")
        assert faulty.jobs.data(job_id) == direct.jobs.data(job_id)
        assert [seen.headers["Range"] is not None for seen in download_requests(faults)] == [False, True, False]

    @pytest.mark.parametrize("fault", [Fault.HALF_BODY, Fault.WRONG_BYTES, Fault.SHORT_LENGTH])
    def test_damaged_cache_hit_is_fetched_again_free_of_charge(
        self, faulty: Client, faults: FaultyServer, direct: Client, voice: Voice, fault: Fault
    ) -> None:
        first = direct.say(TEXT, voice=voice)
        faults.inject(fault, method="POST")
        assert np.array_equal(faulty.say(TEXT, voice=voice).samples, first.samples)
        assert (direct.usage().characters, len(list(direct.jobs.list()))) == (len(TEXT), 1)

    @pytest.mark.parametrize("fault", [Fault.HALF_BODY, Fault.WRONG_BYTES])
    def test_damaged_speech_is_fetched_from_its_job(
        self, faulty: Client, faults: FaultyServer, direct: Client, voice: Voice, fault: Fault
    ) -> None:
        faults.inject(fault, method="POST")
        assert faulty.say(TEXT, voice=voice).duration_s == pytest.approx(len(TEXT) * 0.06)
        assert [seen.method for seen in faults.seen] == ["POST", "GET"]
        assert len(list(direct.jobs.list())) == 1


class TestHosted:
    """The hosted service sends no digest; the header of a WAV file has its length."""

    @pytest.mark.parametrize("fault", [Fault.HALF_BODY, Fault.SHORT_LENGTH])
    def test_truncated_wav_is_fetched_again(self, make_client: ClientFactory, fault: Fault) -> None:
        with HostedService(pending_looks=0) as hosted, FaultyServer(hosted.url) as faults:
            client = make_client(faults.url, hosted.api_key)
            job = client.synthesize(TEXT, voice=client.voices.create(RECORDING, name="me")).wait()
            whole = job.data()
            faults.inject(fault, path=f"/v1/jobs/{job.job_id}/audio")
            assert job.data() == whole
            faults.inject(fault, method="POST")
            assert client.synthesize(TEXT, voice="me").data() == whole

    def test_wav_truncated_in_every_attempt_is_refused(self, make_client: ClientFactory) -> None:
        with HostedService(pending_looks=0) as hosted, FaultyServer(hosted.url) as faults:
            client = make_client(faults.url, hosted.api_key)
            job = client.synthesize(TEXT, voice=client.voices.create(RECORDING, name="me")).wait()
            faults.inject(Fault.SHORT_LENGTH, path="/v1/jobs", times=99)
            with pytest.raises(InvalidResponseError):
                job.audio()


class TestLimits:
    def test_body_that_is_too_long_is_refused(
        self, client: Client, job_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("afterwords.client.requests.AUDIO_MAX_BYTES", 1_000)  # the real one is half a gigabyte
        with pytest.raises(InvalidResponseError, match="more than 1,000 bytes"):
            client.jobs.data(job_id)
        assert n_busy(client) == 0

    def test_json_that_is_too_long_is_refused(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("afterwords.client.requests.JSON_MAX_BYTES", 10)  # the real one is 16 MB
        with pytest.raises(InvalidResponseError, match="more than 10 bytes"):
            client.health()

    def test_pending_job_has_no_audio(self, client: Client, voice: Voice) -> None:
        job = client.synthesize(f"fault-slow {TEXT * 5}", voice=voice)
        with pytest.raises(NotFoundError, check=has_code("job_not_ready")):
            client.jobs.audio(str(job.job_id))
        job.cancel()

    @pytest.mark.parametrize(
        "body",
        [WAV[:-100], b"RIFF", b"", b"no sound", WAV[:20] + b"\xff" * 30],
        ids=["cut", "head", "none", "text", "?"],
    )
    def test_complete_but_invalid_audio_is_refused(self, make_client: ClientFactory, body: bytes) -> None:
        with canned_responses(HttpResponse(200, body, "audio/wav")) as (url, _), pytest.raises(InvalidResponseError):
            make_client(url, "aw_x").jobs.audio("some-job")


class TestPartialResponses:
    """Ranges that no real server sends."""

    def download(self, *responses: Response) -> bytes:
        with closing(ScriptedSession(*responses)) as session:
            return session.download(Request("GET", "/audio", is_download=True)).body

    @pytest.mark.parametrize(
        "second",
        [
            Response(206, {**AUDIO, "content-range": "bytes 0-9/10"}, b"other half"),
            Response(206, {**AUDIO, "content-range": "bytes 0-4/10"}, b"other"),
            Response(206, {**AUDIO, "content-range": "bytes 5-9/10, and more"}, b"other"),
            Response(206, AUDIO, b"other"),
            Response(416, {"content-type": "application/json"}, b"{}"),
            Response(416, {}, b""),
        ],
    )
    def test_part_with_a_wrong_range_is_discarded(self, second: Response) -> None:
        half = Response(200, AUDIO, b"whole", is_whole=False)
        assert self.download(half, second, Response(200, AUDIO, b"all of it!")) == b"all of it!"

    def test_part_shorter_than_requested_is_resumed(self) -> None:
        half = Response(200, AUDIO, b"abc", is_whole=False)
        parts = [Response(206, {"content-range": f"bytes {n}-{n}/5"}, b"de"[n - 3 :][:1]) for n in (3, 4)]
        assert self.download(half, *parts) == b"abcde"

    def test_full_body_in_place_of_a_part_is_accepted(self) -> None:
        half = Response(200, AUDIO, b"abc", is_whole=False)
        assert self.download(half, Response(200, AUDIO, b"abcde")) == b"abcde"

    def test_416_without_a_range_is_an_error(self) -> None:
        with pytest.raises(InvalidRequestError, check=has_code("range_not_satisfiable")):
            self.download(
                *[Response(416, {"content-type": "application/json"}, b'{"error":{"code":"range_not_satisfiable"}}')]
                * 9
            )
