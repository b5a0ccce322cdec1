"""Proxies and certificates that the environment names, and which variable is wrong where they can't be used.

The clients of servers and of the model hub are made in here, and the hub's own client runs in here.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import httpx

from afterwords.errors import RemoteError

_PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy")


@contextmanager
def checked_network() -> Iterator[None]:
    """Give a failure its name where the environment is the cause of it.

    Raises:
        RemoteError: httpx can't use a proxy or a certificate that the environment names.
    """
    try:
        yield
    except (ImportError, OSError, ValueError, httpx.InvalidURL):
        problem = _proxy_problem() or _certificate_problem() or _exception_problem()
        if problem is None:
            raise
        raise problem from None  # the cause may quote the password of a proxy


def setting_to_check(url: str, error: Exception) -> str:
    """Return what a person should see about the environment where there is no connection to an address elsewhere.

    Empty where the environment has no part in it; else it goes on after "see that …, and that".
    """
    if isinstance(root_cause(error), ssl.SSLCertVerificationError):
        return "SSL_CERT_FILE, if your network has certificates of its own, names a file with them"
    found = _variables()
    variable = found.get(f"{url.partition(':')[0]}_proxy") or found.get("all_proxy")
    return f"the proxy in {variable} works" if variable else ""


def root_cause(error: BaseException) -> BaseException:
    """Return what an error began with."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return error


def _variables() -> dict[str, str]:
    """Return the variables of proxies as they are spelled, by their names in small letters, which win over capitals."""
    names = [name for name, value in os.environ.items() if value and name.lower() in (*_PROXIES, "no_proxy")]
    return {name.lower(): name for name in sorted(names, key=str.islower)}


def _proxy_problem() -> RemoteError | None:
    found = _variables()
    for name in (found[proxy] for proxy in _PROXIES if proxy in found):
        value = os.environ[name]
        try:
            httpx.HTTPTransport(
                verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
                proxy=httpx.Proxy(value if "://" in value else f"http://{value}"),
            ).close()
        except ImportError:
            hint = f'pip install "httpx[socks]", or unset {name} to connect without a proxy.'
            return RemoteError.for_network_setting(name, why="a SOCKS proxy needs the package socksio", hint=hint)
        except (ValueError, httpx.InvalidURL):
            hint = f"set {name} to an address such as http://proxy.example.com:3128, or unset it."
            return RemoteError.for_network_setting(name, why="it is not the address of a proxy", hint=hint)
    return None


def _certificate_problem() -> RemoteError | None:
    if path := os.environ.get("SSLKEYLOGFILE"):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).keylog_filename = path
        except OSError as error:
            hint = "set SSLKEYLOGFILE to a file that can be written, or unset it."
            return RemoteError.for_network_setting("SSLKEYLOGFILE", why=_reason(error), hint=hint)
    if path := os.environ.get("SSL_CERT_FILE"):
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:
            hint = "set SSL_CERT_FILE to a file of certificates in PEM form, or unset it."
            return RemoteError.for_network_setting("SSL_CERT_FILE", why=_reason(error), hint=hint)
    return None


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return "the file holds no certificate that can be read"
    return (error.strerror or str(error)).lower()


def _exception_problem() -> RemoteError | None:
    """Return what is wrong with the names that need no proxy; called where the proxies themselves are right."""
    try:
        httpx.Client(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)).close()
    except (ImportError, ValueError, httpx.InvalidURL):
        name = _variables().get("no_proxy")
        if name is None:
            hint = "correct them, or set HTTPS_PROXY, which is read in their place."
            return RemoteError.for_network_setting("the system", why="its proxy settings are not understood", hint=hint)
        hint = f"set {name} to host names with commas between them, or unset it."
        return RemoteError.for_network_setting(name, why="it does not list host names", hint=hint)
    return None
