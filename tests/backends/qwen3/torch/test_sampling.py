"""Sampling: random numbers that depend on the seed alone, temperature, top_k, top_p and penalty."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from afterwords.backends.qwen3.config import WIDEST_TOP_K, Sampling
from afterwords.backends.qwen3.torch.sampling import apply_penalty, draw, noise

N_DRAWS = 20_000
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def gumbel(*, n_rows: int = N_DRAWS, temperature: float = 1.0) -> Tensor:
    rows = torch.arange(n_rows)
    return noise(rows, torch.zeros_like(rows), torch.arange(len(LOGITS))) * temperature


def shares(*, top_k: int = WIDEST_TOP_K, top_p: float = 1.0, temperature: float = 1.0) -> Tensor:
    """Return how often each code is drawn, over many seeds."""
    beyond = (torch.arange(WIDEST_TOP_K) >= top_k).expand(N_DRAWS, -1)
    limits = (torch.full((N_DRAWS, 1), top_p), torch.full((N_DRAWS, 1), temperature))
    codes = draw(LOGITS.expand(N_DRAWS, -1), beyond, gumbel(temperature=temperature), limits)
    return codes.bincount(minlength=len(LOGITS)) / N_DRAWS


def splitmix64(state: int, count: int) -> list[int]:
    """Compute SplitMix64 in Python integers."""
    numbers = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        numbers.append(z ^ (z >> 31))
    return numbers


def mixed(z: int) -> int:
    return splitmix64(z - 0x9E3779B97F4A7C15, 1)[0]


@pytest.mark.parametrize(("seed", "frame"), [(0, 0), (1, 7), (-(2**63), 3), (2**63 - 1, 4000)])
def test_random_numbers_equal_splitmix64(seed: int, frame: int) -> None:
    key = mixed(mixed(seed % 2**64) + frame * 0x9E3779B97F4A7C15)
    expected = [-math.log(-math.log(((z >> 41) + 0.5) / 2**23)) for z in splitmix64(key, 8)]
    found = noise(torch.tensor([seed]), torch.tensor([frame]), torch.arange(1, 9))
    torch.testing.assert_close(found[0], torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_random_numbers_of_a_row_are_independent() -> None:
    seeds, frames, counters = torch.tensor([5, 6, 7]), torch.tensor([1, 0, 9]), torch.arange(40).view(4, 10)
    together = noise(seeds, frames, counters)
    assert together.shape == (3, 4, 10)
    assert torch.equal(together[2], noise(seeds[2:], frames[2:], counters)[0])


def test_noise_is_finite_and_gumbel_distributed() -> None:
    numbers = noise(torch.arange(100), torch.arange(100), torch.arange(3000))
    assert numbers.isfinite().all()
    assert numbers.mean().item() == pytest.approx(0.5772, abs=0.01)  # Euler's constant
    assert numbers.var().item() == pytest.approx(math.pi**2 / 6, abs=0.02)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(-1)
    torch.testing.assert_close(shares(temperature=temperature), expected, rtol=0, atol=0.015)


def test_zero_temperature_is_greedy() -> None:
    assert shares(temperature=0.0).tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("top_k", [1, 3])
def test_top_k_keeps_the_most_likely(top_k: int) -> None:
    expected = LOGITS[:top_k].softmax(-1)
    found = shares(top_k=top_k)
    torch.testing.assert_close(found[:top_k], expected, rtol=0, atol=0.015)
    assert found[top_k:].sum() == 0


@pytest.mark.parametrize(("top_p", "n_left"), [(0.01, 1), (0.5, 1), (0.6, 2), (0.8, 3), (1.0, 6)])
def test_top_p_keeps_the_probability_mass(top_p: float, n_left: int) -> None:
    found = shares(top_p=top_p)
    assert (found > 0).tolist() == [rank < n_left for rank in range(6)]


def test_penalty_affects_drawn_codes_only() -> None:
    logits, seen = torch.tensor([[2.0, -2.0, 3.0]]), torch.tensor([[True, True, False]])
    assert apply_penalty(logits, seen, torch.tensor([[2.0]])).tolist() == [[1.0, -4.0, 3.0]]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("predictor_temperature", -1),
        ("top_k", 0),
        ("predictor_top_k", WIDEST_TOP_K + 1),
        ("top_p", 0.0),
        ("predictor_top_p", 1.01),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.nan),
    ],
)
def test_invalid_sampling_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field.removeprefix("predictor_")):
        Sampling(**{field: value})  # type: ignore[arg-type]
