"""Each kernel against the function of plain torch whose name it bears. `test_kernels` runs this in other processes.

Triton decides when it is imported whether it compiles or interprets, so this needs a process of its own, apart from
other tests. On a machine with a GPU the same checks run on it, and a captured frame is compared besides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from afterwords.backends.qwen3.config import WIDEST_TOP_K, read_config
from afterwords.backends.qwen3.request import DecodeRequest
from afterwords.backends.qwen3.torch import kernels, ops
from afterwords.backends.qwen3.torch.cuda_graphs import CodecRunner, GraphRunner, Graphs
from afterwords.backends.qwen3.torch.model import TorchModel
from afterwords.backends.qwen3.torch.ops import QuantizedMatrix, quantize_matrix
from afterwords.backends.qwen3.torch.prompt import Prompt
from afterwords.backends.qwen3.torch.scheduler import Request, TorchScheduler
from afterwords.backends.qwen3.torch.talker import PrefillRow, Talker
from afterwords.backends.qwen3.torch.weights import Weights
from tests.backends.qwen3.torch.speaking import GREEDY, LANGUAGE, load, seeded, spoken

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HEADS = [(4, 2, 16), (2, 1, 8), (6, 2, 10), (3, 3, 128)]
N_INTERPRETED = 3
# Triton's interpreter holds bfloat16 as whole numbers, and multiplies matrices of it as such.
WHOLE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def check(ours: Tensor, plain: Tensor) -> None:
    assert ours.shape == plain.shape
    assert ours.dtype == plain.dtype
    few = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(plain.dtype, 1e-5)
    torch.testing.assert_close(ours, plain, rtol=few, atol=few)


@dtypes
@pytest.mark.parametrize(("n", "width"), [(1, 32), (3, 30), (5, 129), (2, 2048)])
def test_rms_norm(n: int, width: int, dtype: torch.dtype) -> None:
    x, weight = random(n, 2 * width, dtype=dtype)[:, :width], random(width, dtype=dtype)
    check(kernels.rms_norm(x, weight, 1e-6), ops.rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("dtype", [torch.float32, WHOLE], ids=str)
@pytest.mark.parametrize(("n", "n_in", "n_out"), [(1, 64, 64), (3, 50, 37), (17, 130, 32), (64, 16, 96), (65, 16, 8)])
@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_linear_with_quantized_weights(precision: str, n: int, n_in: int, n_out: int, dtype: torch.dtype) -> None:
    weight = quantize_matrix(random(n_out, n_in), precision)
    x, output = random(n, 2 * n_in, dtype=dtype)[:, :n_in], random(n, n_out, dtype=dtype)
    check(kernels.linear(x, weight) / n_in, ops.linear(x, weight) / n_in)
    added = [output.clone(), output.clone()]
    for module, stream in zip((kernels, ops), added, strict=True):
        module.add_linear_(stream, x, weight)
    check(added[0] / n_in, added[1] / n_in)


@pytest.mark.parametrize("dtype", [torch.float32, WHOLE], ids=str)
@pytest.mark.parametrize(("n", "n_in", "n_out"), [(1, 64, 64), (3, 50, 37), (4, 1030, 3), (2, 2048, 20), (5, 16, 8)])
@pytest.mark.parametrize("precision", [None, "fp8", "int8"])
def test_layers_after_norm(precision: str | None, n: int, n_in: int, n_out: int, dtype: torch.dtype) -> None:
    x, norm = random(n, 2 * n_in, dtype=dtype)[:, :n_in], random(n_in, dtype=dtype)
    weight, gate_up = (random(size, n_in, dtype=dtype) / n_in**0.5 for size in (n_out, 2 * n_out))
    matrices = [quantize_matrix(each, precision) if precision else each for each in (weight, gate_up)]
    check(kernels.norm_linear(x, norm, matrices[0], 1e-6), ops.norm_linear(x, norm, matrices[0], 1e-6))
    check(kernels.norm_swiglu(x, norm, matrices[1], 1e-6), ops.norm_swiglu(x, norm, matrices[1], 1e-6))
    check(kernels.linear(x, matrices[0]), ops.linear(x, matrices[0]))
    streams = [random(n, n_out, dtype=dtype)] * 2
    for module, stream in zip((kernels, ops), (copies := [each.clone() for each in streams]), strict=True):
        module.add_linear_(stream, x, matrices[0])
    check(*copies)


def test_linear_decodes_every_eight_bit_value() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    values = values[values.float().isfinite()].to(DEVICE)
    weight = QuantizedMatrix(values[:, None], torch.ones(len(values), device=DEVICE))
    for n in (1, 5):  # a few rows have a kernel of their own
        assert torch.equal(kernels.linear(torch.ones(n, 1, device=DEVICE), weight)[-1], values.float())


@dtypes
@pytest.mark.parametrize(("n", "width"), [(1, 64), (3, 33), (2, 3072)])
def test_swiglu(n: int, width: int, dtype: torch.dtype) -> None:
    x = random(n, 2 * width, dtype=dtype)
    check(kernels.swiglu(x), ops.swiglu(x))


@dtypes
@pytest.mark.parametrize(("n_heads", "n_kv", "head_dim"), HEADS)
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5)], ids=str)
@pytest.mark.parametrize("is_shared", [False, True])
def test_rotate_and_cache(
    shape: tuple[int, ...], n_heads: int, n_kv: int, head_dim: int, dtype: torch.dtype, is_shared: bool
) -> None:
    """Check a step and a prefill, with one position per row or for all rows."""
    qkv = random(*shape, n_heads + 2 * n_kv, head_dim, dtype=dtype)
    along = (1, shape[1]) if len(shape) == 2 else (1,) if is_shared else shape
    rotation = random(2, 3, *along, n_heads + n_kv, head_dim)[:, 1]  # of one of some layers
    rows = torch.tensor([2, 0, 3], device=DEVICE)[: shape[0]]
    positions = torch.tensor([4, 1, 6, 0, 7], device=DEVICE)[: along[-1]]
    if len(shape) == 2:
        rows = rows[:, None]
    caches = [torch.zeros(4, 12, 2 * n_kv, head_dim, dtype=dtype, device=DEVICE)[:, :9] for _ in range(2)]
    copies = [qkv.clone(), qkv.clone()]
    queries = [
        module.rotate_and_cache_(copy, rotation, cache, rows, positions, 1e-6)
        for module, copy, cache in zip((kernels, ops), copies, caches, strict=True)
    ]
    for ours, plain in (queries, copies, caches):
        check(ours, plain)


@dtypes
@pytest.mark.parametrize(("n_heads", "n_kv", "head_dim"), HEADS)
@pytest.mark.parametrize("positions", [[0], [63], [64], [5, 130, 0, 64]], ids=str)
def test_rotate_and_attend(positions: list[int], n_heads: int, n_kv: int, head_dim: int, dtype: torch.dtype) -> None:
    n, seen = len(positions), torch.tensor(positions, device=DEVICE)
    qkv = random(n, n_heads + 2 * n_kv, head_dim, dtype=dtype)
    rotation = random(2, 3, n, n_heads + n_kv, head_dim)[:, 1]  # of one of some layers
    cache = random(n + 1, 200, 2 * n_kv, head_dim, dtype=dtype)[:n, :136]
    ours, plain = check_attention(qkv, rotation, cache, seen)
    check(ours, plain)


def test_rotate_and_attend_at_one_position_for_all_rows() -> None:
    rotation, seen = random(2, 1, 3, 16), torch.tensor([7], device=DEVICE)
    ours, plain = check_attention(random(3, 4, 16), rotation, random(3, 16, 2, 16), seen)
    check(ours, plain)


def check_attention(qkv: Tensor, rotation: Tensor, cache: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Compare the caches after an attention, and return its outputs."""
    hidden = torch.arange(cache.shape[1], device=DEVICE) > seen[:, None]
    mask = torch.zeros_like(hidden, dtype=qkv.dtype).masked_fill_(hidden, -torch.inf)[:, None, None]
    rows, copy = torch.arange(len(qkv), device=DEVICE), cache.clone()
    plain = ops.rotate_and_attend(qkv.clone(), rotation, copy, rows, seen, mask, 1e-6)
    cache[hidden.expand(len(qkv), -1)] = torch.nan  # of what lies behind its position, no row reads anything
    ours = kernels.rotate_and_attend(qkv.clone(), rotation, cache, rows, seen, mask, 1e-6)
    written = ~hidden.expand(len(qkv), -1)
    check(cache[written], copy[written])
    return ours, plain


@dtypes
@pytest.mark.parametrize("shape", [(1, 3, 40), (2, 5, 1920)], ids=str)
def test_snake(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = random(*shape[:2], shape[2] + 9, dtype=dtype)[..., 4:-5]
    numbers = [random(shape[1], 1, dtype=dtype) for _ in range(3)]
    exact = ops.snake(x.float(), *(number.float() for number in numbers))  # plain torch rounds the angle
    check(kernels.snake(x, *numbers), exact.to(dtype))


@dtypes
@pytest.mark.parametrize("n_codes", [64, 1088, 100])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("top_p", [None, math.inf, 0.6, 1e-6])
def test_draw(n_codes: int, temperature: float, top_p: float | None, dtype: torch.dtype) -> None:
    """Use another top_k in each row, and banned codes; logits are distinct, since ties are resolved at random."""
    n = 6
    logits = torch.linspace(-3, 4, n_codes)[torch.stack([torch.randperm(n_codes) for _ in range(n)])].to(DEVICE, dtype)
    logits[:, 3:9] = -torch.inf
    beyond = torch.arange(WIDEST_TOP_K, device=DEVICE) >= torch.tensor(
        [[1], [2], [30], [50], [64], [128]], device=DEVICE
    )
    noise = temperature * -(-torch.rand(n, n_codes + 8, device=DEVICE).log()).log()
    heat = torch.full((n, 3, 1), temperature, device=DEVICE)[:, 1]
    shares = None if top_p is None else (torch.full_like(heat, top_p), heat)
    ours, plain = (module.draw(logits, beyond, noise, shares) for module in (kernels, ops))
    assert ours.dtype == plain.dtype
    drawn = [logits.float().gather(1, code[:, None]) + noise.gather(1, code[:, None]) for code in (ours, plain)]
    if dtype == torch.float32:
        assert ours.tolist() == plain.tolist()
    elif temperature == 0:
        assert torch.equal(*drawn)


@pytest.mark.parametrize("module", [ops, kernels], ids=["torch", "kernels"])
@pytest.mark.parametrize("top_p", [None, 0.6])
def test_draw_from_nan_gives_a_code(module: ops.Ops, top_p: float | None) -> None:
    logits, heat = random(2, 100), torch.ones(2, 1, device=DEVICE)
    logits[0], logits[1, 5:] = torch.nan, torch.nan
    shares = None if top_p is None else (torch.full_like(heat, top_p), heat)
    codes = module.draw(logits, torch.zeros(2, WIDEST_TOP_K, dtype=torch.bool, device=DEVICE), random(2, 100), shares)
    assert all(0 <= code < 100 for code in codes.tolist())


@pytest.mark.skipif(
    DEVICE.type == "cuda", reason="prompts of the goldens are written on the CPU; see below for the GPU"
)
def test_greedy_codes_equal_those_of_the_reference_package(checkpoint: Path) -> None:
    """Decode few frames of one row, since the interpreter takes seconds for each."""
    row = LANGUAGE["projected"]["rows of different length"][0]
    language = replace(load(checkpoint), talker=talker(checkpoint, kernels, DEVICE))
    (codes,) = language.speak([language.prompt(row)], [GREEDY], n_frames=N_INTERPRETED)
    assert codes == row["codes"][:N_INTERPRETED]


def talker(checkpoint: Path, chosen: ops.Ops, device: torch.device, dtype: torch.dtype = torch.float32) -> Talker:
    with Weights.open(checkpoint, device=device, dtype=dtype) as weights:
        return Talker(weights, read_config(checkpoint), max_positions=256, ops=chosen)


def speak(chosen: Talker, *, captured: bool, n_rows: int = 2, with_top_p: bool = False) -> list[list[list[int]]]:
    """Decode two rows in a view of larger buffers."""
    rows = chosen.new_rows(8, 256)
    torch.manual_seed(0)
    columns = torch.randn(9, chosen.config.talker.stack.hidden).to(chosen.device)
    prompt = Prompt(columns, torch.tensor([1, 2]))
    chosen.prefill(rows, [PrefillRow(row, prompt, 25, sampling) for row, sampling in enumerate((GREEDY, seeded(1)))])
    view = rows.view(n_rows, 64)
    frame: Callable[..., None] = GraphRunner(chosen) if captured else chosen.decode_frame
    with torch.inference_mode():
        for _ in range(25):
            frame(view, with_top_p=with_top_p)
    return spoken(rows)


needs_gpu = pytest.mark.skipif(DEVICE.type == "cpu", reason="needs an NVIDIA GPU")


@needs_gpu
@pytest.mark.parametrize("module", [ops, kernels], ids=["torch", "kernels"])
@pytest.mark.parametrize("with_top_p", [False, True])
@pytest.mark.parametrize("n_rows", [2, 4])  # a few rows have kernels of their own
def test_captured_frames_equal_eager_ones(checkpoint: Path, module: ops.Ops, with_top_p: bool, n_rows: int) -> None:
    chosen = talker(checkpoint, module, DEVICE)
    captured, plain = (speak(chosen, captured=way, with_top_p=with_top_p, n_rows=n_rows) for way in (True, False))
    assert captured == plain


@needs_gpu
@pytest.mark.parametrize("n_rows", [2, 4])
def test_greedy_codes_on_the_gpu_equal_those_on_the_cpu(checkpoint: Path, n_rows: int) -> None:
    places = [(kernels, DEVICE), (ops, DEVICE), (ops, torch.device("cpu"))]
    ours, plain, cpu = (
        speak(talker(checkpoint, module, device), captured=False, n_rows=n_rows)[0] for module, device in places
    )
    assert ours == plain == cpu


@needs_gpu
def test_bfloat16_keeps_most_likely_codes(checkpoint: Path) -> None:
    codes = torch.tensor(speak(talker(checkpoint, ops, torch.device("cpu")), captured=False)[0])
    torch.manual_seed(0)
    prompt = Prompt(torch.randn(9, 32), torch.tensor([1, 2]))
    exact = talker(checkpoint, ops, torch.device("cpu")).most_likely_codes(prompt, codes)
    rounded = talker(checkpoint, kernels, DEVICE, torch.bfloat16)
    prompt = replace(prompt, columns=prompt.columns.to(DEVICE, torch.bfloat16))
    likely = rounded.most_likely_codes(prompt, codes.to(DEVICE)).cpu()
    assert (likely == exact).float().mean() > 0.9


@needs_gpu
def test_captured_audio_equals_eager_audio(checkpoint: Path) -> None:
    model = TorchModel(checkpoint, name="tiny", device=DEVICE, dtype=torch.float32)
    states = [model.decoder.new_state(4) for _ in range(2)]
    run = CodecRunner(model.decoder, states[0], Graphs(), n_frames=8)
    for n_rows, width in ((2, 1), (4, 8), (2, 1), (4, 8)):
        codes = torch.randint(64, (n_rows, width, 16), device=DEVICE)
        n_frames = torch.randint(width + 1, (n_rows,), device=DEVICE)
        sound = run(codes, n_frames).clone()
        check(sound, model.decoder.step(codes, states[1].view(0, n_rows), n_frames))


@needs_gpu
def test_scheduler_speaks_on_the_gpu_as_on_the_cpu(checkpoint: Path) -> None:
    sounds = []
    for device in (DEVICE, torch.device("cpu")):
        model = TorchModel(checkpoint, name="tiny", device=device, dtype=torch.float32)
        scheduler = TorchScheduler(model.talker, model.decoder, n_rows=4, n_positions=256)
        requests: list[Request] = []
        for text in ("In the sun.", "Hello.", "abc"):
            prompt = model.prompts.build(text, speaker=torch.ones(32, device=device))
            requests.append(DecodeRequest(prompt, None, max_frames=20, sampling=replace(GREEDY, min_frames=20)))
            requests[-1].is_streaming = True
            scheduler.submit(requests[-1])
        sounds.append([np.concatenate(list(request.stream())) for request in requests])
        scheduler.close()
    for ours, cpu in zip(*sounds, strict=True):
        np.testing.assert_allclose(ours, cpu, atol=2e-2)  # cuDNN convolves in tf32
