"""The queueing model of docs/scaling.md: against closed forms, against its simulation, and in the page."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from afterwords.text import EXPECTED_S_PER_CHARACTER
from benchmarks.capacity import (
    AUDIO_S_PER_CHARACTER,
    DEVICES,
    Device,
    Load,
    devices_for,
    first_audio,
    simulate,
)

PLAIN = Device((1,), (1.0,), (0.0,))
PAGE = (Path(__file__).parent.parent / "docs" / "scaling.md").read_text("utf-8")


def test_single_server_matches_the_closed_form() -> None:
    load = Load(jobs_per_s=0.8, audio_s=1.0)
    # M/M/1: the wait exceeds t with the probability 0.8 * exp(-0.2 t)
    assert first_audio(PLAIN, 1, load) == pytest.approx(math.log(0.8 / 0.05) / 0.2, rel=1e-6)


def test_two_servers_match_erlang_c() -> None:
    load = Load(jobs_per_s=1.6, audio_s=1.0)
    waits = 2 * 0.8**2 / (1 + 0.8)  # of Erlang C with two servers
    assert first_audio(PLAIN, 2, load) == pytest.approx(math.log(waits / 0.05) / 0.4, rel=1e-6)


@pytest.mark.parametrize(("n_devices", "utilization"), [(1, 0.5), (1, 0.8), (2, 0.8)])
def test_model_agrees_with_the_simulation(n_devices: int, utilization: float) -> None:
    device = DEVICES["h200"]
    audio_s = 200 * AUDIO_S_PER_CHARACTER
    load = Load(utilization * n_devices * device.throughput(64) / audio_s, audio_s)
    assert simulate(device, n_devices, load, n_jobs=20_000) == pytest.approx(
        first_audio(device, n_devices, load), rel=0.15
    )


def test_overload_never_ends() -> None:
    assert first_audio(PLAIN, 3, Load(jobs_per_s=3.0, audio_s=1.0)) == math.inf


def test_devices_are_the_fewest_that_hold_the_limit() -> None:
    load = Load.of_day(300e6, per_job=200, peak=4)
    needed = devices_for(DEVICES["h200"], load, limit_s=0.2)
    assert first_audio(DEVICES["h200"], needed, load) <= 0.2 < first_audio(DEVICES["h200"], needed - 1, load)


def test_unreachable_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="one job alone takes"):
        devices_for(DEVICES["cpu"], Load(0.1, 10.0), limit_s=0.5)


def test_page_has_the_devices_of_the_model() -> None:
    for name, limit_s in (("h200", 0.2), ("cpu", 2.0)):
        section = PAGE.split("| utilization |")[1 if name == "h200" else 2]
        rows = re.findall(r"^\| ([\d.]+) \| [\d.]+ \| [\d.]+ \| (\d+) \|", section.split("\n\n")[0], re.M)
        assert len(rows) == 5
        for millions, devices in rows:
            load = Load.of_day(1e6 * float(millions), per_job=200, peak=4)
            assert devices_for(DEVICES[name], load, limit_s=limit_s) == int(devices)


def test_speaking_rate_is_that_of_the_package() -> None:
    assert AUDIO_S_PER_CHARACTER == EXPECTED_S_PER_CHARACTER
