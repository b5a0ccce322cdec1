"""Continuous batching on MLX: requests of one voice are decoded as one batch, and batches share the device thread.

`submit` takes a `DecodeRequest`, whose `stream` yields its samples. Each round decodes some frames of every batch;
between rounds the thread is free for other work.
"""

from __future__ import annotations

import threading
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from afterwords.audio.wav import Samples
from afterwords.backends.qwen3.admission import AdmissionQueue
from afterwords.backends.qwen3.mlx.batch import MlxBatch
from afterwords.backends.qwen3.mlx.codec import CodecState
from afterwords.backends.qwen3.mlx.model import MlxModel, MlxPrompt
from afterwords.backends.qwen3.mlx.thread import DeviceThread, DeviceThreadGoneError
from afterwords.backends.qwen3.request import (
    DecodeRequest,
    FinishReason,
    NotFiniteError,
    SchedulerClosedError,
    is_looping,
    steps_due,
)

Request = DecodeRequest[MlxPrompt, CodecState]


class MlxScheduler:
    """Decodes up to `n_rows` requests at once; more wait, in the order of `AdmissionQueue`.

    A request that is decoded ahead of its time is admitted with those of its voice, or while there is no other batch.
    `n_positions` is the length of the longest prompt with its frames.
    """

    def __init__(self, model: MlxModel, device_thread: DeviceThread, *, n_rows: int, n_positions: int) -> None:
        self._model, self._device_thread = model, device_thread
        self._n_rows, self._n_positions = n_rows, n_positions
        self._waiting: AdmissionQueue[Request] = AdmissionQueue(n_rows)
        self._batches: list[tuple[MlxBatch, list[Request]]] = []
        self._lock = threading.Lock()
        self._is_running, self._is_closing = False, False

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            SchedulerClosedError: The scheduler was closed.
        """
        with self._lock:
            if self._is_closing:
                raise SchedulerClosedError
            n_left = self._n_positions - request.n_columns
            if n_left < 1:
                why = f"a prompt of {request.n_columns} columns leaves no room for a frame in {self._n_positions}"
                request.finish(FinishReason.CANCELLED, ValueError(why))
                return
            request.max_frames = min(request.max_frames, n_left)
            self._waiting.add(request)
            self._schedule_round()

    def close(self) -> None:
        """Cancel all requests."""
        with self._lock:
            self._is_closing = True
        try:
            self._device_thread.run(self._evict_cancelled)
        except DeviceThreadGoneError:
            self._end_all()

    # -- on the device thread ------------------------------------------------------------------------------------

    def _schedule_round(self) -> None:
        """Schedule a round, unless one is scheduled or nothing is left to do. The lock must be held."""
        if self._is_running or not (self._waiting or self._batches):
            return
        try:
            self._device_thread.later(self._run_round)
        except DeviceThreadGoneError as error:
            self._is_closing = True
            raise SchedulerClosedError from error
        self._is_running = True

    def _run_round(self) -> None:
        try:
            self._evict_cancelled()
            self._admit()
            for number in reversed(range(len(self._batches))):
                self._decode_steps(number)
        except Exception as error:  # noqa: BLE001 - of the device: it ends the active requests, not the scheduler
            self._end_all(error)
        with self._lock:
            self._is_running = False
            with suppress(SchedulerClosedError):
                self._schedule_round()
                return
        self._end_all()

    def _evict_cancelled(self) -> None:
        for number in reversed(range(len(self._batches))):
            _, requests = self._batches[number]
            cancelled = [row for row, request in enumerate(requests) if request.is_cancelled or self._is_closing]
            self._end(number, dict.fromkeys(cancelled, FinishReason.CANCELLED))
        with self._lock:
            self._waiting.evict(everything=self._is_closing)

    def _end_all(self, error: Exception | None = None) -> None:
        with self._lock:
            active = [request for _, requests in self._batches for request in requests]
            self._batches.clear()
            self._waiting.evict(everything=True, error=error)
        for request in active:
            request.finish(FinishReason.CANCELLED, error)

    def _admit(self) -> None:
        while True:
            n_free = self._n_rows - sum(len(requests) for _, requests in self._batches)
            with self._lock:  # batches take turns, so a request ahead of its time would slow those that are streamed
                requests = self._waiting.pop_batch(n_free, may_look_ahead=not self._batches, fits=is_same_batch)
            if not requests:
                return
            try:
                self._start(requests)
            except Exception as error:  # noqa: BLE001 - of one prompt, or memory ran out: the others go on
                if len(requests) == 1:
                    requests[0].finish(FinishReason.CANCELLED, error)
                    continue
                for request in requests:
                    try:
                        self._start([request])
                    except Exception as own:  # noqa: BLE001 - of this prompt
                        request.finish(FinishReason.CANCELLED, own)

    def _start(self, requests: list[Request]) -> None:
        prompts, samplings = ([request.prompt for request in requests], [request.sampling for request in requests])
        self._batches.append((MlxBatch(self._model, prompts, samplings), requests))

    def _decode_steps(self, number: int) -> None:
        """Decode some frames in every row of a batch, then deliver the audio."""
        batch, requests = self._batches[number]
        try:
            for step in range(steps_due(batch.n_frames)):
                if step and any(request.is_cancelled for request in requests):
                    break
                batch.decode_frame()
            codes, is_sane = batch.read_codes()
            ends = self._deliver(batch, requests, codes, is_sane)
        except Exception as error:  # noqa: BLE001 - of one row, or of the device: a retry of each row shows which
            del self._batches[number]
            if len(requests) == 1:
                requests[0].finish(FinishReason.CANCELLED, error)
            else:
                self._batches += [(batch.isolate_row(row), [request]) for row, request in enumerate(requests)]
        else:
            self._end(number, ends)

    def _deliver(
        self, batch: MlxBatch, requests: list[Request], codes: NDArray[np.int32], is_sane: NDArray[np.bool_]
    ) -> dict[int, FinishReason]:
        """Pass new samples to each request, and return the rows that have ended."""
        eos = self._model.config.talker.codes.eos
        lengths: list[int] = []
        ends: dict[int, FinishReason] = {}
        for row, request in enumerate(requests):
            stops = np.flatnonzero(codes[row, :, 0] == eos)
            n_left = request.max_frames - request.n_decoded
            n_new = min(int(stops[0]) if len(stops) else codes.shape[1], n_left)
            codes[row, n_new:] = 0  # a valid code, whose samples are discarded
            lengths.append(n_new)
            if len(stops) and stops[0] < n_left:
                ends[row] = FinishReason.STOP
            elif n_new == n_left:
                ends[row] = FinishReason.LENGTH
        sound = batch.decode_audio(codes)
        for row, request in enumerate(requests):
            request.first_codes.extend(codes[row, : lengths[row], 0].tolist())
            if row not in ends and is_looping(request.first_codes):
                ends[row] = FinishReason.RUNAWAY
            if not (is_sane[row] and np.isfinite(sound[row]).all()):
                request.error, lengths[row], ends[row] = NotFiniteError(), 0, FinishReason.CANCELLED
        for row, request in enumerate(requests):
            request.n_decoded += lengths[row]
            request.finish_reason = ends.get(row)  # before the samples: their reader must see whether it ended badly
            samples: Samples = sound[row][: lengths[row] * self._model.decoder.samples_per_frame]
            try:
                if lengths[row]:
                    request.sound.put(samples.copy())
            except Exception as error:  # noqa: BLE001 - of the reader
                request.error, ends[row] = error, FinishReason.CANCELLED
        return ends

    def _end(self, number: int, ends: dict[int, FinishReason]) -> None:
        """End rows of a batch; the batch is removed with its last row."""
        batch, requests = self._batches[number]
        for row, reason in ends.items():
            requests[row].finish(reason, requests[row].error)
        kept = [row for row in range(len(requests)) if row not in ends]
        if not kept:
            del self._batches[number]
        elif ends:
            batch.keep(kept)
            self._batches[number] = batch, [requests[row] for row in kept]


def is_same_batch(request: Request, first: Request) -> bool:
    """Return whether a request can be decoded in one batch with another."""
    if request.is_seeded or first.is_seeded:  # a device may round differently in another batch
        return False
    ours, theirs = request.prompt, first.prompt
    is_alike = ours.layout.steering == theirs.layout.steering and request.n_columns == first.n_columns
    return is_alike and ours.voice is theirs.voice
