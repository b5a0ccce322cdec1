"""What this server signs: webhooks, with a secret that the receiver can work out, and the tokens of workers.

Apart because both ends need it: keys shows the secret and the store hands it to the one who delivers; the desk makes
a token and the guard reads it. Pure functions; nothing is kept, so nothing can leak.
"""

from __future__ import annotations

import base64
import hmac
import re

_WEBHOOK = b"afterwords webhook v1"
_WORKER = b"afterwords worker v1"
_TOKEN = re.compile(r"awt_(0|[1-9][0-9]{0,8})\.([0-9a-f]{64})")


def signing_key(api_key_sha256: bytes) -> bytes:
    """The 32 bytes that the webhooks of an API key are signed with; whoever holds the key can work them out."""
    return hmac.digest(api_key_sha256, _WEBHOOK, "sha256")


def signing_secret(api_key_sha256: bytes) -> str:
    """The same as users see it: `whsec_` and base64, as Standard Webhooks has it."""
    return "whsec_" + base64.b64encode(signing_key(api_key_sha256)).decode()


def worker_token(secret: bytes, job_id: str, attempt: int) -> str:
    """Make the token that brings the audio of one attempt at one job, and nothing else."""
    return f"awt_{attempt}.{_signature(secret, job_id, attempt)}"


def read_worker_token(secret: bytes, job_id: str, token: str) -> int | None:
    """The attempt that a token was made for; None if it is not a token of this server for this job."""
    parts = _TOKEN.fullmatch(token)
    if parts is None:
        return None
    attempt = int(parts[1])
    return attempt if hmac.compare_digest(parts[2], _signature(secret, job_id, attempt)) else None


def _signature(secret: bytes, job_id: str, attempt: int) -> str:
    message = b"\0".join([_WORKER, str(attempt).encode(), job_id.encode("utf-8", "surrogatepass")])
    return hmac.digest(secret, message, "sha256").hex()
