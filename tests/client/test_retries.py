"""Requests that are retried and those that are not, against a server with injected faults."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from afterwords import Client, Voice
from afterwords.client.requests import (
    BACKOFF_MAX_S,
    RETRIES,
    RETRY_AFTER_MAX_S,
    Request,
    Response,
)
from afterwords.errors import (
    AfterwordsError,
    ConnectionLostError,
    InvalidResponseError,
    LimitError,
    QuotaExceededError,
    ServerTimeoutError,
    ServiceError,
    ServiceUnavailableError,
    UnauthorizedError,
    UnreachableError,
    VoiceNotFoundError,
)
from afterwords.testing import Fault
from tests.client.both_clients import ClientFactory
from tests.client.faulty_proxy import FaultyServer
from tests.client.scripted import ScriptedSession
from tests.e2e.served import RECORDING
from tests.hosted.service import HostedService

TEXT = "This is spoken once, however often it is requested."
GET = Request("GET", "/v1/voices")
POST = Request("POST", "/v1/keys", is_repeatable=False)
KEYED = Request("POST", "/v1/synthesize", is_repeatable=False, idempotency_key="once")
LOST, UNREACHABLE = ConnectionLostError.for_url("there"), UnreachableError("There is no connection.")


def response(status: int, code: str = "", *, is_whole: bool = True, **headers: str) -> Response:
    body = json.dumps({"error": {"code": code}}).encode() if code else b"{}"
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, {"content-type": "application/json", **names}, body, is_whole=is_whole)


def send(
    request: Request, *outcomes: Response | AfterwordsError, is_hosted: bool = False
) -> tuple[int, list[float], object]:
    """Return how often a request was sent, the pauses between, and the response or error."""
    with closing(ScriptedSession(*outcomes, is_afterwords_server=not is_hosted)) as session:
        try:
            result: object = session.request(request)
        except AfterwordsError as error:
            result = error
        return len(session.sent), session.pauses, result


class TestRules:
    """The rules, without network and time."""

    @pytest.mark.parametrize("sent", [GET, POST, KEYED], ids=["GET", "POST", "POST with a key"])
    @pytest.mark.parametrize("status", [408, 429, 503])
    def test_unprocessed_request_is_retried(self, sent: Request, status: int) -> None:
        n_sent, _, result = send(sent, response(status), response(200), is_hosted=True)
        assert (n_sent, result) == (2, response(200))

    @pytest.mark.parametrize(
        "outcome", [response(500), response(502), response(504), LOST, response(200, is_whole=False)]
    )
    @pytest.mark.parametrize(
        ("sent", "is_hosted", "n_sent"), [(GET, True, 2), (KEYED, False, 2), (KEYED, True, 1), (POST, False, 1)]
    )
    def test_possibly_processed_request_is_retried_if_safe(
        self, outcome: Response | AfterwordsError, sent: Request, is_hosted: bool, n_sent: int
    ) -> None:
        assert send(sent, outcome, response(201), is_hosted=is_hosted)[0] == n_sent

    @pytest.mark.parametrize("sent", [GET, POST, KEYED], ids=["GET", "POST", "POST with a key"])
    def test_unsent_request_is_retried(self, sent: Request) -> None:
        assert send(sent, UNREACHABLE, response(200), is_hosted=True)[0] == 2

    @pytest.mark.parametrize(
        "outcome",
        [
            *map(response, (301, 400, 401, 403, 404, 405, 409, 410, 413, 416, 422, 501, 507)),
            *(response(500, code) for code in ("reference_missing", "audio_lost", "synthesis_failed")),
            response(429, "quota_exceeded", retry_after="1"),
            UnauthorizedError.not_logged_in("there"),
            InvalidResponseError.for_reason("it is too long"),
        ],
    )
    def test_permanent_failure_is_not_retried(self, outcome: Response | AfterwordsError) -> None:
        n_sent, pauses, error = send(GET, outcome)
        assert (n_sent, pauses, isinstance(error, AfterwordsError)) == (1, [], True)

    @pytest.mark.parametrize("retry_after", [0, 1, 7, 60])
    def test_retry_after_is_respected(self, retry_after: int) -> None:
        _, pauses, _ = send(GET, response(429, retry_after=str(retry_after)), response(200))
        assert len(pauses) == 1
        assert retry_after <= pauses[0] <= retry_after + 0.25

    def test_long_retry_after_is_left_to_the_caller(self) -> None:
        retry_after = round(RETRY_AFTER_MAX_S) + 1
        n_sent, _, error = send(GET, response(429, "rate_limited", retry_after=str(retry_after)))
        assert isinstance(error, LimitError)
        assert (n_sent, error.retry_after_s) == (1, retry_after)

    @pytest.mark.parametrize("retry_after", ["-1", "1.5", "soon", "9" * 10, "Wed, 21 Oct 2026 07:28:00 GMT"])
    def test_invalid_retry_after_is_ignored(self, retry_after: str) -> None:
        n_sent, pauses, _ = send(GET, response(503, retry_after=retry_after), response(200))
        assert (n_sent, pauses[0] <= BACKOFF_MAX_S) == (2, True)

    def test_backoff_grows_and_has_jitter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("afterwords.client.requests.BACKOFF_S", 0.25)  # the default; nothing waits here
        runs = [send(GET, response(503))[1] for _ in range(20)]
        for attempt in range(RETRIES):
            ceiling = min(BACKOFF_MAX_S, 0.25 * 2**attempt)
            assert all(ceiling / 2 <= run[attempt] <= ceiling for run in runs)
        assert len({tuple(run) for run in runs}) == 20

    def test_last_failure_is_raised(self) -> None:
        n_sent, pauses, error = send(GET, response(500), LOST, response(503, "storage_unavailable"))
        assert (n_sent, len(pauses)) == (RETRIES + 1, RETRIES)
        assert isinstance(error, ServiceUnavailableError)

    @pytest.mark.parametrize(
        ("before", "is_success"),
        [
            ([LOST], True),
            ([response(500)], True),
            ([LOST, response(503)], True),
            ([response(503)], False),
            ([UNREACHABLE], False),
            ([], False),
        ],
    )
    def test_404_after_a_lost_delete_is_success(
        self, before: list[Response | AfterwordsError], is_success: bool
    ) -> None:
        delete = Request("DELETE", "/v1/voices/x", missing_code="voice_not_found", is_done_if_gone=True)
        _, _, result = send(delete, *before, response(404))
        assert isinstance(result, Response if is_success else VoiceNotFoundError)


class TestFaults:
    """The rules, and what is on the server afterwards."""

    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    def test_get_is_retried_after_a_transient_failure(self, faulty: Client, faults: FaultyServer, status: int) -> None:
        faults.inject(Fault.ANSWER, status=status)
        assert list(faulty.voices.list()) == []
        assert [seen.fault for seen in faults.seen] == [Fault.ANSWER, None]

    @pytest.mark.parametrize("status", [400, 403, 501, 507])
    def test_get_is_not_retried_after_a_permanent_failure(
        self, faulty: Client, faults: FaultyServer, status: int
    ) -> None:
        faults.inject(Fault.ANSWER, status=status)
        with pytest.raises(ServiceError) as caught:
            list(faulty.voices.list())
        assert (caught.value.http_status, len(faults.seen)) == (status, 1)

    def test_client_waits_for_retry_after(self, faulty: Client, faults: FaultyServer) -> None:
        faults.inject(Fault.ANSWER, status=429, retry_after_s=1)
        began = time.monotonic()
        assert list(faulty.voices.list()) == []
        assert time.monotonic() - began >= 1  # at least

    @pytest.mark.parametrize("fault", [Fault.DROP_BEFORE, Fault.DROP_AFTER, Fault.HALF_BODY])
    def test_retried_synthesis_creates_one_job(
        self, faulty: Client, faults: FaultyServer, direct: Client, voice: Voice, fault: Fault
    ) -> None:
        faults.inject(fault, method="POST", times=2)
        faulty.synthesize(TEXT, voice=voice).wait()
        posts = [seen for seen in faults.seen if seen.method == "POST"]
        assert (len(posts), len({seen.headers["Idempotency-Key"] for seen in posts})) == (3, 1)
        assert len(list(direct.jobs.list())) == 1

    @pytest.mark.parametrize("fault", [Fault.DROP_BEFORE, Fault.DROP_AFTER, Fault.HALF_BODY])
    def test_retried_upload_creates_one_voice(
        self, faulty: Client, faults: FaultyServer, direct: Client, fault: Fault
    ) -> None:
        faults.inject(fault, method="POST", times=2)
        created = faulty.voices.create(RECORDING, name="me")
        assert [voice.voice_id for voice in direct.voices.list()] == [created.voice_id]

    def test_retried_import_creates_one_voice(
        self, faulty: Client, faults: FaultyServer, direct: Client, voice: Voice
    ) -> None:
        bundle = direct.voices.export(voice)
        faults.inject(Fault.DROP_AFTER, path="/v1/voices/import")
        created = faulty.voices.import_(bundle)
        assert [voice.voice_id for voice in direct.voices.list()] == [voice.voice_id, created.voice_id]

    @pytest.mark.parametrize("status", [500, 502, 503])
    def test_synthesis_refused_by_a_proxy_is_retried(
        self, faulty: Client, faults: FaultyServer, voice: Voice, status: int
    ) -> None:
        faults.inject(Fault.ANSWER, method="POST", status=status)
        assert faulty.say(TEXT, voice=voice).duration_s > 0

    def test_key_creation_is_not_retried(self, faulty: Client, faults: FaultyServer, direct: Client) -> None:
        faults.inject(Fault.DROP_AFTER, path="/v1/keys")
        before = len(direct.keys.list())
        with pytest.raises(ConnectionLostError):
            faulty.keys.create(label="lost")
        assert (len(faults.seen), len(direct.keys.list())) == (1, before + 1)

    def test_lost_response_to_a_deletion_is_success(
        self, faulty: Client, faults: FaultyServer, direct: Client, voice: Voice
    ) -> None:
        faults.inject(Fault.DROP_AFTER, method="DELETE")
        faulty.voices.delete(voice)
        assert list(direct.voices.list()) == []

    def test_lost_response_to_a_cancellation_is_success(
        self, faulty: Client, faults: FaultyServer, voice: Voice
    ) -> None:
        job = faulty.synthesize(f"fault-slow {TEXT * 20}", voice=voice)
        faults.inject(Fault.DROP_AFTER, method="DELETE")
        assert job.cancel().status == "cancelled"

    def test_exceeded_quota_is_not_retried(self, faulty: Client, faults: FaultyServer, voice: Voice) -> None:
        faults.inject(Fault.ANSWER, method="POST", status=429, code="quota_exceeded", retry_after_s=1)
        with pytest.raises(QuotaExceededError) as caught:
            faulty.say(TEXT, voice=voice)
        assert (len(faults.seen), caught.value.retry_after_s, caught.value.exit_code) == (1, 1, 6)

    @pytest.mark.parametrize(
        ("inject", "kind"),
        [
            (lambda faults: faults.inject(Fault.ANSWER, times=99, status=503), ServiceUnavailableError),
            (lambda faults: faults.inject(Fault.ANSWER, times=99, status=429, retry_after_s=0), LimitError),
            (lambda faults: faults.inject(Fault.DROP_BEFORE, times=99), ConnectionLostError),
            (lambda faults: faults.inject(Fault.HALF_BODY, times=99), ConnectionLostError),
        ],
    )
    def test_fifth_failure_is_raised(
        self,
        faulty: Client,
        faults: FaultyServer,
        inject: Callable[[FaultyServer], None],
        kind: type[AfterwordsError],
    ) -> None:
        inject(faults)
        with pytest.raises(kind):
            list(faulty.voices.list())
        assert len(faults.seen) == RETRIES + 1

    def test_silent_server_times_out(self, make_client: ClientFactory, faults: FaultyServer, key: str) -> None:
        faults.inject(Fault.SLOW, times=99, delay_s=30)
        with pytest.raises(ServerTimeoutError) as caught:
            list(make_client(faults.url, key, timeout_s=0.5).voices.list())
        assert (caught.value.exit_code, len(faults.seen)) == (9, RETRIES + 1)

    def test_closed_port_is_unreachable(self, make_client: ClientFactory) -> None:
        with pytest.raises(UnreachableError) as caught:
            make_client("http://127.0.0.1:9", "aw_x").usage()
        assert (caught.value.exit_code, caught.value.hint != "") == (8, True)


class TestHosted:
    """The hosted service ignores idempotency keys."""

    @pytest.mark.parametrize(("fault", "n_voices"), [(Fault.DROP_BEFORE, 0), (Fault.DROP_AFTER, 1)])
    def test_possibly_processed_post_is_not_retried(
        self, make_client: ClientFactory, fault: Fault, n_voices: int
    ) -> None:
        with HostedService() as hosted, FaultyServer(hosted.url) as faults:
            client = make_client(faults.url, hosted.api_key)
            faults.inject(fault, method="POST")
            with pytest.raises(ConnectionLostError):
                client.voices.create(RECORDING, name="me")
            assert len(list(client.voices.list())) == n_voices

    def test_post_refused_with_503_is_retried(self, make_client: ClientFactory) -> None:
        with HostedService() as hosted, FaultyServer(hosted.url) as faults:
            client = make_client(faults.url, hosted.api_key)
            faults.inject(Fault.ANSWER, method="POST", status=503)
            created = client.voices.create(RECORDING, name="me")
            assert [voice.voice_id for voice in client.voices.list()] == [created.voice_id]

    def test_lost_response_to_a_deletion_is_success(self, make_client: ClientFactory) -> None:
        with HostedService() as hosted, FaultyServer(hosted.url) as faults:
            client = make_client(faults.url, hosted.api_key)
            created = client.voices.create(RECORDING, name="me")
            faults.inject(Fault.DROP_AFTER, method="DELETE")
            client.voices.delete(created)
            assert list(client.voices.list()) == []
