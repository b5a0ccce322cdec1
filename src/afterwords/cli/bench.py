"""`afterwords bench`: the same sentence on every backend that can run here, and on a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output
from afterwords.cli.options import AsJson, Profile, complete_voice, is_remote
from afterwords.cli.remote import command

if TYPE_CHECKING:
    from afterwords.bench.measurement import BenchResult
    from afterwords.models import Voice

COLUMNS = {
    "first audio ms": "first_audio_ms",
    "RTF": "real_time_factor",
    "audio s": "audio_s",
    "similarity": "similarity",
    "memory MiB": "memory_mib",
    "GPU MiB": "device_memory_mib",
    "load s": "load_s",
    "prepare s": "prepare_s",
    "error": "error",
}
DIGITS = {"first_audio_ms": 0, "memory_mib": 0, "device_memory_mib": 0, "load_s": 1, "prepare_s": 1, "similarity": 3}
ALWAYS_SHOWN = {"first audio ms", "RTF", "audio s", "similarity", "memory MiB"}


def bench(
    voice: Annotated[
        str | None,
        typer.Argument(help="Voice, by name or id. (default: the voice of `say`)", autocompletion=complete_voice),
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="Sentence to speak. (default: one in the voice's language)")
    ] = None,
    lang: Annotated[str | None, typer.Option("--lang", help="Language of the sentence.")] = None,
    backend: Annotated[
        list[str] | None, typer.Option("--backend", help="Backend to measure; may be given several times.")
    ] = None,
    skip_slow: Annotated[bool, typer.Option("--skip-slow", help="Skip backends that take minutes here.")] = False,
    remote: Annotated[bool, typer.Option("--remote", help="Also measure a server.")] = False,
    profile: Profile = None,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Seconds for each backend. (default: 600)")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the speed, similarity and memory of each backend on this machine."""
    from afterwords import local
    from afterwords.bench.measurement import TIMEOUT_MAX_S, TIMEOUT_S
    from afterwords.bench.sentences import SENTENCES
    from afterwords.client.profiles import find_access
    from afterwords.errors import InvalidOptionError, UnauthorizedError
    from afterwords.text import check_text, normalize_lang

    timeout_s = TIMEOUT_S if timeout is None else timeout
    if not 0 < timeout_s <= TIMEOUT_MAX_S:
        allowed = f"a number of seconds, more than 0 and at most {TIMEOUT_MAX_S:.0f}"
        raise InvalidOptionError.for_option("timeout", value=timeout_s, allowed=allowed)
    text = check_text(text) if text is not None else None
    chosen = local.library().choose(voice)
    lang = normalize_lang(lang or chosen.lang)
    server = None
    if is_remote(remote, profile):
        access = find_access(profile=profile)
        if access.api_key is None:
            raise UnauthorizedError.not_logged_in(access.base_url)
        server = access.base_url
    text = text or SENTENCES[lang]
    backends = _choose_backends(backend or [], lang=lang, skips_slow=skip_slow, has_server=server is not None)
    if server is None:
        _mention_server(chosen)
    rows = _measure(text, chosen, lang, backends, server=server, profile=profile, timeout_s=timeout_s)
    if as_json:
        voice_fields = {"voice": chosen.name, "voice_id": chosen.voice_id, "lang": lang}
        output.result_json([{**asdict(row), **voice_fields} for row in rows])
    _print_results(rows, len(text), has_table=not as_json)
    if all(row.error for row in rows):
        raise typer.Exit(rows[0].exit_code or 1)


def _choose_backends(names: Sequence[str], *, lang: str, skips_slow: bool, has_server: bool) -> list[str]:
    """Return the backends to measure, and print which are skipped.

    Raises:
        UnavailableError, UnsupportedLangError: No backend here can speak the sentence, and no server is measured.
    """
    from afterwords.backends import registry
    from afterwords.bench.measurement import choose_backends

    backends, skipped = choose_backends(names, lang=lang, skips_slow=skips_slow)
    if not backends and not has_server:
        registry.choose(lang=lang)  # raises the reason and its fix
        raise output.UsageError("There is nothing left to measure.", hint="omit --skip-slow.")
    for name, reason in skipped.items():
        output.note(f"Skipped: {output.shown(name)}, which {reason}.")
    for backend in backends:
        if backend.is_slow:
            output.note(f"{output.shown(backend.name)} is slow here and may take minutes; --skip-slow skips it.")
    return [backend.name for backend in backends]


def _measure(
    text: str,
    voice: Voice,
    lang: str,
    backends: Sequence[str],
    *,
    server: str | None,
    profile: str | None,
    timeout_s: float,
) -> list[BenchResult]:
    from afterwords.bench.measurement import measure_backend, measure_server

    tasks = {
        name: partial(measure_backend, text, voice_id=voice.voice_id, lang=lang, backend=name, timeout_s=timeout_s)
        for name in backends
    }
    if server is not None:
        tasks[server] = partial(
            measure_server,
            text,
            voice_id=voice.voice_id,
            lang=lang,
            server=server,
            profile=profile,
            timeout_s=timeout_s,
        )
    rows = []
    with output.progress_bar() as bar:
        for number, (name, measure) in enumerate(tasks.items()):

            def progress(fraction: float, step: str, number: int = number, name: str = name) -> None:
                bar((number + fraction) / len(tasks), f"{name}: {step}")

            progress(0.0, "starting")
            rows.append(measure(progress=progress))
    return rows


# -- results --------------------------------------------------------------------------------------------------


def _name(row: BenchResult) -> str:
    return " at ".join(filter(None, (row.backend, row.server)))


def _print_results(rows: Sequence[BenchResult], n_characters: int, *, has_table: bool) -> None:
    """Print a line for each row, how to read the figures, and how to fix what failed."""
    from afterwords.bench.measurement import N_RUNS

    shown = {  # without the columns that are empty everywhere
        head: key
        for head, key in COLUMNS.items()
        if head in ALWAYS_SHOWN or any(getattr(row, key) is not None for row in rows)
    }

    def format_cell(value: float | str | None, key: str) -> str:
        if value is None:
            return "" if key == "error" else "-"
        return value if isinstance(value, str) else f"{value:.{DIGITS.get(key, 2)}f}"

    cells = [(_name(row), *(format_cell(getattr(row, key), key) for key in shown.values())) for row in rows]
    if has_table:
        output.result_table(("backend", *shown), cells)
    measured = [row for row in rows if not row.error]
    if measured:
        output.note(
            f"Medians of {N_RUNS} utterances after one to warm up. First audio and RTF: less is better. "
            "RTF: seconds of work for a second of speech, below 1 is faster than speech."
        )
    if encoders := {row.similarity_by for row in measured if row.similarity_by}:
        output.note(
            f"Similarity: cosine of {encoders.pop()} speaker embeddings of speech and reference, 1 is identical."
        )
    for row in measured:
        if row.similarity_note:
            output.note(f"  {output.shown(_name(row))}: {output.shown(row.similarity_note)}")
        if row.server:
            output.note(
                f"  {output.shown(_name(row))}: network included, never from the server's cache; "
                f"it counts {(1 + N_RUNS) * n_characters} characters."
            )
    for row in rows:
        if row.error:
            output.note(f"[bold red]✗[/bold red] {output.shown(_name(row))}: {output.shown(row.reason or '')}")
            output.note(f"  [bold]Fix:[/bold] {output.shown(row.fix or '')}")


def _mention_server(voice: Voice) -> None:
    """If a server is configured, print how to measure it. Its key is not read, since a keyring may ask the user."""
    import os

    from afterwords.client.profiles import Profiles, check_url
    from afterwords.config import load_config
    from afterwords.errors import AfterwordsError

    try:
        current = Profiles(load_config().home).current(os.environ.get("AFTERWORDS_PROFILE") or None)
        url = os.environ.get("AFTERWORDS_BASE_URL") or (current.url if current else None)
        if url is None:
            return
        shown = output.shown(check_url(url))  # an invalid URL may hold a secret, and is not printed
    except AfterwordsError:  # a broken login does not matter here
        return
    again = output.shown(command("bench", voice.name, "--remote", profile=None))
    output.note(f"{shown} is not measured. To include it: {again}")
