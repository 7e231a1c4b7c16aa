"""Tier 1 beside vessels: the zone drawn in towards each wide vessel, by a rule from an experiment.

A vessel that lies beside the antenna carries heat away, and the zone reaches less far towards it. Ringe et al. (PLoS
One 10:e0134301, 2015) heated excised porcine liver by microwaves beside a cooled glass tube of 5 mm: the radius towards
the tube fell to 37.2 % with the tube 10 mm from the antenna, to 80.1 % at 15 mm, and not at all beyond. In between, the
share is interpolated, nearer it is held, and never does the zone reach past the vessel's near wall: whether tissue
behind a vessel dies is not to be counted on. Larger and smaller vessels count by their wall: as a tube of 5 mm that has
its wall where theirs is.

The cut is straight: a plane across the way from the antenna to the wall, where that radius ends. It draws the zone in
towards the vessel and, ever less, beside that, up to the angle whose cosine is the share; behind the antenna nothing
changes. Of a circle, 74 % of the area remain at 10 mm and 95 % at 15 mm: 50.5 % and 89.7 % in the experiment, 85 % and
93 to 96 % of the volume in three dimensions (tier 2). And the distance to its surface, for points inside, is exactly
the smaller of that to the zone's and that to the planes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from nav.ablation.needle_zone import NeedleShape
from nav.ablation.prediction import wide_vessels
from nav.ablation.products import small_product
from nav.ablation.tumour import thinned
from nav.ablation.zone import NeedleZone, VesselCut
from nav.geometry.volume import Volume

__all__ = ["NoVesselRuleError", "VesselWalls", "cut_zone", "radius_share", "vessel_walls"]

Array = NDArray[np.float64]

#: Share of the radius that is left towards a tube of 5 mm so far from the antenna (its middle), mm (Ringe 2015).
_DISTANCE_MM, _SHARE = np.array([10.0, 15.0, 20.0]), np.array([0.372, 0.801, 1.0])
_TUBE_RADIUS_MM = 2.5
#: Pitch of the grid in which wide vessels are found, and between the points kept of their walls.
_CELL_MM, _WALL_MM = 1.0, 2.0
#: Nothing farther than this from the antenna's wall draws a zone in that does not reach it.
_REACH_MM = float(_DISTANCE_MM[-1]) - _TUBE_RADIUS_MM
#: What the planes left out may still cut, mm, is taken off; and so many are kept at most.
_SLACK_MM, _MOST_CUTS = 0.25, 12
#: So much a plane may cut unseen between coarse directions, and between fine ones; the latter is taken off.
_NEARLY_MM, _BETWEEN_MM = 1.5, 0.1

_RULE = "drawn in towards vessels by an empirical rule (Ringe 2015, ex vivo)"
_NONE_NEAR = "no vessel of 3 mm near enough to draw it in"


class NoVesselRuleError(ValueError):
    """No experiment says how far such a zone is drawn in; the message says so."""


@dataclass(frozen=True, slots=True, eq=False)
class VesselWalls:
    """Points of the walls of wide vessels, made once per case.

    Attributes
    ----------
    points_ras : (n, 3) float64, read-only
        Middles of the outermost cells.
    depth_mm : float
        The wall lies this much further out.
    tree : cKDTree
        Of the points.
    """

    points_ras: Array
    depth_mm: float
    tree: cKDTree

    @classmethod
    def of(cls, points_ras: Array, depth_mm: float) -> VesselWalls:
        """Freeze the points and build their tree."""
        points = np.array(points_ras, dtype=np.float64, order="C").reshape(-1, 3)
        points.setflags(write=False)
        return cls(points, depth_mm, cKDTree(points))


def vessel_walls(vessels: Volume) -> VesselWalls:
    """Walls of what is at least 3 mm wide in a mask (anything above 0 is vessel; any grid).

    Raises
    ------
    ValueError
        The mask is empty.
    """
    index = np.argwhere(np.asarray(vessels.array) > 0)
    if not len(index):
        raise ValueError("the mask of vessels is empty")
    low, high = index.min(axis=0)[::-1] - 0.5, index.max(axis=0)[::-1] + 0.5
    corners = np.array([[i, j, k] for i in (low[0], high[0]) for j in (low[1], high[1]) for k in (low[2], high[2])])
    box = vessels.to_ras(corners)
    # Two cells around, so that every vessel has a border.
    first = box.min(axis=0) - 2.0 * _CELL_MM
    counts = np.ceil((box.max(axis=0) + 2.0 * _CELL_MM - first) / _CELL_MM).astype(int)
    matrix = np.diag([_CELL_MM, _CELL_MM, _CELL_MM, 1.0])
    matrix[:3, 3] = first
    inside = np.empty(counts[::-1], np.bool_)
    for k in range(counts[2]):  # a slice at a time: positions take 24 times the memory of the mask
        slab = matrix.copy()
        slab[2, 3] += k * _CELL_MM
        inside[k] = vessels.holds(Volume.of(inside[k : k + 1], slab).voxels_ras()).reshape(inside[k].shape)
    wide = wide_vessels(inside, _CELL_MM)
    border = wide & ~ndimage.binary_erosion(wide)
    points = np.argwhere(border)[:, ::-1] * _CELL_MM + first
    points = points[thinned(points, _WALL_MM)] if len(points) else np.empty((0, 3))
    return VesselWalls.of(points, 0.5 * _CELL_MM)


def radius_share(wall_mm: ArrayLike) -> Array:
    """Share of the zone's radius that is left towards a vessel whose near wall is so far from the antenna, mm."""
    return np.asarray(np.interp(np.asarray(wall_mm, np.float64) + _TUBE_RADIUS_MM, _DISTANCE_MM, _SHARE))


def cut_planes(shape: NeedleShape, walls_tip: Array, depth_mm: float) -> tuple[Array, Array]:
    """Planes that bound the zone towards points of vessel walls.

    The antenna heats along the middle of the zone, that part of its axis that lies at least half its width from
    both ends. From the nearest point of it the free radius towards the wall is taken, and what is left of it.

    Parameters
    ----------
    walls_tip : (..., 3) float64
        In the needle's frame, mm.
    depth_mm : float
        Of `VesselWalls`.

    Returns
    -------
    normals : (..., 3) float64
        Unit, towards the wall, in the needle's frame.
    heights_mm : (...) float64
        Of the planes along their normals, from the tip; infinite where a vessel draws nothing in.
    """
    half = 0.5 * max(shape.long_mm - shape.short_mm, 0.0)
    low, high = shape.centre_z_mm - half, shape.centre_z_mm + half
    foot = np.clip(walls_tip[..., 2], low, high)
    away = walls_tip.copy()
    away[..., 2] -= foot
    distance = np.sqrt((away**2).sum(axis=-1))
    wall = np.maximum(distance - depth_mm, 0.0)
    free = _free_radius(shape, away, foot, low, high)
    left = np.minimum(radius_share(wall) * free, wall)
    normals = away / np.maximum(distance, 1e-9)[..., None]
    normals[distance < 1e-9] = (1.0, 0.0, 0.0)  # a wall on the axis itself: the zone ends there, in one direction
    heights = np.where(left < free, foot * normals[..., 2] + left, np.inf)
    return np.asarray(normals), np.asarray(heights)


def _free_radius(shape: NeedleShape, away: Array, foot: Array, low: float, high: float) -> Array:
    """From a foot on the axis to the zone's surface."""
    z, r = shape.outline_mm[:, 0], shape.outline_mm[:, 1]
    across = np.sqrt(away[..., 0] ** 2 + away[..., 1] ** 2)
    angle = np.arctan2(across, away[..., 2])
    order = np.argsort(z, kind="stable")
    found = np.interp(foot, z[order], r[order])
    for end, which in ((high, away[..., 2] > 0.0), (low, away[..., 2] < 0.0)):
        angles = np.arctan2(r, z - end)
        sort = np.argsort(angles, kind="stable")
        found = np.where(which, np.interp(angle, angles[sort], np.hypot(r, z - end)[sort]), found)
    return found


def cut_zone(zone: NeedleZone, walls: VesselWalls, modality: str) -> NeedleZone:
    """The zone drawn in towards every wide vessel near it; cheap enough for every pose.

    Parameters
    ----------
    zone : NeedleZone
        As it would be without vessels.
    modality : str
        The applicator's. Only for microwaves there are numbers.

    Raises
    ------
    NoVesselRuleError
        Another modality.
    """
    if modality != "microwave":
        raise NoVesselRuleError(
            f"{zone.applicator}: how far a zone is drawn in towards a vessel was measured for microwaves only, not for "
            f"{modality}; compute it in three dimensions (tier 2)"
        )
    shape, pose = zone.shape, zone.ras_from_tip
    none = np.empty((0, 3))
    if shape.is_empty or not len(walls.points_ras):
        cut = VesselCut(none, none, none[:, 0], walls.depth_mm, 0.0)
        return replace(zone, cut=cut, basis=f"{zone.basis}; {_NONE_NEAR}")
    near = walls.tree.query_ball_point(
        zone.centre_ras, 0.5 * shape.long_mm + max(_REACH_MM, 0.5 * shape.short_mm) + walls.depth_mm
    )
    points = walls.points_ras[near]
    normals, heights = cut_planes(shape, (points - pose.translation) @ pose.rotation, walls.depth_mm)
    kept, slack = _deepest(shape, normals, heights)
    ras = normals[kept] @ pose.rotation.T
    cut = VesselCut(points[kept], ras, heights[kept] + ras @ pose.translation, walls.depth_mm, slack)
    return replace(zone, cut=cut, basis=f"{zone.basis}; {_RULE if len(kept) else _NONE_NEAR}")


def _deepest(shape: NeedleShape, normals: Array, heights: Array) -> tuple[NDArray[np.intp], float]:
    """The planes that matter, one after the other that which still cuts deepest; and how deep the rest may cut."""
    cutting = np.flatnonzero(np.isfinite(heights))
    kept: list[int] = []
    centre = np.array([0.0, 0.0, shape.centre_z_mm])
    z, r = shape.outline_mm[:, 0] - shape.centre_z_mm, shape.outline_mm[:, 1]
    angles = np.arctan2(r, z)
    sort = np.argsort(angles, kind="stable")

    def reach_of(directions: Array) -> Array:
        return np.asarray(np.interp(np.arccos(directions[:, 2]), angles[sort], np.hypot(z, r)[sort]))

    def towards(directions: Array, planes: NDArray[np.intp]) -> tuple[Array, Array, Array]:
        """How far along each direction the zone reaches, each plane's normal, and what room the plane leaves."""
        return (
            reach_of(directions),
            small_product(directions, normals[planes].T),
            heights[planes] - normals[planes] @ centre,
        )

    # Coarsely, which planes cut at all; then only directions in which one does.
    reach, along, room = towards(_COARSE, cutting)
    cutting = cutting[((reach[:, None] * along).max(axis=0) > room - _NEARLY_MM)]
    reach, along, room = towards(_FINE, cutting)
    some = (reach[:, None] * along > room).any(axis=1)
    if not some.any():
        return np.array(kept, dtype=np.intp), 0.0
    reach, along = reach[some], along[some]
    left_out = 0.0
    while True:
        depth = (reach[:, None] * along).max(axis=0) - room
        # What cuts hardly deeper than the kept ones never will again: what they leave only shrinks.
        still = depth > 0.5 * _SLACK_MM
        left_out = max(left_out, float(depth[~still].max(initial=0.0)))
        cutting, along, room, depth = cutting[still], along[:, still], room[still], depth[still]
        deepest = float(depth.max(initial=0.0))
        if deepest <= _SLACK_MM or len(kept) == _MOST_CUTS:
            return np.array(kept, dtype=np.intp), max(left_out, deepest) + _BETWEEN_MM
        which = int(np.argmax(depth))
        kept.append(int(cutting[which]))
        a = along[:, which]
        ends = np.where(a > 0.0, max(float(room[which]), 0.0) / np.where(a > 0.0, a, 1.0), np.inf)
        reach = np.minimum(reach, ends)


def _sphere(count: int) -> Array:
    """(count, 3) directions, evenly (Fibonacci)."""
    z = 1.0 - (2.0 * np.arange(count) + 1.0) / count
    turn = np.arange(count) * (np.pi * (3.0 - math.sqrt(5.0)))
    r = np.sqrt(1.0 - z * z)
    return np.stack([r * np.cos(turn), r * np.sin(turn), z], axis=1)


#: From the zone's middle, where planes are compared: coarsely, and 9 degrees apart.
_COARSE, _FINE = _sphere(128), _sphere(512)
