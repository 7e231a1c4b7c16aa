"""Stream health on a hand-moved clock: what is named, and when."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nav.config.room import ImageStreamConfig, ToolStreamConfig
from nav.geometry.poses import PoseStatus
from nav.guidance.health import StreamFinding
from nav.runtime.health import StreamMonitor
from nav.runtime.messages import LinkState

MS = 1_000_000
S = 1_000_000_000
PERIOD = 16_666_667


def tool(**options: object) -> StreamMonitor:
    config = ToolStreamConfig(device="NeedleToTracker", transform="NeedleToTracker", **options)  # type: ignore[arg-type]
    monitor = StreamMonitor("NeedleToTracker", "tool", config)
    monitor.on_link(LinkState.CONNECTED, 0)
    return monitor


def stream(monitor: StreamMonitor, start: int, seconds: float, *, delay: int = 20 * MS, still: bool = False) -> int:
    """60 Hz from ``start``; returns the arrival of the last sample."""
    arrival = start
    for n in range(int(seconds * 60)):
        arrival = start + n * PERIOD
        content = b"same" if still else n.to_bytes(4, "big")
        monitor.on_sample(arrival - delay, arrival, content)
    return arrival


def test_waiting_before_anything_and_before_the_first_pose() -> None:
    config = ToolStreamConfig(device="NeedleToTracker", transform="NeedleToTracker")
    monitor = StreamMonitor("NeedleToTracker", "tool", config)
    health = monitor.health(0)
    assert (health.state, health.detail) == ("waiting", "no connection yet")
    assert health.age_ms == math.inf
    monitor.on_link(LinkState.CONNECTING, 1)
    assert monitor.health(2).detail == "connecting"
    monitor.on_link(LinkState.CONNECTED, 3)
    assert monitor.health(4).detail == "connected, no pose yet"
    monitor.on_link(LinkState.FAILED, 5, "connection refused")
    assert monitor.health(6).state == "link_lost"
    assert monitor.health(6).detail == "no connection: connection refused"


def test_a_live_stream_and_its_numbers() -> None:
    monitor = tool()
    last = stream(monitor, S, 3.0)
    health = monitor.health(last + 5 * MS)
    assert (health.state, health.detail) == ("live", "")
    assert health.age_ms == pytest.approx(25.0)
    assert health.rate_hz == pytest.approx(60.0, abs=1.0)
    assert (health.received, health.dropped, health.gaps) == (180, 0, 0)
    assert (health.nominal_hz, health.stale_ms, health.lost_ms) == (60.0, 100.0, 250.0)


def test_rate_is_right_in_the_first_second_too() -> None:
    monitor = tool()
    last = stream(monitor, S, 0.5)
    assert monitor.health(last).rate_hz == pytest.approx(60.0, abs=0.1)


def test_ages_count_from_acquisition_and_pass_stale_to_lost() -> None:
    monitor = tool()
    last = stream(monitor, S, 1.0, delay=40 * MS)
    for wait_ms, state in ((60, "live"), (61, "stale"), (210, "stale"), (211, "lost")):
        monitor.on_any_message(last + wait_ms * MS)  # the link goes on speaking
        assert monitor.health(last + wait_ms * MS).state == state, wait_ms
    assert monitor.health(last + 300 * MS).detail == "no pose for 0.3 s"


def test_punctual_old_data_is_lost() -> None:
    monitor = tool()
    last = stream(monitor, S, 1.0, delay=400 * MS)
    assert monitor.health(last).state == "lost"


def test_a_tool_that_the_tracker_does_not_see_is_lost_at_once_and_back_at_once() -> None:
    monitor = tool()
    last = stream(monitor, S, 1.0)
    monitor.on_lost(PoseStatus.OUT_OF_VIEW, last + PERIOD)
    monitor.on_lost(PoseStatus.OUT_OF_VIEW, last + 2 * PERIOD)
    health = monitor.health(last + PERIOD + 500 * MS)
    assert (health.state, health.detail) == ("lost", "OUT_OF_VIEW for 0.5 s")
    monitor.on_sample(last + 600 * MS, last + 620 * MS, b"new")
    assert monitor.health(last + 620 * MS).state == "live"
    assert monitor.health(last + 620 * MS).gaps == 1


def test_a_closed_socket_is_named_at_once() -> None:
    monitor = tool()
    last = stream(monitor, S, 1.0)
    monitor.on_link(LinkState.CLOSED, last + 1, "closed by the peer")
    health = monitor.health(last + 1)
    assert (health.state, health.detail) == ("link_lost", "connection closed: closed by the peer")
    monitor.on_link(LinkState.CONNECTING, last + 2)
    assert monitor.health(last + 2).state == "link_lost"
    monitor.on_link(LinkState.CONNECTED, last + 50 * MS)
    monitor.on_sample(last + 50 * MS, last + 60 * MS, b"new")
    assert monitor.health(last + 60 * MS).state == "live"


def test_silence_of_the_link_is_named_within_a_second_and_a_keep_alive_is_no_pose() -> None:
    monitor = tool()
    last = stream(monitor, S, 1.0)
    assert monitor.health(last + S).state == "lost"
    assert monitor.health(last + S + 1).state == "link_lost"
    assert monitor.health(last + S + 1).detail == "link silent for 1.0 s"
    monitor.on_any_message(last + S + 2)
    assert monitor.health(last + S + 3).state == "lost"


def test_gaps_are_counted_by_the_streams_own_limit() -> None:
    monitor = tool(max_gap_ms=40.0)
    for acquired_ms in (0, 40, 81, 100):
        monitor.on_sample(acquired_ms * MS, acquired_ms * MS, bytes([acquired_ms]))
    assert monitor.health(100 * MS).gaps == 1


def test_the_same_bits_for_half_a_second_are_called_frozen() -> None:
    monitor = tool()
    last = stream(monitor, S, 0.4, still=True)
    assert monitor.health(last).state == "live"
    last = stream(monitor, last + PERIOD, 0.3, still=True)
    health = monitor.health(last)
    assert health.state == "stale"
    assert health.detail.startswith("frozen: the same pose bit for bit for 0.")
    monitor.on_sample(last + PERIOD, last + PERIOD, b"moved")
    assert monitor.health(last + PERIOD).state == "live"


def test_a_stream_sent_only_on_change_ages_by_its_heartbeat() -> None:
    monitor = tool(hold_last=True, stale_ms=500.0, lost_ms=900.0)
    monitor.on_sample(0, 0, b"a")
    for n in range(1, 50):
        monitor.on_any_message(n * 400 * MS)
    assert monitor.health(49 * 400 * MS + 400 * MS).state == "live"
    assert monitor.health(49 * 400 * MS + 600 * MS).state == "stale"
    assert monitor.health(49 * 400 * MS + 950 * MS).state == "lost"
    monitor.on_sample(49 * 400 * MS, 49 * 400 * MS, b"a")
    assert monitor.health(49 * 400 * MS).gaps == 0


def test_superseded_images_are_received_and_dropped() -> None:
    config = ImageStreamConfig(device="Image", name="ultrasound", nominal_hz=30.0)
    monitor = StreamMonitor("ultrasound", "image", config)
    for n in range(60):
        monitor.on_sample(n * 33 * MS, n * 33 * MS + 10 * MS, used=n % 2 == 1)
    monitor.on_drop(3)
    health = monitor.health(59 * 33 * MS + 10 * MS)
    assert (health.received, health.dropped, health.gaps) == (63, 33, 0)
    assert health.rate_hz == pytest.approx(30.3, abs=1.0)


def test_summary_has_percentiles_of_the_ages_at_the_ticks() -> None:
    monitor = tool()
    assert monitor.summary()["age_ms"] == {"p50": None, "p95": None, "max": None}
    monitor.sample_age(0)
    assert monitor.summary()["age_ms"] == {"p50": None, "p95": None, "max": None}
    last = stream(monitor, S, 2.0)
    ages = [20.0 + k for k in range(101)]
    for k in range(101):
        monitor.sample_age(last + k * MS)
    summary = monitor.summary()
    assert summary["age_ms"]["max"] == 120.0
    assert summary["age_ms"]["p50"] == pytest.approx(np.percentile(ages, 50), rel=1e-3)
    assert summary["age_ms"]["p95"] == pytest.approx(np.percentile(ages, 95), rel=1e-3)
    assert summary["received"] == 120
    assert summary["rate_hz"] == pytest.approx(60.0, abs=1e-3)


def test_what_looks_wrong_in_an_image_stands_until_an_image_without_it() -> None:
    monitor = StreamMonitor("fluoro", "image", ImageStreamConfig(device="Ct", name="fluoro", nominal_hz=6.0))
    mirrored = StreamFinding("image_mirrored", "left-handed axes", "-1", "positive", "Check")
    centre = StreamFinding("image_without_centre", "position 0", "0", "the centre", "Check", by_every_item=True)

    def codes(n: int, *findings: StreamFinding) -> list[str]:
        monitor.on_sample(n * 160 * MS, n * 160 * MS, findings=findings)
        return [f.code for f in monitor.health(n * 160 * MS).findings]

    assert codes(1, mirrored, centre) == ["image_mirrored", "image_without_centre"]
    assert codes(2, centre) == ["image_without_centre"]
    assert codes(3) == []
    assert codes(4, mirrored, centre) == ["image_mirrored"]  # the centre was at 0 by chance: others were not
    assert codes(5) == []
