"""`afterwords voices`: what is in the library, or with --remote on a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import bundles, output
from afterwords.cli.help import HelpCommand, HelpGroup
from afterwords.cli.options import AsJson, Profile, Remote, complete_voice, is_remote

if TYPE_CHECKING:
    from afterwords.models import Voice

app = typer.Typer(
    cls=HelpGroup, help="List, show, rename, remove, export and import voices.", invoke_without_command=True
)

Name = Annotated[str, typer.Argument(help="Voice, by name or id.", autocompletion=complete_voice)]


@app.callback()
def voices(context: typer.Context, remote: Remote = False, profile: Profile = None) -> None:
    if context.invoked_subcommand is None:
        list_voices(remote=remote, profile=profile, as_json=False)
    elif is_remote(remote, profile):
        raise output.UsageError(
            "--remote and --profile go last here.",
            hint=f"afterwords voices {context.invoked_subcommand} … --remote.",
        )


@app.command("list", cls=HelpCommand)
def list_voices(remote: Remote = False, profile: Profile = None, as_json: AsJson = False) -> None:
    """List all voices."""
    if is_remote(remote, profile):
        from afterwords.cli import voices_remote

        voices_remote.list_voices(profile, as_json=as_json)
        return
    from afterwords.local import library

    shelf = library()
    found, damaged = shelf.scan()
    default = shelf.default()
    for error in damaged:
        output.note(f"[red]{output.shown(error.message)}[/red]\n  Fix: {output.shown(error.hint)}")
    if as_json:
        chosen = default.voice_id if default else None
        output.result_json([{**v.model_dump(mode="json"), "is_default": v.voice_id == chosen} for v in found])
    elif found:
        rows = [
            (
                f"{voice.name}{' *' if default and voice.voice_id == default.voice_id else ''}",
                voice.lang,
                voice.backend,
                (voice.reference and voice.reference.grade) or "-",
                f"{voice.reference.duration_s:.1f} s" if voice.reference else "-",
                voice.consent.kind.value if voice.consent else "not stated",
                f"{voice.created_at:%Y-%m-%d}",
            )
            for voice in found
        ]
        output.result_table(("name", "lang", "backend", "grade", "length", "consent", "made"), rows)
    elif not damaged:
        output.note("No voices yet. Make one: afterwords clone me.wav --name me (or try `afterwords demo`).")


@app.command(cls=HelpCommand)
def show(name: Name, remote: Remote = False, profile: Profile = None, as_json: AsJson = False) -> None:
    """Show what is known of a voice."""
    if is_remote(remote, profile):
        from afterwords.cli import voices_remote

        voices_remote.show(name, profile, as_json=as_json)
        return
    from afterwords.local import library, likeness
    from afterwords.provenance import verify_seal

    shelf = library()
    voice = shelf.get(name)
    shelf.reference(voice)
    original = shelf.original_path(voice)
    facts = {
        **voice.model_dump(mode="json"),
        "original": str(original) if original else None,
        "is_sealed": verify_seal(voice),
        "likeness": likeness(voice),
    }
    if as_json:
        output.result_json(facts)
        return
    output.result_facts(_summary(voice, original, is_sealed=verify_seal(voice), likeness=likeness(voice)))


def _summary(
    voice: Voice, original: Path | None, *, is_sealed: bool, likeness: Mapping[str, float | str]
) -> dict[str, object]:
    """What a person wants to know of a voice; hashes and the rest are for --json."""
    reference, consent = voice.reference, voice.consent
    facts: dict[str, object] = {
        "name": voice.name,
        "language": voice.lang,
        "backend": voice.backend,
        "grade": reference.grade if reference else None,
        "recording": f"{reference.duration_s:.1f} s at {reference.sample_rate:,} Hz" if reference else None,
        "original": original,
        "transcript": voice.ref_text,
        "consent": f"{consent.kind.value}, stated {consent.stated_at:%Y-%m-%d}" if consent else "not stated",
        "seal": "intact" if is_sealed else "missing, or the voice was changed since",
        "made": f"{voice.created_at:%Y-%m-%d %H:%M} UTC",
        "family": voice.family,
        "id": voice.voice_id,
    }
    if "similarity" in likeness:
        facts["likeness"] = f"{likeness['similarity']:.2f} (nearest stock voice {likeness['baseline']:.2f})"
    return facts


@app.command(cls=HelpCommand)
def rename(
    name: Name,
    new: Annotated[str, typer.Argument(help="The new name.")],
    remote: Remote = False,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Rename a voice."""
    if is_remote(remote, profile):
        from afterwords.cli import voices_remote

        _tell(voices_remote.renamed(name, new, profile), as_json=as_json)
        return
    from afterwords.local import library

    _tell(library().rename(name, new), as_json=as_json)


@app.command(cls=HelpCommand)
def rm(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    remote: Remote = False,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Remove a voice with its recordings, its transcript and everything made of them."""
    if is_remote(remote, profile):
        from afterwords.cli import voices_remote

        voices_remote.remove(name, profile, is_meant=yes, as_json=as_json)
        return
    from afterwords.errors import CorruptVoiceError
    from afterwords.local import library

    shelf = library()
    try:
        shown = output.shown(shelf.get(name).name)
    except CorruptVoiceError:  # goes by its identifier
        shown = f"the damaged voice {output.shown(name)}"
    if not yes:
        output.confirm_removal(f"This removes {shown} with its recordings, for good.")
    shelf.remove(name)
    if as_json:
        output.result_json({"removed": name})
    output.note(f"[bold green]✓[/bold green] {shown} is gone.")


@app.command(cls=HelpCommand)
def default(
    name: Annotated[str | None, typer.Argument(help="Voice, by name or id.", autocompletion=complete_voice)] = None,
    as_json: AsJson = False,
) -> None:
    """Show or set the voice that speaks when none is named."""
    from afterwords.local import library

    shelf = library()
    voice = shelf.set_default(name) if name is not None else shelf.default()
    if voice is not None:
        _tell(voice, as_json=as_json)
        return
    if as_json:
        output.result_json(None)
    output.note("No default is chosen: afterwords voices default NAME")


app.command("export", cls=HelpCommand)(bundles.export)
app.command("import", cls=HelpCommand)(bundles.import_)


def _tell(voice: Voice, *, as_json: bool) -> None:
    if as_json:
        output.result_json(voice.model_dump(mode="json"))
    else:
        output.result(output.plain(voice.name))
