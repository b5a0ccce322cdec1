"""A job queue that fails for a while: the local dispatcher continues, and recovers by itself."""

from __future__ import annotations

import pytest

from afterwords.errors import DatabaseUnavailableError, StaleAttemptError, StorageFullError, StorageUnavailableError
from afterwords.server.dispatch.claiming import retry_during_outage
from tests.error_codes import has_code
from tests.server.dispatch.memory_queue import MemoryQueue
from tests.server.dispatch.running import running_dispatcher

pytestmark = pytest.mark.anyio


async def test_claims_continue_after_an_outage(queue: MemoryQueue) -> None:
    queue.errors["claim"] = DatabaseUnavailableError()
    async with running_dispatcher(queue) as dispatcher:
        job_id = queue.submit("hello")
        await queue.wait_until(lambda: [call for call, _ in queue.calls].count("claim") >= 3)
        queue.errors.clear()
        assert await queue.wait_for(job_id) == ["ready"]
        assert dispatcher.is_ready


async def test_claim_is_repeated_after_any_error(queue: MemoryQueue) -> None:
    queue.errors["claim"] = RuntimeError("unexpected")
    async with running_dispatcher(queue):
        job_id = queue.submit("hello")
        await queue.wait_until(lambda: [call for call, _ in queue.calls].count("claim") >= 2)
        queue.errors.clear()
        assert await queue.wait_for(job_id) == ["ready"]


@pytest.mark.parametrize(
    "error", [StorageUnavailableError(), DatabaseUnavailableError(), StorageFullError.for_path("it")]
)
async def test_result_is_redelivered_and_claims_pause_meanwhile(queue: MemoryQueue, error: Exception) -> None:
    queue.errors["complete"] = error
    async with running_dispatcher(queue):
        job_id = queue.submit("hello")
        await queue.wait_until(lambda: queue.calls.count(("complete", job_id)) >= 2)
        waiting = queue.submit("and the next one")
        await queue.wait_until(lambda: queue.calls.count(("complete", job_id)) >= 4)
        assert waiting not in queue.claimed
        queue.errors.clear()
        assert await queue.wait_for(job_id, waiting) == ["ready", "ready"]
    assert queue.jobs[job_id].attempt == 1
    assert queue.calls.count(("prompt", "me")) == 2


async def test_outage_longer_than_the_lease_ends_the_attempt(queue: MemoryQueue) -> None:
    queue.errors["prompt"] = StorageUnavailableError()
    async with running_dispatcher(queue, lease_s=0.2):
        assert await queue.wait_for(queue.submit("hello")) == ["storage_unavailable"]


async def test_failed_heartbeat_does_not_stop_the_job(queue: MemoryQueue) -> None:
    queue.errors["heartbeat"] = DatabaseUnavailableError()
    async with running_dispatcher(queue, lease_s=0.15):
        job_id = queue.submit(f"fault-slow {'and on ' * 10}")
        assert await queue.wait_for(job_id) == ["ready"]
    assert ("heartbeat", job_id) in queue.calls


async def test_prompt_that_is_not_stored_does_not_stop_the_job(queue: MemoryQueue) -> None:
    queue.errors["save_prompt"] = StorageFullError.for_path("the blobs")
    async with running_dispatcher(queue):
        assert await queue.wait_for(queue.submit("hello")) == ["ready"]


async def test_result_for_a_deleted_voice_is_dropped(queue: MemoryQueue) -> None:
    queue.errors["complete"] = StaleAttemptError(code="voice_deleted")
    async with running_dispatcher(queue) as dispatcher:
        job_id = queue.submit("hello")
        await queue.wait_until(lambda: ("complete", job_id) in queue.calls)
        queue.errors.clear()
        assert await queue.wait_for(queue.submit("the next")) == ["ready"]
        assert queue.calls_for(job_id) == ["claimed", "complete"]
        assert dispatcher.is_ready


async def test_retry_during_outage_ends_with_success_or_timeout() -> None:
    answers: list[Exception | str] = [
        DatabaseUnavailableError(),
        StorageFullError.for_path("it"),
        "done",
        StorageFullError.for_path("it"),
    ]

    async def call() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await retry_during_outage(call, timeout_s=10) == "done"
    with pytest.raises(StorageFullError):
        await retry_during_outage(call, timeout_s=0)


async def test_other_errors_are_raised_at_once() -> None:
    async def call() -> None:
        raise StaleAttemptError(code="voice_deleted")

    with pytest.raises(StaleAttemptError, check=has_code("voice_deleted")):
        await retry_during_outage(call, timeout_s=10)
