"""Named places where a server dies on demand, so that tests can see what survives.

They work only with `AFTERWORDS_TESTING=1`. `AFTERWORDS_FAILPOINT=voice-committed` kills the process the first time
that place is reached, `voice-committed:3` the third time.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Final

PLACES: Final = (
    "reference-stored",  # an upload's blob is written, its row is not
    "voice-committed",  # the row is written, the answer is not sent
    "job-committed",  # a job is accepted, neither answered nor dispatched
    "job-claimed",  # an attempt is open, nothing is spoken
    "audio-stored",  # a result's blob is written, its row is not
    "job-finished",  # the row is final, nobody was told
    "voice-tombstoned",  # a voice is deleted, its blobs are not
)

_reached: Counter[str] = Counter()


def reach(place: str) -> None:
    """Die here, if that is what the environment asks for."""
    if os.environ.get("AFTERWORDS_TESTING") != "1":
        return
    name, _, count = os.environ.get("AFTERWORDS_FAILPOINT", "").partition(":")
    if name != place:
        return
    _reached[place] += 1
    if _reached[place] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
