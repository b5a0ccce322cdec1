"""Make the blocking client of the one that is awaited, so that there is one text and two clients: `make client`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

CLIENT: Final = Path(__file__).parents[1] / "src" / "afterwords" / "client"
FILES: Final = {"client.py": "client.py", "jobs.py": "jobs.py"}
DOCSTRINGS: Final = {
    "sync.py": """`Client`: a server's voices from any program.

    with afterwords.Client("https://voices.example.com", api_key="aw_...") as client:
        client.say("Hello", voice="me").save("hello.wav")

Made from `aio` by `make client`: change that, and run it again.
""",
    "sync_speech.py": "Jobs of a server, and speech while it is made. Made from `aio_speech` by `make client`.",
}
WORDS: Final = (
    (r"await asyncio\.to_thread\(([\w.]+), ", r"\1("),
    (r"await asyncio\.sleep\(", "time.sleep("),
    (r"import asyncio\n", "import time\n"),
    (r"\basync (def|with|for) ", r"\1 "),
    (r"\bawait ", ""),
    (r"\bAsync(?=[A-Z])", ""),
    (r"(?<=httpx\.)BaseTransport\b", "BaseTransport"),
    (r"\b__a(enter|exit|iter)__", r"__\1__"),
    (r"\banext\(", "next("),
    (r"\baiter_bytes\(", "iter_bytes("),
    (r"\baclose\(", "close("),
    (r"client\.aio(\w*) import", r"client.sync\1 import"),
    (r"for item in found\.items:\n\s+yield item", "yield from found.items"),
    (r"A server, to be awaited\.", "A server. Threads may share it."),
    (r"`async with`", "`with`"),
)
"""What differs, as patterns that are applied in this order."""


def made(name: str) -> str:
    """The blocking twin of a file."""
    text = (CLIENT / name).read_text("utf-8")
    for pattern, replacement in WORDS:
        text = re.sub(pattern, replacement, text)
    text = re.sub(r'\A""".*?"""', lambda _: f'"""{DOCSTRINGS[FILES[name]]}"""', text, count=1, flags=re.S)
    if "time." not in text:
        text = text.replace("import time\n", "")
    return _tidied(text)


def _tidied(text: str) -> str:
    for command in (["check", "--quiet", "--fix", "--select", "I,F401"], ["format", "--quiet"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(CLIENT / "made.py"), "-"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    for source, target in FILES.items():
        (CLIENT / target).write_text(made(source), "utf-8")
