"""The Triton kernels: interpreted and compiled on any machine, and run on a GPU if there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install triton")

CHECKS: Final = Path(__file__).with_name("kernel_checks.py")
HEADS: Final = {"head_dim": 128, "block": 128}
DRAWN: Final = {"noise": "*fp32", "beyond": "*i1", "top_p": "*fp32", "temperature": "*fp32", "code": "*i64"}
RANKS: Final = {"n_ranks": 128, "rank_block": 128, "overlaps": False}
FRACTIONS: Final = {"scale": "fp32", "eps": "fp32"}


def flag_sets(values: str) -> list[dict[str, bool]]:
    """Return the ways in which a layer applies its weights, once with kernels that overlap."""
    kind = {"has_scales": values != "*bf16", "is_fp8": values == "*u8"}
    return [
        {**kind, "has_norm": True, "is_gated": True, "is_added": False, "overlaps": False},
        {**kind, "has_norm": False, "is_gated": False, "is_added": True, "overlaps": False},
    ]


# Name, types of pointers and fractions, and sizes, as the published 1.7B has them in bfloat16.
KERNELS: Final[list[tuple[str, dict[str, str], dict[str, Any]]]] = [
    (
        "_rms_norm",
        {"x": "*bf16", "weight": "*bf16", "out": "*bf16", "eps": "fp32"},
        {"width": 2048, "block": 2048, "overlaps": False},
    ),
    *(
        (
            "_linear",
            {"x": "*bf16", "values": values, "scales": "*fp32", "out": "*bf16"},
            {"n_in": 2048, "n_out": 6144, "is_fp8": is_fp8, "n_rows": n_rows, "block_out": 32, "block_in": 128},
        )
        for values, is_fp8 in (("*i8", False), ("*u8", True))
        for n_rows in (16, 64)
    ),
    ("_swiglu", {"gate_up": "*bf16", "out": "*bf16"}, {"width": 6144, "block": 1024}),
    (
        "_rotate_and_cache",
        {"qkv": "*bf16", "rotation": "*fp32", "cache": "*bf16", "rows": "*i64", "positions": "*i64", "eps": "fp32"},
        {"n_queries": 16, "n_rotated": 24, **HEADS},
    ),
    *(
        (
            "_matvec",
            {"x": "*bf16", "norm": "*bf16", "values": values, "scales": "*fp32", "out": "*bf16", "eps": "fp32"},
            {"n_rows": n_rows, "n_in": n_in, "n_out": 6144, "block_out": 2, "block_in": block_in, **flags},
        )
        for values, flags in ((values, flags) for values in ("*bf16", "*i8", "*u8") for flags in flag_sets(values))
        for n_rows, n_in, block_in in ((1, 2048, 2048), (2, 6144, 8192))
    ),
    (
        "_rotate_and_attend",
        {**dict.fromkeys(("qkv", "cache", "out"), "*bf16"), "rotation": "*fp32", "positions": "*i64", **FRACTIONS},
        {"n_queries": 16, "n_kv_heads": 8, "n_keys": 128, "overlaps": False, **HEADS},
    ),
    ("_snake", dict.fromkeys(("x", "slope", "weight", "bias", "out"), "*bf16"), {"block": 1024}),
    *(
        (
            "_draw",
            {"logits": logits, **DRAWN},
            {"n_codes": n, "with_top_p": with_top_p, "block": block, **RANKS},
        )
        for logits, n, block in (("*bf16", 2048, 2048), ("*fp32", 3072, 4096))
        for with_top_p in (False, True)
    ),
]


def run_checks(**env: str) -> None:
    """Run the kernel checks in a process."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS)]
    root, env = Path(__file__).parents[4], {**os.environ, "TRITON_DEFAULT_FP_FUSION": "1", **env}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=570, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kernels_agree_with_plain_torch_in_the_interpreter() -> None:
    run_checks(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_agree_with_plain_torch_on_the_gpu() -> None:
    run_checks(TRITON_INTERPRET="0")


@pytest.mark.parametrize("capability", [80, 90, 100], ids=["A100", "H100", "B200"])
@pytest.mark.parametrize(("name", "types", "sizes"), KERNELS)
def test_kernel_compiles_to_machine_code(
    name: str,
    types: dict[str, str],
    sizes: dict[str, Any],
    capability: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # without it, Triton 3.9 warns
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from afterwords.backends.qwen3.torch import kernels

    kernel: Any = getattr(kernels, name)
    signature = {
        argument: "constexpr" if argument in sizes else types.get(argument, "i32") for argument in kernel.arg_names
    }
    constants = {(kernel.arg_names.index(argument),): value for argument, value in sizes.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
