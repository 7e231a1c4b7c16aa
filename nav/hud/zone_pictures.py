"""The zone in planes and in 3-D, for every tier: its surface, 5 mm inside it, its band, and what is killed already."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nav.ablation.needle_zone import NeedleShape
from nav.ablation.zone import BoxZone, EllipsoidZone, NeedleZone, ZoneUnion
from nav.ablation.zone_samples import drawn_in
from nav.ablation.zone_surface import box_mesh, shape_mesh, zone_mesh
from nav.hud.pane_frame import Polyline
from nav.imaging import render3d
from nav.imaging.contours import Mesh, cut_ellipsoid, cut_mesh
from nav.runtime.snapshot import PlacedZone

__all__ = ["ZONE_INSET_MM", "zone_ellipsoids", "zone_lines", "zone_veils"]

#: How far inside the zone the dashed line runs. Of a chart it is a reduced ellipsoid: for ratios of axes up to 1.6 it
#: lies within 0.3 mm of the true inner parallel surface (tests/unit/test_panes.py).
ZONE_INSET_MM = 5.0

#: Most points of a line, and the dashes of a line that is made of loose segments.
_LINE_POINTS = 96
_DASH_PX, _DASH_SHARE = 16.0, 0.625

ZONE_RGB = (0x7F, 0xD4, 0xFF)
GROWN_RGB = (0xFF, 0xB0, 0x5C)


def zone_lines(
    placed: PlacedZone, ras_from_pixel: NDArray[np.float64], pixel_from_ras: NDArray[np.float64]
) -> list[Polyline]:
    """Where a plane cuts the zone; the line of the zone itself comes last, so that it lies on top."""
    lines: list[Polyline] = []
    for style, needle in (("zone_band", placed.inner), ("zone_band", placed.outer), ("zone_grown", placed.grown)):
        if needle is not None:
            lines += _needle_lines(style, needle, 0.0, ras_from_pixel, pixel_from_ras)
    zone = placed.zone
    for made in placed.made:
        if isinstance(made.zone, EllipsoidZone):
            lines += _ellipse("zone_grown", made.zone, 0.0, ras_from_pixel)
        else:
            lines += _needle_lines("zone_grown", made.zone, 0.0, ras_from_pixel, pixel_from_ras)
    for style, depth_mm in (("zone_inner", ZONE_INSET_MM), ("zone", 0.0)):
        for one in zone.zones[-1:] if isinstance(zone, ZoneUnion) else (zone,):
            if isinstance(one, EllipsoidZone):
                lines += _ellipse(style, one, depth_mm, ras_from_pixel)
            elif isinstance(one, NeedleZone):
                lines += _needle_lines(style, one, depth_mm, ras_from_pixel, pixel_from_ras)
            else:
                lines += _box_lines(style, one, depth_mm, pixel_from_ras)
    return lines


def _ellipse(style: str, zone: EllipsoidZone, inset_mm: float, ras_from_pixel: NDArray[np.float64]) -> list[Polyline]:
    long_mm, short_mm = zone.semi_long_mm - inset_mm, zone.semi_short_mm - inset_mm
    if long_mm <= 0.0 or short_mm <= 0.0:
        return []
    outline = cut_ellipsoid(zone.centre_ras, zone.axis_ras, long_mm, short_mm, ras_from_pixel)
    return [] if outline is None else [Polyline(style, outline, closed=True)]


def _needle_lines(
    style: str,
    zone: NeedleZone,
    depth_mm: float,
    ras_from_pixel: NDArray[np.float64],
    pixel_from_ras: NDArray[np.float64],
) -> list[Polyline]:
    """One closed line: around its middle a cut through a body of revolution that is grown by heat has no overhang."""
    mesh = shape_mesh(zone.shape, depth_mm)
    if len(mesh.vertices) == 0:
        return []
    points = cut_mesh(mesh, pixel_from_ras @ zone.ras_from_tip.matrix)[::2]
    if len(points) < 3:
        return []
    off = points - points.mean(axis=0)
    order = np.argsort(np.arctan2(off[:, 1], off[:, 0]))
    line = points[order[:: 1 + len(order) // _LINE_POINTS]]
    if zone.cut is not None and len(zone.cut.heights_mm):
        # How far inside the planes across the ways to vessels, which move in with the surface.
        slopes = zone.cut.normals_ras @ ras_from_pixel[:3, [0, 1, 3]]
        rooms = zone.cut.heights_mm - zone.cut.slack_mm - depth_mm - slopes[:, 2]
        for n in np.flatnonzero((rooms - line @ slopes[:, :2].T).min(axis=0) < 0.0):
            line = _clipped(line, rooms[n] - line @ slopes[n, :2])
    return [Polyline(style, np.ascontiguousarray(line), closed=True)] if len(line) >= 3 else []


def _clipped(line: NDArray[np.float64], inside: NDArray[np.float64]) -> NDArray[np.float64]:
    """What of a closed line lies in a half plane of which its points are so far ``inside`` (Sutherland, Hodgman)."""
    keep = inside >= 0.0
    after = np.roll(inside, -1)
    crosses = keep != (after >= 0.0)
    share = np.where(crosses, inside / np.where(crosses, inside - after, 1.0), 0.0)
    crossing = line + share[:, None] * (np.roll(line, -1, axis=0) - line)
    return np.asarray(np.stack([line, crossing], axis=1)[np.stack([keep, crosses], axis=1)])


def _box_lines(style: str, zone: BoxZone, depth_mm: float, pixel_from_ras: NDArray[np.float64]) -> list[Polyline]:
    """Any shape, so its segments are not joined; a dashed line is cut by the direction from its middle."""
    mesh = _in_box(zone, depth_mm)
    if len(mesh.vertices) == 0:
        return []
    segments = cut_mesh(mesh, pixel_from_ras)
    if depth_mm and len(segments):
        middles = segments.reshape(-1, 2, 2).mean(axis=1)
        off = middles - middles.mean(axis=0)
        turn = np.arctan2(off[:, 1], off[:, 0]) / (2.0 * np.pi)
        dashes = max(round(2.0 * np.pi * float(np.hypot(*off.T).mean()) / _DASH_PX), 4)
        segments = np.ascontiguousarray(
            segments.reshape(-1, 2, 2)[np.mod(turn * dashes, 1.0) < _DASH_SHARE].reshape(-1, 2)
        )
    return [Polyline(style, segments, segments=True)] if len(segments) else []


@lru_cache(maxsize=4)
def _in_box(zone: BoxZone, depth_mm: float) -> Mesh:
    """RAS mm; made once for a zone, which stands still."""
    return box_mesh(zone.distance, depth_mm) if depth_mm else zone_mesh(zone)


def zone_ellipsoids(placed: PlacedZone) -> tuple[render3d.Ellipsoid, ...]:
    """The chart's zones in 3-D."""
    zone = placed.zone
    return tuple(
        render3d.Ellipsoid(one.centre_ras, one.axis_ras, one.semi_long_mm, one.semi_short_mm, ZONE_RGB)
        for one in (zone.zones if isinstance(zone, ZoneUnion) else (zone,))
        if isinstance(one, EllipsoidZone)
    )


def zone_veils(placed: PlacedZone) -> tuple[render3d.Surface, ...]:
    """Translucent surfaces of computed zones and of what is killed already, RAS mm, from the inside out."""
    veils = []
    if placed.grown is not None:
        veils.append(_veil(placed.grown, GROWN_RGB))
    zone = placed.zone
    for one in zone.zones if isinstance(zone, ZoneUnion) else (zone,):
        if isinstance(one, NeedleZone):
            veils.append(_veil(one, ZONE_RGB))
        elif isinstance(one, BoxZone):
            veils.append(_box_veil(one))
    return tuple(veil for veil in veils if len(veil.mesh.vertices))


def _veil(zone: NeedleZone, colour: tuple[int, int, int]) -> render3d.Surface:
    surface, pose = _shape_surface(zone.shape, colour), zone.ras_from_tip
    vertices = drawn_in(pose.apply(surface.mesh.vertices), zone)
    return render3d.Surface(
        Mesh(_frozen(vertices), surface.mesh.triangles), _frozen(pose.rotate(surface.normals)), colour
    )


@lru_cache(maxsize=4)
def _shape_surface(shape: NeedleShape, colour: tuple[int, int, int]) -> render3d.Surface:
    """In the needle's frame."""
    return render3d.Surface.of(shape_mesh(shape), colour)


@lru_cache(maxsize=2)
def _box_veil(zone: BoxZone) -> render3d.Surface:
    return render3d.Surface.of(_in_box(zone, 0.0), ZONE_RGB)


def _frozen(array: NDArray[np.float64]) -> NDArray[np.float64]:
    out = np.ascontiguousarray(array)
    out.setflags(write=False)
    return out
