"""Signatures of this server: webhooks, with a secret that the owner of the API key can derive, and worker tokens.

These are pure functions, so no secret is stored.
"""

from __future__ import annotations

import base64
import hmac
import re

_WEBHOOK = b"afterwords webhook v1"
_WORKER = b"afterwords worker v1"
_TOKEN = re.compile(r"awt_(0|[1-9][0-9]{0,8})\.([0-9a-f]{64})")


def signing_key(api_key_sha256: bytes) -> bytes:
    """Return the 32 bytes that sign the webhooks of an API key."""
    return hmac.digest(api_key_sha256, _WEBHOOK, "sha256")


def signing_secret(api_key_sha256: bytes) -> str:
    """Return the signing key in the form of Standard Webhooks: `whsec_` and base64."""
    return "whsec_" + base64.b64encode(signing_key(api_key_sha256)).decode()


def worker_token(secret: bytes, job_id: str, attempt: int) -> str:
    """Return the token that delivers the result of one attempt at one job."""
    return f"awt_{attempt}.{_signature(secret, job_id, attempt)}"


def read_worker_token(secret: bytes, job_id: str, token: str) -> int | None:
    """Return the attempt of a token. None: it is not a token of this server for this job."""
    parts = _TOKEN.fullmatch(token)
    if parts is None:
        return None
    attempt = int(parts[1])
    return attempt if hmac.compare_digest(parts[2], _signature(secret, job_id, attempt)) else None


def _signature(secret: bytes, job_id: str, attempt: int) -> str:
    message = b"\0".join([_WORKER, str(attempt).encode(), job_id.encode("utf-8", "surrogatepass")])
    return hmac.digest(secret, message, "sha256").hex()
