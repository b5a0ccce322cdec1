"""The style space: packing, and its stock voices."""

from __future__ import annotations

import numpy as np
import pytest

from afterwords.backends.lite.styles import LIMIT, PROSODY, ROWS, SIZE, TIMBRE, WIDTH, pack_voices, style_space
from afterwords.backends.lite.styles import unpack_voices as unpack


def test_space_has_its_documented_shapes() -> None:
    assert style_space().voices.shape == (54, ROWS, WIDTH) == (len(style_space().names), *style_space().mean.shape)
    assert style_space().coordinates.shape == (54, SIZE)
    assert [part.shape for part in style_space().components] == [(TIMBRE, ROWS, 128), (PROSODY, ROWS, 128)]
    assert {"af_heart", "am_michael", "bf_emma"} <= set(style_space().names)


def test_packed_voices_round_trip_within_half_a_step() -> None:
    voices = (np.random.default_rng(1).normal(0, 0.5, (3, ROWS, WIDTH)).cumsum(axis=1) / 30).astype(np.float32)
    names, back = unpack(pack_voices(("a", "b", "c"), voices))
    step = np.abs(voices).max(axis=(0, 1)) / (2**12 - 1)
    assert names == ("a", "b", "c")
    assert (np.abs(back - voices) <= 0.501 * step + 1e-7).all()


def test_repacking_is_lossless() -> None:
    names, again = unpack(pack_voices(style_space().names[:3], style_space().voices[:3]))
    assert names == style_space().names[:3]
    step = np.abs(style_space().voices[:3]).max(axis=(0, 1)) / (2**12 - 1)
    assert (np.abs(again - style_space().voices[:3]) <= 0.501 * step + 1e-7).all()


def test_fewer_bits_are_coarser() -> None:
    voices = style_space().voices[:2]
    coarse, fine = (np.abs(unpack(pack_voices(("a", "b"), voices, bits=b))[1] - voices).max() for b in (8, 13))
    assert coarse > 8 * fine


@pytest.mark.parametrize("length", [1, 7, 120, ROWS])
def test_row_equals_row_of_the_table(length: int) -> None:
    point = np.random.default_rng(2).normal(0, 1, SIZE)
    np.testing.assert_allclose(style_space().row(point, length), style_space().table(point)[length - 1], atol=1e-5)


@pytest.mark.parametrize(("asked", "given"), [(0, 1), (-5, 1), (ROWS + 100, ROWS)])
def test_lengths_beyond_the_table_are_clamped(asked: int, given: int) -> None:
    point = style_space().coordinates[0]
    np.testing.assert_array_equal(style_space().row(point, asked), style_space().row(point, given))


def test_origin_is_the_mean_voice() -> None:
    np.testing.assert_allclose(style_space().table(np.zeros(SIZE)), style_space().voices.mean(axis=0), atol=1e-6)


def test_coordinates_are_uncorrelated_with_unit_variance() -> None:
    for half in (style_space().coordinates[:, :TIMBRE], style_space().coordinates[:, TIMBRE:]):
        np.testing.assert_allclose(half.T @ half / len(half), np.eye(half.shape[1]), atol=1e-4)


def test_stock_voice_is_at_its_coordinates() -> None:
    rows = slice(20, 200)  # where speech of common length takes its style
    for index in (0, 20, 53):
        offset = style_space().voices[index][rows] - style_space().mean[rows]
        missed = style_space().voices[index][rows] - style_space().table(style_space().coordinates[index])[rows]
        assert np.square(missed).sum() < 0.35 * np.square(offset).sum()


def test_stock_voices_are_in_range_of_the_search() -> None:
    assert np.mean(np.abs(style_space().coordinates) <= LIMIT) > 0.98
