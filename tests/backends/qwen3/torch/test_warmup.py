"""Warming up covers every size that the first request needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from afterwords.backends.qwen3.reference_prompt import ReferencePrompt
from afterwords.backends.qwen3.request import STEPS_PER_READ
from afterwords.backends.qwen3.torch import warmup
from afterwords.backends.qwen3.torch.batch import BatchState
from afterwords.backends.qwen3.torch.engine import Qwen3Large
from afterwords.backends.qwen3.torch.model import TorchModel
from afterwords.backends.qwen3.torch.scheduler import TorchScheduler
from afterwords.backends.qwen3.torch.warmup import warm_up


@pytest.fixture
def scheduler(model: TorchModel) -> Iterator[TorchScheduler]:
    scheduler = TorchScheduler(model.talker, model.decoder, n_rows=4, n_positions=1024)
    yield scheduler
    scheduler.close()


def noted(scheduler: TorchScheduler, patch: pytest.MonkeyPatch) -> set[tuple[Any, ...]]:
    """Record the sizes of the steps of talker and codec, each of which a GPU captures."""
    sizes: set[tuple[Any, ...]] = set()
    frames, step = scheduler._frames, scheduler._decoder.step

    def frame(rows: BatchState, *, with_top_p: bool) -> None:
        sizes.add(("talker", rows.n_rows, rows.n_positions, with_top_p))
        frames(rows, with_top_p=with_top_p)

    def decoded(codes: torch.Tensor, *args: Any) -> torch.Tensor:
        sizes.add(("codec", *codes.shape[:2]))
        return step(codes, *args)

    patch.setattr(scheduler, "_frames", frame)
    patch.setattr(scheduler._decoder, "step", decoded)
    return sizes


@pytest.mark.parametrize("reference_s", [5, 15])
def test_first_request_needs_no_new_size(
    model: TorchModel, scheduler: TorchScheduler, reference_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = noted(scheduler, monkeypatch)
    warm_up(model, scheduler)
    assert {("codec", 1, burst) for burst in STEPS_PER_READ} <= sizes
    assert {("talker", 1, 256, False), ("talker", 1, 512, False)} <= sizes
    ready = sizes.copy()
    codes = np.zeros((int(12.5 * reference_s), model.codec.n_codebooks), np.uint16)
    voice = model.to_device(ReferencePrompt(np.zeros(32, np.float32), codes, (1, 2, 3), ""))
    request = model.make_request(voice, "The quick brown fox.", "en", max_frames=100, seed=3)
    request.sampling = replace(request.sampling, min_frames=100)
    scheduler.submit(request)
    assert sum(1 for _ in request.stream()) > 3
    assert sizes == ready


def test_error_during_warm_up_is_raised(model: TorchModel) -> None:
    scheduler = TorchScheduler(model.talker, model.decoder, n_rows=1, n_positions=64)
    with pytest.raises(ValueError, match="too long for rows"):
        warm_up(model, scheduler)
    scheduler.close()


def test_cpu_is_not_warmed_up(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def warm(*_: object) -> None:
        raise AssertionError("it was warmed up")

    monkeypatch.setattr(warmup, "warm_up", warm)
    (tmp_path / "qwen3-1.7b").symlink_to(checkpoint)
    monkeypatch.setenv("AFTERWORDS_MODELS", str(tmp_path))
    engine = Qwen3Large()
    engine.load("qwen3-1.7b")
    engine.close()
