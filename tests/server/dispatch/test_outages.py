"""A desk that does not answer, or refuses: the in-process dispatcher goes on, and picks up again unaided."""

from __future__ import annotations

import pytest

from afterwords.errors import DatabaseUnavailableError, StorageFullError, StorageUnavailableError, VoiceDeletedError
from afterwords.server.dispatch.retry import insist
from tests.server.dispatch.desk import Desk
from tests.server.dispatch.dispatching import dispatching

pytestmark = pytest.mark.anyio


async def test_claims_go_on_after_an_outage(desk: Desk) -> None:
    desk.refusals["claim"] = DatabaseUnavailableError()
    async with dispatching(desk) as dispatcher:
        job_id = desk.submit("hello")
        await desk.until(lambda: [call for call, _ in desk.calls].count("claim") >= 3)
        desk.refusals.clear()
        assert await desk.ended(job_id) == ["ready"]
        assert dispatcher.is_ready


async def test_a_desk_that_breaks_in_any_way_is_asked_again(desk: Desk) -> None:
    desk.refusals["claim"] = RuntimeError("nobody foresaw this")
    async with dispatching(desk):
        job_id = desk.submit("hello")
        await desk.until(lambda: [call for call, _ in desk.calls].count("claim") >= 2)
        desk.refusals.clear()
        assert await desk.ended(job_id) == ["ready"]


@pytest.mark.parametrize("refusal", [StorageUnavailableError(), DatabaseUnavailableError(), StorageFullError("it")])
async def test_a_result_is_brought_again_until_it_is_taken_and_nothing_is_claimed_meanwhile(
    desk: Desk, refusal: Exception
) -> None:
    desk.refusals["complete"] = refusal
    async with dispatching(desk):
        job_id = desk.submit("hello")
        await desk.until(lambda: desk.calls.count(("complete", job_id)) >= 2)
        waiting = desk.submit("and what comes after it")
        await desk.until(lambda: desk.calls.count(("complete", job_id)) >= 4)
        assert waiting not in desk.claimed
        desk.refusals.clear()
        assert await desk.ended(job_id, waiting) == ["ready", "ready"]
    assert desk.jobs[job_id].attempt == 1
    assert desk.calls.count(("prompt", "me")) == 2


async def test_an_outage_that_outlasts_the_lease_costs_an_attempt(desk: Desk) -> None:
    desk.refusals["prompt"] = StorageUnavailableError()
    async with dispatching(desk, lease_s=0.2):
        assert await desk.ended(desk.submit("hello")) == ["storage_unavailable"]


async def test_a_failed_heartbeat_is_no_reason_to_stop(desk: Desk) -> None:
    desk.refusals["heartbeat"] = DatabaseUnavailableError()
    async with dispatching(desk, lease_s=0.15):
        job_id = desk.submit(f"fault-slow {'and on ' * 10}")
        assert await desk.ended(job_id) == ["ready"]
    assert ("heartbeat", job_id) in desk.calls


async def test_a_prompt_that_can_not_be_kept_is_no_reason_to_stop(desk: Desk) -> None:
    desk.refusals["save_prompt"] = StorageFullError("the blobs")
    async with dispatching(desk):
        assert await desk.ended(desk.submit("hello")) == ["ready"]


async def test_a_result_for_a_deleted_voice_is_dropped_quietly(desk: Desk) -> None:
    desk.refusals["complete"] = VoiceDeletedError()
    async with dispatching(desk) as dispatcher:
        job_id = desk.submit("hello")
        await desk.until(lambda: ("complete", job_id) in desk.calls)
        desk.refusals.clear()
        assert await desk.ended(desk.submit("the next")) == ["ready"]
        assert desk.said_of(job_id) == ["claimed", "complete"]
        assert dispatcher.is_ready


async def test_a_call_is_made_again_until_it_goes_through_or_the_time_is_over() -> None:
    answers: list[Exception | str] = [
        DatabaseUnavailableError(),
        StorageFullError("it"),
        "done",
        StorageFullError("it"),
    ]

    async def call() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await insist(call, for_s=10) == "done"
    with pytest.raises(StorageFullError):
        await insist(call, for_s=0)


async def test_what_is_no_outage_is_raised_at_once() -> None:
    async def call() -> None:
        raise VoiceDeletedError

    with pytest.raises(VoiceDeletedError):
        await insist(call, for_s=10)
