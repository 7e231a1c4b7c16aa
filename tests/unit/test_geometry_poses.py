"""The pose buffer: it interpolates between near valid neighbours, and refuses everything else by its name."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from nav.geometry.frames import TransformName
from nav.geometry.poses import (
    GapTooWide,
    NoPoseYet,
    NotYet,
    PoseBuffer,
    PoseRefusal,
    PoseSample,
    PoseStatus,
    ToolLost,
    TooOld,
    interpolate,
)
from nav.geometry.rigid import Rigid, rotation_angle_rad

NAME = TransformName("Needle", "Tracker")
MS = 1_000_000


def pose(x_mm: float, angle_rad: float = 0.0) -> Rigid:
    m = np.eye(4)
    m[:3, :3] = Rotation.from_rotvec([0.0, 0.0, angle_rad]).as_matrix()
    m[0, 3] = x_mm
    return Rigid.from_matrix(m, NAME)


def sample(t_ms: float, x_mm: float | None, sequence: int = 0) -> PoseSample:
    acquired = round(t_ms * MS)
    status = PoseStatus.OK if x_mm is not None else PoseStatus.MISSING
    return PoseSample(None if x_mm is None else pose(x_mm), status, acquired, acquired + 5 * MS, sequence)


def filled(*rows: tuple[float, float | None], gap_ms: float = 50.0) -> PoseBuffer:
    buffer = PoseBuffer(NAME, max_gap_ns=round(gap_ms * MS))
    for number, (t, x) in enumerate(rows):
        assert buffer.append(sample(t, x, number))
    return buffer


def test_interpolates_between_near_neighbours() -> None:
    found = filled((0, 0.0), (20, 10.0)).at(5 * MS)
    assert found.pose.translation[0] == pytest.approx(2.5)
    assert found.time_ns == 5 * MS
    assert found.arrival_ns == 25 * MS, "the answer is only as old as the newest sample it rests on"
    assert found.sequence == 1


def test_a_sample_at_the_wanted_time_is_returned_as_it_is() -> None:
    buffer = filled((0, 0.0), (20, 10.0), (500, 20.0))
    for row in buffer.samples():
        assert buffer.at(row.acquired_ns).pose == row.pose


def test_no_pose_yet() -> None:
    with pytest.raises(NoPoseYet, match="NeedleToTracker"):
        filled().at(0)
    with pytest.raises(NoPoseYet):
        filled().latest(0, 10**9)


def test_too_old_names_both_times() -> None:
    with pytest.raises(TooOld, match=r"wanted 9000000 ns.*10000000 ns"):
        filled((10, 0.0)).at(9 * MS)


def test_not_yet_names_both_times() -> None:
    with pytest.raises(NotYet, match=r"wanted 11000000 ns.*10000000 ns"):
        filled((10, 0.0)).at(11 * MS)


def test_gap_is_bridged_up_to_the_limit_and_not_beyond() -> None:
    assert filled((0, 0.0), (50, 10.0)).at(25 * MS).pose.translation[0] == pytest.approx(5.0)
    with pytest.raises(GapTooWide, match=r"50.1 ms apart, limit 50.0 ms"):
        filled((0, 0.0), (50.1, 10.0)).at(25 * MS)


@pytest.mark.parametrize("wanted", [11, 20, 29])
def test_a_lost_tool_is_never_interpolated_across(wanted: int) -> None:
    buffer = filled((0, 0.0), (10, 0.0), (20, None), (30, 0.0))
    with pytest.raises(ToolLost, match="MISSING at 20000000 ns"):
        buffer.at(wanted * MS)
    assert buffer.at(30 * MS).pose == pose(0.0)


def test_a_sender_that_sends_on_change_holds_its_sample_until_the_next() -> None:
    buffer = PoseBuffer(NAME, max_gap_ns=50 * MS, hold_last=True)
    for t, x in ((0, 1.0), (500, 2.0), (900, None)):
        buffer.append(sample(t, x, t))
    held = {t: buffer.at(t * MS).pose.translation[0] for t in (0, 1, 499, 500, 899)}
    assert held == {0: 1.0, 1: 1.0, 499: 1.0, 500: 2.0, 899: 2.0}
    assert buffer.at(899 * MS).arrival_ns == 505 * MS
    with pytest.raises(TooOld):
        buffer.at(-1)
    for t in (900, 5000):  # what it said last is that it does not see the tool
        with pytest.raises(ToolLost):
            buffer.at(t * MS)
    buffer.append(sample(6000, 3.0))
    assert buffer.at(60_000 * MS).pose.translation[0] == 3.0


def test_latest_gives_the_newest_as_received_or_refuses() -> None:
    buffer = filled((0, 0.0), (20, 10.0))
    assert buffer.latest(120 * MS, 100 * MS).pose == pose(10.0)
    with pytest.raises(TooOld, match="101 ms old, limit 100 ms"):
        buffer.latest(121 * MS, 100 * MS)
    buffer.append(sample(40, None))
    with pytest.raises(ToolLost):
        buffer.latest(41 * MS, 100 * MS)


def test_refusals_have_distinct_stable_codes() -> None:
    kinds = [NoPoseYet, TooOld, NotYet, GapTooWide, ToolLost]
    assert len({kind.code for kind in kinds}) == len(kinds)
    assert all(issubclass(kind, PoseRefusal) for kind in kinds)


def test_samples_out_of_order_are_counted_and_left_out() -> None:
    buffer = filled((0, 0.0), (20, 10.0))
    assert not buffer.append(sample(20, 99.0))
    assert not buffer.append(sample(10, 99.0))
    assert buffer.rejected_out_of_order == 2
    assert [row.pose for row in buffer.samples()] == [pose(0.0), pose(10.0)]


def test_the_ring_forgets_the_oldest() -> None:
    buffer = PoseBuffer(NAME, max_gap_ns=50 * MS, capacity=3)
    for t in range(5):
        buffer.append(sample(t, float(t)))
    assert [row.acquired_ns for row in buffer.samples()] == [2 * MS, 3 * MS, 4 * MS]
    with pytest.raises(TooOld):
        buffer.at(1 * MS)


def test_bad_input_dies_at_the_door() -> None:
    with pytest.raises(ValueError, match="contradict"):
        PoseSample(pose(0.0), PoseStatus.MISSING, 0, 0, 0)
    with pytest.raises(ValueError, match="contradict"):
        PoseSample(None, PoseStatus.OK, 0, 0, 0)
    with pytest.raises(ValueError, match="StylusToTracker does not belong"):
        filled().append(PoseSample(Rigid.identity("StylusToTracker"), PoseStatus.OK, 0, 0, 0))
    for limit, capacity in ((0, 10), (-1, 10), (1, 1)):
        with pytest.raises(ValueError, match="must be positive"):
            PoseBuffer(NAME, max_gap_ns=limit, capacity=capacity)


@pytest.mark.parametrize(
    ("text", "status"), [("ok", "OK"), (" Missing ", "MISSING"), ("junk", "UNKNOWN"), ("", "UNKNOWN")]
)
def test_an_unknown_status_is_never_ok(text: str, status: str) -> None:
    assert PoseStatus.parse(text).value == status


@given(st.floats(0.0, 1.0), st.floats(-3.0, 3.0), st.floats(-100.0, 100.0))
def test_interpolation_moves_at_constant_speed(fraction: float, angle: float, x: float) -> None:
    start, end = pose(0.0), pose(x, angle)
    middle = interpolate(start, end, fraction)
    assert middle.translation[0] == pytest.approx(fraction * x, abs=1e-9)
    assert rotation_angle_rad(start.rotation.T @ middle.rotation) == pytest.approx(fraction * abs(angle), abs=1e-7)
    np.testing.assert_allclose(middle.rotation.T @ middle.rotation, np.eye(3), atol=1e-12)


def test_one_writer_and_several_readers() -> None:
    """Every answer must be right for the time that was asked for, while the ring turns over many times."""
    buffer = PoseBuffer(NAME, max_gap_ns=2 * MS, capacity=64)
    buffer.append(sample(0, 0.0))
    done = threading.Event()
    wrong: list[str] = []
    answered = [0, 0, 0]

    def read(number: int) -> None:
        while not done.is_set():
            newest = buffer.newest()
            assert newest is not None
            wanted = newest.acquired_ns - MS // 2
            try:
                found = buffer.at(wanted)
            except TooOld:
                continue
            except PoseRefusal as refusal:
                wrong.append(repr(refusal))
                continue
            answered[number] += 1
            if abs(found.pose.translation[0] - wanted / MS) > 1e-6:
                wrong.append(f"{wanted}: {found.pose.translation[0]}")

    threads = [threading.Thread(target=read, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for t in range(1, 4000):
        buffer.append(sample(t, float(t), t))
    done.set()
    for thread in threads:
        thread.join(5.0)
    assert not wrong, wrong[:3]
    assert len(buffer) == 64
    assert sum(answered) > 0
