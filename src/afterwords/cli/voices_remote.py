"""`afterwords voices … --remote`: the voices of a server. `voices` calls these where a server is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afterwords.cli import output
from afterwords.cli.remote import command, connect

if TYPE_CHECKING:
    from afterwords.models import Voice


def list_voices(profile: str | None, *, as_json: bool) -> None:
    """List all voices of a server, oldest first."""
    with output.waiting("asking the server"), connect(profile) as client:
        found = list(client.voices.list())
        url = client.base_url
    if as_json:
        output.result_json([_facts(voice) for voice in found])
    elif found:
        rows = [(v.name, v.lang, v.backend, f"{v.created_at:%Y-%m-%d}", v.voice_id) for v in found]
        output.result_table(("name", "lang", "backend", "made", "id"), rows)
    else:
        bring = command("push", "NAME", profile=profile)
        output.note(f"{output.shown(url)} has no voice yet. Bring one there: {output.shown(bring)}")


def show(name: str, profile: str | None, *, as_json: bool) -> None:
    """Show all that a server tells of a voice."""
    with output.waiting("asking the server"), connect(profile) as client:
        facts = _facts(client.voices.get(name))
    if as_json:
        output.result_json(facts)
    else:
        output.result_facts(facts)


def renamed(name: str, new: str, profile: str | None) -> Voice:
    """Call a voice of a server something else."""
    from afterwords.text import check_name

    new = check_name(new)
    with output.waiting("asking the server"), connect(profile) as client:
        return client.voices.update(name, name=new)


def remove(name: str, profile: str | None, *, is_meant: bool, as_json: bool) -> None:
    """Remove a voice of a server, and all that was made with it."""
    with connect(profile) as client:
        voice = client.voices.get(name)
        shown = f"{output.shown(voice.name)} ({output.shown(voice.voice_id)})"
        if not is_meant:
            output.confirm_removal(
                f"This removes {shown} from {output.shown(client.base_url)}, for good: "
                "its recording, its jobs and all that it has spoken."
            )
        client.voices.delete(voice)
    if as_json:
        output.result_json({"removed": voice.voice_id})
    output.note(f"[bold green]✓[/bold green] {shown} is gone.")


def _facts(voice: Voice) -> dict[str, object]:
    return voice.model_dump(mode="json", exclude_none=True)
