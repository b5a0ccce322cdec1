"""The handler of afterwords for a serverless endpoint of RunPod, written by `afterwords deploy runpod`."""

from typing import Any

BACKEND = "qwen3-1.7b"
MAX_INPUTS = 8  # jobs that a container speaks at once, in one batch


def load() -> Any:
    """Return the handler, with the model loaded."""
    from afterwords.server.dispatch.container import Container

    container = Container(BACKEND)
    container.start()

    async def handler(event: dict[str, Any]) -> dict[str, str]:
        """Run a job, and return after its end; the audio goes to the server and not through the result."""
        await container.run(event["input"])
        return {"status": "done"}

    return handler


if __name__ == "__main__":
    import runpod

    runpod.serverless.start({"handler": load(), "concurrency_modifier": lambda _: MAX_INPUTS})
