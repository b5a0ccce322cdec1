"""What may go over the network: proxies and certificates of the environment, and no telemetry of libraries.

Clients of servers and of the model hub are created within `explain_network_errors`. `turn_off_telemetry` is called
before an engine or a transcription model loads; docs/privacy.md lists what each library would send.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from afterwords.errors import RemoteError

TELEMETRY_SWITCHES: Final = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime 1.29 and later
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, hf_xet and transformers
    "RAY_USAGE_STATS_ENABLED": "0",
}
_PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy")


# -- telemetry ------------------------------------------------------------------------------------------------


def turn_off_telemetry() -> None:
    """Disable the telemetry of libraries in this process and its child processes.

    Libraries read these variables when they are imported. A variable that the user set is left as it is.
    """
    for name, value in TELEMETRY_SWITCHES.items():
        if not os.environ.get(name):
            os.environ[name] = value


def import_onnxruntime() -> Any:
    """Import onnxruntime with its telemetry disabled, as far as possible.

    If the program imported it before, it has already recorded a device ID and its first event, which it uploads; this
    call stops further events.
    """
    turn_off_telemetry()
    import onnxruntime

    if os.environ["ORT_DISABLE_TELEMETRY"] == TELEMETRY_SWITCHES["ORT_DISABLE_TELEMETRY"]:
        onnxruntime.disable_telemetry_events()
    return onnxruntime


# -- proxies and certificates ---------------------------------------------------------------------------------


@contextmanager
def explain_network_errors() -> Iterator[None]:
    """Name the environment variable that makes creating an HTTP client fail.

    Raises:
        RemoteError: httpx can't use a proxy or a certificate that the environment sets.
    """
    import httpx

    try:
        yield
    except (ImportError, OSError, ValueError, httpx.InvalidURL):
        if (problem := _find_problem()) is None:
            raise
        raise problem from None  # the cause may quote the password of a proxy


def setting_to_check(url: str, error: Exception) -> str:
    """Return which network setting may have prevented a connection, or an empty string.

    The text continues a hint: "check that the server is running, and that …".
    """
    if isinstance(root_cause(error), ssl.SSLCertVerificationError):
        return "SSL_CERT_FILE names a file with your network's own certificates, if it has some"
    variables = _proxy_variables()
    variable = variables.get(f"{url.partition(':')[0]}_proxy") or variables.get("all_proxy")
    return f"the proxy in {variable} works" if variable else ""


def root_cause(error: BaseException) -> BaseException:
    """Return the first error of a chain of causes."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return error


def _proxy_variables() -> dict[str, str]:
    """Return the proxy variables that are set, as spelled, by lower-case name; a lower-case spelling wins."""
    names = [name for name, value in os.environ.items() if value and name.lower() in (*_PROXIES, "no_proxy")]
    return {name.lower(): name for name in sorted(names, key=str.islower)}


def _find_problem() -> RemoteError | None:
    import httpx

    variables = _proxy_variables()
    for name in (variables[proxy] for proxy in _PROXIES if proxy in variables):
        value = os.environ[name]
        try:
            httpx.HTTPTransport(
                verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
                proxy=httpx.Proxy(value if "://" in value else f"http://{value}"),
            ).close()
        except ImportError:
            hint = f'pip install "httpx[socks]", or unset {name} to connect without a proxy.'
            return _setting_error(name, "a SOCKS proxy needs the package socksio", hint=hint)
        except (ValueError, httpx.InvalidURL):
            hint = f"set {name} to a URL such as http://proxy.example.com:3128, or unset it."
            return _setting_error(name, "it is not the URL of a proxy", hint=hint)
    if path := os.environ.get("SSLKEYLOGFILE"):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).keylog_filename = path
        except OSError as error:
            hint = "set SSLKEYLOGFILE to a writable file, or unset it."
            return _setting_error("SSLKEYLOGFILE", (error.strerror or str(error)).lower(), hint=hint)
    if path := os.environ.get("SSL_CERT_FILE"):
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            if isinstance(error, ssl.SSLError):
                why = "the file contains no valid certificate"
            return _setting_error("SSL_CERT_FILE", why, hint="set SSL_CERT_FILE to a PEM file, or unset it.")
    try:  # NO_PROXY, since the proxies themselves are valid
        httpx.Client(verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)).close()
    except (ImportError, ValueError, httpx.InvalidURL):
        no_proxy = variables.get("no_proxy")
        if no_proxy is None:
            hint = "correct them, or set HTTPS_PROXY, which takes precedence."
            return _setting_error("the system", "its proxy settings are invalid", hint=hint)
        hint = f"set {no_proxy} to a comma-separated list of host names, or unset it."
        return _setting_error(no_proxy, "it is not a list of host names", hint=hint)
    return None


def _setting_error(variable: str, why: str, *, hint: str) -> RemoteError:
    return RemoteError(f"The network setting of {variable} can't be used: {why}.", code="network_setting", hint=hint)
