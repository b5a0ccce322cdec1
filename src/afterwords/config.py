"""Settings of this machine: environment variables first, then `config.toml` in the home folder.

Settings are read on each call, never at import. `server/settings.py` adds those of a server.
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
_TRUE: Final = frozenset({"1", "on", "yes", "true"})  # the values that huggingface_hub accepts
SETTINGS: Final = frozenset(
    {
        "admin_secret",
        "allowed_hosts",
        "auth_failure_limit",
        "audio_redirect",
        "backends",
        "body_timeout_s",
        "callback_secret",
        "certfile",
        "cors_origins",
        "database_url",
        "dispatcher",
        "dispatchers",
        "drain_s",
        "home",
        "host",
        "idle_unload_s",
        "keyfile",
        "kokoro_onnx",
        "lease_s",
        "log",
        "log_level",
        "mail_from",
        "max_attempts",
        "max_pending_jobs",
        "max_pending_jobs_per_account",
        "max_remote_jobs",
        "max_requests_per_key",
        "metrics_token",
        "mlx_weights",
        "modal_proxy_token",
        "modal_trigger_url",
        "models",
        "offline",
        "plan_hobby_characters",
        "plans",
        "port",
        "precision",
        "prepare",
        "processes",
        "public_url",
        "rate_limit",
        "ray_address",
        "reap_interval_s",
        "recycle_after",
        "runpod_api_key",
        "runpod_url",
        "list_voices_of",
        "serve_library",
        "smtp_url",
        "stall_s",
        "start_allowance_s",
        "storage_per_account_mb",
        "storage_url",
        "stripe_api_url",
        "stripe_meter_event",
        "stripe_price_id",
        "stripe_secret_key",
        "stripe_webhook_secret",
        "sweep_grace_s",
        "sweep_interval_s",
        "tracing",
        "trusted_proxies",
        "whisper",
        "worker_memory_mb",
        "workers",
        "write_timeout_s",
    }
)
"""Every setting of this machine and of its server, as spelled in config.toml."""
ENVIRONMENT_SETTINGS: Final = frozenset(
    {"api_key", "base_url", "debug", "failpoint", "profile", "testing", "worker_token"}
)
"""Settings that are read only from the environment."""


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of this machine.

    Attributes:
        home: Folder of voices and models.
        backends: The only backends to offer, in this order; None offers all but `tone`.
        whisper: Folder or name of a faster-whisper model for transcripts.
        kokoro_onnx: A Kokoro-82M ONNX file that replaces the packaged one.
        models: Folder of model weights; None means `models` in the home folder.
        mlx_weights: Weights for the MLX engine, one of MLX_WEIGHTS; None chooses by memory.
        idle_unload_s: Seconds without speech after which the MLX engine unloads its weights; 0 keeps them loaded.
        precision: Precision of the weights of engines that can reduce it, one of PRECISIONS.
        is_offline: Forbid downloads.
        is_testing: Enable the fault words of the `tone` engine.
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
    """Read the settings of this machine.

    Variables have the prefix `AFTERWORDS_`; `config.toml` has the same names in lower case without it.
    `HF_HUB_OFFLINE` means the same as `AFTERWORDS_OFFLINE`.

    Args:
        environ: Environment variables; None reads those of the process.

    Warns:
        UnknownSettingWarning: A variable with the prefix `AFTERWORDS_` is not a setting.

    Raises:
        InvalidInputError: config.toml is not TOML, or sets a name that is not a setting.
        FileError: config.toml can't be read.
        InvalidOptionError: A setting has the wrong type or an invalid value.
    """
    env = os.environ if environ is None else environ
    if environ is None:
        _warn_once(tuple(unknown_variables(env)))
    if env.get("AFTERWORDS_HOME"):
        home = Path(env["AFTERWORDS_HOME"]).expanduser().absolute()
    else:
        from platformdirs import user_data_path

        home = user_data_path("afterwords", appauthor=False)
    file = read_config_file(home)

    def setting(key: str) -> str | None:
        value = env.get(f"{PREFIX}{key.upper()}") or file.get(key)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            value = ",".join(value)
        if key == "idle_unload_s" and isinstance(value, int | float):
            value = str(value)
        if value is not None and not isinstance(value, str):
            raise InvalidOptionError.for_option(f"config.toml: {key}", value=value, allowed="a string")
        return value or None

    def choice(key: str, allowed: tuple[str, ...]) -> str | None:
        value = setting(key)
        if value is not None and value not in allowed:
            raise InvalidOptionError.for_option(f"{PREFIX}{key.upper()}", value=value, allowed=" or ".join(allowed))
        return value

    backends = setting("backends")
    kokoro_onnx = setting("kokoro_onnx")
    models = setting("models")
    offline = (setting("offline"), env.get("HF_HUB_OFFLINE"))
    return Config(
        home=home,
        backends=tuple(part.strip() for part in backends.split(",") if part.strip()) if backends else None,
        whisper=setting("whisper"),
        kokoro_onnx=Path(kokoro_onnx).expanduser() if kokoro_onnx else None,
        models=Path(models).expanduser().absolute() if models else None,
        mlx_weights=choice("mlx_weights", MLX_WEIGHTS),
        idle_unload_s=_parse_seconds("idle_unload_s", setting("idle_unload_s"), default=IDLE_UNLOAD_S),
        precision=choice("precision", PRECISIONS) or "bf16",
        is_offline=any((value or "").lower() in _TRUE for value in offline),
        is_testing=env.get("AFTERWORDS_TESTING") == "1",
    )


def _parse_seconds(key: str, value: str | None, *, default: float) -> float:
    try:
        seconds = default if value is None else float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= TIMEOUT_MAX:
        allowed = "a number of seconds, 0 or more"
        raise InvalidOptionError.for_option(f"{PREFIX}{key.upper()}", value=value, allowed=allowed)
    return seconds


def read_config_file(home: Path) -> dict[str, object]:
    """Read `config.toml` in a home folder; return an empty dictionary if there is none.

    Raises:
        InvalidInputError: The file is not TOML, or sets a name that is not a setting.
        FileError: The file can't be read.
        InvalidOptionError: The home folder is a file.
    """
    path = home / "config.toml"
    try:
        settings = tomllib.loads(disk.read(path).decode("utf-8-sig"))  # some editors write a byte order mark
    except FileNotFoundError:
        return {}
    except NotADirectoryError:
        raise InvalidOptionError.for_option(f"{PREFIX}HOME", value=str(home), allowed="a folder") from None
    except UnicodeDecodeError as error:
        raise _config_error(path, "it is not UTF-8", hint="save it as UTF-8.") from error
    except tomllib.TOMLDecodeError as error:
        raise _config_error(path, str(error)) from error
    except RecursionError as error:
        raise _config_error(path, "it is nested too deep") from error
    except OSError as error:
        raise FileError.unreadable(path, why=(error.strerror or str(error)).lower()) from error
    for name in settings.keys() - SETTINGS:
        if isinstance(settings[name], dict):
            why = f"it has the section {name}, but settings stand in no section"
            raise _config_error(path, why, hint=f"remove the line [{name}].")
        if name in ENVIRONMENT_SETTINGS:
            hint = f"remove the line, and set {PREFIX}{name.upper()} in the environment."
            raise _config_error(path, f"{name} is read only from the environment", hint=hint)
        near = _nearest_setting(name)
        hint = f"did you mean {near}?" if near in SETTINGS else "remove the line, or correct the name."
        raise _config_error(path, f"it sets {name}, which is not a setting", hint=hint)
    return settings


def _config_error(path: Path, why: str, *, hint: str = "correct it, or remove the file.") -> InvalidInputError:
    return InvalidInputError(f"Invalid settings in {path}: {why}.", code="invalid_config", hint=hint)


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable that has the prefix of settings but is not one, without its value."""
    warnings = []
    for name in sorted(name for name in environ if name.startswith(PREFIX)):
        if name.removeprefix(PREFIX).lower() not in SETTINGS | ENVIRONMENT_SETTINGS:
            near = _nearest_setting(name)
            suggestion = f"; did you mean {PREFIX}{near.upper()}?" if near else "."
            warnings.append(f"{name} is not a setting and is ignored{suggestion}")
    return warnings


def _nearest_setting(name: str) -> str | None:
    from difflib import get_close_matches

    known = sorted(SETTINGS | ENVIRONMENT_SETTINGS)
    return next(iter(get_close_matches(name.lower().removeprefix(PREFIX.lower()), known, n=1)), None)


@cache
def _warn_once(messages: tuple[str, ...]) -> None:
    """Issue warnings once per process."""
    import warnings

    for message in messages:
        warnings.warn(message, UnknownSettingWarning, stacklevel=3)
