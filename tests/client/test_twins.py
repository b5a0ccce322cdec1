"""The two clients are one text: what one can do, the other can, with the same words."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import pytest

from afterwords.client import aio, aio_speech, sync, sync_speech
from scripts.make_client import CLIENT, FILES, made

TWINS = [
    (sync.Client, aio.AsyncClient),
    (sync.Voices, aio.AsyncVoices),
    (sync.Keys, aio.AsyncKeys),
    (sync_speech.Jobs, aio_speech.AsyncJobs),
    (sync_speech.RemoteJob, aio_speech.AsyncRemoteJob),
    (sync_speech.RemoteSpeech, aio_speech.AsyncRemoteSpeech),
    (sync_speech.RemoteBytes, aio_speech.AsyncRemoteBytes),
]


def public(kind: type) -> Iterator[tuple[str, str]]:
    """Each method with its signature, in the words of the blocking client."""
    for name, member in vars(kind).items():
        if callable(member) and (not name.startswith("_") or name == "__init__"):
            shown = re.sub(r"\bAsync(?=[A-Z])", "", str(inspect.signature(member)))
            yield name, shown


@pytest.mark.parametrize(("blocking", "awaited"), TWINS, ids=lambda kind: kind.__name__)
def test_both_have_the_same_methods_with_the_same_signatures(blocking: type, awaited: type) -> None:
    assert dict(public(blocking)) == dict(public(awaited))
    assert dict(public(blocking))


@pytest.mark.parametrize("source", FILES)
def test_the_blocking_client_is_made_of_the_awaited_one(source: str) -> None:
    assert (CLIENT / FILES[source]).read_text("utf-8") == made(source), "run `make client`"
