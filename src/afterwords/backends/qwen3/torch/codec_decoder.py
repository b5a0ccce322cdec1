"""From codec frames to sound: 16 codes a frame, 80 ms of 24 kHz for each.

Lookup, a transformer over a window of frames, and convolutions that make 1920 samples of each frame. None of it looks
ahead, and what it looks back at is held in a `DecoderState`: speech decoded frame by frame is the speech decoded
whole. The talker's loop calls `step` for all rows of a batch at once; each row may be at another place of its speech.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn import functional

from afterwords.backends.qwen3.torch.causal import CausalConv
from afterwords.backends.qwen3.torch.codec_transformer import WindowCache, WindowTransformer
from afterwords.backends.qwen3.torch.codec_wave import wave_stages
from afterwords.backends.qwen3.torch.weights import Weights, take_affine, take_codebook

if TYPE_CHECKING:
    from afterwords.backends.qwen3.codec_config import CodecConfig, CodecDecoderConfig

PIECE_FRAMES: Final = 25
"""Frames decoded at once of a whole utterance, 2 s: larger pieces need more memory, and on a CPU take longer."""

_ENTRANCE_KERNEL: Final = 3  # not stated by the checkpoint. Source: qwen-tts 0.1.1


@dataclass(slots=True, eq=False)
class DecoderState:
    """All that the decoder remembers of what it decoded, for each row of a batch. Its tensors keep their places.

    Attributes:
        window: the frames that the transformer looks back at.
        pasts: the last inputs of each convolution, shape (rows, channels, n_past).
    """

    window: WindowCache
    pasts: list[Tensor]

    def copy_row(self, row: int, other: DecoderState, *, other_row: int = 0) -> None:
        """Let a row go on from where a row of another state is, for example from a voice's primed one."""
        mine, theirs = self.window, other.window
        mine.n_seen[row] = theirs.n_seen[other_row]
        mine.keys[:, row] = theirs.keys[:, other_row]
        mine.values[:, row] = theirs.values[:, other_row]
        for past, known in zip(self.pasts, other.pasts, strict=True):
            past[row] = known[other_row]

    def clear_row(self, row: int) -> None:
        """Let a row begin anew, with nothing before it: what is hidden is still multiplied by 0, and may be NaN."""
        self.window.n_seen[row] = 0
        self.window.keys[:, row] = 0
        self.window.values[:, row] = 0
        for past in self.pasts:
            past[row] = 0


class CodecDecoder:
    """The decoder of a codec checkpoint.

    Args:
        config: of the codec.
        weights: of the codec's file; their device and dtype are the decoder's.
    """

    def __init__(self, config: CodecConfig, weights: Weights) -> None:
        decoder = config.decoder
        self.sample_rate, self.samples_per_frame = config.output_sample_rate, config.decode_upsample_rate
        self.n_codebooks, self.codebook_size = decoder.n_codebooks, decoder.codebook_size
        self._tables = _tables(decoder, weights)
        self._offsets = torch.arange(0, len(self._tables), self.codebook_size, device=self._tables.device)
        entrance = (decoder.latent, decoder.codebook_dim, _ENTRANCE_KERNEL)
        self._entrance = CausalConv(*take_affine(weights, "decoder.pre_conv.conv", entrance))
        self._transformer = WindowTransformer(decoder, weights, "decoder.pre_transformer")
        self._stages = wave_stages(decoder, weights)
        self._layers = [layer for stage in self._stages for layer in stage.layers]
        weights.check_all_taken("decoder.")
        self._receptive_frames = ceil(sum(layer.n_past / layer.rate for layer in self._layers))

    @torch.inference_mode(mode=False)  # or a state made in that mode could not be updated out of it
    def new_state(self, rows: int) -> DecoderState:
        """A state before the first frame, for a batch of that many rows."""
        pasts = [layer.new_past(rows) for layer in (self._entrance, *self._layers)]
        return DecoderState(self._transformer.new_window(rows), pasts)

    def step(self, codes: Tensor, state: DecoderState, n_frames: Tensor | None = None) -> Tensor:
        """Decode the next frames of every row.

        Reads nothing back from the device, and for one shape of `codes` does the same operations each time.

        Args:
            codes: int64 of shape (rows, frames, codebooks); what is no code counts as the nearest one.
            state: where each row is; updated in place.
            n_frames: how many of its frames count in each row, int64 of shape (rows,), 0 for a row that waits; the
                sound of the others is to be thrown away. None where all count.

        Returns:
            Samples of shape (rows, frames * samples_per_frame) in [-1, 1], at `sample_rate`, in the weights' dtype.
        """
        if n_frames is not None:
            n_frames = n_frames.clamp(0, codes.shape[1])  # beyond it, a GPU would fail for good
        return self._sound(self._hear(codes, state, n_frames), state, n_frames)

    def prefill_codec(self, codes: Tensor) -> DecoderState:
        """Make a state of one row that stands behind these frames, with little of the work of their sound.

        A cloned voice goes on from its reference: prime with its codes once, then `put` the state into a row for each
        utterance. Windows upon windows reach back further than one: give all frames.

        Args:
            codes: int64 of shape (frames, codebooks).
        """
        state = self.new_state(1)
        if len(codes):
            latent = self._hear(codes[None], state, None)
            self._sound(latent[..., -self._receptive_frames :], state, None)
        return state

    def decode(self, codes: Tensor, state: DecoderState | None = None) -> Tensor:
        """Decode whole utterances.

        Args:
            codes: int64 of shape (rows, frames, codebooks), of one frame or more; any codes may fill up a shorter row,
                for nothing behind a frame changes its sound.
            state: where each row is, for example primed; updated in place. None for the beginning.

        Returns:
            Samples of shape (rows, frames * samples_per_frame), as `step`.
        """
        state = state or self.new_state(len(codes))
        return torch.cat([self.step(piece, state) for piece in codes.split(PIECE_FRAMES, dim=1)], dim=-1)

    def _hear(self, codes: Tensor, state: DecoderState, n_frames: Tensor | None) -> Tensor:
        """From codes to the latents of their frames, shape (rows, latent, frames)."""
        places = codes.clamp(0, self.codebook_size - 1) + self._offsets
        found = functional.embedding(places, self._tables).sum(dim=2).transpose(1, 2)
        stream = self._entrance(found, state.pasts[0], n_frames).transpose(1, 2)
        return self._transformer(stream, state.window, n_frames).transpose(1, 2)

    def _sound(self, x: Tensor, state: DecoderState, n_frames: Tensor | None) -> Tensor:
        """From latents to samples, shape (rows, samples)."""
        pasts = iter(state.pasts[1:])
        for stage in self._stages:
            x = stage(x, pasts, n_frames)
        return x[:, 0].clamp(-1, 1)


def _tables(config: CodecDecoderConfig, weights: Weights) -> Tensor:
    """What each code adds to the latent, shape (codebooks * codebook_size, codebook_dim).

    The projection behind each group of codebooks is folded in, so that a frame is one lookup and one sum.
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
