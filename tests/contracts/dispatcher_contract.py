"""What a dispatcher does with its job queue. Tests inherit it and provide the fixtures `queue` and `dispatcher`.

`afterwords.testing.DispatcherContract` tests dispatchers from outside, with a real server.

The fixture starts the dispatcher with the backend `tone`, fault words enabled, and stops it at the end.
"""

from __future__ import annotations

import asyncio

import pytest

from afterwords.audio.wav import read_wav
from afterwords.backends.tone import SAMPLE_RATE, SECONDS_PER_CHARACTER
from afterwords.errors import AudioMissingError, SynthesisError
from afterwords.server.ports import Dispatcher
from afterwords.text import LANGS
from tests.server.dispatch.memory_queue import DEADLINE_S, MemoryQueue
from tests.server.dispatch.running import ENDLESS, eventually

TEXT = "A text that is spoken."


@pytest.mark.anyio
class PreparationContract:
    """For dispatchers that ask their job queue for preparations."""

    async def test_voice_is_prepared_without_a_job(self, dispatcher: Dispatcher, queue: MemoryQueue) -> None:
        job_id = queue.prepare("me")
        dispatcher.wake()
        assert await queue.wait_for(job_id) == ["ready"]
        assert list(queue.prompts) == [("me", "tone", "1")]
        assert queue.calls_for(job_id) == ["claimed", "end_preparation"]
        assert await queue.wait_for(queue.submit(TEXT)) == ["ready"]
        assert [call for call, _ in queue.calls].count("save_prompt") == 1

    async def test_jobs_go_before_preparations(self, dispatcher: Dispatcher, queue: MemoryQueue) -> None:
        preparations = [queue.prepare(f"voice-{number}") for number in range(20)]
        job_id = queue.submit(TEXT)
        dispatcher.wake()
        assert set(await queue.wait_for(job_id, *preparations)) == {"ready"}
        assert next(name for call, name in queue.calls if call == "claimed") == job_id

    @pytest.mark.usefixtures("dispatcher")
    async def test_stored_prompt_ends_the_preparation(self, queue: MemoryQueue) -> None:
        queue.prompts["me", "tone", "1"] = b"known"
        assert await queue.wait_for(queue.prepare("me")) == ["ready"]
        assert ("save_prompt", "me") not in queue.calls

    @pytest.mark.usefixtures("dispatcher")
    async def test_failed_preparation_ends_and_does_not_fail_jobs(self, queue: MemoryQueue) -> None:
        queue.errors["reference"] = AudioMissingError(code="reference_missing")
        job_id = queue.prepare("me")
        assert await queue.wait_for(job_id) == ["ready"]
        assert queue.calls_for(job_id) == ["claimed", "end_preparation"]
        assert await queue.wait_for(queue.submit(TEXT)) == ["reference_missing"]


@pytest.mark.anyio
class JobQueueUserContract:
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    async def test_backends_are_known_before_the_start(self, dispatcher: Dispatcher) -> None:
        assert dispatcher.backends == {"tone": frozenset(LANGS)}

    async def test_dispatcher_becomes_ready(self, dispatcher: Dispatcher) -> None:
        assert dispatcher.state
        await eventually(lambda: dispatcher.is_ready)
        assert dispatcher.state == "ready"

    async def test_job_is_spoken(self, dispatcher: Dispatcher, queue: MemoryQueue) -> None:
        job_id = queue.submit(TEXT)
        dispatcher.wake()
        assert await queue.wait_for(job_id) == ["ready"]
        samples, sample_rate = read_wav(queue.wavs[job_id])
        assert (len(samples), sample_rate) == (round(SECONDS_PER_CHARACTER * len(TEXT) * SAMPLE_RATE), SAMPLE_RATE)
        assert queue.jobs[job_id].synth_ms is not None

    async def test_job_is_found_without_wake(self, dispatcher: Dispatcher, queue: MemoryQueue) -> None:
        await eventually(lambda: dispatcher.is_ready)
        assert await queue.wait_for(queue.submit(TEXT)) == ["ready"]

    async def test_many_jobs_are_spoken(self, dispatcher: Dispatcher, queue: MemoryQueue) -> None:
        jobs = [queue.submit(f"{TEXT} Number {number}.") for number in range(40)]
        dispatcher.wake()
        assert set(await queue.wait_for(*jobs)) == {"ready"}

    @pytest.mark.usefixtures("dispatcher")
    async def test_engine_error_fails_job_with_its_code(self, queue: MemoryQueue) -> None:
        assert await queue.wait_for(queue.submit("now fault-fail")) == ["synthesis_failed"]

    async def test_cancelled_job_stops(self, dispatcher: Dispatcher, queue: MemoryQueue) -> None:
        job_id = queue.submit(ENDLESS)
        await queue.wait_until(lambda: job_id in queue.claimed)
        queue.cancel(job_id)
        dispatcher.cancel(job_id)
        assert await queue.wait_for(queue.submit(TEXT)) == ["ready"]
        assert queue.calls_for(job_id) == ["claimed"]

    @pytest.mark.usefixtures("dispatcher")
    async def test_crash_fails_only_its_own_job(self, queue: MemoryQueue) -> None:
        poison, innocent = queue.submit("now fault-crash"), queue.submit(TEXT)
        assert await queue.wait_for(poison, innocent) == ["worker_lost", "ready"]
        assert await queue.wait_for(queue.submit(TEXT)) == ["ready"]

    async def test_stop_finishes_running_jobs_and_claims_none(self, dispatcher: Dispatcher, queue: MemoryQueue) -> None:
        job_id = queue.submit(f"fault-slow {TEXT}")
        await queue.wait_until(lambda: job_id in queue.claimed)
        await dispatcher.stop(grace_s=DEADLINE_S)
        assert queue.outcome(job_id) == "ready"
        late = queue.submit(TEXT)
        dispatcher.wake()
        assert late not in queue.claimed

    async def test_stop_releases_jobs_after_the_grace_period(self, dispatcher: Dispatcher, queue: MemoryQueue) -> None:
        job_id = queue.submit(ENDLESS)
        await queue.wait_until(lambda: job_id in queue.claimed)
        await dispatcher.stop(grace_s=0)
        assert queue.calls_for(job_id) == ["claimed", "release"]
        assert queue.jobs[job_id].attempt == 0

    async def test_listener_receives_the_job_audio(self, dispatcher: Dispatcher, queue: MemoryQueue) -> None:
        text = f"fault-slow {TEXT}"
        job_id = queue.submit(text)
        listener = dispatcher.listen(job_id)
        if listener is None:
            pytest.skip("this dispatcher can't stream")
        async with asyncio.timeout(DEADLINE_S):
            assert await listener.wait_until_started() == SAMPLE_RATE
            assert not queue.is_final(job_id)
            received = [pcm async for pcm in listener]
        await queue.wait_for(job_id)
        assert len(received) > 1
        assert b"".join(received) == queue.wavs[job_id][44:]

    async def test_listener_raises_if_synthesis_fails(self, dispatcher: Dispatcher, queue: MemoryQueue) -> None:
        job_id = queue.submit("now fault-fail")
        listener = dispatcher.listen(job_id)
        if listener is None:
            pytest.skip("this dispatcher can't stream")
        async with asyncio.timeout(DEADLINE_S):
            assert await listener.wait_until_started() == SAMPLE_RATE
            with pytest.raises(SynthesisError):
                _ = [pcm async for pcm in listener]
