"""The loop that speaks: turns of one voice are spoken side by side, groups of them by turns, on the owner's thread.

Whoever wants to speak hands in a `Turn` and reads its sound from it. Each round speaks some frames of every group, then
looks at what came of them; between rounds the thread is free for whatever else is asked of it.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from afterwords.audio.wav import Samples
from afterwords.backends.qwen3.mlx.batch import Group
from afterwords.backends.qwen3.mlx.codec import CodecState
from afterwords.backends.qwen3.mlx.model import Model, Script
from afterwords.backends.qwen3.mlx.thread import Owner, OwnerGoneError
from afterwords.backends.qwen3.request import Finish, LoopClosedError, NotFiniteError, Turn, frames_due, goes_round

Speech = Turn[Script, CodecState]


class Loop:
    """Speaks turns, up to `n_rows` at once; more wait.

    Those that somebody is reading go first. What is spoken ahead of its time joins those of its own voice, and leaves a
    quarter of the rows free, so that a long text keeps nobody waiting.

    Args:
        model: speaks them.
        owner: of the thread that runs MLX.
        n_rows: utterances at once.
        n_positions: the longest prompt and its frames.
    """

    def __init__(self, model: Model, owner: Owner, *, n_rows: int, n_positions: int) -> None:
        self._model, self._owner = model, owner
        self._n_rows, self._n_positions = n_rows, n_positions
        self._waiting: deque[Speech] = deque()
        self._groups: list[tuple[Group, list[Speech]]] = []
        self._lock = threading.Lock()
        self._is_running, self._is_closing = False, False

    def hand_in(self, turn: Speech) -> None:
        """Have a turn spoken as soon as there is a row for it.

        Raises:
            LoopClosedError: it was closed.
        """
        with self._lock:
            if self._is_closing:
                raise LoopClosedError
            if (room := self._n_positions - turn.n_columns) < 1:
                why = f"a prompt of {turn.n_columns} columns leaves no room for a frame in {self._n_positions}"
                turn.end(Finish.CANCELLED, ValueError(why))
                return
            turn.max_frames = min(turn.max_frames, room)
            if turn.max_frames < 1:
                turn.end(Finish.LENGTH)
                return
            self._waiting.append(turn)
            self._go_on()

    def close(self) -> None:
        """Break off what is spoken."""
        with self._lock:
            self._is_closing = True
        try:
            self._owner.run(self._let_go)
        except OwnerGoneError:
            self._let_all_go()

    # -- on the owner's thread -----------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Ask for a round, unless one is asked for. Called with the lock held."""
        if self._is_running or not (self._waiting or self._groups):
            return
        try:
            self._owner.later(self._round)
        except OwnerGoneError as error:
            self._is_closing = True
            raise LoopClosedError from error
        self._is_running = True

    def _round(self) -> None:
        try:
            self._let_go()
            self._admit()
            for number in reversed(range(len(self._groups))):
                self._burst(number)
        except Exception as error:  # noqa: BLE001 - of this device: it ends those who speak, not the loop
            self._let_all_go(error)
        with self._lock:
            self._is_running = False
            with suppress(LoopClosedError):
                self._go_on()
                return
        self._let_all_go()

    def _let_go(self) -> None:
        """Free the rows of those whom nobody listens to any more."""
        for number in reversed(range(len(self._groups))):
            _, turns = self._groups[number]
            gone = [row for row, turn in enumerate(turns) if turn.is_cancelled or self._is_closing]
            self._end(number, dict.fromkeys(gone, Finish.CANCELLED))
        with self._lock:
            gone_waiting = [turn for turn in self._waiting if turn.is_cancelled or self._is_closing]
            self._waiting = deque(turn for turn in self._waiting if turn not in gone_waiting)
        for turn in gone_waiting:
            turn.end(Finish.CANCELLED)

    def _let_all_go(self, error: Exception | None = None) -> None:
        with self._lock:
            turns = [*self._waiting, *(turn for _, turns in self._groups for turn in turns)]
            self._waiting.clear()
            self._groups.clear()
        for turn in turns:
            turn.end(Finish.CANCELLED, error)

    def _admit(self) -> None:
        """Let those join who may: whoever is awaited goes first, with those of the same voice behind it."""
        while turns := self._next_in():
            try:
                self._begin(turns)
            except Exception as error:  # noqa: BLE001 - of one prompt, or memory ran out: the others go on
                if len(turns) == 1:
                    turns[0].end(Finish.CANCELLED, error)
                    continue
                for turn in turns:
                    try:
                        self._begin([turn])
                    except Exception as own:  # noqa: BLE001 - of this prompt
                        turn.end(Finish.CANCELLED, own)

    def _begin(self, turns: list[Speech]) -> None:
        group = Group(self._model, [turn.prompt for turn in turns], [turn.sampling for turn in turns])
        self._groups.append((group, turns))

    def _next_in(self) -> list[Speech]:
        """Who may join now, as one group."""
        n_free = self._n_rows - sum(len(turns) for _, turns in self._groups)
        with self._lock:
            if n_free < 1 or not self._waiting:
                return []
            first = next((turn for turn in self._waiting if turn.is_awaited), None)
            if first is None:
                if self._groups:
                    return []  # groups take turns: what is spoken ahead of its time would slow who is heard
                first = self._waiting[0]
            mates = [turn for turn in self._waiting if turn is not first and _fit(turn, first)]
            awaited = [turn for turn in mates if turn.is_awaited][: n_free - 1]
            n_elsewhere = sum(turn.is_awaited for turn in self._waiting if turn is not first and turn not in mates)
            n_ahead = n_free - 1 - len(awaited) - max(n_elsewhere, self._n_rows // 4)  # which leave room for others
            ahead = [turn for turn in mates if not turn.is_awaited][: max(0, n_ahead)]
            turns = [first, *awaited, *ahead]
            self._waiting = deque(turn for turn in self._waiting if turn not in turns)
            return turns

    def _burst(self, number: int) -> None:
        """Speak some frames in every row of a group, then let everybody hear theirs."""
        group, turns = self._groups[number]
        try:
            for done in range(frames_due(group.n_frames)):
                if done and any(turn.is_cancelled for turn in turns):
                    break
                group.frame()
            codes, is_sane = group.spoken()
            ends = self._told(group, turns, codes, is_sane)
        except Exception as error:  # noqa: BLE001 - of one row, or of the device: each row shows which, alone
            del self._groups[number]
            if len(turns) == 1:
                turns[0].end(Finish.CANCELLED, error)
            else:
                self._groups += [(group.alone(row), [turn]) for row, turn in enumerate(turns)]
        else:
            self._end(number, ends)

    def _told(
        self, group: Group, turns: list[Speech], codes: NDArray[np.int32], is_sane: NDArray[np.bool_]
    ) -> dict[int, Finish]:
        """Give each turn its new sound, and see which have ended."""
        eos = self._model.config.talker.codes.eos
        lengths: list[int] = []
        ends: dict[int, Finish] = {}
        for row, turn in enumerate(turns):
            stops = np.flatnonzero(codes[row, :, 0] == eos)
            left = turn.max_frames - turn.n_decoded
            n_new = min(int(stops[0]) if len(stops) else codes.shape[1], left)
            codes[row, n_new:] = 0  # within the codebooks, and never heard
            lengths.append(n_new)
            if len(stops) and stops[0] < left:
                ends[row] = Finish.STOP
            elif n_new == left:
                ends[row] = Finish.LENGTH
        sound = group.sound(codes)
        for row, turn in enumerate(turns):
            turn.first_codes.extend(codes[row, : lengths[row], 0].tolist())
            if row not in ends and goes_round(turn.first_codes):
                ends[row] = Finish.RUNAWAY
            if not (is_sane[row] and np.isfinite(sound[row]).all()):
                turn.error, lengths[row], ends[row] = NotFiniteError(), 0, Finish.CANCELLED
        self._heard(turns, sound, lengths, ends)
        return ends

    def _heard(self, turns: list[Speech], sound: list[Samples], lengths: list[int], ends: dict[int, Finish]) -> None:
        for row, turn in enumerate(turns):
            turn.n_decoded += lengths[row]
            turn.finish = ends.get(row)  # before its sound: who hears the first of it shall know of a bad end
            try:
                if lengths[row]:
                    turn.sound.put(sound[row][: lengths[row] * self._model.decoder.samples_per_frame].copy())
            except Exception as error:  # noqa: BLE001 - of who hears it
                turn.error, ends[row] = error, Finish.CANCELLED

    def _end(self, number: int, ends: dict[int, Finish]) -> None:
        """End rows of a group; the group goes with the last of them."""
        group, turns = self._groups[number]
        for row, finish in ends.items():
            turns[row].end(finish, turns[row].error)
        kept = [row for row in range(len(turns)) if row not in ends]
        if not kept:
            del self._groups[number]
        elif ends:
            group.keep(kept)
            self._groups[number] = group, [turns[row] for row in kept]


def _fit(turn: Speech, first: Speech) -> bool:
    """Whether a turn can be spoken in one group with another."""
    if turn.is_seeded or first.is_seeded:  # a device may round otherwise in company
        return False
    ours, theirs = turn.prompt, first.prompt
    is_alike = ours.layout.steering == theirs.layout.steering and turn.n_columns == first.n_columns
    return is_alike and ours.voice is theirs.voice
