"""Quantization of the talker, and the check of its effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from afterwords.backends.qwen3.torch import agreement, ops
from afterwords.backends.qwen3.torch.agreement import Agreement
from afterwords.backends.qwen3.torch.engine import Qwen3Large
from afterwords.backends.qwen3.torch.model import TorchModel
from afterwords.errors import ModelError
from tests.backends.qwen3.torch.speaking import GREEDY, LANGUAGE, load
from tests.error_codes import has_code

ROWS = LANGUAGE["projected"]["rows of different length"]


@pytest.fixture
def model(checkpoint: Path) -> Callable[[], TorchModel]:
    return lambda: TorchModel(checkpoint, name="tiny", device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("row", ROWS[:3])
def test_most_likely_codes_equal_greedy_codes(checkpoint: Path, row: dict[str, object]) -> None:
    language = load(checkpoint)
    prompt, sampling = language.prompt(row), replace(GREEDY, repetition_penalty=1.0, min_frames=12)
    (codes,) = language.speak([prompt], [sampling], n_frames=12)
    assert language.talker.most_likely_codes(prompt, torch.tensor(codes)).tolist() == codes


@pytest.mark.parametrize(("precision", "error"), [("fp8", 2**-4), ("int8", 0.5 / 127)])
def test_quantization_error_is_at_most_half_a_step(precision: str, error: float) -> None:
    weight = torch.randn(64, 48) * torch.logspace(-3, 3, 64)[:, None]  # each output has a scale of its own
    rounded = ops.quantize_matrix(weight, precision)
    most = weight.abs().amax(1, keepdim=True)
    assert ((rounded.values.float() * rounded.scales[:, None] - weight).abs() / most).max() <= error * 1.001
    assert rounded.values.element_size() == 1


def test_zero_output_stays_zero() -> None:
    assert ops.quantize_matrix(torch.zeros(2, 3), "fp8").values.float().tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(("precision", "codes"), [("fp8", 0.9), ("int8", 0.95)])
def test_quantized_weights_agree(model: Callable[[], TorchModel], precision: str, codes: float) -> None:
    found = model().quantize(precision)
    assert codes <= found.codes < 1
    assert 0 < found.mel_db < 2
    assert found.is_enough


def test_three_bits_are_refused(model: Callable[[], TorchModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ops._FORMS, "int3", (torch.int8, 3.0))  # no setting asks for what can't be good enough
    found = model().quantize("int3")
    assert not found.is_enough
    with pytest.raises(
        ModelError,
        match=r"loses too much accuracy at int3: [45]\d% of its codes are the same",
        check=has_code("precision"),
    ) as refused:
        agreement.check(found, model="tiny", precision="int3")
    assert "AFTERWORDS_PRECISION" in refused.value.hint


@pytest.mark.parametrize(("codes", "mel_db", "is_enough"), [(0.75, 6.0, True), (0.74, 0.1, False), (1.0, 6.1, False)])
def test_codes_and_audio_must_both_agree(codes: float, mel_db: float, is_enough: bool) -> None:
    assert Agreement(codes, mel_db).is_enough is is_enough


def test_engine_applies_the_precision_setting(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "qwen3-1.7b").symlink_to(checkpoint)
    monkeypatch.setenv("AFTERWORDS_MODELS", str(tmp_path))
    monkeypatch.setenv("AFTERWORDS_PRECISION", "int8")
    engine = Qwen3Large()
    engine.load("qwen3-1.7b")
    engine.close()
    monkeypatch.setattr(agreement, "LEAST_CODES", 1.0)
    with pytest.raises(ModelError, match=r"qwen3-1\.7b loses too much accuracy at int8", check=has_code("precision")):
        engine.load("qwen3-1.7b")
