"""`afterwords deploy`: the programs that it writes; tests/testing/test_calls.py runs them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from afterwords import __version__
from tests.cli.program import run


def test_app_has_the_options_of_the_command(tmp_path: Path) -> None:
    out = tmp_path / "app.py"
    options = ["--gpu", "H100", "--region", "eu", "--scaledown", "30", "--package", "dist/a.whl[server,cuda]"]
    done = run("deploy", "modal", "--write-only", "--out", str(out), *options)
    assert done.out == 'AFTERWORDS_DISPATCHERS="qwen3-1.7b=modal" afterwords serve\n'
    lines = out.read_text("utf-8").splitlines()
    assert {'BACKEND = "qwen3-1.7b"', 'GPU: str | None = "H100"', 'REGION: str | None = "eu"'} <= set(lines)
    assert 'PACKAGE = "dist/a.whl[server,cuda]"  # a requirement, or the path of a wheel' in lines
    assert "SCALEDOWN_S = 30  # how long an idle container waits for another job, and costs" in lines
    again = run("deploy", "modal", "--write-only", "--out", str(out))
    assert again.code == 2
    assert "exists already" in again.err


def test_handler_and_image_are_written(tmp_path: Path) -> None:
    done = run("deploy", "runpod", "--backend", "lite", "--out", str(tmp_path / "lite"))
    assert done.code == 0, done.err
    assert 'BACKEND = "lite"' in (tmp_path / "lite" / "handler.py").read_text("utf-8")
    image = (tmp_path / "lite" / "Dockerfile").read_text("utf-8")
    assert f'RUN pip install --no-cache-dir "afterwords[server,lite,runpod]=={__version__}"\n' in image


def test_unknown_backend_is_refused(tmp_path: Path) -> None:
    done = run("deploy", "modal", "--backend", "other", "--out", str(tmp_path / "app.py"))
    assert "qwen3-1.7b" in done.expect_error(5, "invalid_option")
    assert not list(tmp_path.iterdir())


def test_download_of_weights_is_a_command(tmp_path: Path) -> None:
    app, folder = tmp_path / "app.py", tmp_path / "runpod"
    done = run("deploy", "modal", "--write-only", "--out", app)
    assert f"Next: modal run {app}::download, then modal deploy {app}, then on the server:" in " ".join(
        done.err.split()
    )
    assert run("deploy", "runpod", "--out", folder).code == 0
    in_app = re.search(r'\["afterwords", "(\w+)", "(\w+)", BACKEND\]', app.read_text("utf-8"))
    in_image = re.search(r"(?m)^RUN afterwords (\w+) (\w+) qwen3-1.7b$", (folder / "Dockerfile").read_text("utf-8"))
    assert in_app
    assert in_image
    assert in_app.groups() == in_image.groups()
    assert run(*in_app.groups(), "--help").code == 0


def test_missing_client_is_named_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modal", None)
    run("deploy", "modal", "--out", tmp_path / "app.py").expect_error(1, "missing_extra")
    assert not list(tmp_path.iterdir())


def test_wheel_is_copied_into_the_image(tmp_path: Path) -> None:
    out, wheel = tmp_path / "image", tmp_path / "é-1-py3-none-any.whl"
    missing = run("deploy", "runpod", "--backend", "tone", "--out", out, "--package", f"{wheel}[server]")
    assert (missing.code, out.exists()) == (2, False)
    wheel.write_bytes(b"a wheel")
    done = run("deploy", "runpod", "--backend", "tone", "--out", out, "--package", f"{wheel}[server]")
    assert done.code == 0, done.err
    assert (out / wheel.name).read_bytes() == b"a wheel"
    image = (out / "Dockerfile").read_text("utf-8")
    assert f'COPY {wheel.name} /tmp/\nRUN pip install --no-cache-dir "/tmp/{wheel.name}[server]"\n' in image
    (out / "handler.py").unlink()
    again = run("deploy", "runpod", "--backend", "tone", "--out", out)
    assert "Dockerfile exists already" in again.err
    assert not (out / "handler.py").exists()
    app = tmp_path / "app.py"
    assert run("deploy", "modal", "--write-only", "--out", app, "--package", wheel).code == 0
    compile(app.read_text("utf-8"), app, "exec")
