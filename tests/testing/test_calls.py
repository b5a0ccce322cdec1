"""The contract of dispatchers, for services that are called: an app with the hosted dispatch form, RunPod, and Modal.

Of Modal, the client and the app are real; its API is a stand-in. Image, deployment and snapshots can't be tested here.
"""

from __future__ import annotations

import base64
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest

from afterwords.audio.wav import canonical_wav, read_wav
from afterwords.models import new_id
from afterwords.server.dispatch.protocol import PROTOCOL
from afterwords.testing import DispatcherContract, RunningServer
from afterwords.testing.dispatcher_contract import ENDLESS, SLOW
from tests.clouds import standin
from tests.clouds.soak import FAULTS
from tests.clouds.standin import StandIn
from tests.e2e.served import READER, register, wait_until


class ServiceContract(DispatcherContract):
    """The contract, with one server and one stand-in for all tests.

    Attributes:
        kind: What the container of the stand-in runs.
    """

    kind: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {"start_allowance_s": 1, "max_attempts": 2}
    cloud: ClassVar[StandIn]

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
        folder = tmp_path_factory.mktemp(cls.kind)
        with standin.running(cls.kind, folder / "container", dict(os.environ)) as cloud:
            cls.cloud = cloud
            with cls.new_server(folder / "home") as server:
                yield server

    @classmethod
    def new_server(cls, home: Path) -> RunningServer:
        more = {"lease_s": 2, **cls.settings, **cls.service()}
        return RunningServer(home, **more)

    @classmethod
    def service(cls) -> dict[str, Any]:
        """Return the settings that name the stand-in."""
        raise NotImplementedError

    def client_of(self, server: RunningServer) -> httpx.Client:
        headers = {"Authorization": f"Bearer {server.api_key}"}
        return httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=60)

    def new_voice(self, client: httpx.Client) -> str:
        upload = {"ref_audio": ("me.wav", READER.read_bytes(), "audio/wav")}
        return str(client.post("/v1/voices", data={"name": "me"}, files=upload).json()["voice_id"])


class TestTrigger(ServiceContract):
    kind = "hosted"

    @classmethod
    def service(cls) -> dict[str, Any]:
        return {"dispatchers": {"tone": "modal"}, "modal_trigger_url": f"{cls.cloud.url}/trigger"}

    def submit(self, client: httpx.Client, voice_id: str, text: str) -> str:
        """Shorten the lease of a job that never ends: its length is that of the longest speech."""
        if "fault-crash" not in text:
            return super().submit(client, voice_id, text)
        answer = client.post("/v1/synthesize", json={"voice_id": voice_id, "text": text, "speed": 4})
        return str(answer.json()["job_id"])

    def wait_until_speaking(self, client: httpx.Client, job_id: str) -> None:  # noqa: ARG002 - the form has no progress
        wait_until(lambda: self.cloud.requests_for(job_id), what="the call")

    # -- what only the trigger form has

    def test_words_are_streamed_with_the_audio(self, client: httpx.Client, voice_id: str) -> None:
        body = {"input": "Hello.", "voice": voice_id, "stream_format": "sse", "word_timestamps": True}
        refused = client.post("/v1/audio/speech", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "timestamps_unavailable")

    def test_trigger_gets_the_hosted_form(self, server: RunningServer, client: httpx.Client, voice_id: str) -> None:
        job_id = self.submit(client, voice_id, "In the hosted form.")
        assert self.wait_for(client, job_id) == "ready"
        [form] = self.cloud.requests_for(job_id)
        assert form.keys() == standin.FORM
        assert form["callback_url"] == f"{server.url}/v1/jobs/{job_id}/complete"
        assert form["callback_secret"].startswith("awt_1.")
        samples, _ = read_wav(base64.b64decode(form["ref_audio_b64"]))
        assert len(samples)

    def test_new_voice_is_not_prepared_in_the_background(self, client: httpx.Client) -> None:
        made = register(client, name="new")
        assert client.get(f"/v1/voices/{made}").json()["status"] == "ready"

    def test_shared_secret_and_proxy_token_are_sent(self, tmp_path: Path) -> None:
        secret = "a-callback-secret-that-workers-share"
        options = {**self.service(), "callback_secret": secret, "modal_proxy_token": "wk-1:ws-2"}
        with RunningServer(tmp_path / "home", **options) as other, self.client_of(other) as client:
            job_id = self.submit(client, self.new_voice(client), "With the shared secret.")
            assert self.wait_for(client, job_id) == "ready"
        headers, form = self.cloud.look()["received"][-1]
        assert form["callback_secret"] == secret
        assert (headers["Modal-Key"], headers["Modal-Secret"]) == ("wk-1", "ws-2")

    @pytest.mark.parametrize(
        ("status", "problem"),
        [
            (401, "refuses this server (status 401): check AFTERWORDS_MODAL_PROXY_TOKEN"),
            (303, "has no app there (status 303): deploy it, and check AFTERWORDS_MODAL_TRIGGER_URL"),
            (429, "is busy (status 429)"),
        ],
    )
    def test_refusing_trigger_uses_no_attempt(
        self, server: RunningServer, client: httpx.Client, voice_id: str, status: int, problem: str
    ) -> None:
        self.cloud.fail(status, **{"Retry-After": "1"})
        job_id = self.submit(client, voice_id, f"Spoken after status {status}.")
        wait_until(lambda: client.get("/readyz").json()["backend"] == f"modal: {problem}", what="the problem")
        assert client.get("/readyz").status_code == 503
        self.cloud.work()
        assert self.wait_for(client, job_id) == "ready"
        assert client.get("/readyz").status_code == 200
        assert self.attempts(server, job_id) == [1]

    def test_failing_trigger_uses_attempts(self, server: RunningServer, client: httpx.Client, voice_id: str) -> None:
        self.cloud.fail(500)
        job_id = self.submit(client, voice_id, "Never spoken.")
        assert self.wait_for(client, job_id) == "worker_lost"
        assert self.attempts(server, job_id) == [2]
        self.cloud.work()

    def test_silent_trigger_is_not_called_twice_within_a_lease(
        self, server: RunningServer, client: httpx.Client, voice_id: str
    ) -> None:
        self.cloud.fail(0)
        body = {"voice_id": voice_id, "text": "Spoken later.", "speed": 2}
        job_id = client.post("/v1/synthesize", json=body).json()["job_id"]
        wait_until(lambda: self.cloud.requests_for(job_id), what="the first call")
        self.cloud.work()
        assert self.wait_for(client, job_id) == "ready"
        assert self.attempts(server, job_id) == [2]
        first, second = self.cloud.requests_for(job_id)
        audio = client.get(f"/v1/jobs/{job_id}/audio").content
        answers = [
            deliver(first, job_id=job_id),
            deliver(second, job_id=job_id),
            deliver({**second, "callback_url": second["callback_url"].replace(job_id, new_id())}, job_id=job_id),
        ]
        assert [answer.status_code for answer in answers] == [409, 200, 401]
        assert client.get(f"/v1/jobs/{job_id}/audio").content == audio

    def test_callback_for_another_job_changes_nothing(self, client: httpx.Client, voice_id: str) -> None:
        endless = self.submit(client, voice_id, ENDLESS)
        self.wait_until_speaking(client, endless)
        [form] = self.cloud.requests_for(endless)
        assert deliver(form, job_id=new_id()).status_code == 422
        assert client.delete(f"/v1/jobs/{endless}").json()["status"] == "cancelled"


def deliver(form: dict[str, Any], *, job_id: str) -> httpx.Response:
    """Call back with other audio, as an app would that speaks a job again."""
    wav = base64.b64encode(canonical_wav(np.zeros(8_000, np.float32), 16_000)).decode()
    return httpx.post(
        form["callback_url"],
        json={"job_id": job_id, "voice_id": form["voice_id"], "cache_key": "", "wav_b64": wav, "error": None},
        headers={"Authorization": f"Bearer {form['callback_secret']}"},
        trust_env=False,
        timeout=60,
    )


class TestRunPod(ServiceContract):
    kind = "runpod"
    soak: ClassVar = FAULTS | {"test_stream_is_the_audio_of_the_job"}  # its container is that of Modal
    settings: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def service(cls) -> dict[str, Any]:
        options = {"runpod_url": f"{cls.cloud.url}/v2/voices/", "runpod_api_key": standin.KEY}
        return {"dispatcher": "runpod", **options}

    def test_container_fetches_the_text_with_its_token(
        self, server: RunningServer, client: httpx.Client, voice_id: str
    ) -> None:
        job_id = self.submit(client, voice_id, "This text is not in the request.")
        assert self.wait_for(client, job_id) == "ready"
        [body] = self.cloud.requests_for(job_id)
        assert body["input"].keys() == {"server", "job_id", "token", "voice_id", "backend"}
        token = body["input"]["token"]

        def begin(token: str, protocol: int) -> tuple[int, str]:
            hello = {"protocol": protocol, "version": "0"}
            headers = {"Authorization": f"Bearer {token}"}
            answer = httpx.post(f"{server.url}/v1/jobs/{job_id}/begin", json=hello, headers=headers, trust_env=False)
            return answer.status_code, answer.json()["error"]["code"]

        assert begin(token, PROTOCOL) == (409, "stale_attempt")
        assert begin(token, PROTOCOL - 1) == (426, "worker_protocol")
        assert begin(server.api_key, PROTOCOL) == (401, "unauthorized")

    def test_wrong_key_is_named(self, tmp_path: Path) -> None:
        options = {**self.service(), "runpod_api_key": "rpa_another"}
        with RunningServer(tmp_path / "home", **options) as other, self.client_of(other) as client:
            voice_id = self.new_voice(client)
            job_id = self.submit(client, voice_id, "It waits for the right key.")
            expected = "runpod: refuses this server (status 401): check AFTERWORDS_RUNPOD_API_KEY"
            wait_until(lambda: client.get("/readyz").json()["backend"] == expected, what="the problem")
            assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "pending"
            client.delete(f"/v1/jobs/{job_id}")

    def kill_worker(self, server: RunningServer) -> None:  # noqa: ARG002 - the stand-in replaces it
        os.kill(self.cloud.look()["pid"], signal.SIGKILL)


class TestModal(ServiceContract):
    kind = "modal"
    soak: ClassVar = FAULTS
    settings: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MODAL_TOKEN_ID", "ak-of-modal-for-tests")
            patch.setenv("MODAL_TOKEN_SECRET", standin.MODAL_TOKEN)
            folder = tmp_path_factory.mktemp(cls.kind)
            with standin.running(cls.kind, folder / "container", dict(os.environ)) as cloud:
                patch.setenv("MODAL_SERVER_URL", cloud.look()["modal_url"])
                cls.cloud = cloud
                with cls.new_server(folder / "home") as server:
                    yield server

    @classmethod
    def service(cls) -> dict[str, Any]:
        return {"dispatcher": "modal"}

    def kill_worker(self, server: RunningServer) -> None:  # noqa: ARG002 - the stand-in replaces it
        os.kill(self.cloud.look()["pid"], signal.SIGKILL)

    def test_busy_api_does_not_end_an_attempt(self, server: RunningServer, client: httpx.Client, voice_id: str) -> None:
        job_id = self.submit(client, voice_id, SLOW)
        self.wait_until_speaking(client, job_id)
        self.cloud.fail(429)
        wait_until(lambda: "FunctionGetOutputs" in self.cloud.look()["refused"], what="a look at the call")
        self.cloud.work()
        assert self.wait_for(client, job_id) == "ready"
        assert self.attempts(server, job_id) == [1]
