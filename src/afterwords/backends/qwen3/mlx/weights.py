"""The modules of a checkpoint: mlx-audio's classes with its weights.

mlx-audio's own loader prints, ignores a part that failed to load, and guesses the layout of a convolution's weights
from their shape. Here every weight must exist in the shape of its module; otherwise the error names the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
_PERMUTATIONS: Final = ((0, 2, 1), (1, 2, 0))
"""From torch's convolution weights to MLX's: (out, in, kernel), and (in, out, kernel) if transposed."""
_NOT_STATED: Final = ".codebook.initialized"
"""An attribute of a module that no file has, and nothing reads."""


def load_modules(folder: Path) -> tuple[Any, Any]:
    """Load a checkpoint in the layout of MLX or of the original, quantized or not.

    Returns:
        The talker with its code predictor and the speaker encoder in float32; and encoder and decoder of the codec in
        float32: with lower precision, a reference gets other codes.

    Raises:
        ModelError: A file is missing, damaged or of another model.
    """
    config = _read_json(folder / "config.json")
    network = Network(NetworkConfig.from_dict(config))
    weights = _read_tensors(Network, folder)
    apply_quantization(network, config, weights, network.model_quant_predicate)
    _fill(network, weights, folder)
    network.speaker_encoder.set_dtype(mx.float32)
    folder = folder / CODEC
    raw = _read_json(folder / "config.json")
    encoder, decoder = (
        kind(**network_config.filter_dict_for_dataclass(kind, raw[name]))
        for kind, name in (
            (network_config.Qwen3TTSTokenizerEncoderConfig, "encoder_config"),
            (network_config.Qwen3TTSTokenizerDecoderConfig, "decoder_config"),
        )
    )
    codec_config = network_config.Qwen3TTSTokenizerConfig(encoder_config=encoder, decoder_config=decoder)
    for name in network_config.filter_dict_for_dataclass(network_config.Qwen3TTSTokenizerConfig, raw):
        if not name.endswith("coder_config"):
            setattr(codec_config, name, raw[name])
    codec = Codec(codec_config)
    _fill(codec, _read_tensors(Codec, folder), folder)
    codec.set_dtype(mx.float32)
    network.eval()
    codec.eval()
    mx.eval(network.parameters(), codec.parameters())
    for quantizer in (codec.encoder_model.quantizer.rvq_first, codec.encoder_model.quantizer.rvq_rest):
        for layer in quantizer.vq.layers:
            layer.codebook.update_in_place()
    return network, codec


def _read_json(path: Path) -> dict[str, Any]:
    """Read a file that `read_config` or `read_codec_config` has validated."""
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def _read_tensors(kind: Any, folder: Path) -> dict[str, mx.array]:
    """Read all tensors of a folder, under the names of mlx-audio's modules."""
    weights: dict[str, mx.array] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            weights |= cast(dict[str, mx.array], mx.load(str(path)))
        except (RuntimeError, ValueError) as error:
            raise ModelError.for_file(str(path), why=f"can't be read ({error})", hint=HINT) from error
    renamed: dict[str, mx.array] = kind.sanitize(weights)
    return renamed


def _fill(module: Any, weights: Mapping[str, mx.array], folder: Path) -> None:
    """Load weights into a module, transposed to the shapes that it expects.

    Raises:
        ModelError: A weight is missing or has another shape.
    """
    found: list[tuple[str, mx.array]] = []
    for name, parameter in sorted(cast(Any, tree_flatten(module.parameters()))):
        if name in weights:
            value, shape = weights[name], tuple(parameter.shape)
            layouts = [value, *(value.transpose(axes) for axes in _PERMUTATIONS if value.ndim == 3)]
            fitting = next((layout for layout in layouts if tuple(layout.shape) == shape), None)
            if fitting is None:
                why = f"has weights of shape {tuple(value.shape)} for {name}, which needs {shape}"
                raise ModelError.for_file(str(folder), why=why, hint=HINT)
            found.append((name, fitting))
        elif not name.endswith(_NOT_STATED):
            raise ModelError.for_file(str(folder), why=f"has no weights for {name}", hint=HINT)
    module.load_weights(found, strict=False)
