"""Compares a talker before and after quantization, and refuses too large a difference.

Both get the same text and the same frames before each position, and give the most likely code there. This measures the
quantization alone: in free decoding, one different code changes everything after it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from afterwords.audio.analysis import decibels, mel_filters, power_spectrum
from afterwords.backends.qwen3.torch.codec_decoder import CodecDecoder
from afterwords.backends.qwen3.torch.prompt import Prompt
from afterwords.backends.qwen3.torch.talker import PrefillRow, Talker
from afterwords.errors import ModelError

N_FRAMES: Final = 25
"""2 s."""
LEAST_CODES: Final = 0.75
MOST_MEL_DB: Final = 6.0
"""Limits that were chosen without the published weights: with random weights of the 0.6B size, fp8 keeps 81 % of the
codes, int8 93 %, and 4 bits, which is not usable, 25 %; all of them differ by 2.5 dB, since a random codec
distinguishes little. Of the 1.7B size, fp8 keeps 75.5 %. Random logits are close together, so trained weights should
keep more."""
_N_FFT, _HOP, _N_MELS = 1024, 256, 80


@dataclass(frozen=True, slots=True)
class Agreement:
    """Similarity of two talkers.

    Attributes:
        codes: Share of positions at which both have the same most likely code.
        mel_db: Mean difference of the log mel spectra of the decoded audio, in dB.
    """

    codes: float
    mel_db: float

    @property
    def is_enough(self) -> bool:
        return self.codes >= LEAST_CODES and self.mel_db <= MOST_MEL_DB


@torch.inference_mode()
def quantize(talker: Talker, decoder: CodecDecoder, prompt: Prompt, precision: str) -> Agreement:
    """Quantize the weights of a talker that is not in use yet to "fp8" or "int8", and measure the difference."""
    length = len(prompt.columns) + N_FRAMES
    rows = talker.new_rows(1, length + -length % 8, n_text=max(1, len(prompt.trailing)))
    greedy = replace(talker.config.sampling, temperature=0.0, predictor_temperature=0.0, min_frames=N_FRAMES)
    talker.prefill(rows, [PrefillRow(0, prompt, N_FRAMES, greedy)])
    for _ in range(N_FRAMES):
        talker.decode_frame(rows, with_top_p=False)
    codes = rows.history[0, :N_FRAMES].long()
    before = talker.most_likely_codes(prompt, codes)
    talker.quantize(precision)
    after = talker.most_likely_codes(prompt, codes)
    distance = (_mel_db(decoder, before) - _mel_db(decoder, after)).abs().mean().item()
    return Agreement((before == after).float().mean().item(), distance)


def check(agreement: Agreement, *, model: str, precision: str) -> None:
    """Raise ModelError if the agreement is too low."""
    if not agreement.is_enough:
        raise ModelError(
            f"The model {model} loses too much accuracy at {precision}: {agreement.codes:.0%} of its codes are the "
            f"same ({LEAST_CODES:.0%} are required), and its audio differs by {agreement.mel_db:.1f} dB (at most "
            f"{MOST_MEL_DB:.1f} dB is allowed).",
            code="precision",
        )


def _mel_db(decoder: CodecDecoder, codes: Tensor) -> Tensor:
    sound = decoder.decode(codes[None])[0].float().cpu().numpy()
    filters = mel_filters(decoder.sample_rate, _N_FFT, _N_MELS, 0.0, decoder.sample_rate / 2)
    power = power_spectrum(sound, _N_FFT, _HOP) / _N_FFT
    return torch.from_numpy(decibels(np.maximum(power @ filters.T, 1e-8)))  # no quieter than -80 dB
