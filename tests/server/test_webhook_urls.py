"""Webhook URLs that are accepted, and addresses that are public."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterwords.errors import InvalidRequestError
from afterwords.server.webhooks import check_url, is_public

PUBLIC: Final = [
    "https://hook.example",
    "https://hook.example:8443/a/b?c=d%20e&f=@",
    "HTTPS://Hook.Example./",
    "https://bücher.example/ü",
    "https://my_hook.example/",
    "https://93.184.216.34/",
    "https://[2606:2800:220:1:248:1893:25c8:1946]:8443/x",
    "https://[64:ff9b::5db8:d822]/",
    "https://local.example/",
    "https://hook.example/" + "x" * 1_979,
]
INVALID: Final = [
    ("", "https://"),
    ("hook.example", "https://"),
    ("http://hook.example/", "https://"),
    ("ftp://hook.example/", "https://"),
    ("file:///etc/passwd", "https://"),
    ("//hook.example/", "https://"),
    ("https:/hook.example", "https://"),
    ("https://", "no host"),
    ("https:///path", "no host"),
    ("https://:443/", "no host"),
    ("https://user:secret@hook.example/", "credentials"),
    ("https://@hook.example/", "credentials"),
    ("https://hook.example/#part", "fragment"),
    ("https://hook.example#", "fragment"),
    ("https://hook.example/" + "x" * 1_980, "2,000"),
    ("https://hook.example/a b", "space"),
    ("https://hook.example/\r\nX-Evil: 1", "space"),
    ("https://hook.example\\@10.0.0.1/", "backslash"),
    ("https://hook.example/\0", "control"),
    ("https://hook.example/\ud800", "control"),
    ("https://hook.example:0/", "port"),
    ("https://hook.example:99999/", "port"),
    ("https://hook.example:x/", "not a URL"),
    ("https://[::1/", "not a URL"),
    ("https://１２７.0.0.1/", "not a URL"),
]
PRIVATE_HOSTS: Final = [
    *("127.0.0.1", "127.1", "0x7f.1", "2130706433", "0x7f000001", "017700000001", "0177.0.0.1", "127.0.0.1."),
    *("0", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("100.100.100.200", "100.127.255.255", "192.0.0.192", "198.18.0.1", "203.0.113.1", "224.0.0.1", "240.0.0.1"),
    *("255.255.255.255", "168.63.129.16", "1.2.3.4.5", "256.1.1.1", "1.2.3", "93.184.216.034", "0x5d.184.216.34"),
    *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:10.0.0.1]", "[::127.0.0.1]", "[fe80::1]"),
    *("[fe80::1%25eth0]", "[2606:2800::1%25eth0]", "[fd00:ec2::254]", "[fec0::1]", "[ff02::1]", "[2001:db8::1]"),
    *("[2001::1]", "[3fff::1]", "[64:ff9b::7f00:1]", "[64:ff9b::10.0.0.1]", "[64:ff9b:1::5db8:d822]", "[100::1]"),
    *("[2002:7f00:1::]", "[2002:a00:1::1]", "[::ffff:0:127.0.0.1]", "[5f00::1]"),
    *(
        "localhost",
        "LOCALHOST",
        "localhost.",
        "a.localhost",
        "printer.local",
        "metadata.google.internal",
        "nas.lan",
    ),
    *(
        "intranet",
        "db",
        "router.home.arpa",
        "a..example",
        "-a.example",
        "a-.example",
        "exa%6dple.com",
        "a,b.example",
    ),
    *("%31%32%37.0.0.1", "a." * 130 + "example", "x" * 64 + ".example", "localhost.localdomain"),
]


def reason(url: str) -> str:
    """Return why a URL is refused, or an empty string."""
    try:
        check_url(url)
    except InvalidRequestError as error:
        return str(error) if error.code == "invalid_webhook_url" else error.code
    return ""


def test_public_https_url_is_accepted() -> None:
    assert [check_url(url) for url in PUBLIC] == PUBLIC


def test_invalid_url_is_refused_with_the_reason() -> None:
    assert not [url for url, why in INVALID if why not in reason(url) or "secret" in reason(url)]


def test_private_host_is_refused() -> None:
    reasons = {host: reason(f"https://{host}/") for host in PRIVATE_HOSTS}
    assert not [host for host, why in reasons.items() if "public one" not in why and "not a URL" not in why]


@given(st.text() | st.text("htps:/[]@.:0x7f#%").map("https://".__add__))
def test_any_text_is_accepted_or_refused(url: str) -> None:
    with suppress(InvalidRequestError):
        assert check_url(url) == url


@given(st.ip_addresses())
def test_private_and_multicast_addresses_are_not_public(ip: object) -> None:
    assert not (is_public(str(ip)) and getattr(ip, "is_private", False))
    assert not (is_public(str(ip)) and getattr(ip, "is_multicast", False))


@pytest.mark.parametrize("address", ["", "hook.example", "127.1", "::ffff:0.0.0.0", "1.1.1.1 "])
def test_invalid_address_is_not_public(address: str) -> None:
    assert not is_public(address)
