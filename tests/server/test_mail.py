"""Mail over SMTP to a real server on loopback, with and without TLS, and on the terminal."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import Message
from email.parser import BytesParser
from email.policy import default
from typing import Any

import pytest
import trustme
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword
from pydantic import SecretStr

from afterwords.errors import ServiceUnavailableError
from afterwords.server.mail import ConsoleMailer, SmtpMailer
from tests.error_codes import has_code

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:::aiosmtpd.smtp")]

PASSWORD = "hunter2 @:"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Inbox:
    """Takes mail for everyone but refused@example.com."""

    def __init__(self) -> None:
        self.mails: list[Message] = []

    async def handle_RCPT(self, _server: Any, _session: Any, envelope: Envelope, address: str, _options: Any) -> str:  # noqa: N802
        if address == "refused@example.com":
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        self.mails.append(BytesParser(policy=default).parsebytes(envelope.content))
        return "250 OK"


@asynccontextmanager
async def mail_server(
    inbox: Inbox, *, tls: ssl.SSLContext | None = None, is_starttls: bool = False
) -> AsyncIterator[int]:
    """Run a mail server that requires a password, and return its port."""

    def authenticate(_server: SMTP, _session: Any, _envelope: Any, _mechanism: str, given: Any) -> AuthResult:
        is_known = isinstance(given, LoginPassword) and given.password == PASSWORD.encode()
        return AuthResult(success=is_known, handled=False)

    def serve() -> SMTP:
        options: dict[str, Any] = {"tls_context": tls, "require_starttls": True} if is_starttls else {}
        return SMTP(
            inbox,
            authenticator=authenticate,
            auth_required=True,
            auth_require_tls=is_starttls,
            auth_exclude_mechanism=["LOGIN"],
            loop=loop,
            **options,
        )

    loop = asyncio.get_running_loop()
    server = await loop.create_server(serve, "127.0.0.1", 0, ssl=None if is_starttls else tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def contexts(authority: trustme.CA) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a server for localhost, and of a client that trusts it."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize("kind", ["smtps", "starttls", "plain"])
async def test_mail_arrives(kind: str, authority: trustme.CA) -> None:
    inbox, (server, client) = Inbox(), contexts(authority)
    async with mail_server(inbox, tls=None if kind == "plain" else server, is_starttls=kind == "starttls") as port:
        scheme = "smtps" if kind == "smtps" else "smtp"
        url = SecretStr(f"{scheme}://me%40example.com:hunter2%20%40%3A@localhost:{port}")
        mailer = SmtpMailer(url, sender="Voice <voice@example.com>", tls=client)
        await mailer.send("ann@example.com", subject="Grüße", text="Ä link:\n\nhttps://voice.example/x?token=y\n")
    [mail] = inbox.mails
    assert (mail["to"], mail["subject"], mail["auto-submitted"]) == ("ann@example.com", "Grüße", "auto-generated")
    assert "https://voice.example/x?token=y" in mail.get_content()  # type: ignore[attr-defined]


@pytest.mark.parametrize("fault", ["untrusted", "password", "refused", "down", "header"])
async def test_failure_is_reported_without_secret_or_address(
    fault: str, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    inbox, (server, client) = Inbox(), contexts(authority)
    async with mail_server(inbox, tls=server) as port:
        password = "wrong" if fault == "password" else "hunter2%20%40%3A"
        url = SecretStr(f"smtps://me:{password}@localhost:{1 if fault == 'down' else port}")
        mailer = SmtpMailer(url, sender="voice@example.com", tls=None if fault == "untrusted" else client)
        to = {"refused": "refused@example.com", "header": "ann@example.com\r\nBcc: all@example.com"}
        with pytest.raises(ServiceUnavailableError, check=has_code("mail_unavailable")) as caught:
            await mailer.send(to.get(fault, "ann@example.com"), subject="x", text="x")
    assert inbox.mails == []
    shown = caplog.text + str(caught.value) + repr(mailer.__dict__)
    assert not [secret for secret in ("hunter2", "ann@", "refused@") if secret in shown]


async def test_console_prints_mail(capsys: pytest.CaptureFixture[str]) -> None:
    await asyncio.gather(ConsoleMailer().send("ann@example.com", subject="Confirm", text="https://voice.example/x"))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(part in shown.err for part in ("ann@example.com", "Confirm", "https://voice.example/x"))
