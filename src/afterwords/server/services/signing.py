"""Signatures of this server: webhooks, with a secret that the owner of the API key can derive, and its own tokens.

These are pure functions, so no secret is stored.
"""

from __future__ import annotations

import base64
import hmac
import re

_WEBHOOK = b"afterwords webhook v1"
_WORKER = b"afterwords worker v1"
_SESSION = b"afterwords session v1"
_FORM = b"afterwords form v1"
_CHECKOUT = b"afterwords checkout v1"
_TOKEN = re.compile(r"awt_(0|[1-9][0-9]{0,8})\.(?:([0-9a-f-]{36})\.)?([0-9a-f]{64})")


def signing_key(api_key_sha256: bytes) -> bytes:
    """Return the 32 bytes that sign the webhooks of an API key."""
    return hmac.digest(api_key_sha256, _WEBHOOK, "sha256")


def signing_secret(api_key_sha256: bytes) -> str:
    """Return the signing key in the form of Standard Webhooks: `whsec_` and base64."""
    return "whsec_" + base64.b64encode(signing_key(api_key_sha256)).decode()


def worker_token(secret: bytes, job_id: str, attempt: int, *, claimed_with: str | None = None) -> str:
    """Return the token of one attempt at one job.

    Args:
        claimed_with: Id of the token of remote workers that claimed it: both are valid equally long.
    """
    signature = _signature(secret, job_id, attempt, claimed_with)
    return ".".join([f"awt_{attempt}", *([claimed_with] if claimed_with else []), signature])


def read_worker_token(secret: bytes, job_id: str, token: str) -> tuple[int, str | None] | None:
    """Return the attempt of a token, and what it was claimed with. None: it is not a token for this job."""
    parts = _TOKEN.fullmatch(token)
    if parts is None:
        return None
    attempt, claimed_with = int(parts[1]), parts[2]
    is_authentic = hmac.compare_digest(parts[3], _signature(secret, job_id, attempt, claimed_with))
    return (attempt, claimed_with) if is_authentic else None


def session_token(secret: bytes, key_id: str, expires: int) -> str:
    """Return the cookie of a browser that signed in with a key, valid until a Unix time in seconds."""
    message = b"\0".join((_SESSION, key_id.encode(), str(expires).encode()))
    return f"{key_id}.{expires}.{hmac.digest(secret, message, 'sha256').hex()}"


def read_session_token(secret: bytes, token: str, *, now: float) -> str | None:
    """Return the ID of the key of a session. None: the token is not ours, or has expired."""
    parts = re.fullmatch(r"([0-9a-f-]{36})\.([0-9]{1,12})\.[0-9a-f]{64}", token)
    if parts is None or not hmac.compare_digest(token, session_token(secret, parts[1], int(parts[2]))):
        return None
    return parts[1] if now < int(parts[2]) else None


def form_token(secret: bytes, session: str) -> str:
    """Return what every form of a session carries: a page of another site can't know it."""
    return hmac.digest(secret, b"\0".join((_FORM, session.encode())), "sha256").hex()


def _signature(secret: bytes, job_id: str, attempt: int, claimed_with: str | None) -> str:
    message = [_WORKER, str(attempt).encode(), job_id.encode("utf-8", "surrogatepass")]
    if claimed_with is not None:
        message.append(claimed_with.encode())
    return hmac.digest(secret, b"\0".join(message), "sha256").hex()


def checkout_token(secret: bytes, purpose: str, checkout_id: str) -> str:
    """Return a token for a page of a checkout."""
    mark = hmac.digest(secret, b"\0".join([_CHECKOUT, purpose.encode(), checkout_id.encode()]), "sha256").hex()
    return f"{checkout_id}.{mark}"


def checkout_browser(secret: bytes, idempotency_key: str) -> str:
    """Return the cookie of a program that begins a checkout with an idempotency key: a retry gets the same one."""
    mark = hmac.digest(secret, b"\0".join([_CHECKOUT, b"browser", idempotency_key.encode()]), "sha256")
    return base64.urlsafe_b64encode(mark).decode().rstrip("=")


def read_checkout_token(secret: bytes, purpose: str, token: str) -> str | None:
    """Return the checkout of a token. None: it is not a token for this purpose."""
    checkout_id = token.partition(".")[0]
    if not token.isascii() or not hmac.compare_digest(token, checkout_token(secret, purpose, checkout_id)):
        return None
    return checkout_id
