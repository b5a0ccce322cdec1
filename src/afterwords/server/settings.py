"""Settings of the server, from the environment (`AFTERWORDS_…`) or `config.toml` in the home folder.

Nothing is read at import. Every setting has a default that works on a laptop.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator
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
"""Comma-separated in the environment."""
Seconds = Annotated[float, Field(allow_inf_nan=False)]


class Plan(BaseModel):
    """What an account may use in a billing period, and what that costs. An account without a plan is unlimited."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    characters: int | None = Field(default=None, ge=0, description="Characters per period; unset: unlimited.")
    rate_limit: int | None = Field(
        default=None, ge=1, description="Requests per minute of all keys together; unset: that of the server, per key."
    )
    max_pending_jobs: int | None = Field(
        default=None, ge=1, description="Pending jobs; unset: as the server's setting."
    )
    price_id: str | None = Field(default=None, description="ID of the price at Stripe; unset: it can't be bought.")
    price: str | None = Field(default=None, max_length=80, description="The price in words, such as 9 USD a month.")


class Settings(BaseSettings):
    """Settings of a server process. Every name must also be in `config.SETTINGS`."""

    model_config = SettingsConfigDict(
        env_prefix="AFTERWORDS_", extra="ignore", frozen=True, hide_input_in_errors=True, env_ignore_empty=True
    )

    home: Path = Field(default_factory=lambda: load_config().home, description="The data folder.")
    host: str = Field(default="127.0.0.1", description="The address to listen on.")
    port: int = Field(default=7860, ge=0, le=65535, description="The port to listen on; 0 takes a free one.")
    certfile: Path | None = Field(
        default=None, description="PEM file with the TLS certificate and its chain; unset: no TLS."
    )
    keyfile: Path | None = Field(
        default=None, description="PEM file with the key of the certificate; unset: the certificate's file has it."
    )
    admin_secret: SecretStr | None = Field(default=None, description="Opens the admin routes.")
    metrics_token: SecretStr | None = Field(
        default=None, description="Opens /metrics alone, which then requires it on this machine, too."
    )
    callback_secret: SecretStr | None = Field(
        default=None, description="Secret of remote workers; without it their routes answer 401."
    )
    public_url: str | None = Field(default=None, description="URL of this server for clients, used in links.")
    allowed_hosts: Names = Field(default=(), description="Further names accepted in the Host header; * accepts any.")
    trusted_proxies: Names | None = Field(
        default=None,
        description="Addresses whose X-Forwarded-For is trusted; unset: this machine, if it has a public URL.",
    )
    cors_origins: Names = Field(
        default=(), description="Origins of web pages that may call the API from a browser; * is any."
    )
    database_url: str | None = Field(
        default=None, repr=False, description="URL of the database; unset: SQLite in the data folder."
    )
    storage_url: str | None = Field(
        default=None, repr=False, description="URL of the storage; unset: a folder in the data folder."
    )
    audio_redirect: bool = Field(
        default=False, description="Redirect downloads of job audio to signed URLs of the bucket."
    )
    backends: Names | None = Field(default=None, description="Backends to offer, best first; unset: all that can run.")

    list_voices_of: str | None = Field(
        default=None,
        description="ID of an account whose voices the OpenAI API lists without a key, names only.",
    )
    serve_library: bool = Field(default=True, description="Offer the voices of the library in the data folder.")
    dispatcher: str = Field(
        default="local", description="Where jobs run besides remote workers: local, or the name of a plug-in."
    )
    dispatchers: Annotated[dict[str, str] | None, NoDecode] = Field(
        default=None,
        description="Several dispatchers, each with its backends: qwen3-1.7b=modal, lite=local; replaces "
        "dispatcher and backends.",
    )
    modal_trigger_url: str | None = Field(
        default=None, repr=False, description="URL of an app on Modal that starts jobs, for the dispatcher modal."
    )
    modal_proxy_token: SecretStr | None = Field(
        default=None, description="KEY:SECRET of Modal's proxy authentication, if the trigger requires it."
    )
    runpod_url: str | None = Field(
        default=None,
        repr=False,
        description="URL of an endpoint of RunPod, https://api.runpod.ai/v2/ID, for the dispatcher runpod.",
    )
    runpod_api_key: SecretStr | None = Field(default=None, description="Key of RunPod's API.")
    max_remote_jobs: int = Field(default=64, ge=1, description="Jobs that a called service has at once.")
    ray_address: str | None = Field(
        default=None, description="Host and port of the head of a Ray cluster; unset: that of this machine."
    )
    workers: int = Field(default=1, ge=0, le=64, description="Worker processes; 0: jobs are only accepted.")
    recycle_after: int = Field(default=500, ge=1, description="Jobs after which a worker process is replaced.")
    worker_memory_mb: int | None = Field(
        default=None, ge=64, description="Memory limit of a worker process; unset: half the machine's."
    )
    start_allowance_s: Seconds = Field(
        default=300, gt=0, description="Longest time without progress while a model loads or a voice is prepared."
    )
    stall_s: Seconds = Field(default=120, gt=0, description="Longest time without audio during synthesis.")
    prepare: Literal["full", "fast"] = Field(default="full", description="How new voices are prepared.")
    lease_s: Seconds = Field(
        default=15, gt=0, description="Time without a heartbeat after which a job is given to another worker."
    )
    max_attempts: int = Field(default=3, ge=1, description="Attempts before a job fails.")
    drain_s: Seconds = Field(default=20, ge=0, description="Time to finish running work on shutdown.")

    rate_limit: int = Field(default=6000, ge=0, description="Requests per minute and key; 0: unlimited.")
    auth_failure_limit: int = Field(
        default=30, ge=0, description="Failed authentications per minute and client address; 0: unlimited."
    )
    max_requests_per_key: int = Field(default=256, ge=1, description="Concurrent requests per key or worker token.")
    processes: int = Field(default=1, ge=1, description="Server processes that share these limits.")
    plans: dict[str, Plan] = Field(
        default_factory=dict,
        description="Plans by name, in addition to free and hobby, or instead of them; JSON in the environment.",
    )
    plan_hobby_characters: int | None = Field(
        default=None, ge=0, description="Characters per period of the plan hobby; unset: 100,000."
    )
    stripe_secret_key: SecretStr | None = Field(
        default=None, description="Key of Stripe's API; unset: no plan can be bought here."
    )
    stripe_webhook_secret: SecretStr | None = Field(default=None, description="Signs the events that Stripe sends.")
    stripe_price_id: str | None = Field(default=None, description="ID of the price of the plan hobby.")
    stripe_meter_event: str | None = Field(
        default=None, description="Name of the meter events that report characters to Stripe; unset: none are sent."
    )
    stripe_api_url: str = Field(default="https://api.stripe.com", description="URL of Stripe's API, for tests.")
    smtp_url: SecretStr | None = Field(
        default=None,
        description="Mail server, smtps://USER:PASSWORD@HOST; unset: a local server prints mail on its terminal.",
    )
    mail_from: str | None = Field(default=None, description="Sender of mail to customers.")
    storage_per_account_mb: int = Field(
        default=10_000,
        ge=0,
        description="Storage per account in 10^6 bytes; 0: unlimited.",
    )
    max_pending_jobs: int = Field(default=1000, ge=1, description="Pending jobs.")
    max_pending_jobs_per_account: int = Field(default=200, ge=1, description="Pending jobs per account.")
    body_timeout_s: Seconds = Field(default=15, gt=0, description="Longest pause in a request body.")

    write_timeout_s: Seconds = Field(
        default=60, gt=0, description="Longest time in which a client reads nothing of a response."
    )

    log: Literal["text", "json"] = Field(default="text", description="Format of the log.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is logged."
    )

    tracing: bool = Field(default=False, description="Export traces with OpenTelemetry; OTEL_* variables say where.")

    reap_interval_s: Seconds = Field(default=1, gt=0, description="Interval of checking leases and webhooks.")
    sweep_interval_s: Seconds = Field(default=600, gt=0, description="Interval of sweeping the storage.")
    sweep_grace_s: Seconds = Field(default=3600, ge=0, description="Age at which unreferenced audio is removed.")

    @field_validator("log", "log_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("allowed_hosts", "trusted_proxies", "cors_origins", "backends", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("dispatchers", mode="before")
    @classmethod
    def _split_pairs(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [[side.strip() for side in part.split("=")] for part in value.split(",") if part.strip()]
        names = [pair[0] for pair in pairs]
        if not all(len(pair) == 2 and all(pair) for pair in pairs) or len(set(names)) < len(names):
            raise ValueError("pairs of a backend and its dispatcher, such as qwen3-1.7b=modal, lite=local")
        return dict(pairs)

    @field_validator("audio_redirect")
    @classmethod
    def _needs_a_bucket(cls, value: bool, info: ValidationInfo) -> bool:
        if value and not (info.data.get("storage_url") or "").startswith("s3:"):
            raise ValueError("false, unless AFTERWORDS_STORAGE_URL is s3://…")
        return value

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

    @field_validator("smtp_url")
    @classmethod
    def _is_a_mail_server(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parts = urlsplit(value.get_secret_value())
            if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
                raise ValueError("smtps:// or smtp://, followed by USER:PASSWORD@HOST:PORT")
        return value

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
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - a .env file belongs to the application
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - likewise
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = InitSettingsSource(settings_cls, read_config_file(load_config().home))
        return init_settings, env_settings, file

    @property
    def folder(self) -> Path:
        """The folder of database and blobs, unless their URLs are set."""
        return self.home / "server"

    @cached_property
    def all_plans(self) -> dict[str, Plan]:
        """The plans by name, with the two defaults."""
        hobby = 100_000 if self.plan_hobby_characters is None else self.plan_hobby_characters
        defaults = {
            "free": Plan(characters=10_000),
            "hobby": Plan(characters=hobby, price_id=self.stripe_price_id),
        }
        return defaults | self.plans

    @property
    def account_url(self) -> str | None:
        """Where customers change their plan; None if no plan can be bought."""
        can_buy = self.stripe_secret_key and any(plan.price_id for plan in self.all_plans.values())
        return f"{self.base_url}/v1/account" if can_buy else None

    @property
    def offers_library(self) -> bool:
        """Whether the voices of the library are offered. Servers that share Postgres have different libraries."""
        return self.serve_library and not (self.database_url or "").startswith("postgres")

    @property
    def local_url(self) -> str:
        """The URL of the server on this machine."""
        host = "localhost" if self.host in ("0.0.0.0", "::") else self.host
        return f"http{'s' if self.certfile else ''}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def base_url(self) -> str:
        """The URL in links: the public one if set."""
        return self.public_url or self.local_url

    @property
    def is_loopback(self) -> bool:
        """Whether the server listens on loopback only."""
        return _is_local(self.host)

    @property
    def public_names(self) -> list[str]:
        """Names other than this machine's own, under which a proxy may forward requests."""
        public = urlsplit(self.public_url or "").hostname
        return [name for name in (public, *self.allowed_hosts) if name and not _is_local(name)]

    def check_is_safe(self) -> None:
        """Refuse weak secrets on a server that others can reach, and a missing one on any address but loopback.

        A server on loopback with a public name counts as reachable, because a proxy may forward requests.

        Raises:
            ServerSetupError: A secret is missing or too short, or plans can't be sold like this.
        """
        self.check_billing()
        reached = self.host if not self.is_loopback else next(iter(self.public_names), None)
        if reached is None:
            return
        for name in ("admin_secret", "callback_secret", "metrics_token"):
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

    def check_certificate(self) -> None:
        """Raise ServerSetupError unless the certificate and its key can be used."""
        if self.certfile is None:
            if self.keyfile is not None:
                raise ServerSetupError(
                    "A TLS key is set, but no certificate.", hint="add --certfile, or remove --keyfile."
                )
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certfile, self.keyfile, password=lambda: "")  # otherwise OpenSSL would ask
        except OSError as error:
            why = "they are not PEM files without a password, or do not belong together"
            if not isinstance(error, ssl.SSLError):
                why = (error.strerror or str(error)).lower()
            raise ServerSetupError(
                f"The TLS certificate and its key can't be used: {why}.", hint="correct --certfile and --keyfile."
            ) from None

    def check_billing(self) -> None:
        """Refuse to sell plans without what that takes, or with a live key on a server that is not a public one."""
        if self.stripe_secret_key is None:
            return
        public = urlsplit(self.public_url or "")
        is_live = self.stripe_secret_key.get_secret_value().startswith(("sk_live_", "rk_live_"))
        missing = {
            "STRIPE_WEBHOOK_SECRET": self.stripe_webhook_secret is None,
            "STRIPE_PRICE_ID": not any(plan.price_id for plan in self.all_plans.values()),
            "MAIL_FROM": self.smtp_url is not None and self.mail_from is None,
        }
        if is_live and (public.scheme != "https" or _is_local(public.hostname or "localhost")):
            raise ServerSetupError(
                "The key of Stripe is a live one, which moves money, but the public URL names no public server.",
                code="insecure_server",
                hint="set AFTERWORDS_PUBLIC_URL to its https:// address, or use a test key: sk_test_…",
            )
        for name in (name for name, is_missing in missing.items() if is_missing):
            raise ServerSetupError(
                f"The server has a key of Stripe, but AFTERWORDS_{name} is not set.",
                hint=f"set AFTERWORDS_{name}: see docs/billing.md.",
            )


def _is_local(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_settings(**overrides: object) -> Settings:
    """Load the settings; `overrides` win over environment and file.

    Raises:
        InvalidOptionError: A setting is invalid.
        InvalidInputError: config.toml is not TOML, or sets an unknown name.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    field = str(first["loc"][0])
    variable = f"AFTERWORDS_{field.upper()}"
    name = field if field in overrides else variable if os.environ.get(variable) else f"config.toml: {field}"
    rule = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ").partition(", unable")[0]
    value = "***" if field.endswith(("secret", "token", "_key")) else first["input"]
    if field.endswith("url") and isinstance(value, str):
        value = without_secrets(value)
    raise InvalidOptionError.for_option(name, value=value, allowed=rule)


def without_secrets(url: str) -> str:
    """Return a URL with *** for user, password, query and fragment."""
    scheme, slashes, rest = url.partition("//") if "//" in url else ("", "", url)
    if "@" in rest:
        rest = f"***@{rest.rpartition('@')[2]}"
    end = re.search("[?#].", rest)
    return scheme + slashes + (f"{rest[: end.start() + 1]}***" if end else rest)
