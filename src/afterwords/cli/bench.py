"""`afterwords bench`: the same sentence on every backend that can run here, and on a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from afterwords.cli import output
from afterwords.cli.options import Profile, complete_voice, is_remote
from afterwords.cli.remote import command

if TYPE_CHECKING:
    from afterwords.bench.report import Order, Row
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
ALWAYS = {"first audio ms", "RTF", "audio s", "similarity", "memory MiB"}


def bench(
    voice: Annotated[
        str | None, typer.Argument(help="Voice, by name or id. (default: as `say`)", autocompletion=complete_voice)
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="Sentence to speak. (default: one in the voice's language)")
    ] = None,
    lang: Annotated[str | None, typer.Option("--lang", help="Language of the sentence.")] = None,
    backend: Annotated[
        list[str] | None, typer.Option("--backend", help="Backend to measure; may be given several times.")
    ] = None,
    skip_slow: Annotated[bool, typer.Option("--skip-slow", help="Leave out backends that take minutes here.")] = False,
    remote: Annotated[bool, typer.Option("--remote", help="Also measure a server.")] = False,
    profile: Profile = None,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Seconds for each backend. (default: 600)")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure the speed, likeness and memory of each backend on this machine."""
    from afterwords import local
    from afterwords.bench.report import Order
    from afterwords.bench.sentences import SENTENCES
    from afterwords.text import check_text, normalise_lang

    timeout_s = _timeout_s(timeout)
    words = check_text(text) if text is not None else None
    who = local.library().choose(voice)
    lang = normalise_lang(lang or who.lang)
    url = _server(profile) if is_remote(remote, profile) else None
    sentence = Order(voice_id=who.voice_id, text=words or SENTENCES[lang], lang=lang)
    orders = _orders_here(sentence, backend or [], skips_slow=skip_slow, has_server=url is not None)
    if url is not None:
        orders.append(sentence.model_copy(update={"server": url, "profile": profile}))
    else:
        _tell_of_server(who)
    rows = _measured(orders, timeout_s)
    if as_json:
        output.result_json([{**row.facts(), "voice": who.name, "voice_id": who.voice_id, "lang": lang} for row in rows])
    else:
        _table(rows)
    _explain(rows, len(sentence.text))
    failures = [row.failure for row in rows if row.failure]
    if len(failures) == len(rows):
        raise typer.Exit(failures[0].exit_code)


def _timeout_s(timeout: float | None) -> float:
    from afterwords.bench.measuring import TIMEOUT_MAX_S, TIMEOUT_S
    from afterwords.errors import InvalidOptionError

    timeout_s = TIMEOUT_S if timeout is None else timeout
    if not 0 < timeout_s <= TIMEOUT_MAX_S:
        allowed = f"a number of seconds, more than 0 and at most {TIMEOUT_MAX_S:.0f}"
        raise InvalidOptionError.for_option("timeout", value=timeout_s, allowed=allowed)
    return timeout_s


def _server(profile: str | None) -> str:
    """The server to send the sentence to.

    Raises:
        UnauthorizedError: there is no key for it.
    """
    from afterwords.client.profiles import find_access
    from afterwords.errors import UnauthorizedError

    access = find_access(profile=profile)
    if access.api_key is None:
        raise UnauthorizedError.not_logged_in(access.base_url)
    return access.base_url


def _orders_here(sentence: Order, names: Sequence[str], *, skips_slow: bool, has_server: bool) -> list[Order]:
    """What is measured on this machine, one after another; who takes no part is told.

    Raises:
        UnavailableError, UnsupportedLangError: nothing here can speak it, and no server is asked.
    """
    from afterwords.backends import registry
    from afterwords.bench.choice import choose

    choice = choose(names, lang=sentence.lang, skips_slow=skips_slow)
    if not choice.backends and not has_server:
        registry.choose(lang=sentence.lang)  # which says why, and what would mend it
        raise output.UsageError("Nothing is left to measure.", hint="leave --skip-slow away.")
    for name, why in choice.left_out.items():
        output.note(f"Left out: {output.shown(name)}, which {why}.")
    for slow in choice.backends:
        if slow.is_slow:
            output.note(f"{output.shown(slow.name)} is slow here and may take minutes; --skip-slow leaves it out.")
    return [sentence.model_copy(update={"backend": backend.name}) for backend in choice.backends]


def _measured(orders: Sequence[Order], timeout_s: float) -> list[Row]:
    from afterwords.bench.measuring import measure

    rows = []
    with output.progress_bar() as bar:
        for number, order in enumerate(orders):

            def progress(fraction: float, step: str, number: int = number, name: str = order.name) -> None:
                bar((number + fraction) / len(orders), f"{name}: {step}")

            progress(0.0, "starting")
            rows.append(measure(order, timeout_s=timeout_s, progress=progress))
    return rows


# -- what was measured ----------------------------------------------------------------------------------------


def _table(rows: Sequence[Row]) -> None:
    """A row each; columns that nobody has a figure for are left away."""
    facts = [row.facts() for row in rows]
    shown = {
        head: key for head, key in COLUMNS.items() if head in ALWAYS or any(fact[key] is not None for fact in facts)
    }
    cells = [(_name(row), *(_cell(fact, key) for key in shown.values())) for row, fact in zip(rows, facts, strict=True)]
    output.result_table(("backend", *shown), cells)


def _name(row: Row) -> str:
    return " at ".join(filter(None, (row.backend, row.server)))


def _cell(facts: dict[str, Any], key: str) -> str:
    value = facts[key]
    if value is None:
        return "" if key == "error" else "-"
    return value if isinstance(value, str) else f"{value:.{DIGITS.get(key, 2)}f}"


def _explain(rows: Sequence[Row], n_characters: int) -> None:
    """Say how to read the figures, and how to mend what failed."""
    from afterwords.bench.report import N_RUNS

    measured = [(row, row.figures) for row in rows if row.figures]
    if measured:
        output.note(
            f"Medians of {N_RUNS} utterances after one to warm up. First audio and RTF: less is better. "
            "RTF: seconds of work a second of speech, below 1 is faster than speech."
        )
    if judges := {figures.similarity_by for _, figures in measured if figures.similarity_by}:
        output.note(f"Similarity: cosine of {judges.pop()} speaker embeddings of speech and reference, 1 is the same.")
    for row, figures in measured:
        if figures.similarity_note:
            output.note(f"  {output.shown(_name(row))}: {output.shown(figures.similarity_note)}")
        if row.server:
            output.note(
                f"  {output.shown(_name(row))}: as heard from here, network included, and never from its cache; "
                f"it counts {(1 + N_RUNS) * n_characters} characters."
            )
    for row in rows:
        if row.failure:
            output.note(f"[bold red]✗[/bold red] {output.shown(_name(row))}: {output.shown(row.failure.reason)}")
            output.note(f"  [bold]Fix:[/bold] {output.shown(row.failure.fix)}")


def _tell_of_server(voice: Voice) -> None:
    """Where a server is set up, say how to include it; its key is not looked for, since a keyring may ask."""
    import os

    from afterwords.client.profiles import Profiles, check_url
    from afterwords.config import load_config
    from afterwords.errors import AfterwordsError

    try:
        chosen = Profiles(load_config().home).current(os.environ.get("AFTERWORDS_PROFILE") or None)
        url = os.environ.get("AFTERWORDS_BASE_URL") or (chosen.url if chosen else None)
        if url is None:
            return
        told = output.shown(check_url(url))  # what is none may hold a secret, and is not shown
    except AfterwordsError:  # nobody asked for a server
        return
    again = output.shown(command("bench", voice.name, "--remote", profile=None))
    output.note(f"{told} is not asked. To send it the sentence, too: {again}")
