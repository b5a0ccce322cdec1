"""Utterances of one voice that began together and are spoken side by side, one frame of all at a time.

Prompts of one voice have the same number of columns, whatever their texts: no row is padded, and none masked. So a row
says what it would say alone, as far as the device adds up batches as it does single rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import mlx.core as mx
import numpy as np
from mlx_audio.lm.models.cache import KVCache
from numpy.typing import NDArray

from afterwords.backends.mlx.model import Model, Script
from afterwords.backends.mlx.sampling import draw, noise
from afterwords.backends.qwen3.config import N_CONTROL_IDS, Sampling


class Group:
    """Rows in lockstep.

    Attributes:
        n_frames: spoken so far.
    """

    def __init__(self, model: Model, scripts: Sequence[Script], samplings: Sequence[Sampling]) -> None:
        """Hear the prompts.

        Args:
            model: speaks them.
            scripts: of one voice and of one number of columns.
            samplings: of each, the same but for their seeds.
        """
        self._model, self._sampling = model, samplings[0]
        self._talker = model.network.talker
        talker = model.config.talker
        self._seeds = mx.array([sampling.seed for sampling in samplings], mx.uint64)
        codes = mx.arange(talker.vocab)
        self._is_end = codes == talker.codes.eos
        self._is_banned = (codes >= talker.vocab - N_CONTROL_IDS) & ~self._is_end
        n_others, self._n_codes = talker.n_code_groups - 1, model.config.predictor.vocab
        others = np.arange(1, 1 + n_others)[:, None] * talker.vocab + np.arange(self._n_codes)
        self._counters = mx.array(np.concatenate([np.arange(talker.vocab), others.reshape(-1)]).astype(np.uint64))
        sampling = samplings[0]
        self._draw_first = mx.compile(
            partial(draw, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
        )
        self._draw_other = mx.compile(
            partial(
                draw,
                temperature=sampling.predictor_temperature,
                top_k=sampling.predictor_top_k,
                top_p=sampling.predictor_top_p,
            )
        )
        self._seen = mx.zeros((len(scripts), talker.vocab), mx.bool_)
        pad = model.config.tokens.pad
        trailing = [script.layout.trailing for script in scripts]
        longest = 1 + max(len(ids) for ids in trailing)
        self._trailing = model.text([[*ids, *[pad] * (longest - len(ids))] for ids in trailing])
        self._codec = model.standing(scripts[0].voice).primed.rows([0] * len(scripts))
        self._cache = [KVCache() for _ in self._talker.model.layers]
        self._said: list[mx.array] = []
        self.n_frames = 0
        self._hidden, self._logits = self._heard(model.columns(scripts))

    def frame(self) -> None:
        """Speak one frame in every row. Nothing is read back: it may still be under way when this returns."""
        dice = noise(self._seeds, mx.array(self.n_frames, mx.uint64), self._counters)
        first = self._draw_first(self._allowed(), dice[:, : self._seen.shape[1]])
        self._seen = self._seen | (first[:, None] == mx.arange(self._seen.shape[1]))
        codes = self._predicted(first, dice[:, self._seen.shape[1] :])
        self._said.append(mx.stack(codes, axis=1))
        text = self._trailing[:, min(self.n_frames, self._trailing.shape[1] - 1)]
        self.n_frames += 1
        self._hidden, self._logits = self._heard((text + self._model.frame_embedding(codes))[:, None])
        mx.async_eval(self._logits, self._hidden, self._seen, self._said[-1])

    def spoken(self) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """The frames since it was last asked, shape (n_rows, n_frames, n_codebooks), and which rows are still sane."""
        said, self._said = mx.stack(self._said, axis=1), []
        is_finite = mx.isfinite(self._logits).any(-1) & ~mx.isnan(self._logits).any(-1)
        mx.eval(said, is_finite)
        return np.array(said), np.array(is_finite)

    def sound(self, codes: NDArray[np.int32]) -> list[NDArray[np.float32]]:
        """The sound of the next frames of every row; codes as `spoken` gave them, each within its codebook."""
        sound, self._codec = self._model.decoder.step(codes, self._codec)
        return sound

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows alone."""
        index = mx.array(rows)
        for cache in self._cache:
            cache.keys, cache.values = cache.keys[index], cache.values[index]
        self._seeds, self._seen, self._trailing = self._seeds[index], self._seen[index], self._trailing[index]
        self._hidden, self._logits = self._hidden[index], self._logits[index]
        self._codec = self._codec.rows(rows)

    def _heard(self, columns: mx.array) -> tuple[mx.array, mx.array]:
        """Take columns in, shape (n_rows, n, hidden): what comes of the last one, and the logits of what follows it."""
        hidden = self._talker.model(columns, cache=self._cache)[:, -1:]
        return hidden, self._talker.codec_head(hidden)[:, 0].astype(mx.float32)

    def _allowed(self) -> mx.array:
        """The logits of what may be drawn first in a frame."""
        logits, penalty = self._logits, self._sampling.repetition_penalty
        logits = mx.where(self._seen, mx.where(logits < 0, logits * penalty, logits / penalty), logits)
        is_early = self.n_frames < self._sampling.min_frames
        return mx.where(self._is_banned | self._is_end if is_early else self._is_banned, -mx.inf, logits)

    def _predicted(self, first: mx.array, dice: mx.array) -> list[mx.array]:
        """The codes of a frame, each of shape (n_rows,): each is drawn knowing those before it."""
        predictor = self._talker.code_predictor
        cache = [KVCache() for _ in predictor.model.layers]
        codes = [first]
        heard = mx.concatenate([self._hidden, self._talker.get_input_embeddings()(first)[:, None]], axis=1)
        for group, table in enumerate(predictor.codec_embedding):
            logits, _, _ = predictor(heard, cache=cache, generation_step=group)
            noise_of = dice[:, group * self._n_codes : (group + 1) * self._n_codes]
            code = self._draw_other(logits[:, -1].astype(mx.float32), noise_of)
            codes.append(code)
            heard = table(code)[:, None]
        return codes
