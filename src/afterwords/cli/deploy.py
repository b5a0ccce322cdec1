"""`afterwords deploy`: write the program with which a service runs the jobs of a server, and deploy it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from afterwords.cli import output
from afterwords.cli.help import HelpCommand, HelpGroup, examples

deploy = typer.Typer(cls=HelpGroup, no_args_is_help=True)

Backend = Annotated[str, typer.Option(help="The backend that it runs.")]
Package = Annotated[
    str | None,
    typer.Option(help="What to install there: a requirement, or a wheel. (default: this version of afterwords)"),
]


@deploy.command(cls=HelpCommand, epilog=examples("afterwords deploy modal", "afterwords deploy modal --gpu H100"))
def modal(
    backend: Backend = "qwen3-1.7b",
    gpu: Annotated[str, typer.Option(help="A GPU of Modal, such as T4, L4, A10 or H100; or none.")] = "L4",
    gpu_snapshot: Annotated[
        bool, typer.Option("--gpu-snapshot", help="Start containers from snapshots of GPU memory (alpha at Modal).")
    ] = False,
    region: Annotated[str | None, typer.Option(help="Where it runs, such as eu. (default: anywhere)")] = None,
    max_containers: Annotated[int, typer.Option(min=1, help="Most containers at once.")] = 1,
    scaledown: Annotated[int, typer.Option(min=2, max=1200, help="Seconds that an idle container waits.")] = 60,
    package: Package = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("afterwords_modal.py"),
    write_only: Annotated[bool, typer.Option("--write-only", help="Write the file, and deploy nothing.")] = False,
) -> None:
    """Write an app for Modal, put the model into a volume, and deploy the app."""
    if not write_only and find_spec("modal") is None:
        from afterwords.errors import MissingExtraError

        raise MissingExtraError.for_extra("modal", purpose="Deploying")
    commands = [("modal", "run", f"{out}::download")] if backend.startswith("qwen3") else []
    commands.append(("modal", "deploy", str(out)))
    constants = {
        "BACKEND": backend,
        "PACKAGE": package or _package(backend),
        "GPU": None if gpu.lower() == "none" else gpu,
        "GPU_SNAPSHOT": gpu_snapshot,
        "REGION": region,
        "MAX_CONTAINERS": max_containers,
        "SCALEDOWN_S": scaledown,
        "MAX_INPUTS": _max_inputs(backend),
    }
    _write("modal_app.py", out, constants)
    steps = "".join(f"{shlex.join(command)}, then " for command in commands)
    for command in () if write_only else commands:
        if subprocess.run([sys.executable, "-m", *command], check=False).returncode:
            from afterwords.errors import RemoteError

            hint = f"see its output above; log in with modal setup; then: {steps.removesuffix(', then ')}"
            raise RemoteError(f"{' '.join(command[:2])} failed.", hint=hint)
    output.note(f"Next: {output.shown(steps) if write_only else ''}on the server:")
    output.result(f'AFTERWORDS_DISPATCHERS="{backend}=modal" afterwords serve')


@deploy.command(cls=HelpCommand, epilog=examples("afterwords deploy runpod --backend qwen3-0.6b"))
def runpod(
    backend: Backend = "qwen3-1.7b",
    package: Package = None,
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("afterwords_runpod"),
) -> None:
    """Write a handler and a Dockerfile for a serverless endpoint of RunPod."""
    requirement = package or _package(backend, "runpod")
    wheel = Path(requirement.partition("[")[0])
    is_wheel = wheel.suffix == ".whl" and "://" not in requirement
    if is_wheel and not wheel.is_file():
        raise output.UsageError(
            f"{wheel} does not exist.", hint="give --package the path of a wheel, or a requirement."
        )
    _check_absent(out / "Dockerfile")
    _write("runpod_handler.py", out / "handler.py", {"BACKEND": backend, "MAX_INPUTS": _max_inputs(backend)})
    copied = ""
    if is_wheel:
        if not (out / wheel.name).exists():
            shutil.copy(wheel, out)
        copied = f"COPY {wheel.name} /tmp/\n"
        requirement = f"/tmp/{wheel.name}{requirement.removeprefix(str(wheel))}"
    download = f"RUN afterwords models pull {backend}\n" if backend.startswith("qwen3") else ""
    (out / "Dockerfile").write_text(
        f'FROM python:3.12-slim\n{copied}RUN pip install --no-cache-dir "{requirement}"\n{download}'
        'COPY handler.py /\nCMD ["python", "-u", "/handler.py"]\n',
        "utf-8",
    )
    output.note("Next: build and push the image, create an endpoint with it in RunPod's console, and on the server:")
    output.result(
        f'AFTERWORDS_DISPATCHERS="{backend}=runpod" AFTERWORDS_RUNPOD_URL=https://api.runpod.ai/v2/ENDPOINT '
        "AFTERWORDS_RUNPOD_API_KEY=… afterwords serve"
    )


def _write(name: str, out: Path, constants: Mapping[str, object]) -> None:
    """Write a program of the package with other values for its constants."""
    import json

    _check_absent(out)
    text = (files("afterwords") / "data" / "deploy" / name).read_text("utf-8")
    for constant, value in constants.items():
        literal = (json.dumps(value) if isinstance(value, str) else repr(value)).replace("\\", r"\\")
        text, n_found = re.subn(rf"(?m)^({constant}\b.*?) = (.*?)(?=$|  #)", rf"\1 = {literal}", text)
        assert n_found == 1, constant
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, "utf-8")


def _check_absent(out: Path) -> None:
    if out.exists():
        raise output.UsageError(f"{out} exists already.", hint="deploy it as it is, remove it, or give another --out.")


def _max_inputs(backend: str) -> int:
    """Return how many jobs an engine speaks at once."""
    from dataclasses import replace

    from afterwords.backends import registry
    from afterwords.config import load_config
    from afterwords.errors import InvalidOptionError

    found = registry.backends(replace(load_config(), backends=(backend,)))
    if not found or found[0].engine is None:
        names = [each.name for each in registry.backends(replace(load_config(), backends=None))]
        raise InvalidOptionError.for_option("--backend", value=backend, allowed=", ".join(names))
    return found[0].engine.max_concurrent


def _package(backend: str, *more: str) -> str:
    from afterwords import __version__

    engine = {"lite": ["lite"], "pocket": ["pocket"], "tone": []}.get(backend, ["cuda"])
    return f"afterwords[{','.join(['server', *engine, *more])}]=={__version__}"
