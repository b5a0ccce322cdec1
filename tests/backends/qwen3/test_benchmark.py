"""The benchmark runs to its end, whatever the machine, and knows how large the published models are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afterwords.backends.qwen3 import ops
from benchmarks import qwen3
from benchmarks.qwen3_model import RandomModel, write_published


def test_every_way_is_measured_or_left_out_with_its_reason(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    qwen3.main(["--config", str(checkpoint), "--rows", "1", "3", "--frames", "6"])
    lines = capsys.readouterr().out.splitlines()
    measured = {tuple(line.split(" | ")[1:3]) for line in lines if line.startswith("| tiny")}
    left_out = {line.split(",")[0].removeprefix("Left out: ") for line in lines if line.startswith("Left out")}
    ways = {f"ours, {way.name}" for way in qwen3.WAYS if way.name not in left_out}
    assert measured == {(way, rows) for way in {"plain loop, no codec", "limit"} | ways for rows in ("1", "3")}
    assert left_out >= {"fp8", "faster-qwen3-tts"}


@pytest.mark.parametrize(
    ("size", "talker", "at_once", "with_context"),  # in millions of parameters, and GB a frame
    [("0.6b", 440.5, 3.32, 3.33), ("1.7b", 1409.4, 5.28, 5.30)],
)
def test_published_sizes_are_those_that_were_counted(
    tmp_path: Path, size: str, talker: float, at_once: float, with_context: float
) -> None:
    model = RandomModel(write_published(tmp_path, size), device=torch.device("meta"), dtype=torch.bfloat16, ops=ops)
    layers = sum(n for name, n in model.weights.sizes.items() if name.startswith("talker.model.layers."))
    assert layers / 1e6 == pytest.approx(talker, abs=0.1)
    assert model.decoder.samples_per_frame == 1920
    assert model.bytes_per_frame(1, 0) / 1e9 == pytest.approx(at_once, abs=0.01)
    assert model.bytes_per_frame(1, 135) / 1e9 == pytest.approx(with_context, abs=0.01)
