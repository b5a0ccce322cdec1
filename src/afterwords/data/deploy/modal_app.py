"""The app of afterwords on Modal, written by `afterwords deploy modal`. To deploy changes: modal deploy FILE."""

import subprocess
from typing import Any

import modal

BACKEND = "qwen3-1.7b"
PACKAGE = "afterwords[server,cuda]"  # a requirement, or the path of a wheel
GPU: str | None = "L4"
GPU_SNAPSHOT = False  # Modal's snapshots of GPU memory are alpha
REGION: str | None = None
MAX_CONTAINERS = 1
SCALEDOWN_S = 60  # how long an idle container waits for another job, and costs
MAX_INPUTS = 8  # jobs that a container speaks at once, in one batch
JOB_TIMEOUT_S = 3600

# A snapshot of the loaded model starts faster. Without GPU_SNAPSHOT there is no GPU when the snapshot is taken.
HAS_SNAPSHOT = GPU is None or GPU_SNAPSHOT
IS_WHEEL = PACKAGE.partition("[")[0].endswith(".whl")
WHEEL = PACKAGE.partition("[")[0]
REQUIREMENT = f"/tmp/{WHEEL.rpartition('/')[2]}{PACKAGE[len(WHEEL) :]}" if IS_WHEEL else PACKAGE

app = modal.App(f"afterwords-{BACKEND}")
models = modal.Volume.from_name("afterwords-models", create_if_missing=True)
base = modal.Image.debian_slim(python_version="3.12")
if IS_WHEEL:
    base = base.add_local_file(WHEEL, f"/tmp/{WHEEL.rpartition('/')[2]}", copy=True)
image = base.uv_pip_install(REQUIREMENT, "fastapi").env(
    {"AFTERWORDS_HOME": "/tmp/afterwords", "AFTERWORDS_MODELS": "/models"}
)


@app.function(image=image, volumes={"/models": models}, timeout=JOB_TIMEOUT_S)
def download() -> None:
    """Put the weights into the volume."""
    subprocess.run(["afterwords", "models", "pull", BACKEND], check=True)
    models.commit()


@app.cls(
    image=image,
    gpu=GPU,
    region=REGION,
    volumes={"/models": models.with_mount_options(read_only=True)},
    max_containers=MAX_CONTAINERS,
    scaledown_window=SCALEDOWN_S,
    timeout=JOB_TIMEOUT_S,
    retries=0,  # the server retries
    enable_memory_snapshot=HAS_SNAPSHOT,
    experimental_options={"enable_gpu_snapshot": True} if GPU_SNAPSHOT else {},
)
@modal.concurrent(max_inputs=MAX_INPUTS)
class Speaker:
    """A container with the model. It serves jobs like a remote worker of the server that hands them over."""

    @modal.enter(snap=HAS_SNAPSHOT)
    def load(self) -> None:
        """Load the model."""
        from afterwords.server.dispatch.container import Container

        self.container = Container(BACKEND)
        self.container.start()

    @modal.method()
    async def run(self, job: dict[str, Any]) -> None:
        """Run a job, and return after its end. If it were not async, Modal would stop the container to cancel it."""
        await self.container.run(job)

    @modal.exit()
    def stop(self) -> None:
        """Return unfinished jobs, because the container stops or is preempted."""
        self.container.stop()


@app.function(image=image, max_containers=4)
@modal.fastapi_endpoint(method="POST", requires_proxy_auth=True)
def trigger(form: dict[str, Any]) -> dict[str, str]:
    """Start a job for a server that calls this app by URL, in the hosted dispatch form."""
    from afterwords.server.dispatch.protocol import HandedJob

    Speaker().run.spawn(HandedJob.from_form(form).model_dump())
    return {"status": "accepted"}
