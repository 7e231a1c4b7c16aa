"""The pictures of the panes: what is drawn where, and what is not drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nav.ablation.zone import EllipsoidZone, MarginResult, VesselCut
from nav.geometry.poses import PoseStatus
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.guidance.numbers import GateState, GateVerdict
from nav.hud.palette import POSE_STYLES
from nav.hud.pane_frame import PaneFrame, ViewState
from nav.hud.panes import (
    RenderCache,
    SceneModel,
    build_scene,
    render_panes,
    tip_panes,
)
from nav.hud.zone_pictures import ZONE_INSET_MM
from nav.imaging.planes import pixel_from_ras, pixel_to_ras, ras_to_pixel
from nav.io.case import Case, CaseIdentity, Landmark, PlannedPath
from nav.runtime.snapshot import NavigationSnapshot, PlacedZone, PlanView, SetupState, ToolState, TrackedImage
from tests.unit.test_zone_surface import needle_zone, sphere_shape

TARGET = np.array([20.0, -10.0, 50.0])
ENTRY = TARGET + np.array((45.0, 40.0, 10.0))
ALL = frozenset("ABCD")
MM = 0.5
VIEW = ViewState(sizes=dict.fromkeys("ABCD", (240, 200)), mm_per_px=MM)

AFFINES = {
    "ras": np.diag([2.0, 2.0, 2.0]),
    "lps": np.diag([-2.0, -2.0, 2.0]),
    "anisotropic": np.diag([-1.5, 1.5, 4.0]),
    "oblique": Rotation.from_euler("zyx", (20, -10, 30), degrees=True).as_matrix() * (2.0, 2.0, 2.5),
}


def make_case(kind: str = "lps") -> Case:
    """Soft tissue with a 12 mm sphere (the tumour) at `TARGET`, brighter than its surroundings."""
    affine = np.eye(4)
    affine[:3, :3] = AFFINES[kind]
    shape = tuple(int(180 / s) for s in np.linalg.norm(affine[:3, :3], axis=0)[::-1])
    affine[:3, 3] = TARGET - affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2.0)
    index = np.indices(shape)[::-1].reshape(3, -1).T
    r = np.linalg.norm(index @ affine[:3, :3].T + affine[:3, 3] - TARGET, axis=1).reshape(shape)
    ct = np.where(r <= 12.0, 200, 40).astype(np.int16)
    return Case(
        CaseIdentity("phantom"),
        Volume.of(ct, affine),
        tumour=Volume.of((r <= 12.0).astype(np.uint8), affine),
        landmarks=(Landmark("xiphoid", (60.0, 30.0, 80.0)),),
    )


@pytest.fixture(scope="module")
def scene() -> SceneModel:
    return build_scene(make_case())


def needle(tip: NDArray[np.float64], direction: NDArray[np.float64], roll_deg: float = 0.0) -> ToolState:
    d = direction / np.linalg.norm(direction)
    x = np.cross((0.3, 0.2, 1.0), d)
    x /= np.linalg.norm(x)
    m = np.eye(4)
    m[:3, :3] = np.stack((x, np.cross(d, x), d), axis=1) @ Rotation.from_euler("z", roll_deg, degrees=True).as_matrix()
    m[:3, 3] = tip
    return ToolState("NeedleTip", Rigid.from_matrix(m, "NeedleTipToRas"), PoseStatus.OK, 70, 90)


NO_NEEDLE = ToolState("NeedleTip", None, PoseStatus.MISSING, 0, 0, "lost")
DIRECTION = (TARGET - ENTRY) / np.linalg.norm(TARGET - ENTRY)
TIP = TARGET - 15.0 * DIRECTION


def make_snapshot(tool: ToolState | None = None, *, zone: bool = True, step: str = "guide") -> NavigationSnapshot:
    tool = needle(TIP, DIRECTION) if tool is None else tool
    shown = zone and tool.pose is not None
    ellipsoid = EllipsoidZone(TIP, DIRECTION, 18.0, 14.0, 0, "test", 100.0, 600.0, "", "")
    return NavigationSnapshot(
        sequence=7, now_ns=200_000_000, cut={}, events=0, needle=tool, tools={}, guidance=None,
        placed=PlacedZone(ellipsoid) if shown else None,
        margin=MarginResult(1.0, TARGET + np.array((0, 0, 12.0)), 0.9, 0.3) if shown else None,
        uncertainty=None, gate=GateVerdict(GateState.OK), streams=(), registration=None,
        setup=SetupState(step, frozenset(), "", active_landmark="xiphoid"), target_ras=TARGET, entry_ras=ENTRY,
    )  # fmt: skip


def styles(frame: PaneFrame) -> set[str]:
    return {p.style for p in frame.polylines}


def marker(frame: PaneFrame, style: str) -> tuple[float, float]:
    found = [m for m in frame.markers if m.style == style]
    assert len(found) == 1, f"{style}: {len(found)} markers"
    return found[0].x, found[0].y


@pytest.mark.parametrize("kind", AFFINES)
def test_tumour_is_seen_at_its_place_in_every_volume(kind: str) -> None:
    """Bright sphere, its contour and the target marker coincide, in needle panes and in patient panes."""
    scene = build_scene(make_case(kind))
    for snapshot in (make_snapshot(), make_snapshot(NO_NEEDLE)):
        frames = render_panes(scene, snapshot, replace(VIEW, centre="target"), ALL)
        for key in "ABC":
            frame = frames[key]
            assert frame.ras_from_pixel is not None
            x, y = marker(frame, "target")
            assert np.allclose(ras_to_pixel(pixel_from_ras(frame.ras_from_pixel), TARGET)[:2], (x, y))
            bright = np.argwhere(frame.image > 170)
            assert np.abs(bright.mean(axis=0)[::-1] - (x, y)).max() < 2.0
            outline = next(p for p in frame.polylines if p.style == "tumour").points
            radius = np.linalg.norm(outline - (x, y), axis=1) * MM
            assert (
                np.abs(radius - 12.0).max() < scene.ct.spacing_mm.max() / 2 + 0.3
            )  # half a slice: the mask's own error at its poles
            assert abs(radius.mean() - 12.0) < 0.2 * scene.ct.spacing_mm.max()


def test_needle_panes_hold_the_needle(scene: SceneModel) -> None:
    frames = render_panes(scene, make_snapshot(), VIEW, ALL)
    for key in "AB":
        frame = frames[key]
        assert marker(frame, "tip") == pytest.approx((119.5, 99.5))  # the middle of 240 × 200
        shaft = next(p for p in frame.polylines if p.style == "needle").points
        assert np.allclose(shaft[:, 1], 99.5)  # horizontal
        assert np.allclose(shaft[1], (119.5, 99.5))
        assert shaft[0, 0] < 0  # from the left edge
        assert frame.ras_from_pixel is not None
        assert np.allclose(pixel_to_ras(frame.ras_from_pixel, 119.5 + 20 / MM, 99.5), TIP + 20 * DIRECTION)
    eye = frames["C"]
    assert marker(eye, "tip") == pytest.approx((119.5, 99.5))
    assert "needle" not in styles(eye)  # seen end on
    assert eye.title == "Probe's eye, at tip"
    target = next(m for m in eye.markers if m.style == "target")
    assert target.label == "15 mm behind"


def test_roll_of_the_needle_about_its_axis_changes_nothing(scene: SceneModel) -> None:
    a = render_panes(scene, make_snapshot(needle(TIP, DIRECTION)), VIEW, ALL)
    b = render_panes(scene, make_snapshot(needle(TIP, DIRECTION, roll_deg=137.0)), VIEW, ALL)
    for key in ALL:
        assert np.abs(a[key].image.astype(int) - b[key].image).max() <= 1
        assert a[key].letters == b[key].letters


@pytest.mark.parametrize("layout", ["guide", "plan", "ultrasound"])
def test_without_a_pose_no_pane_shows_a_needle(scene: SceneModel, layout: str) -> None:
    frames = render_panes(scene, make_snapshot(NO_NEEDLE), replace(VIEW, layout=layout), ALL)
    bare = render_panes(scene, replace(make_snapshot(NO_NEEDLE), entry_ras=None), replace(VIEW, layout=layout), {"D"})
    for key, frame in frames.items():
        assert not styles(frame) & {"needle", "projection", "zone", "zone_inner", "needle_lost"}
        assert not {m.style for m in frame.markers} & {"tip", "worst", "stylus"}
        assert frame.arrival_ns == 0, key
    assert [frames[k].title for k in "ABC"] == ["Axial", "Sagittal", "Coronal"]
    assert frames["A"].letters == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    white = (bare["D"].image[..., :3] > 200).all(axis=-1)
    assert not white.any()  # the 3-D view has no needle either
    with_needle = render_panes(scene, make_snapshot(), replace(VIEW, layout=layout), {"D"})
    assert (with_needle["D"].image[..., :3] > 200).all(axis=-1).any()


def test_zone_is_drawn_only_when_the_snapshot_has_one(scene: SceneModel) -> None:
    with_zone = render_panes(scene, make_snapshot(), VIEW, ALL)
    for key in "ABC":
        assert {"zone", "zone_inner"} <= styles(with_zone[key])
    outline = next(p for p in with_zone["A"].polylines if p.style == "zone")
    assert outline.closed
    assert np.allclose(np.ptp(outline.points, axis=0), (2 * 18 / MM, 2 * 14 / MM), rtol=2e-3)
    for frames in (
        render_panes(scene, make_snapshot(zone=False), VIEW, ALL),
        render_panes(scene, make_snapshot(), replace(VIEW, show_zone=False), ALL),
    ):
        for key in "ABC":
            assert not styles(frames[key]) & {"zone", "zone_inner"}
            assert not [m for m in frames[key].markers if m.style == "worst"]
        assert not np.array_equal(frames["D"].image, with_zone["D"].image)


@pytest.mark.parametrize(("long_mm", "short_mm"), [(20.0, 15.0), (22.0, 14.0), (15.0, 12.0), (12.0, 12.0)])
def test_inner_line_is_near_the_true_inset(long_mm: float, short_mm: float) -> None:
    """The reduced ellipse against points 5 mm inside the zone's surface, along its normals."""
    t = np.linspace(0, np.pi / 2, 400)
    surface = np.stack((long_mm * np.cos(t), short_mm * np.sin(t)), axis=1)
    normal = np.stack((np.cos(t) / long_mm, np.sin(t) / short_mm), axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    inset = surface - ZONE_INSET_MM * normal
    a, b = long_mm - ZONE_INSET_MM, short_mm - ZONE_INSET_MM
    s = np.linspace(0, np.pi / 2, 20_001)
    reduced = np.stack((a * np.cos(s), b * np.sin(s)), axis=1)
    gap = [np.linalg.norm(reduced - p, axis=1).min() for p in inset]
    assert max(gap) < 0.3


def test_a_computed_zone_shows_its_band_and_what_is_killed_already(scene: SceneModel) -> None:
    """Every line where the zone's own distances put it, in oblique planes too."""
    pose = needle(TIP, DIRECTION).pose
    assert pose is not None
    zones = {
        name: replace(needle_zone(), ras_from_tip=pose, shape=sphere_shape(radius))
        for name, radius in (("zone", 14.0), ("inner", 12.0), ("outer", 16.0), ("grown", 6.0))
    }
    shown = replace(
        make_snapshot(),
        placed=PlacedZone(zones["zone"], None, zones["inner"], zones["outer"], zones["grown"]),
    )
    frames = render_panes(scene, shown, VIEW, ALL)
    centre = pose.apply(np.array([0.0, 0.0, -10.0]))
    wanted = {"zone": {14.0}, "zone_inner": {9.0}, "zone_band": {12.0, 16.0}, "zone_grown": {6.0}}
    for key in "AB":
        found: dict[str, set[float]] = {}
        for line in frames[key].polylines:
            if line.style not in wanted:
                continue
            matrix = frames[key].ras_from_pixel
            assert matrix is not None
            ras = np.array([pixel_to_ras(matrix, x, y) for x, y in line.points])
            radii = np.linalg.norm(ras - centre, axis=1)
            assert np.ptp(radii) < 0.3
            found.setdefault(line.style, set()).add(round(float(radii.mean()) * 4.0) / 4.0)
        assert found == wanted
    assert [m for m in frames["D"].markers if m.style == "worst"]
    without = render_panes(scene, replace(shown, placed=None, margin=None), VIEW, {"D"})["D"]
    assert not [m for m in without.markers if m.style == "worst"]
    changed = (frames["D"].image[..., :3] != without.image[..., :3]).any(axis=2)
    # A disc of 14 mm in parallel projection, at the scale of the 3-D pane.
    assert changed.sum() * frames["D"].mm_per_px ** 2 == pytest.approx(np.pi * 14.0**2, rel=0.06)


def test_a_zone_is_drawn_as_far_as_the_planes_of_vessels_let_it(scene: SceneModel) -> None:
    pose = needle(TIP, DIRECTION).pose
    assert pose is not None
    normal = pose.rotation[:, 0]
    centre = pose.apply(np.array([0.0, 0.0, -10.0]))
    cut = VesselCut(centre[None], normal[None], np.array([normal @ centre + 6.0]), 0.5, 0.25)
    zone = replace(needle_zone(), ras_from_tip=pose, shape=sphere_shape(14.0), cut=cut)
    frames = render_panes(scene, replace(make_snapshot(), placed=PlacedZone(zone)), VIEW, ALL)
    whole = render_panes(scene, replace(make_snapshot(), placed=PlacedZone(replace(zone, cut=None))), VIEW, ALL)
    reached = set()
    for key in "AB":
        for line in frames[key].polylines:
            if line.style not in ("zone", "zone_inner"):
                continue
            matrix = frames[key].ras_from_pixel
            assert matrix is not None
            ras = np.array([pixel_to_ras(matrix, x, y) for x, y in line.points])
            depth = 0.0 if line.style == "zone" else 5.0
            height = (ras - centre) @ normal
            assert height.max() < 5.75 - depth + 0.05
            radii = np.linalg.norm(ras - centre, axis=1)
            assert radii.max() < 14.0 - depth + 0.2
            flat = height > 5.75 - depth - 0.05
            if flat.any():
                reached.add(line.style)
            assert abs(radii[~flat] - (14.0 - depth)).max() < 0.2
    assert reached == {"zone", "zone_inner"}
    assert not np.array_equal(frames["D"].image, whole["D"].image)


def test_plan_layout_shows_every_candidate_and_the_zone_at_the_target() -> None:
    paths = (
        PlannedPath("a", tuple(ENTRY), tuple(TARGET)),
        PlannedPath("b", tuple(ENTRY + np.array((0.0, 9.0, 9.0))), tuple(TARGET)),
    )
    scene = build_scene(replace(make_case(), paths=paths))
    zone = EllipsoidZone(TARGET, DIRECTION, 18.0, 14.0, 0, "test", 100.0, 600.0, "", "")
    margin = MarginResult(1.0, TARGET + np.array((0, 0, 12.0)), 0.9, 0.3)
    shown = replace(make_snapshot(NO_NEEDLE, step="plan"), plan=PlanView(PlacedZone(zone), margin))
    frames = render_panes(scene, shown, replace(VIEW, layout="plan"), ALL)
    assert sum(line.style == "candidate" for line in frames["A"].polylines) == 2
    assert {"planned_zone", "planned_zone_inner"} <= styles(frames["A"])
    assert not {"zone", "zone_inner"} & styles(frames["A"])
    assert not {line.style for line in frames["A"].polylines} & POSE_STYLES
    marker(frames["D"], "planned_worst")
    guide = render_panes(scene, shown, VIEW, ALL)
    assert not {"candidate", "planned_zone"} & styles(guide["A"])
    assert not [m for m in guide["D"].markers if m.style == "planned_worst"]


def test_overlays_can_be_hidden(scene: SceneModel) -> None:
    frames = render_panes(scene, make_snapshot(), replace(VIEW, show_overlays=False), ALL)
    assert all(not f.polylines and not f.markers for f in frames.values())


def test_plane_offset_pan_and_centre(scene: SceneModel) -> None:
    moved = render_panes(scene, make_snapshot(), replace(VIEW, plane_offset_mm={"C": 15.0, "A": 6.0}), {"A", "C"})
    assert moved["C"].plane_offset_mm == 15.0
    assert next(m for m in moved["C"].markers if m.style == "target").label == ""  # now in the plane
    assert next(m for m in moved["C"].markers if m.style == "tip").label == "15 mm in front"
    assert "needle" not in styles(moved["A"])  # 6 mm beside the needle: projected, not cut
    assert "projection" in styles(moved["A"])
    panned = render_panes(scene, make_snapshot(), replace(VIEW, pan_mm={"B": (10.0, 5.0)}), {"B"})["B"]
    assert marker(panned, "tip") == pytest.approx((119.5 - 10 / MM, 99.5 + 5 / MM))
    at_target = render_panes(scene, make_snapshot(), replace(VIEW, centre="target"), {"A", "C"})
    assert at_target["C"].title == "Probe's eye, at target"
    assert marker(at_target["C"], "target") == pytest.approx((119.5, 99.5))
    assert "needle" in styles(at_target["A"])


def test_worst_point_is_marked_only_where_the_plane_passes_it(scene: SceneModel) -> None:
    snapshot = make_snapshot()
    beside = replace(snapshot, margin=MarginResult(1.0, TARGET + np.array((0, 0, 12.0)), 0.9, 0.3))
    frames = render_panes(scene, beside, VIEW, {"A", "B"})
    shown = {k: any(m.style == "worst" for m in f.markers) for k, f in frames.items()}
    assert shown == {"A": False, "B": True}


def test_landmarks_and_stylus_in_the_set_up(scene: SceneModel) -> None:
    stylus = replace(needle(np.array([61.0, 31.0, 81.0]), DIRECTION), name="StylusTip")
    snapshot = replace(make_snapshot(NO_NEEDLE, step="landmarks"), tools={"StylusTip": stylus})
    frames = render_panes(scene, snapshot, replace(VIEW, layout="plan"), ALL)
    for key in "ABC":
        assert marker(frames[key], "landmark") == pytest.approx((119.5, 99.5))  # the active one is in the middle
        assert np.hypot(*(np.array(marker(frames[key], "stylus")) - 119.5 + (0, 20))) < 4
    assert {"landmark", "stylus"} <= {m.style for m in frames["D"].markers}
    hidden = replace(snapshot, tools={"StylusTip": replace(stylus, pose=None)})
    assert not [m for m in render_panes(scene, hidden, VIEW, {"A"})["A"].markers if m.style == "stylus"]
    crosshair = replace(VIEW, layout="plan", crosshair_ras=(10.0, 0.0, 40.0))
    assert marker(render_panes(scene, snapshot, crosshair, {"B"})["B"], "crosshair") == pytest.approx((119.5, 99.5))


def ultrasound(angle_deg: float = 0.0, shift_mm: float = 0.0) -> TrackedImage:
    """A 100 × 80 mm image in the plane of pane A (0°), turned about the needle and shifted along its normal."""
    frame = render_panes(build_scene(make_case()), make_snapshot(), VIEW, {"A"})["A"]
    assert frame.ras_from_pixel is not None
    m = frame.ras_from_pixel.copy()
    turn = Rotation.from_rotvec(np.deg2rad(angle_deg) * DIRECTION).as_matrix()
    index = np.eye(4)
    index[:3, :3] = turn @ m[:3, :3]
    index[:3, 3] = TIP - index[:3, :2] @ (99.5, 79.5) + m[:3, 2] * shift_mm
    array = np.full((1, 160, 200), 250, np.uint8)
    return TrackedImage("US", array, index, 120_000_000, 150_000_000, 3)


def test_ultrasound_is_blended_only_near_its_plane(scene: SceneModel) -> None:
    plain = render_panes(scene, make_snapshot(), VIEW, ALL)
    same = render_panes(scene, replace(make_snapshot(), image=ultrasound()), VIEW, ALL)
    assert same["A"].ultrasound_shown
    assert same["A"].ultrasound_age_ms == pytest.approx(80.0)
    assert same["A"].arrival_ns == 90  # the needle's pose; the image has its own age
    before, after = plain["A"].image[100, 60], same["A"].image[100, 60]
    assert int(after) == pytest.approx((int(before) + 250) / 2, abs=1)
    assert np.array_equal(plain["A"].image[:15], same["A"].image[:15])  # outside the image: untouched
    for key in "BC":
        assert not same[key].ultrasound_shown
        assert "ultrasound" in styles(same[key])
        assert np.array_equal(plain[key].image, same[key].image)
    for image in (ultrasound(angle_deg=8.0), ultrasound(shift_mm=7.0)):
        frame = render_panes(scene, replace(make_snapshot(), image=image), VIEW, {"A"})["A"]
        assert not frame.ultrasound_shown
        assert np.array_equal(plain["A"].image, frame.image)
    off = replace(VIEW, ultrasound_blend=0.0)
    frame = render_panes(scene, replace(make_snapshot(), image=ultrasound()), off, {"A"})["A"]
    assert not frame.ultrasound_shown


def test_ultrasound_layout_shows_the_probes_plane(scene: SceneModel) -> None:
    view = replace(VIEW, layout="ultrasound")
    snapshot = replace(make_snapshot(), image=ultrasound(angle_deg=60.0, shift_mm=9.0))
    frame = render_panes(scene, snapshot, view, {"A"})["A"]
    assert frame.title == "Ultrasound plane"
    assert frame.ultrasound_shown
    assert frame.ras_from_pixel is not None
    assert snapshot.image is not None
    assert np.allclose(frame.ras_from_pixel[:3, :2], snapshot.image.ras_from_index[:3, :2], atol=1e-9)
    assert "projection" in styles(frame)  # the needle is beside the plane
    inside = render_panes(scene, replace(snapshot, image=ultrasound()), view, {"A"})["A"]
    assert "needle" in styles(inside)
    gone = render_panes(scene, replace(snapshot, image=None), view, {"A"})["A"]
    assert gone.title == "Along needle 0°"
    assert not gone.ultrasound_shown
    assert tip_panes(view) == {"A"}
    assert tip_panes(VIEW) == {"C"}


def test_pictures_are_new_and_read_only(scene: SceneModel) -> None:
    cache = RenderCache()
    first = render_panes(scene, make_snapshot(), replace(VIEW, centre="target"), ALL, cache)
    kept = {k: f.image.copy() for k, f in first.items()}
    moved = make_snapshot(needle(TIP + np.array((3.0, 0, 0)), DIRECTION))
    for _ in range(4):
        second = render_panes(scene, moved, VIEW, ALL, cache)
    for key, frame in first.items():
        assert not np.shares_memory(frame.image, second[key].image)
        assert np.array_equal(frame.image, kept[key])
        assert not np.array_equal(frame.image, second[key].image)
        with pytest.raises(ValueError, match="read-only"):
            frame.image[0, 0] = 1


def test_an_unchanged_plane_is_not_made_again(scene: SceneModel) -> None:
    """The fused plane between two images: same pixels, while the needle on it moves on."""
    cache = RenderCache()
    view = replace(VIEW, layout="ultrasound")
    snapshot = replace(make_snapshot(), image=ultrasound())
    a = render_panes(scene, snapshot, view, {"A"}, cache)["A"]
    moved = replace(snapshot, needle=needle(TIP + 3.0 * DIRECTION, DIRECTION), sequence=8)
    b = render_panes(scene, moved, view, {"A"}, cache)["A"]
    assert b.image is a.image
    assert b.ultrasound_shown
    assert marker(a, "tip") != marker(b, "tip")
    assert snapshot.image is not None
    brighter = replace(snapshot.image, array=snapshot.image.array // 2, sequence=4)
    for changed_snapshot, changed_view in (
        (replace(moved, image=brighter), view),
        (moved, replace(view, level_hu=90.0)),
        (moved, replace(view, ultrasound_blend=0.7)),
    ):
        c = render_panes(scene, changed_snapshot, changed_view, {"A"}, cache)["A"]
        assert not np.array_equal(c.image, a.image)
        assert np.array_equal(c.image, render_panes(scene, changed_snapshot, changed_view, {"A"})["A"].image)
    other = replace(scene, ct=Volume.of(scene.ct.array // 2, scene.ct.ras_from_index))
    d = render_panes(other, moved, view, {"A"}, cache)["A"]
    assert not np.array_equal(d.image, a.image)


def test_camera_change_redraws_the_surfaces(scene: SceneModel) -> None:
    cache = RenderCache()
    a = render_panes(scene, make_snapshot(NO_NEEDLE), VIEW, {"D"}, cache)["D"]
    turned = replace(VIEW, camera_azimuth_deg=120.0, camera_zoom=2.0)
    b = render_panes(scene, make_snapshot(NO_NEEDLE), turned, {"D"}, cache)["D"]
    fresh = render_panes(scene, make_snapshot(NO_NEEDLE), turned, {"D"})["D"]
    assert not np.array_equal(a.image, b.image)
    assert np.array_equal(b.image, fresh.image)
    assert b.mm_per_px == pytest.approx(a.mm_per_px / 2)


def test_front_view_is_not_mirrored(scene: SceneModel) -> None:
    """Seen from the front, the patient's right is on the left; the needle comes from the right and from the front."""
    front = replace(VIEW, camera_azimuth_deg=0.0, camera_elevation_deg=0.0)
    frame = render_panes(scene, replace(make_snapshot(), target_ras=None, entry_ras=None), front, {"D"})["D"]
    assert frame.letters == {"left": "R", "right": "L", "top": "S", "bottom": "I"}
    needle_x = np.argwhere((frame.image[..., :3] > 200).all(axis=-1))[:, 1]
    assert needle_x.max() < 130
    assert needle_x.min() < 60


def test_scene_and_snapshot_of_different_cases_are_refused(scene: SceneModel) -> None:
    with pytest.raises(ValueError, match="case 0, the numbers to case 2"):
        render_panes(replace(scene, generation=0), replace(make_snapshot(), case_generation=2), VIEW, ALL)
    unstated = render_panes(scene, replace(make_snapshot(), case_generation=2), VIEW, {"C"})
    assert unstated["C"].snapshot_sequence == 7


def test_panes_without_a_size_are_left_out(scene: SceneModel) -> None:
    view = replace(VIEW, sizes={"A": (0, 0), "C": (50, 40)})
    frames = render_panes(scene, make_snapshot(), view, ALL)
    assert set(frames) == {"C"}
    assert frames["C"].image.shape == (40, 50)
