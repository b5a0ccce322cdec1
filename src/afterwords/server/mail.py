"""The port `Mailer`: over SMTP, or on the terminal of a server that only this machine reaches."""

from __future__ import annotations

import logging
import smtplib
import ssl
import sys
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, make_msgid, parseaddr
from typing import Final
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from afterwords.errors import ServiceUnavailableError
from afterwords.server.concurrency import in_thread
from afterwords.server.settings import LOCAL_NAMES

log = logging.getLogger("afterwords.server")

TIMEOUT_S: Final = 10


class SmtpMailer:
    """A mail server.

    Args:
        url: smtps://USER:PASSWORD@HOST:PORT, or smtp:// for STARTTLS, which only this machine's own server may lack.
        sender: The address in From.
        tls: TLS context; None trusts the public authorities.
    """

    def __init__(self, url: SecretStr, *, sender: str, tls: ssl.SSLContext | None = None) -> None:
        self._url, self._sender, self._tls = url, sender, tls

    async def send(self, to: str, *, subject: str, text: str) -> None:
        """Send a mail."""
        try:
            message, domain = EmailMessage(policy=SMTP), parseaddr(self._sender)[1].rpartition("@")[2]
            message["From"], message["To"], message["Subject"] = self._sender, to, subject
            message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain=domain)
            message["Auto-Submitted"] = "auto-generated"
            message.set_content(text)
            await in_thread(self._send, message)
        except (OSError, smtplib.SMTPException, ValueError) as error:  # its text may contain the address
            log.error("a mail could not be sent kind=%s", type(error).__name__)
            raise ServiceUnavailableError(
                "The mail could not be sent.", code="mail_unavailable", hint="try again later."
            ) from None

    def _send(self, message: EmailMessage) -> None:
        url = urlsplit(self._url.get_secret_value())
        host, tls = url.hostname or "", self._tls or ssl.create_default_context()
        if url.scheme == "smtps":
            server: smtplib.SMTP = smtplib.SMTP_SSL(host, url.port or 465, timeout=TIMEOUT_S, context=tls)
        else:
            server = smtplib.SMTP(host, url.port or 587, timeout=TIMEOUT_S)
        with server:
            server.ehlo()
            if url.scheme == "smtp" and (server.has_extn("starttls") or host not in LOCAL_NAMES):
                server.starttls(context=tls)
            if url.username:
                server.login(unquote(url.username), unquote(url.password or ""))
            server.send_message(message)


class ConsoleMailer:
    """The terminal: for a server that only this machine reaches."""

    async def send(self, to: str, *, subject: str, text: str) -> None:
        """Print a mail to stderr."""
        sys.stderr.write(f"\nMail to {to}\nSubject: {subject}\n\n{text}\n")
        sys.stderr.flush()
