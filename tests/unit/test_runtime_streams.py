"""The streams of a room from message to health: what is believed, what is taken away, what is said."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from nav.config.load import parse_toml
from nav.config.room import RoomConfig
from nav.geometry.graph import FrameGraph
from nav.geometry.poses import PoseStatus, ToolLost
from nav.guidance.gate import GateInputs, evaluate_gate
from nav.guidance.health import StreamHealth
from nav.guidance.numbers import GateState
from nav.runtime.messages import LinkMessage, LinkState, PoseMessage, StatusMessage, ToolReport
from nav.runtime.streams import StreamSet

MS = 1_000_000
S = 1_000_000_000
PERIOD = 16_666_667
OFFSET = 1_700_000_000 * S
NAME = "NeedleToTracker"


class Tracker:
    """One tool at 60 Hz on a hand-moved clock."""

    def __init__(self, options: str = "", source: str = "") -> None:
        text = f"""
[[sources]]
name = "tracker"
{source}
tools = [
  {{ device = "{NAME}", transform = "{NAME}"{options} }},
  {{ device = "StylusToTracker", transform = "StylusToTracker" }},
]
"""
        self.graph = FrameGraph()
        self.streams = StreamSet(parse_toml(text, RoomConfig, "test"), self.graph)
        self.rng = np.random.default_rng(7)
        self.now = S
        self.number = 0
        self.offset = OFFSET
        self.delay = 20 * MS
        self.connect()

    def connect(self) -> None:
        self.streams.on_link(LinkMessage("tracker", self.number, self.now, "", None, state=LinkState.CONNECTED))

    def measured(self) -> NDArray[np.float64]:
        matrix = np.eye(4)
        matrix[:3, 3] = np.float32(np.array([100.0, -40.0, -900.0]) + self.rng.standard_normal(3))
        return matrix

    def send(
        self,
        matrix: NDArray[np.float64] | None = None,
        *,
        status: PoseStatus = PoseStatus.OK,
        stated: bool = False,
        stamp: int | None = -1,
        problem: str = "",
        wait: int = PERIOD,
    ) -> None:
        """One pose, ``wait`` after the last message."""
        self.now += wait
        self.number += 1
        sender = self.now - self.delay + self.offset if stamp == -1 else stamp
        shown = (self.measured() if matrix is None else matrix) if status is PoseStatus.OK else None
        report = ToolReport(NAME, status, shown, problem, stated)
        message = PoseMessage("tracker", self.number, self.now, NAME, sender, tools=(report,))
        self.streams.on_any(message)
        self.streams.on_poses(message)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 60)):
            self.send()

    def say(self, code: int, text: str = "", device: str = "", wait: int = 0) -> None:
        self.now += wait
        self.number += 1
        message = StatusMessage("tracker", self.number, self.now, device, None, code=code, text=text)
        self.streams.on_any(message)
        self.streams.on_status(message)

    def health(self, after: int = 0, name: str = NAME) -> StreamHealth:
        return next(h for h in self.streams.health(self.now + after) if h.name == name)

    def codes(self, after: int = 0) -> set[str]:
        return {f.code for f in self.health(after).findings}

    def newest_is_a_pose(self) -> bool:
        buffer = next(iter(self.graph.moving_on_path("Tracker", "Needle")))
        newest = buffer.newest()
        return newest is not None and newest.pose is not None


def test_a_moving_tool_is_live_with_nothing_to_say() -> None:
    tracker = Tracker()
    tracker.run(20.0)
    health = tracker.health()
    assert (health.state, health.findings, health.rejected, health.refused) == ("live", (), 0, 0)
    assert health.clock is not None
    assert health.clock.offset_ms == pytest.approx(OFFSET / MS - 20.0)
    assert (health.clock.lag_ms, health.clock.steps) == (0.0, 0)
    assert health.clock.jitter_ms == pytest.approx(0.0, abs=0.01)


def test_an_identity_without_a_status_is_a_lost_tool_from_the_first_one_on() -> None:
    tracker = Tracker()
    tracker.send(np.eye(4))
    assert tracker.health().state == "lost"
    assert not tracker.newest_is_a_pose()
    tracker.run(1.0)
    assert tracker.health().state == "live"
    tracker.send(np.eye(4))
    health = tracker.health()
    assert health.state == "lost"
    assert "MISSING for 0.0 s: exact identity without a status" in health.detail
    assert "identity_is_lost = false" in health.detail
    assert health.refused == 2
    with pytest.raises(ToolLost):
        tracker.graph.lookup("Tracker", "Needle", tracker.graph.newest_common_time("Tracker", "Needle"))
    tracker.send()
    assert tracker.health().state == "live"


@pytest.mark.parametrize("options", [", identity_is_lost = false", ", hold_last = true"])
def test_an_identity_is_a_pose_where_the_room_says_so(options: str) -> None:
    tracker = Tracker(options)
    tracker.send(np.eye(4))
    assert tracker.health().state == "live"
    assert tracker.newest_is_a_pose()


def test_an_identity_with_status_ok_is_a_pose_and_one_almost_identity_too() -> None:
    tracker = Tracker()
    tracker.send(np.eye(4), stated=True)
    assert tracker.health().state == "live"
    near = np.eye(4)
    near[0, 3] = 1e-3
    tracker.send(near)
    assert tracker.health().state == "live"


def test_a_repeated_pose_is_taken_away_as_old_as_its_first_appearance() -> None:
    tracker = Tracker()
    tracker.run(5.0)
    last = tracker.measured()
    tracker.send(last)
    first_shown = tracker.now
    while tracker.now - first_shown < 2 * S:
        tracker.send(last)
        age = tracker.now - first_shown  # the smallest delay cannot be seen from one side
        assert (tracker.health().state == "lost") is (age > 250 * MS), age
    assert "frozen" in tracker.health().detail
    assert not tracker.newest_is_a_pose()
    tracker.send()
    assert tracker.health().state == "live"
    assert tracker.newest_is_a_pose()


def test_a_repeated_pose_and_then_silence_do_not_add_up() -> None:
    tracker = Tracker()
    tracker.run(5.0)
    last = tracker.measured()
    for _ in range(13):
        tracker.send(last)
    # 200 ms of repeats, then nothing.
    assert tracker.health(49 * MS).state != "lost"
    assert tracker.health(51 * MS).state == "lost"


def test_a_pose_that_came_too_late_is_no_newer_when_it_is_repeated() -> None:
    tracker = Tracker()
    tracker.run(5.0)
    late = tracker.measured()
    shown_ns = tracker.now
    tracker.send(late, stamp=tracker.now - tracker.delay + tracker.offset - 10 * MS, wait=4 * PERIOD)
    assert tracker.newest_is_a_pose()  # the one before it
    while tracker.now - shown_ns < S:
        tracker.send(late)
        if tracker.now - shown_ns > 250 * MS:
            assert tracker.health().state == "lost", tracker.now - shown_ns
    tracker.send()
    assert tracker.health().state == "live"


def test_a_pose_that_came_too_late_is_forgotten_with_the_next_one() -> None:
    tracker = Tracker()
    tracker.run(5.0)
    late = tracker.measured()
    tracker.send(late, stamp=tracker.now - tracker.delay + tracker.offset - 10 * MS)
    tracker.run(1.0)
    tracker.send(late)  # a measurement of its own
    assert tracker.health().state == "live"


def test_a_tracker_that_rounds_may_rest_and_is_only_marked() -> None:
    tracker = Tracker()
    for n in range(600):
        matrix = np.eye(4)
        matrix[0, 3] = 100.0 + n // 12  # the same bits for 200 ms at a time
        tracker.send(matrix)
    resting = tracker.measured()
    for _ in range(120):
        tracker.send(resting)
    health = tracker.health()
    assert health.state == "stale"
    assert "frozen" in health.detail


def test_poses_out_of_order_are_counted_and_the_stream_ages() -> None:
    tracker = Tracker()
    tracker.run(1.0)
    stamp = tracker.now - tracker.delay + tracker.offset
    for n in range(20):
        tracker.send(stamp=stamp - n * 1000)
    health = tracker.health()
    assert health.rejected == 20
    assert health.state == "lost"
    assert tracker.streams.summary()[NAME]["rejected"] == 20
    assert "stamp_backwards" in tracker.codes()


def test_a_report_of_loss_is_believed_whatever_its_time() -> None:
    tracker = Tracker()
    tracker.run(1.0)
    tracker.send(status=PoseStatus.OUT_OF_VIEW, stamp=tracker.now - tracker.delay + tracker.offset - 40 * MS)
    assert tracker.health().state == "lost"


def test_a_refused_matrix_says_why() -> None:
    tracker = Tracker()
    tracker.run(1.0)
    tracker.send(status=PoseStatus.INVALID, problem="the matrix mirrors (negative determinant)")
    assert "INVALID for 0.0 s: the matrix mirrors" in tracker.health().detail


def test_status_without_poses_is_a_lost_tool_and_silence_a_lost_link() -> None:
    tracker = Tracker()
    tracker.run(1.0)
    for _ in range(2):
        tracker.say(1, wait=100 * MS)
        assert tracker.health().state in ("live", "stale")
    tracker.say(1, wait=100 * MS)
    assert tracker.health().state == "lost"
    assert "no pose for 0.3 s" in tracker.health().detail
    assert tracker.health(899 * MS).state == "lost"
    assert tracker.health(901 * MS).state == "link_lost"


def test_not_ready_takes_away_what_is_there_until_newer_data_comes() -> None:
    tracker = Tracker()
    tracker.run(1.0)
    tracker.say(13, "warming up")
    health = tracker.health()
    assert health.state == "lost"
    assert health.detail == 'server says "device not ready" (code 13, warming up)'
    tracker.send()
    assert tracker.health().state == "live"
    assert tracker.codes() == {"server_status"}
    tracker.say(1)
    assert tracker.codes() == set()


@pytest.mark.parametrize("code", [3, 18])
def test_a_failure_stands_until_ok_or_a_new_connection(code: int) -> None:
    tracker = Tracker()
    tracker.run(1.0)
    tracker.say(code)
    tracker.run(20.0)
    assert tracker.health().state == "lost"
    tracker.say(1)
    assert tracker.health().state == "live"
    tracker.say(code)
    tracker.connect()
    tracker.send()
    assert tracker.health().state == "live"


def test_a_complaint_is_told_for_ten_seconds_and_degrades() -> None:
    tracker = Tracker()
    tracker.run(1.0)
    tracker.say(6)
    tracker.run(9.0)
    assert tracker.health().state == "live"
    verdict = evaluate_gate(GateInputs(streams=(tracker.health(),), required=frozenset({NAME})))
    reason = next(r for r in verdict.reasons if r.code == f"server_status:{NAME}")
    assert reason.level is GateState.DEGRADED
    assert 'server says "busy"' in reason.text
    tracker.run(2.0)
    assert tracker.codes() == set()


def test_a_status_under_a_tools_name_is_about_that_tool_alone() -> None:
    tracker = Tracker()
    tracker.run(1.0)
    tracker.say(13, device="StylusToTracker")
    assert tracker.health().state == "live"
    assert tracker.codes() == set()
    tracker.say(18, device=NAME)
    tracker.say(1)  # a keep-alive of the server does not speak for the tool
    tracker.run(1.0)
    assert tracker.health().state == "lost"
    tracker.say(1, device=NAME)
    assert tracker.health().state == "live"


@pytest.mark.parametrize("step_s", [-3.0, 3.0])
def test_a_clock_that_is_set_is_said_for_some_seconds_and_no_age_is_wrong(step_s: float) -> None:
    tracker = Tracker()
    tracker.run(5.0)
    tracker.offset += round(step_s * S)
    for _ in range(60):
        tracker.send()
        assert tracker.health().age_ms <= 40.0
    assert "clock_step" in tracker.codes()
    health = tracker.health()
    assert health.state == "live"
    assert health.clock is not None
    assert health.clock.steps == 1
    tracker.run(5.0)
    assert tracker.codes() == set()


def test_data_that_comes_later_and_later_is_said() -> None:
    tracker = Tracker()
    tracker.run(15.0)
    tracker.delay = 180 * MS
    tracker.send(wait=200 * MS)  # an ordered transport: nothing overtakes
    for _ in range(60 * 12):
        tracker.send()
        tracker.health()
    assert "data_late" in tracker.codes()
    clock = tracker.health().clock
    assert clock is not None
    assert clock.shift_ms == pytest.approx(160.0, abs=10.0)


@pytest.mark.parametrize(("ppm", "said"), [(100.0, False), (400.0, True)])
def test_drift_beyond_what_crystals_do_is_said_after_a_minute(ppm: float, said: bool) -> None:
    tracker = Tracker()
    start = tracker.now
    for n in range(70 * 60):
        tracker.offset = OFFSET + round((tracker.now - start) * ppm * 1e-6)
        tracker.send()
        if n == 40 * 60:
            assert tracker.codes() == set()
    clock = tracker.health().clock
    assert clock is not None
    assert clock.drift_ppm == pytest.approx(ppm, abs=5.0)
    assert (tracker.codes() == {"clock_drift"}) is said


def test_a_sender_that_should_stamp_and_does_not_is_told() -> None:
    tracker = Tracker()
    for _ in range(30):
        tracker.send(stamp=None)
    assert tracker.codes() == {"stamp_missing"}
    assert tracker.health().clock is None
    arrival = Tracker(source='stamps = "arrival"')
    for _ in range(30):
        arrival.send(stamp=None)
    assert arrival.codes() == set()


def test_a_stamp_that_stands_still_is_told() -> None:
    tracker = Tracker()
    for _ in range(30):
        tracker.send(stamp=OFFSET)
    assert tracker.codes() == {"stamp_stuck"}


def test_metres_for_millimetres_degrade() -> None:
    tracker = Tracker()
    for _ in range(60):
        metres = tracker.measured()
        metres[:3, 3] *= 1e-3
        tracker.send(metres)
    assert tracker.codes() == {"pose_metres"}
    tracker = Tracker()
    for n in range(60):
        touching = np.eye(4)
        touching[0, 3] = 0.01 * n if n < 59 else 5.0
        tracker.send(touching)
    assert tracker.codes() == set()


def test_hold_last_for_a_sender_that_sends_steadily_is_told() -> None:
    tracker = Tracker(", hold_last = true")
    tracker.run(9.0)
    assert tracker.codes() == set()
    tracker.run(2.0)
    assert tracker.codes() == {"hold_last_steady"}
    tracker.send(wait=S)
    assert tracker.codes() == set()


def test_offset_is_told_against_the_local_utc_clock_where_that_is_known() -> None:
    tracker = Tracker()
    tracker.streams.utc_minus_local_ns = OFFSET - 3 * S  # the sender is three seconds ahead
    tracker.run(1.0)
    clock = tracker.health().clock
    assert clock is not None
    assert clock.offset_ms == pytest.approx(3000.0 - 20.0)
    assert tracker.streams.summary()[NAME]["clock"]["offset_ms"] == clock.offset_ms
