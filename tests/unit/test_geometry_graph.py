"""The frame graph, by the shape of the graph: chain, branch, inverse, disconnected, replaced."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from nav.geometry.frames import FrameNameError, TransformName
from nav.geometry.graph import FrameGraph
from nav.geometry.poses import GapTooWide, NoPoseYet, NotYet, PoseBuffer, PoseSample, PoseStatus, ToolLost, TooOld
from nav.geometry.rigid import Rigid

MS = 1_000_000


def shift(name: str, x: float, y: float = 0.0, z: float = 0.0) -> Rigid:
    m = np.eye(4)
    m[:3, 3] = x, y, z
    return Rigid.from_matrix(m, name)


def turn(name: str) -> Rigid:
    """A quarter turn about z and a shift, so that order and direction matter."""
    m = np.eye(4)
    m[:2, :2] = [[0.0, -1.0], [1.0, 0.0]]
    m[:3, 3] = 1.0, 2.0, 3.0
    return Rigid.from_matrix(m, name)


def moving(graph: FrameGraph, name: str, *rows: tuple[float, float | None]) -> TransformName:
    tname = TransformName.parse(name)
    graph.add_moving(PoseBuffer(tname, max_gap_ns=50 * MS))
    for number, (t, x) in enumerate(rows):
        feed(graph, tname, t, x, number)
    return tname


def feed(graph: FrameGraph, name: TransformName, t_ms: float, x: float | None, sequence: int) -> None:
    value = None if x is None else shift(name.wire, x)
    status = PoseStatus.OK if value else PoseStatus.OUT_OF_VIEW
    graph.append(name, PoseSample(value, status, round(t_ms * MS), round((t_ms + 5) * MS), sequence))


@pytest.fixture
def navigation() -> FrameGraph:
    """The usual room: tip → needle → tracker ← reference, and reference → RAS."""
    graph = FrameGraph()
    graph.set_static(shift("NeedleTipToNeedle", 0, 0, 150), "calibrated")
    moving(graph, "NeedleToTracker", (0, 100.0), (20, 120.0))
    moving(graph, "ReferenceToTracker", (0, 10.0), (20, 10.0), (40, 10.0))
    graph.set_static(turn("ReferenceToRas"), "landmarks", 1)
    return graph


def test_chain_with_an_edge_against_its_direction(navigation: FrameGraph) -> None:
    steps = navigation.path("Ras", "NeedleTip")
    assert [s.wire for s in steps] == ["ReferenceToRas", "TrackerToReference", "NeedleToTracker", "NeedleTipToNeedle"]
    found = navigation.lookup("Ras", "NeedleTip", 10 * MS)
    assert found.pose.name == TransformName("NeedleTip", "Ras")
    expected = turn("ReferenceToRas").apply([110.0 - 10.0, 0.0, 150.0])
    np.testing.assert_allclose(found.pose.translation, expected, atol=1e-9)
    assert (found.time_ns, found.arrival_ns, found.sequence) == (10 * MS, 25 * MS, 1)


def test_inverse_lookup_is_the_inverse(navigation: FrameGraph) -> None:
    there = navigation.lookup("Ras", "NeedleTip", 10 * MS).pose
    back = navigation.lookup("NeedleTip", "Ras", 10 * MS).pose
    np.testing.assert_allclose((back @ Rigid.from_matrix(there.matrix, "XToRas")).matrix, np.eye(4), atol=1e-9)


def test_branch_is_not_entered(navigation: FrameGraph) -> None:
    moving(navigation, "ProbeToTracker")  # no pose yet: must not matter to the needle
    navigation.set_static(shift("ImageToProbe", 1), "nominal")
    assert navigation.lookup("Ras", "NeedleTip", 10 * MS).sequence == 1
    with pytest.raises(NoPoseYet, match="ProbeToTracker"):
        navigation.lookup("Ras", "Image", 10 * MS)


def test_shortest_way_of_a_ring() -> None:
    graph = FrameGraph()
    for name in ("AToB", "BToC", "CToD"):
        graph.set_static(shift(name, 1), "x")
    assert len(graph.path("D", "A")) == 3
    graph.set_static(shift("AToD", 3), "x")
    assert len(graph.path("D", "A")) == 1, "a path found before must not outlive a new edge"


def test_disconnected_names_what_is_known() -> None:
    graph = FrameGraph()
    graph.set_static(shift("AToB", 1), "x")
    graph.set_static(shift("CToD", 1), "x")
    with pytest.raises(NoPoseYet, match="no chain of transforms joins A to D; frames known: A, B, C, D"):
        graph.lookup("D", "A", 0)
    with pytest.raises(NoPoseYet, match="known: none"):
        FrameGraph().path("A", "B")


def test_all_static_chain_has_no_arrival() -> None:
    graph = FrameGraph()
    graph.set_static(shift("AToB", 1), "x")
    graph.set_static(shift("BToC", 2), "x")
    found = graph.lookup("C", "A", 123)
    assert (found.pose.translation[0], found.arrival_ns, found.sequence) == (3.0, 0, -1)


@pytest.mark.parametrize(
    ("t_ms", "refusal"),
    [(-1, TooOld), (21, NotYet), (41, NotYet)],
    ids=["before all", "needle not yet", "both not yet"],
)
def test_the_worst_edge_decides(navigation: FrameGraph, t_ms: int, refusal: type[Exception]) -> None:
    with pytest.raises(refusal):
        navigation.lookup("Ras", "NeedleTip", t_ms * MS)


def test_gap_and_lost_tool_come_through(navigation: FrameGraph) -> None:
    needle = TransformName("Needle", "Tracker")
    reference = TransformName("Reference", "Tracker")
    feed(navigation, reference, 60, 10.0, 3)
    feed(navigation, reference, 80, 10.0, 4)
    feed(navigation, needle, 80, 130.0, 2)
    with pytest.raises(GapTooWide, match="NeedleToTracker"):
        navigation.lookup("Ras", "NeedleTip", 50 * MS)
    feed(navigation, reference, 100, None, 5)
    feed(navigation, needle, 100, 130.0, 3)
    with pytest.raises(ToolLost, match="ReferenceToTracker: OUT_OF_VIEW"):
        navigation.lookup("Ras", "NeedleTip", 90 * MS)


def test_static_edge_is_not_replaced_by_an_older_one() -> None:
    graph = FrameGraph()
    assert graph.set_static(shift("ReferenceToRas", 2), "landmarks", 2)
    assert not graph.set_static(shift("ReferenceToRas", 1), "late result", 1)
    assert graph.lookup("Ras", "Reference", 0).pose.translation[0] == 2.0
    assert graph.set_static(shift("RasToReference", 7), "other direction", 3)
    assert graph.lookup("Ras", "Reference", 0).pose.translation[0] == -7.0
    edge = graph.static(TransformName("Reference", "Ras"))
    assert edge is not None
    assert edge.provenance == "other direction"


def test_removed_edge_is_gone_and_may_come_back(navigation: FrameGraph) -> None:
    name = TransformName("Reference", "Ras")
    assert navigation.lookup("Ras", "NeedleTip", 10 * MS)
    navigation.remove_static(name)
    navigation.remove_static(name)
    with pytest.raises(NoPoseYet, match="no chain"):
        navigation.lookup("Ras", "NeedleTip", 10 * MS)
    assert navigation.set_static(turn("ReferenceToRas"), "again", 0)
    assert navigation.lookup("Ras", "NeedleTip", 10 * MS)


def test_bad_edges_die_at_the_door(navigation: FrameGraph) -> None:
    with pytest.raises(FrameNameError, match="moving one already"):
        navigation.set_static(shift("TrackerToNeedle", 1), "x")
    with pytest.raises(FrameNameError, match="joined already"):
        navigation.add_moving(PoseBuffer(TransformName("Tracker", "Needle"), max_gap_ns=MS))
    with pytest.raises(FrameNameError, match="no such moving edge"):
        feed(navigation, TransformName("Stylus", "Tracker"), 0, 0.0, 0)
    with pytest.raises(FrameNameError, match="placed in itself"):
        navigation.lookup("Ras", "Ras", 0)
    with pytest.raises(FrameNameError):
        navigation.lookup("Ras", "needle tip", 0)


def test_newest_common_time(navigation: FrameGraph) -> None:
    assert navigation.newest_common_time("Ras", "NeedleTip") == 20 * MS
    with pytest.raises(NoPoseYet, match="no moving transform"):
        navigation.newest_common_time("Ras", "Reference")
    moving(navigation, "StylusToTracker")
    with pytest.raises(NoPoseYet, match="StylusToTracker"):
        navigation.newest_common_time("Ras", "Stylus")


def test_lookup_sees_a_whole_registration_while_it_is_replaced() -> None:
    """Two static edges are exchanged together by generation; a reader sees sums that one pair can give."""
    graph = FrameGraph()
    graph.set_static(shift("AToB", 0), "x", 0)
    done = threading.Event()
    seen: set[float] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(float(graph.lookup("B", "A", 0).pose.translation[0]))

    reader = threading.Thread(target=read)
    reader.start()
    for generation in range(1, 500):
        # Alternating direction: a reader that mixed name and matrix would see a negative value.
        name = "AToB" if generation % 2 else "BToA"
        graph.set_static(shift(name, generation if generation % 2 else -generation), "x", generation)
    done.set()
    reader.join(5.0)
    assert seen
    assert min(seen) >= 0.0
