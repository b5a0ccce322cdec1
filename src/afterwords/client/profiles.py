"""The server to use and the key for it: from arguments, the environment, or a profile that `afterwords login` saved.

A profile is a name, an address and a key. The key is in the system's keyring, or, where there is none, in a file that
only its owner can read. A key is sent to its own address only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

from afterwords import disk
from afterwords.config import load_config
from afterwords.errors import FileError, InvalidInputError, InvalidOptionError

LOCAL_URL: Final = "http://127.0.0.1:7860"
"""The default address of `afterwords serve`."""
DEFAULT_NAME: Final = "default"
_KEYRING_SERVICE: Final = "afterwords"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SECRET: Final = re.compile(r"[\x21-\x7e]{1,512}")
_LOOPBACK: Final = re.compile(r"localhost|127(?:\.\d{1,3}){3}|::1")


@dataclass(frozen=True, slots=True)
class Access:
    """A server and the secrets for it.

    Attributes:
        base_url: The address, without a slash at its end.
        profile: The profile that the address and key are from, if any.
    """

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    admin_secret: str | None = field(default=None, repr=False)
    profile: str | None = None

    @property
    def is_loopback(self) -> bool:
        return _LOOPBACK.fullmatch(urlsplit(self.base_url).hostname or "") is not None

    @property
    def is_private(self) -> bool:
        """Whether no one on the network can read requests."""
        return self.is_loopback or self.base_url.startswith("https:")


@dataclass(frozen=True, slots=True)
class Profile:
    """A saved login; `api_key` is None if the key is in the keyring."""

    name: str
    url: str
    api_key: str | None = field(default=None, repr=False)


def find_access(
    base_url: str | None = None,
    *,
    api_key: str | None = None,
    admin_secret: str | None = None,
    profile: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Access:
    """Return the server to use, and the key for it.

    Args:
        base_url: Default: the address of `profile`, then AFTERWORDS_BASE_URL, then the profile in use, then this
            machine.
        api_key: Default: AFTERWORDS_API_KEY, then the key of the profile, each only for its own address.
        admin_secret: Default: AFTERWORDS_ADMIN_SECRET, but only for AFTERWORDS_BASE_URL if that is set.
        profile: The name of a saved login.
        environ: Default: `os.environ`.

    Raises:
        InvalidInputError: The address, a secret or the profile can't be used.
    """
    env = os.environ if environ is None else environ
    profiles = Profiles(load_config(env).home)
    env_url = env.get("AFTERWORDS_BASE_URL") or None
    saved: Profile | None
    if profile is not None:
        saved = profiles.get(profile)
        url = check_url(base_url or saved.url)
    elif base_url is None and env_url is None:
        saved = profiles.current(env.get("AFTERWORDS_PROFILE") or None)
        url = check_url(saved.url) if saved else LOCAL_URL
    else:
        url = check_url(base_url or str(env_url))
        saved = profiles.find(url)
    if saved is not None and saved.url != url:
        saved = None
    is_env_url = env_url is None or check_url(env_url) == url
    if api_key is None and profile is None and is_env_url:
        api_key = env.get("AFTERWORDS_API_KEY") or None
    if api_key is None and saved is not None:
        api_key = profiles.get_key(saved)
    secret = admin_secret or (env.get("AFTERWORDS_ADMIN_SECRET") if is_env_url else None) or None
    return Access(
        url,
        api_key=None if api_key is None else check_secret(api_key, "the API key"),
        admin_secret=None if secret is None else check_secret(secret, "the admin secret"),
        profile=None if saved is None else saved.name,
    )


def check_url(url: str) -> str:
    """Return the normal form of a server's address: no slash at its end, scheme and host in lower case.

    Raises:
        InvalidInputError: It is not an http or https address, or contains a password.
    """
    url = url.strip()
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _invalid_url("it can't be parsed") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _invalid_url("it does not begin with https:// or http:// and a host name")
    if parts.username is not None or parts.password is not None:
        raise _invalid_url("it contains a user or a password")
    if parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise _invalid_url("it contains more than a host, a port and a path")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default_port = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}{'' if port in (None, default_port) else f':{port}'}{parts.path.rstrip('/')}"


def _invalid_url(why: str) -> InvalidInputError:
    """Return the error, whose message omits the address, because it may contain a secret."""
    hint = "use an address such as https://voices.example.com."
    return InvalidInputError(f"The server address is invalid: {why}.", hint=hint)


def check_profile(name: str) -> str:
    """Return a valid profile name, or raise InvalidOptionError."""
    if not _NAME.fullmatch(name):
        raise InvalidOptionError.for_option(
            "the profile", value=name[:40], allowed="letters, digits, dot, hyphen, underscore"
        )
    return name


def check_secret(secret: str, what: str) -> str:
    """Return a secret that a header can carry, or raise InvalidInputError, which does not show it."""
    secret = secret.strip()
    if not _SECRET.fullmatch(secret):
        why = "is empty" if not secret else "contains more than visible ASCII characters, or is too long"
        raise InvalidInputError(f"{what[0].upper()}{what[1:]} {why}.", hint="copy all of it again, and nothing else.")
    return secret


class _SavedProfile(BaseModel):
    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    url: str
    api_key: str | None = None


class _ProfilesFile(BaseModel):
    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    chosen: str | None
    profiles: dict[str, _SavedProfile]


class Profiles:
    """The profiles of a home folder, in `profiles.json`."""

    def __init__(self, home: Path) -> None:
        self.path = home / "profiles.json"

    def all(self) -> list[Profile]:
        """Return all profiles, sorted by name.

        Raises:
            FileError: The file is damaged.
        """
        saved = self._read().profiles
        return [Profile(name, saved[name].url, saved[name].api_key) for name in sorted(saved)]

    def get(self, name: str) -> Profile:
        """Return a profile.

        Raises:
            InvalidOptionError: There is no profile with this name.
        """
        for profile in self.all():
            if profile.name == name:
                return profile
        names = ", ".join(profile.name for profile in self.all())
        raise InvalidOptionError.for_option("the profile", value=name, allowed=names or "there are no profiles yet")

    def current(self, name: str | None = None) -> Profile | None:
        """Return the profile with this name; by default the one in use, if any."""
        name = name or self._read().chosen
        return None if name is None else self.get(name)

    def find(self, url: str) -> Profile | None:
        """Return a profile with this address, preferably the one in use."""
        current = self.current()
        profiles = ([current] if current else []) + self.all()
        return next((profile for profile in profiles if profile.url == url), None)

    def get_key(self, profile: Profile) -> str | None:
        """Return the key of a profile, from the file or the keyring."""
        if profile.api_key is not None or (keyring := _keyring()) is None:
            return profile.api_key
        try:
            return cast("str | None", keyring.get_password(_KEYRING_SERVICE, _account(profile)))
        except keyring.errors.KeyringError:
            return None

    def save(self, name: str, url: str, api_key: str) -> bool:
        """Save a profile, put it in use, and return whether its key is in the keyring.

        Raises:
            InvalidInputError: The name, the address or the key can't be used.
        """
        profile = Profile(check_profile(name), check_url(url), check_secret(api_key, "the API key"))
        content = self._read()
        is_in_keyring = False
        if keyring := _keyring():
            with suppress(keyring.errors.KeyringError):  # the machine has no keyring, or it is locked
                keyring.set_password(_KEYRING_SERVICE, _account(profile), profile.api_key)
                is_in_keyring = keyring.get_password(_KEYRING_SERVICE, _account(profile)) == profile.api_key
        before = content.profiles.get(name)
        saved = _SavedProfile(url=profile.url, api_key=None if is_in_keyring else profile.api_key)
        self._write(name, {**content.profiles, name: saved})
        if before is not None and (before.url != profile.url or not is_in_keyring):
            _delete_key(Profile(name, before.url))
        return is_in_keyring

    def use(self, name: str) -> Profile:
        """Put a profile in use, and return it."""
        profile = self.get(name)
        self._write(name, self._read().profiles)
        return profile

    def remove(self, name: str) -> None:
        """Delete a profile and its key."""
        _delete_key(self.get(name))
        content = self._read()
        del content.profiles[name]
        self._write(content.chosen if content.chosen != name else min(content.profiles, default=None), content.profiles)

    def _read(self) -> _ProfilesFile:
        try:
            content = _ProfilesFile.model_validate(disk.read_json(self.path))
        except FileNotFoundError:
            return _ProfilesFile(chosen=None, profiles={})
        except ValueError:  # which ValidationError is
            raise FileError.unreadable(self.path, why="it is damaged; log in again after removing it") from None
        if content.chosen not in content.profiles:
            content.chosen = None
        return content

    def _write(self, chosen: str | None, profiles: dict[str, _SavedProfile]) -> None:
        saved = {name: profile.model_dump(exclude_none=True) for name, profile in profiles.items()}
        disk.make_folder(self.path.parent)
        disk.write(self.path, [json.dumps({"chosen": chosen, "profiles": saved}, indent=2).encode(), b"\n"])


def _account(profile: Profile) -> str:
    return f"{profile.name} {profile.url}"


def _keyring() -> Any:
    """Return the package `keyring`, of the extra `login`; None if it is not installed."""
    try:
        import keyring
    except ImportError:
        return None
    return keyring


def _delete_key(profile: Profile) -> None:
    if (keyring := _keyring()) is not None:
        with suppress(keyring.errors.KeyringError):  # the keyring does not have it
            keyring.delete_password(_KEYRING_SERVICE, _account(profile))
