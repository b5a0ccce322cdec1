"""The Qwen3-TTS benchmark runs on any machine and knows the published sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afterwords.backends.qwen3.torch import ops
from benchmarks import qwen3, qwen3_faster
from benchmarks.qwen3_model import RandomModel, write_published


def test_every_variant_is_measured_or_skipped(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    qwen3.main(["--config", str(checkpoint), "--rows", "1", "3", "--frames", "6"])
    lines = capsys.readouterr().out.splitlines()
    measured = {tuple(line.split(" | ")[1:3]) for line in lines if line.startswith("| tiny")}
    left_out = {line.split(", since ")[0].removeprefix("Left out: ") for line in lines if line.startswith("Left out")}
    ways = {f"ours, {way.name}" for way in qwen3.WAYS if way.name not in left_out}
    assert measured == {(way, rows) for way in {"plain loop, no codec", "limit"} | ways for rows in ("1", "3")}
    if not torch.cuda.is_available():
        assert left_out == {way.name for way in qwen3.WAYS if way.is_captured} | {qwen3.FASTER}


def test_late_measurement_is_skipped(checkpoint: Path) -> None:
    lines = list(qwen3.table({"tiny": checkpoint}, torch.device("cpu"), batches=[1], n_frames=6, budget_s=0))
    assert "Left out: tiny ours, eager, 1 rows, since time ran out." in lines
    assert [line.split(" | ")[1] for line in lines if line.startswith("| tiny")] == ["limit"]


def test_quantized_weights_are_measured(checkpoint: Path) -> None:
    model = RandomModel(checkpoint, device=torch.device("cpu"), dtype=torch.float32, ops=ops)
    kept = model.quantize("fp8").codes
    row = qwen3.ours(model, qwen3.Way("fp8", precision="fp8"), 2, 6, kept=kept)
    assert 0.8 < kept < 1
    assert row.line("tiny", "fp8", n_frames=6, limit_ms=1.0).endswith(f"| {kept:.1%} |")


def test_failed_engine_prints_one_line(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> float:  # it is installed nowhere that tests run
        raise qwen3_faster.FailedError("it raised RuntimeError: no kernel\nimage")

    monkeypatch.setattr(qwen3_faster, "missing", lambda _: None)
    monkeypatch.setattr(qwen3_faster, "step_ms", fails)
    lines = list(qwen3.table({"tiny": checkpoint}, torch.device("cpu"), batches=[1], n_frames=6))
    assert f"Left out: tiny {qwen3.FASTER}, 1 rows, since it raised RuntimeError: no kernel." in lines


@pytest.mark.parametrize(
    ("size", "talker", "run_concurrently", "with_context"),  # in millions of parameters, and GB a frame
    [("0.6b", 440.5, 3.32, 3.33), ("1.7b", 1409.4, 5.28, 5.30)],
)
def test_published_sizes_match_the_count(
    tmp_path: Path, size: str, talker: float, run_concurrently: float, with_context: float
) -> None:
    model = RandomModel(write_published(tmp_path, size), device=torch.device("meta"), dtype=torch.bfloat16, ops=ops)
    layers = sum(n for name, n in model.weights.sizes.items() if name.startswith("talker.model.layers."))
    assert layers / 1e6 == pytest.approx(talker, abs=0.1)
    assert model.decoder.samples_per_frame == 1920
    assert model.bytes_per_frame(1, 0) / 1e9 == pytest.approx(run_concurrently, abs=0.01)
    assert model.bytes_per_frame(1, 135) / 1e9 == pytest.approx(with_context, abs=0.01)
