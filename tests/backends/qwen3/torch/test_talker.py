"""The talker: equal to the reference package in any batch, with a fixed sequence of operations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from afterwords.backends.qwen3.config import Sampling, read_config
from afterwords.backends.qwen3.torch import ops
from afterwords.backends.qwen3.torch.prompt import Prompt
from afterwords.backends.qwen3.torch.talker import PrefillRow, Talker
from afterwords.backends.qwen3.torch.weights import Shape, Weights
from scripts.make_qwen3_tiny import make_checkpoint
from tests.backends.qwen3.torch.speaking import GREEDY, LANGUAGE, N_POSITIONS, Language, load, seeded, spoken

CASES = list(LANGUAGE["projected"])
MIXED = LANGUAGE["projected"]["rows of different length"]
VIEWS = {
    "alias",
    "chunk",
    "expand",
    "flatten",
    "reshape",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "t",
    "transpose",
    "unsqueeze",
    "view",
}
HOST_READS = {"_local_scalar_dense", "nonzero", "item", "is_nonzero", "masked_select", "unique"}


@pytest.fixture(scope="module", params=["projected", "unprojected"])
def kind(request: pytest.FixtureRequest) -> str:
    """Use a code predictor that is narrower than the talker, as in the 1.7B, or as wide, as in the 0.6B."""
    return str(request.param)


@pytest.fixture(scope="module")
def both(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Language:
    width = {"projected": 16, "unprojected": 32}[kind]
    return load(make_checkpoint(tmp_path_factory.mktemp(kind), predictor_hidden=width))


@pytest.fixture(scope="module")
def language(checkpoint: Path) -> Language:
    return load(checkpoint)


@pytest.mark.parametrize("case", CASES)
def test_greedy_codes_equal_those_of_the_reference_package(both: Language, kind: str, case: str) -> None:
    rows = LANGUAGE[kind][case]
    codes = both.speak([both.prompt(row) for row in rows], [GREEDY] * len(rows))
    assert codes == [row["codes"] for row in rows]


def test_sampled_row_is_the_same_in_any_batch(language: Language) -> None:
    prompts = [language.prompt(row) for row in MIXED]
    samplings = [seeded(seed) for seed in range(len(prompts))]
    alone = [language.speak([prompt], [sampling])[0] for prompt, sampling in zip(prompts, samplings, strict=True)]
    assert language.speak(prompts, samplings) == alone
    assert language.speak(prompts[::-1], samplings[::-1]) == alone[::-1]


def test_another_seed_gives_other_codes(language: Language) -> None:
    prompt = language.prompt(MIXED[0])
    first, second, again = language.speak([prompt] * 3, [seeded(1), seeded(2), seeded(1)])
    assert first == again != second


def test_later_row_is_independent_of_the_others(language: Language) -> None:
    prompts = [language.prompt(row) for row in MIXED[:2]]
    alone = [language.speak([prompt], [seeded(seed)])[0] for seed, prompt in enumerate(prompts)]
    rows = language.talker.new_rows(3, N_POSITIONS)
    language.talker.prefill(rows, [PrefillRow(2, prompts[0], 25, seeded(0))])
    for _ in range(7):
        language.talker.decode_frame(rows)
    language.talker.prefill(rows, [PrefillRow(0, prompts[1], 25, seeded(1))])
    for _ in range(25):
        language.talker.decode_frame(rows)
    assert spoken(rows) == [alone[1], [], alone[0]]


def test_reused_row_keeps_nothing(language: Language) -> None:
    first, second = (language.prompt(row) for row in MIXED[1:3])
    rows = language.talker.new_rows(1, N_POSITIONS)
    for prompt in (first, second):
        language.talker.prefill(rows, [PrefillRow(0, prompt, 10, seeded(5))])
        for _ in range(10):
            language.talker.decode_frame(rows)
    assert spoken(rows) == language.speak([second], [seeded(5)], n_frames=10)


def test_moved_row_continues(language: Language) -> None:
    prompt = language.prompt(MIXED[0])
    rows = language.talker.new_rows(4, N_POSITIONS)
    language.talker.prefill(rows, [PrefillRow(3, prompt, 12, seeded(3))])
    language.talker.decode_frame(rows)
    rows.move_row(3, 0)
    for _ in range(11):
        language.talker.decode_frame(rows)
    assert spoken(rows)[0] == language.speak([prompt], [seeded(3)], n_frames=12)[0]
    assert rows.read_progress()[3] == (1, True, False)


def test_view_decodes_in_the_same_buffers(language: Language) -> None:
    prompt = language.prompt(MIXED[0])
    rows = language.talker.new_rows(4, N_POSITIONS)
    language.talker.prefill(rows, [PrefillRow(0, prompt, 12, seeded(3)), PrefillRow(1, prompt, 1, seeded(4))])
    view = rows.view(2, 64)
    for _ in range(12):
        language.talker.decode_frame(view)
    assert spoken(rows)[0] == language.speak([prompt], [seeded(3)], n_frames=12)[0]


def test_freed_row_is_done(language: Language) -> None:
    rows = language.talker.new_rows(1, N_POSITIONS)
    language.talker.prefill(rows, [PrefillRow(0, language.prompt(MIXED[0]), 25, seeded(0))])
    language.talker.decode_frame(rows)
    rows.free_row(0)
    language.talker.decode_frame(rows)
    assert rows.read_progress() == [(1, True, False)]


def test_progress_separates_end_of_speech_from_limit(language: Language) -> None:
    by_itself, by_limit = MIXED[3], MIXED[0]
    rows = language.talker.new_rows(2, N_POSITIONS)
    prompts = [language.prompt(row) for row in (by_itself, by_limit)]
    language.talker.prefill(rows, [PrefillRow(row, prompt, 9, GREEDY) for row, prompt in enumerate(prompts)])
    for _ in range(30):
        language.talker.decode_frame(rows)
    assert rows.read_progress() == [(len(by_itself["codes"]), True, True), (9, True, False)]


def test_row_ends_where_its_cache_does(language: Language) -> None:
    prompt = language.prompt(MIXED[0])
    rows = language.talker.new_rows(1, len(prompt.columns) + 5)
    language.talker.prefill(rows, [PrefillRow(0, prompt, 25, GREEDY)])
    for _ in range(8):
        language.talker.decode_frame(rows)
    assert spoken(rows) == [MIXED[0]["codes"][:5]]


def test_utterance_has_min_frames(language: Language) -> None:
    (codes,) = language.speak([language.prompt(MIXED[3])], [Sampling(temperature=0, min_frames=20)])
    assert len(codes) >= 20 > len(MIXED[3]["codes"])


def test_step_with_top_p_keeps_rows_without_it(language: Language) -> None:
    rows = language.talker.new_rows(1, N_POSITIONS)
    language.talker.prefill(rows, [PrefillRow(0, language.prompt(MIXED[0]), 25, Sampling(temperature=1.0))])
    logits, dice = torch.tensor([[17.5, 0.0]]), torch.tensor([[-2.0, 16.6]])  # the first holds all, up to rounding
    for shares in (None, (rows.top_ps[:, 0], rows.temperatures[:, 0])):
        assert ops.draw(logits, rows.beyond[:, 0], dice, shares).tolist() == [1]


def test_control_ids_are_never_decoded(language: Language) -> None:
    prompts = [language.prompt(MIXED[0])] * 8
    hot = [Sampling(temperature=50, top_k=128, predictor_temperature=50, seed=seed) for seed in range(8)]
    codes = language.speak(prompts, hot)
    assert max(code for row in codes for frame in row for code in frame) < language.config.talker.predictor.vocab


def test_bfloat16_gives_codes_of_the_vocabulary(checkpoint: Path) -> None:
    language = load(checkpoint, dtype=torch.bfloat16)
    codes = language.speak([language.prompt(row) for row in MIXED], [seeded(0)] * len(MIXED), n_frames=6)
    assert all(0 <= code < language.config.talker.predictor.vocab for row in codes for frame in row for code in frame)


@pytest.mark.parametrize(("n_positions", "n_text"), [(20, 100), (N_POSITIONS, 3)])
def test_prompt_that_does_not_fit_its_row_is_refused(language: Language, n_positions: int, n_text: int) -> None:
    rows = language.talker.new_rows(1, n_positions, n_text=n_text)
    with pytest.raises(ValueError, match="is too long for rows"):
        language.talker.prefill(rows, [PrefillRow(0, language.prompt(MIXED[1]), 25, GREEDY)])


def test_rows_beyond_max_positions_are_refused(language: Language) -> None:
    with pytest.raises(ValueError, match="257 positions are more than the 256"):
        language.talker.new_rows(1, N_POSITIONS + 1)


# -- what a frame is made of -------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Records the name and shapes of every operation, in order."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[str, list[torch.Size]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [value.shape for value in args if isinstance(value, torch.Tensor)]
        self.seen.append((func.overloadpacket.__name__, shapes))
        return func(*args, **(kwargs or {}))


def frames_of(language: Language, *, n_frames: int, with_top_p: bool) -> Iterator[Operations]:
    """Return the operations of each frame of two rows, of which one ends early."""
    rows = language.talker.new_rows(3, 128)
    prompts = [language.prompt(row) for row in (MIXED[0], MIXED[3])]
    language.talker.prefill(rows, [PrefillRow(row, prompt, 25, GREEDY) for row, prompt in enumerate(prompts)])
    for _ in range(n_frames):
        with Operations() as operations:
            language.talker.decode_frame(rows, with_top_p=with_top_p)
        yield operations


@pytest.mark.parametrize("with_top_p", [False, True])
def test_every_frame_has_the_same_operations(language: Language, with_top_p: bool) -> None:
    first, *others = frames_of(language, n_frames=9, with_top_p=with_top_p)
    assert all(frame.seen == first.seen for frame in others)


def test_frame_reads_nothing_back_to_the_host(language: Language) -> None:
    (frame,) = frames_of(language, n_frames=1, with_top_p=True)
    assert not HOST_READS & {name for name, _ in frame.seen}


def test_operations_of_a_frame_are_limited(tmp_path: Path) -> None:
    """Compare with the reference package: 5,888 operations and 33 reads. Views are not counted."""
    deep = load(make_checkpoint(tmp_path, n_layers=28, n_predictor_layers=5))
    (frame,) = frames_of(deep, n_frames=1, with_top_p=False)
    assert sum(name not in VIEWS for name, _ in frame.seen) <= 1_700


class Fused:
    """Operations with a kernel, each counted as one."""

    def __init__(self) -> None:
        self.n = 0

    def __getattr__(self, name: str) -> Any:
        plain = getattr(ops, name)

        def fused(*args: Any) -> torch.Tensor:
            self.n += 1
            with _disable_current_modes():
                result: torch.Tensor = plain(*args)
                return result

        return fused


def test_frame_of_a_few_rows_has_700_operations(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, n_layers=28, n_predictor_layers=5)
    fused = Fused()
    with Weights.open(tmp_path, device="cpu", dtype=torch.float32) as weights:
        talker = Talker(weights, read_config(tmp_path), max_positions=128, ops=fused)
    rows = talker.new_rows(2, 128)
    with Operations() as operations:
        talker.decode_frame(rows)
    assert fused.n + sum(name not in VIEWS for name, _ in operations.seen) <= 700


class Elsewhere(Weights):
    """Weights on the meta device, on which an operation with a host tensor fails."""

    def __init__(self) -> None:
        self.device, self.dtype = torch.device("meta"), torch.bfloat16

    def take(self, name: str, shape: Shape, *, dtype: torch.dtype | None = None) -> torch.Tensor:  # noqa: ARG002 - by any name
        return torch.empty(shape, device=self.device, dtype=dtype or self.dtype)

    def check_all_taken(self, prefix: str = "") -> None:
        pass


def test_frame_uses_device_tensors_only(language: Language) -> None:
    config = language.config
    talker = Talker(Elsewhere(), config, max_positions=64)
    rows = talker.new_rows(2, 64)
    columns = torch.empty(9, config.talker.stack.hidden, device="meta", dtype=torch.bfloat16)
    talker.prefill(rows, [PrefillRow(1, Prompt(columns, torch.tensor([1, 2])), 25, GREEDY)])
    talker.decode_frame(rows)
    assert {getattr(rows, field.name).device.type for field in fields(rows)} == {"meta"}
