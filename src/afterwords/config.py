"""The settings of the person at this machine: environment first, then `config.toml` in the home folder.

Read when asked, never at import. Servers have settings of their own.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import TIMEOUT_MAX
from typing import Final

from afterwords import disk
from afterwords.errors import FileError, InvalidInputError, InvalidOptionError, UnknownSettingWarning

MLX_WEIGHTS: Final = ("bf16", "8bit", "4bit")
IDLE_UNLOAD_S: Final = 300.0
PRECISIONS: Final = ("bf16", "fp8", "int8")
PREFIX: Final = "AFTERWORDS_"
SETTINGS: Final = frozenset(
    {
        "admin_secret",
        "allowed_hosts",
        "auth_failure_limit",
        "backends",
        "body_timeout_s",
        "callback_secret",
        "cors_origins",
        "database_url",
        "drain_s",
        "home",
        "host",
        "idle_unload_s",
        "kokoro_onnx",
        "lease_s",
        "log",
        "log_level",
        "max_attempts",
        "max_pending_jobs",
        "max_pending_jobs_per_account",
        "max_requests_per_key",
        "mlx_weights",
        "models",
        "offline",
        "port",
        "precision",
        "prepare",
        "processes",
        "public_url",
        "rate_limit",
        "reap_interval_s",
        "recycle_after",
        "serve_library",
        "stall_s",
        "start_allowance_s",
        "storage_per_account_mb",
        "storage_url",
        "sweep_grace_s",
        "sweep_interval_s",
        "trusted_proxies",
        "whisper",
        "worker_memory_mb",
        "workers",
        "write_timeout_s",
    }
)
"""Every setting of this machine and of its server, as config.toml spells it."""
ENVIRONMENT_SETTINGS: Final = frozenset({"api_key", "base_url", "debug", "failpoint", "profile", "testing"})
"""Settings that are read from the environment alone."""


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

    Warns:
        UnknownSettingWarning: a variable of the environment has the prefix `AFTERWORDS_` and is not a setting.

    Raises:
        InvalidInputError: config.toml is there but is not TOML, or sets a name that is not a setting.
        FileError: config.toml can't be read.
        InvalidOptionError: a setting has the wrong type, or a value that it can't have.
    """
    env = os.environ if environ is None else environ
    if environ is None:
        _warn_of(tuple(unknown_variables(env)))
    home = _home(env)
    file = read_config_file(home)

    def setting(key: str) -> str | None:
        value = env.get(f"AFTERWORDS_{key.upper()}") or file.get(key)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            value = ",".join(value)
        if key == "idle_unload_s" and isinstance(value, int | float):
            value = str(value)
        if value is not None and not isinstance(value, str):
            raise InvalidOptionError.for_option(f"config.toml: {key}", value=value, allowed="a string")
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
        raise InvalidOptionError.for_option(f"AFTERWORDS_{key.upper()}", value=told, allowed=" or ".join(allowed))
    return told


def _seconds(key: str, told: str | None, *, default: float) -> float:
    try:
        value = default if told is None else float(told)
    except ValueError:
        value = -1.0
    if not 0 <= value <= TIMEOUT_MAX:
        raise InvalidOptionError.for_option(
            f"AFTERWORDS_{key.upper()}", value=told, allowed="a number of seconds, 0 or more"
        )
    return value


def _home(env: Mapping[str, str]) -> Path:
    if env.get("AFTERWORDS_HOME"):
        return Path(env["AFTERWORDS_HOME"]).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("afterwords", appauthor=False)


def read_config_file(home: Path) -> dict[str, object]:
    """Read `config.toml` in a home folder; return an empty dictionary if there is none.

    Raises:
        InvalidInputError: it is not TOML, or sets a name that is not a setting.
        FileError: it can't be read.
        InvalidOptionError: the home folder is a file.
    """
    path = home / "config.toml"
    try:
        found = tomllib.loads(disk.read(path).decode("utf-8-sig"))  # some editors begin a file with a byte order mark
    except FileNotFoundError:
        return {}
    except NotADirectoryError:
        raise InvalidOptionError.for_option(f"{PREFIX}HOME", value=str(home), allowed="a folder") from None
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"There is a mistake in {path}: it is not UTF-8.", code="invalid_config", hint="save it as UTF-8."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidInputError(
            f"There is a mistake in {path}: {error}.", code="invalid_config", hint="correct it, or remove the file."
        ) from error
    except RecursionError as error:
        raise InvalidInputError(
            f"There is a mistake in {path}: it is nested too deep.",
            code="invalid_config",
            hint="correct it, or remove the file.",
        ) from error
    except OSError as error:
        raise FileError.unreadable(path, why=(error.strerror or str(error)).lower()) from error
    for name in found.keys() - SETTINGS:
        if isinstance(found[name], dict):
            why, hint = f"it has the section {name}, and settings are in none", f"remove the line [{name}]."
            raise InvalidInputError(f"There is a mistake in {path}: {why}.", code="invalid_config", hint=hint)
        raise _unknown_setting(path, name)
    return found


def _unknown_setting(path: Path, name: str) -> InvalidInputError:
    if name in ENVIRONMENT_SETTINGS:
        hint = f"remove the line, and set {PREFIX}{name.upper()} in the environment."
        return InvalidInputError(
            f"There is a mistake in {path}: {name} is read from the environment alone.",
            code="invalid_config",
            hint=hint,
        )
    near = _near(name)
    return InvalidInputError(
        f"There is a mistake in {path}: it sets {name}, which is not a setting.",
        code="invalid_config",
        hint=f"did you mean {near}?" if near in SETTINGS else "remove the line, or correct the name.",
    )


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return a sentence on each variable that has the prefix of settings and is none; values are not shown."""
    names = sorted(name for name in environ if name.startswith(PREFIX))
    unknown = [name for name in names if name.removeprefix(PREFIX).lower() not in SETTINGS | ENVIRONMENT_SETTINGS]
    return [
        f"{name} is not a setting and is ignored" + (f"; did you mean {PREFIX}{near.upper()}?" if near else ".")
        for name in unknown
        for near in [_near(name)]
    ]


def _near(name: str) -> str | None:
    from difflib import get_close_matches

    known = sorted(SETTINGS | ENVIRONMENT_SETTINGS)
    return next(iter(get_close_matches(name.lower().removeprefix(PREFIX.lower()), known, n=1)), None)


@cache
def _warn_of(sentences: tuple[str, ...]) -> None:
    """Warn once a process."""
    import warnings

    for sentence in sentences:
        warnings.warn(sentence, UnknownSettingWarning, stacklevel=3)
