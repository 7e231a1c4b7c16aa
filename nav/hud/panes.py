"""The pictures of the four panes, as a pure function of scene, snapshot and view. No Qt, no clock, no thread.

A, B: along the needle at 0° and 90°; C: the probe's eye, normal to the needle; D: 3-D. While there is no needle pose
(set-up, lost) and in the layout ``plan``, A, B and C are axial, sagittal and coronal planes in radiological display; a
lost needle is not drawn. In the layout ``ultrasound``, A is the probe's own plane: CT and ultrasound fused at the
image's own time, with the needle projected onto it. In the other planes the ultrasound is blended only where the plane
nearly coincides with it; elsewhere its trace is drawn.

Pane pixels: integer coordinates are pixel centres (`nav.imaging.planes`), so a painter that counts from the pixel's
corner adds 0.5. A plane's offset counts along the viewing direction (away from the viewer).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nav.ablation.mask_surface import MaskSurface
from nav.geometry.volume import Volume
from nav.hud.pane_frame import Marker, PaneFrame, Polyline, ViewState
from nav.hud.zone_pictures import zone_ellipsoids, zone_lines, zone_veils
from nav.imaging import blend, contours, render3d, reslice
from nav.imaging.contours import Mesh, cut_mesh, cut_quadrilateral
from nav.imaging.planes import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    PlaneAxes,
    lock_axis_for,
    needle_axes,
    pane_letters,
    pixel_from_ras,
    plane_matrix,
    ras_to_pixel,
)
from nav.imaging.surfaces import MAX_VESSEL_TRIANGLES, mask_surface
from nav.io.case import Case, Landmark, PlannedPath
from nav.runtime.plan_view import COMPARED_PATHS
from nav.runtime.snapshot import NavigationSnapshot, TrackedImage

__all__ = ["KERNELS", "RenderCache", "SceneModel", "build_scene", "render_panes", "tip_panes"]

KERNELS = reslice.KERNELS + contours.KERNELS + blend.KERNELS + render3d.KERNELS

#: Nearer to a plane than this, the needle counts as lying in it.
IN_PLANE_MM = 1.5
#: The worst margin point is marked in a plane only within this distance, so that it is never read off another place.
WORST_POINT_MM = 3.0
#: Landmarks and stylus are marked in a plane within this distance.
LANDMARK_MM = 10.0
#: An ultrasound image is blended into a plane that it leaves by no more than this.
COINCIDENT_DEG = 5.0
COINCIDENT_MM = 5.0

SHAFT_MM = 150.0
AHEAD_MM = 100.0

TUMOUR_RGB = (0xFF, 0x4F, 0xA3)
VESSEL_RGB = (0x6F, 0x7B, 0xFF)
PLAN_RGB = (0xA3, 0xE6, 0x35)
CANDIDATE_RGB = (0xC9, 0xD1, 0xDC)
NEEDLE_RGB = (0xFF, 0xFF, 0xFF)

_TITLES = {"axial": "Axial", "sagittal": "Sagittal", "coronal": "Coronal"}


@dataclass(frozen=True, slots=True, eq=False)
class SceneModel:
    """What stands still in a case, built once by `build_scene`.

    Attributes
    ----------
    ct : Volume
    tumour, vessels : Mesh or None
        RAS mm.
    landmarks : tuple of Landmark
    centre_ras : (3,) float64
        Middle of the tumour, or of the CT.
    extent_mm : float
        Radius around ``centre_ras`` that the 3-D view shows at zoom 1.
    generation : int or None
        The ``case_generation`` of the snapshots that this scene belongs to; pictures of one case are then never shown
        with the numbers of another. None: not checked.
    paths : tuple of PlannedPath
        Candidates, drawn in the layout ``plan``.
    """

    ct: Volume
    tumour: Mesh | None
    vessels: Mesh | None
    landmarks: tuple[Landmark, ...]
    centre_ras: NDArray[np.float64]
    extent_mm: float
    surfaces: tuple[render3d.Surface, ...]
    generation: int | None = None
    paths: tuple[PlannedPath, ...] = ()

    def belongs_to(self, snapshot: NavigationSnapshot) -> bool:
        """Whether scene and snapshot are of the same case, as far as it was stated."""
        return self.generation is None or self.generation == snapshot.case_generation


def build_scene(case: Case, generation: int | None = None) -> SceneModel:
    """Surfaces and centre of a case (about a second for large vessel trees: not for the live thread)."""
    tumour = None
    if case.tumour is not None and np.any(case.tumour.array):
        measured = MaskSurface.of_mask(case.tumour)  # what the margin is measured to is what is drawn
        tumour = Mesh.of(measured.vertices, measured.faces)
    vessels = mask_surface(case.vessels, MAX_VESSEL_TRIANGLES, shape_based=False) if case.vessels is not None else None
    ct = case.ct
    if ct.array.dtype not in (np.int16, np.uint8):
        raise ValueError(f"CT has dtype {ct.array.dtype}; the pictures need int16 HU")
    surfaces = []
    centre = ct.centre_ras()
    if tumour is not None:
        surfaces.append(render3d.Surface.of(tumour, TUMOUR_RGB))
        centre = (tumour.vertices.min(axis=0) + tumour.vertices.max(axis=0)) / 2.0
    if vessels is not None:
        surfaces.append(render3d.Surface.of(vessels, VESSEL_RGB))
    paths = case.paths[:COMPARED_PATHS]
    return SceneModel(ct, tumour, vessels, case.landmarks, centre, 90.0, tuple(surfaces), generation, paths)


@dataclass(slots=True)
class RenderCache:
    """What one render thread keeps between frames: rasterised 3-D surfaces, last pictures, last image with its mask.

    All of it belongs to one scene; `use` empties it for another.
    """

    scene: SceneModel | None = None
    static: render3d.StaticView | None = None
    static_key: tuple[object, ...] = ()
    pictures: dict[str, tuple[tuple[object, ...], NDArray[np.uint8], bool]] = field(default_factory=dict)
    image_key: tuple[str, int, int] = ("", -1, -1)
    image: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((1, 1), np.uint8))
    mask: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((1, 1), np.uint8))

    def use(self, scene: SceneModel) -> None:
        """Forget everything that was made from another scene."""
        if scene is not self.scene:
            self.scene, self.static, self.static_key = scene, None, ()
            self.pictures.clear()


@dataclass(frozen=True, slots=True, eq=False)
class _Pane:
    """Geometry of one plane."""

    key: str
    title: str
    axes: PlaneAxes
    ras_from_pixel: NDArray[np.float64]
    pixel_from_ras: NDArray[np.float64]
    width: int
    height: int
    follows_needle: bool
    fused: bool = False


def tip_panes(view: ViewState) -> frozenset[str]:
    """The panes that are due with every new snapshot in this layout; the others take turns beside them."""
    return frozenset({"A"}) if view.layout == "ultrasound" else frozenset({"C"})


def render_panes(
    scene: SceneModel,
    snapshot: NavigationSnapshot,
    view: ViewState,
    which: frozenset[str] | set[str],
    cache: RenderCache | None = None,
) -> dict[str, PaneFrame]:
    """Pictures of the panes ``which`` (of ``A``, ``B``, ``C``, ``D``); panes without a size are left out.

    Pictures are read-only and never written again, so nobody ever writes into one that is being shown; an unchanged
    plane hands over the same array again.

    Raises
    ------
    ValueError
        When scene and snapshot belong to different cases.
    """
    if not scene.belongs_to(snapshot):
        raise ValueError(
            f"the pictures belong to case {scene.generation}, the numbers to case {snapshot.case_generation}"
        )
    cache = cache if cache is not None else RenderCache()
    cache.use(scene)
    frames: dict[str, PaneFrame] = {}
    for key in sorted(which):
        width, height = view.sizes.get(key, (0, 0))
        if width < 1 or height < 1:
            continue
        if key == "D":
            frames[key] = _render_3d(scene, snapshot, view, width, height, cache)
        elif key in ("A", "B", "C"):
            pane = _pane(key, scene, snapshot, view, width, height)
            frames[key] = _render_plane(pane, scene, snapshot, view, cache)
    return frames


# -- geometry ----------------------------------------------------------------------------------------------------


def _pane(key: str, scene: SceneModel, snapshot: NavigationSnapshot, view: ViewState, width: int, height: int) -> _Pane:
    pose = snapshot.needle.pose
    follows, fused = False, False
    if key == "A" and view.layout == "ultrasound" and snapshot.image is not None:
        plane = _image_plane(snapshot.image)
        axes, centre, title, fused = plane.axes, plane.centre_ras, "Ultrasound plane", True
    elif pose is not None and view.layout != "plan":
        tip, direction = pose.translation, pose.rotation[:, 2]
        along0, along90, eye = needle_axes(direction, lock_axis_for(_planned_direction(snapshot)))
        axes = {"A": along0, "B": along90, "C": eye}[key]
        at_target = view.centre == "target" and snapshot.target_ras is not None
        centre = np.asarray(tip, dtype=np.float64)
        if at_target and snapshot.target_ras is not None:
            to_target = snapshot.target_ras - tip
            # Along the needle the plane itself must keep the needle: only the middle moves, within the plane.
            centre = (
                snapshot.target_ras if key == "C" else snapshot.target_ras - axes.into * float(to_target @ axes.into)
            )
        title = {"A": "Along needle 0°", "B": "Along needle 90°", "C": "Probe's eye"}[key]
        if key == "C":
            title += ", at target" if at_target else ", at tip"
        follows = True
    else:
        name = {"A": "axial", "B": "sagittal", "C": "coronal"}[key]
        axes = {"A": AXIAL, "B": SAGITTAL, "C": CORONAL}[key]
        centre, title = _anatomy_centre(scene, snapshot, view), _TITLES[name]
    offset = (view.plane_offset_mm or {}).get(key, 0.0)
    right, up = (view.pan_mm or {}).get(key, (0.0, 0.0))
    centre = centre + axes.into * offset + axes.right * right + axes.up * up
    m = plane_matrix(axes, centre, width, height, view.mm_per_px)
    m.setflags(write=False)
    return _Pane(key, title, axes, m, pixel_from_ras(m), width, height, follows, fused)


def _planned_direction(snapshot: NavigationSnapshot) -> NDArray[np.float64] | None:
    if snapshot.target_ras is None or snapshot.entry_ras is None:
        return None
    return np.asarray(snapshot.target_ras - snapshot.entry_ras, dtype=np.float64)


def _anatomy_centre(scene: SceneModel, snapshot: NavigationSnapshot, view: ViewState) -> NDArray[np.float64]:
    if view.crosshair_ras is not None:
        return np.asarray(view.crosshair_ras, dtype=np.float64)
    if snapshot.setup.step == "landmarks":
        for landmark in scene.landmarks:
            if landmark.name == snapshot.setup.active_landmark:
                return np.asarray(landmark.ras, dtype=np.float64)
    if snapshot.target_ras is not None:
        return np.asarray(snapshot.target_ras, dtype=np.float64)
    return scene.centre_ras


def _image_plane(image: TrackedImage) -> blend.ImagePlane:
    shape = image.array.shape
    height, width = shape[-3:-1] if image.array.ndim == 4 else shape[-2:]
    return blend.image_plane(image.ras_from_index, width, height)


# -- planes ------------------------------------------------------------------------------------------------------


def _render_plane(
    pane: _Pane, scene: SceneModel, snapshot: NavigationSnapshot, view: ViewState, cache: RenderCache
) -> PaneFrame:
    image = snapshot.image if view.ultrasound_blend > 0.0 and view.layout != "plan" else None
    plane = None if image is None else _image_plane(image)
    coincides = False
    if plane is not None:
        angle, distance = blend.plane_difference(plane, pane.ras_from_pixel)
        coincides = pane.fused or (angle <= COINCIDENT_DEG and distance <= COINCIDENT_MM)
    picture, fused = _picture(pane, scene, view, image if coincides else None, cache)
    lines: list[Polyline] = []
    markers: list[Marker] = []
    if view.show_overlays:
        lines += _anatomy_lines(pane, scene)
        if plane is not None and not coincides:
            trace = cut_quadrilateral(plane.corners_ras, pane.pixel_from_ras)
            lines += [Polyline("ultrasound", trace)] if trace is not None else []
        if view.layout == "plan":
            lines += _candidate_lines(pane, scene)
            lines += _planned_zone_lines(pane, snapshot, view)
        lines += _plan_lines(pane, snapshot)
        lines += _zone_lines(pane, snapshot, view)
        lines += _needle_lines(pane, snapshot)
        markers = _markers(pane, scene, snapshot, view)
    needle_shown = snapshot.needle.pose is not None and (pane.follows_needle or view.show_overlays)
    return PaneFrame(
        key=pane.key,
        image=picture,
        snapshot_sequence=snapshot.sequence,
        arrival_ns=snapshot.needle.arrival_ns if needle_shown else 0,
        polylines=tuple(lines),
        markers=tuple(markers),
        ras_from_pixel=pane.ras_from_pixel,
        mm_per_px=view.mm_per_px,
        letters=pane_letters(pane.axes),
        title=pane.title,
        plane_offset_mm=(view.plane_offset_mm or {}).get(pane.key, 0.0),
        ultrasound_shown=fused,
        ultrasound_age_ms=(snapshot.now_ns - image.acquired_ns) / 1e6 if fused and image is not None else 0.0,
    )


def _picture(
    pane: _Pane, scene: SceneModel, view: ViewState, image: TrackedImage | None, cache: RenderCache
) -> tuple[NDArray[np.uint8], bool]:
    """The pane's pixels (read-only), and whether the ultrasound is in them; the last ones while nothing changed.

    So a plane that stands (no needle, or the fused plane between two images of a slower probe) costs nothing.
    """
    key = (
        pane.ras_from_pixel.tobytes(), pane.width, pane.height, view.window_hu, view.level_hu,
        None if image is None else (image.device, image.sequence, image.acquired_ns, view.ultrasound_blend),
    )  # fmt: skip
    last = cache.pictures.get(pane.key)
    if last is not None and last[0] == key:
        return last[1], last[2]
    picture = reslice.reslice_plane(
        scene.ct, pane.ras_from_pixel, pane.width, pane.height, view.window_hu, view.level_hu
    )
    fused = False
    if image is not None:
        grey, mask = _grey(image, cache)
        ratio = view.ultrasound_blend
        fused = blend.blend_image(grey, image.ras_from_index, pane.ras_from_pixel, ratio, picture, mask) > 0
    picture.setflags(write=False)
    cache.pictures[pane.key] = (key, picture, fused)
    return picture, fused


def _grey(image: TrackedImage, cache: RenderCache) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    key = (image.device, image.sequence, image.acquired_ns)
    if cache.image_key != key:
        cache.image = blend.grey_plane(image.array)
        cache.mask = blend.image_mask(cache.image)
        cache.image_key = key
    return cache.image, cache.mask


def _anatomy_lines(pane: _Pane, scene: SceneModel) -> list[Polyline]:
    lines = []
    for style, mesh in (("vessel", scene.vessels), ("tumour", scene.tumour)):
        if mesh is not None:
            segments = _on_screen(cut_mesh(mesh, pane.pixel_from_ras), pane)
            if len(segments):
                lines.append(Polyline(style, segments, segments=True))
    return lines


def _on_screen(segments: NDArray[np.float64], pane: _Pane) -> NDArray[np.float64]:
    """Segments whose bounding box meets the picture."""
    pairs = segments.reshape(-1, 2, 2)
    low, high = pairs.min(axis=1), pairs.max(axis=1)
    keep = (high >= -1.0).all(axis=1) & (low[:, 0] <= pane.width) & (low[:, 1] <= pane.height)
    return np.ascontiguousarray(pairs[keep].reshape(-1, 2))


def _zone_lines(pane: _Pane, snapshot: NavigationSnapshot, view: ViewState) -> list[Polyline]:
    if snapshot.placed is None or not view.show_zone:
        return []
    return zone_lines(snapshot.placed, pane.ras_from_pixel, pane.pixel_from_ras)


def _candidate_lines(pane: _Pane, scene: SceneModel) -> list[Polyline]:
    """Every candidate path, projected."""
    found = []
    for path in scene.paths if len(scene.paths) > 1 else ():
        ends = ras_to_pixel(pane.pixel_from_ras, np.array([path.entry_ras, path.target_ras]))
        if _length(ends) >= 2.0:
            found.append(Polyline("candidate", ends[:, :2].copy()))
    return found


def _planned_zone_lines(pane: _Pane, snapshot: NavigationSnapshot, view: ViewState) -> list[Polyline]:
    """The zone at the target of the plan in force, in styles that need no needle."""
    if snapshot.plan.placed is None or not view.show_zone:
        return []
    lines = zone_lines(snapshot.plan.placed, pane.ras_from_pixel, pane.pixel_from_ras)
    return [replace(line, style=f"planned_{line.style}") for line in lines]


def _plan_lines(pane: _Pane, snapshot: NavigationSnapshot) -> list[Polyline]:
    if snapshot.target_ras is None or snapshot.entry_ras is None:
        return []
    ends = ras_to_pixel(pane.pixel_from_ras, np.stack((snapshot.entry_ras, snapshot.target_ras)))
    return [Polyline("plan", ends[:, :2].copy())] if _length(ends) >= 2.0 else []


def _needle_lines(pane: _Pane, snapshot: NavigationSnapshot) -> list[Polyline]:
    """The shaft: solid where it lies in the plane; dotted where it is only projected, and ahead of the tip."""
    pose = snapshot.needle.pose
    if pose is None:
        return []
    tip, direction = pose.translation, pose.rotation[:, 2]
    ends = ras_to_pixel(pane.pixel_from_ras, np.stack((tip - direction * SHAFT_MM, tip, tip + direction * AHEAD_MM)))
    hub, point, ahead = ends
    lines = []
    solid = _within(hub, point, IN_PLANE_MM)
    if solid is None or solid[0] > 0.0 or solid[1] < 1.0:
        lines.append(np.stack((hub, point)))
    lines.append(np.stack((point, ahead)))
    found = [Polyline("projection", line[:, :2].copy()) for line in lines if _length(line) >= 2.0]
    if solid is not None:
        line = hub + np.array(solid)[:, None] * (point - hub)
        if _length(line) >= 2.0:
            found.append(Polyline("needle", line[:, :2].copy()))
    return found


def _within(start: NDArray[np.float64], end: NDArray[np.float64], limit_mm: float) -> tuple[float, float] | None:
    """The part (0 … 1) of a segment whose depth is at most ``limit_mm``; None when there is none."""
    slope = float(end[2] - start[2])
    if abs(slope) < 1e-9:
        return (0.0, 1.0) if abs(start[2]) <= limit_mm else None
    a, b = sorted(((-limit_mm - start[2]) / slope, (limit_mm - start[2]) / slope))
    first, last = max(a, 0.0), min(b, 1.0)
    return (first, last) if first < last else None


def _length(points: NDArray[np.float64]) -> float:
    return float(np.hypot(*(points[1, :2] - points[0, :2])))


def _markers(pane: _Pane, scene: SceneModel, snapshot: NavigationSnapshot, view: ViewState) -> list[Marker]:
    found: list[Marker] = []

    def put(style: str, ras: ArrayLike, limit_mm: float = np.inf, label: str = "", tell_depth: bool = False) -> None:
        x, y, depth = (float(v) for v in ras_to_pixel(pane.pixel_from_ras, ras))
        if abs(depth) > limit_mm:
            return
        if tell_depth and abs(depth) > IN_PLANE_MM:
            label = f"{label} {abs(depth):.0f} mm {'behind' if depth > 0 else 'in front'}".strip()
        found.append(Marker(style, x, y, label=label))

    setting_up = snapshot.setup.step != "guide" or view.layout == "plan"
    if view.crosshair_ras is not None and not pane.follows_needle and not pane.fused:
        put("crosshair", view.crosshair_ras, IN_PLANE_MM)
    if setting_up:
        for landmark in scene.landmarks:
            put("landmark", landmark.ras, LANDMARK_MM, landmark.name)
        for tool in snapshot.tools.values():
            if tool.pose is not None and "stylus" in tool.name.lower():
                put("stylus", tool.pose.translation, LANDMARK_MM)
    if snapshot.target_ras is not None:
        put("target", snapshot.target_ras, tell_depth=True)
    if snapshot.entry_ras is not None:
        put("entry", snapshot.entry_ras, LANDMARK_MM)
    if snapshot.margin is not None and view.show_zone:
        put("worst", snapshot.margin.worst_point_ras, WORST_POINT_MM)
    if snapshot.plan.margin is not None and view.show_zone and view.layout == "plan":
        put("planned_worst", snapshot.plan.margin.worst_point_ras, WORST_POINT_MM)
    if snapshot.needle.pose is not None:
        put("tip", snapshot.needle.pose.translation, tell_depth=True)
    return found


# -- 3-D ---------------------------------------------------------------------------------------------------------


def _render_3d(
    scene: SceneModel, snapshot: NavigationSnapshot, view: ViewState, width: int, height: int, cache: RenderCache
) -> PaneFrame:
    pan = (view.pan_mm or {}).get("D", (0.0, 0.0))
    key = (
        width, height, view.camera_azimuth_deg, view.camera_elevation_deg, view.camera_zoom, pan,
    )  # fmt: skip
    if cache.static is None or cache.static_key != key:
        axes = render3d.camera_axes(view.camera_azimuth_deg, view.camera_elevation_deg)
        mm_per_px = 2.0 * scene.extent_mm / min(width, height) / max(view.camera_zoom, 0.05)
        centre = scene.centre_ras + axes.right * pan[0] + axes.up * pan[1]
        camera = render3d.Camera.of(axes, centre, width, height, mm_per_px)
        cache.static, cache.static_key = render3d.rasterise(scene.surfaces, camera), key
    static = cache.static
    capsules: list[render3d.Capsule] = []
    ellipsoids: list[render3d.Ellipsoid] = []
    veils: tuple[render3d.Surface, ...] = ()
    markers: list[Marker] = []
    pose = snapshot.needle.pose if view.show_overlays else None
    if view.show_overlays:
        target, entry = snapshot.target_ras, snapshot.entry_ras
        if view.layout == "plan" and len(scene.paths) > 1:
            for path in scene.paths:
                ends = np.array([path.entry_ras, path.target_ras])
                capsules.append(render3d.Capsule(ends[0], ends[1], 0.3, CANDIDATE_RGB))
        if target is not None and entry is not None:
            capsules.append(render3d.Capsule(entry, target, 0.5, PLAN_RGB, dash_mm=4.0))
        if pose is not None:
            tip, direction = pose.translation, pose.rotation[:, 2]
            capsules.append(render3d.Capsule(tip - direction * SHAFT_MM, np.array(tip), 0.9, NEEDLE_RGB))
        placed = snapshot.plan.placed if view.layout == "plan" and snapshot.placed is None else snapshot.placed
        margin = snapshot.margin if placed is snapshot.placed else snapshot.plan.margin
        if placed is not None and view.show_zone:
            ellipsoids += zone_ellipsoids(placed)
            veils = zone_veils(placed)
        points: list[tuple[str, ArrayLike, str]] = []
        if snapshot.setup.step != "guide" or view.layout == "plan":
            points += [("landmark", landmark.ras, landmark.name) for landmark in scene.landmarks]
            points += [
                ("stylus", tool.pose.translation, "")
                for tool in snapshot.tools.values()
                if tool.pose is not None and "stylus" in tool.name.lower()
            ]
        if target is not None:
            points.append(("target", target, ""))
        if margin is not None and view.show_zone:
            style = "worst" if margin is snapshot.margin else "planned_worst"
            points.append((style, margin.worst_point_ras, ""))
        for style, ras, label in points:
            x, y, _ = ras_to_pixel(static.camera.pixel_from_ras, ras)
            markers.append(Marker(style, float(x), float(y), label=label))
    picture = render3d.compose(static, tuple(capsules), tuple(ellipsoids), veils)
    picture.setflags(write=False)
    return PaneFrame(
        key="D",
        image=picture,
        snapshot_sequence=snapshot.sequence,
        arrival_ns=snapshot.needle.arrival_ns if pose is not None else 0,
        markers=tuple(markers),
        mm_per_px=static.camera.mm_per_px,
        letters=pane_letters(static.camera.axes),
        title="3-D",
    )
