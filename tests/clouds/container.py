"""The container of the stand-in: runs the calls that arrive on stdin, one JSON object a line, each in a thread."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
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
                is_fast=os.environ.get("AFTERWORDS_PREPARE") == "fast",
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


def deployed(service: str, name: str, *options: str) -> Any:
    """Return the program that `afterwords deploy` writes, as a module."""
    folder = Path(os.environ["AFTERWORDS_HOME"]) / "deployed"
    if not folder.exists():
        out = folder if service == "runpod" else folder / name
        command = ["deploy", service, "--backend", "tone", "--out", str(out), *options]
        subprocess.run([sys.executable, "-m", "afterwords", *command], check=True, capture_output=True)
    spec = spec_from_file_location(f"deployed_{service}", folder / name)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def runpod() -> Callable[[dict[str, Any]], object]:
    """Return the handler that `afterwords deploy runpod` writes."""
    handler = deployed("runpod", "handler.py").load()
    return lambda given: asyncio.run(handler({"input": given}))


def modal() -> Callable[[dict[str, Any]], object]:
    """Return the method of the app that `afterwords deploy modal` writes."""
    from modal._utils.async_utils import synchronizer

    speaker = deployed("modal", "app.py", "--gpu", "none", "--write-only").Speaker()
    synchronizer._translate_in(speaker)._enter()  # type: ignore[no-untyped-call] # loads the model
    return lambda given: asyncio.run(speaker.run.local(given))


KINDS = {"hosted": hosted, "runpod": runpod, "modal": modal}


def main() -> None:
    run = KINDS[sys.argv[1]]()
    lock = threading.Lock()

    def handle(call: dict[str, Any]) -> None:
        error = None
        try:
            run(call["input"])
        except Exception as failure:  # noqa: BLE001 - the edge reports it
            error = repr(failure)
            sys.stderr.write(f"{error}\n")
        with lock:
            sys.stdout.write(json.dumps({"id": call["id"], "error": error}) + "\n")
            sys.stdout.flush()

    for line in sys.stdin:
        threading.Thread(target=handle, args=[json.loads(line)], daemon=True).start()


if __name__ == "__main__":
    main()
