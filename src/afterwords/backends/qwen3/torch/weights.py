"""Weights of a checkpoint, read by name from safetensors straight to the device that will use them.

A pickle can run any code when it is opened, so none is. Every part of the model takes its tensors here, each once,
with the shape it expects; what is missing, misshapen, left over or damaged is told by file and tensor.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from afterwords.errors import ModelError, pip_install

PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_AGAIN: Final = "delete the model's folder and download it again."

Shape = tuple[int, ...]


class Weights:
    """The tensors of one checkpoint that nobody has taken yet.

    with Weights.open(folder, device="cuda", dtype=torch.bfloat16) as weights:
        head = weights.take("talker.codec_head.weight", (3072, 2048))
        weights.check_all_taken("talker.")
    """

    def __init__(self, source: Path, files: Sequence[Path], *, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._source = source
        self._open_files: list[Any] = []
        self._left: dict[str, tuple[Path, Any]] = {}
        for path in files:
            opened = _opened(path, device)
            self._open_files.append(opened)
            self._left.update((name, (path, opened)) for name in opened.keys())  # noqa: SIM118 - no mapping

    @classmethod
    def open(cls, source: Path, *, device: torch.device | str, dtype: torch.dtype) -> Self:
        """Open a checkpoint without reading any tensor of it.

        Args:
            source: a .safetensors file, or a folder with model.safetensors or shards and their index.
            device: where the tensors go.
            dtype: what floating-point tensors are converted to.

        Raises:
            ModelError: no file is there, it is damaged, or it is a pickle.
        """
        files = _shards(source) if source.is_dir() else [source]
        for path in files:
            _check_kind(path)
        return cls(source, files, device=torch.device(device), dtype=dtype)

    def take(self, name: str, shape: Shape, *, dtype: torch.dtype | None = None) -> Tensor:
        """Read one tensor.

        Args:
            name: as it stands in the file.
            shape: the one it must have.
            dtype: other than that of all.

        Raises:
            ModelError: it is missing (or was taken before), has another shape, or can't be read.
        """
        path, opened = self._find(name)
        found = tuple(opened.get_slice(name).get_shape())
        if found != shape:
            raise ModelError.for_file(str(path), why=f"has {name} of shape {found}, not {shape}", hint=_AGAIN)
        try:
            tensor: Tensor = opened.get_tensor(name)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise ModelError.for_file(str(path), why=f"can't be read at {name} ({error})", hint=_AGAIN) from error
        del self._left[name]
        return tensor.to(dtype or self.dtype) if tensor.is_floating_point() else tensor

    def join(self, parts: Sequence[tuple[str, Shape]]) -> Tensor:
        """Read tensors that differ in their first dimension only, as one that holds them one below the other."""
        n_rows, rest = sum(shape[0] for _, shape in parts), parts[0][1][1:]
        joined = torch.empty((n_rows, *rest), device=self.device, dtype=self.dtype)
        row = 0
        for name, shape in parts:
            joined[row : row + shape[0]] = self.take(name, shape)
            row += shape[0]
        return joined

    def has(self, name: str) -> bool:
        """Whether the tensor is there and not taken."""
        return name in self._left

    def skip(self, prefix: str) -> None:
        """Leave out the tensors whose names begin so: the model does not need them."""
        self._left = {name: at for name, at in self._left.items() if not name.startswith(prefix)}

    def check_all_taken(self, prefix: str = "") -> None:
        """Refuse a file with tensors under a prefix that no part of the model knows.

        Raises:
            ModelError: there are some; a model with parts left out would speak, and wrongly.
        """
        unknown = sorted(name for name in self._left if name.startswith(prefix))
        if unknown:
            path, _ = self._left[unknown[0]]
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise ModelError.for_file(
                str(path),
                why=f"has the tensor {unknown[0]}{more}, which this version does not know",
                hint=f"{pip_install(options='--upgrade')}, or use a checkpoint that it knows.",
            )

    def close(self) -> None:
        """Let go of the files; what was taken stays."""
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

    def _find(self, name: str) -> tuple[Path, Any]:
        try:
            return self._left[name]
        except KeyError:
            raise ModelError.for_file(str(self._source), why=f"lacks the tensor {name}", hint=_AGAIN) from None


def _opened(path: Path, device: torch.device) -> Any:
    where = f"{device.type}:{device.index or 0}" if device.type == "cuda" else device.type
    try:
        return safe_open(path, framework="pt", device=where)
    except FileNotFoundError as error:
        raise ModelError.for_file(str(path), why="is missing", hint=_AGAIN) from error
    except (SafetensorError, OSError) as error:
        raise ModelError.for_file(str(path), why=f"is damaged or was cut short ({error})", hint=_AGAIN) from error


def _shards(folder: Path) -> list[Path]:
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    index = folder / _INDEX
    if index.is_file():
        return _indexed(index)
    for path in sorted(folder.iterdir()):
        _check_kind(path, folder=True)
    raise ModelError.for_file(str(folder / _SINGLE), why="is missing", hint=_AGAIN)


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted({str(name) for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError.for_file(str(index), why="is not an index of shards", hint=_AGAIN) from error
    for name in names:
        if Path(name).name != name:
            raise ModelError.for_file(str(index), why=f"names {name!a}, which is not beside it", hint=_AGAIN)
    return [index.with_name(name) for name in names]


def _check_kind(path: Path, *, folder: bool = False) -> None:
    if path.suffix in PICKLES:
        raise ModelError.for_file(
            str(path),
            why="is a pickle, which can run any code when it is opened",
            hint="use a checkpoint in safetensors.",
        )
    if not folder and path.suffix != ".safetensors":
        raise ModelError.for_file(str(path), why="is not a .safetensors file", hint="use a checkpoint in safetensors.")
