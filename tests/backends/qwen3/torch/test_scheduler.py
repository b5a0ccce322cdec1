"""The scheduler in torch: admission, cancellation, failures and closing."""

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
from afterwords.backends.qwen3.request import (
    REPEAT_FRAMES,
    DecodeRequest,
    FinishReason,
    NotFiniteError,
    SchedulerClosedError,
    is_looping,
)
from afterwords.backends.qwen3.torch.batch import BatchState
from afterwords.backends.qwen3.torch.model import TorchModel
from afterwords.backends.qwen3.torch.scheduler import Request, TorchScheduler, max_rows

SEED = 3
DEADLINE_S = 60.0
DOCUMENTATION = Path(__file__).parents[4] / "docs" / "qwen3.md"


@pytest.fixture
def scheduler(model: TorchModel) -> Iterator[TorchScheduler]:
    scheduler = TorchScheduler(model.talker, model.decoder, n_rows=2, n_positions=256)
    yield scheduler
    scheduler.close()


def a_request(model: TorchModel, text: str = "abc", *, seed: int = SEED, max_frames: int = 60) -> Request:
    speaker = torch.from_numpy(np.random.default_rng(0).normal(0, 1, 32).astype(np.float32))
    prompt = model.prompts.build(text, speaker=speaker)
    return DecodeRequest(prompt, None, max_frames=max_frames, sampling=Sampling(seed=seed))


def submit_all(scheduler: TorchScheduler, requests: list[Request]) -> list[Request]:
    for request in requests:
        scheduler.submit(request)
    return requests


def read_audio(request: Request) -> Samples:
    """Return the audio of a request; fail if it does not end."""
    parts = [np.zeros(0, np.float32)]
    while (sound := request.sound.get(timeout=DEADLINE_S)) is not None:
        parts.append(sound)
    return np.concatenate(parts)


def test_excess_requests_wait_and_are_decoded(model: TorchModel, scheduler: TorchScheduler) -> None:
    requests = [a_request(model, seed=seed, max_frames=10 + seed) for seed in range(7)]
    for request in requests:
        scheduler.submit(request)
    for request in requests:
        sound = read_audio(request)
        assert request.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
        assert len(sound) == 1920 * request.n_decoded


def test_request_ends_at_the_last_position(model: TorchModel, scheduler: TorchScheduler) -> None:
    endless = a_request(model, max_frames=10_000)
    endless.sampling = Sampling(seed=SEED, min_frames=10_000)  # it may not end by itself
    scheduler.submit(endless)
    read_audio(endless)
    assert (endless.finish_reason, endless.error) == (FinishReason.LENGTH, None)
    assert endless.n_columns + endless.n_decoded == 256


def test_audio_does_not_depend_on_the_row_size(model: TorchModel, scheduler: TorchScheduler) -> None:
    other = TorchScheduler(model.talker, model.decoder, n_rows=3, n_positions=1024)
    requests = [a_request(model, "a" * 100, max_frames=155) for _ in range(2)]
    for request, where in zip(requests, (scheduler, other), strict=True):
        where.submit(request)
    np.testing.assert_allclose(read_audio(requests[0]), read_audio(requests[1]), atol=1e-4)
    other.close()


def test_request_of_no_frames_ends_at_once(model: TorchModel, scheduler: TorchScheduler) -> None:
    request = a_request(model, max_frames=0)
    scheduler.submit(request)
    assert (len(read_audio(request)), request.finish_reason) == (0, FinishReason.LENGTH)


def test_closed_stream_frees_its_row(model: TorchModel, scheduler: TorchScheduler) -> None:
    given_up = [a_request(model, seed=seed, max_frames=200) for seed in range(2)]
    for request in given_up:
        scheduler.submit(request)
        assert next(request.stream()) is not None  # the iterator is closed at once
    after = a_request(model, max_frames=5)
    scheduler.submit(after)
    assert len(read_audio(after)) > 0
    for request in given_up:
        read_audio(request)


def test_cancelled_request_gets_no_further_frame(
    model: TorchModel, scheduler: TorchScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = a_request(model, max_frames=200)
    request.sampling = replace(request.sampling, min_frames=200)
    frames, n_spoken = scheduler._frames, 0

    def frame(rows: BatchState, *, with_top_p: bool) -> None:
        nonlocal n_spoken
        frames(rows, with_top_p=with_top_p)
        n_spoken += 1
        if n_spoken == 20:
            request.cancel()

    monkeypatch.setattr(scheduler, "_frames", frame)  # frames can't be counted from outside
    scheduler.submit(request)
    read_audio(request)
    assert (n_spoken, request.finish_reason) == (20, FinishReason.CANCELLED)


def test_too_long_prompt_ends_its_request_alone(model: TorchModel, scheduler: TorchScheduler) -> None:
    long, short = a_request(model, "a" * 400), a_request(model, max_frames=5)
    scheduler.submit(long)
    scheduler.submit(short)
    assert len(read_audio(long)) == 0
    assert isinstance(long.error, ValueError)
    assert len(read_audio(short)) > 0


def test_out_of_memory_in_prefill_ends_one_request(
    model: TorchModel, scheduler: TorchScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = model.talker.prefill
    unlucky, lucky = a_request(model, seed=1), a_request(model, max_frames=5)

    def short_of_memory(
        rows: object, utterances: list[object]
    ) -> None:  # a device that runs out of memory is not available
        join(rows, utterances)  # type: ignore[arg-type]
        if utterances[0].sampling.seed == 1:  # type: ignore[attr-defined]
            raise MemoryError

    monkeypatch.setattr(model.talker, "prefill", short_of_memory)
    for request in (unlucky, lucky):
        scheduler.submit(request)
    assert len(read_audio(unlucky)) == 0
    assert isinstance(unlucky.error, MemoryError)
    sound = read_audio(lucky)
    assert len(sound) > 0
    monkeypatch.undo()
    again = a_request(model, max_frames=5)
    scheduler.submit(again)
    np.testing.assert_array_equal(read_audio(again), sound)


def test_streams_that_wait_are_prefilled_together(model: TorchModel, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = TorchScheduler(model.talker, model.decoder, n_rows=4, n_positions=256)
    join, sizes = model.talker.prefill, []

    def noted(rows: object, utterances: list[object]) -> None:  # one of three fails, together and alone
        sizes.append(len(utterances))
        join(rows, utterances)  # type: ignore[arg-type]
        if any(each.sampling.seed == 1 for each in utterances):  # type: ignore[attr-defined]
            raise MemoryError

    requests = [a_request(model, "a" * (1 + seed), seed=seed, max_frames=5) for seed in range(3)]
    alone = [read_audio(request) for request in submit_all(scheduler, requests)]
    requests = [a_request(model, "a" * (1 + seed), seed=seed, max_frames=5) for seed in range(3)]
    monkeypatch.setattr(model.talker, "prefill", noted)
    with scheduler._awake:  # so that all of them wait
        for request in requests:
            request.is_streaming = True
            scheduler.submit(request)
    for request, sound in zip(requests, alone, strict=True):
        if request is requests[1]:
            assert len(read_audio(request)) == 0
            assert isinstance(request.error, MemoryError)
        else:
            np.testing.assert_allclose(read_audio(request), sound, atol=1e-4)
    scheduler.close()
    assert sizes == [3, 1, 1, 1]


def test_failed_frame_ends_active_requests_only(
    model: TorchModel, scheduler: TorchScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:  # stands for a device that fails now and then
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(model.talker, "decode_frame", broken)
    request = a_request(model)
    scheduler.submit(request)
    assert len(read_audio(request)) == 0
    assert isinstance(request.error, RuntimeError)
    monkeypatch.undo()
    after = a_request(model, max_frames=5)
    scheduler.submit(after)
    assert len(read_audio(after)) > 0


@pytest.mark.parametrize("where", ["frame", "codec", "reader"])
def test_failure_of_one_utterance_ends_it_alone(
    model: TorchModel, scheduler: TorchScheduler, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def long(seed: int) -> Request:
        request = a_request(model, seed=seed, max_frames=30)
        request.sampling, request.is_streaming = Sampling(seed=seed, min_frames=20), True
        return request

    expected = [read_audio(request) for request in submit_all(scheduler, [long(3), long(4)])]
    bad, good = long(1), long(3)
    frame, step = model.talker.decode_frame, model.decoder.step

    def failing_frame(rows: BatchState, *, with_top_p: bool) -> None:  # half-way, after it has drawn and marked a code
        if ((rows.seeds == 1) & ~rows.done & (rows.frames > 4)).any():
            rows.seen.fill_(True)
            raise IndexError("index out of range in self")
        frame(rows, with_top_p=with_top_p)

    def failing_step(codes: torch.Tensor, state: Any, n_frames: torch.Tensor | None = None) -> torch.Tensor:
        sound = step(codes, state, n_frames)  # the state has gone on for all when one fails
        own = scheduler._state.pasts[0]
        rows = [row for row, request in enumerate(scheduler._active) if request is bad and request.n_decoded > 4]
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
        monkeypatch.setattr(model.talker, "decode_frame", failing_frame)
    elif where == "codec":
        monkeypatch.setattr(model.decoder, "step", failing_step)
    else:
        bad.sound = Deaf()  # type: ignore[assignment]
    submit_all(scheduler, [bad, good])
    sound = read_audio(good)
    while queue.get(timeout=DEADLINE_S) is not None:
        pass
    assert (bad.finish_reason, type(bad.error)) == (
        FinishReason.CANCELLED,
        BufferError if where == "reader" else IndexError,
    )
    assert good.error is None
    np.testing.assert_allclose(sound, expected[0], atol=1e-4)
    monkeypatch.undo()
    (after,) = submit_all(scheduler, [long(4)])
    np.testing.assert_allclose(read_audio(after), expected[1], atol=1e-4)


@pytest.mark.parametrize("buffer", ["cache", "predictor_cache", "codec"])
def test_nan_ends_one_request_and_its_row_is_cleared(
    model: TorchModel, scheduler: TorchScheduler, buffer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def requests(*seeds: int) -> list[Request]:
        return [a_request(model, seed=seed, max_frames=30) for seed in seeds]

    expected = [read_audio(request) for request in submit_all(scheduler, requests(3, 4))]
    frame, is_done = model.talker.decode_frame, threading.Event()

    def overflowing(rows: BatchState, *, with_top_p: bool) -> None:  # as a GPU may that is not well
        frame(rows, with_top_p=with_top_p)
        if is_done.is_set() or not (rows.seeds == 1).any() or rows.frames.max() < 4:
            return
        row = int((rows.seeds == 1).int().argmax())
        buffers = scheduler._state.pasts if buffer == "codec" else [getattr(rows, buffer)]
        for one in buffers:
            (one[:, row] if "cache" in buffer else one[row]).fill_(torch.nan)
        is_done.set()

    monkeypatch.setattr(model.talker, "decode_frame", overflowing)
    broken, other = submit_all(scheduler, requests(1, 3))
    assert np.isfinite(read_audio(broken)).all()
    assert isinstance(broken.error, NotFiniteError)
    np.testing.assert_allclose(read_audio(other), expected[0], atol=1e-4)
    for request, sound in zip(submit_all(scheduler, requests(3, 4)), expected, strict=True):
        np.testing.assert_allclose(read_audio(request), sound, atol=1e-4)
        assert request.error is None


def test_codes_from_nan_logits_are_not_decoded(
    model: TorchModel, scheduler: TorchScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, n_steps = model.talker._stack.step, itertools.count()

    def overflowing(*args: Any) -> torch.Tensor:  # for one frame, and what it keeps is sound
        made = step(*args)
        return made.fill_(torch.nan) if next(n_steps) == 4 else made

    monkeypatch.setattr(model.talker._stack, "step", overflowing)
    (broken,) = submit_all(scheduler, [a_request(model, max_frames=30)])
    assert len(read_audio(broken)) <= 4 * 1920
    assert isinstance(broken.error, NotFiniteError)
    (after,) = submit_all(scheduler, [a_request(model, max_frames=30)])
    read_audio(after)
    assert after.error is None


def test_top_p_step_is_used_only_when_needed(
    model: TorchModel, scheduler: TorchScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[bool] = []
    frame = model.talker.decode_frame

    def noted(rows: BatchState, *, with_top_p: bool) -> None:  # the kind of step is not visible from outside
        known.append(with_top_p)
        frame(rows, with_top_p=with_top_p)

    monkeypatch.setattr(model.talker, "decode_frame", noted)
    for limited in (Sampling(seed=SEED, predictor_top_p=0.9), Sampling(seed=SEED)):
        request = a_request(model, max_frames=5)
        request.sampling = limited
        scheduler.submit(request)
        read_audio(request)
        assert set(known) == {limited.limits_share}
        known.clear()


def test_unread_audio_does_not_keep_other_rows(model: TorchModel, scheduler: TorchScheduler) -> None:
    requests = [a_request(model, seed=seed, max_frames=8) for seed in range(2)]
    for request in requests:
        scheduler.submit(request)
    for request in requests:
        while (sound := request.sound.get(timeout=DEADLINE_S)) is not None:
            assert sound.base is None or sound.base.nbytes == sound.nbytes  # not a window on those of all rows


def test_finish_reason_is_set_before_the_last_audio(model: TorchModel, scheduler: TorchScheduler) -> None:
    request = a_request(model, max_frames=1)
    finishes: list[FinishReason | None] = []
    put = request.sound.put

    class Watched:  # a queue that looks when it is put to: no reader is as quick
        def put(self, sound: Samples | None) -> None:
            finishes.append(request.finish_reason)
            put(sound)

    queue, request.sound = request.sound, Watched()  # type: ignore[assignment]
    scheduler.submit(request)
    assert queue.get(timeout=DEADLINE_S) is not None
    assert finishes[0] is FinishReason.LENGTH


def test_look_ahead_leaves_rows_for_streams(model: TorchModel) -> None:
    scheduler = TorchScheduler(model.talker, model.decoder, n_rows=4, n_positions=256)
    order: list[int] = []
    join = model.talker.prefill

    def noted(rows: object, utterances: list[object]) -> None:
        order.append(utterances[0].sampling.seed)  # type: ignore[attr-defined]
        join(rows, utterances)  # type: ignore[arg-type]

    model.talker.prefill = noted  # type: ignore[assignment, method-assign]  # who joins when can't be seen from outside
    try:
        ahead = [a_request(model, seed=seed, max_frames=100) for seed in range(10, 16)]
        for request in ahead:
            scheduler.submit(request)
        assert next(ahead[0].stream()) is not None
        quick = a_request(model, seed=1, max_frames=2)
        scheduler.submit(quick)
        assert next(quick.stream()) is not None
        assert order.index(1) <= 3
    finally:
        del model.talker.prefill
        scheduler.close()


def test_close_ends_active_and_waiting_requests(model: TorchModel) -> None:
    scheduler = TorchScheduler(model.talker, model.decoder, n_rows=1, n_positions=256)
    requests = [a_request(model, max_frames=200) for _ in range(2)]
    for request in requests:
        scheduler.submit(request)
    scheduler.close()
    for request in requests:
        read_audio(request)
        assert request.finish_reason is FinishReason.CANCELLED
    with pytest.raises(SchedulerClosedError):
        scheduler.submit(requests[0])


def test_close_during_prefill_cancels_the_request(model: TorchModel, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = TorchScheduler(model.talker, model.decoder, n_rows=1, n_positions=256)
    join, is_joining, may_join = model.talker.prefill, threading.Event(), threading.Event()

    def slow(rows: object, utterances: list[object]) -> None:  # between waiting and speaking, for as long as it takes
        is_joining.set()
        may_join.wait(DEADLINE_S)
        join(rows, utterances)  # type: ignore[arg-type]

    monkeypatch.setattr(model.talker, "prefill", slow)
    request = a_request(model, max_frames=200)
    scheduler.submit(request)
    is_joining.wait(DEADLINE_S)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    while not scheduler._is_closing:
        pass
    may_join.set()
    closing.join(DEADLINE_S)
    read_audio(request)
    assert request.finish_reason is FinishReason.CANCELLED
    assert request.n_decoded <= 1


def test_closed_scheduler_frees_memory_and_thread(model: TorchModel) -> None:
    scheduler = TorchScheduler(model.talker, model.decoder, n_rows=1, n_positions=256)
    thread, buffers = scheduler._thread, weakref.ref(scheduler._rows.cache)
    scheduler.close()
    del scheduler
    gc.collect()
    assert not thread.is_alive()
    assert buffers() is None


@pytest.mark.parametrize(
    ("codes", "is_round"),
    [
        ([7] * REPEAT_FRAMES, True),
        ([1, 2, 3] * REPEAT_FRAMES, True),
        ([1, 2, 3] * 3, False),
        (list(range(REPEAT_FRAMES)), False),
        ([*[7] * (REPEAT_FRAMES - 1), 8], False),
    ],
)
def test_repeating_codes_are_detected(codes: list[int], is_round: bool) -> None:
    assert is_looping(deque(codes, maxlen=REPEAT_FRAMES)) is is_round


@pytest.mark.parametrize(("model_gb", "n_rows"), [(2.1, [4, 16, 64, 64]), (4.1, [4, 16, 32, 64])], ids=["0.6b", "1.7b"])
def test_documented_batch_sizes_fit(model_gb: float, n_rows: list[int]) -> None:
    row_bytes, context_gb = 235 * 2**20, 0.7  # of CUDA, roughly
    free = [int(1e9 * (gpu_gb - context_gb - model_gb)) for gpu_gb in (8, 24, 48, 80)]
    assert [max_rows(free_bytes, row_bytes=row_bytes, most=64) for free_bytes in free] == n_rows
    assert f"| {', '.join(map(str, n_rows))} |" in DOCUMENTATION.read_text("utf-8")


@pytest.mark.parametrize("free_gib", [10, 20, 40, 70])
def test_two_models_on_one_gpu_leave_room_to_capture(free_gib: int) -> None:
    row_bytes, smaller_model_bytes = 235 * 2**20, int(2.5 * 2**30)
    left, taken = free_gib * 2**30, []
    for loaded in (0, smaller_model_bytes):  # the larger one is there, the smaller one comes
        left -= loaded
        taken.append(max_rows(left, row_bytes=row_bytes, most=64) * row_bytes)
        left -= taken[-1]
    assert left >= max(taken)


@pytest.mark.parametrize(("free_gib", "n_rows"), [(70, 64), (40, 32), (12, 16), (0.1, 1)])
def test_smaller_gpu_has_fewer_rows(free_gib: float, n_rows: int) -> None:
    row_bytes = 235 * 2**20  # the larger model at 2,048 positions
    assert max_rows(int(free_gib * 2**30), row_bytes=row_bytes, most=64) == n_rows
