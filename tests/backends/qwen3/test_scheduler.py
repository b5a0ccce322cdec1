"""The loop: who joins and leaves, what ends whom, and that nobody waits for what never comes."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from afterwords.audio.wav import Samples
from afterwords.backends.qwen3.config import Sampling
from afterwords.backends.qwen3.request import LOOP_FRAMES, Finish, LoopClosedError, NotFiniteError, Turn, goes_round
from afterwords.backends.qwen3.torch.batch import Rows
from afterwords.backends.qwen3.torch.model import Model
from afterwords.backends.qwen3.torch.scheduler import Loop, Speech, rows_that_fit

SEED = 3
DEADLINE_S = 10.0
DOCUMENTATION = Path(__file__).parents[3] / "docs" / "qwen3.md"


@pytest.fixture
def loop(model: Model) -> Iterator[Loop]:
    loop = Loop(model.talker, model.decoder, n_rows=2, n_positions=256)
    yield loop
    loop.close()


def a_turn(model: Model, text: str = "abc", *, seed: int = SEED, max_frames: int = 60) -> Speech:
    speaker = torch.from_numpy(np.random.default_rng(0).normal(0, 1, 32).astype(np.float32))
    prompt = model.prompts.of_speaker(text, speaker=speaker)
    return Turn(prompt, None, max_frames=max_frames, sampling=Sampling(seed=seed))


def handed_in(loop: Loop, turns: list[Speech]) -> list[Speech]:
    for turn in turns:
        loop.hand_in(turn)
    return turns


def heard(turn: Speech) -> Samples:
    """All of a turn; fails where its end does not come."""
    parts = [np.zeros(0, np.float32)]
    while (sound := turn.sound.get(timeout=DEADLINE_S)) is not None:
        parts.append(sound)
    return np.concatenate(parts)


def test_more_than_there_are_rows_wait_and_all_are_spoken(model: Model, loop: Loop) -> None:
    turns = [a_turn(model, seed=seed, max_frames=10 + seed) for seed in range(7)]
    for turn in turns:
        loop.hand_in(turn)
    for turn in turns:
        sound = heard(turn)
        assert turn.finish in (Finish.STOP, Finish.LENGTH)
        assert len(sound) == 1920 * turn.n_decoded


def test_a_turn_fills_its_row_to_the_last_position_and_no_further(model: Model, loop: Loop) -> None:
    endless = a_turn(model, max_frames=10_000)
    endless.sampling = Sampling(seed=SEED, min_frames=10_000)  # it may not end by itself
    loop.hand_in(endless)
    heard(endless)
    assert (endless.finish, endless.error) == (Finish.LENGTH, None)
    assert endless.n_columns + endless.n_decoded == 256


def test_a_turn_sounds_the_same_in_rows_of_any_size(model: Model, loop: Loop) -> None:
    other = Loop(model.talker, model.decoder, n_rows=3, n_positions=1024)
    turns = [a_turn(model, "a" * 100, max_frames=155) for _ in range(2)]
    for turn, where in zip(turns, (loop, other), strict=True):
        where.hand_in(turn)
    np.testing.assert_allclose(heard(turns[0]), heard(turns[1]), atol=1e-4)
    other.close()


def test_a_turn_of_no_frames_ends_at_once(model: Model, loop: Loop) -> None:
    turn = a_turn(model, max_frames=0)
    loop.hand_in(turn)
    assert (len(heard(turn)), turn.finish) == (0, Finish.LENGTH)


def test_a_turn_that_nobody_hears_any_more_frees_its_row(model: Model, loop: Loop) -> None:
    given_up = [a_turn(model, seed=seed, max_frames=200) for seed in range(2)]
    for turn in given_up:
        loop.hand_in(turn)
        assert next(turn.heard()) is not None  # the iterator is gone at once, and with it who heard it
    after = a_turn(model, max_frames=5)
    loop.hand_in(after)
    assert len(heard(after)) > 0
    for turn in given_up:
        heard(turn)


def test_who_leaves_in_the_middle_of_a_burst_is_spoken_no_further_frame(
    model: Model, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = a_turn(model, max_frames=200)
    turn.sampling = replace(turn.sampling, min_frames=200)
    frames, n_spoken = loop._frames, 0

    def frame(rows: Rows, *, with_top_p: bool) -> None:
        nonlocal n_spoken
        frames(rows, with_top_p=with_top_p)
        n_spoken += 1
        if n_spoken == 20:
            turn.give_up()

    monkeypatch.setattr(loop, "_frames", frame)  # frames can't be counted from outside
    loop.hand_in(turn)
    heard(turn)
    assert (n_spoken, turn.finish) == (20, Finish.CANCELLED)


def test_a_prompt_that_no_row_holds_ends_its_turn_alone(model: Model, loop: Loop) -> None:
    long, short = a_turn(model, "a" * 400), a_turn(model, max_frames=5)
    loop.hand_in(long)
    loop.hand_in(short)
    assert len(heard(long)) == 0
    assert isinstance(long.error, ValueError)
    assert len(heard(short)) > 0


def test_memory_that_runs_out_while_one_joins_ends_it_alone(
    model: Model, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = model.talker.join
    unlucky, lucky = a_turn(model, seed=1), a_turn(model, max_frames=5)

    def short_of_memory(rows: object, utterances: list[object]) -> None:  # no device here runs out when it is told to
        join(rows, utterances)  # type: ignore[arg-type]
        if utterances[0].sampling.seed == 1:  # type: ignore[attr-defined]
            raise MemoryError

    monkeypatch.setattr(model.talker, "join", short_of_memory)
    for turn in (unlucky, lucky):
        loop.hand_in(turn)
    assert len(heard(unlucky)) == 0
    assert isinstance(unlucky.error, MemoryError)
    sound = heard(lucky)
    assert len(sound) > 0
    monkeypatch.undo()
    again = a_turn(model, max_frames=5)
    loop.hand_in(again)
    np.testing.assert_array_equal(heard(again), sound)


def test_a_frame_that_fails_ends_those_who_speak_and_not_those_who_come(
    model: Model, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:  # stands for a device that fails now and then
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(model.talker, "frame", broken)
    turn = a_turn(model)
    loop.hand_in(turn)
    assert len(heard(turn)) == 0
    assert isinstance(turn.error, RuntimeError)
    monkeypatch.undo()
    after = a_turn(model, max_frames=5)
    loop.hand_in(after)
    assert len(heard(after)) > 0


@pytest.mark.parametrize("where", ["frame", "codec", "reader"])
def test_what_fails_for_one_utterance_ends_it_alone(
    model: Model, loop: Loop, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def long(seed: int) -> Speech:
        turn = a_turn(model, seed=seed, max_frames=30)
        turn.sampling, turn.is_awaited = Sampling(seed=seed, min_frames=20), True
        return turn

    expected = [heard(turn) for turn in handed_in(loop, [long(3), long(4)])]
    bad, good = long(1), long(3)
    frame, step = model.talker.frame, model.decoder.step

    def failing_frame(rows: Rows, *, with_top_p: bool) -> None:  # half-way, after it has drawn and marked a code
        if ((rows.seeds == 1) & ~rows.done & (rows.frames > 4)).any():
            rows.seen.fill_(True)
            raise IndexError("index out of range in self")
        frame(rows, with_top_p=with_top_p)

    def failing_step(codes: torch.Tensor, state: Any, n_frames: torch.Tensor | None = None) -> torch.Tensor:
        sound = step(codes, state, n_frames)  # the state has gone on for all when one fails
        own = loop._state.pasts[0]
        rows = [row for row, turn in enumerate(loop._active) if turn is bad and turn.n_decoded > 4]
        if any(own[row].data_ptr() in {past.data_ptr() for past in state.pasts[0]} for row in rows):
            raise IndexError("index out of range in self")
        return sound

    class Deaf:  # a reader that fails when the sound reaches it
        def put(self, sound: Samples | None) -> None:
            if sound is not None and bad.n_decoded > 4:
                raise BufferError
            queue.put(sound)

    queue = bad.sound
    if where == "frame":
        monkeypatch.setattr(model.talker, "frame", failing_frame)
    elif where == "codec":
        monkeypatch.setattr(model.decoder, "step", failing_step)
    else:
        bad.sound = Deaf()  # type: ignore[assignment]
    handed_in(loop, [bad, good])
    sound = heard(good)
    while queue.get(timeout=DEADLINE_S) is not None:
        pass
    assert (bad.finish, type(bad.error)) == (Finish.CANCELLED, BufferError if where == "reader" else IndexError)
    assert good.error is None
    np.testing.assert_allclose(sound, expected[0], atol=1e-4)
    monkeypatch.undo()
    (after,) = handed_in(loop, [long(4)])
    np.testing.assert_allclose(heard(after), expected[1], atol=1e-4)


@pytest.mark.parametrize("buffer", ["cache", "predictor_cache", "codec"])
def test_numbers_that_are_none_end_their_turn_alone_and_leave_nothing_in_its_row(
    model: Model, loop: Loop, buffer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turns(*seeds: int) -> list[Speech]:
        return [a_turn(model, seed=seed, max_frames=30) for seed in seeds]

    expected = [heard(turn) for turn in handed_in(loop, turns(3, 4))]
    frame, is_done = model.talker.frame, threading.Event()

    def overflowing(rows: Rows, *, with_top_p: bool) -> None:  # as a GPU may that is not well
        frame(rows, with_top_p=with_top_p)
        if is_done.is_set() or not (rows.seeds == 1).any() or rows.frames.max() < 4:
            return
        row = int((rows.seeds == 1).int().argmax())
        buffers = loop._state.pasts if buffer == "codec" else [getattr(rows, buffer)]
        for one in buffers:
            (one[:, row] if "cache" in buffer else one[row]).fill_(torch.nan)
        is_done.set()

    monkeypatch.setattr(model.talker, "frame", overflowing)
    broken, other = handed_in(loop, turns(1, 3))
    assert np.isfinite(heard(broken)).all()
    assert isinstance(broken.error, NotFiniteError)
    np.testing.assert_allclose(heard(other), expected[0], atol=1e-4)
    for turn, sound in zip(handed_in(loop, turns(3, 4)), expected, strict=True):
        np.testing.assert_allclose(heard(turn), sound, atol=1e-4)
        assert turn.error is None


def test_what_was_drawn_from_no_numbers_is_not_heard(model: Model, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    step, n_steps = model.talker._stack.step, itertools.count()

    def overflowing(*args: Any) -> torch.Tensor:  # for one frame, and what it keeps is sound
        made = step(*args)
        return made.fill_(torch.nan) if next(n_steps) == 4 else made

    monkeypatch.setattr(model.talker._stack, "step", overflowing)
    (broken,) = handed_in(loop, [a_turn(model, max_frames=30)])
    assert len(heard(broken)) <= 4 * 1920
    assert isinstance(broken.error, NotFiniteError)
    (after,) = handed_in(loop, [a_turn(model, max_frames=30)])
    heard(after)
    assert after.error is None


def test_steps_limit_the_share_only_while_somebody_speaks_who_asks_for_it(
    model: Model, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[bool] = []
    frame = model.talker.frame

    def noted(rows: Rows, *, with_top_p: bool) -> None:  # what steps are made of can't be heard
        known.append(with_top_p)
        frame(rows, with_top_p=with_top_p)

    monkeypatch.setattr(model.talker, "frame", noted)
    for limited in (Sampling(seed=SEED, predictor_top_p=0.9), Sampling(seed=SEED)):
        turn = a_turn(model, max_frames=5)
        turn.sampling = limited
        loop.hand_in(turn)
        heard(turn)
        assert set(known) == {limited.limits_share}
        known.clear()


def test_sound_that_nobody_fetches_is_kept_alone(model: Model, loop: Loop) -> None:
    turns = [a_turn(model, seed=seed, max_frames=8) for seed in range(2)]
    for turn in turns:
        loop.hand_in(turn)
    for turn in turns:
        while (sound := turn.sound.get(timeout=DEADLINE_S)) is not None:
            assert sound.base is None or sound.base.nbytes == sound.nbytes  # not a window on those of all rows


def test_who_hears_the_first_sound_knows_whether_it_was_the_last(model: Model, loop: Loop) -> None:
    turn = a_turn(model, max_frames=1)
    finishes: list[Finish | None] = []
    put = turn.sound.put

    class Watched:  # a queue that looks when it is put to: no reader is as quick
        def put(self, sound: Samples | None) -> None:
            finishes.append(turn.finish)
            put(sound)

    queue, turn.sound = turn.sound, Watched()  # type: ignore[assignment]
    loop.hand_in(turn)
    assert queue.get(timeout=DEADLINE_S) is not None
    assert finishes[0] is Finish.LENGTH


def test_what_is_spoken_ahead_leaves_room_and_waits_for_those_who_are_heard(model: Model) -> None:
    loop = Loop(model.talker, model.decoder, n_rows=4, n_positions=256)
    order: list[int] = []
    join = model.talker.join

    def noted(rows: object, utterances: list[object]) -> None:
        order.append(utterances[0].sampling.seed)  # type: ignore[attr-defined]
        join(rows, utterances)  # type: ignore[arg-type]

    model.talker.join = noted  # type: ignore[assignment, method-assign]  # who joins when can't be seen from outside
    try:
        ahead = [a_turn(model, seed=seed, max_frames=100) for seed in range(10, 16)]
        for turn in ahead:
            loop.hand_in(turn)
        assert next(ahead[0].heard()) is not None
        quick = a_turn(model, seed=1, max_frames=2)
        loop.hand_in(quick)
        assert next(quick.heard()) is not None
        assert order.index(1) <= 3
    finally:
        del model.talker.join
        loop.close()


def test_closing_ends_those_who_speak_and_those_who_wait(model: Model) -> None:
    loop = Loop(model.talker, model.decoder, n_rows=1, n_positions=256)
    turns = [a_turn(model, max_frames=200) for _ in range(2)]
    for turn in turns:
        loop.hand_in(turn)
    loop.close()
    for turn in turns:
        heard(turn)
        assert turn.finish is Finish.CANCELLED
    with pytest.raises(LoopClosedError):
        loop.hand_in(turns[0])


def test_closing_while_one_joins_breaks_it_off(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(model.talker, model.decoder, n_rows=1, n_positions=256)
    join, is_joining, may_join = model.talker.join, threading.Event(), threading.Event()

    def slow(rows: object, utterances: list[object]) -> None:  # between waiting and speaking, for as long as it takes
        is_joining.set()
        may_join.wait(DEADLINE_S)
        join(rows, utterances)  # type: ignore[arg-type]

    monkeypatch.setattr(model.talker, "join", slow)
    turn = a_turn(model, max_frames=200)
    loop.hand_in(turn)
    is_joining.wait(DEADLINE_S)
    closing = threading.Thread(target=loop.close)
    closing.start()
    while not loop._is_closing:
        pass
    may_join.set()
    closing.join(DEADLINE_S)
    heard(turn)
    assert turn.finish is Finish.CANCELLED
    assert turn.n_decoded <= 1


def test_a_closed_loop_gives_back_its_memory_and_its_thread(model: Model) -> None:
    loop = Loop(model.talker, model.decoder, n_rows=1, n_positions=256)
    thread, buffers = loop._thread, weakref.ref(loop._rows.cache)
    loop.close()
    del loop
    gc.collect()
    assert not thread.is_alive()
    assert buffers() is None


@pytest.mark.parametrize(
    ("codes", "is_round"),
    [
        ([7] * LOOP_FRAMES, True),
        ([1, 2, 3] * LOOP_FRAMES, True),
        ([1, 2, 3] * 3, False),
        (list(range(LOOP_FRAMES)), False),
        ([*[7] * (LOOP_FRAMES - 1), 8], False),
    ],
)
def test_codes_that_go_round_are_told_from_speech(codes: list[int], is_round: bool) -> None:
    assert goes_round(deque(codes, maxlen=LOOP_FRAMES)) is is_round


@pytest.mark.parametrize(("model_gb", "n_rows"), [(2.1, [4, 16, 64, 64]), (4.1, [4, 16, 32, 64])], ids=["0.6b", "1.7b"])
def test_gpus_speak_as_many_at_once_as_the_documentation_says(model_gb: float, n_rows: list[int]) -> None:
    row_bytes, context_gb = 235 * 2**20, 0.7  # of CUDA, roughly
    free = [int(1e9 * (gpu_gb - context_gb - model_gb)) for gpu_gb in (8, 24, 48, 80)]
    assert [rows_that_fit(free_bytes, row_bytes=row_bytes, most=64) for free_bytes in free] == n_rows
    assert f"| {', '.join(map(str, n_rows))} |" in DOCUMENTATION.read_text("utf-8")


@pytest.mark.parametrize("free_gib", [10, 20, 40, 70])
def test_both_sizes_on_one_gpu_leave_room_to_record_either(free_gib: int) -> None:
    row_bytes, smaller_model_bytes = 235 * 2**20, int(2.5 * 2**30)
    left, taken = free_gib * 2**30, []
    for loaded in (0, smaller_model_bytes):  # the larger one is there, the smaller one comes
        left -= loaded
        taken.append(rows_that_fit(left, row_bytes=row_bytes, most=64) * row_bytes)
        left -= taken[-1]
    assert left >= max(taken)


@pytest.mark.parametrize(("free_gib", "n_rows"), [(70, 64), (40, 32), (12, 16), (0.1, 1)])
def test_a_smaller_gpu_speaks_fewer_at_once(free_gib: float, n_rows: int) -> None:
    row_bytes = 235 * 2**20  # the larger model at 2,048 positions
    assert rows_that_fit(int(free_gib * 2**30), row_bytes=row_bytes, most=64) == n_rows
