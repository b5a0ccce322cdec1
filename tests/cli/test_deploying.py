"""`afterwords deploy`: the programs that it writes; tests/testing/test_calls.py runs them."""

from __future__ import annotations

from pathlib import Path

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
