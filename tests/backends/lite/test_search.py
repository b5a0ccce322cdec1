"""The search on known functions and for a known best voice; the journal; trimming."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from afterwords.backends.lite.search import (
    Journal,
    Ridge,
    Surrogate,
    Target,
    evolve,
    squared_distances,
    trim,
    voice_table,
)
from afterwords.backends.lite.styles import LIMIT, SIZE

Array = NDArray[np.float64]
TABLE = voice_table()


class World:
    """A smooth function from points to voices, and a speaker at the point `home`."""

    def __init__(self) -> None:
        values = np.concatenate([TABLE.embeddings, TABLE.log_pitch[:, None]], axis=1)
        self._sound = Ridge(TABLE.points, values, penalty=0.05)
        self.home = np.clip(0.5 * (TABLE.points[20] + TABLE.points[40]), -LIMIT, LIMIT)
        self.target = self._voice(self.home)

    def _voice(self, point: Array) -> Target:
        sound = self._sound(point[None])[0]
        return Target((sound[:-1] / np.linalg.norm(sound[:-1])).astype(np.float32), float(sound[-1]))

    def similarity(self, point: Array) -> float:
        return float(self._voice(point).embedding @ self.target.embedding)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


# -- the evolution strategy ----------------------------------------------------------------------------------


def test_evolution_finds_the_maximum_of_a_quadratic() -> None:
    top = np.array([0.5, -1.0, 1.5, 0.0, 0.8])
    found = evolve(
        lambda points: -squared_distances(points, top[None])[:, 0],
        np.zeros(5),
        random=np.random.default_rng(0),
        iterations=150,
    )
    np.testing.assert_allclose(found, top, atol=0.02)


def test_evolution_improves_in_few_steps() -> None:
    top = np.random.default_rng(3).normal(0, 1, SIZE)
    found = evolve(
        lambda points: -squared_distances(points, top[None])[:, 0], np.zeros(SIZE), random=np.random.default_rng(0)
    )
    assert np.linalg.norm(found - top) < 0.8 * np.linalg.norm(top)


def test_evolution_stays_in_the_style_space() -> None:
    found = evolve(
        lambda points: points.sum(axis=1), np.full(4, 2.5), random=np.random.default_rng(0), iterations=60, step=1.0
    )
    np.testing.assert_array_equal(found, np.full(4, LIMIT))


def test_equal_seeds_evolve_equally() -> None:
    one, other, third = (
        evolve(lambda points: -np.abs(points).sum(axis=1), np.ones(6), random=np.random.default_rng(seed))
        for seed in (4, 4, 5)
    )
    np.testing.assert_array_equal(one, other)
    assert np.abs(one - third).max() > 1e-3


# -- the surrogate -------------------------------------------------------------------------------------------


def test_ridge_regression_interpolates_a_smooth_function() -> None:
    random = np.random.default_rng(0)
    seen, unseen = random.uniform(-3, 3, (300, 3)), random.uniform(-2.5, 2.5, (50, 3))

    def smooth(points: Array) -> Array:
        return np.stack([np.sin(points[:, 0] / 2) + points[:, 1], points[:, 2] ** 2 / 5], axis=1)

    predicted = Ridge(seen, smooth(seen), penalty=1e-6)(unseen)
    np.testing.assert_allclose(predicted, smooth(unseen), atol=0.02)


def test_larger_penalty_stays_closer_to_the_mean() -> None:
    points = np.random.default_rng(0).normal(0, 1, (40, 3))
    stiff, loose = (np.std(Ridge(points, points[:, :1], penalty=p)(points)) for p in (100.0, 0.01))
    assert stiff < 0.3 * loose


@pytest.mark.parametrize("semitones", [-8, 8])
def test_only_a_distant_pitch_costs_worth(world: World, semitones: int) -> None:
    surrogate = Surrogate(TABLE, world.target)
    points, similarity = TABLE.points[:1], np.array([0.7])

    def worth(off_st: float) -> float:
        return float(
            surrogate.worth(points, similarity, np.array([world.target.log_pitch + off_st * np.log(2) / 12]))[0]
        )

    assert worth(semitones / 4) == pytest.approx(worth(0))
    assert worth(0) - worth(semitones) == pytest.approx(0.01 * (8 - 3))


def test_low_quality_and_extreme_points_cost_worth(world: World) -> None:
    surrogate = Surrogate(TABLE, world.target)
    poor, good = TABLE.points[[TABLE.quality.argmin()]], TABLE.points[[TABLE.quality.argmax()]]
    extreme = 12 * good / np.linalg.norm(good)
    at_pitch, alike = np.array([world.target.log_pitch]), np.array([0.7])
    worth = [float(surrogate.worth(points, alike, at_pitch)[0]) for points in (good, poor, extreme)]
    assert worth[0] > worth[1]
    assert worth[0] > worth[2] + 0.006 * 5
    assert surrogate.quality(good)[0] > surrogate.quality(poor)[0]


def test_distant_points_have_less_expected_worth(world: World) -> None:
    surrogate = Surrogate(TABLE, world.target)
    corner = np.full((1, SIZE), LIMIT)
    assert surrogate.expected(corner)[0] < surrogate.expected(TABLE.points).min()


def test_optimum_beats_the_table(world: World) -> None:
    optimum = Surrogate(TABLE, world.target).optimum()
    assert world.similarity(optimum) > max(world.similarity(point) for point in TABLE.points)
    assert np.abs(optimum).max() <= LIMIT
    np.testing.assert_array_equal(optimum, Surrogate(TABLE, world.target).optimum())


# -- the journal ---------------------------------------------------------------------------------------------


def test_interrupted_preparation_resumes() -> None:
    """A second search is equal, so the journal answers with its stored results."""
    saved: list[bytes] = []
    found: list[float] = []

    def prepare(journal: Journal, *, stop_at: float) -> list[Array]:
        def find(value: float) -> Array:
            if value == stop_at:
                raise InterruptedError
            found.append(value)
            return np.array([value, value / 3])

        return [journal.recall(2, lambda v=float(value): find(v)) for value in range(6)]  # type: ignore[misc]

    with pytest.raises(InterruptedError):
        prepare(Journal(None, saved.append), stop_at=4)
    resumed = prepare(Journal(saved[-1], saved.append), stop_at=-1)
    assert found == [0, 1, 2, 3, 4, 5], "nothing is found twice"
    np.testing.assert_array_equal(resumed, [[value, value / 3] for value in range(6)])


@pytest.mark.parametrize("damaged", [b"7 bytes", np.array([np.nan]).tobytes(), b""])
def test_damaged_checkpoint_is_ignored(damaged: bytes) -> None:
    saved: list[bytes] = []
    assert Journal(damaged, saved.append).recall(1, lambda: np.array([2.5])) == [2.5]
    assert Journal(saved[-1], saved.append).recall(1, lambda: np.zeros(1)) == [2.5]


# -- trimming ------------------------------------------------------------------------------------------------


def test_silence_is_trimmed_to_30_ms() -> None:
    samples = np.zeros(24_000, np.float32)
    samples[10_000:12_000] = 0.5
    assert len(trim(samples)) == 2_000 + 2 * 720 - 1
    assert len(trim(samples[:1_000])) == 1_000
