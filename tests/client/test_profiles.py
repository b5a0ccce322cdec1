"""The server and key in use: from arguments, the environment or a profile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afterwords.client.profiles import LOCAL_URL, Access, Profiles, check_url, find_access
from afterwords.errors import FileError, InvalidInputError, InvalidOptionError

A, B = "https://a.example", "https://b.example"


@pytest.fixture
def profiles(home: Path, monkeypatch: pytest.MonkeyPatch) -> Profiles:
    """Return two profiles with keys in the file; `b` is in use."""
    # These tests do not depend on the keyring of the machine.
    monkeypatch.setattr("afterwords.client.profiles._keyring", lambda: None)
    saved = Profiles(home)
    saved.save("a", A, "aw_of-a")
    saved.save("b", B, "aw_of-b")
    return saved


def access_of(
    home: Path, base_url: str | None = None, *, env: dict[str, str] | None = None, **arguments: str
) -> Access:
    environ = {"AFTERWORDS_HOME": str(home), **{f"AFTERWORDS_{name}": value for name, value in (env or {}).items()}}
    return find_access(base_url, environ=environ, **arguments)


class TestAccess:
    def test_default_server_is_this_machine(self, home: Path) -> None:
        access = access_of(home)
        assert (access.base_url, access.api_key, access.profile, access.is_loopback) == (LOCAL_URL, None, None, True)

    @pytest.mark.parametrize(
        ("base_url", "arguments", "env", "expected"),
        [
            (None, {}, {}, (B, "aw_of-b", "b")),
            (None, {}, {"PROFILE": "a"}, (A, "aw_of-a", "a")),
            (None, {"profile": "a"}, {}, (A, "aw_of-a", "a")),
            (None, {"profile": "a"}, {"PROFILE": "b", "BASE_URL": B, "API_KEY": "aw_env"}, (A, "aw_of-a", "a")),
            (None, {}, {"BASE_URL": A}, (A, "aw_of-a", "a")),
            (None, {}, {"BASE_URL": A, "API_KEY": "aw_env"}, (A, "aw_env", "a")),
            (None, {}, {"BASE_URL": "https://c.example"}, ("https://c.example", None, None)),
            (None, {}, {"API_KEY": "aw_env"}, (B, "aw_env", "b")),
            (A, {}, {}, (A, "aw_of-a", "a")),
            (A, {"api_key": "aw_given"}, {"API_KEY": "aw_env"}, (A, "aw_given", "a")),
            (A, {}, {"API_KEY": "aw_env"}, (A, "aw_env", "a")),
            (A, {}, {"BASE_URL": B, "API_KEY": "aw_env"}, (A, "aw_of-a", "a")),
            ("https://c.example", {}, {"BASE_URL": B, "API_KEY": "aw_env"}, ("https://c.example", None, None)),
            ("https://c.example", {"profile": "a"}, {}, ("https://c.example", None, None)),
            ("HTTPS://A.example:443/", {}, {}, (A, "aw_of-a", "a")),
            ("http://a.example", {}, {}, ("http://a.example", None, None)),
            ("https://a.example.evil.example", {}, {}, ("https://a.example.evil.example", None, None)),
            ("https://a.example:8443", {}, {}, ("https://a.example:8443", None, None)),
        ],
    )
    @pytest.mark.usefixtures("profiles")
    def test_key_is_used_for_its_own_address_only(
        self,
        home: Path,
        base_url: str | None,
        arguments: dict[str, str],
        env: dict[str, str],
        expected: tuple[str, str | None, str | None],
    ) -> None:
        access = access_of(home, base_url, env=env, **arguments)
        assert (access.base_url, access.api_key, access.profile) == expected

    @pytest.mark.parametrize(
        ("base_url", "env", "is_sent"),
        [(None, {}, True), (A, {}, True), (B, {"BASE_URL": B}, True), (A, {"BASE_URL": B}, False)],
    )
    def test_admin_secret_is_used_for_its_own_server_only(
        self, home: Path, base_url: str | None, env: dict[str, str], is_sent: bool
    ) -> None:
        access = access_of(home, base_url, env={**env, "ADMIN_SECRET": "of-this-server"})
        assert (access.admin_secret == "of-this-server") is is_sent
        assert access_of(home, base_url, env=env, admin_secret="given").admin_secret == "given"

    def test_profile_in_use_wins_among_those_of_one_server(self, home: Path, profiles: Profiles) -> None:
        profiles.save("z", A, "aw_of-z")
        assert access_of(home, A).api_key == "aw_of-z"
        profiles.use("a")
        assert access_of(home, A).api_key == "aw_of-a"

    @pytest.mark.parametrize(
        ("url", "normal"),
        [
            (" https://A.Example/ ", A),
            ("https://a.example:443", A),
            ("http://a.example:80/", "http://a.example"),
            ("http://a.example:8080//", "http://a.example:8080"),
            ("https://a.example/api/", f"{A}/api"),
            ("http://[::1]:7860", "http://[::1]:7860"),
        ],
    )
    def test_url_is_normalized(self, url: str, normal: str) -> None:
        assert check_url(url) == normal

    @pytest.mark.parametrize(
        ("url", "is_loopback", "is_private"),
        [
            ("http://127.0.0.1:1", True, True),
            ("http://127.9.9.9", True, True),
            ("http://localhost", True, True),
            ("http://[::1]:1", True, True),
            ("http://localhost.evil.example", False, False),
            ("http://127.0.0.1.evil.example", False, False),
            ("https://evil.example", False, True),
        ],
    )
    def test_plain_http_is_private_on_loopback_only(self, url: str, is_loopback: bool, is_private: bool) -> None:
        assert (Access(url).is_loopback, Access(url).is_private) == (is_loopback, is_private)

    @pytest.mark.usefixtures("profiles")
    def test_unknown_profile_is_refused_with_the_known_ones(self, home: Path) -> None:
        for options in ({"profile": "c"}, {"env": {"PROFILE": "c"}}):
            with pytest.raises(InvalidOptionError, match="a, b"):
                access_of(home, **options)


class TestProfiles:
    def test_only_the_owner_can_read_the_file(self, home: Path, profiles: Profiles) -> None:
        assert profiles.path.stat().st_mode & 0o777 == 0o600
        assert home.stat().st_mode & 0o777 == 0o700
        assert [entry.name for entry in home.iterdir()] == ["profiles.json"]

    def test_last_saved_profile_is_in_use_until_another_is(self, profiles: Profiles) -> None:
        assert [profile.name for profile in profiles.all()] == ["a", "b"]
        assert getattr(profiles.current(), "name", None) == "b"
        profiles.use("a")
        assert getattr(profiles.current(), "name", None) == "a"

    def test_saving_again_replaces_the_profile(self, profiles: Profiles) -> None:
        assert profiles.save("a", f"{A}/", "aw_new") is False  # not in a keyring
        assert profiles.get_key(profiles.get("a")) == "aw_new"
        assert len(profiles.all()) == 2

    def test_removing_a_profile_deletes_its_key(self, profiles: Profiles) -> None:
        profiles.remove("b")
        assert "aw_of-b" not in profiles.path.read_text()
        assert getattr(profiles.current(), "name", None) == "a"
        profiles.remove("a")
        assert (profiles.current(), profiles.all()) == (None, [])
        with pytest.raises(InvalidOptionError):
            profiles.remove("a")

    @pytest.mark.parametrize("name", ["", ".hidden", "two words", "../up", "x" * 65, "ключ"])
    def test_invalid_name_is_refused(self, profiles: Profiles, name: str) -> None:
        with pytest.raises(InvalidOptionError):
            profiles.save(name, A, "aw_x")

    def test_invalid_url_or_key_is_not_saved(self, profiles: Profiles) -> None:
        for url, key in (("https://me:pw@a.example", "aw_x"), (A, "aw_two words"), (A, "")):
            with pytest.raises(InvalidInputError):
                profiles.save("c", url, key)
        assert len(profiles.all()) == 2

    @pytest.mark.parametrize(
        "damaged",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b"\xff",
            b"[" * 100_000,
            b'{"chosen": null}',
            b'{"chosen": 7, "profiles": {}}',
            b'{"chosen": null, "profiles": []}',
            b'{"chosen": null, "profiles": {"a": []}}',
            b'{"chosen": null, "profiles": {"a": {"url": 7}}}',
            b'{"chosen": "a", "profiles": {"a": {"url": "https://a.example", "api_key": 7}}}',
        ],
    )
    def test_damaged_file_is_refused_and_left_unchanged(self, home: Path, profiles: Profiles, damaged: bytes) -> None:
        profiles.path.write_bytes(damaged)
        for use in (profiles.all, lambda: access_of(home), lambda: profiles.save("c", A, "aw_x")):
            with pytest.raises(FileError):
                use()
        assert profiles.path.read_bytes() == damaged

    def test_profile_in_use_that_is_missing_is_ignored(self, home: Path, profiles: Profiles) -> None:
        profiles.path.write_text(json.dumps({"chosen": "gone", "profiles": {}}))
        assert access_of(home).base_url == LOCAL_URL
