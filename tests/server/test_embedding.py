"""The server as a part of somebody else's program."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal

import httpx
import pytest
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from afterwords.audio.wav import canonical_wav, read_wav
from afterwords.errors import InvalidOptionError, ServerSetupError
from afterwords.server import Settings, create_app, load_settings, router
from tests.audio.test_wav import RATE, tone
from tests.e2e.served import ADMIN_SECRET, register, until

WAV: Final = canonical_wav(tone(5), RATE)
NOBODY: Final = "00000000-0000-4000-8000-000000000000"


class Program:
    """Somebody's program on a port of its own, served by a thread."""

    def __init__(
        self, app: FastAPI, prefix: str = "", *, lifespan: Literal["on", "off"] = "on", root_path: str = ""
    ) -> None:
        config = uvicorn.Config(
            app, port=0, log_config=None, lifespan=lifespan, root_path=root_path, timeout_graceful_shutdown=5
        )
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


def common() -> dict[str, object]:
    return {"backends": "tone", "workers": 0, "admin_secret": ADMIN_SECRET}


@pytest.fixture
def silent(tmp_path: Path) -> Settings:
    """Settings of a server that accepts and does not speak."""
    return load_settings(home=tmp_path / "home", **common())


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


# -- an application with authentication of its own ---------------------------------------------------------------

ROUTES: Final = sorted(
    (method, route.path)
    for route in create_app().routes
    if isinstance(route, APIRoute) and route.path != "/openapi.json"
    for method in route.methods or ()
)


class Theirs:
    """What an application does for each request, and what it saw."""

    def __init__(self) -> None:
        self.left: list[str] = []

    async def check(self, request: Request, x_theirs: str = Header(default="")) -> AsyncIterator[None]:
        if x_theirs != "good":
            raise HTTPException(403, "theirs")
        yield
        self.left.append(request.url.path)


@pytest.mark.parametrize("where", ["application", "inclusion"])
def test_dependencies_of_the_application_hold(silent: Settings, where: str) -> None:
    theirs = Theirs()
    guarded = [Depends(theirs.check)]
    app = FastAPI(dependencies=guarded if where == "application" else [])
    app.include_router(router(silent), prefix="/voice", dependencies=guarded if where == "inclusion" else [])
    with Program(app, "/voice") as program, program.client() as admin:
        for path in {path for _, path in ROUTES}:
            for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"):
                answer = admin.request(method, path.format(voice_id=NOBODY, job_id=NOBODY, key_id=NOBODY))
                assert answer.status_code in ((403,) if (method, path) in ROUTES else (403, 405)), (method, path)
                assert answer.status_code == 405 or method == "HEAD" or answer.json() == {"detail": "theirs"}
        admin.headers["X-Theirs"] = "good"
        assert admin.post("/v1/keys", json={"label": "mine"}).status_code == 201
        until(lambda: theirs.left == ["/voice/v1/keys"], what="the end of the dependency, which comes after the answer")
        assert admin.get("/v1/usage").status_code == 401
        assert admin.put("/v1/keys").headers["allow"] == "GET, HEAD, POST"


def test_overrides_and_handlers_of_the_application_hold(silent: Settings) -> None:
    def denied() -> None:
        raise PermissionError

    app = FastAPI()

    @app.exception_handler(PermissionError)
    async def handle(request: Request, error: PermissionError) -> Response:
        return JSONResponse({"their": "shape"}, 418)

    app.include_router(router(silent), dependencies=[Depends(denied)])
    with Program(app) as program:
        assert httpx.get(f"{program.url}/v1/health").status_code == 418
        app.dependency_overrides[denied] = lambda: None
        assert httpx.get(f"{program.url}/v1/health").json()["status"] == "ok"


def test_a_dependency_may_read_the_body(silent: Settings) -> None:
    seen: list[bytes] = []

    async def read(request: Request) -> None:
        seen.append(await request.body())

    app = FastAPI(dependencies=[Depends(read)])
    app.include_router(router(silent))
    with Program(app) as program, program.client() as admin:
        assert admin.post("/v1/keys", json={"label": "seen"}).json()["label"] == "seen"
        assert admin.post("/v1/keys", content=bytes(200_000)).json()["error"]["code"] == "request_too_large"
    assert [len(body) for body in seen] == [16, 200_000]


def test_middleware_of_the_application_holds(silent: Settings) -> None:
    app = create_app(silent)

    @app.middleware("http")
    async def theirs(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return await call_next(request) if request.headers.get("x-theirs") else Response(status_code=403)

    with Program(app) as program:
        assert httpx.get(f"{program.url}/v1/health").status_code == 403
        assert httpx.get(f"{program.url}/v1/health", headers={"X-Theirs": "good"}).status_code == 200


def test_routes_added_to_the_whole_have_their_own_errors(silent: Settings) -> None:
    app = create_app(silent)

    @app.get("/theirs")
    def refuse() -> None:
        raise HTTPException(402, "theirs")

    with Program(app) as program:
        assert httpx.get(f"{program.url}/theirs").json() == {"detail": "theirs"}
        assert httpx.get(f"{program.url}/v1/nothing").json()["error"]["code"] == "not_found"


# -- where it is mounted, and whether it was opened --------------------------------------------------------------


def test_links_lead_below_the_prefix(theirs: Program) -> None:
    with theirs.client() as admin:
        key = admin.post("/v1/keys").json()["api_key"]
    with theirs.client(key) as user:
        ask = {"voice_id": register(user, wav=WAV), "text": "A link.", "speed": 1.5}
        job_id = user.post("/v1/synthesize", json=ask).json()["job_id"]
        job = user.get(f"/v1/jobs/{job_id}", params={"wait": 30}).json()
        assert httpx.URL(job["audio_url"]).path == f"/voice/v1/jobs/{job_id}/audio"
        assert user.get(f"/v1/jobs/{job_id.upper()}").json()["audio_url"] == job["audio_url"]
        assert "/voice/v1/voices?" in user.get("/v1/voices?limit=1").headers["link"]


def test_two_data_folders_in_one_program_keep_apart(tmp_path: Path) -> None:
    app, both = FastAPI(), {}
    for name in ("a", "b"):
        app.include_router(router(load_settings(home=tmp_path / name, **common())), prefix=f"/{name}")
    with Program(app) as program:
        for name in ("a", "b"):
            answer = httpx.post(f"{program.url}/{name}/v1/keys", headers={"Authorization": f"Bearer {ADMIN_SECRET}"})
            both[name] = answer.json()["api_key"]
        statuses = {
            (key, name): httpx.get(
                f"{program.url}/{name}/v1/voices", headers={"Authorization": f"Bearer {both[key]}"}
            ).status_code
            for key in both
            for name in both
        }
    assert statuses == {("a", "a"): 200, ("a", "b"): 401, ("b", "a"): 401, ("b", "b"): 200}


def test_a_router_that_is_included_twice_is_refused_at_start(silent: Settings) -> None:
    mine, app = router(silent), FastAPI()
    app.include_router(mine, prefix="/a")
    app.include_router(mine, prefix="/b")
    with pytest.raises(ServerSetupError, match="twice") as caught:
        asyncio.run(run_lifespan(app))
    assert "router(settings)" in caught.value.hint
    asyncio.run(run_lifespan(create_app(silent)))


async def run_lifespan(app: FastAPI) -> None:
    async with app.router.lifespan_context(app):
        pass


@pytest.mark.parametrize("how", ["no lifespan", "mounted"])
def test_a_server_that_was_not_opened_says_so(silent: Settings, how: str, caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    if how == "mounted":
        app.mount("/voice", create_app(silent))
    else:
        app.include_router(router(silent), prefix="/voice")
    with Program(app, "/voice", lifespan="on" if how == "mounted" else "off") as program:
        answer = httpx.get(f"{program.url}/v1/health")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_opened")
    assert "lifespan" in " ".join(caplog.messages)


def test_a_mounted_server_works_below_a_lifespan_that_opens_it(settings: Settings) -> None:
    inner = create_app(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with inner.router.lifespan_context(inner):
            yield

    app = FastAPI(lifespan=lifespan)
    app.mount("/voice", inner)
    with Program(app, "/voice", root_path="/outside") as program:
        answer = speak_as_a_new_user(program)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/wav")


def test_cors_of_the_program_around_it_covers_its_routes(silent: Settings) -> None:
    app = FastAPI()
    app.include_router(router(silent))
    app.add_middleware(CORSMiddleware, allow_origins=["https://app.example"], allow_headers=["Authorization"])
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}
    with Program(app) as program:
        preflight = httpx.options(f"{program.url}/v1/voices", headers=asked)
        refused = httpx.get(f"{program.url}/v1/voices", headers=asked)
    assert (preflight.status_code, refused.status_code) == (200, 401)
    for answer in (preflight, refused):
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
