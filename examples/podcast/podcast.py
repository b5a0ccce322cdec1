"""Read an article aloud: each paragraph becomes a file, and existing files are kept.

Run it with AFTERWORDS_BASE_URL and AFTERWORDS_API_KEY set, or after `afterwords login`:

    python podcast.py article.txt --voice me
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import afterwords as aw


def paragraphs_of(article: str) -> list[str]:
    """Split a text into its paragraphs, which empty lines separate."""
    return [" ".join(block.split()) for block in article.split("\n\n") if block.strip()]


def narrate(client: aw.Client, paragraphs: Iterable[str], *, voice: aw.Voice | str, folder: Path) -> list[Path]:
    """Read paragraphs aloud into `001.wav`, `002.wav` and so on; existing files are kept.

    Raises:
        afterwords.AfterwordsError: A paragraph could not be spoken. Earlier files are complete: call again to continue.
    """
    folder.mkdir(parents=True, exist_ok=True)
    episodes = []
    for number, paragraph in enumerate(paragraphs, start=1):
        episode = folder / f"{number:03}.wav"
        if not episode.exists():
            client.say(paragraph, voice=voice).save(episode)  # writes the whole file or none
        episodes.append(episode)
    return episodes


def main(arguments: Sequence[str] | None = None) -> int:
    """Narrate a file; return the exit code."""
    parser = argparse.ArgumentParser(description="Read an article aloud.")
    parser.add_argument("article", type=Path)
    parser.add_argument("--voice", required=True, help="name of a voice on the server")
    parser.add_argument("--folder", type=Path, default=Path("episodes"))
    options = parser.parse_args(arguments)
    try:
        with aw.Client() as client:
            paragraphs = paragraphs_of(options.article.read_text("utf-8"))
            episodes = narrate(client, paragraphs, voice=options.voice, folder=options.folder)
    except aw.AfterwordsError as error:
        print(f"{error}\n  Fix: {error.hint}", file=sys.stderr)
        return error.exit_code
    print(*episodes, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
