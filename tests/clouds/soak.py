"""Which tests of the contract of dispatchers `make soak` runs for each cloud, and `make test` does not."""

from __future__ import annotations

from typing import Final

FAULTS: Final = frozenset(
    {
        "test_many_jobs_are_each_spoken_once",
        "test_engine_failure_fails_the_job",
        "test_crash_fails_only_its_own_job",
        "test_runaway_audio_fails_the_job",
        "test_job_of_killed_worker_is_spoken_by_another",
        "test_job_of_stopped_worker_uses_no_attempt",
        "test_two_servers_speak_no_job_twice",
    }
)
"""The tests with faults and with load, which take longest."""
