"""Which server is asked, and with which key: what was given, else the environment, else the profile that was chosen.

Profiles are what `afterwords login` keeps: a name, an address, and a key in the keyring of the system, or where there
is none in a file that its owner alone may read. A key belongs to the address it was given for, and goes nowhere else.
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

from afterwords import disk
from afterwords.config import load_config
from afterwords.errors import InvalidInputError, InvalidOptionError, UnreadableFileError

LOCAL_URL: Final = "http://127.0.0.1:7860"
"""Where `afterwords serve` listens."""
DEFAULT_NAME: Final = "default"
_SERVICE: Final = "afterwords"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SECRET: Final = re.compile(r"[\x21-\x7e]{1,512}")
_LOOPBACK: Final = re.compile(r"localhost|127(?:\.\d{1,3}){3}|::1")


@dataclass(frozen=True, slots=True)
class Access:
    """A server, and what opens it.

    Attributes:
        base_url: without a slash at its end.
        profile: the profile that it came from, if one.
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
        """Whether nobody on the way can read what is sent."""
        return self.is_loopback or self.base_url.startswith("https:")


@dataclass(frozen=True, slots=True)
class Profile:
    """What is kept of a server; `api_key` is None where the keyring has it."""

    name: str
    url: str
    api_key: str | None = field(default=None, repr=False)


# -- which server ---------------------------------------------------------------------------------------------


def find_access(
    base_url: str | None = None,
    *,
    api_key: str | None = None,
    admin_secret: str | None = None,
    profile: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Access:
    """Find the server to ask, and the key for it.

    Args:
        base_url: goes before a profile that is named, that before AFTERWORDS_BASE_URL, that before the chosen profile;
            in the end, this machine.
        api_key: None takes AFTERWORDS_API_KEY, or the profile's, each only for the address that it belongs to.
        admin_secret: None takes AFTERWORDS_ADMIN_SECRET, which is not for another address than AFTERWORDS_BASE_URL.
        profile: one that `afterwords login` made.

    Raises:
        InvalidInputError: the address, the key or the profile can't be used.
    """
    env = os.environ if environ is None else environ
    profiles = Profiles(load_config(env).home)
    env_url = env.get("AFTERWORDS_BASE_URL") or None
    kept: Profile | None = None
    if profile is not None:
        kept = profiles.get(profile)
    elif base_url is None and env_url is None:
        kept = profiles.chosen(env.get("AFTERWORDS_PROFILE") or None)
    else:
        kept = profiles.at(check_url(base_url or str(env_url)))
    url = check_url(base_url or (kept.url if profile is not None and kept else None) or env_url or _url_of(kept))
    is_of_env = env_url is None or check_url(env_url) == url
    if api_key is None and profile is None and is_of_env:
        api_key = env.get("AFTERWORDS_API_KEY") or None
    if api_key is None and kept is not None and kept.url == url:
        api_key = profiles.key_of(kept)
    secret = admin_secret or (env.get("AFTERWORDS_ADMIN_SECRET") if is_of_env else None) or None
    return Access(
        url,
        api_key=None if api_key is None else check_secret(api_key, "the API key"),
        admin_secret=None if secret is None else check_secret(secret, "the admin secret"),
        profile=kept.name if kept is not None and kept.url == url else None,
    )


def _url_of(kept: Profile | None) -> str:
    return kept.url if kept is not None else LOCAL_URL


def check_url(url: str) -> str:
    """The address of a server in the one form that is compared: no slash at its end, scheme and host in lower case.

    Raises:
        InvalidInputError: it is no http or https address, or it carries a password.
    """
    url = url.strip()
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _bad_url("it can't be read") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _bad_url("it does not begin with https:// or http:// and a name")
    if parts.username is not None or parts.password is not None:
        raise _bad_url("it holds a user or a password")
    if parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise _bad_url("it holds more than a host, a port and a path")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    standard = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}{'' if port in (None, standard) else f':{port}'}{parts.path.rstrip('/')}"


def check_profile(name: str) -> str:
    """The name of a profile.

    Raises:
        InvalidOptionError: it can't be called so.
    """
    if not _NAME.fullmatch(name):
        raise InvalidOptionError("the profile", value=name[:40], allowed="letters, digits, dot, hyphen, underscore")
    return name


def _bad_url(why: str) -> InvalidInputError:
    """Said without the address, which may hold a secret."""
    hint = "give one such as https://voices.example.com."
    return InvalidInputError(f"The address of the server can't be used: {why}.", hint=hint)


def check_secret(secret: str, what: str) -> str:
    """A key that a header can carry; what is wrong with it is said without showing it."""
    secret = secret.strip()
    if not _SECRET.fullmatch(secret):
        why = "is empty" if not secret else "holds something other than visible ASCII, or is too long"
        raise InvalidInputError(f"{what[0].upper()}{what[1:]} {why}.", hint="copy it again, whole and alone.")
    return secret


# -- what is kept ---------------------------------------------------------------------------------------------


class Profiles:
    """The profiles of one home folder, in `profiles.json`."""

    def __init__(self, home: Path) -> None:
        self.path = home / "profiles.json"

    def all(self) -> list[Profile]:
        """Every profile, by name.

        Raises:
            UnreadableFileError: the file is damaged.
        """
        return [self._profile(name, kept) for name, kept in sorted(self._read()["profiles"].items())]

    def get(self, name: str) -> Profile:
        """One profile.

        Raises:
            InvalidOptionError: there is none of that name.
        """
        known = self._read()["profiles"]
        if name not in known:
            raise InvalidOptionError("the profile", value=name, allowed=", ".join(sorted(known)) or "none is there yet")
        return self._profile(name, known[name])

    def chosen(self, name: str | None = None) -> Profile | None:
        """The profile that is used when none is named; `name` goes before the one that was chosen."""
        name = name or self._read()["chosen"]
        return None if name is None else self.get(name)

    def at(self, url: str) -> Profile | None:
        """The profile of an address: the one that was chosen, where several have it."""
        chosen = self.chosen()
        known = ([chosen] if chosen else []) + self.all()
        return next((profile for profile in known if profile.url == url), None)

    def key_of(self, profile: Profile) -> str | None:
        """Its key, wherever that is kept."""
        return profile.api_key or _from_keyring(profile)

    def save(self, name: str, url: str, api_key: str) -> bool:
        """Keep a profile and use it from now on; returns whether its key is in the keyring.

        Raises:
            InvalidOptionError: it can't be called so.
        """
        profile = Profile(check_profile(name), check_url(url), check_secret(api_key, "the API key"))
        known = self._read()
        is_in_keyring = _to_keyring(profile)
        kept = {"url": profile.url} if is_in_keyring else {"url": profile.url, "api_key": profile.api_key}
        self._write({"chosen": name, "profiles": {**known["profiles"], name: kept}})
        if name in known["profiles"]:
            before = self._profile(name, known["profiles"][name])
            if before.url != profile.url or not is_in_keyring:  # or it would lie there for ever
                _drop_from_keyring(before)
        return is_in_keyring

    def choose(self, name: str) -> Profile:
        """Use a profile from now on."""
        profile = self.get(name)
        self._write({**self._read(), "chosen": name})
        return profile

    def remove(self, name: str) -> None:
        """Forget a profile with its key."""
        profile = self.get(name)
        _drop_from_keyring(profile)
        known = self._read()
        rest = {other: kept for other, kept in known["profiles"].items() if other != name}
        chosen = known["chosen"] if known["chosen"] != name else next(iter(sorted(rest)), None)
        self._write({"chosen": chosen, "profiles": rest})

    def _profile(self, name: str, kept: Mapping[str, Any]) -> Profile:
        return Profile(name, kept["url"], kept.get("api_key"))

    def _read(self) -> dict[str, Any]:
        try:
            known = disk.read_json(self.path)
            chosen, profiles = known["chosen"], known["profiles"]
            is_whole = isinstance(chosen, str | None) and all(
                isinstance(p["url"], str) and isinstance(p.get("api_key"), str | None) for p in profiles.values()
            )
            if not is_whole:
                raise TypeError
        except FileNotFoundError:
            return {"chosen": None, "profiles": {}}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UnreadableFileError(self.path, why="it is damaged; log in again after removing it") from None
        return {"chosen": chosen if chosen in profiles else None, "profiles": profiles}

    def _write(self, known: Mapping[str, Any]) -> None:
        disk.make_folder(self.path.parent)
        disk.write(self.path, [json.dumps(known, indent=2).encode(), b"\n"])


# -- the keyring ----------------------------------------------------------------------------------------------


def _account(profile: Profile) -> str:
    return f"{profile.name} {profile.url}"


def _keyring() -> Any:
    """The library `keyring`, of the extra `login`; None where it is not installed."""
    try:
        import keyring
    except ImportError:
        return None
    return keyring


def _to_keyring(profile: Profile) -> bool:
    """Keep the key there; False where there is no keyring that works."""
    if (keyring := _keyring()) is None:
        return False
    try:
        keyring.set_password(_SERVICE, _account(profile), profile.api_key)
        return bool(keyring.get_password(_SERVICE, _account(profile)) == profile.api_key)
    except keyring.errors.KeyringError:  # there is none on this machine, or it is locked
        return False


def _from_keyring(profile: Profile) -> str | None:
    if (keyring := _keyring()) is None:
        return None
    try:
        return cast("str | None", keyring.get_password(_SERVICE, _account(profile)))
    except keyring.errors.KeyringError:
        return None


def _drop_from_keyring(profile: Profile) -> None:
    if (keyring := _keyring()) is not None:
        with suppress(keyring.errors.KeyringError):  # it is not there
            keyring.delete_password(_SERVICE, _account(profile))
