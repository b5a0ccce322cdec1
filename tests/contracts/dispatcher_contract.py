"""What every dispatcher owes: inherited by the tests of each, which bring the fixtures `desk` and `dispatcher`.

The dispatcher is started and speaks the backend `tone`, whose fault words work; the fixture stops it in the end.
"""

from __future__ import annotations

import asyncio

import pytest

from afterwords.audio.wav import read_wav
from afterwords.backends.tone import SAMPLE_RATE, SECONDS_PER_CHARACTER
from afterwords.errors import SynthesisError
from afterwords.server.ports import Dispatcher
from afterwords.text import LANGS
from tests.server.dispatch.desk import PATIENCE_S, Desk
from tests.server.dispatch.dispatching import ENDLESS, eventually

TEXT = "A text that is spoken."


@pytest.mark.anyio
class DispatcherContract:
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    async def test_what_it_speaks_is_known_from_the_start(self, dispatcher: Dispatcher) -> None:
        assert dispatcher.backends == {"tone": frozenset(LANGS)}

    async def test_it_becomes_ready_and_says_so(self, dispatcher: Dispatcher) -> None:
        assert dispatcher.state
        await eventually(lambda: dispatcher.is_ready)
        assert dispatcher.state == "ready"

    async def test_a_job_is_spoken(self, dispatcher: Dispatcher, desk: Desk) -> None:
        job_id = desk.submit(TEXT)
        dispatcher.wake()
        assert await desk.ended(job_id) == ["ready"]
        samples, sample_rate = read_wav(desk.wavs[job_id])
        assert (len(samples), sample_rate) == (round(SECONDS_PER_CHARACTER * len(TEXT) * SAMPLE_RATE), SAMPLE_RATE)
        assert desk.jobs[job_id].synth_ms is not None

    async def test_a_job_is_found_even_if_nobody_wakes_it(self, dispatcher: Dispatcher, desk: Desk) -> None:
        await eventually(lambda: dispatcher.is_ready)
        assert await desk.ended(desk.submit(TEXT)) == ["ready"]

    async def test_many_jobs_are_spoken(self, dispatcher: Dispatcher, desk: Desk) -> None:
        jobs = [desk.submit(f"{TEXT} Number {number}.") for number in range(40)]
        dispatcher.wake()
        assert set(await desk.ended(*jobs)) == {"ready"}

    @pytest.mark.usefixtures("dispatcher")
    async def test_what_the_engine_refuses_fails_with_its_code(self, desk: Desk) -> None:
        assert await desk.ended(desk.submit("now fault-fail")) == ["synthesis_failed"]

    async def test_a_cancelled_job_is_not_spoken_on(self, dispatcher: Dispatcher, desk: Desk) -> None:
        job_id = desk.submit(ENDLESS)
        await desk.until(lambda: job_id in desk.claimed)
        desk.cancel(job_id)
        dispatcher.cancel(job_id)
        assert await desk.ended(desk.submit(TEXT)) == ["ready"]
        assert desk.said_of(job_id) == ["claimed"]

    @pytest.mark.usefixtures("dispatcher")
    async def test_a_crash_costs_its_own_job_alone(self, desk: Desk) -> None:
        poison, innocent = desk.submit("now fault-crash"), desk.submit(TEXT)
        assert await desk.ended(poison, innocent) == ["worker_lost", "ready"]
        assert await desk.ended(desk.submit(TEXT)) == ["ready"]

    async def test_stopping_finishes_what_was_begun_and_takes_no_more(self, dispatcher: Dispatcher, desk: Desk) -> None:
        job_id = desk.submit(f"fault-slow {TEXT}")
        await desk.until(lambda: job_id in desk.claimed)
        await dispatcher.stop(grace_s=PATIENCE_S)
        assert desk.outcome(job_id) == "ready"
        late = desk.submit(TEXT)
        dispatcher.wake()
        assert late not in desk.claimed

    async def test_stopping_gives_back_what_is_not_finished_in_time(self, dispatcher: Dispatcher, desk: Desk) -> None:
        job_id = desk.submit(ENDLESS)
        await desk.until(lambda: job_id in desk.claimed)
        await dispatcher.stop(grace_s=0)
        assert desk.said_of(job_id) == ["claimed", "release"]
        assert desk.jobs[job_id].attempt == 0

    async def test_a_listener_hears_what_becomes_the_audio(self, dispatcher: Dispatcher, desk: Desk) -> None:
        text = f"fault-slow {TEXT}"
        job_id = desk.submit(text)
        listener = dispatcher.listen(job_id)
        if listener is None:
            pytest.skip("it can't stream")
        async with asyncio.timeout(PATIENCE_S):
            assert await listener.begun() == SAMPLE_RATE
            assert not desk.is_final(job_id)
            heard = [pcm async for pcm in listener]
        await desk.ended(job_id)
        assert len(heard) > 1
        assert b"".join(heard) == desk.wavs[job_id][44:]

    async def test_a_listener_is_told_that_speech_breaks_off(self, dispatcher: Dispatcher, desk: Desk) -> None:
        job_id = desk.submit("now fault-fail")
        listener = dispatcher.listen(job_id)
        if listener is None:
            pytest.skip("it can't stream")
        async with asyncio.timeout(PATIENCE_S):
            assert await listener.begun() == SAMPLE_RATE
            with pytest.raises(SynthesisError):
                _ = [pcm async for pcm in listener]
