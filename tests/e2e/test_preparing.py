"""Voices that are prepared in the background, by the server or by a remote worker, with an engine that takes long."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.cli.program import run
from tests.e2e.invariants import list_blobs, worker_process
from tests.e2e.served import Served, register, serving, submit_text, wait_for_job, wait_until
from tests.e2e.workers import claim_body, open_world
from tests.server.dispatch.running import write_odd


@dataclass
class Engine:
    """The engine `slow`, which prepares a voice until the file `go` exists in its home folder."""

    home: Path
    n_seen: int = 0

    def hold(self) -> None:
        (self.home / "go").unlink(missing_ok=True)
        self.n_seen += len(self.steps())

    def let_go(self) -> None:
        (self.home / "go").touch()

    def steps(self) -> list[int]:
        """Return the step at which each preparation began, since `hold`."""
        log = self.home / "odd.log"
        lines = log.read_text().split() if log.exists() else []
        return [int(line.removeprefix("from-")) for line in lines][self.n_seen :]

    def wait_for_preparations(self, n: int) -> None:
        wait_until(lambda: len(self.steps()) >= n, what=f"preparation {n}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("site")
    write_odd(folder)
    return str(folder)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, site: str) -> Iterator[Served]:
    settings = {
        "AFTERWORDS_BACKENDS": "tone,slow",
        "AFTERWORDS_LEASE_S": "3",
        "AFTERWORDS_RATE_LIMIT": "0",
        "PYTHONPATH": site,
    }
    with serving(tmp_path_factory.mktemp("preparing") / "home", settings) as served:
        yield served


@pytest.fixture
def engine(served: Served) -> Iterator[Engine]:
    engine = Engine(served.home)
    engine.hold()
    yield engine
    engine.let_go()


@pytest.fixture
def client(served: Served, engine: Engine) -> Iterator[httpx.Client]:
    """Yield a client of a new account, whose voices are deleted at the end."""
    with served.client(served.new_key()) as client:
        yield client
        for voice in client.get("/v1/voices").json():
            client.delete(f"/v1/voices/{voice['voice_id']}").raise_for_status()


def status(client: httpx.Client, voice_id: str) -> str:
    return str(client.get(f"/v1/voices/{voice_id}").json()["status"])


def wait_until_ready(client: httpx.Client, voice_id: str) -> None:
    wait_until(lambda: status(client, voice_id) == "ready", what="a prepared voice")


def wait_for_checkpoint(served: Served, voice_id: str) -> None:
    wait_until(
        lambda: any(path.startswith(f"voices/{voice_id}/prompts/") for path in list_blobs(served)), what="a checkpoint"
    )


def test_new_voice_is_prepared_in_the_background(client: httpx.Client, engine: Engine) -> None:
    voice_id = register(client, backend="slow")
    assert status(client, voice_id) == "preparing"
    assert [voice["status"] for voice in client.get("/v1/voices").json()] == ["preparing"]
    engine.wait_for_preparations(1)
    assert client.get("/v1/jobs").json() == []
    assert client.get("/v1/usage").json()["characters"] == 0
    engine.let_go()
    wait_until_ready(client, voice_id)
    job_id = submit_text(client, voice_id, "The first speech.")
    assert wait_for_job(client, job_id)["status"] == "ready"
    assert [job["job_id"] for job in client.get("/v1/jobs").json()] == [job_id]
    assert engine.steps() == [0]


def test_speech_joins_the_preparation(client: httpx.Client, engine: Engine) -> None:
    voice_id = register(client, backend="slow")
    engine.wait_for_preparations(1)
    job_id = submit_text(client, voice_id, "As soon as possible.")
    wait_until(lambda: client.get(f"/v1/jobs/{job_id}").json()["step"] == "preparing", what="the step of the job")
    engine.let_go()
    assert wait_for_job(client, job_id)["status"] == "ready"
    wait_until_ready(client, voice_id)
    assert engine.steps() == [0], "the job did not prepare the voice again"


def test_speech_goes_before_twenty_new_voices(client: httpx.Client, engine: Engine) -> None:
    voices = [register(client, name=f"voice {number}", backend="slow") for number in range(20)]
    job_id = submit_text(client, voices[-1], "Before the others.")
    wait_until(lambda: client.get(f"/v1/jobs/{job_id}").json()["step"] == "preparing", what="the step of the job")
    assert {status(client, voice_id) for voice_id in voices} == {"preparing"}
    other = register(client, name="other", backend="tone")
    assert wait_for_job(client, submit_text(client, other, "And a prepared one."))["status"] == "ready"
    engine.let_go()
    assert wait_for_job(client, job_id)["status"] == "ready"
    for voice_id in voices:
        wait_until_ready(client, voice_id)


def test_killed_process_continues_the_preparation(served: Served, client: httpx.Client, engine: Engine) -> None:
    voice_id = register(client, backend="slow")
    wait_for_checkpoint(served, voice_id)
    worker_process(served).kill()
    engine.wait_for_preparations(2)
    assert status(client, voice_id) == "preparing"
    engine.let_go()
    wait_until_ready(client, voice_id)
    assert engine.steps()[1] > 0


def test_deleted_voice_is_not_prepared_on(served: Served, client: httpx.Client, engine: Engine) -> None:
    voice_id = register(client, backend="slow")
    wait_for_checkpoint(served, voice_id)
    assert client.delete(f"/v1/voices/{voice_id}").status_code == 204
    other = register(client, name="other", backend="slow")
    engine.wait_for_preparations(2)
    engine.let_go()
    wait_until_ready(client, other)
    assert not any(voice_id in path for path in list_blobs(served))


def test_changed_transcript_is_prepared_again(client: httpx.Client, engine: Engine) -> None:
    engine.let_go()
    voice_id = register(client, backend="slow")
    wait_until_ready(client, voice_id)
    engine.hold()
    assert client.patch(f"/v1/voices/{voice_id}", json={"name": "renamed"}).json()["status"] == "ready"
    changed = client.patch(f"/v1/voices/{voice_id}", json={"ref_text": "Another transcript."})
    assert changed.json()["status"] == "preparing"
    engine.wait_for_preparations(1)
    engine.let_go()
    wait_until_ready(client, voice_id)
    job_id = submit_text(client, voice_id, "With the new transcript.")
    assert wait_for_job(client, job_id)["status"] == "ready"
    assert len(engine.steps()) == 1


def test_changed_backend_is_prepared_if_it_has_no_prompt(client: httpx.Client, engine: Engine) -> None:
    voice_id = register(client, backend="tone")
    wait_until_ready(client, voice_id)
    assert client.patch(f"/v1/voices/{voice_id}", json={"backend": "slow"}).json()["status"] == "preparing"
    assert client.patch(f"/v1/voices/{voice_id}", json={"backend": "tone"}).json()["status"] == "ready"


def test_imported_voice_with_a_prompt_is_ready(client: httpx.Client, engine: Engine) -> None:
    engine.let_go()
    voice_id = register(client, backend="slow")
    wait_until_ready(client, voice_id)
    engine.hold()
    for prompts, expected in (("true", "ready"), ("false", "preparing")):
        bundle = client.get(f"/v1/voices/{voice_id}/export", params={"prompts": prompts}).content
        imported = client.post("/v1/voices/import", content=bundle).json()["voice_id"]
        assert status(client, imported) == expected


def test_commands_show_that_a_voice_is_prepared(
    tmp_path: Path, served: Served, client: httpx.Client, engine: Engine
) -> None:
    bundle = tmp_path / "me.afterwords"
    voice_id = register(client, backend="slow")
    bundle.write_bytes(client.get(f"/v1/voices/{voice_id}/export").content)
    client.delete(f"/v1/voices/{voice_id}").raise_for_status()
    env = {
        "AFTERWORDS_HOME": str(tmp_path / "home"),
        "AFTERWORDS_BASE_URL": served.url,
        "AFTERWORDS_API_KEY": client.headers["Authorization"].removeprefix("Bearer "),
    }
    assert run("voices", "import", bundle, env=env).code == 0
    pushed = run("push", "me", env=env)
    assert pushed.code == 0, pushed.err
    assert "The server is preparing the voice" in pushed.err
    assert "preparing" in run("voices", "--remote", env=env).out
    assert '"status": "preparing"' in run("voices", "show", "me", "--remote", "--json", env=env).out
    assert "status" not in (next((tmp_path / "home" / "voices").glob("*/voice.json"))).read_text()


def test_remote_worker_prepares_voices(tmp_path: Path, site: str) -> None:
    engine = Engine(tmp_path / "worker")
    engine.home.mkdir()
    with open_world(tmp_path, AFTERWORDS_BACKENDS="slow", PYTHONPATH=site) as world:
        assert status(world.client, world.voice_id) == "preparing"
        with world.served.client(world.token) as old:
            body = claim_body(offers={"slow": {"languages": ["en"], "prompt_version": "1"}}, backends=["slow"])
            assert old.post("/v1/workers/claim", json=body).json() == {"job": None}
        first = world.start_worker(AFTERWORDS_BACKENDS="slow", PYTHONPATH=site)
        wait_for_checkpoint(world.served, world.voice_id)
        job_id = world.submit("A speech that waits for the voice.")
        world.wait_for_step(job_id, "preparing")
        first.stop(signal.SIGKILL)
        world.start_worker(AFTERWORDS_BACKENDS="slow", PYTHONPATH=site)
        engine.wait_for_preparations(2)
        engine.let_go()
        assert world.wait_for(job_id) == "ready"
        wait_until_ready(world.client, world.voice_id)
        assert engine.steps()[1] > 0
        other = register(world.client, name="other")
        wait_until_ready(world.client, other)
        assert [job["job_id"] for job in world.client.get("/v1/jobs").json()] == [job_id]
