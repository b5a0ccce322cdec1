"""Tests of /metrics: a real server, scraped while it works, and read by Prometheus's own parser."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from afterwords import __version__
from tests.e2e.served import ADMIN_SECRET, Served, register, serving, submit_text, wait_for_job, wait_until

TEXT: Final = "The harbour was quiet when they arrived."


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = {"AFTERWORDS_MAX_ATTEMPTS": "1", "AFTERWORDS_LOG_LEVEL": "debug"}
    with serving(tmp_path_factory.mktemp("metrics") / "home", settings) as running:
        yield running


class Scrape:
    """The metrics of one scrape."""

    def __init__(self, served: Served) -> None:
        answer = httpx.get(f"{served.url}/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        self.text = answer.text
        self.families: Mapping[str, Metric] = {
            family.name: family for family in text_string_to_metric_families(answer.text)
        }

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the samples that have these labels."""
        samples = [sample for family in self.families.values() for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def test_metrics_count_requests_jobs_and_audio(served: Served) -> None:
    before = Scrape(served)
    with served.client() as client:
        voice_id = register(client)
        job_id = submit_text(client, voice_id, TEXT)
        wait_for_job(client, job_id)
        audio_s = len(client.get(f"/v1/jobs/{job_id}/audio").content) / 2 / 24_000
        hit = client.post("/v1/synthesize", json={"voice_id": voice_id, "text": TEXT})
        assert hit.headers["x-cache"] == "HIT"
        failed = wait_for_job(client, submit_text(client, voice_id, "one fault-fail two"))
        assert failed["status"] == "failed"
        assert client.get(f"/v1/voices/{TEXT}").status_code == 404
        assert client.get(f"/{TEXT}").status_code == 404
        assert client.request("MKCOL", "/v1/voices").status_code == 405
    after = Scrape(served)

    def grown(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    requests = "afterwords_http_requests_total"
    assert grown(requests, route="/v1/synthesize", method="POST", status="202") == 2
    assert grown(requests, route="/v1/synthesize", method="POST", status="200") == 1
    assert grown(requests, route="/v1/voices/{voice_id}", method="GET", status="404") == 1
    assert grown(requests, route="", method="GET", status="404") == 1
    assert grown(requests, method="other", status="405") == 1
    assert grown("afterwords_http_request_duration_seconds_count", route="/v1/synthesize") == 3
    assert grown("afterwords_http_request_duration_seconds_sum", route="/v1/synthesize") > 0
    assert grown("afterwords_cache_hits_total", backend="tone") == 1
    assert grown("afterwords_cache_misses_total", backend="tone") == 2
    assert grown("afterwords_attempts_total", backend="tone", worker="local") == 2
    assert grown("afterwords_queue_wait_seconds_count", backend="tone") == 2
    assert grown("afterwords_time_to_first_audio_seconds_count", backend="tone") == 2
    assert grown("afterwords_jobs_ended_total", backend="tone", status="ready", code="") == 1
    assert grown("afterwords_jobs_ended_total", backend="tone", status="failed", code=failed["error"]) == 1
    assert grown("afterwords_audio_seconds_total", backend="tone", worker="local") == pytest.approx(audio_s, abs=0.1)
    assert grown("afterwords_real_time_factor_count", backend="tone", worker="local") == 1
    assert after.value("afterwords_database_up") == 1
    assert after.value("afterwords_ready") == 1
    assert after.value("afterwords_info", version=__version__) == 1
    assert after.value("afterwords_disk_free_bytes") > 0
    assert after.value("process_resident_memory_bytes") > 0


def test_metrics_hold_no_text_key_or_id(served: Served) -> None:
    with served.client() as client:
        voice_id = register(client, name="Canary", ref_text="a transcript of a canary")
        job_id = submit_text(client, voice_id, "a text of a canary")
        wait_for_job(client, job_id)
        [key] = client.get("/v1/keys").json()
    text = Scrape(served).text
    secrets = ("canary", "harbour", "Canary", served.key, ADMIN_SECRET, key["key_id"], key["account_id"])
    assert not [secret for secret in (*secrets, voice_id, job_id) if secret in text]


def test_metrics_show_the_queue_and_ends_of_jobs(tmp_path: Path) -> None:
    with serving(tmp_path / "home", {"AFTERWORDS_WORKERS": "0"}) as served, served.client() as client:
        assert Scrape(served).value("afterwords_queue_jobs", backend="tone") == 0
        voice_id = register(client)
        jobs = [submit_text(client, voice_id, f"{TEXT} {number}") for number in range(3)]
        scrape = wait_until(
            lambda: scrape if (scrape := Scrape(served)).value("afterwords_queue_oldest_seconds") else None
        )
        assert scrape.value("afterwords_queue_jobs", backend="tone", state="waiting") == 3
        assert scrape.value("afterwords_queue_jobs", backend="tone", state="running") == 0
        for _ in range(2):
            assert client.delete(f"/v1/jobs/{jobs[0]}").is_success
        [key] = client.get("/v1/keys").json()
        assert client.delete(f"/v1/keys/{key['key_id']}").status_code == 204
        scrape = wait_until(lambda: scrape if not (scrape := Scrape(served)).value("afterwords_queue_jobs") else None)
        assert scrape.value("afterwords_jobs_ended_total", backend="tone", status="cancelled") == 1
        assert scrape.value("afterwords_jobs_ended_total", backend="", status="cancelled") == 2


def test_metrics_answer_only_this_machine_or_the_admin(tmp_path: Path) -> None:
    token = "a-metrics-token-of-the-operator-0"
    public = {"AFTERWORDS_PUBLIC_URL": "https://voice.example", "AFTERWORDS_METRICS_TOKEN": token}
    settings = {"AFTERWORDS_WORKERS": "0", **public}
    with serving(tmp_path / "home", settings) as served:
        url = f"{served.url}/metrics"
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"Authorization": f"Bearer {served.key}"}).status_code == 401
        for secret in (ADMIN_SECRET, token):
            assert httpx.get(url, headers={"Authorization": f"Bearer {secret}"}).status_code == 200
        assert httpx.get(f"{served.url}/status", headers={"Authorization": f"Bearer {token}"}).status_code == 401
        assert served.stop() == 0
        for name in public:
            del served.settings[name]
        served.start()
        assert httpx.get(f"{served.url}/metrics").status_code == 200
        forwarded = httpx.get(f"{served.url}/metrics", headers={"X-Forwarded-For": "127.0.0.1"})
        assert forwarded.status_code == 401
        with socket.create_connection((httpx.URL(served.url).host, httpx.URL(served.url).port or 80)) as nginx:
            nginx.sendall(b"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")  # as nginx does by default
            assert nginx.makefile("rb").readline().split()[1] == b"401"


def test_metrics_count_a_crashed_worker_and_its_job(served: Served) -> None:
    with served.client() as client:
        failed = wait_for_job(client, submit_text(client, register(client), "one fault-crash two"))
    assert failed["error"] == "worker_lost"
    scrape = Scrape(served)
    assert scrape.value("afterwords_attempt_retries_total", code="worker_lost") == 1
    assert scrape.value("afterwords_jobs_ended_total", backend="tone", status="failed", code="worker_lost") == 1
    assert scrape.value("afterwords_workers", worker="local") == 1
