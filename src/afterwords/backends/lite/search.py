"""Search for the style that sounds like a speaker.

The search runs on a surrogate: kernel ridge regression from a point of the style space to the speaker embedding, pitch
and quality of its voice, fitted on a shipped table of generated voices. An evolution strategy optimizes it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from afterwords.backends.lite.data import read_data
from afterwords.backends.lite.styles import LIMIT

PHRASE: Final = "The boy was there when the sun rose early."
"""The phrase of all voices in the table."""
_PAD: Final = 720  # samples kept around trimmed speech: 30 ms at 24 kHz

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """The speaker, the goal of the search: an embedding (256,) and the log of the median pitch in Hz."""

    embedding: NDArray[np.float32]
    log_pitch: float


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Generated voices: points (n, 45), embeddings (n, 256), log pitch (n,), DNSMOS (n,)."""

    points: Array
    embeddings: Array
    log_pitch: Array
    quality: Array


@cache
def voice_table() -> Table:
    """Return the shipped table; its first rows are the stock voices."""
    with np.load(io.BytesIO(read_data("table.npz")), allow_pickle=False) as stored:
        return Table(**{name: stored[name].astype(np.float64) for name in stored.files})


def trim(samples: NDArray[np.float32], threshold: float = 0.01) -> NDArray[np.float32]:
    """Trim silence before and after speech to 30 ms."""
    start, end = speech_range(samples, threshold)
    return samples[start:end]


def speech_range(samples: NDArray[np.float32], threshold: float = 0.01) -> tuple[int, int]:
    """Return where speech starts and ends, with 30 ms of silence on both sides."""
    loud = np.flatnonzero(np.abs(samples) > threshold)
    return (max(0, loud[0] - _PAD), min(len(samples), loud[-1] + _PAD)) if len(loud) else (0, len(samples))


class Ridge:
    """Kernel ridge regression with a Gaussian and a weak linear kernel."""

    LENGTH: Final = 5.0
    LINEAR: Final = 0.03

    def __init__(self, points: Array, values: Array, *, penalty: float) -> None:
        self._points, self._center = points, points.mean(axis=0)
        self._mean = values.mean(axis=0)
        kernel = self._kernel(points)
        kernel[np.diag_indices_from(kernel)] += penalty
        self._weights = np.linalg.solve(kernel, values - self._mean)

    def __call__(self, points: Array) -> Array:
        """Predict the values at points (n, d): shape (n, n_values)."""
        return self._kernel(points) @ self._weights + self._mean

    def _kernel(self, points: Array) -> Array:
        near = np.exp(-squared_distances(points, self._points) / (2 * self.LENGTH**2))
        return near + self.LINEAR * (points - self._center) @ (self._points - self._center).T


class Journal:
    """The results of a preparation in order, for another process to resume from.

    The preparation is deterministic: equal recordings need the same results in the same order.
    """

    def __init__(self, checkpoint: bytes | None, save: Callable[[bytes], None]) -> None:
        found = np.frombuffer(checkpoint or b"", "<f8") if len(checkpoint or b"") % 8 == 0 else np.zeros(0)
        self._found: Array = found if np.isfinite(found).all() else np.zeros(0)
        self._save = save
        self._place = 0

    def recall(self, count: int, find: Callable[[], Array]) -> Array:
        """Return the next `count` numbers, from the checkpoint or else from `find`."""
        known = self._found[self._place : self._place + count]
        self._place += count
        if len(known) == count:
            return known
        found = find()
        self._found = np.concatenate([self._found[: self._place - count], found])
        self._save(self._found.astype("<f8").tobytes())
        return found


def squared_distances(a: Array, b: Array) -> Array:
    """Return the squared Euclidean distances between the rows of a and b."""
    return np.maximum(0, (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T)


class Surrogate:
    """Predicts the worth of points from the voices of the table."""

    def __init__(self, table: Table, target: Target) -> None:
        self.target = target
        self._quality = Ridge(table.points, table.quality[:, None], penalty=1.0)
        self._points, self._embeddings, self._log_pitch = table.points, table.embeddings, table.log_pitch
        values = np.concatenate([table.embeddings, table.log_pitch[:, None]], axis=1)
        self._sound = Ridge(table.points, values, penalty=0.2)

    def quality(self, points: Array) -> Array:
        """Predict the DNSMOS of points, shape (n,)."""
        return self._quality(points)[:, 0]

    def expected(self, points: Array) -> Array:
        """Predict the worth of points, with a penalty for distance from the table."""
        sound = self._sound(points)
        similarity = _cosine(sound[:, :-1], self.target.embedding)
        distance = np.sqrt(squared_distances(points, self._points).min(axis=1))
        return self.worth(points, similarity, sound[:, -1]) - 0.02 * np.maximum(0, distance - 2.6)

    def worth(self, points: Array, similarity: Array, log_pitch: Array) -> Array:
        """Return similarity less penalties for low quality, shifted pitch and extreme points. Shapes (n,)."""
        off_st = 12 / np.log(2) * np.abs(log_pitch - self.target.log_pitch)
        worth: Array = (
            similarity
            - 0.1 * np.maximum(0, 3.0 - self.quality(points))
            - 0.01 * np.maximum(0, off_st - 3)
            - 0.006 * np.maximum(0, np.linalg.norm(points, axis=1) - 6.0)
        )
        return worth

    def optimum(self) -> Array:
        """Return the point of the highest expected worth, searched from the best voice of the table."""
        similarity = _cosine(self._embeddings, self.target.embedding)
        best = int(np.argmax(self.worth(self._points, similarity, self._log_pitch)))
        return evolve(self.expected, self._points[best], random=np.random.default_rng(0))


def _cosine(embeddings: Array, target: NDArray[np.float32]) -> Array:
    return embeddings @ target / np.maximum(np.linalg.norm(embeddings, axis=1), 1e-9)


def evolve(
    objective: Callable[[Array], Array],
    start: Array,
    *,
    random: np.random.Generator,
    population: int = 12,
    iterations: int = 15,
    step: float = 0.4,
) -> Array:
    """Maximize an objective by covariance matrix adaptation; return the last mean, clipped to the style space.

    Source: N. Hansen (2016), "The CMA evolution strategy: a tutorial", equations and defaults of its appendix A.
    """
    size, parents = len(start), population // 2
    weights = np.log(parents + 0.5) - np.log(np.arange(1, parents + 1))
    weights /= weights.sum()
    effective = 1 / np.sum(weights**2)
    c_step = (effective + 2) / (size + effective + 5)
    damping = 1 + 2 * max(0.0, np.sqrt((effective - 1) / (size + 1)) - 1) + c_step
    c_path = (4 + effective / size) / (size + 4 + 2 * effective / size)
    c_one = 2 / ((size + 1.3) ** 2 + effective)
    c_rank = min(1 - c_one, 2 * (effective - 2 + 1 / effective) / ((size + 2) ** 2 + effective))
    expected_norm = np.sqrt(size) * (1 - 1 / (4 * size) + 1 / (21 * size**2))

    mean, covariance = start.astype(np.float64), np.eye(size)
    step_path, path = np.zeros(size), np.zeros(size)
    for iteration in range(iterations):
        values, axes = np.linalg.eigh(covariance)
        spread = np.sqrt(np.maximum(values, 1e-20))
        moves = random.standard_normal((population, size)) * spread @ axes.T
        order = np.argsort(-objective(mean + step * moves))[:parents]
        move = weights @ moves[order]
        mean = mean + step * move
        step_path = (1 - c_step) * step_path
        step_path += np.sqrt(c_step * (2 - c_step) * effective) * (axes @ ((axes.T @ move) / spread))
        length = np.linalg.norm(step_path) / np.sqrt(1 - (1 - c_step) ** (2 * (iteration + 1))) / expected_norm
        is_steady = length < 1.4 + 2 / (size + 1)
        path = (1 - c_path) * path + is_steady * np.sqrt(c_path * (2 - c_path) * effective) * move
        covariance = (1 - c_one - c_rank) * covariance + c_one * np.outer(path, path)
        covariance += c_rank * (weights * moves[order].T) @ moves[order]
        step *= float(np.exp(c_step / damping * (np.linalg.norm(step_path) / expected_norm - 1)))
    return np.clip(mean, -LIMIT, LIMIT)
