"""Make a Qwen3-TTS checkpoint of about 1 MB as mlx-audio publishes them: convolutions transposed, optionally quantized.

The weights are those of `make_qwen3_tiny`, so that what speaks on torch and what speaks on MLX can be compared. Tests
make it in a temporary folder; `python -m scripts.make_mlx_tiny FOLDER [BITS]` makes one to look at.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final, cast

import mlx.core as mx
from mlx.nn.layers.quantized import quantize
from mlx.utils import tree_flatten

from afterwords.backends.qwen3.mlx.weights import load_modules
from scripts.make_qwen3_tiny import make_checkpoint

GROUP: Final = 32
"""Weights per scale: the width of the narrowest layer; 64 in published checkpoints."""


def make_mlx_checkpoint(folder: Path, *, bits: int | None = None) -> Path:
    """Write a complete checkpoint.

    Args:
        folder: made if need be; files in it are replaced.
        bits: of the talker's and the predictor's weights, 8 or 4; None leaves them as they are.

    Returns:
        The folder.
    """
    network, _ = load_modules(make_checkpoint(folder))
    if bits is not None:
        quantize(network, group_size=GROUP, bits=bits, class_predicate=lambda path, module: _may(network, path, module))
        path = folder / "config.json"
        config = json.loads(path.read_text("utf-8")) | {"quantization": {"group_size": GROUP, "bits": bits}}
        path.write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    weights = cast(dict[str, mx.array], dict(cast(Any, tree_flatten(network.parameters()))))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder


def _may(network: Any, path: str, module: Any) -> bool:
    """Return whether mlx-audio quantizes a module when it converts a checkpoint."""
    is_linear = hasattr(module, "to_quantized") and module.weight.shape[-1] % GROUP == 0
    return is_linear and bool(network.model_quant_predicate(path, module))


if __name__ == "__main__":
    print(make_mlx_checkpoint(Path(sys.argv[1]), bits=int(sys.argv[2]) if len(sys.argv) > 2 else None))
