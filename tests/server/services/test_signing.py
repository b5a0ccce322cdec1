"""Tests of webhook secrets and worker tokens."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterwords.server.services.signing import read_worker_token, signing_key, signing_secret, worker_token

SECRET = bytes(range(32))
JOB = "0c6f2f0e-8a5d-4c4e-9a53-0c1d9a2b3c4d"


def test_webhook_secret_is_derived_from_the_key() -> None:
    digest = hashlib.sha256(b"aw_example").digest()
    expected = hmac.new(digest, b"afterwords webhook v1", hashlib.sha256).digest()
    assert signing_key(digest) == expected
    assert signing_secret(digest) == "whsec_" + base64.b64encode(expected).decode()


def test_webhook_secrets_of_keys_differ() -> None:
    assert signing_secret(b"a" * 32) != signing_secret(b"b" * 32)


@pytest.mark.parametrize("attempt", [0, 1, 3, 999_999_999])
def test_token_contains_its_attempt(attempt: int) -> None:
    token = worker_token(SECRET, JOB, attempt)
    assert token.startswith(f"awt_{attempt}.")
    assert read_worker_token(SECRET, JOB, token) == (attempt, None)


def test_token_is_bound_to_what_it_was_claimed_with() -> None:
    token = worker_token(SECRET, JOB, 1, claimed_with=JOB)
    other = JOB[:-1] + ("0" if JOB[-1] != "0" else "1")
    assert read_worker_token(SECRET, JOB, token) == (1, JOB)
    assert read_worker_token(SECRET, JOB, token.replace(JOB, other)) is None
    assert read_worker_token(SECRET, JOB, token.replace(f"{JOB}.", "")) is None


def test_token_of_another_job_is_invalid() -> None:
    assert read_worker_token(SECRET, JOB, worker_token(SECRET, JOB[:-1] + "e", 1)) is None


def test_token_of_another_server_is_invalid() -> None:
    assert read_worker_token(SECRET, JOB, worker_token(b"x" * 32, JOB, 1)) is None


def test_token_with_another_attempt_is_invalid() -> None:
    token = worker_token(SECRET, JOB, 1)
    assert read_worker_token(SECRET, JOB, token.replace("awt_1.", "awt_2.")) is None


def test_digits_can_not_move_between_attempt_and_job() -> None:
    assert worker_token(SECRET, "1x", 1).partition(".")[2] != worker_token(SECRET, "x", 11).partition(".")[2]


@pytest.mark.parametrize(
    "change", ["awt_01.{}", "awt_-1.{}", "awt_１.{}", "AWT_1.{}", "awt_1.{} ", " awt_1.{}", "awt_1.{}\n"]
)
def test_token_has_one_spelling(change: str) -> None:
    signature = worker_token(SECRET, JOB, 1).partition(".")[2]
    assert read_worker_token(SECRET, JOB, change.format(signature)) is None
    assert read_worker_token(SECRET, JOB, f"awt_1.{signature.upper()}") is None


@given(st.text(), st.text(st.characters()))
def test_no_token_raises(job_id: str, token: str) -> None:
    assert read_worker_token(SECRET, job_id, token) is None
    assert read_worker_token(SECRET, job_id, worker_token(SECRET, job_id, 2)) == (2, None)
