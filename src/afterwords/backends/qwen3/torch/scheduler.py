"""The loop that speaks: utterances join between frames, are spoken side by side, and leave when they end.

One thread owns the talker, the codec and every buffer. Whoever wants to speak hands in a `Turn` and reads its sound
from it. The host looks at the device once a burst of frames, to see who has ended and to fetch what can be heard.
"""

from __future__ import annotations

import atexit
import threading
from collections import deque
from contextlib import suppress
from typing import Final

import numpy as np
import torch

from afterwords.audio.wav import Samples
from afterwords.backends.qwen3.request import (
    BURSTS,
    Finish,
    LoopClosedError,
    NotFiniteError,
    Turn,
    frames_due,
    goes_round,
)
from afterwords.backends.qwen3.torch.batch import Rows
from afterwords.backends.qwen3.torch.codec_decoder import CodecDecoder, DecoderState
from afterwords.backends.qwen3.torch.codec_transformer import Window
from afterwords.backends.qwen3.torch.cuda_graphs import Frames
from afterwords.backends.qwen3.torch.prompt import Prompt
from afterwords.backends.qwen3.torch.talker import Talker, Utterance

Speech = Turn[Prompt, DecoderState]
ROW_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64)
POSITION_BUCKETS: Final = (256, 512, 1024, 2048, 4096)
"""Sizes that a frame is run at; the smallest that holds what is spoken is taken."""


class Loop:
    """Speaks turns, up to `n_rows` at once; more wait.

    Those that somebody is reading go first. What is spoken ahead of its time joins once all others are heard, and
    leaves a quarter of the rows free, so that a long text keeps nobody waiting.

    Args:
        talker, decoder: of one model.
        n_rows: utterances at once.
        n_positions: the longest prompt and its frames.
    """

    def __init__(self, talker: Talker, decoder: CodecDecoder, *, n_rows: int, n_positions: int) -> None:
        self._talker, self._decoder = talker, decoder
        self._n_rows, self._n_positions = n_rows, n_positions
        self._frames = Frames(talker)
        self._rows: Rows = talker.new_rows(n_rows, n_positions)  # here, so that who loads hears that memory ran out
        self._state = decoder.new_state(n_rows)
        self._waiting: deque[Speech] = deque()
        self._active: list[Speech] = []  # by row
        self._awake = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="qwen3", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread that runs torch while the interpreter goes down takes it down hard

    def hand_in(self, turn: Speech) -> None:
        """Have a turn spoken as soon as there is a row for it.

        Raises:
            LoopClosedError: it was closed.
        """
        with self._awake:
            if self._is_closing:
                raise LoopClosedError
            if turn.max_frames < 1:
                turn.end(Finish.LENGTH)
                return
            self._waiting.append(turn)
            self._awake.notify()

    def close(self) -> None:
        """Break off what is spoken, and give back the thread."""
        atexit.unregister(self.close)
        with self._awake:
            self._is_closing = True
            self._awake.notify()
        self._thread.join()

    # -- the thread ------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _run(self) -> None:
        while self._has_work():
            try:
                self._let_go()
                self._admit()
                if self._active:
                    self._burst()
            except Exception as error:  # noqa: BLE001 - of this device: it ends those who speak, not the loop
                self._fail(error)

    def _has_work(self) -> bool:
        """Wait for a turn; False once the loop is closed and nobody speaks."""
        with self._awake:
            self._awake.wait_for(lambda: self._waiting or self._active or self._is_closing)
            return bool(self._waiting or self._active)

    def _fail(self, error: Exception) -> None:
        """End those who speak. The buffers stay: graphs are captured on them."""
        failed, self._active = self._active, []
        for turn in failed:
            turn.end(Finish.CANCELLED, error)
        with suppress(Exception):  # a GPU that is lost for good: the next who joins is told so, and no thread dies
            for row in range(len(failed)):
                self._rows.clear(row)
            for row in range(self._n_rows):
                self._rows.leave(row)

    def _let_go(self) -> None:
        """Free the rows of those whom nobody listens to any more."""
        for row in reversed(range(len(self._active))):
            if self._active[row].is_cancelled or self._is_closing:
                self._end(row, Finish.CANCELLED)
        with self._awake:
            gone = [turn for turn in self._waiting if turn.is_cancelled or self._is_closing]
            self._waiting = deque(turn for turn in self._waiting if turn not in gone)
        for turn in gone:
            turn.end(Finish.CANCELLED)

    def _admit(self) -> None:
        """Let those join who may."""
        while (turn := self._next_in()) is not None:
            with self._awake:
                self._waiting.remove(turn)
            row = len(self._active)
            try:
                self._talker.join(self._rows, [Utterance(row, turn.prompt, turn.max_frames, turn.sampling)])
                if turn.primed is None:
                    self._state.clear(row)
                else:
                    self._state.put(row, turn.primed)
            except Exception as error:  # noqa: BLE001 - too long for any row, or memory ran out: the others go on
                turn.end(Finish.CANCELLED, error)
                self._rows.clear(row)
                self._rows.leave(row)
            else:
                self._active.append(turn)

    def _next_in(self) -> Speech | None:
        """Who may join now."""
        n_free = self._n_rows - len(self._active)
        with self._awake:
            if not n_free or not self._waiting:
                return None
            if (awaited := next((turn for turn in self._waiting if turn.is_awaited), None)) is not None:
                return awaited
            may_go_ahead = n_free > self._n_rows // 4 and all(turn.n_decoded for turn in self._active)
            return self._waiting[0] if may_go_ahead else None

    def _burst(self) -> None:
        """Speak some frames in every row, then let everybody hear theirs."""
        most = self._frames_due()
        rows = self._view(most)
        with_top_p = any(turn.sampling.limits_share for turn in self._active)
        n = 0
        while n < most and not (n and self._is_interrupted()):
            try:
                self._frames(rows, with_top_p=with_top_p)
            except Exception:  # noqa: BLE001 - of one row, or of the device: each row shows which
                self._frame_apart(rows.n_positions, with_top_p=with_top_p)
                if not self._active:
                    return
                break
            n += 1
        before = [turn.n_decoded for turn in self._active]
        after = rows.progress()[: len(before)]
        new = [max(0, spoken - known) for known, (spoken, _, _) in zip(before, after, strict=True)]
        sound, first_codes = self._decoded(rows, before, new)
        for row in reversed(range(len(before))):
            turn, heard = self._active[row], sound[row]
            try:
                if isinstance(heard, Exception):
                    raise heard
                self._told(row, new[row], heard, first_codes[row], after[row])
            except Exception as error:
                if not any(turn is other for other in self._active):
                    raise  # it was ended already, so this is of the device
                self._rows.clear(row)
                self._end(row, Finish.CANCELLED, error)

    def _frame_apart(self, n_positions: int, *, with_top_p: bool) -> None:
        """Speak a frame that failed for all again, row by row; end the utterances that it fails for alone."""
        for row in reversed(range(len(self._active))):
            try:
                self._talker.frame(self._rows.alone(row, n_positions), with_top_p=with_top_p)
            except Exception as error:  # noqa: BLE001 - of this utterance; if the device is lost, the next line says so
                self._rows.clear(row)
                self._end(row, Finish.CANCELLED, error)

    def _is_interrupted(self) -> bool:
        """Whether somebody wants to join or to leave, or all shall end."""
        return self._is_closing or any(turn.is_cancelled for turn in self._active) or self._next_in() is not None

    def _told(
        self, row: int, n_new: int, sound: Samples, first_codes: list[int], state: tuple[int, bool, bool]
    ) -> None:
        """Give a turn its new sound, and see whether it has ended."""
        turn = self._active[row]
        if not np.isfinite(sound).all():
            self._rows.clear(row)
            self._end(row, Finish.CANCELLED, NotFiniteError())
            return
        turn.n_decoded += n_new
        turn.first_codes.extend(first_codes[:n_new])
        _, is_done, is_stopped = state
        finish = None
        if is_done:
            finish = Finish.STOP if is_stopped else Finish.LENGTH
        elif goes_round(turn.first_codes):
            finish = Finish.RUNAWAY
        turn.finish = finish  # before its sound: who hears the first of it shall know whether it came to a bad end
        if n_new:
            turn.sound.put(sound[: n_new * self._decoder.samples_per_frame].copy())  # a view would keep all rows
        if finish is not None:
            self._end(row, finish)

    def _end(self, row: int, finish: Finish, error: Exception | None = None) -> None:
        """Free a row; the last one takes its place, so that the first rows are always those that speak."""
        turn, last = self._active[row], len(self._active) - 1
        self._rows.leave(row)
        if row != last:
            self._rows.move(last, row)
            self._state.put(row, self._state, other_row=last)
            self._active[row] = self._active[last]
        self._active.pop()
        turn.end(finish, error)

    # -- sizes -----------------------------------------------------------------------------------------------

    def _frames_due(self) -> int:
        """How many frames until somebody should hear something: the youngest decides."""
        youngest = min(turn.n_decoded for turn in self._active)
        return frames_due(youngest)

    def _view(self, n_frames: int) -> Rows:
        """The rows and positions that these frames need, and not many more."""
        reach = max(turn.n_columns + turn.n_decoded for turn in self._active) + n_frames
        n_rows = next(n for n in (*ROW_BUCKETS, self._n_rows) if n >= len(self._active))
        n_positions = next((n for n in POSITION_BUCKETS if n >= reach), self._n_positions)
        return self._rows.view(min(n_rows, self._n_rows), min(n_positions, self._n_positions))

    def _decoded(
        self, rows: Rows, before: list[int], new: list[int]
    ) -> tuple[list[Samples | Exception], list[list[int]]]:
        """The sound of the new frames of each row, or why it has none, and their first codes; one transfer each. What
        was drawn from anything but numbers sounds as NaN."""
        width = next(burst for burst in BURSTS if burst >= max(1, *new))
        spare = [0] * (rows.n_rows - len(new))
        begins = torch.tensor([*before, *spare], device=rows.index.device)
        at = (begins[:, None] + torch.arange(width, device=begins.device)).clamp_(max=rows.history.shape[1] - 1)
        codes = rows.history.gather(1, at[..., None].expand(-1, -1, rows.history.shape[2])).long()
        n_frames = torch.tensor([*new, *spare], device=begins.device)
        try:
            sound = self._decoder.step(codes, some_rows(self._state, 0, rows.n_rows), n_frames)
        except Exception:  # noqa: BLE001 - of one row, or of the device: each row shows which
            return [self._decoded_apart(row, n, new[row]) for row, n in enumerate(before)], codes[..., 0].tolist()
        sound = sound.masked_fill(~rows.is_finite()[:, None], torch.nan)
        return list(sound.float().cpu().numpy()), codes[..., 0].tolist()

    def _decoded_apart(self, row: int, n_before: int, n_new: int) -> Samples | Exception:
        """The sound of the new frames of one row, whose state is made again: it may have gone on when all failed."""
        turn, state = self._active[row], some_rows(self._state, row, row + 1)
        codes = self._rows.history[row : row + 1, : n_before + n_new].long()
        try:
            if turn.primed is None:
                self._state.clear(row)
            else:
                self._state.put(row, turn.primed)
            for piece in codes[:, :n_before].split(BURSTS[-1], dim=1) if n_before else ():
                self._decoder.step(piece, state)
            sound = self._decoder.step(codes[:, n_before:], state) if n_new else codes.new_zeros((1, 0))
        except Exception as error:  # noqa: BLE001 - of this utterance
            return error
        if not bool(self._rows.is_finite()[row]):
            return NotFiniteError()
        made: Samples = sound[0].float().cpu().numpy()
        return made


def some_rows(state: DecoderState, first: int, end: int) -> DecoderState:
    """The rows of a state from one up to another, in the same tensors."""
    window, rows = state.window, slice(first, end)
    return DecoderState(
        Window(window.n_seen[rows], window.keys[:, rows], window.values[:, rows]), [past[rows] for past in state.pasts]
    )


def rows_that_fit(free_bytes: int, *, row_bytes: int, most: int) -> int:
    """How many rows a GPU has room for: twice, since a frame is recorded beside those that speak, and with a rest."""
    return max(n for n in (1, *ROW_BUCKETS) if n == 1 or (n <= most and 2 * n * row_bytes <= 0.7 * free_bytes))
