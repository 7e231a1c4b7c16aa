"""Images are placed at their own time: they wait for their poses, and they disappear when they are old."""

from __future__ import annotations

import numpy as np
import pytest

from nav.config.load import parse_toml
from nav.config.room import RoomConfig
from nav.geometry.frames import TransformName
from nav.geometry.graph import FrameGraph
from nav.geometry.poses import PoseBuffer, PoseSample, PoseStatus
from nav.geometry.rigid import Rigid
from nav.runtime.images import ImagePlacer
from nav.runtime.messages import ImageMessage

MS = 1_000_000
ROOM = """
[[sources]]
name = "us"
images = [
  { device = "Image", name = "ultrasound", frame = "Image", nominal_hz = 30.0 },
  { device = "Slice", name = "fluoro", role = "fluoro", placed_by = "header", frame = "Ras", nominal_hz = 6.0 },
]
[[calibrations]]
name = "ImageToProbe"
kind = "pixels"
matrix = [[0.2, 0, 0, 5], [0, 0.3, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
"""


def moved(x: float) -> Rigid:
    matrix = np.eye(4)
    matrix[0, 3] = x
    return Rigid.from_matrix(matrix, "ProbeToRas")


@pytest.fixture
def graph() -> FrameGraph:
    graph = FrameGraph()
    graph.add_moving(PoseBuffer(TransformName.parse("ProbeToRas"), max_gap_ns=50 * MS))
    return graph


@pytest.fixture
def placer(graph: FrameGraph) -> ImagePlacer:
    return ImagePlacer(parse_toml(ROOM, RoomConfig, "test"), graph)


def pose(graph: FrameGraph, at_ms: int, x: float) -> None:
    graph.append(TransformName.parse("ProbeToRas"), PoseSample(moved(x), PoseStatus.OK, at_ms * MS, at_ms * MS, at_ms))


def image(at_ms: int, offset: tuple[int, int, int] = (0, 0, 0)) -> ImageMessage:
    return ImageMessage("us", at_ms, at_ms * MS, "Image", None, {}, index_offset=offset)


def streams() -> dict[str, object]:
    return {i.name: i for s in parse_toml(ROOM, RoomConfig, "test").sources for i in s.images}


def test_an_image_waits_for_the_pose_after_it_and_lies_where_the_probe_was(
    graph: FrameGraph, placer: ImagePlacer
) -> None:
    config = streams()["ultrasound"]
    pose(graph, 100, 0.0)
    placer.take(config, image(110), 110 * MS)  # type: ignore[arg-type]
    assert placer.newest("ultrasound", 115 * MS) is None
    pose(graph, 120, 10.0)
    placed = placer.newest("ultrasound", 125 * MS)
    assert placed is not None
    assert placed.acquired_ns == 110 * MS
    np.testing.assert_allclose(placed.ras_from_index[:3, 3], [5.0 + 5.0, 0.0, 0.0])
    np.testing.assert_allclose(placed.ras_from_index[:3, :3], np.diag([0.2, 0.3, 1.0]))


def test_a_part_of_the_image_lies_where_it_was_cut_out(graph: FrameGraph, placer: ImagePlacer) -> None:
    pose(graph, 100, 0.0)
    placer.take(streams()["ultrasound"], image(100, (10, 20, 0)), 100 * MS)  # type: ignore[arg-type]
    placed = placer.newest("ultrasound", 101 * MS)
    assert placed is not None
    np.testing.assert_allclose(placed.ras_from_index[:3, 3], [5.0 + 2.0, 6.0, 0.0])


def test_an_old_image_is_not_shown_and_does_not_come_back(graph: FrameGraph, placer: ImagePlacer) -> None:
    pose(graph, 100, 0.0)
    placer.take(streams()["ultrasound"], image(100), 100 * MS)  # type: ignore[arg-type]
    assert placer.newest("ultrasound", 299 * MS) is not None
    assert placer.newest("ultrasound", 301 * MS) is None
    assert placer.newest("ultrasound", 200 * MS) is None


def test_an_image_in_a_gap_of_the_poses_is_refused_with_the_reason(graph: FrameGraph, placer: ImagePlacer) -> None:
    pose(graph, 100, 0.0)
    placer.take(streams()["ultrasound"], image(130), 130 * MS)  # type: ignore[arg-type]
    pose(graph, 200, 0.0)
    assert placer.newest("ultrasound", 205 * MS) is None
    assert "apart" in placer.refusal("ultrasound")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((1, 4, 4), np.int16), "dtype int16"),
        (np.zeros((1, 4, 4), np.float32), "dtype float32"),
        (np.zeros((3, 4, 4), np.uint8), "3 slices"),
    ],
)
def test_an_ultrasound_image_that_cannot_be_drawn_is_a_problem_until_a_good_one_comes(
    graph: FrameGraph, placer: ImagePlacer, array: np.ndarray, words: str
) -> None:
    config = streams()["ultrasound"]
    pose(graph, 100, 0.0)
    bad = ImageMessage("us", 1, 100 * MS, "Image", None, {}, array=array)
    placer.take(config, bad, 100 * MS)  # type: ignore[arg-type]
    assert placer.newest("ultrasound", 101 * MS) is None
    assert len(placer.problems()) == 1
    assert words in placer.problems()[0]
    placer.take(config, image(100), 100 * MS)  # type: ignore[arg-type]
    assert placer.newest("ultrasound", 102 * MS) is not None
    assert placer.problems() == ()


def test_colour_becomes_grey(graph: FrameGraph, placer: ImagePlacer) -> None:
    pose(graph, 100, 0.0)
    colour = np.zeros((1, 4, 4, 3), np.uint8)
    colour[..., 0] = 90
    message = ImageMessage("us", 1, 100 * MS, "Image", None, {}, array=colour)
    placer.take(streams()["ultrasound"], message, 100 * MS)  # type: ignore[arg-type]
    placed = placer.newest("ultrasound", 101 * MS)
    assert placed is not None
    assert placed.array.shape == (1, 4, 4)
    assert (placed.array == 30).all()


def test_an_image_with_its_own_matrix_needs_no_pose(placer: ImagePlacer) -> None:
    matrix = np.diag([0.7, 0.7, 4.0, 1.0])
    matrix[:3, 3] = (1.0, 2.0, 3.0)
    message = ImageMessage("us", 1, 50 * MS, "Slice", None, {}, mm_from_index=matrix)
    placer.take(streams()["fluoro"], message, 40 * MS)  # type: ignore[arg-type]
    placed = placer.newest("fluoro", 60 * MS)
    assert placed is not None
    np.testing.assert_allclose(placed.ras_from_index, matrix)
