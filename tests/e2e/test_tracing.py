"""Traces: a real collector receives what server and remote workers send over OTLP."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from afterwords.server import load_settings, router
from tests.cli.program import run
from tests.e2e.served import (
    ADMIN_SECRET,
    register,
    serving,
    submit_text,
    wait_for_job,
    wait_until,
    wait_until_prepared,
)
from tests.e2e.workers import open_world
from tests.server.test_embedding import RunningApp

TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT: Final = "00f067aa0ba902b7"
HEADER: Final = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
CANARY: Final = "canary7f3a"


class Received(NamedTuple):
    """A span as it arrived."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    service: str
    attributes: Mapping[str, Any]
    events: list[str]


class Collector:
    """An OTLP/HTTP receiver on a free port."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.raw = b""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                collector.receive(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.settings = {
            "AFTERWORDS_TRACING": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }

    def receive(self, body: bytes) -> None:
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            [service] = [one.value.string_value for one in resource.resource.attributes if one.key == "service.name"]
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                attributes = {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}
                ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
                events = [event.name for event in span.events]
                self.spans.append(Received(span.name, *ids, service, attributes, events))

    def trace(self, *names: str, trace_id: str = TRACE) -> dict[str, Received]:
        """Wait for spans of a trace, and return the first of each name."""

        def look() -> dict[str, Received]:
            spans = [span for span in self.spans if span.trace_id == trace_id]
            return {name: next(span for span in spans if span.name == name) for name in names}

        def found() -> dict[str, Received] | None:
            try:
                return look()
            except StopIteration:
                return None

        return wait_until(found, what=f"{names}")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def test_a_trace_goes_from_the_request_to_the_worker(tmp_path: Path, collector: Collector) -> None:
    with serving(tmp_path / "home", collector.settings) as served, served.client() as client:
        voice_id = register(client, name=CANARY, ref_text=CANARY)
        wait_until_prepared(client, voice_id)
        accepted = client.post("/v1/synthesize", json={"voice_id": voice_id, "text": CANARY}, headers=HEADER)
        job_id = accepted.json()["job_id"]
        assert wait_for_job(client, job_id)["status"] == "ready"
        trace = collector.trace("POST /v1/synthesize", "submit", "wait", "attempt", "synthesize", "deliver")
        assert client.get(f"/v1/voices/{CANARY}?after={CANARY}").status_code == 200
        wait_until(lambda: [span for span in collector.spans if span.name == "GET /v1/voices/{voice_id}"])
        key = served.key
    request, submit, attempt = trace["POST /v1/synthesize"], trace["submit"], trace["attempt"]
    assert request.parent_id == PARENT
    assert submit.parent_id == request.span_id
    assert {trace["wait"].parent_id, attempt.parent_id} == {submit.span_id}
    assert {trace["synthesize"].parent_id, trace["deliver"].parent_id} == {attempt.span_id}
    assert {span.service for span in trace.values()} == {"afterwords"}
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/synthesize",
        "http.response.status_code": 202,
        "afterwords.request_id": accepted.headers["x-request-id"],
        "afterwords.job_id": job_id,
    }
    assert submit.attributes == {"afterwords.backend": "tone", "afterwords.job_id": job_id, "afterwords.is_new": True}
    assert attempt.attributes == {
        "afterwords.job_id": job_id,
        "afterwords.voice_id": voice_id,
        "afterwords.backend": "tone",
        "afterwords.attempt": 1,
        "afterwords.outcome": "delivered",
    }
    assert trace["synthesize"].events == ["speaking", "first_audio"]
    assert [secret for secret in (CANARY, key, ADMIN_SECRET) if secret.encode() in collector.raw] == []


def test_failed_attempt_and_routine_requests(tmp_path: Path, collector: Collector) -> None:
    settings = {**collector.settings, "AFTERWORDS_MAX_ATTEMPTS": "1", "OTEL_SERVICE_NAME": "voices"}
    with serving(tmp_path / "home", settings) as served, served.client() as client:
        wait_until_prepared(client, voice_id := register(client))
        job_id = submit_text(client, voice_id, f"one fault-fail {CANARY}")
        failed = wait_for_job(client, job_id)
        client.get(f"/v1/jobs/{job_id}", headers={"traceparent": f"00-{TRACE}-{CANARY}"})
        assert served.stop() == 0
    attempts = [span for span in collector.spans if span.name == "attempt"]
    [attempt] = [span for span in attempts if span.attributes["afterwords.job_id"] == job_id]
    assert attempt.attributes["afterwords.outcome"] == "failed"
    assert attempt.attributes["afterwords.error"] == failed["error"]
    [speaking] = [span for span in collector.spans if span.name == "synthesize"]
    assert speaking.attributes == {"error.type": "WorkerError"}
    assert {span.service for span in collector.spans} == {"voices"}
    probes = [span.attributes["http.response.status_code"] for span in collector.spans if "/readyz" in span.name]
    assert 200 not in probes
    assert CANARY.encode() not in collector.raw


def test_remote_worker_continues_the_trace(tmp_path: Path, collector: Collector) -> None:
    with open_world(tmp_path / "world", **collector.settings) as world:
        worker = world.start_worker(**collector.settings)
        stream = {"voice_id": world.voice_id, "text": CANARY, "stream": True}
        assert world.client.post("/v1/synthesize", json=stream, headers=HEADER).status_code == 200
        upload, audio = "PUT /v1/jobs/{job_id}/audio", "POST /v1/jobs/{job_id}/stream"
        trace = collector.trace("submit", "wait", "attempt", "synthesize", "deliver", upload, audio)
        assert worker.stop() == 0
    attempt = trace["attempt"]
    assert attempt.parent_id == trace["submit"].span_id
    assert attempt.service == trace["deliver"].service == "afterwords-worker"
    assert trace[upload].service == "afterwords"
    assert trace[upload].parent_id == trace["deliver"].span_id
    assert trace[audio].parent_id == trace["submit"].span_id
    assert not [span for span in collector.spans if span.name == "POST /v1/workers/claim"]
    assert CANARY.encode() not in collector.raw


def test_server_goes_on_without_a_collector(tmp_path: Path, collector: Collector) -> None:
    collector.close()
    settings = {**collector.settings, "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    with serving(tmp_path / "home", settings) as served, served.client() as client:
        voice_id = register(client)
        for text in ("one", "two"):
            assert wait_for_job(client, submit_text(client, voice_id, text))["status"] == "ready"
            wait_until(lambda: "traces can't be sent" in served.log.read_text(), what="the warning")
        assert served.stop() == 0
    lines = served.log.read_text().splitlines()
    assert len([line for line in lines if "traces can't be sent" in line]) == 1
    assert not [line for line in lines if "opentelemetry" in line]


def test_nothing_is_sent_or_imported_unless_it_is_set(tmp_path: Path, collector: Collector) -> None:
    del collector.settings["AFTERWORDS_TRACING"]
    with serving(tmp_path / "home", collector.settings) as served, served.client() as client:
        assert wait_for_job(client, submit_text(client, register(client), "quiet"))["status"] == "ready"
        assert served.stop() == 0
    assert collector.raw == b""
    modules = "('opentelemetry.sdk', 'opentelemetry.exporter')"  # FastAPI imports the API by itself
    look = f"import sys, afterwords.server.run; print([name for name in sys.modules if name.startswith({modules})])"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    done = run("serve", env={"AFTERWORDS_TRACING": "1", "AFTERWORDS_BACKENDS": "tone"})
    assert done.code == 2
    assert "[otel]" in done.err


def test_request_is_a_child_of_the_span_of_an_application(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in collector.settings.items():
        monkeypatch.setenv(name, value)
    app = FastAPI()
    theirs = SpanContext(int("1" * 32, 16), int("2" * 16, 16), is_remote=False, trace_flags=TraceFlags(1))

    @app.middleware("http")
    async def trace(request: Any, call_next: Any) -> Any:
        with use_span(NonRecordingSpan(theirs)):
            return await call_next(request)

    settings = load_settings(home=tmp_path / "home", backends="tone", workers=0)
    app.include_router(router(settings), prefix="/voice")
    with RunningApp(app, "/voice") as running:
        assert httpx.get(f"{running.url}/v1/health", headers=HEADER, timeout=60).status_code == 200
        trace_of = collector.trace("GET /v1/health", trace_id="1" * 32)
    assert trace_of["GET /v1/health"].parent_id == "2" * 16
