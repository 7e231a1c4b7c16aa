"""The pictures of a real liver case: real spacing, real anatomy, real cost."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nav.ablation.mask_surface import MAX_FACES
from nav.ablation.tumour import TumourModel
from nav.geometry.poses import PoseStatus
from nav.geometry.rigid import Rigid
from nav.guidance.numbers import GateState, GateVerdict
from nav.hud.pane_frame import ViewState
from nav.hud.panes import SceneModel, build_scene, render_panes
from nav.imaging.surfaces import MAX_VESSEL_TRIANGLES
from nav.io.case import Case
from nav.io.case_loader import load_case
from nav.runtime.snapshot import NavigationSnapshot, SetupState, ToolState

TUMOUR, VESSELS = 451, (465, 481)
VIEW = ViewState(sizes=dict.fromkeys("ABCD", (792, 519)), window_hu=300.0, level_hu=90.0)


@pytest.fixture(scope="module")
def case(shared_data: Path) -> Case:
    folder = shared_data / "ct_liver"
    labels = folder / "labels.nrrd"
    return load_case(
        folder / "dicom",
        tumour_path=labels,
        tumour_label=TUMOUR,
        tumour_component=2,
        vessels=(labels, VESSELS),
    )


@pytest.fixture(scope="module")
def scene(case: Case) -> SceneModel:
    return build_scene(case)


def snapshot(scene: SceneModel) -> NavigationSnapshot:
    direction = np.array([-0.8, -0.55, 0.24])
    direction /= np.linalg.norm(direction)
    side = np.cross((0, 0, 1.0), direction)
    side /= np.linalg.norm(side)
    m = np.eye(4)
    m[:3, :3] = np.stack((side, np.cross(direction, side), direction), axis=1)
    m[:3, 3] = scene.centre_ras - 10.0 * direction
    needle = ToolState("NeedleTip", Rigid.from_matrix(m, "NeedleTipToRas"), PoseStatus.OK, 1, 2)
    return NavigationSnapshot(
        sequence=0, now_ns=3, cut={}, events=0, needle=needle, tools={}, guidance=None, placed=None, margin=None,
        uncertainty=None, gate=GateVerdict(GateState.OK), streams=(), registration=None,
        setup=SetupState("guide", frozenset(), ""), target_ras=scene.centre_ras,
    )  # fmt: skip


def test_surfaces_hold_the_volumes_and_the_limits(case: Case, scene: SceneModel) -> None:
    assert scene.tumour is not None
    assert scene.vessels is not None
    assert case.tumour is not None
    assert len(scene.tumour.triangles) <= 1.5 * MAX_FACES
    assert len(scene.vessels.triangles) <= MAX_VESSEL_TRIANGLES
    assert scene.tumour.volume_mm3 / 1000 == pytest.approx(10.10, rel=0.03)  # the second largest of seven


def test_the_tumour_that_is_drawn_is_the_one_the_margin_is_measured_to(case: Case, scene: SceneModel) -> None:
    assert case.tumour is not None
    assert scene.tumour is not None
    measured = TumourModel.from_mask(case.tumour)
    np.testing.assert_array_equal(scene.tumour.vertices, measured.vertices)
    np.testing.assert_array_equal(scene.tumour.triangles, measured.faces)


def test_tumour_contour_follows_the_mask(case: Case, scene: SceneModel) -> None:
    """Contour points lie on the border of the mask: within a voxel's diagonal, half a voxel in the mean."""
    assert case.tumour is not None
    mask = case.tumour
    inside = np.argwhere(mask.array > 0)[:, ::-1]
    for key, frame in render_panes(scene, snapshot(scene), VIEW, {"A", "B", "C"}).items():
        assert frame.ras_from_pixel is not None
        contour = np.concatenate([p.points for p in frame.polylines if p.style == "tumour"])
        points = contour @ frame.ras_from_pixel[:3, :2].T + frame.ras_from_pixel[:3, 3]
        near = [np.linalg.norm(mask.to_ras(inside) - p, axis=1).min() for p in points[:: max(1, len(points) // 60)]]
        assert max(near) < np.linalg.norm(mask.spacing_mm), key


def test_the_plane_shows_the_ct_itself(case: Case, scene: SceneModel) -> None:
    """At a voxel's pitch and with a voxel in the middle, every pixel of the axial pane is a voxel's own HU."""
    pitch = float(case.ct.spacing_mm[0])
    view = replace(VIEW, layout="plan", crosshair_ras=tuple(case.ct.to_ras((200, 260, 100))), mm_per_px=pitch)
    frame = render_panes(scene, snapshot(scene), replace(view, sizes={"A": (161, 121)}), {"A"})["A"]
    assert frame.letters == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    hu = case.ct.array[100, 200:321, 120:281].astype(float)
    if case.ct.ras_from_index[0, 0] > 0:  # radiological display: the patient's right on the left
        hu = hu[:, ::-1]
    if case.ct.ras_from_index[1, 1] > 0:
        hu = hu[::-1]
    want = np.clip((hu - (90 - 150)) * 254 / 300 + 1, 1, 255)
    assert hu.std() > 20
    assert np.abs(frame.image - want).max() <= 1.0


def test_cost_of_a_needle_plane(scene: SceneModel) -> None:
    """A tip pane takes a few ms of CPU: 60 a second leave most of a core free (limit generous for slow machines)."""
    shot = snapshot(scene)
    times = []
    for n in range(12):
        start = time.thread_time()
        render_panes(scene, replace(shot, sequence=n), VIEW, {"C"})
        times.append(time.thread_time() - start)
    assert np.median(times[2:]) < 0.012
