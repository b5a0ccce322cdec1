"""Settings: sources, precedence, validation and secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterwords.errors import AfterwordsError, InvalidInputError, InvalidOptionError, ServerSetupError
from afterwords.server import Settings, load_settings
from afterwords.server.app_state import find_dispatchers
from afterwords.server.dispatch.local import LocalDispatcher
from afterwords.server.dispatch.modal import ModalDispatcher
from tests.error_codes import has_code

STRONG = "x" * 32


@pytest.fixture
def config(home: Path) -> Path:
    home.mkdir()
    return home / "config.toml"


def test_defaults_are_safe(home: Path) -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.home) == ("127.0.0.1", 7860, home)
    assert settings.admin_secret is None
    assert settings.is_loopback
    settings.check_is_safe()


def test_arguments_win_over_environment_over_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('port = 1\nhost = "localhost"\nworkers = 7\nallowed_hosts = ["a.example", "b.example"]')
    monkeypatch.setenv("AFTERWORDS_PORT", "2")
    monkeypatch.setenv("AFTERWORDS_HOST", "::1")
    settings = load_settings(port=3)
    assert (settings.port, settings.host, settings.workers) == (3, "::1", 7)
    assert settings.allowed_hosts == ("a.example", "b.example")


def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_ADMIN_SECRET", "")
    monkeypatch.setenv("AFTERWORDS_PORT", "")
    assert load_settings().admin_secret is None
    assert load_settings().port == 7860


def test_lists_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_BACKENDS", "tone, lite,")
    assert load_settings().backends == ("tone", "lite")


def test_each_dispatcher_has_its_own_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_BACKENDS", "other")
    monkeypatch.setenv("AFTERWORDS_DISPATCHERS", "tone=local, lite = local,")
    [(create, settings)] = find_dispatchers(load_settings())
    assert (create, settings.backends) == (LocalDispatcher, ("tone", "lite"))
    with pytest.raises(InvalidOptionError, match="AFTERWORDS_DISPATCHERS is 'nothing', but must be local"):
        find_dispatchers(load_settings(dispatchers={"lite": "nothing"}))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "no public URL is set"),
        ({"modal_trigger_url": "example.com/trigger"}, "AFTERWORDS_MODAL_TRIGGER_URL is '***'"),
        ({"modal_trigger_url": "https://x.modal.run"}, "no public URL is set"),
        ({"modal_trigger_url": "http://localhost:1", "backends": "nothing"}, "AFTERWORDS_BACKENDS is 'nothing'"),
    ],
)
def test_service_needs_complete_settings(options: dict[str, str], problem: str) -> None:
    with pytest.raises(AfterwordsError) as caught:
        ModalDispatcher.check(load_settings(**options))
    assert problem in caught.value.message
    ModalDispatcher.check(load_settings(modal_trigger_url="https://x.modal.run", public_url="https://voice.example"))


@pytest.mark.parametrize(
    ("variable", "value", "rule"),
    [
        ("PORT", "abc", "a valid integer"),
        ("DISPATCHERS", "lite", "pairs of a backend and its dispatcher"),
        ("DISPATCHERS", "lite=local, lite=modal", "pairs of a backend and its dispatcher"),
        ("PORT", "65536", "less than or equal to 65535"),
        ("PORT", "-1", "greater than or equal to 0"),
        ("WORKERS", "1.5", "a valid integer"),
        ("LEASE_S", "soon", "a valid number"),
        ("LEASE_S", "0", "greater than 0"),
        ("BODY_TIMEOUT_S", "nan", "a finite number"),
        ("DRAIN_S", "inf", "a finite number"),
        ("RATE_LIMIT", "-5", "greater than or equal to 0"),
        ("PUBLIC_URL", "voice.example", "an http(s):// address"),
        ("PUBLIC_URL", "ftp://voice.example", "an http(s):// address"),
        ("TRUSTED_PROXIES", "10.0.0.0/8, nonsense", "IP addresses or networks"),
    ],
)
def test_invalid_variable_is_named_with_its_rule(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, rule: str
) -> None:
    monkeypatch.setenv(f"AFTERWORDS_{variable}", value)
    with pytest.raises(InvalidOptionError) as caught:
        load_settings()
    assert caught.value.message.startswith(f"AFTERWORDS_{variable} is '{value}', but must be {rule}")
    assert rule in caught.value.hint


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:hunter2@voice.example/x", "https://***@voice.example/x"),
        ("https://hunter2@voice.example", "https://***@voice.example"),
        ("https://me:hun?ter2@voice.example", "https://***@voice.example"),
        ("https://me:hun/ter2@voice.example", "https://***@voice.example"),
        ("https://@voice.example", "https://***@voice.example"),
        ("https://voice.example/?token=hunter2", "https://voice.example/?***"),
        ("https://voice.example/#hunter2", "https://voice.example/#***"),
        ("https://voice.example/?", "https://voice.example/?"),
        ("me:hunter2@voice.example", "***@voice.example"),
    ],
)
def test_public_url_with_credentials_is_refused_redacted(url: str, shown: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        load_settings(public_url=url)
    assert shown in caught.value.message
    assert not any(part in f"{caught.value} {caught.value.hint}" for part in ("hunter2", "ter2@", "hun"))


def test_invalid_line_of_the_file_is_named(config: Path) -> None:
    config.write_text("port = 70000")
    with pytest.raises(InvalidOptionError, match=r"^config\.toml: port is 70000, but must be less than"):
        load_settings()


def test_invalid_argument_is_named() -> None:
    with pytest.raises(InvalidOptionError, match=r"^port is 70000, but must be less than"):
        load_settings(port=70_000)


def test_invalid_secret_is_not_shown(config: Path) -> None:
    config.write_text("admin_secret = 123456789")
    with pytest.raises(InvalidOptionError) as caught:
        load_settings()
    assert "123456789" not in f"{caught.value} {caught.value.hint}"


def test_malformed_toml_is_refused(config: Path) -> None:
    config.write_text("port = ")
    with pytest.raises(InvalidInputError, match=r"config\.toml", check=has_code("invalid_config")):
        load_settings()


def test_repr_hides_secrets() -> None:
    settings = Settings(admin_secret=STRONG, callback_secret="another-secret")  # type: ignore[arg-type]
    assert STRONG not in f"{settings!r} {settings}"
    assert "another-secret" not in f"{settings!r} {settings}"


def test_repr_hides_urls_with_credentials() -> None:
    settings = load_settings(database_url="sqlite:///hunter2.db", storage_url="s3://b?endpoint=https://me:hunter2@x")
    assert "hunter2" not in f"{settings!r} {settings}"


@pytest.mark.parametrize(
    ("names", "is_public"),
    [
        ({"public_url": "https://voice.example"}, True),
        ({"public_url": "http://192.0.2.1:80"}, True),
        ({"allowed_hosts": "*"}, True),
        ({"allowed_hosts": "localhost, voice.example"}, True),
        ({"public_url": "http://localhost:7860"}, False),
        ({"public_url": "http://[::1]:7860", "allowed_hosts": "127.0.0.1"}, False),
    ],
)
def test_public_name_requires_strong_secrets(names: dict[str, str], is_public: bool) -> None:
    for weak in ({"admin_secret": "x" * 31}, {"admin_secret": STRONG, "callback_secret": "x"}, {"metrics_token": "x"}):
        settings = load_settings(**names, **weak)
        if is_public:
            with pytest.raises(ServerSetupError, match="at least 32 characters", check=has_code("insecure_server")):
                settings.check_is_safe()
        else:
            settings.check_is_safe()
    load_settings(**names).check_is_safe()  # the admin routes answer 401
    load_settings(**names, admin_secret=STRONG, callback_secret=STRONG).check_is_safe()


SELLS = {
    "stripe_secret_key": "sk_test_x",
    "stripe_webhook_secret": "whsec_x",
    "stripe_price_id": "price_x",
    "smtp_url": "smtps://me:hunter2@mail.example",
    "mail_from": "voice@voice.example",
}


@pytest.mark.parametrize("missing", ["stripe_webhook_secret", "stripe_price_id", "mail_from"])
def test_selling_plans_needs_complete_settings(missing: str) -> None:
    load_settings(**SELLS).check_is_safe()
    with pytest.raises(ServerSetupError, match=f"AFTERWORDS_{missing.upper()} is not set"):
        load_settings(**(SELLS | {missing: None})).check_is_safe()


@pytest.mark.parametrize("kind", ["sk", "rk"])
@pytest.mark.parametrize("url", [None, "http://voice.example", "https://localhost", "https://127.0.0.1:7860"])
def test_live_key_needs_a_public_https_url(kind: str, url: str | None) -> None:
    live = SELLS | {"stripe_secret_key": f"{kind}_live_hunter2"}
    with pytest.raises(ServerSetupError, match="live", check=has_code("insecure_server")) as caught:
        load_settings(**live, public_url=url).check_is_safe()
    assert "hunter2" not in caught.value.message
    load_settings(**live, public_url="https://voice.example").check_is_safe()


@pytest.mark.parametrize("url", ["mail.example", "https://mail.example", "smtp://"])
def test_mail_server_is_a_url_of_smtp(url: str) -> None:
    with pytest.raises(InvalidOptionError, match=r"smtp_url is .*, but must be smtps:// or smtp://"):
        load_settings(smtp_url=url)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.5.5.5", "::1", "localhost"])
def test_loopback_needs_no_secret(host: str) -> None:
    load_settings(host=host).check_is_safe()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "voice.example", "", "localhost.evil.example"])
@pytest.mark.parametrize("secret", [None, "", "x" * 31])
def test_other_addresses_need_a_strong_secret(host: str, secret: str | None) -> None:
    with pytest.raises(ServerSetupError, match="at least 32 characters", check=has_code("insecure_server")):
        load_settings(host=host, admin_secret=secret).check_is_safe()
    load_settings(host=host, admin_secret=STRONG).check_is_safe()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:5"),
        ("::1", "http://[::1]:5"),
        ("0.0.0.0", "http://localhost:5"),
        ("::", "http://localhost:5"),
    ],
)
def test_base_url_is_local_unless_public_url_is_set(host: str, url: str) -> None:
    assert load_settings(host=host, port=5).base_url == url
    assert load_settings(host=host, public_url="https://voice.example/").base_url == "https://voice.example"


@pytest.mark.parametrize(
    ("given", "origins"),
    [
        ("https://app.example, http://localhost:5173", ("https://app.example", "http://localhost:5173")),
        ("https://App.Example", ("https://app.example",)),
        ("*", ("*",)),
        ("app.example", None),
        ("https://app.example/", None),
        ("https://key@app.example", None),
        ("null", None),
    ],
)
def test_cors_origins_are_validated(given: str, origins: tuple[str, ...] | None) -> None:
    if origins is not None:
        assert load_settings(cors_origins=given).cors_origins == origins
    else:
        with pytest.raises(InvalidOptionError, match="without a path"):
            load_settings(cors_origins=given)
