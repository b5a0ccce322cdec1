"""Record from the microphone at a terminal, for `clone --record`; keys differ between Windows and POSIX."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from afterwords.cli import output
from afterwords.errors import AfterwordsError

if TYPE_CHECKING:
    from afterwords.audio.audio import Audio

MAX_S = 300.0
READ_ALOUD = (
    "When the sunlight strikes raindrops in the air, they act as a prism and form a rainbow. "
    "People look, but no one ever finds it. I am reading this for my own voice, and I agree to that."
)

if sys.platform == "win32":
    import msvcrt

    def discard_keys() -> None:
        """Discard keys typed so far: an earlier Enter must not end the recording."""
        while msvcrt.kbhit():
            msvcrt.getwch()

    def is_enter_pressed() -> bool:
        """Return whether Enter was pressed."""
        return msvcrt.kbhit() and msvcrt.getwch() in "\r\n"

else:
    import select
    import termios

    def discard_keys() -> None:
        """Discard keys typed so far: an earlier Enter must not end the recording."""
        termios.tcflush(sys.stdin, termios.TCIFLUSH)

    def is_enter_pressed() -> bool:
        """Return whether Enter was pressed: a terminal is readable once a line is complete."""
        if not select.select([sys.stdin], [], [], 0)[0]:
            return False
        sys.stdin.readline()
        return True


def record_aloud() -> Audio:
    """Record until Enter is pressed; Ctrl-C cancels."""
    from rich.live import Live

    from afterwords.audio.audio import record

    target = output.console()
    target.print(f"Read this aloud, then press Enter:\n\n  [bold]{READ_ALOUD}[/bold]\n")
    stop = Event()
    discard_keys()
    with Live(console=target, transient=True, refresh_per_second=10, redirect_stdout=False) as live:

        def show_level(elapsed_s: float, peak: float) -> None:
            live.update(f"[red]●[/red] {elapsed_s:5.1f} s  {'█' * round(40 * min(peak, 1)):<40}")
            if is_enter_pressed():
                stop.set()

        return record(stop=stop, max_duration_s=MAX_S, on_level=show_level)


@contextmanager
def keep_on_failure(recording: Audio, name: str) -> Iterator[None]:
    """Save the recording, and print where, if the block fails or is interrupted."""
    try:
        yield
    except BaseException:
        stem = re.sub(r"[^\w-]+", "-", name)[:60].strip("-") or "voice"
        for folder in (Path.cwd(), Path.home(), Path(tempfile.gettempdir())):
            names = (f"{stem}-recording{'' if number == 1 else f'-{number}'}.wav" for number in count(1))
            path = next(folder / name for name in names if not (folder / name).exists())
            try:
                recording.save(path)
            except AfterwordsError:
                continue
            output.note(f"Your recording is saved: {output.shown(str(path))}")
            break
        else:
            output.note("[red]Your recording could not be saved: no folder is writable.[/red]")
        raise
