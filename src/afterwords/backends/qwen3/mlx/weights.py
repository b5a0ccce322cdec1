"""The modules of one checkpoint, built by mlx-audio's classes, with its weights in them.

mlx-audio's own loader prints, goes on without a part that failed, and guesses from shapes which way a convolution's
weights lie. Here every weight must be there, in the shape that its module asks for, or the file is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_audio.tts.models.qwen3_tts import Model as Network
from mlx_audio.tts.models.qwen3_tts import ModelConfig as NetworkConfig
from mlx_audio.tts.models.qwen3_tts import config as network_config
from mlx_audio.tts.models.qwen3_tts.speech_tokenizer import Qwen3TTSSpeechTokenizer as Codec
from mlx_audio.utils import apply_quantization

from afterwords.backends.qwen3.config import HINT
from afterwords.errors import ModelError

CODEC: Final = "speech_tokenizer"
_TURNS: Final = ((0, 2, 1), (1, 2, 0))
"""From torch's convolution weights to MLX's: (out, in, kernel), and of a transposed convolution (in, out, kernel)."""
_NOT_STATED: Final = ".codebook.initialized"
"""What a module has and no file: a flag that nothing reads."""


@dataclass(frozen=True, slots=True)
class Parts:
    """A loaded checkpoint.

    Attributes:
        network: the talker with its code predictor, and the speaker encoder, which is float32.
        codec: encoder and decoder, float32 both: in less, a reference gets other codes.
    """

    network: Any
    codec: Any


def load_parts(folder: Path) -> Parts:
    """Load a checkpoint in MLX's layout or in the one it was published in, quantized or not.

    Raises:
        ModelError: a file is missing, damaged or of another model.
    """
    described = _read(folder / "config.json")
    network = Network(NetworkConfig.from_dict(described))
    weights = _sanitized(Network, folder)
    apply_quantization(network, described, weights, network.model_quant_predicate)
    _fill(network, weights, folder)
    network.speaker_encoder.set_dtype(mx.float32)
    codec = _codec(folder / CODEC)
    network.eval()
    codec.eval()
    mx.eval(network.parameters(), codec.parameters())
    for quantizer in (codec.encoder_model.quantizer.rvq_first, codec.encoder_model.quantizer.rvq_rest):
        for layer in quantizer.vq.layers:
            layer.codebook.update_in_place()
    return Parts(network, codec)


def _codec(folder: Path) -> Any:
    described = _read(folder / "config.json")

    def half(kind: Any, name: str) -> Any:
        return kind(**network_config.filter_dict_for_dataclass(kind, described[name]))

    config = network_config.Qwen3TTSTokenizerConfig(
        encoder_config=half(network_config.Qwen3TTSTokenizerEncoderConfig, "encoder_config"),
        decoder_config=half(network_config.Qwen3TTSTokenizerDecoderConfig, "decoder_config"),
    )
    for name in network_config.filter_dict_for_dataclass(network_config.Qwen3TTSTokenizerConfig, described):
        if not name.endswith("coder_config"):
            setattr(config, name, described[name])
    codec = Codec(config)
    _fill(codec, _sanitized(Codec, folder), folder)
    codec.set_dtype(mx.float32)
    return codec


def _read(path: Path) -> dict[str, Any]:
    """A file that `read_config` or `read_codec_config` has found good."""
    described: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return described


def _sanitized(kind: Any, folder: Path) -> dict[str, mx.array]:
    """All tensors of a folder, under the names of mlx-audio's modules."""
    weights: dict[str, mx.array] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            weights |= cast(dict[str, mx.array], mx.load(str(path)))
        except (RuntimeError, ValueError) as error:
            raise ModelError.for_file(str(path), why=f"can't be read ({error})", hint=HINT) from error
    named: dict[str, mx.array] = kind.sanitize(weights)
    return named


def _fill(module: Any, weights: Mapping[str, mx.array], folder: Path) -> None:
    """Put weights into a module, each turned as the module asks for it.

    Raises:
        ModelError: one is missing or has another shape.
    """
    wanted = {name: tuple(value.shape) for name, value in cast(Any, tree_flatten(module.parameters()))}
    for name in sorted(wanted.keys() - weights.keys()):
        if not name.endswith(_NOT_STATED):
            raise ModelError.for_file(str(folder), why=f"has no weights for {name}", hint=HINT)
    module.load_weights(list(_turned(weights, wanted, folder)), strict=False)


def _turned(
    weights: Mapping[str, mx.array], wanted: Mapping[str, tuple[int, ...]], folder: Path
) -> Iterator[tuple[str, mx.array]]:
    for name, shape in wanted.items():
        if name not in weights:
            continue
        value = weights[name]
        ways = [value, *(value.transpose(turn) for turn in _TURNS if value.ndim == 3)]
        fitting = next((way for way in ways if tuple(way.shape) == shape), None)
        if fitting is None:
            why = f"has weights of shape {tuple(value.shape)} for {name}, which takes {shape}"
            raise ModelError.for_file(str(folder), why=why, hint=HINT)
        yield name, fitting
