"""What whoever runs a server can set: environment first (`AFTERWORDS_…`), then `config.toml` in the home folder.

Nothing is read at import. Every setting has a default that works on a laptop.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from afterwords.config import load_config, read_config_file
from afterwords.errors import InvalidOptionError, ServerSetupError

SECRET_MIN_CHARS: Final = 32
LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})

Names = Annotated[tuple[str, ...], NoDecode]
"""In the environment, names are separated by commas."""
Seconds = Annotated[float, Field(allow_inf_nan=False)]


class Settings(BaseSettings):
    """The settings of one server process. Each name must also be in `config.SETTINGS`."""

    model_config = SettingsConfigDict(
        env_prefix="AFTERWORDS_", extra="ignore", frozen=True, hide_input_in_errors=True, env_ignore_empty=True
    )

    home: Path = Field(default_factory=lambda: load_config().home, description="The data folder.")
    host: str = Field(default="127.0.0.1", description="The address to listen on.")
    port: int = Field(default=7860, ge=0, le=65535, description="The port to listen on; 0 takes a free one.")
    admin_secret: SecretStr | None = Field(default=None, description="Opens the admin routes.")
    callback_secret: SecretStr | None = Field(default=None, description="A secret that all workers share, if any.")
    public_url: str | None = Field(default=None, description="How others reach this server, for links in answers.")
    allowed_hosts: Names = Field(default=(), description="Further names in the Host header; * takes any.")
    trusted_proxies: Names | None = Field(
        default=None,
        description="Addresses whose X-Forwarded-For counts. Absent: this machine, if it has a public URL.",
    )
    cors_origins: Names = Field(default=(), description="Web pages that may ask from a browser, by origin; * is any.")
    database_url: str | None = Field(default=None, repr=False, description="Absent: SQLite in the data folder.")
    storage_url: str | None = Field(default=None, repr=False, description="Absent: a folder in the data folder.")
    backends: Names | None = Field(default=None, description="The only backends offered, best first.")

    serve_library: bool = Field(default=True, description="Offer the voices of the library in the data folder.")
    workers: int = Field(default=1, ge=0, le=64, description="Processes that speak; 0: this server only accepts.")
    recycle_after: int = Field(default=500, ge=1, description="Jobs after which such a process is replaced.")
    worker_memory_mb: int | None = Field(default=None, ge=64, description="Its memory cap; absent: half the machine's.")
    start_allowance_s: Seconds = Field(default=300, gt=0, description="Time without progress while loading.")
    stall_s: Seconds = Field(default=120, gt=0, description="Time without sound after which a speaking process hangs.")
    prepare: Literal["full", "fast"] = Field(default="full", description="How new voices are prepared.")
    lease_s: Seconds = Field(default=15, gt=0, description="A job whose worker is silent for longer goes to another.")
    max_attempts: int = Field(default=3, ge=1, description="Attempts before a job fails.")
    drain_s: Seconds = Field(default=20, ge=0, description="Time to finish what was begun when told to stop.")

    rate_limit: int = Field(default=6000, ge=0, description="Requests a minute and key; 0: any number.")
    auth_failure_limit: int = Field(
        default=30, ge=0, description="Wrong keys and secrets a minute and client address; 0: any number."
    )
    max_requests_per_key: int = Field(default=256, ge=1, description="Requests of one key that may be under way.")
    processes: int = Field(default=1, ge=1, description="Server processes that share these rates.")
    storage_per_account_mb: int = Field(
        default=10_000,
        ge=0,
        description="Recordings, job audio and cache of one account, in 10^6 bytes; 0: any amount.",
    )
    max_pending_jobs: int = Field(default=1000, ge=1, description="Jobs that may wait.")
    max_pending_jobs_per_account: int = Field(default=200, ge=1, description="Jobs of one account that may wait.")
    body_timeout_s: Seconds = Field(default=15, gt=0, description="A body that stays away for longer is refused.")

    write_timeout_s: Seconds = Field(default=60, gt=0, description="A client that reads nothing for longer is cut off.")

    log: Literal["text", "json"] = Field(default="text", description="What a line of the log is.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The lowest level shown."
    )

    reap_interval_s: Seconds = Field(default=1, gt=0, description="How often leases are looked at.")
    sweep_interval_s: Seconds = Field(default=600, gt=0, description="How often storage is swept.")
    sweep_grace_s: Seconds = Field(default=3600, ge=0, description="Age at which what no row names is removed.")

    @field_validator("log", "log_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("allowed_hosts", "trusted_proxies", "cors_origins", "backends", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parts = urlsplit(origin)
            is_bare = origin == f"{parts.scheme}://{parts.netloc}" and parts.hostname and "@" not in parts.netloc
            if origin != "*" and not (parts.scheme in ("http", "https") and is_bare):
                raise ValueError("origins such as https://app.example.com, without a path, or *")
        return tuple(origin.lower() for origin in value)

    @field_validator("public_url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or not value.isprintable():
            raise ValueError("an http(s):// address")
        if "@" in value:  # links with this address go to clients and into their logs
            raise ValueError("an http(s):// address without a user name and password")
        if "?" in value or "#" in value:
            raise ValueError("an http(s):// address without query and fragment")
        return value.rstrip("/")

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for network in value or ():
            try:
                ipaddress.ip_network(network, strict=False)
            except ValueError:
                raise ValueError("IP addresses or networks, such as 10.0.0.0/8") from None
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - a .env beside the program is not ours to read
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = InitSettingsSource(settings_cls, read_config_file(load_config().home))
        return init_settings, env_settings, file

    @property
    def folder(self) -> Path:
        """Where the server keeps its own: database and blobs, unless they are set to lie elsewhere."""
        return self.home / "server"

    @property
    def local_url(self) -> str:
        """The address that it listens on, as this machine can reach it."""
        host = "localhost" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def base_url(self) -> str:
        """The address in links: the public one if there is one."""
        return self.public_url or self.local_url

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        return _is_local(self.host)

    @property
    def public_names(self) -> list[str]:
        """The names other than this machine's own under which a proxy may pass requests on."""
        public = urlsplit(self.public_url or "").hostname
        return [name for name in (public, *self.allowed_hosts) if name and not _is_local(name)]

    def check_is_safe(self) -> None:
        """Refuse to be reached from outside with a weak secret, and on any address but loopback without one.

        On loopback it counts as reachable once it has a public name: a proxy on this machine may pass requests on.

        Raises:
            ServerSetupError: a secret is missing or short.
        """
        reached = self.host if not self.is_loopback else next(iter(self.public_names), None)
        if reached is None:
            return
        for name in ("admin_secret", "callback_secret"):
            secret: SecretStr | None = getattr(self, name)
            is_needed = name == "admin_secret" and not self.is_loopback
            n_chars = len(secret.get_secret_value()) if secret else 0
            if n_chars < SECRET_MIN_CHARS and (n_chars or is_needed):
                raise ServerSetupError(
                    f"{reached} can be reached from other machines, and no {name.replace('_', ' ')} of at least "
                    f"{SECRET_MIN_CHARS} characters is set.",
                    code="insecure_server",
                    hint=f'export AFTERWORDS_{name.upper()}="$(openssl rand -hex 32)", or serve this machine alone: on '
                    "127.0.0.1, without a public URL and allowed hosts.",
                )


def _is_local(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_settings(**given: object) -> Settings:
    """Read the settings; `given` wins over environment and file.

    Raises:
        InvalidOptionError: one can't be used.
        InvalidInputError: config.toml is there but is not TOML, or sets a name that is not a setting.
    """
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        raise _refusal(error, given) from None


def _refusal(invalid: ValidationError, given: Mapping[str, object]) -> InvalidOptionError:
    """The first setting that can't be used, named as it was set; a secret is not shown."""
    first = invalid.errors(include_url=False)[0]
    field = str(first["loc"][0])
    variable = f"AFTERWORDS_{field.upper()}"
    name = field if field in given else variable if os.environ.get(variable) else f"config.toml: {field}"
    rule = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ").partition(", unable")[0]
    value = "***" if field.endswith("secret") else first["input"]
    if field.endswith("url") and isinstance(value, str):
        value = without_secrets(value)
    return InvalidOptionError.for_option(name, value=value, allowed=rule)


def without_secrets(url: str) -> str:
    """Return a URL as it may be shown: *** stands for user, password, query and fragment."""
    scheme, slashes, rest = url.partition("//") if "//" in url else ("", "", url)
    if "@" in rest:
        rest = f"***@{rest.rpartition('@')[2]}"
    end = re.search("[?#].", rest)
    return scheme + slashes + (f"{rest[: end.start() + 1]}***" if end else rest)
