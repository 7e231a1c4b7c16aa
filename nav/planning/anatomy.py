"""Where a needle may pass: target, organ and what is to be avoided, as distances on one grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from nav.geometry.volume import Volume
from nav.planning.grid import Grid, PlanningError

__all__ = ["Anatomy", "Avoid", "build_anatomy", "skin_points", "without_thin_parts"]

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Largest safety distance, mm; distances are known up to 20 mm.
MOST_CLEARANCE_MM = 15.0
#: Standard deviation by which the organ is blurred for the normals of its capsule, mm.
BLUR_MM = 3.0
#: Above this a voxel is body and not air, HU.
BODY_HU = -300.0


@dataclass(frozen=True, slots=True, eq=False)
class Avoid:
    """A structure that no needle may come nearer to than ``clearance_mm``. ``mask``: above 0 is the structure."""

    name: str
    mask: Volume
    clearance_mm: float


@dataclass(frozen=True, slots=True, eq=False)
class Anatomy:
    """What `build_anatomy` makes. Distances are lower bounds in steps of `nav.planning.kernels.STEP_MM`.

    Attributes
    ----------
    names, clearance_mm : per structure
    obstacles : (s, k, j, i) uint8
        Distance to every structure, without what of it lies in the target.
    through : (s,) bool
        Structures that pass through the target.
    organ : (3, k, j, i) uint8
        Distance to it, to what is not it, and the organ blurred by `BLUR_MM`, 250 inside: its gradient is the capsule's
        normal. The organ holds the target and its holes.
    tumour : (2, k, j, i) uint8
        Distance to it, and to what is not it.
    organ_volume : Volume
        The same organ by cell (a cell belongs where its middle does), for volumes in ml.
    target : Volume
    warnings : tuple of str
    """

    grid: Grid
    names: tuple[str, ...]
    clearance_mm: tuple[float, ...]
    obstacles: NDArray[np.uint8]
    through: Bools
    organ: NDArray[np.uint8]
    tumour: NDArray[np.uint8]
    organ_volume: Volume
    target: Volume
    warnings: tuple[str, ...]


def without_thin_parts(mask: Volume, diameter_mm: float) -> Volume:
    """Leave out what is thinner than ``diameter_mm`` (opening by a ball): the twigs of a vessel tree.

    Thin parts of a voxelised tube come and go with its voxels: the limit is blurred by about a voxel.
    """
    filled = np.asarray(mask.array) > 0
    boxes = ndimage.find_objects(filled.view(np.uint8))
    if diameter_mm <= 0.0 or not boxes or boxes[0] is None:
        return mask
    spacing = mask.spacing_mm
    pad = (np.ceil(diameter_mm / spacing) + 1).astype(int)[::-1]
    inner = np.pad(filled[boxes[0]], [(int(p), int(p)) for p in pad])
    # Distances run between voxel middles: the border of a structure lies half a voxel before the first one outside.
    half = 0.5 * float(spacing.min())
    depth = ndimage.distance_transform_edt(inner, sampling=tuple(spacing[::-1])) - half
    core = depth >= 0.5 * diameter_mm - half
    kept = np.zeros_like(inner)
    if core.any():
        kept = ndimage.distance_transform_edt(~core, sampling=tuple(spacing[::-1])) <= 0.5 * diameter_mm
        kept &= inner
    out = np.zeros(filled.shape, np.uint8)
    cut = tuple(slice(int(p), n - int(p)) for p, n in zip(pad, inner.shape, strict=True))
    out[boxes[0]] = kept[cut]
    return Volume.of(out, mask.ras_from_index)


def skin_points(ct: Volume, *, body: Volume | None = None, pitch_mm: float = 2.0) -> Array:
    """(n, 3) RAS mm: points of the body's surface about ``pitch_mm`` apart, in order of the cells.

    Without ``body`` it is the largest piece above `BODY_HU` after an opening that parts it from the table, its
    cavities filled slice by slice. Where the body leaves the scan (first and last slice) there is no skin.

    Raises
    ------
    PlanningError
        Nothing in the CT is denser than air.
    """
    source = ct if body is None else body
    grid = Grid.over(source, source.corners_ras(), pitch_mm=pitch_mm)
    if body is None:
        step = tuple(
            slice(int(s // 2), None, int(s)) for s in np.maximum(1, np.round(grid.pitch_mm / ct.spacing_mm))[::-1]
        )
        coarse = np.asarray(ct.array)[step] > BODY_HU
        affine = ct.ras_from_index.copy()
        strides = np.array([s.step for s in step[::-1]], float)
        starts = np.array([s.start for s in step[::-1]], float)
        affine[:3, 3] = ct.to_ras(starts)
        affine[:3, :3] = affine[:3, :3] * strides
        opened = ndimage.binary_opening(coarse, np.ones((1, 3, 3)), iterations=2)
        pieces, count = ndimage.label(opened)
        if count == 0:
            raise PlanningError(f"no body found: nothing in the CT is above {BODY_HU:g} HU; give --body or --entries")
        largest = int(np.argmax(np.bincount(pieces.ravel())[1:])) + 1
        filled = np.stack([ndimage.binary_fill_holes(plane) for plane in pieces == largest])
    else:
        filled, _ = grid.mark(body)
        if not filled.any():
            raise PlanningError("the body mask is empty; choose another label or file")
        filled = np.stack([ndimage.binary_fill_holes(plane) for plane in filled])
        affine = grid.ras_from_cell
    # A surface cell has air beside it in the scan.
    eroded = ndimage.binary_erosion(filled, border_value=1)
    surface = filled & ~eroded
    index = np.argwhere(surface)[:, ::-1].astype(np.float64)
    return np.asarray(index @ affine[:3, :3].T + affine[:3, 3])


def _bounds(mask: Volume) -> tuple[Array, Array]:
    index = np.argwhere(np.asarray(mask.array) > 0)[:, ::-1]
    ends = np.array([index.min(axis=0), index.max(axis=0)], float)
    corners = mask.to_ras(
        np.array([[ends[a, 0], ends[b, 1], ends[c, 2]] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    )
    return corners.min(axis=0), corners.max(axis=0)


def build_anatomy(
    lattice: Volume,
    target: Volume,
    organ: Sequence[Volume],
    avoid: Sequence[Avoid],
    points_ras: ArrayLike,
) -> Anatomy:
    """Distances for paths between ``points_ras``, (n, 3) RAS mm (every entry and tip must lie in their box).

    Parameters
    ----------
    lattice : Volume
        Its voxels make the grid (the CT, or the organ's mask); masks on other grids are brought to it through physical
        space, what that leaves uncertain counts as structure.
    target : Volume
        Above 0 is what shall be destroyed.
    organ : sequence of Volume
        Together the organ around it.
    avoid : sequence of Avoid

    Raises
    ------
    PlanningError
        An empty mask, a target outside the organ, a safety distance out of range, or two structures of one name.
    """
    if not (np.asarray(target.array) > 0).any():
        raise PlanningError("the target mask is empty: no voxel is above 0; choose another label or file")
    if not any((np.asarray(o.array) > 0).any() for o in organ):
        raise PlanningError("the organ mask is empty: no voxel is above 0; choose another label or file")
    names = [a.name for a in avoid]
    if len(set(names)) < len(names):
        raise PlanningError(f"structures to avoid must have different names; given: {', '.join(names)}")
    for a in avoid:
        if not 0.0 <= a.clearance_mm <= MOST_CLEARANCE_MM:
            raise PlanningError(
                f"{a.name}: safety distance {a.clearance_mm:g} mm, must lie between 0 and {MOST_CLEARANCE_MM:g} mm"
            )
        if not (np.asarray(a.mask.array) > 0).any():
            raise PlanningError(f"{a.name}: its mask is empty; choose another label or file, or leave it out")
    warnings: list[str] = []
    points = np.atleast_2d(np.asarray(points_ras, np.float64))
    low, high = _bounds(target)
    grid = Grid.over(lattice, np.vstack([points, low - 5.0, high + 5.0]))

    target_cells, target_slack = grid.mark(target)
    outside_cells, outside_slack = grid.mark(target, outside=True)
    tumour = np.stack([grid.distance(target_cells, target_slack), grid.distance(outside_cells, outside_slack)])
    whole, union_slack = _united([*organ, target])
    organ_out, organ_slack = grid.mark(whole)
    not_organ, not_slack = grid.mark(whole, outside=True)
    organ_slack, not_slack = organ_slack + union_slack, not_slack + union_slack
    share = _share_in_organ(target, organ)
    if share < 0.05:
        raise PlanningError(
            f"{100 * share:.0f} % of the target lies in the organ, at least 5 % must: check that the masks belong"
            " together"
        )
    if share < 0.5:
        warnings.append(
            f"{100 * share:.0f} % of the target lies in the organ's mask; the rest is taken as organ (where the mask"
            " has a hole for the tumour this is right)"
        )
    not_organ = _without_holes(not_organ)

    obstacles = np.empty((len(avoid), *grid.shape), np.uint8)
    through = np.zeros(len(avoid), bool)
    for n, a in enumerate(avoid):
        mask, common_ml = _carved(a.mask, target)
        if common_ml > 0.0:
            through[n] = True
            warnings.append(
                f"{a.name} passes through the target ({common_ml:.2f} ml of it): there it cannot be avoided; its safety"
                " distance holds up to the target only, and what lies in the target is not seen"
            )
        cells, slack = grid.mark(mask)
        if not cells.any():
            warnings.append(f"{a.name}: nothing of it lies where the paths run")
        obstacles[n] = grid.distance(cells, slack)
    centre = ~_without_holes(~_by_middle(grid, whole))
    blurred = ndimage.gaussian_filter(centre.astype(np.float32), BLUR_MM / grid.pitch_mm[::-1], truncate=3.0)
    capsule = np.rint(250.0 * np.clip(blurred, 0.0, 1.0)).astype(np.uint8)
    return Anatomy(
        grid=grid,
        names=tuple(names),
        clearance_mm=tuple(float(a.clearance_mm) for a in avoid),
        obstacles=_locked(obstacles),
        through=through,
        organ=_locked(np.stack([grid.distance(organ_out, organ_slack), grid.distance(not_organ, not_slack), capsule])),
        tumour=_locked(tumour),
        organ_volume=Volume.of(centre.astype(np.uint8), grid.ras_from_cell),
        target=target,
        warnings=tuple(warnings),
    )


def _locked(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    array.setflags(write=False)
    return array


def _share_in_organ(target: Volume, organ: Sequence[Volume]) -> float:
    """Share of the target whose voxels, or those just around it, are organ: a mask may have a hole for the tumour."""
    filled = np.asarray(target.array) > 0
    boxes = ndimage.find_objects(filled.view(np.uint8))
    assert boxes
    assert boxes[0] is not None
    pad = math.ceil(2.0 / float(target.spacing_mm.min())) + 1
    local = np.pad(filled[boxes[0]], pad)
    near = ndimage.distance_transform_edt(~local, sampling=tuple(target.spacing_mm[::-1])) <= 2.0
    index = np.argwhere(near)[:, ::-1] + [s.start - pad for s in boxes[0]][::-1]
    points = target.to_ras(index[:: max(1, len(index) // 20_000)])
    inside = np.zeros(len(points), bool)
    for part in organ:
        inside |= part.holds(points)
    return float(inside.mean())


def _carved(mask: Volume, target: Volume) -> tuple[Volume, float]:
    """The mask without its voxels in the target, and how many ml those are."""
    filled = np.asarray(mask.array) > 0
    index = np.argwhere(filled)
    low, high = _bounds(target)
    points = mask.to_ras(index[:, ::-1])
    room = mask.spacing_mm.max()
    close = np.flatnonzero(((points >= low - room) & (points <= high + room)).all(axis=1))
    inside = close[target.holds(points[close])] if close.size else close
    if not inside.size:
        return mask, 0.0
    array = filled.astype(np.uint8)
    array[tuple(index[inside].T)] = 0
    return Volume.of(array, mask.ras_from_index), inside.size * mask.voxel_volume_mm3 / 1000.0


def _united(masks: Sequence[Volume]) -> tuple[Volume, float]:
    """All masks as one, on the first one's voxels: seams between the parts of an organ are not outside of it."""
    first = masks[0]
    index = np.vstack(
        [first.to_index(corner) for m in masks if (np.asarray(m.array) > 0).any() for corner in _bounds(m)]
    )
    low, high = np.floor(index.min(axis=0)) - 1.0, np.ceil(index.max(axis=0)) + 1.0
    affine = first.ras_from_index.copy()
    affine[:3, 3] = first.to_ras(low)
    i, j, k = (high - low + 1.0).astype(int)
    voxels = Grid(affine, (int(k), int(j), int(i)), first.spacing_mm)
    filled, slack = np.zeros(voxels.shape, bool), 0.0
    for mask in masks:
        marked, beyond = voxels.mark(mask)
        filled |= marked
        slack = max(slack, beyond)
    return Volume.of(filled.view(np.uint8), affine), slack


def _by_middle(grid: Grid, mask: Volume) -> Bools:
    """Cells whose middles lie in the mask."""
    out = np.zeros(grid.shape, bool)
    cells, _ = grid.mark(mask)
    index = np.argwhere(cells)
    out[tuple(index[mask.holds(grid.centres_ras(cells))].T)] = True
    return out


def _without_holes(outside: Bools) -> Bools:
    """Of what is outside, only what is connected with the border of the grid (6-neighbours)."""
    if not outside.any() or outside.all():
        return outside
    pieces, count = ndimage.label(outside)
    if count == 1:
        return outside
    open_ends = np.zeros(count + 1, bool)
    for axis in range(3):
        for end in (0, -1):
            open_ends[np.take(pieces, end, axis=axis).ravel()] = True
    open_ends[0] = False
    return np.asarray(open_ends[pieces])
