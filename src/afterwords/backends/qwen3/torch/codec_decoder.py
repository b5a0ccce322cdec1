"""The decoder of the codec: from frames of 16 codes to 80 ms of audio each, at 24 kHz.

It consists of an embedding lookup, a transformer over a window of frames, and convolutions that make 1920 samples of
each frame. All of it is causal with its past in a `DecoderState`, so that audio decoded frame by frame equals audio
decoded at once. The scheduler calls `step` for all rows of a batch, each at its own position.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn import functional

from afterwords.backends.qwen3.torch import ops as torch_ops
from afterwords.backends.qwen3.torch.causal import CausalConv
from afterwords.backends.qwen3.torch.codec_transformer import WindowCache, WindowTransformer
from afterwords.backends.qwen3.torch.codec_wave import wave_stages
from afterwords.backends.qwen3.torch.ops import Ops
from afterwords.backends.qwen3.torch.weights import Weights, take_affine, take_codebook

if TYPE_CHECKING:
    from afterwords.backends.qwen3.codec_config import CodecConfig, CodecDecoderConfig

PIECE_FRAMES: Final = 25
"""Frames of a whole utterance that are decoded at once, 2 s: more need more memory, and more time on a CPU."""

_INPUT_KERNEL: Final = 3  # not in the checkpoint's configuration. Source: qwen-tts 0.1.1


@dataclass(slots=True, eq=False)
class DecoderState:
    """State of the decoder for each row of a batch, in tensors that do not move.

    Attributes:
        window: Window of the transformer.
        pasts: Past inputs of each convolution, shape (rows, channels, n_past).
    """

    window: WindowCache
    pasts: list[Tensor]

    def view(self, start: int, stop: int) -> DecoderState:
        """Return a view of some rows."""
        window, rows = self.window, slice(start, stop)
        return DecoderState(
            WindowCache(window.n_seen[rows], window.keys[:, rows], window.values[:, rows]),
            [past[rows] for past in self.pasts],
        )

    def copy_row(self, row: int, other: DecoderState, *, other_row: int = 0) -> None:
        """Copy a row of another state, for example of a voice's reference."""
        mine, theirs = self.window, other.window
        mine.n_seen[row] = theirs.n_seen[other_row]
        mine.keys[:, row] = theirs.keys[:, other_row]
        mine.values[:, row] = theirs.values[:, other_row]
        for past, known in zip(self.pasts, other.pasts, strict=True):
            past[row] = known[other_row]

    def clear_row(self, row: int) -> None:
        """Zero a row: masked values are still multiplied by 0, and NaN would spread."""
        self.window.n_seen[row] = 0
        self.window.keys[:, row] = 0
        self.window.values[:, row] = 0
        for past in self.pasts:
            past[row] = 0


class CodecDecoder:
    """The decoder of a codec checkpoint, on the device and in the dtype of its weights."""

    def __init__(self, config: CodecConfig, weights: Weights, *, ops: Ops = torch_ops) -> None:
        decoder = config.decoder
        self.sample_rate, self.samples_per_frame = config.output_sample_rate, config.decode_upsample_rate
        self.n_codebooks, self.codebook_size = decoder.n_codebooks, decoder.codebook_size
        self._tables = _tables(decoder, weights)
        self._offsets = torch.arange(0, len(self._tables), self.codebook_size, device=self._tables.device)
        shape = (decoder.latent, decoder.codebook_dim, _INPUT_KERNEL)
        self._input_conv = CausalConv(*take_affine(weights, "decoder.pre_conv.conv", shape))
        self._transformer = WindowTransformer(decoder, weights, "decoder.pre_transformer")
        self._stages = wave_stages(decoder, weights, ops)
        self._layers = [layer for stage in self._stages for layer in stage.layers]
        weights.check_all_taken("decoder.")
        self._receptive_frames = ceil(sum(layer.n_past / layer.rate for layer in self._layers))

    @torch.inference_mode(mode=False)  # otherwise the state could only be updated in that mode
    def new_state(self, rows: int) -> DecoderState:
        """Return the state before the first frame, for a number of rows."""
        pasts = [layer.new_past(rows) for layer in (self._input_conv, *self._layers)]
        return DecoderState(self._transformer.new_window(rows), pasts)

    def step(self, codes: Tensor, state: DecoderState, n_frames: Tensor | None = None) -> Tensor:
        """Decode the next frames of every row.

        Nothing is read back from the device, and the operations depend on the shape of `codes` only.

        Args:
            codes: int64 of shape (rows, frames, codebooks); values out of range are clamped.
            state: State of each row; updated in place.
            n_frames: Number of valid frames in each row, int64 of shape (rows,), possibly 0; samples of other frames
                must be discarded. None if all are valid.

        Returns:
            Samples of shape (rows, frames * samples_per_frame) in [-1, 1], at `sample_rate`, in the weights' dtype.
        """
        if n_frames is not None:
            n_frames = n_frames.clamp(0, codes.shape[1])  # an index out of range would break the GPU context
        return self._synthesize(self._embed(codes, state, n_frames), state, n_frames)

    def prefill_codec(self, codes: Tensor) -> DecoderState:
        """Return the state of one row after these frames, without computing most of their samples.

        A cloned voice continues its reference: prefill its codes once, and `copy_row` the state for each utterance.
        Stacked windows reach further back than one window, so all frames are needed.

        Args:
            codes: int64 of shape (frames, codebooks).
        """
        state = self.new_state(1)
        if len(codes):
            latent = self._embed(codes[None], state, None)
            self._synthesize(latent[..., -self._receptive_frames :], state, None)
        return state

    def decode(self, codes: Tensor, state: DecoderState | None = None) -> Tensor:
        """Decode whole utterances.

        Args:
            codes: int64 of shape (rows, frames, codebooks), one frame or more; a shorter row may be padded with any
                codes, since later frames do not change earlier samples.
            state: State of each row, updated in place; None starts in silence.

        Returns:
            Samples of shape (rows, frames * samples_per_frame), as `step`.
        """
        state = state or self.new_state(len(codes))
        return torch.cat([self.step(piece, state) for piece in codes.split(PIECE_FRAMES, dim=1)], dim=-1)

    def _embed(self, codes: Tensor, state: DecoderState, n_frames: Tensor | None) -> Tensor:
        """Return the latents of frames, shape (rows, latent, frames)."""
        places = codes.clamp(0, self.codebook_size - 1) + self._offsets
        found = functional.embedding(places, self._tables).sum(dim=2).transpose(1, 2)
        stream = self._input_conv(found, state.pasts[0], n_frames).transpose(1, 2)
        return self._transformer(stream, state.window, n_frames).transpose(1, 2)

    def _synthesize(self, x: Tensor, state: DecoderState, n_frames: Tensor | None) -> Tensor:
        """Return the samples of latents, shape (rows, samples)."""
        pasts = iter(state.pasts[1:])
        for stage in self._stages:
            x = stage(x, pasts, n_frames)
        return x[:, 0].clamp(-1, 1)


def _tables(config: CodecDecoderConfig, weights: Weights) -> Tensor:
    """Return the embeddings of all codes, shape (codebooks * codebook_size, codebook_dim).

    They include the output projection of each group of codebooks, so that a frame is one lookup and one sum.
    """
    inner, size = config.codebook_dim // 2, config.codebook_size
    tables = []
    for group, count in (("rvq_first", config.n_semantic), ("rvq_rest", config.n_codebooks - config.n_semantic)):
        name = f"decoder.quantizer.{group}"
        weights.skip(f"{name}.input_proj.")  # for training
        outward = weights.take(f"{name}.output_proj.weight", (config.codebook_dim, inner, 1), dtype=torch.float32)
        for i in range(count):
            book = take_codebook(weights, f"{name}.vq.layers.{i}._codebook", "embedding_sum", (size, inner))
            tables.append(book @ outward[..., 0].T)
    return torch.cat(tables).to(weights.dtype)
