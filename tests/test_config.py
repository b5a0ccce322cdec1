"""Where settings come from: environment, then config.toml, then defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterwords.config import Config, load_config
from afterwords.errors import InvalidOptionError, UnreadableFileError


def configured(home: Path, toml: str = "", **environ: str) -> Config:
    if toml:
        (home / "config.toml").write_text(toml, "utf-8")
    return load_config({"AFTERWORDS_HOME": str(home), **environ})


def test_nothing_set_is_the_defaults(tmp_path: Path) -> None:
    assert configured(tmp_path) == Config(home=tmp_path)


def test_home_defaults_to_the_data_folder_of_the_platform() -> None:
    from platformdirs import user_data_path

    assert load_config({}).home == user_data_path("afterwords", appauthor=False)


def test_home_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert load_config({"AFTERWORDS_HOME": "here"}).home == tmp_path / "here"
    assert load_config({"AFTERWORDS_HOME": "~/voices"}).home == tmp_path / "user" / "voices"


def test_loading_makes_no_folder(tmp_path: Path) -> None:
    configured(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_process_environment_is_read_when_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AFTERWORDS_HOME", str(tmp_path))
    monkeypatch.setenv("AFTERWORDS_WHISPER", "small")
    assert load_config().whisper == "small"


def test_file_sets_what_the_environment_leaves_open(tmp_path: Path) -> None:
    toml = 'backends = ["lite", "tone"]\nwhisper = "base"\nkokoro_onnx = "/models/kokoro.onnx"\n'
    config = configured(tmp_path, toml, AFTERWORDS_WHISPER="small")
    assert config.backends == ("lite", "tone")
    assert config.whisper == "small"
    assert config.kokoro_onnx == Path("/models/kokoro.onnx")


@pytest.mark.parametrize(
    ("value", "backends"),
    [("lite", ("lite",)), (" lite , tone ,", ("lite", "tone")), ("", None)],
)
def test_backends_are_a_list_between_commas(tmp_path: Path, value: str, backends: tuple[str, ...] | None) -> None:
    assert configured(tmp_path, AFTERWORDS_BACKENDS=value).backends == backends


@pytest.mark.parametrize(("value", "is_testing"), [("1", True), ("0", False), ("true", False), ("", False)])
def test_fault_words_work_only_with_testing_set_to_one(tmp_path: Path, value: str, is_testing: bool) -> None:
    assert configured(tmp_path, AFTERWORDS_TESTING=value).is_testing is is_testing


def test_the_mlx_engine_is_set_by_weights_and_seconds(tmp_path: Path) -> None:
    config = configured(tmp_path, "idle_unload_s = 60\n", AFTERWORDS_MLX_WEIGHTS="4bit")
    assert (config.mlx_weights, config.idle_unload_s) == ("4bit", 60)
    assert configured(tmp_path, AFTERWORDS_IDLE_UNLOAD_S="0").idle_unload_s == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [("MLX_WEIGHTS", "16bit"), ("IDLE_UNLOAD_S", "soon"), ("IDLE_UNLOAD_S", "-1"), ("IDLE_UNLOAD_S", "inf")],
)
def test_what_the_mlx_engine_can_t_be_set_to_is_named(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"AFTERWORDS_{key}"):
        configured(tmp_path, **{f"AFTERWORDS_{key}": value})


@pytest.mark.parametrize("toml", ["whisper = ", "\x00", "whisper 5"])
def test_file_that_is_not_toml_is_named(tmp_path: Path, toml: str) -> None:
    with pytest.raises(UnreadableFileError, match=r"config\.toml"):
        configured(tmp_path, toml)


def test_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b'whisper = "\xff"')
    with pytest.raises(UnreadableFileError, match=r"config\.toml"):
        configured(tmp_path)


@pytest.mark.parametrize("toml", ["whisper = 5", "backends = [1]", "kokoro_onnx = {}\nwhisper = true"])
def test_setting_of_the_wrong_type_is_named(tmp_path: Path, toml: str) -> None:
    with pytest.raises(InvalidOptionError, match=r"config\.toml: "):
        configured(tmp_path, toml)


def test_models_may_lie_in_a_folder_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert configured(tmp_path, 'models = "/weights"\n').models == Path("/weights")
    assert configured(tmp_path, AFTERWORDS_MODELS="weights").models == tmp_path / "weights"


def test_weights_are_rounded_only_as_asked(tmp_path: Path) -> None:
    assert configured(tmp_path).precision == "bf16"
    assert configured(tmp_path, AFTERWORDS_PRECISION="fp8").precision == "fp8"
    with pytest.raises(InvalidOptionError, match="must be bf16 or fp8 or int8"):
        configured(tmp_path, AFTERWORDS_PRECISION="fp4")


@pytest.mark.parametrize("switch", ["AFTERWORDS_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize(
    ("value", "is_offline"), [("1", True), ("true", True), ("YES", True), ("0", False), ("", False)]
)
def test_either_switch_forbids_downloads(tmp_path: Path, switch: str, value: str, is_offline: bool) -> None:
    assert configured(tmp_path, **{switch: value}).is_offline is is_offline
