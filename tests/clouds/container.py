"""The container of the stand-in: runs the calls that arrive on stdin, one JSON object a line, each in a thread."""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Callable
from typing import Any
from urllib.request import Request, urlopen

from afterwords.audio.wav import wav_header
from afterwords.errors import AfterwordsError
from afterwords.server.dispatch.worker import Work, Worker


def hosted() -> Callable[[dict[str, Any]], None]:
    """Return an app with the hosted dispatch form, written from its description alone."""
    worker = Worker()

    def synthesize_job(form: dict[str, Any]) -> None:
        result: dict[str, str | None] = {"wav_b64": None, "error": None}
        try:
            work = Work(
                text=form["text"],
                lang=form["lang"],
                backend=form["backend_name"],
                voice_id=form["voice_id"],
                speed=form.get("speed", 1),
                reference=base64.b64decode(form["ref_audio_b64"]),
                ref_text=form["ref_text"],
            )
            stream = worker.start(work)
            pcm = b"".join(stream)
            wav = wav_header(stream.sample_rate, n_frames=len(pcm) // 2) + pcm
            result["wav_b64"] = base64.b64encode(wav).decode()
        except AfterwordsError as error:
            result["error"] = error.message
        body = {"job_id": form["job_id"], "voice_id": form["voice_id"], "cache_key": form["cache_key"], **result}
        headers = {"Authorization": f"Bearer {form['callback_secret']}", "Content-Type": "application/json"}
        urlopen(Request(form["callback_url"], json.dumps(body).encode(), headers), timeout=60).close()

    return synthesize_job


KINDS = {"hosted": hosted}


def main() -> None:
    run = KINDS[sys.argv[1]]()
    lock = threading.Lock()

    def handle(call: dict[str, Any]) -> None:
        error = None
        try:
            run(call["input"])
        except Exception as failure:  # noqa: BLE001 - the edge reports it
            error = repr(failure)
        with lock:
            sys.stdout.write(json.dumps({"id": call["id"], "error": error}) + "\n")
            sys.stdout.flush()

    for line in sys.stdin:
        threading.Thread(target=handle, args=[json.loads(line)], daemon=True).start()


if __name__ == "__main__":
    main()
