"""Tensors of a checkpoint, read by name from safetensors straight to their device.

Pickles are refused, since opening one can run any code. Every part of the model takes its tensors here, each once, with
the shape it expects; errors name the file and the tensor that is missing, misshapen, unknown or damaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from afterwords.errors import ModelError, pip_install
from afterwords.weights.folder import read_shard_names

_USAGE_FLOOR: Final = 1e-5
"""For an entry that was never used. Source: qwen-tts 0.1.1 and Mimi."""
PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_HINT: Final = "delete the model's folder and download it again."

Shape = tuple[int, ...]


class Weights:
    """The tensors of a checkpoint that are not taken yet.

    with Weights.open(folder, device="cuda", dtype=torch.bfloat16) as weights:
        head = weights.take("talker.codec_head.weight", (3072, 2048))
        weights.check_all_taken("talker.")
    """

    def __init__(self, source: Path, files: Sequence[Path], *, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._source = source
        self._open_files: list[Any] = []
        self._left: dict[str, tuple[Path, Any]] = {}
        where = f"{device.type}:{device.index or 0}" if device.type == "cuda" else device.type
        for path in files:
            try:
                opened: Any = safe_open(path, framework="pt", device=where)
            except FileNotFoundError as error:
                raise ModelError.for_file(str(path), why="is missing", hint=_HINT) from error
            except (SafetensorError, OSError) as error:
                raise ModelError.for_file(str(path), why=f"is damaged or truncated ({error})", hint=_HINT) from error
            self._open_files.append(opened)
            self._left.update((name, (path, opened)) for name in opened.keys())  # noqa: SIM118 - no mapping

    @classmethod
    def open(cls, source: Path, *, device: torch.device | str, dtype: torch.dtype) -> Self:
        """Open a checkpoint without reading tensors.

        Args:
            source: A .safetensors file, or a folder with model.safetensors or with shards and their index.
            device: Device of the tensors.
            dtype: Floating-point tensors are converted to it.

        Raises:
            ModelError: The file is missing, damaged or a pickle.
        """
        files = [source]
        if source.is_dir() and (source / _SINGLE).is_file():
            files = [source / _SINGLE]
        elif source.is_dir():
            if not (source / _INDEX).is_file():
                for path in sorted(source.iterdir()):
                    _check_kind(path, folder=True)
                raise ModelError.for_file(str(source / _SINGLE), why="is missing", hint=_HINT)
            files = [source / name for name in read_shard_names(source / _INDEX, hint=_HINT)]
        for path in files:
            _check_kind(path)
        return cls(source, files, device=torch.device(device), dtype=dtype)

    def take(self, name: str, shape: Shape, *, dtype: torch.dtype | None = None) -> Tensor:
        """Read one tensor.

        Args:
            name: Name of the tensor in the file.
            shape: Its expected shape.
            dtype: Overrides the dtype of the checkpoint.

        Raises:
            ModelError: The tensor is missing or taken, has another shape, or can't be read.
        """
        if name not in self._left:
            raise ModelError.for_file(str(self._source), why=f"lacks the tensor {name}", hint=_HINT)
        path, opened = self._left[name]
        found = tuple(opened.get_slice(name).get_shape())
        if found != shape:
            raise ModelError.for_file(str(path), why=f"has {name} of shape {found}, not {shape}", hint=_HINT)
        try:
            tensor: Tensor = opened.get_tensor(name)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise ModelError.for_file(str(path), why=f"can't be read at {name} ({error})", hint=_HINT) from error
        del self._left[name]
        return tensor.to(dtype or self.dtype) if tensor.is_floating_point() else tensor

    def join(self, parts: Sequence[tuple[str, Shape]]) -> Tensor:
        """Read tensors and concatenate them along the first dimension."""
        n_rows, rest = sum(shape[0] for _, shape in parts), parts[0][1][1:]
        joined = torch.empty((n_rows, *rest), device=self.device, dtype=self.dtype)
        row = 0
        for name, shape in parts:
            joined[row : row + shape[0]] = self.take(name, shape)
            row += shape[0]
        return joined

    def has(self, name: str) -> bool:
        """Return whether the tensor exists and is not taken."""
        return name in self._left

    def skip(self, prefix: str) -> None:
        """Ignore the tensors under a prefix."""
        self._left = {name: at for name, at in self._left.items() if not name.startswith(prefix)}

    def check_all_taken(self, prefix: str = "") -> None:
        """Check that no tensor under a prefix is left, since a model with a missing part would speak wrongly.

        Raises:
            ModelError: A tensor is left.
        """
        unknown = sorted(name for name in self._left if name.startswith(prefix))
        if unknown:
            path, _ = self._left[unknown[0]]
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise ModelError.for_file(
                str(path),
                why=f"has the tensor {unknown[0]}{more}, which this version does not support",
                hint=f"{pip_install(options='--upgrade')}, or use a checkpoint that it supports.",
            )

    def close(self) -> None:
        """Close the files; tensors that were taken stay valid."""
        self._left.clear()
        for opened in self._open_files:
            opened.__exit__(None, None, None)
        self._open_files.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_kind(path: Path, *, folder: bool = False) -> None:
    if path.suffix in PICKLES:
        raise ModelError.for_file(
            str(path),
            why="is a pickle, which can run arbitrary code when it is loaded",
            hint="use a checkpoint in safetensors.",
        )
    if not folder and path.suffix != ".safetensors":
        raise ModelError.for_file(str(path), why="is not a .safetensors file", hint="use a checkpoint in safetensors.")


Affine = tuple[Tensor, Tensor]
"""A weight and its bias."""


def take_affine(
    weights: Weights, name: str, shape: Shape, *, n_outputs: int | None = None, dtype: torch.dtype | None = None
) -> Affine:
    """Read `name.weight` of a shape, and `name.bias`, whose length is `n_outputs` or the weight's first dimension."""
    weight = weights.take(f"{name}.weight", shape, dtype=dtype)
    return weight, weights.take(f"{name}.bias", (n_outputs or shape[0],), dtype=dtype)


def take_codebook(weights: Weights, name: str, sums: str, shape: Shape) -> Tensor:
    """Return the entries of a codebook, float32 of shape (entries, width).

    A checkpoint stores the sum of the vectors that fell to each entry in training, under the name `sums`, and their
    number.
    """
    usage = weights.take(f"{name}.cluster_usage", shape[:1], dtype=torch.float32)
    return weights.take(f"{name}.{sums}", shape, dtype=torch.float32) / usage.clamp(min=_USAGE_FLOOR)[:, None]
