"""Settings come from the environment, then from config.toml, then from defaults."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from afterwords.config import ENVIRONMENT_SETTINGS, SETTINGS, Config, load_config, unknown_variables
from afterwords.errors import FileError, InvalidInputError, InvalidOptionError
from afterwords.server.settings import Settings, load_settings
from tests.cli.program import run
from tests.error_codes import has_code

ROOT = Path(__file__).parents[1]


def load(home: Path, toml: str = "", **environ: str) -> Config:
    if toml:
        (home / "config.toml").write_text(toml, "utf-8")
    return load_config({"AFTERWORDS_HOME": str(home), **environ})


def test_no_settings_mean_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path) == Config(home=tmp_path)


def test_home_defaults_to_the_user_data_folder() -> None:
    from platformdirs import user_data_path

    assert load_config({}).home == user_data_path("afterwords", appauthor=False)


def test_home_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert load_config({"AFTERWORDS_HOME": "here"}).home == tmp_path / "here"
    assert load_config({"AFTERWORDS_HOME": "~/voices"}).home == tmp_path / "user" / "voices"


def test_loading_creates_no_folder(tmp_path: Path) -> None:
    load(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_process_environment_is_read_on_each_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AFTERWORDS_HOME", str(tmp_path))
    monkeypatch.setenv("AFTERWORDS_WHISPER", "small")
    assert load_config().whisper == "small"


def test_environment_wins_over_the_file(tmp_path: Path) -> None:
    toml = 'backends = ["lite", "tone"]\nwhisper = "base"\nkokoro_onnx = "/models/kokoro.onnx"\n'
    config = load(tmp_path, toml, AFTERWORDS_WHISPER="small")
    assert config.backends == ("lite", "tone")
    assert config.whisper == "small"
    assert config.kokoro_onnx == Path("/models/kokoro.onnx")


@pytest.mark.parametrize(
    ("value", "backends"),
    [("lite", ("lite",)), (" lite , tone ,", ("lite", "tone")), ("", None)],
)
def test_backends_are_separated_by_commas(tmp_path: Path, value: str, backends: tuple[str, ...] | None) -> None:
    assert load(tmp_path, AFTERWORDS_BACKENDS=value).backends == backends


@pytest.mark.parametrize(("value", "is_testing"), [("1", True), ("0", False), ("true", False), ("", False)])
def test_testing_is_enabled_only_by_1(tmp_path: Path, value: str, is_testing: bool) -> None:
    assert load(tmp_path, AFTERWORDS_TESTING=value).is_testing is is_testing


def test_mlx_settings(tmp_path: Path) -> None:
    config = load(tmp_path, "idle_unload_s = 60\n", AFTERWORDS_MLX_WEIGHTS="4bit")
    assert (config.mlx_weights, config.idle_unload_s) == ("4bit", 60)
    assert load(tmp_path, AFTERWORDS_IDLE_UNLOAD_S="0").idle_unload_s == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [("MLX_WEIGHTS", "16bit"), ("IDLE_UNLOAD_S", "soon"), ("IDLE_UNLOAD_S", "-1"), ("IDLE_UNLOAD_S", "inf")],
)
def test_invalid_mlx_settings_are_named(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"AFTERWORDS_{key}"):
        load(tmp_path, **{f"AFTERWORDS_{key}": value})


@pytest.mark.parametrize("toml", ["whisper = ", "\x00", "whisper 5"])
def test_invalid_toml_is_named(tmp_path: Path, toml: str) -> None:
    with pytest.raises(
        InvalidInputError, match=r"settings in .*config\.toml", check=has_code("invalid_config")
    ) as caught:
        load(tmp_path, toml)
    assert "permission" not in caught.value.hint


@pytest.mark.parametrize("content", [b'whisper = "\xff"', 'whisper = "base"'.encode("utf-16")])
def test_file_that_is_not_utf8_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(InvalidInputError, match="not UTF-8", check=has_code("invalid_config")):
        load(tmp_path)


def test_file_with_a_byte_order_mark_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.toml").write_bytes(b'\xef\xbb\xbfbackends = "tone"\r\nport = 1\r\n')
    assert load(tmp_path).backends == ("tone",)
    monkeypatch.setenv("AFTERWORDS_HOME", str(tmp_path))
    assert (load_settings().backends, load_settings().port) == (("tone",), 1)


def test_unreadable_file_is_a_file_error(tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(FileError, match="is a directory"):
        load(tmp_path)


def test_home_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(InvalidOptionError, match=r"AFTERWORDS_HOME is .* must be a folder"):
        load(tmp_path / "home")


# -- misspelled settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "why", "fix"),
    [
        ("workrs = 3", "workrs, which is not a setting", "did you mean workers?"),
        ("zzzz = 1", "zzzz, which is not a setting", "correct the name"),
        ("AFTERWORDS_PORT = 1", "AFTERWORDS_PORT, which is not a setting", "did you mean port?"),
        ("[server]\nworkers = 3", "it has the section server", "remove the line [server]"),
        ('api_key = "aw_secret"', "api_key is read only from the environment", "AFTERWORDS_API_KEY"),
        ('admin_secrets = "aw_secret"', "admin_secrets, which is not a setting", "did you mean admin_secret?"),
    ],
)
def test_unknown_name_in_the_file_is_an_error(tmp_path: Path, toml: str, why: str, fix: str) -> None:
    with pytest.raises(InvalidInputError, check=has_code("invalid_config")) as caught:
        load(tmp_path, toml)
    assert why in caught.value.message
    assert fix in caught.value.hint
    assert "aw_secret" not in f"{caught.value} {caught.value.hint}"


def test_unknown_variable_suggests_the_nearest_setting() -> None:
    environ = {"AFTERWORDS_WORKRES": "aw_secret", "AFTERWORDS_ZZZ": "1", "AFTERWORDS_HOME": "/", "HOME": "/"}
    assert unknown_variables(environ) == [
        "AFTERWORDS_WORKRES is not a setting and is ignored; did you mean AFTERWORDS_WORKERS?",
        "AFTERWORDS_ZZZ is not a setting and is ignored.",
    ]


def test_unknown_variable_warns_once_per_process(home: Path) -> None:
    code = "import afterwords as aw; aw.voices(); aw.voices(); print(aw.voices())"
    env = {**os.environ, "AFTERWORDS_WORKRES": "aw_secret"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert done.stderr.count("did you mean AFTERWORDS_WORKERS?") == 1
    assert "UnknownSettingWarning" in done.stderr
    assert "aw_secret" not in done.stderr


def test_unknown_variable_is_a_warning_of_the_cli(home: Path) -> None:
    done = run("voices", "list", "--json", env={"AFTERWORDS_WORKRES": "aw_secret"})
    assert (done.code, json.loads(done.out)) == (0, [])
    assert done.err == "Warning: AFTERWORDS_WORKRES is not a setting and is ignored; did you mean AFTERWORDS_WORKERS?\n"


def test_known_settings_are_those_that_are_read() -> None:
    read = {field.name.removeprefix("is_") for field in fields(Config)} | set(Settings.model_fields)
    assert read - ENVIRONMENT_SETTINGS == SETTINGS


def test_every_setting_in_source_and_docs_is_known() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    programs = [path for name in ("src", "benchmarks", "examples", "scripts") for path in (ROOT / name).rglob("*.py")]
    text = "\n".join(path.read_text("utf-8") for path in (*pages, *programs))
    named = {name.lower() for name in re.findall(r"(?<![A-Z_])AFTERWORDS_([A-Z0-9_]*[A-Z0-9])(?![A-Z0-9_])", text)}
    assert named <= SETTINGS | ENVIRONMENT_SETTINGS
    documented = {
        name.lower() for page in pages for name in re.findall(r"AFTERWORDS_([A-Z0-9_]+)", page.read_text("utf-8"))
    }
    assert SETTINGS - documented == set()


@pytest.mark.parametrize("toml", ["whisper = 5", "backends = [1]", "kokoro_onnx = {}\nwhisper = true"])
def test_setting_of_the_wrong_type_is_named(tmp_path: Path, toml: str) -> None:
    with pytest.raises(InvalidOptionError, match=r"config\.toml: "):
        load(tmp_path, toml)


def test_models_folder_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(tmp_path, 'models = "/weights"\n').models == Path("/weights")
    assert load(tmp_path, AFTERWORDS_MODELS="weights").models == tmp_path / "weights"


def test_precision_defaults_to_bf16(tmp_path: Path) -> None:
    assert load(tmp_path).precision == "bf16"
    assert load(tmp_path, AFTERWORDS_PRECISION="fp8").precision == "fp8"
    with pytest.raises(InvalidOptionError, match="must be bf16 or fp8 or int8"):
        load(tmp_path, AFTERWORDS_PRECISION="fp4")


@pytest.mark.parametrize("switch", ["AFTERWORDS_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize(
    ("value", "is_offline"), [("1", True), ("true", True), ("YES", True), ("0", False), ("", False)]
)
def test_either_variable_forbids_downloads(tmp_path: Path, switch: str, value: str, is_offline: bool) -> None:
    assert load(tmp_path, **{switch: value}).is_offline is is_offline
