"""Qwen3-TTS at its published sizes with random weights, created on the device; their values do not affect speed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from afterwords.backends.qwen3.codec_config import read_codec_config
from afterwords.backends.qwen3.config import read_config
from afterwords.backends.qwen3.tokenizer import TextTokenizer
from afterwords.backends.qwen3.torch.agreement import Agreement, quantize
from afterwords.backends.qwen3.torch.codec_decoder import CodecDecoder, DecoderState
from afterwords.backends.qwen3.torch.ops import Ops
from afterwords.backends.qwen3.torch.prompt import Prompt, Prompts
from afterwords.backends.qwen3.torch.talker import Talker
from afterwords.backends.qwen3.torch.weights import Shape, Weights
from scripts.make_qwen3_tiny import CODEC, model_config, write_all_but_weights

REFERENCE_FRAMES: Final = 125
"""Frames of the reference that precede the speech: 10 s."""
TEXT: Final = "The harbour was quiet when they arrived, and only the gulls seemed to notice."

_HEADS: Final = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
_PREDICTOR: Final = {"vocab_size": 2048, "hidden_size": 1024, "intermediate_size": 3072, **_HEADS}
_TALKERS: Final[dict[str, dict[str, Any]]] = {
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072},
    "1.7b": {"hidden_size": 2048, "intermediate_size": 6144},
}
_CODEC_DECODER: Final = {
    "codebook_dim": 512,
    "codebook_size": 2048,
    "decoder_dim": 1536,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "latent_dim": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_hidden_layers": 8,
    "head_dim": 64,
}
SIZES: Final = tuple(_TALKERS)


def write_published(folder: Path, size: str) -> Path:
    """Write the configuration of a checkpoint of a published size, without weights and with a small vocabulary."""
    config = model_config(predictor_hidden=1024, n_layers=28, n_predictor_layers=5)
    talker = config["talker_config"]
    is_code = {name: number for name, number in talker.items() if name.startswith("codec_") and name.endswith("_id")}
    shift = 2048 + 1024 - talker["vocab_size"]  # control ids follow the codes
    talker.update({name: number + shift for name, number in is_code.items() if isinstance(number, int)})
    talker["codec_language_id"] = {name: number + shift for name, number in talker["codec_language_id"].items()}
    talker.update(_TALKERS[size], vocab_size=3072, text_vocab_size=151_936, text_hidden_size=2048, **_HEADS)
    talker["rope_scaling"] = {"interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}
    talker["code_predictor_config"].update(_PREDICTOR)
    config["speaker_encoder_config"] = {"enc_dim": talker["hidden_size"], "sample_rate": 24_000}
    codec = {**CODEC, "decoder_config": {**CODEC["decoder_config"], **_CODEC_DECODER}}
    write_all_but_weights(folder, config, codec)
    return folder


class RandomWeights(Weights):
    """Returns random tensors of any name, scaled by their fan-in so that nothing overflows.

    Attributes:
        sizes: elements of each tensor that was taken, by name.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.sizes: dict[str, int] = {}

    def take(self, name: str, shape: Shape, *, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.dtype
        self.sizes[name] = torch.Size(shape).numel()
        if len(shape) > 1:
            fan_in = torch.Size(shape[1:]).numel()
            return torch.randn(shape, device=self.device, dtype=dtype).mul_(fan_in**-0.5)
        is_scale = "norm" in name or name.endswith(("_usage", ".scale", ".gamma"))
        return torch.full(
            shape, 1.0 if is_scale and not name.endswith(".bias") else 0.0, device=self.device, dtype=dtype
        )

    def skip(self, prefix: str) -> None:
        """Do nothing, since no tensor is left."""

    def check_all_taken(self, prefix: str = "") -> None:
        """Do nothing, since no tensor is left."""


class RandomModel:
    """The parts that synthesize, and a voice.

    Attributes:
        talker, decoder: as of a loaded checkpoint.
        primed: the codec behind the voice's reference.
    """

    @torch.inference_mode()
    def __init__(self, folder: Path, *, device: torch.device, dtype: torch.dtype, ops: Ops) -> None:
        self.config, self.dtype = read_config(folder), dtype
        self.codec = read_codec_config(folder / "speech_tokenizer")
        torch.manual_seed(0)
        self.weights = RandomWeights(device, dtype)
        self.talker = Talker(self.weights, self.config, ops=ops)
        self.decoder = CodecDecoder(self.codec, RandomWeights(device, dtype), ops=ops)
        tokenizer = TextTokenizer(folder, self.config.tokens, vocab=self.config.talker.text_vocab)
        prompts = Prompts(self.config, self.talker.embeddings, tokenizer)
        codes = torch.randint(self.config.talker.predictor.vocab, (REFERENCE_FRAMES, self.config.talker.n_code_groups))
        speaker = torch.randn(self.config.talker.stack.hidden, device=device)
        self.prompt: Prompt = prompts.build(
            TEXT, reference_ids=prompts.tokens(TEXT), codes=codes, speaker=speaker, language="english"
        )
        self.codec_state: DecoderState = self.decoder.prefill_codec(codes.to(device))

    def quantize(self, precision: str) -> Agreement:
        """Quantize the talker, and return the share of codes that stay the same."""
        return quantize(self.talker, self.decoder, self.prompt, precision)

    def bytes_per_frame(self, n_rows: int, n_positions: float) -> float:
        """Return the bytes that a frame reads: each weight once per pass, and the keys and values of each row.

        The talker passes once, the code predictor as often as a frame has further codes; its own keys and values are
        few. What a table gives is one row of it.
        """
        talker = self.config.talker.stack
        kept = 2 * talker.n_layers * talker.n_kv_heads * talker.head_dim
        n = self._n_weights(lambda name: name.startswith(_ONCE)) + n_rows * n_positions * kept
        n += (self.config.talker.n_code_groups - 1) * self._n_weights(lambda name: name.startswith(_EACH_CODE))
        return n * self.dtype.itemsize

    def _n_weights(self, is_meant: Callable[[str], bool]) -> int:
        return sum(size for name, size in self.weights.sizes.items() if is_meant(name))


_ONCE: Final = (
    "talker.model.layers.",
    "talker.codec_head.",
    "talker.text_projection.",
    "talker.code_predictor.lm_head.",
    "talker.code_predictor.small_to_mtp",
)
_EACH_CODE: Final = "talker.code_predictor.model.layers."
