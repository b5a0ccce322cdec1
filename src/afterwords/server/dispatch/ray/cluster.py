"""Connect to a Ray cluster, and deploy, list and remove the engines there: `afterwords cluster` and the gateway use it.

An engine is an application of Ray Serve with one deployment, named after the backend. Imported only where Ray is.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import asdict
from typing import Any, Final

from afterwords import __version__
from afterwords.backends import registry
from afterwords.backends.base import Available, Unavailable
from afterwords.config import load_config
from afterwords.errors import BackendUnavailableError, InvalidOptionError, ServiceError, UnreachableError
from afterwords.network import turn_off_telemetry

PREFIX: Final = "afterwords-"
"""Beginning of the names of our applications in the cluster."""
CONNECT_S: Final = 3.0
SCALE_UP_AT: Final = 0.75
"""Share of the places of a replica that may be taken before the cluster starts another one."""
SCALE_UP_DELAY_S: Final = 10.0
GRACE_S: Final = 60.0
"""How long a replica that is stopped may finish its utterances."""
HINT: Final = (
    "start the cluster (ray start --head), let this machine join it without CPUs "
    "(ray start --address HEAD:6379 --num-cpus 0), and set AFTERWORDS_RAY_ADDRESS to HEAD:6379."
)


def connect(address: str | None) -> None:
    """Connect this process to a cluster. A node of it must run on this machine.

    Args:
        address: Host and port of its head; None: RAY_ADDRESS, or the cluster that this machine belongs to.

    Raises:
        InvalidOptionError: The address is one of Ray Client, which can't stream.
        UnreachableError: There is no such cluster.
    """
    turn_off_telemetry()
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    check_address(address)
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:  # Ray would wait for minutes
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise UnreachableError(f"No Ray cluster answers at {address}: {why}.", hint=HINT) from None
    import ray
    from ray import serve  # noqa: F401 - the import sets the level of its logger

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        ray.init(address=address, namespace="serve", log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:
        where = "on this machine" if address == "auto" else f"at {address}"
        raise UnreachableError(f"No Ray cluster can be used {where}: {type(error).__name__}.", hint=HINT) from error


def check_address(address: str) -> None:
    """Raise InvalidOptionError unless an address is a host and a port, or auto."""
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdecimal() and "/" not in host):
        allowed = "the host and port of the head node, such as 10.0.0.1:6379 (ray:// can't stream)"
        raise InvalidOptionError.for_option("AFTERWORDS_RAY_ADDRESS", value=address, allowed=allowed)


def deploy(
    backend: str, *, min_replicas: int, max_replicas: int, num_cpus: float, num_gpus: float
) -> dict[str, object]:
    """Start the replicas of a backend, or update them, wait until they are ready, and return what they can do.

    Raises:
        BackendUnavailableError: The nodes can't run the backend.
        ServiceError: A replica failed to start.
    """
    import ray
    from ray import serve

    from afterwords.server.dispatch.ray.replica import Replica

    resources: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus}
    try:
        found = ray.get(ray.remote(_probe).options(**resources).remote(backend))
    except ray.exceptions.RayError as error:
        raise ServiceError(
            f"The nodes of the cluster can't run afterwords: {_reason(error)}.",
            hint=f"install afterwords {__version__} on each node, with the extras server, ray and that of the engine.",
        ) from error
    if isinstance(found, Unavailable):
        raise BackendUnavailableError(f"The backend {backend} can't run on the nodes: {found.reason}.", hint=found.fix)
    max_concurrent, state = found
    serve.start(http_options={"location": "NoServer"})
    deployment = serve.deployment(Replica).options(
        name=backend,
        ray_actor_options=resources,
        max_ongoing_requests=max_concurrent,
        autoscaling_config={
            "min_replicas": min_replicas,
            "initial_replicas": max(1, min_replicas),
            "max_replicas": max_replicas,
            "target_ongoing_requests": max(1.0, SCALE_UP_AT * max_concurrent),
            "upscale_delay_s": SCALE_UP_DELAY_S,
        },
        graceful_shutdown_timeout_s=GRACE_S,
        logging_config={"enable_access_log": False},
    )
    try:
        serve.run(deployment.bind(backend, max_replicas), name=f"{PREFIX}{backend}", route_prefix=None)
    except RuntimeError as error:
        raise ServiceError(
            f"The backend {backend} did not start in the cluster: {_reason(error)}.",
            hint="see the logs of the replica in /tmp/ray/session_latest/logs/serve on its node.",
        ) from error
    handle = serve.get_deployment_handle(backend, app_name=f"{PREFIX}{backend}")
    return {**asdict(handle.describe.remote().result()), "backend": backend, "is_slow": state.is_slow}


def _probe(backend: str) -> tuple[int, Available] | Unavailable:
    """Return how many utterances the engine of a backend speaks at once on this node, or why it can't."""
    os.environ["AFTERWORDS_BACKENDS"] = backend
    for found in registry.backends(load_config()):
        if isinstance(found.state, Available) and found.engine is not None:
            return found.engine.max_concurrent, found.state
        assert isinstance(found.state, Unavailable)
        return found.state
    return Unavailable("no engine there has it", "install its engine on each node: afterwords backends lists them.")


def _reason(error: Exception) -> str:
    """Return the last line of the message of an error of Ray, which ends with the error on the node."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


def status() -> dict[str, Any]:
    """Return the nodes of the cluster, and the replicas of each backend by state."""
    import ray
    from ray import serve

    applications = {
        name.removeprefix(PREFIX): application
        for name, application in serve.status().applications.items()
        if name.startswith(PREFIX)
    }
    return {
        "nodes": [
            {
                "address": node["NodeManagerAddress"],
                "is_alive": node["Alive"],
                "cpus": node["Resources"].get("CPU", 0),
                "gpus": node["Resources"].get("GPU", 0),
            }
            for node in ray.nodes()
        ],
        "backends": [
            {
                "backend": backend,
                "status": str(application.status.value).lower(),
                "replicas": {
                    str(state).lower(): n
                    for deployment in application.deployments.values()
                    for state, n in deployment.replica_states.items()
                },
            }
            for backend, application in applications.items()
        ],
    }


def remove(backend: str | None) -> list[str]:
    """Stop the replicas of a backend, or of all, and return their backends. Ray Serve ends if nothing else uses it."""
    from ray import serve

    wanted = [name for name in serve.status().applications if name in (f"{PREFIX}{backend}",) or backend is None]
    ours = [name for name in wanted if name.startswith(PREFIX)]
    for name in ours:
        serve.delete(name)
    if not serve.status().applications:
        serve.shutdown()
    return [name.removeprefix(PREFIX) for name in ours]
