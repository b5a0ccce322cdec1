"""Continuous batching in torch: requests join the batch between frames, are decoded together, and leave when they end.

`submit` takes a `DecodeRequest`, whose `stream` yields its samples. One thread owns the talker, the codec and every
buffer. It reads the device once every few frames, to see which requests have ended and to fetch their audio.
"""

from __future__ import annotations

import atexit
import threading
from contextlib import suppress
from typing import Final

import numpy as np
import torch

from afterwords.audio.wav import Samples
from afterwords.backends.qwen3.admission import AdmissionQueue
from afterwords.backends.qwen3.request import (
    STEPS_PER_READ,
    DecodeRequest,
    FinishReason,
    NotFiniteError,
    SchedulerClosedError,
    is_looping,
    steps_due,
)
from afterwords.backends.qwen3.torch.batch import BatchState
from afterwords.backends.qwen3.torch.codec_decoder import CodecDecoder, DecoderState
from afterwords.backends.qwen3.torch.cuda_graphs import CodecRunner, GraphRunner, Graphs
from afterwords.backends.qwen3.torch.prompt import Prompt
from afterwords.backends.qwen3.torch.talker import PrefillRow, Talker

Request = DecodeRequest[Prompt, DecoderState]
ROW_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64)
POSITION_BUCKETS: Final = (256, 512, 1024, 2048, 4096)
"""Sizes of a decode step; the smallest that holds the batch is used."""
PREFILL_ROWS: Final = 8
"""Requests that are prefilled at once: one alone leaves a GPU idle, since launching its operations takes longer."""


class TorchScheduler:
    """Decodes up to `n_rows` requests at once; more wait, in the order of `AdmissionQueue`.

    A request that is decoded ahead of its time is admitted once every active request has audio.
    `n_positions` is the length of the longest prompt with its frames.
    """

    def __init__(self, talker: Talker, decoder: CodecDecoder, *, n_rows: int, n_positions: int) -> None:
        self._talker, self._decoder = talker, decoder
        self._n_rows, self._n_positions = n_rows, n_positions
        # Allocated here and not in the thread, so that loading raises if memory runs out.
        self._rows: BatchState = talker.new_rows(n_rows, n_positions)
        self._state = decoder.new_state(n_rows)
        graphs = Graphs()
        self._frames = GraphRunner(talker, graphs)
        self._sound = CodecRunner(decoder, self._state, graphs, n_frames=STEPS_PER_READ[-1])
        self._waiting: AdmissionQueue[Request] = AdmissionQueue(n_rows)
        self._active: list[Request] = []  # by row
        self._awake = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="qwen3", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread that runs torch during interpreter shutdown crashes the process

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            SchedulerClosedError: The scheduler was closed.
        """
        with self._awake:
            if self._is_closing:
                raise SchedulerClosedError
            self._waiting.add(request)
            self._awake.notify()

    def close(self) -> None:
        """Cancel all requests and end the thread."""
        atexit.unregister(self.close)
        with self._awake:
            self._is_closing = True
            self._awake.notify()
        self._thread.join()

    # -- the thread ------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            with self._awake:
                self._awake.wait_for(lambda: self._waiting or self._active or self._is_closing)
                if not self._waiting and not self._active:
                    return
            try:
                for row in reversed(range(len(self._active))):
                    if self._active[row].is_cancelled or self._is_closing:
                        self._end(row, FinishReason.CANCELLED)
                with self._awake:
                    self._waiting.evict(everything=self._is_closing)
                self._admit()
                if self._active:
                    self._decode_steps()
            except Exception as error:  # noqa: BLE001 - of the device: it ends the active requests, not the thread
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        """End all active requests. The buffers stay, since graphs are captured on them."""
        failed, self._active = self._active, []
        for request in failed:
            request.finish(FinishReason.CANCELLED, error)
        with suppress(Exception):  # a GPU that is lost: the next request gets the error, and the thread lives on
            for row in range(len(failed)):
                self._rows.clear_row(row)
            for row in range(self._n_rows):
                self._rows.free_row(row)

    def _admit(self) -> None:
        while group := self._next_group():
            try:
                self._join(group)
            except Exception:  # noqa: BLE001 - a prompt is too long, or memory ran out: one by one, others go on
                for request in group:
                    try:
                        self._join([request])
                    except Exception as error:  # noqa: BLE001 - of this request
                        request.finish(FinishReason.CANCELLED, error)

    def _join(self, requests: list[Request]) -> None:
        """Prefill requests together, in the next free rows."""
        rows = range(len(self._active), len(self._active) + len(requests))
        try:
            self._talker.prefill(
                self._rows,
                [
                    PrefillRow(row, request.prompt, request.max_frames, request.sampling)
                    for row, request in zip(rows, requests, strict=True)
                ],
            )
            for row, request in zip(rows, requests, strict=True):
                self._reset_codec(row, request)
        except Exception:
            for row in rows:
                self._rows.clear_row(row)
                self._rows.free_row(row)
            raise
        self._active += requests

    def _next_group(self) -> list[Request]:
        """Remove and return the requests that join now."""
        group: list[Request] = []
        while len(group) < PREFILL_ROWS and (request := self._next_request(len(group))) is not None:
            with self._awake:
                self._waiting.remove([request])
            group.append(request)
        return group

    def _next_request(self, n_joining: int = 0) -> Request | None:
        """Return the request that may join now, with others that are joining, or None."""
        n_free = self._n_rows - len(self._active) - n_joining
        with self._awake:
            if not n_free:
                return None
            may_look_ahead = not n_joining and n_free > self._waiting.n_reserved
            return self._waiting.peek(may_look_ahead=may_look_ahead and all(each.n_decoded for each in self._active))

    def _reset_codec(self, row: int, request: Request) -> None:
        """Set the codec of a row to the state after the voice's reference."""
        if request.codec_state is None:
            self._state.clear_row(row)
        else:
            self._state.copy_row(row, request.codec_state)

    def _decode_steps(self) -> None:
        """Decode some frames in every row, then deliver the audio."""
        n_steps = steps_due(min(request.n_decoded for request in self._active))  # the youngest decides
        reach = max(request.n_columns + request.n_decoded for request in self._active) + n_steps
        n_rows = next(n for n in (*ROW_BUCKETS, self._n_rows) if n >= len(self._active))
        n_positions = next((n for n in POSITION_BUCKETS if n >= reach), self._n_positions)
        rows = self._rows.view(min(n_rows, self._n_rows), min(n_positions, self._n_positions))
        with_top_p = any(request.sampling.limits_share for request in self._active)
        for step in range(n_steps):
            is_interrupted = self._is_closing or any(request.is_cancelled for request in self._active)
            if step and (is_interrupted or self._next_request() is not None):
                break
            try:
                self._frames(rows, with_top_p=with_top_p)
            except Exception:  # noqa: BLE001 - of one row, or of the device: a retry of each row shows which
                for row in reversed(range(len(self._active))):
                    try:
                        self._talker.decode_frame(self._rows.isolate_row(row, rows.n_positions), with_top_p=with_top_p)
                    except Exception as error:  # noqa: BLE001 - of this row; if the device is lost, the next line raises
                        self._rows.clear_row(row)
                        self._end(row, FinishReason.CANCELLED, error)
                if not self._active:
                    return
                break
        before = [request.n_decoded for request in self._active]
        after = rows.read_progress()[: len(before)]
        new = [max(0, n_frames - known) for known, (n_frames, _, _) in zip(before, after, strict=True)]
        sounds, first_codes = self._decode_audio(rows, before, new)
        for row in reversed(range(len(before))):
            request, sound = self._active[row], sounds[row]
            try:
                if isinstance(sound, Exception):
                    raise sound
                self._deliver(row, new[row], sound, first_codes[row], after[row])
            except Exception as error:
                if not any(request is other for other in self._active):
                    raise  # the request has ended already, so this is an error of the device
                self._rows.clear_row(row)
                self._end(row, FinishReason.CANCELLED, error)

    def _deliver(
        self, row: int, n_new: int, sound: Samples, first_codes: list[int], progress: tuple[int, bool, bool]
    ) -> None:
        """Pass new samples to a request, and end it if it is done."""
        request = self._active[row]
        if not np.isfinite(sound).all():
            self._rows.clear_row(row)
            self._end(row, FinishReason.CANCELLED, NotFiniteError())
            return
        request.n_decoded += n_new
        request.first_codes.extend(first_codes[:n_new])
        _, is_done, is_stopped = progress
        reason = None
        if is_done:
            reason = FinishReason.STOP if is_stopped else FinishReason.LENGTH
        elif is_looping(request.first_codes):
            reason = FinishReason.RUNAWAY
        request.finish_reason = reason  # before the samples: their reader must see whether it ended badly
        if n_new:
            request.sound.put(sound[: n_new * self._decoder.samples_per_frame].copy())  # a view would keep all rows
        if reason is not None:
            self._end(row, reason)

    def _end(self, row: int, reason: FinishReason, error: Exception | None = None) -> None:
        """End a request and move the last row to its place, so that the active rows stay the first ones."""
        request, last = self._active[row], len(self._active) - 1
        self._rows.free_row(row)
        if row != last:
            self._rows.move_row(last, row)
            self._state.copy_row(row, self._state, other_row=last)
            self._active[row] = self._active[last]
        self._active.pop()
        request.finish(reason, error)

    def _decode_audio(
        self, rows: BatchState, before: list[int], new: list[int]
    ) -> tuple[list[Samples | Exception], list[list[int]]]:
        """Return, for each row, the samples of its new frames or the error, and the first codes of these frames.

        Samples of a row whose logits were not finite are NaN.
        """
        width = next(steps for steps in STEPS_PER_READ if steps >= max(1, *new))
        spare = [0] * (rows.n_rows - len(new))
        starts = torch.tensor([*before, *spare], device=rows.index.device)
        at = (starts[:, None] + torch.arange(width, device=starts.device)).clamp_(max=rows.history.shape[1] - 1)
        codes = rows.history.gather(1, at[..., None].expand(-1, -1, rows.history.shape[2])).long()
        n_frames = torch.tensor([*new, *spare], device=starts.device)
        try:
            sound = self._sound(codes, n_frames)
        except Exception:  # noqa: BLE001 - of one row, or of the device: a retry of each row shows which
            sounds = [self._retry_audio_of_row(row, n, new[row]) for row, n in enumerate(before)]
            return sounds, codes[..., 0].tolist()
        sound = sound.masked_fill(~rows.is_finite()[:, None], torch.nan)
        return list(sound.float().cpu().numpy()), codes[..., 0].tolist()

    def _retry_audio_of_row(self, row: int, n_before: int, n_new: int) -> Samples | Exception:
        """Decode the new frames of one row after its state is rebuilt, which the failed step may have advanced."""
        state = self._state.view(row, row + 1)
        codes = self._rows.history[row : row + 1, : n_before + n_new].long()
        try:
            self._reset_codec(row, self._active[row])
            for part in codes[:, :n_before].split(STEPS_PER_READ[-1], dim=1) if n_before else ():
                self._decoder.step(part, state)
            sound = self._decoder.step(codes[:, n_before:], state) if n_new else codes.new_zeros((1, 0))
        except Exception as error:  # noqa: BLE001 - of this request
            return error
        if not bool(self._rows.is_finite()[row]):
            return NotFiniteError()
        samples: Samples = sound[0].float().cpu().numpy()
        return samples


def max_rows(free_bytes: int, *, row_bytes: int, most: int) -> int:
    """Return how many rows fit on a GPU, each twice, since a graph is captured on spare rows, and with a margin."""
    return max(n for n in (1, *ROW_BUCKETS) if n == 1 or (n <= most and 2 * n * row_bytes <= 0.7 * free_bytes))
