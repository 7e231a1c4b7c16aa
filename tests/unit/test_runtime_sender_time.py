"""Sender stamps to local time: the cases a site meets."""

from __future__ import annotations

import numpy as np
import pytest

from nav.runtime.sender_time import SenderTimeMapper

MS = 1_000_000
S = 1_000_000_000
OFFSET = 1_700_000_000 * S  # UTC against a monotonic clock that began at boot


def mapper(**options: object) -> SenderTimeMapper:
    return SenderTimeMapper(10 * S, **options)  # type: ignore[arg-type]


def feed(m: SenderTimeMapper, start_s: float, seconds: float, *, delay_ms: float = 30.0, offset: int = OFFSET) -> int:
    """60 Hz with a constant delay; returns the age of the last sample in ns."""
    age = 0
    for n in range(int(seconds * 60)):
        acquired = int((start_s + n / 60) * S)
        arrival = acquired + int(delay_ms * MS)
        age = arrival - m.acquired_ns(acquired + offset, arrival, "Needle")
    return age


def test_a_sender_without_stamps_is_taken_at_its_arrival() -> None:
    m = mapper(fixed_delay_ns=5 * MS)
    assert m.acquired_ns(None, 100 * MS) == 95 * MS
    assert m.acquired_ns(0, 100 * MS) == 95 * MS
    assert m.offset_ns is None
    assert m.jitter_ms is None


def test_a_stamp_that_never_moves_is_not_believed() -> None:
    m = mapper()
    assert [m.acquired_ns(42, n * 17 * MS, "x") for n in range(100)] == [n * 17 * MS for n in range(100)]


def test_a_stamp_that_stops_moving_is_old_data_for_as_long_as_it_lasts() -> None:
    m = mapper()
    feed(m, 0.0, 2.0)
    stuck = 2 * S + OFFSET
    age = 0
    for n in range(60 * 60):
        arrival = 2 * S + 30 * MS + n * 16_666_667
        age = arrival - m.acquired_ns(stuck, arrival, "Needle")
    # A minute later it is a minute old, but for what clocks may drift.
    assert age == pytest.approx(60 * S, rel=2e-3)


def test_fixed_delay_is_subtracted_and_nothing_is_acquired_after_it_arrived() -> None:
    m = mapper(fixed_delay_ns=30 * MS)
    assert feed(m, 0.0, 1.0) == 30 * MS
    m = mapper(fixed_delay_ns=-30 * MS)
    assert feed(m, 0.0, 1.0) == 0


def test_stamps_are_left_alone_when_told_so() -> None:
    m = mapper(use_sender=False)
    assert m.acquired_ns(5 * S, 7 * S) == 7 * S


def test_a_stalled_transport_shows_as_age_and_not_as_a_clock_step() -> None:
    m = mapper()
    feed(m, 0.0, 5.0)
    # 0.8 s of data arrives at once, then all is as before.
    resumed = int(5.83 * S)
    ages = []
    for n in range(48):
        acquired = 5 * S + n * S // 60
        ages.append(resumed - m.acquired_ns(acquired + OFFSET, resumed, "Needle"))
    assert ages[0] == pytest.approx(800 * MS, abs=MS)
    assert ages == sorted(ages, reverse=True)
    assert m.steps == 0
    assert feed(m, 5.9, 1.0) <= MS


def test_lasting_extra_delay_is_not_forgotten_with_the_window() -> None:
    """A queue that builds up must not look fresh once the window has moved on."""
    m = mapper()
    feed(m, 0.0, 20.0)
    age = feed(m, 20.2, 40.0, delay_ms=230.0)
    assert 200 * MS - 40 * S * 500e-6 - MS <= age <= 200 * MS
    shift = m.shift_ms
    assert shift is not None
    assert shift > 170.0


@pytest.mark.parametrize("step_s", [5.0, -5.0, -0.3, 0.7])
def test_a_clock_that_was_set_is_noticed_once_and_followed_at_once(step_s: float) -> None:
    m = mapper()
    feed(m, 0.0, 5.0)
    ages = []
    for n in range(60):
        acquired = 5 * S + n * S // 60
        arrival = acquired + 30 * MS
        for device in ("Needle", "Reference"):
            ages.append(arrival - m.acquired_ns(acquired + OFFSET + int(step_s * S), arrival, device))
    assert m.steps == 1
    assert max(ages) <= MS


def test_devices_of_one_sender_may_lag_one_another() -> None:
    m = mapper()
    for n in range(300):
        arrival = S + n * 16_666_667
        newest = m.acquired_ns(arrival - 10 * MS + OFFSET, arrival, "Needle")
        image = m.acquired_ns(arrival - 110 * MS + OFFSET, arrival, "Ultrasound")
        assert newest - image == 100 * MS
    assert m.steps == 0


def test_reset_forgets_the_old_connection() -> None:
    m = mapper()
    feed(m, 0.0, 2.0)
    m.reset()
    assert m.offset_ns is None
    assert feed(m, 2.0, 1.0, offset=0) == 0
    assert m.steps == 0


def test_jitter_and_drift_are_estimated() -> None:
    rng = np.random.default_rng(1)
    m = mapper()
    previous = 0
    for n in range(60 * 60):
        acquired = n * S // 60
        arrival = max(previous, acquired + int(rng.uniform(20, 40) * MS))
        previous = arrival
        m.acquired_ns(OFFSET + int(acquired * (1 + 80e-6)), arrival, "Needle")
    assert m.jitter_ms == pytest.approx(19.0, abs=1.5)
    assert m.drift_ppm == pytest.approx(80.0, abs=15.0)
    assert m.shift_ms == pytest.approx(0.0, abs=0.01)


def test_spikes_of_the_transport_leave_no_trace_in_the_times() -> None:
    """Every tenth message is late by up to 80 ms; the acquisition times stay within what the clocks may drift."""
    rng = np.random.default_rng(3)
    m = mapper()
    arrival, errors = 0, []
    for n in range(60 * 30):
        acquired = S + n * S // 60
        late = int(rng.uniform(0, 80) * MS) if n % 10 == 9 else int(rng.exponential(0.2) * MS)
        arrival = max(arrival, acquired + 5 * MS + late)
        errors.append(m.acquired_ns(acquired + OFFSET, arrival, "Needle") - acquired - 5 * MS)
    assert max(errors[60:]) < 0.1 * MS
    assert min(errors) >= 0
    assert m.steps == 0
    timing = m.device("Needle")
    assert timing is not None
    assert 1.0 < timing.jitter_ms < 80.0


@pytest.mark.parametrize("ppm", [-100.0, 100.0])
def test_a_crystal_is_followed_for_an_hour_without_a_growing_error(ppm: float) -> None:
    m = mapper()
    worst = 0
    for n in range(3600 * 10):
        acquired = S + n * S // 10
        got = m.acquired_ns(OFFSET + int(acquired * (1.0 + ppm * 1e-6)), acquired + 20 * MS, "Needle")
        worst = max(worst, abs(got - acquired - 20 * MS))
    # A sender that is too slow is followed with the window's delay: 10 s of 100 ppm are 1 ms.
    assert worst <= 1.1 * MS
    assert m.steps == 0
    assert m.drift_ppm == pytest.approx(ppm, abs=1.0)


@pytest.mark.parametrize("slew_ppm", [-500.0, 500.0])
def test_a_clock_being_slewed_is_no_step_and_costs_little(slew_ppm: float) -> None:
    """NTP corrects 100 ms within 200 s."""
    m = mapper()
    feed(m, 0.0, 20.0)
    worst = 0
    for n in range(200 * 60):
        acquired = 20 * S + n * S // 60
        shift = int(n / 60 * slew_ppm * 1e-6 * S)
        got = m.acquired_ns(acquired + OFFSET + shift, acquired + 30 * MS, "Needle")
        worst = max(worst, abs(got - acquired - 30 * MS))
    assert m.steps == 0
    assert worst <= 5.1 * MS  # the window of 10 s at 500 ppm


def test_each_device_has_its_own_lag_jitter_and_lateness() -> None:
    rng = np.random.default_rng(5)
    m = mapper()
    late_from = 1500
    for n in range(2 * late_from):
        acquired = S + n * 16_666_667
        late = 120 * MS if n >= late_from else 0
        arrivals = [("Needle", 5 * MS), ("Image", 60 * MS + late + int(rng.uniform(0, 10) * MS))]
        for device, delay in arrivals:
            m.acquired_ns(acquired + OFFSET, acquired + delay, device)
    needle, image = m.device("Needle"), m.device("Image")
    assert needle is not None
    assert image is not None
    assert (needle.lag_ms, needle.jitter_ms, needle.shift_ms) == pytest.approx((0.0, 0.0, 0.0))
    assert needle.offset_ns == 5 * MS - OFFSET
    assert image.jitter_ms > 100.0  # above its own smallest delay, which the late ones cannot raise quickly
    assert image.shift_ms == pytest.approx(120.0, abs=15.0)
    assert 55.0 <= image.lag_ms <= 75.0
    assert m.device("Stylus") is None


def test_a_sender_that_invents_names_does_not_fill_the_memory() -> None:
    m = mapper()
    for n in range(5000):
        m.acquired_ns(OFFSET + n * MS, n * MS, f"device {n}")
    assert sum(m.device(f"device {n}") is not None for n in range(5000)) == 256
    assert m.steps == 0


def test_a_restarted_sender_with_another_clock_is_followed_after_the_new_connection() -> None:
    m = mapper()
    feed(m, 0.0, 5.0)
    m.reset()
    assert feed(m, 6.0, 1.0, offset=OFFSET - 40 * S, delay_ms=12.0) == 0
    assert m.steps == 0
    timing = m.device("Needle")
    assert timing is not None
    assert timing.offset_ns == 12 * MS - (OFFSET - 40 * S)
