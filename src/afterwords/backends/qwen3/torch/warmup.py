"""Warms up a GPU: kernels are compiled and graphs captured at their first use, which would delay the first request.

A silent voice is prefilled and decoded until every size has been used that a single request needs first. Sizes for more
rows and longer speech are captured when they are first needed.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Final

import numpy as np

from afterwords.backends.qwen3.base import run_to_end
from afterwords.backends.qwen3.reference_prompt import SILENCE_S, ReferencePrompt
from afterwords.backends.qwen3.request import STEPS_PER_READ
from afterwords.backends.qwen3.torch.model import TorchModel
from afterwords.backends.qwen3.torch.scheduler import POSITION_BUCKETS, TorchScheduler

REFERENCE_S: Final = 15.0
"""Longest reference that is cut from a recording, see `reference.window`."""
FRAMES_PER_S: Final = 12.5
TEXT: Final = "One, two, three."


def warm_up(model: TorchModel, scheduler: TorchScheduler) -> None:
    """Decode a request in the smallest bucket of positions and into the next one.

    Raises:
        Exception: The error that the first request would have met, for example that memory ran out.
    """
    codec = model.codec
    voice = ReferencePrompt(
        speaker=np.zeros(model.config.speaker.width, np.float32),
        codes=np.zeros((ceil(FRAMES_PER_S * (REFERENCE_S + SILENCE_S)), codec.n_codebooks), np.uint16),
        text_ids=tuple(model.prompts.tokens(TEXT)),
        recording="",
    )
    request = model.make_request(model.to_device(voice), TEXT, "en", max_frames=0, seed=0)
    request.max_frames = max(0, POSITION_BUCKETS[0] - request.n_columns) + sum(STEPS_PER_READ) + STEPS_PER_READ[-1]
    request.sampling = replace(request.sampling, min_frames=request.max_frames)
    run_to_end(scheduler, request)
