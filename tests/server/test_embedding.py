"""The server inside an application of the user: included, mounted, extended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal

import httpx
import pytest
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware

from afterwords.audio.wav import canonical_wav, read_wav
from afterwords.errors import AfterwordsError, InvalidOptionError, ServerSetupError
from afterwords.server import Settings, create_app, load_settings, router
from afterwords.server.auth import Credential
from afterwords.server.routing import ApiRoute
from afterwords.server.services.signing import worker_token
from tests.audio.test_wav import RATE, tone
from tests.cli.program import run
from tests.e2e.served import ADMIN_SECRET, register, wait_until

WAV: Final = canonical_wav(tone(5), RATE)
UNKNOWN_ID: Final = "00000000-0000-4000-8000-000000000000"


class RunningApp:
    """An application that a thread serves on a free port."""

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
        self.address = ("", 0)

    def __enter__(self) -> RunningApp:
        self._thread.start()
        wait_until(lambda: self._server.started or not self._thread.is_alive(), what="the start")
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.address = ("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{port}{self._prefix}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()

    def client(self, secret: str = ADMIN_SECRET) -> httpx.Client:
        headers = {"Authorization": f"Bearer {secret}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, verify=False)


def common() -> dict[str, object]:
    return {"backends": "tone", "workers": 0, "admin_secret": ADMIN_SECRET}


@pytest.fixture
def silent(tmp_path: Path) -> Settings:
    """Return the settings of a server without workers."""
    return load_settings(home=tmp_path / "home", **common())


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home", backends="tone", admin_secret=ADMIN_SECRET)


@pytest.fixture
def embedded(settings: Settings) -> Iterator[RunningApp]:
    """Return an application with a lifespan and a route of its own, which includes the router below /voice."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"of_theirs": "kept"}

    app = FastAPI(lifespan=lifespan)

    @app.get("/theirs")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    app.include_router(router(settings), prefix="/voice")
    with RunningApp(app, "/voice") as running:
        yield running


def speak_as_new_user(running: RunningApp) -> httpx.Response:
    with running.client() as admin:
        key = admin.post("/v1/keys").json()["api_key"]
    with running.client(key) as user:
        ask = {"voice_id": register(user, wav=WAV), "text": "From within another running."}
        return user.post("/v1/synthesize", json=ask, headers={"Prefer": "wait=30"})


def test_included_router_speaks_below_a_prefix(embedded: RunningApp) -> None:
    answer = speak_as_new_user(embedded)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/wav")
    assert len(read_wav(answer.content)[0]) > 0


def test_routes_of_the_application_are_unchanged(embedded: RunningApp) -> None:
    root = embedded.url.removesuffix("/voice")
    assert httpx.get(f"{root}/theirs").json() == {"hello": "world"}
    assert httpx.get(f"{embedded.url}/v1/health").json()["backends"] == ["tone"]
    assert httpx.get(f"{root}/v1/health").status_code == 404
    assert httpx.get(f"{root}/theirs", headers={"Host": "theirs.example"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status", "code"),
    [
        ("GET", "/v1/voices", {}, b"", 401, "unauthorized"),
        ("POST", "/v1/synthesize", {}, bytes(200_000), 401, "unauthorized"),
        ("PUT", "/v1/keys", {}, b"", 405, "method_not_allowed"),
        ("GET", "/v1/health", {"Host": "evil.example"}, b"", 400, "invalid_host"),
        ("DELETE", f"/v1/keys/{UNKNOWN_ID}", {"Authorization": f"Bearer {ADMIN_SECRET}"}, b"", 404, "key_not_found"),
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
def test_embedded_errors_have_the_shape_of_the_api(
    embedded: RunningApp, method: str, path: str, headers: dict[str, str], content: bytes, status: int, code: str
) -> None:
    answer = httpx.request(method, embedded.url + path, headers=headers, content=content)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert set(error) == {"code", "message", "type", "param", "request_id"}
    assert answer.headers["x-request-id"] == error["request_id"]
    assert answer.headers.get("allow", "GET, HEAD, POST") == "GET, HEAD, POST"


def test_lifespan_opens_and_closes_the_server(settings: Settings) -> None:
    app = FastAPI()
    app.include_router(router(settings))
    assert not settings.folder.exists()
    with RunningApp(app) as running:
        assert (settings.folder / "afterwords.db").is_file()
        wait_until(lambda: httpx.get(f"{running.url}/readyz", verify=False).status_code == 200, what="readiness")
    assert not (settings.folder / "afterwords.db-wal").exists()


def test_two_apps_in_one_process_are_separate(tmp_path: Path) -> None:
    app = FastAPI()
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(RunningApp(create_app(load_settings(home=tmp_path / name, **common()))))
            for name in ("a", "b")
        ]
        with servers[0].client() as admin:
            key = admin.post("/v1/keys").json()["api_key"]
        statuses = []
        for running in servers:
            with running.client(key) as user:
                statuses.append(user.get("/v1/voices").status_code)
    assert app.routes
    assert statuses == [200, 401]


def test_create_app_serves_by_itself(settings: Settings) -> None:
    with RunningApp(create_app(settings)) as running:
        assert httpx.get(f"{running.url}/openapi.json").json()["info"]["title"] == "afterwords"
        assert speak_as_new_user(running).status_code == 200


def test_create_app_reads_and_writes_nothing(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("AFTERWORDS_PORT", "nonsense")
    app = create_app()
    router()
    assert not home.exists()
    with pytest.raises(InvalidOptionError, match="AFTERWORDS_PORT"):
        load_settings()
    assert app.openapi()["info"]["title"] == "afterwords"


def test_request_log_goes_to_the_logger(embedded: RunningApp, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "afterwords.server"):
        httpx.get(f"{embedded.url}/v1/voices?after=secret")
        lines = wait_until(lambda: [line for line in caplog.messages if "/v1/voices" in line], what="the line")
    assert len(lines) == 1
    assert lines[0].startswith("GET ")
    assert "secret" not in lines[0]


# -- what the application declares ------------------------------------------------------------------------------

REQUIREMENTS: Final = {
    (method, route.path): route.requirements
    for route in create_app().routes
    if isinstance(route, ApiRoute) and route.path != "/openapi.json"
    for method in route.methods or ()
}
WORKER_SECRET: Final = "a-callback-secret-that-workers-share"


class Guard:
    """A dependency of the application, with the paths of the requests that it has seen to their end."""

    def __init__(self) -> None:
        self.finished: list[str] = []

    async def check(self, request: Request, x_pass: str = Header(default="")) -> AsyncIterator[None]:
        if x_pass != "good":
            raise HTTPException(403, "no pass")
        yield
        self.finished.append(request.url.path)


@pytest.mark.parametrize("where", ["application", "include_router"])
def test_dependencies_run_on_every_route(tmp_path: Path, where: str) -> None:
    guard = Guard()
    dependencies = [Depends(guard.check)]
    app = FastAPI(dependencies=dependencies if where == "application" else [])
    settings = load_settings(home=tmp_path / "home", **common(), callback_secret=WORKER_SECRET)
    app.include_router(
        router(settings), prefix="/voice", dependencies=dependencies if where == "include_router" else []
    )
    with RunningApp(app, "/voice") as running, running.client() as client:
        client.headers["X-Pass"] = "good"
        key = client.post("/v1/keys", json={"label": "mine"}).json()["api_key"]
        wait_until(lambda: guard.finished == ["/voice/v1/keys"], what="the end of the dependency, after the response")
        assert client.post("/v1/account/sign-in", data={"key": key}).status_code == 303  # the client keeps the cookie
        del client.headers["X-Pass"]
        create = run("workers", "token", "create", env={"AFTERWORDS_HOME": str(settings.home)})
        with contextlib.closing(sqlite3.connect(settings.folder / "afterwords.db")) as rows:
            [secret] = rows.execute("SELECT secret FROM server").fetchone()
        secrets = {
            Credential.ADMIN: ADMIN_SECRET,
            Credential.LOCAL_OR_ADMIN: ADMIN_SECRET,
            Credential.METRICS: ADMIN_SECRET,
            Credential.WORKER: WORKER_SECRET,
            Credential.ATTEMPT: worker_token(secret, UNKNOWN_ID, 1),
            Credential.WORKER_TOKEN: create.out.strip(),
        }
        failures = []
        for (method, path), requirements in REQUIREMENTS.items():
            client.headers["Authorization"] = f"Bearer {secrets.get(requirements.credential, key)}"
            url = re.sub(r"{\w+}", UNKNOWN_ID, path)
            for sent in (method, "HEAD") if method == "GET" else (method,):
                response = client.request(sent, url)
                if response.status_code != 403 or (sent != "HEAD" and response.json() != {"detail": "no pass"}):
                    failures.append((sent, path, response.status_code, response.text))
        assert not failures
        assert client.put("/v1/keys").headers["allow"] == "GET, HEAD, POST"


def test_sync_dependencies_and_nested_routers_work(silent: Settings) -> None:
    seen: list[str] = []

    def note(request: Request) -> None:
        seen.append(request.url.path)

    outer = APIRouter(prefix="/outer", dependencies=[Depends(note)])
    outer.include_router(router(silent), prefix="/inner")
    app = FastAPI()
    app.include_router(outer, prefix="/app")
    with RunningApp(app, "/app/outer/inner") as running:
        assert httpx.get(f"{running.url}/v1/health").json()["status"] == "ok"
    assert seen == ["/app/outer/inner/v1/health"]


def test_overrides_and_exception_handlers_work(silent: Settings) -> None:
    def deny() -> None:
        raise PermissionError

    app = FastAPI()

    @app.exception_handler(PermissionError)
    async def handle(request: Request, error: PermissionError) -> Response:
        return JSONResponse({"their": "shape"}, 418)

    app.include_router(router(silent), dependencies=[Depends(deny)])
    with RunningApp(app) as running:
        assert httpx.get(f"{running.url}/v1/health").status_code == 418
        app.dependency_overrides[deny] = lambda: None
        assert httpx.get(f"{running.url}/v1/health").json()["status"] == "ok"


@pytest.mark.parametrize("how", ["router", "create_app"])
def test_exception_handler_receives_errors_of_the_api(silent: Settings, how: str) -> None:
    app = FastAPI() if how == "router" else create_app(silent)

    @app.exception_handler(AfterwordsError)
    async def handle(request: Request, error: AfterwordsError) -> Response:
        return JSONResponse({"their": error.code}, error.http_status)

    if how == "router":
        app.include_router(router(silent))
    with RunningApp(app) as running, running.client() as admin:
        for method, path, body, expected in [
            ("GET", "/v1/voices", None, (401, {"their": "unauthorized"})),
            ("DELETE", f"/v1/keys/{UNKNOWN_ID}", None, (404, {"their": "key_not_found"})),
            ("POST", "/v1/keys", {"label": 7}, (422, {"their": "invalid_field"})),
        ]:
            response = admin.request(method, path, json=body)
            assert (response.status_code, response.json()) == expected


def test_unhandled_exception_of_a_dependency_is_the_applications(silent: Settings) -> None:
    def fail() -> None:
        raise LookupError

    app = FastAPI()

    @app.exception_handler(Exception)
    async def handle(request: Request, error: Exception) -> Response:
        return JSONResponse({"their": type(error).__name__}, 500)

    app.include_router(router(silent), dependencies=[Depends(fail)])
    with RunningApp(app) as running:
        response = httpx.get(f"{running.url}/v1/health")
    assert (response.status_code, response.json()) == (500, {"their": "LookupError"})


def test_yield_dependency_sees_errors_of_the_api(silent: Settings) -> None:
    seen: list[str] = []

    async def transaction() -> AsyncIterator[None]:
        try:
            yield
        except AfterwordsError as error:
            seen.append(error.code)
            raise

    app = FastAPI(dependencies=[Depends(transaction)])
    app.include_router(router(silent))
    with RunningApp(app) as running, running.client() as admin:
        assert admin.delete(f"/v1/keys/{UNKNOWN_ID}").json()["error"]["code"] == "key_not_found"
    assert seen == ["key_not_found"]


def test_dependency_may_read_the_body_within_its_limit(silent: Settings) -> None:
    seen: list[bytes] = []

    async def read(request: Request) -> None:
        seen.append(await request.body())

    app = FastAPI(dependencies=[Depends(read)])
    app.include_router(router(silent))
    with RunningApp(app) as running, running.client() as admin:
        key = admin.post("/v1/keys", json={"label": "seen"}).json()["api_key"]
        too_large = admin.post("/v1/keys", content=iter([bytes(200_000)]))
        assert too_large.json()["error"]["code"] == "request_too_large"
        with running.client(key) as user:
            assert register(user, wav=WAV)  # the form is read by the dependency, then by the endpoint
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("secret", "path", "n_bytes", "status"),
    [
        ("wrong", "/v1/voices", 1000, 401),
        ("wrong", "/v1/keys", 1000, 401),
        (ADMIN_SECRET, "/v1/keys", 10**9, 413),
    ],
)
def test_embedded_route_refuses_before_it_reads_the_body(
    silent: Settings, secret: str, path: str, n_bytes: int, status: int
) -> None:
    seen: list[str] = []
    app = FastAPI(dependencies=[Depends(lambda: seen.append("called"))])
    app.include_router(router(silent))
    with RunningApp(app) as running, socket.create_connection(running.address, timeout=120) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secret}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {n_bytes}\r\n\r\n".encode())
        assert connection.recv(4096).startswith(f"HTTP/1.1 {status} ".encode())
    assert not seen


def test_middleware_of_the_application_runs(silent: Settings) -> None:
    app = create_app(silent)

    @app.middleware("http")
    async def check(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return await call_next(request) if request.headers.get("x-pass") else Response(status_code=403)

    with RunningApp(app) as running:
        assert httpx.get(f"{running.url}/v1/health").status_code == 403
        assert httpx.get(f"{running.url}/v1/health", headers={"X-Pass": "good"}).status_code == 200


def test_routes_added_to_create_app_keep_their_errors(silent: Settings) -> None:
    app = create_app(silent)

    @app.get("/theirs")
    def refuse() -> None:
        raise HTTPException(402, "theirs")

    with RunningApp(app) as running:
        assert httpx.get(f"{running.url}/theirs").json() == {"detail": "theirs"}
        assert httpx.get(f"{running.url}/v1/nothing").json()["error"]["code"] == "not_found"


# -- prefixes, mounts and lifespans --------------------------------------------------------------


def test_links_include_the_prefix(embedded: RunningApp) -> None:
    with embedded.client() as admin:
        key = admin.post("/v1/keys").json()["api_key"]
    with embedded.client(key) as user:
        ask = {"voice_id": register(user, wav=WAV), "text": "A link.", "speed": 1.5}
        job_id = user.post("/v1/synthesize", json=ask).json()["job_id"]
        job = user.get(f"/v1/jobs/{job_id}", params={"wait": 30}).json()
        assert httpx.URL(job["audio_url"]).path == f"/voice/v1/jobs/{job_id}/audio"
        assert user.get(f"/v1/jobs/{job_id.upper()}").json()["audio_url"] == job["audio_url"]
        assert "/voice/v1/voices?" in user.get("/v1/voices?limit=1").headers["link"]


def test_two_routers_in_one_app_are_separate(tmp_path: Path) -> None:
    app, both = FastAPI(), {}
    for name in ("a", "b"):
        app.include_router(router(load_settings(home=tmp_path / name, **common())), prefix=f"/{name}")
    with RunningApp(app) as running:
        for name in ("a", "b"):
            answer = httpx.post(f"{running.url}/{name}/v1/keys", headers={"Authorization": f"Bearer {ADMIN_SECRET}"})
            both[name] = answer.json()["api_key"]
        statuses = {
            (key, name): httpx.get(
                f"{running.url}/{name}/v1/voices", headers={"Authorization": f"Bearer {both[key]}"}
            ).status_code
            for key in both
            for name in both
        }
    assert statuses == {("a", "a"): 200, ("a", "b"): 401, ("b", "a"): 401, ("b", "b"): 200}


def test_router_included_twice_fails_at_start(silent: Settings) -> None:
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
def test_unopened_server_returns_503(silent: Settings, how: str, caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    if how == "mounted":
        app.mount("/voice", create_app(silent))
    else:
        app.include_router(router(silent), prefix="/voice")
    with RunningApp(app, "/voice", lifespan="on" if how == "mounted" else "off") as running:
        answer = httpx.get(f"{running.url}/v1/health")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_opened")
    assert "lifespan" in " ".join(caplog.messages)


def test_mounted_app_works_with_its_lifespan_and_root_path(settings: Settings) -> None:
    inner = create_app(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with inner.router.lifespan_context(inner):
            yield

    app = FastAPI(lifespan=lifespan)
    app.mount("/voice", inner)
    with RunningApp(app, "/voice", root_path="/outside") as running:
        answer = speak_as_new_user(running)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/wav")


def test_cors_of_the_application_covers_the_router(silent: Settings) -> None:
    app = FastAPI()
    app.include_router(router(silent))
    app.add_middleware(CORSMiddleware, allow_origins=["https://app.example"], allow_headers=["Authorization"])
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}
    with RunningApp(app) as running:
        preflight = httpx.options(f"{running.url}/v1/voices", headers=asked)
        refused = httpx.get(f"{running.url}/v1/voices", headers=asked)
    assert (preflight.status_code, refused.status_code) == (200, 401)
    for answer in (preflight, refused):
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
