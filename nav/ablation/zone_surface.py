"""The surface of a zone as a mesh, and what of a grid lies inside: for pictures, files and other programs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from skimage import measure

from nav.ablation.margin import inside_level
from nav.ablation.needle_zone import NeedleShape, outline_at
from nav.ablation.zone import BoxZone, EllipsoidZone, Zone, ZoneUnion
from nav.ablation.zone_samples import outline_grid, surface_grid
from nav.geometry.directions import axes_along
from nav.geometry.volume import Volume
from nav.imaging.contours import Mesh
from nav.imaging.surfaces import sphere_mesh

__all__ = ["box_mesh", "shape_mesh", "zone_map", "zone_mask", "zone_mesh"]

Array = NDArray[np.float64]

#: Between the points of a surface: chords leave it by 0.03 mm at a radius of 20 mm.
_SPACING_MM = 2.0
#: Halvings of the octahedron from which an ellipsoid is made: 512 triangles, inside by 0.5 % of its half axes at most.
_SUBDIVISIONS = 3
_NOTHING = Mesh.of(np.zeros((0, 3)), np.zeros((0, 3), np.int32))


def _grid_mesh(grid: Array) -> Mesh:
    """The closed surface of (rows, turns, 3) points whose first and last rows are poles."""
    rows, turns = grid.shape[:2]
    if rows < 3 or turns < 3:
        return _NOTHING
    ring, here = np.meshgrid(np.arange(rows - 1), np.arange(turns), indexing="ij")
    a, b = ring * turns + here, ring * turns + (here + 1) % turns
    c, d = a + turns, b + turns
    # Counter-clockwise from outside. The first and the last ring are points: triangles with an edge there have no area.
    ahead = np.stack([a, c, b], axis=-1)[1:].reshape(-1, 3)
    behind = np.stack([b, c, d], axis=-1)[:-1].reshape(-1, 3)
    return Mesh.of(grid.reshape(-1, 3), np.concatenate([ahead, behind]))


def box_mesh(level: Volume, at: float = 0.0) -> Mesh:
    """The surface, RAS mm, on which a field in a box passes through ``at``; higher values are inside."""
    values = np.asarray(level.array, dtype=np.float32)
    if not float(values.min()) < at < float(values.max()):
        return _NOTHING
    vertices, faces, _, _ = measure.marching_cubes(values.copy(), at)  # type: ignore[no-untyped-call]
    ras = level.to_ras(vertices[:, ::-1])
    mesh = Mesh.of(ras, faces)
    return mesh if mesh.volume_mm3 >= 0.0 else Mesh.of(ras, faces[:, ::-1])


@cache
def _unit_sphere() -> Mesh:
    return sphere_mesh(np.zeros(3), 1.0, _SUBDIVISIONS)


@lru_cache(maxsize=8)
def shape_mesh(shape: NeedleShape, depth_mm: float = 0.0) -> Mesh:
    """The surface of a computed shape, or that ``depth_mm`` inside it, in the needle's frame; made once per shape."""
    outline = outline_at(shape, depth_mm) if depth_mm else shape.outline_mm
    return _grid_mesh(outline_grid(outline, _SPACING_MM))


@lru_cache(maxsize=2)
def _box_surface(zone: BoxZone) -> Mesh:
    return box_mesh(zone.level)


def zone_mesh(zone: Zone) -> Mesh:
    """The zone's surface, RAS mm, triangles counter-clockwise from outside; without vertices where nothing dies.

    Of a union, the surfaces of all its zones, which pass through one another.
    """
    if isinstance(zone, EllipsoidZone):
        half = axes_along(zone.axis_ras) * (zone.semi_short_mm, zone.semi_short_mm, zone.semi_long_mm)
        return Mesh.of(_unit_sphere().vertices @ half.T + zone.centre_ras, _unit_sphere().triangles)
    if isinstance(zone, BoxZone):
        return _box_surface(zone)
    if isinstance(zone, ZoneUnion):
        parts = [zone_mesh(z) for z in zone.zones]
        first = np.cumsum([0, *(len(m.vertices) for m in parts[:-1])])
        return Mesh.of(
            np.concatenate([m.vertices for m in parts]),
            np.concatenate([m.triangles + n for m, n in zip(parts, first, strict=True)]),
        )
    if zone.cut is not None:
        return _grid_mesh(surface_grid(zone, _SPACING_MM))
    mesh = shape_mesh(zone.shape)
    return Mesh.of(zone.ras_from_tip.apply(mesh.vertices), mesh.triangles)


def zone_mask(zone: Zone, grid: Volume) -> NDArray[np.uint8]:
    """(k, j, i) uint8, 1 where the centre of a voxel of ``grid`` lies in the zone."""
    inside = inside_level(grid.voxels_ras(), zone) >= 0.0
    return np.asarray(inside.reshape(grid.array.shape), dtype=np.uint8)


def zone_map(zones: Sequence[Zone], pitch_mm: float, border_mm: float) -> tuple[Volume, ...]:
    """Masks of zones on one grid, whose axes are R, A, S and whose voxel centres are multiples of the pitch.

    Parameters
    ----------
    zones : sequence of Zone
        At least one, one of which kills something.
    pitch_mm, border_mm : float
        Voxels, and how much of them lies around the zones at least.
    """
    points = np.concatenate([zone_mesh(zone).vertices for zone in zones])
    low = np.floor((points.min(axis=0) - border_mm) / pitch_mm).astype(int)
    high = np.ceil((points.max(axis=0) + border_mm) / pitch_mm).astype(int)
    matrix = np.diag([pitch_mm, pitch_mm, pitch_mm, 1.0])
    matrix[:3, 3] = low * pitch_mm
    grid = Volume.of(np.zeros((high - low + 1)[::-1], np.uint8), matrix)
    return tuple(Volume.of(zone_mask(zone, grid), matrix) for zone in zones)
