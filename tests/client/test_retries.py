"""What is sent again and what is not, through a server that fails when it is told to."""

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
from afterwords.testing import Fault, FaultyServer
from tests.client.front import Either
from tests.client.scripted import ScriptedSession
from tests.e2e.served import READER
from tests.hosted.service import HostedService

TEXT = "Said once, however often it is asked."
GET = Request("GET", "/v1/voices")
POST = Request("POST", "/v1/keys", is_repeatable=False)
KEYED = Request("POST", "/v1/synthesize", is_repeatable=False, idempotency_key="once")
LOST, UNREACHED = ConnectionLostError.for_url("there"), UnreachableError.for_url("there", why="it refused")


def answer(status: int, code: str = "", *, is_whole: bool = True, **headers: str) -> Response:
    told = json.dumps({"error": {"code": code}}).encode() if code else b"{}"
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, {"content-type": "application/json", **names}, told, is_whole=is_whole)


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
    """The rules alone: no network, no time."""

    @pytest.mark.parametrize("ask", [GET, POST, KEYED], ids=["GET", "POST", "POST with a key"])
    @pytest.mark.parametrize("status", [408, 429, 503])
    def test_what_was_certainly_not_done_is_sent_again(self, ask: Request, status: int) -> None:
        n_sent, _, result = send(ask, answer(status), answer(200), is_hosted=True)
        assert (n_sent, result) == (2, answer(200))

    @pytest.mark.parametrize("outcome", [answer(500), answer(502), answer(504), LOST, answer(200, is_whole=False)])
    @pytest.mark.parametrize(
        ("ask", "is_hosted", "n_sent"), [(GET, True, 2), (KEYED, False, 2), (KEYED, True, 1), (POST, False, 1)]
    )
    def test_what_may_have_been_done_is_sent_again_where_that_is_safe(
        self, outcome: Response | AfterwordsError, ask: Request, is_hosted: bool, n_sent: int
    ) -> None:
        assert send(ask, outcome, answer(201), is_hosted=is_hosted)[0] == n_sent

    @pytest.mark.parametrize("ask", [GET, POST, KEYED], ids=["GET", "POST", "POST with a key"])
    def test_what_never_went_out_is_sent_again(self, ask: Request) -> None:
        assert send(ask, UNREACHED, answer(200), is_hosted=True)[0] == 2

    @pytest.mark.parametrize(
        "outcome",
        [
            *map(answer, (301, 400, 401, 403, 404, 405, 409, 410, 413, 416, 422, 501, 507)),
            *(answer(500, code) for code in ("reference_missing", "audio_lost", "synthesis_failed")),
            answer(429, "quota_exceeded", retry_after="1"),
            UnauthorizedError.not_logged_in("there"),
            InvalidResponseError.for_reason("it is too long"),
        ],
    )
    def test_what_would_fail_again_is_not(self, outcome: Response | AfterwordsError) -> None:
        n_sent, pauses, error = send(GET, outcome)
        assert (n_sent, pauses, isinstance(error, AfterwordsError)) == (1, [], True)

    @pytest.mark.parametrize("wish", [0, 1, 7, 60])
    def test_the_server_says_how_long_to_wait(self, wish: int) -> None:
        _, pauses, _ = send(GET, answer(429, retry_after=str(wish)), answer(200))
        assert len(pauses) == 1
        assert wish <= pauses[0] <= wish + 0.25

    def test_a_wait_that_is_too_long_is_the_callers_to_decide(self) -> None:
        wish = round(RETRY_AFTER_MAX_S) + 1
        n_sent, _, error = send(GET, answer(429, "rate_limited", retry_after=str(wish)))
        assert isinstance(error, LimitError)
        assert (n_sent, error.retry_after_s) == (1, wish)

    @pytest.mark.parametrize("wish", ["-1", "1.5", "soon", "9" * 10, "Wed, 21 Oct 2026 07:28:00 GMT"])
    def test_a_wish_that_is_no_number_is_as_good_as_none(self, wish: str) -> None:
        n_sent, pauses, _ = send(GET, answer(503, retry_after=wish), answer(200))
        assert (n_sent, pauses[0] <= BACKOFF_MAX_S) == (2, True)

    def test_pauses_grow_and_no_two_clients_pause_alike(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("afterwords.client.requests.BACKOFF_S", 0.25)  # the real one: nothing waits here
        runs = [send(GET, answer(503))[1] for _ in range(20)]
        for attempt in range(RETRIES):
            ceiling = min(BACKOFF_MAX_S, 0.25 * 2**attempt)
            assert all(ceiling / 2 <= run[attempt] <= ceiling for run in runs)
        assert len({tuple(run) for run in runs}) == 20

    def test_in_the_end_the_last_failure_is_told(self) -> None:
        n_sent, pauses, error = send(GET, answer(500), LOST, answer(503, "storage_unavailable"))
        assert (n_sent, len(pauses)) == (RETRIES + 1, RETRIES)
        assert isinstance(error, ServiceUnavailableError)

    @pytest.mark.parametrize(
        ("before", "is_done"),
        [
            ([LOST], True),
            ([answer(500)], True),
            ([LOST, answer(503)], True),
            ([answer(503)], False),
            ([UNREACHED], False),
            ([], False),
        ],
    )
    def test_what_is_gone_was_deleted_by_an_attempt_that_may_have_arrived(
        self, before: list[Response | AfterwordsError], is_done: bool
    ) -> None:
        ask = Request("DELETE", "/v1/voices/x", missing_code="voice_not_found", is_done_if_gone=True)
        _, _, result = send(ask, *before, answer(404))
        assert isinstance(result, Response if is_done else VoiceNotFoundError)


class TestFaults:
    """The same rules where it matters: what is on the server afterwards."""

    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    def test_a_get_is_sent_again_where_it_may_pass(self, faulty: Client, faults: FaultyServer, status: int) -> None:
        faults.inject(Fault.ANSWER, status=status)
        assert list(faulty.voices.list()) == []
        assert [seen.fault for seen in faults.seen] == [Fault.ANSWER, None]

    @pytest.mark.parametrize("status", [400, 403, 501, 507])
    def test_a_get_is_not_sent_again_where_it_would_fail(
        self, faulty: Client, faults: FaultyServer, status: int
    ) -> None:
        faults.inject(Fault.ANSWER, status=status)
        with pytest.raises(ServiceError) as caught:
            list(faulty.voices.list())
        assert (caught.value.http_status, len(faults.seen)) == (status, 1)

    def test_retry_after_is_waited_for(self, faulty: Client, faults: FaultyServer) -> None:
        faults.inject(Fault.ANSWER, status=429, retry_after_s=1)
        began = time.monotonic()
        assert list(faulty.voices.list()) == []
        assert time.monotonic() - began >= 1  # at least: that it waits is what is claimed

    @pytest.mark.parametrize("fault", [Fault.DROP_BEFORE, Fault.DROP_AFTER, Fault.HALF_BODY])
    def test_speech_that_may_have_been_accepted_is_asked_for_again_and_made_once(
        self, faulty: Client, faults: FaultyServer, direct: Client, voice: Voice, fault: Fault
    ) -> None:
        faults.inject(fault, method="POST", times=2)
        faulty.synthesize(TEXT, voice=voice).wait()
        asked = [seen for seen in faults.seen if seen.method == "POST"]
        assert (len(asked), len({seen.headers["Idempotency-Key"] for seen in asked})) == (3, 1)
        assert len(list(direct.jobs.list())) == 1

    @pytest.mark.parametrize("fault", [Fault.DROP_BEFORE, Fault.DROP_AFTER, Fault.HALF_BODY])
    def test_a_voice_whose_answer_was_lost_is_made_once(
        self, faulty: Client, faults: FaultyServer, direct: Client, fault: Fault
    ) -> None:
        faults.inject(fault, method="POST", times=2)
        made = faulty.voices.create(READER, name="me")
        assert [voice.voice_id for voice in direct.voices.list()] == [made.voice_id]

    def test_a_bundle_whose_answer_was_lost_is_taken_in_once(
        self, faulty: Client, faults: FaultyServer, direct: Client, voice: Voice
    ) -> None:
        bundle = direct.voices.export(voice)
        faults.inject(Fault.DROP_AFTER, path="/v1/voices/import")
        made = faulty.voices.import_(bundle)
        assert [voice.voice_id for voice in direct.voices.list()] == [voice.voice_id, made.voice_id]

    @pytest.mark.parametrize("status", [500, 502, 503])
    def test_speech_that_a_proxy_refused_is_asked_for_again(
        self, faulty: Client, faults: FaultyServer, voice: Voice, status: int
    ) -> None:
        faults.inject(Fault.ANSWER, method="POST", status=status)
        assert faulty.say(TEXT, voice=voice).duration_s > 0

    def test_a_key_that_may_have_been_made_is_not_asked_for_again(
        self, faulty: Client, faults: FaultyServer, direct: Client
    ) -> None:
        faults.inject(Fault.DROP_AFTER, path="/v1/keys")
        before = len(direct.keys.list())
        with pytest.raises(ConnectionLostError):
            faulty.keys.create(label="lost")
        assert (len(faults.seen), len(direct.keys.list())) == (1, before + 1)

    def test_a_deletion_whose_answer_was_lost_is_done(
        self, faulty: Client, faults: FaultyServer, direct: Client, voice: Voice
    ) -> None:
        faults.inject(Fault.DROP_AFTER, method="DELETE")
        faulty.voices.delete(voice)
        assert list(direct.voices.list()) == []

    def test_a_cancellation_whose_answer_was_lost_is_done(
        self, faulty: Client, faults: FaultyServer, voice: Voice
    ) -> None:
        job = faulty.synthesize(f"fault-slow {TEXT * 20}", voice=voice)
        faults.inject(Fault.DROP_AFTER, method="DELETE")
        assert job.cancel().status == "cancelled"

    def test_a_quota_is_not_asked_for_twice(self, faulty: Client, faults: FaultyServer, voice: Voice) -> None:
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
    def test_after_five_attempts_it_gives_up(
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

    def test_a_silent_server_is_named(self, either: Either, faults: FaultyServer, key: str) -> None:
        faults.inject(Fault.SLOW, times=99, delay_s=30)
        with pytest.raises(ServerTimeoutError) as caught:
            list(either(faults.url, key, timeout_s=0.05).voices.list())
        assert (caught.value.exit_code, len(faults.seen)) == (9, RETRIES + 1)

    def test_where_nobody_listens_nothing_was_sent(self, either: Either) -> None:
        with pytest.raises(UnreachableError) as caught:
            either("http://127.0.0.1:9", "aw_nobody").usage()
        assert (caught.value.exit_code, caught.value.hint != "") == (8, True)


class TestHosted:
    """The hosted service knows no idempotency keys."""

    @pytest.mark.parametrize(("fault", "n_voices"), [(Fault.DROP_BEFORE, 0), (Fault.DROP_AFTER, 1)])
    def test_what_may_have_arrived_is_not_sent_again(self, either: Either, fault: Fault, n_voices: int) -> None:
        with HostedService() as hosted, FaultyServer(hosted.url) as faults:
            client = either(faults.url, hosted.api_key)
            faults.inject(fault, method="POST")
            with pytest.raises(ConnectionLostError):
                client.voices.create(READER, name="me")
            assert len(list(client.voices.list())) == n_voices

    def test_what_was_refused_for_now_is_sent_again(self, either: Either) -> None:
        with HostedService() as hosted, FaultyServer(hosted.url) as faults:
            client = either(faults.url, hosted.api_key)
            faults.inject(Fault.ANSWER, method="POST", status=503)
            made = client.voices.create(READER, name="me")
            assert [voice.voice_id for voice in client.voices.list()] == [made.voice_id]

    def test_a_deletion_whose_answer_was_lost_is_done(self, either: Either) -> None:
        with HostedService() as hosted, FaultyServer(hosted.url) as faults:
            client = either(faults.url, hosted.api_key)
            made = client.voices.create(READER, name="me")
            faults.inject(Fault.DROP_AFTER, method="DELETE")
            client.voices.delete(made)
            assert list(client.voices.list()) == []
