"""The settings of the person at this machine: environment first, then `config.toml` in the home folder.

Read when asked, never at import. Servers have settings of their own.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import TIMEOUT_MAX
from typing import Final

from afterwords import disk
from afterwords.errors import InvalidOptionError, UnreadableFileError

MLX_WEIGHTS: Final = ("bf16", "8bit", "4bit")
IDLE_UNLOAD_S: Final = 300.0
PRECISIONS: Final = ("bf16", "fp8", "int8")


@dataclass(frozen=True, slots=True)
class Config:
    """What was set.

    Attributes:
        home: the folder of voices and models.
        backends: the only backends offered, in this order; None offers all but `tone`.
        whisper: folder or name of a faster-whisper model for transcripts.
        kokoro_onnx: a Kokoro-82M ONNX file to use in place of the packaged one.
        models: a folder with one folder of weights for each backend; None keeps them in `models` in the home folder.
        mlx_weights: "bf16", "8bit" or "4bit", whichever the MLX engine shall load; None lets it choose by memory.
        idle_unload_s: seconds that the MLX engine keeps its weights after it last spoke; 0 keeps them for ever.
        precision: of the weights of engines that can round them, one of PRECISIONS.
        is_offline: whether nothing may be downloaded.
        is_testing: whether the fault words of the `tone` engine work.
    """

    home: Path
    backends: tuple[str, ...] | None = None
    whisper: str | None = None
    kokoro_onnx: Path | None = None
    models: Path | None = None
    mlx_weights: str | None = None
    idle_unload_s: float = IDLE_UNLOAD_S
    precision: str = "bf16"
    is_offline: bool = False
    is_testing: bool = False


def load_config(environ: Mapping[str, str] | None = None) -> Config:
    """Read the settings: `AFTERWORDS_HOME`, `_BACKENDS`, `_WHISPER`, `_KOKORO_ONNX`, `_MODELS`, `_MLX_WEIGHTS`,
    `_IDLE_UNLOAD_S`, `_PRECISION`, `_OFFLINE`, `_TESTING`, or the same in lower case, without the prefix, in
    `config.toml` in the home folder. `HF_HUB_OFFLINE` counts as `AFTERWORDS_OFFLINE`.

    Raises:
        UnreadableFileError: config.toml is there but is not TOML.
        InvalidOptionError: a setting has the wrong type, or a value that it can't have.
    """
    env = os.environ if environ is None else environ
    home = _home(env)
    file = _read_toml(home / "config.toml")

    def setting(key: str) -> str | None:
        value = env.get(f"AFTERWORDS_{key.upper()}") or file.get(key)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            value = ",".join(value)
        if key == "idle_unload_s" and isinstance(value, int | float):
            value = str(value)
        if value is not None and not isinstance(value, str):
            raise InvalidOptionError(f"config.toml: {key}", value=value, allowed="a string")
        return value or None

    backends = setting("backends")
    kokoro_onnx = setting("kokoro_onnx")
    models = setting("models")
    return Config(
        home=home,
        backends=tuple(part.strip() for part in backends.split(",") if part.strip()) if backends else None,
        whisper=setting("whisper"),
        kokoro_onnx=Path(kokoro_onnx).expanduser() if kokoro_onnx else None,
        models=Path(models).expanduser().absolute() if models else None,
        mlx_weights=_one_of(MLX_WEIGHTS, "mlx_weights", setting("mlx_weights")),
        idle_unload_s=_seconds("idle_unload_s", setting("idle_unload_s"), default=IDLE_UNLOAD_S),
        precision=_one_of(PRECISIONS, "precision", setting("precision")) or "bf16",
        is_offline=any(_is_yes(told) for told in (setting("offline"), env.get("HF_HUB_OFFLINE"))),
        is_testing=env.get("AFTERWORDS_TESTING") == "1",
    )


def _is_yes(told: str | None) -> bool:
    return (told or "").lower() in {"1", "on", "yes", "true"}  # what the hub's own client takes


def _one_of(allowed: tuple[str, ...], key: str, told: str | None) -> str | None:
    if told is not None and told not in allowed:
        raise InvalidOptionError(f"AFTERWORDS_{key.upper()}", value=told, allowed=" or ".join(allowed))
    return told


def _seconds(key: str, told: str | None, *, default: float) -> float:
    try:
        value = default if told is None else float(told)
    except ValueError:
        value = -1.0
    if not 0 <= value <= TIMEOUT_MAX:
        raise InvalidOptionError(f"AFTERWORDS_{key.upper()}", value=told, allowed="a number of seconds, 0 or more")
    return value


def _home(env: Mapping[str, str]) -> Path:
    if env.get("AFTERWORDS_HOME"):
        return Path(env["AFTERWORDS_HOME"]).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("afterwords", appauthor=False)


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(disk.read(path).decode("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UnreadableFileError(path, why=f"{error}") from error
