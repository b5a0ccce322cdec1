"""The process that measures: an order on its standard input, lines of progress and the figures on its standard output.

Started as `python -m afterwords.bench.child` by `measuring`. It ends when its input does, so that it outlives nobody.
"""

from __future__ import annotations

import os
import threading
import traceback
from typing import BinaryIO

from afterwords.backends.base import Progress
from afterwords.bench.report import LOOK, Failure, Order, Told
from afterwords.bench.speaking import measure_backend, measure_server, prepare_voice
from afterwords.errors import AfterwordsError, SynthesisError
from afterwords.pipes import take_pipes


def main() -> None:
    """Measure what is ordered, and tell."""
    source, sink = take_pipes()
    order = Order.model_validate_json(source.readline())
    threading.Thread(target=_end_with, args=(source,), daemon=True).start()
    _send(sink, _measured(order, sink))
    os._exit(0)  # at once: what an engine has running would hold up an orderly end


def _end_with(source: BinaryIO) -> None:
    source.read()
    os._exit(1)


def _measured(order: Order, sink: BinaryIO) -> Told:
    def progress(fraction: float, step: str) -> None:
        _send(sink, Told(fraction=fraction, step=step))

    try:
        return _done(order, progress)
    except AfterwordsError as error:
        failed = error
        if isinstance(error, SynthesisError):
            error.hint = LOOK  # its own is for who says something
    except Exception as error:  # noqa: BLE001 - engines fail in any way, and what they say may hold the text
        failed = SynthesisError.for_backend(order.name, why=f"it raised {type(error).__name__}")
        failed.hint, failed.__cause__ = LOOK, error
    if os.environ.get("AFTERWORDS_DEBUG"):
        traceback.print_exception(failed)
    return Told(failure=Failure.of(failed))


def _done(order: Order, progress: Progress) -> Told:
    if order.backend is None:
        return Told(figures=measure_server(order, progress))
    if order.prepare_s is None and (prepare_s := prepare_voice(order, progress)) is not None:
        return Told(prepare_s=prepare_s)
    return Told(figures=measure_backend(order, progress))


def _send(sink: BinaryIO, told: Told) -> None:
    sink.write(told.model_dump_json().encode() + b"\n")
    sink.flush()


if __name__ == "__main__":
    main()
