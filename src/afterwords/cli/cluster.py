"""`afterwords cluster`: the engines that run as replicas in a Ray cluster."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from afterwords.cli import output
from afterwords.cli.help import HelpCommand, HelpGroup, examples
from afterwords.cli.options import AsJson
from afterwords.cli.serve import require_server

cluster = typer.Typer(cls=HelpGroup, no_args_is_help=True)

NOT_READY = 8
Address = Annotated[
    str | None,
    typer.Option(help="Host and port of the head. (default: AFTERWORDS_RAY_ADDRESS, or this machine's cluster)"),
]


@cluster.command(
    cls=HelpCommand,
    epilog=examples("afterwords cluster deploy --backend qwen3-1.7b --gpus 1 --max 4"),
)
def deploy(
    backend: Annotated[str, typer.Option(help="The backend to run.")],
    address: Address = None,
    minimum: Annotated[int, typer.Option("--min", min=0, help="Replicas that always run.")] = 1,
    maximum: Annotated[
        int | None, typer.Option("--max", min=1, help="Replicas when many jobs wait. (default: --min)")
    ] = None,
    cpus: Annotated[float, typer.Option(min=0.1, help="CPUs that each replica reserves.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs that each replica reserves; may be a fraction.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Run a backend in a Ray cluster, or change how many replicas it has."""
    maximum = max(1, minimum) if maximum is None else maximum
    if maximum < minimum:
        raise output.UsageError("--max is less than --min.")
    tools = _connect(address)
    with output.waiting("starting replicas"):
        found = tools.deploy(backend, min_replicas=minimum, max_replicas=maximum, num_cpus=cpus, num_gpus=gpus)
    if as_json:
        output.result_json(found)
        return
    if found["is_slow"]:
        output.note("[bold yellow]Warning:[/bold yellow] on these nodes it is slower than real time; see --gpus.")
    output.result(f"{backend}: ready, {found['max_concurrent']} utterances at once per replica")
    output.note("[dim]Next: AFTERWORDS_DISPATCHER=ray afterwords serve[/dim]")


@cluster.command(cls=HelpCommand)
def status(address: Address = None, as_json: AsJson = False) -> None:
    """Show the nodes and replicas of a Ray cluster. The exit code is 8 if a backend is not ready."""
    found = _connect(address).status()
    if as_json:
        output.result_json(found)
    else:
        nodes = [
            (node["address"], "alive" if node["is_alive"] else "dead", f"{node['cpus']:g}", f"{node['gpus']:g}")
            for node in found["nodes"]
        ]
        output.result_table(("node", "state", "cpus", "gpus"), nodes)
        backends = [
            (each["backend"], each["status"], ", ".join(f"{n} {state}" for state, n in each["replicas"].items()) or "-")
            for each in found["backends"]
        ]
        if backends:
            output.result_table(("backend", "state", "replicas"), backends)
        else:
            output.note("No backend runs there. Start one: afterwords cluster deploy --backend …")
    if not all(each["status"] == "running" for each in found["backends"]):
        raise typer.Exit(NOT_READY)


@cluster.command(cls=HelpCommand)
def down(
    backend: Annotated[str | None, typer.Option(help="The backend to stop. (default: all)")] = None,
    address: Address = None,
) -> None:
    """Stop the replicas of a Ray cluster. Their jobs wait for others; the nodes go on running."""
    removed = _connect(address).remove(backend)
    output.note(f"Stopped: {', '.join(removed)}." if removed else "Nothing runs there.")


def _connect(address: str | None) -> Any:
    """Connect to the cluster, and return the module that manages it."""
    require_server("A Ray cluster")
    from importlib.util import find_spec

    from afterwords.errors import MissingExtraError

    if find_spec("ray") is None:
        raise MissingExtraError.for_extra("ray", purpose="A Ray cluster")
    from afterwords.server.dispatch.ray import cluster as tools
    from afterwords.server.settings import load_settings

    tools.connect(address or load_settings().ray_address)
    return tools
