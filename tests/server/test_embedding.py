"""The server as a part of somebody else's program."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from afterwords.errors import InvalidOptionError
from afterwords.riff import canonical_wav, read_wav
from afterwords.server import Settings, create_app, load_settings, router
from tests.e2e.served import ADMIN_SECRET, register, until
from tests.test_riff import RATE, tone

WAV: Final = canonical_wav(tone(5), RATE)
NOBODY: Final = "00000000-0000-4000-8000-000000000000"


class Program:
    """Somebody's program on a port of its own, served by a thread."""

    def __init__(self, app: FastAPI, prefix: str = "") -> None:
        config = uvicorn.Config(app, port=0, log_config=None, lifespan="on", timeout_graceful_shutdown=5)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)
        self._prefix = prefix
        self.url = ""

    def __enter__(self) -> Program:
        self._thread.start()
        until(lambda: self._server.started or not self._thread.is_alive(), what="the start")
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}{self._prefix}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()

    def client(self, secret: str = ADMIN_SECRET) -> httpx.Client:
        headers = {"Authorization": f"Bearer {secret}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home", backends="tone", admin_secret=ADMIN_SECRET)


@pytest.fixture
def theirs(settings: Settings) -> Iterator[Program]:
    """A program with a lifespan, a route and an error handler of its own, and ours below /voice."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"of_theirs": "kept"}

    app = FastAPI(lifespan=lifespan)

    @app.get("/theirs")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    app.include_router(router(settings), prefix="/voice")
    with Program(app, "/voice") as program:
        yield program


def speak_as_a_new_user(program: Program) -> httpx.Response:
    with program.client() as admin:
        key = admin.post("/v1/keys").json()["api_key"]
    with program.client(key) as user:
        ask = {"voice_id": register(user, wav=WAV), "text": "From within another program."}
        return user.post("/v1/synthesize", json=ask, headers={"Prefer": "wait=30"})


def test_below_a_prefix_it_speaks(theirs: Program) -> None:
    answer = speak_as_a_new_user(theirs)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/wav")
    assert len(read_wav(answer.content)[0]) > 0


def test_their_routes_and_ours_stand_beside_each_other(theirs: Program) -> None:
    root = theirs.url.removesuffix("/voice")
    assert httpx.get(f"{root}/theirs").json() == {"hello": "world"}
    assert httpx.get(f"{theirs.url}/v1/health").json()["backends"] == ["tone"]
    assert httpx.get(f"{root}/v1/health").status_code == 404
    assert httpx.get(f"{root}/theirs", headers={"Host": "theirs.example"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status", "code"),
    [
        ("GET", "/v1/voices", {}, b"", 401, "unauthorized"),
        ("POST", "/v1/synthesize", {}, bytes(200_000), 401, "unauthorized"),
        ("PUT", "/v1/keys", {}, b"", 405, "method_not_allowed"),
        ("GET", "/v1/health", {"Host": "evil.example"}, b"", 400, "invalid_host"),
        ("DELETE", f"/v1/keys/{NOBODY}", {"Authorization": f"Bearer {ADMIN_SECRET}"}, b"", 404, "key_not_found"),
        (
            "POST",
            "/v1/keys",
            {"Authorization": f"Bearer {ADMIN_SECRET}", "Content-Type": "application/json"},
            b"[" * 1000,
            400,
            "invalid_json",
        ),
    ],
)
def test_its_errors_have_its_shape_there_too(
    theirs: Program, method: str, path: str, headers: dict[str, str], content: bytes, status: int, code: str
) -> None:
    answer = httpx.request(method, theirs.url + path, headers=headers, content=content)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert set(error) == {"code", "message", "type", "param", "request_id"}
    assert answer.headers["x-request-id"] == error["request_id"]
    assert answer.headers.get("allow", "GET, HEAD, POST") == "GET, HEAD, POST"


def test_its_lifespan_opens_and_closes_it(settings: Settings) -> None:
    app = FastAPI()
    app.include_router(router(settings))
    assert not settings.folder.exists()
    with Program(app) as program:
        assert (settings.folder / "afterwords.db").is_file()
        until(lambda: httpx.get(f"{program.url}/readyz").status_code == 200, what="readiness")
    assert not (settings.folder / "afterwords.db-wal").exists()


def test_two_in_one_program_keep_apart(tmp_path: Path) -> None:
    app = FastAPI()
    with contextlib.ExitStack() as stack:
        programs = [
            stack.enter_context(Program(create_app(load_settings(home=tmp_path / name, **common()))))
            for name in ("a", "b")
        ]
        with programs[0].client() as admin:
            key = admin.post("/v1/keys").json()["api_key"]
        statuses = []
        for program in programs:
            with program.client(key) as user:
                statuses.append(user.get("/v1/voices").status_code)
    assert app.routes
    assert statuses == [200, 401]


def common() -> dict[str, object]:
    return {"backends": "tone", "workers": 0, "admin_secret": ADMIN_SECRET}


def test_the_whole_program_can_be_mounted_as_it_is(settings: Settings) -> None:
    with Program(create_app(settings)) as program:
        assert httpx.get(f"{program.url}/openapi.json").json()["info"]["title"] == "afterwords"
        assert speak_as_a_new_user(program).status_code == 200


def test_making_an_app_reads_and_writes_nothing(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("AFTERWORDS_PORT", "nonsense")
    app = create_app()
    router()
    assert not home.exists()
    with pytest.raises(InvalidOptionError, match="AFTERWORDS_PORT"):
        load_settings()
    assert app.openapi()["info"]["title"] == "afterwords"


def test_its_log_is_theirs_to_place(theirs: Program, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "afterwords.server"):
        httpx.get(f"{theirs.url}/v1/voices?after=secret")
        lines = until(lambda: [line for line in caplog.messages if "/v1/voices" in line], what="the line")
    assert len(lines) == 1
    assert lines[0].startswith("GET ")
    assert "secret" not in lines[0]
