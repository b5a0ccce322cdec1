"""`afterwords narrate`: speak a book into one audio file with chapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from afterwords.cli import output
from afterwords.cli.options import complete_voice
from afterwords.cli.say import (
    AsJson,
    Backend,
    Report,
    Speed,
    Srt,
    Verify,
    Vtt,
    note_faults,
)

if TYPE_CHECKING:
    from afterwords.narration.narrator import Narration

SHOWN_LEFT_OUT: Final = 20
BookFile = Annotated[Path, typer.Argument(help="Book: an .epub, .md, .html or .txt file.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="File to write: .m4b, .mp3, .opus, .flac or .wav. (default: BOOK.m4b)"),
]
Narrator = Annotated[
    str | None,
    typer.Option(
        "--voice",
        "-v",
        help="Narrator, by name or ID. (default: the default voice, or the only one)",
        autocompletion=complete_voice,
    ),
]
CastFile = Annotated[
    Path | None, typer.Option("--cast", help='TOML file with a voice for each character, such as ALICE = "anna".')
]
BookLang = Annotated[
    str | None, typer.Option("--lang", help="Language of the book, such as en. (default: the book's, or the voice's)")
]
BookSeed = Annotated[int, typer.Option("--seed", help="Random seed: the same seed gives the same speech.")]
Loudness = Annotated[float, typer.Option("--loudness", help="Loudness of each voice in LUFS, -35 to -12.")]
Cover = Annotated[Path | None, typer.Option("--cover", help="JPEG or PNG file. (default: the cover of an EPUB)")]
Outline = Annotated[
    bool, typer.Option("--dry-run", help="Speak nothing: print the chapters and their expected lengths.")
]


def narrate(
    book: BookFile,
    out: Out = None,
    voice: Narrator = None,
    cast: CastFile = None,
    lang: BookLang = None,
    backend: Backend = None,
    speed: Speed = 1.0,
    seed: BookSeed = 0,
    loudness: Loudness = -19.0,
    cover: Cover = None,
    srt: Srt = None,
    vtt: Vtt = None,
    verify: Verify = False,
    report: Report = None,
    dry_run: Outline = False,
    as_json: AsJson = False,
) -> None:
    """Speak a book into one audio file with chapters. After an interruption, run it again to go on."""
    from afterwords.narration.narrator import narrate as narrate_book
    from afterwords.narration.script import read_cast

    if report and not verify:
        raise output.UsageError("--report writes the result of --verify.", hint="add --verify, or remove --report.")
    characters = read_cast(cast) if cast else {}
    if dry_run:
        _print_outline(book, characters, speed, as_json=as_json)
        return
    path = out or book.with_suffix(".m4b")
    try:
        with output.progress_bar("reading") as progress:
            done = narrate_book(
                book,
                path,
                voice=voice,
                cast=characters,
                lang=lang,
                backend=backend,
                speed=speed,
                seed=seed,
                loudness=loudness,
                cover=cover,
                srt=srt,
                vtt=vtt,
                verify=verify,
                report=report,
                progress=progress,
            )
    except BaseException:
        parts = Path(f"{path.resolve()}.sentences")  # next to the file that a link names
        if kept := len(list(parts.glob("*.wav"))):
            which = "1 sentence is" if kept == 1 else f"{kept:,} sentences are"
            output.note(f"{which} kept in {output.shown(str(parts))}. Run it again to go on.")
        raise
    _print_result(done, as_json=as_json)
    if done.verification and (done.left_out or not done.verification.has_passed):
        raise typer.Exit(1)


def _print_result(done: Narration, *, as_json: bool) -> None:
    verification = note_faults(done.verification)
    if as_json:
        output.result_json(
            {
                "file": str(done.path),
                "duration_s": round(done.duration_s, 3),
                "chapters": [{"title": title, "start_s": start_s} for title, start_s in done.chapters],
                "voices": list(done.voices),
                "backends": list(done.backends),
                "sentences": done.n_sentences,
                "spoken": done.n_spoken,
                "left_out": list(done.left_out),
                "notices": list(done.notices),
                **verification,
            }
        )
    for notice in done.notices:
        output.note(f"  [yellow]![/yellow] {output.shown(notice)}")
    if done.left_out:
        n_left_out = len(done.left_out)
        which = (
            "1 sentence could not be spoken and is"
            if n_left_out == 1
            else f"{n_left_out:,} could not be spoken and are"
        )
        output.note(f"  [yellow]![/yellow] {which} left out:")
        for sentence in done.left_out[:SHOWN_LEFT_OUT]:
            output.note(f"    {output.shown(sentence)}")
    n_chapters = len(done.chapters)
    chapters = "1 chapter" if n_chapters == 1 else f"{n_chapters:,} chapters"
    sentences = "1 sentence" if done.n_sentences == 1 else f"{done.n_sentences:,} sentences"
    kept = f", {done.n_sentences - done.n_spoken:,} kept from before" if done.n_spoken < done.n_sentences else ""
    output.note(
        f"[bold green]✓[/bold green] {output.shown(str(done.path))}: {output.duration(done.duration_s)}, {chapters}, "
        f"{sentences}{kept} ({output.shown(', '.join(done.voices))})"
    )
    output.note_how_to_listen(str(done.path))
    output.note(f"Next: afterwords verify {output.quoted(str(done.path))}")


def _print_outline(book: Path, cast: dict[str, str], speed: float, *, as_json: bool) -> None:
    from afterwords import local
    from afterwords.models import SpeechOptions
    from afterwords.narration.book import read_book
    from afterwords.narration.script import write_script
    from afterwords.text import expected_speech_s

    SpeechOptions.check(speed=speed)
    found = read_book(book)
    sentences, tag_notices = write_script(found, cast, {voice.emotion for voice in local.voices() if voice.emotion})
    notices = [*found.notices, *tag_notices]
    lengths = [0.0] * len(found.chapters)
    for sentence in sentences:
        lengths[sentence.chapter] += sentence.pause_s / speed + expected_speech_s(sentence.text, speed=speed)
    if as_json:
        chapters = [
            {"title": chapter.title, "duration_s": round(length_s, 1)}
            for chapter, length_s in zip(found.chapters, lengths, strict=True)
        ]
        facts = {"title": found.title, "author": found.author, "lang": found.lang, "has_cover": found.cover is not None}
        totals = {"sentences": len(sentences), "duration_s": round(sum(lengths), 1), "notices": notices}
        output.result_json({**facts, "chapters": chapters, **totals})
        return
    rows = [
        (str(number), f"about {output.duration(length_s)}", chapter.title)
        for number, (chapter, length_s) in enumerate(zip(found.chapters, lengths, strict=True), 1)
    ]
    output.result_table(("#", "audio", "chapter"), [*rows, ("", f"about {output.duration(sum(lengths))}", "all")])
    for notice in notices:
        output.note(f"  [yellow]![/yellow] {output.shown(notice)}")
