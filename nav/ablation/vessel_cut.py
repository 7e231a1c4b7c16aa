"""Tier 1 beside vessels: the zone drawn in towards each wide vessel, by a rule from an experiment.

A vessel that lies beside the antenna carries heat away, and the zone reaches less far towards it. Ringe et al. (PLoS
One 10:e0134301, 2015) heated excised porcine liver by microwaves beside a cooled glass tube of 5 mm: the radius towards
the tube fell to 37.2 % with the tube 10 mm from the antenna, to 80.1 % at 15 mm, and not at all beyond. In between it is
interpolated, nearer it is held, and never does the zone reach past the vessel's near wall: whether tissue behind a
vessel dies is not to be counted on. Larger and smaller vessels count by their wall: as a tube of 5 mm that has its wall
where theirs is.

The shape is that of the zone and of the same zone shifted away from the vessel, as far as its surface must go back
there, where both hold. It meets the radius towards the vessel exactly and is smooth around it. Of a circle, 62 % of the
area remain at 10 mm and 87 % at 15 mm (50.5 % and 89.7 % in the experiment; a straight cut would leave 74 % and 95 %).
And the distance to its surface, for points inside, is the smaller of two looked up distances, exactly.
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
#: So strict, mm, the kept shifts are as all of them together, and so many are kept at most.
_SLACK_MM, _MOST_CUTS = 0.25, 8


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
    points = np.ascontiguousarray(points)
    points.setflags(write=False)
    return VesselWalls(points, 0.5 * _CELL_MM, cKDTree(points))


def radius_share(wall_mm: ArrayLike) -> Array:
    """Share of the zone's radius that is left towards a vessel whose near wall is so far from the antenna, mm."""
    return np.asarray(np.interp(np.asarray(wall_mm, np.float64) + _TUBE_RADIUS_MM, _DISTANCE_MM, _SHARE))


def cut_shifts(shape: NeedleShape, walls_tip: Array, depth_mm: float) -> Array:
    """How far, and whither, the zone shifted away from each wall point lies off the zone itself.

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
    (..., 3) float64
        In the needle's frame, mm; 0 where nothing is drawn in.
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
    shift = np.maximum(free - left, 0.0)
    # A wall on the axis itself has no direction: any will do, the zone ends there.
    unit = away / np.maximum(distance, 1e-9)[..., None]
    unit[distance < 1e-9] = (1.0, 0.0, 0.0)
    return np.asarray(-shift[..., None] * unit)


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
    shape = zone.shape
    if shape.volume_ml == 0.0 or not len(walls.points_ras):
        return replace(zone, cut=VesselCut(np.empty((0, 3)), np.empty((0, 3)), walls.depth_mm, 0.0))
    radius = 0.5 * shape.long_mm
    near = walls.tree.query_ball_point(zone.centre_ras, radius + max(_REACH_MM, 0.5 * shape.short_mm) + walls.depth_mm)
    points = walls.points_ras[near]
    pose = zone.ras_from_tip
    shifts = cut_shifts(shape, (points - pose.translation) @ pose.rotation, walls.depth_mm)
    kept, slack = _strictest(shifts)
    return replace(zone, cut=VesselCut(points[kept], shifts[kept] @ pose.rotation.T, walls.depth_mm, slack))


def _strictest(shifts: Array) -> tuple[NDArray[np.intp], float]:
    """The shifts that matter, and how far off the others may still be.

    A convex zone and its shifted self have nothing together that is not also in those shifted by less, or to anywhere
    between several. So only the corners of the hull of all shifts matter: those that go farthest in some direction.
    """
    reach = shifts @ _DIRECTIONS.T
    wanted = reach.max(axis=0, initial=0.0)
    kept: list[int] = []
    have = np.zeros(len(_DIRECTIONS))
    while True:
        gap = wanted - have
        where = int(np.argmax(gap))
        if gap[where] <= _SLACK_MM or len(kept) == _MOST_CUTS:
            return np.array(kept, dtype=np.intp), float(gap[where])
        kept.append(int(np.argmax(reach[:, where])))
        have = np.maximum(have, reach[kept[-1]])


def _sphere(count: int) -> Array:
    """(count, 3) directions, evenly (Fibonacci)."""
    z = 1.0 - (2.0 * np.arange(count) + 1.0) / count
    turn = np.arange(count) * (np.pi * (3.0 - math.sqrt(5.0)))
    r = np.sqrt(1.0 - z * z)
    return np.stack([r * np.cos(turn), r * np.sin(turn), z], axis=1)


#: Directions in which shifts are compared.
_DIRECTIONS = _sphere(96)
