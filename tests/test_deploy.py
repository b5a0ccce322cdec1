"""The files of deploy/: they name real settings, commands, extras and files, and their programs accept them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from afterwords.config import ENVIRONMENT_SETTINGS, SETTINGS
from afterwords.server import load_settings
from afterwords.server.blobs import open_blobs
from tests.cli.program import run

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
UNITS = sorted(DEPLOY.glob("systemd/*.service"))


def check(*command: str | Path) -> None:
    """Run a program that checks a file; skip the test where the program is missing."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def commands() -> list[list[str]]:
    """Return the arguments of `afterwords` in all files."""
    image = yaml.safe_load(re.findall(r"^CMD (.*)$", DOCKERFILE, re.M)[-1])
    units = [shlex.split(re.findall(r"bin/afterwords (.*)'$", unit.read_text("utf-8"), re.M)[0]) for unit in UNITS]
    return [image, SERVICES["worker"]["command"], *units]


def test_every_variable_is_a_setting() -> None:
    known = {f"AFTERWORDS_{name.upper()}" for name in SETTINGS | ENVIRONMENT_SETTINGS}
    files = [path for path in (*DEPLOY.rglob("*"), ROOT / "docs" / "deploy.md") if path.is_file()]
    named = {name for path in files for name in re.findall(r"\bAFTERWORDS_[A-Z_]+", path.read_text("utf-8"))}
    assert len(named) >= 10
    assert named - known == set()


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_is_one_of_ours(arguments: list[str]) -> None:
    done = run(*arguments, "--help", env={"AFTERWORDS_BASE_URL": "https://voices.example.com"})
    assert (done.code, done.err) == (0, "")


# -- image ----------------------------------------------------------------------------------------------------


def test_extras_of_the_image_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = {name for names in re.findall(r"EXTRAS=([\w,]+)", DOCKERFILE) for name in names.split(",")}
    assert {"server", "postgres", "lite", "cuda"} == named <= extras.keys()


# -- compose --------------------------------------------------------------------------------------------------


def interpolated(service: str) -> dict[str, str]:
    """Return the environment of a service, with a secret for each variable."""
    environment = SERVICES[service]["environment"]
    return {name: re.sub(r"\$\{\w+(:\?|-)\}", "0123456789abcdef" * 4, value) for name, value in environment.items()}


def test_compose_environment_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**interpolated("api"), "AFTERWORDS_PUBLIC_URL": "https://voices.example.com"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(host="0.0.0.0")
    settings.check_is_safe()
    assert settings.storage_url is not None
    open_blobs(settings.storage_url)
    worker = SERVICES["worker"]["command"]
    assert re.fullmatch("http://(.*):7860", worker[worker.index("--server") + 1])[1] in settings.allowed_hosts  # type: ignore[index]


def test_compose_creates_the_bucket_of_the_server() -> None:
    url, options = SERVICES["api"]["environment"]["AFTERWORDS_STORAGE_URL"].split("?")
    endpoint = re.findall("endpoint=([^&]+)", options)[0]
    assert SERVICES["bucket"]["command"][-1] == f"{endpoint}/{url.removeprefix('s3://')}"
    assert SERVICES["bucket"]["command"][-3].startswith("--user=afterwords:${STORAGE_SECRET")


def test_compose_refers_to_what_it_declares() -> None:
    for service in SERVICES.values():
        assert set(service.get("depends_on", ())) <= SERVICES.keys()
        named = {volume.partition(":")[0] for volume in service.get("volumes", ()) if ":" in volume}
        assert named <= COMPOSE["volumes"].keys()
        assert {config["source"] for config in service.get("configs", ())} <= COMPOSE["configs"].keys()
    assert (DEPLOY / SERVICES["api"]["build"]["context"] / SERVICES["api"]["build"]["dockerfile"]).is_file()


# -- programs that read the files -----------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_the_unit_as_hardened(unit: Path) -> None:
    check("systemd-analyze", "verify", unit)
    check("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", unit)


def test_nginx_accepts_its_configuration(tmp_path: Path) -> None:
    text = (DEPLOY / "nginx.conf").read_text("utf-8")
    certificate = trustme.CA().issue_cert("voices.example.com")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "fullchain.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "privkey.pem")
    (tmp_path / "site.conf").write_text(text.replace("/etc/letsencrypt/live/voices.example.com", str(tmp_path)))
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in kinds)
    main = tmp_path / "nginx.conf"
    main.write_text(
        f"pid {tmp_path}/pid; events {{}} http {{ access_log off; {folders} include {tmp_path}/site.conf; }}"
    )
    check("nginx", "-t", "-e", "stderr", "-c", main)


def test_caddy_accepts_its_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    check("caddy", "validate", "--adapter", "caddyfile", "--config", DEPLOY / "Caddyfile")
