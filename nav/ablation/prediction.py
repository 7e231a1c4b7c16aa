"""Computed zones: tier 1 around one needle in homogeneous tissue, tier 2 in a box with vessels and every applicator.

What both need of the device is fitted to measured zones (`nav.ablation.applicators.Heating`). Where the zone lies along
the needle is the chart's: no fit of sizes can tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage import measure

from nav.ablation.applicators import Applicator, Cryoprobe, Electrode, Heating, ZoneSize
from nav.ablation.axisymmetric import NeedleHeat, NeedleSource, heat_needle
from nav.ablation.bioheat import BoxGrid, Burst, Cells, Progress, heat_box, needle_source
from nav.ablation.needle_zone import NeedleShape, shape_of_distance, shape_of_level
from nav.ablation.sources import NeedleGrid, joule_source, line_source, warmed
from nav.ablation.thermal import Material, Tissue
from nav.ablation.zone import BoxZone, NeedleZone
from nav.geometry.directions import extents_along
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume

__all__ = [
    "SURE_C",
    "Applied",
    "Around",
    "Band",
    "NoHeatModelError",
    "around_needle",
    "box_zone",
    "level_of",
    "place_shape",
    "predict_band",
    "predict_box",
    "predict_growth",
    "predict_shape",
    "wide_vessels",
]

Array = NDArray[np.float64]
Grid = NDArray[np.float32]

#: Quantile of a one-sided 95 %.
_Z95 = 1.6449
#: Transition from dead to living tissue, pig liver, mm: no band is narrower (PMC5744668).
TRANSITION_MM = {"microwave": 0.32, "radiofrequency": 0.81, "cryo": 0.45}
#: Coldest temperature that leaves no cell alive, C; above it, down to the zone's edge, some survive.
SURE_C = -40.0
#: Vessels of at least this diameter stay at blood temperature; smaller ones are part of the perfusion.
WIDE_VESSEL_MM = 3.0
#: Tissue that a box holds beyond the zone of tier 1, mm.
_AROUND_MM = 18.0
_CELL_MM = 1.0
#: Margins of a zone in a box are exact up to here, mm; a goal of 5 mm and the band about it lie well within.
_NEAR_MM = 10.0
#: What of a box a shaft holds, and the radius of the shaft that it acts like, in cells (`_hold`).
_HELD_CELLS, _ACTS_CELLS = 1.2, 0.8


class NoHeatModelError(ValueError):
    """The applicator's file has a chart only, or the tissue's does not say how it freezes; the message says which."""


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """Between which two surfaces the zone's surface lies with 90 %.

    Attributes
    ----------
    inner, outer : NeedleShape
        Dead with 95 %; alive beyond with 95 %.
    sigma_mm : (rows, columns) float64
        1 sigma of the surface's position, across it.
    modes_mm : (modes, rows, columns) float64, read-only
        What the zone itself may do, the needle's pose left out: how far one sigma of each independent cause (length,
        width, transition, perfusion, power) moves the surface outwards, everywhere at once.
    """

    inner: NeedleShape
    outer: NeedleShape
    sigma_mm: Array
    modes_mm: Array


@dataclass(frozen=True, slots=True, eq=False)
class Applied:
    """One applicator at work.

    Attributes
    ----------
    ras_from_tip : Rigid
    start_s : float
        When its power goes on; it goes off after ``time_s``.
    """

    applicator: Applicator
    power_w: float
    time_s: float
    ras_from_tip: Rigid
    start_s: float = 0.0


def _heating(applicator: Applicator) -> Heating | Electrode | Cryoprobe:
    if applicator.heating is None:
        raise NoHeatModelError(
            f"{applicator.name}: its file has no [heating], so zones come from the chart alone (tier 0)"
        )
    return applicator.heating


@dataclass(frozen=True, slots=True, eq=False)
class Around:
    """What a device does to the tissue around its needle, for `heat_needle`.

    Attributes
    ----------
    material : Material
    source : (rows, columns) float64, or a function of the temperature
        W/mm³.
    held_c : (rows, columns) float64, optional
        Temperature of a cooled shaft or of a cryoprobe, NaN elsewhere.
    limit_c : float
        Temperature to which the generator keeps the hottest tissue.
    """

    material: Material
    source: NeedleSource
    held_c: Array | None = None
    limit_c: float = math.inf

    def heat(self, grid: NeedleGrid, times_s: Sequence[float]) -> NeedleHeat:
        """Run it; the power stays on until the last time."""
        return heat_needle(grid, self.material, self.source, times_s, held_c=self.held_c, limit_c=self.limit_c)


def around_needle(
    model: Heating | Electrode | Cryoprobe, control: str, power_w: float, grid: NeedleGrid, centre_z_mm: float,
    tissue: Tissue, *, perfusion: float = 1.0, energy: float = 1.0,
) -> Around:  # fmt: skip
    """What a device at a setting does to ``tissue``.

    Parameters
    ----------
    control : str
        Unit of ``power_w`` (`Applicator.control`).
    centre_z_mm : float
        Middle of the active part.
    perfusion, energy : float
        Factors on the tissue's perfusion, and on the power (or the cold) that arrives.

    Raises
    ------
    NoHeatModelError
        A cryoprobe in a tissue whose file does not say how it freezes.
    """
    scale = perfusion * model.perfusion_scale
    if isinstance(model, Heating):
        source = line_source(grid, centre_z_mm, model.length_mm(power_w), model.absorption_per_m)
        return Around(Material.heated(tissue, scale), energy * model.deposited_w(power_w) * source)
    active = (np.abs(grid.z_mm - centre_z_mm) <= 0.5 * model.active_length_mm)[:, None]
    # At least the innermost cells: a probe is hardly thicker.
    shaft = active & (grid.r_mm < max(model.radius_mm, grid.spacing_mm))
    if isinstance(model, Cryoprobe):
        if tissue.freezing is None:
            raise NoHeatModelError(f"{tissue.name}: its file has no [freezing], so nothing can be frozen in it")
        cold = tissue.initial_c + energy * (model.probe_c - tissue.initial_c)
        held = np.where(shaft, cold, np.nan)
        return Around(Material.frozen(tissue, scale), np.zeros(shaft.shape), held)
    table = joule_source(grid, centre_z_mm, model.active_length_mm, model.radius_mm)
    held_c = None
    if model.shaft_c is not None:
        held_c = np.where(shaft, model.shaft_c, np.nan)
        table = np.where(shaft, 0.0, table)
    watt = energy * model.power_w * table / float((table * grid.volumes_mm3).sum())
    material = Material.heated(tissue, scale)
    if control == "C":
        return Around(material, watt, held_c, limit_c=power_w)
    return Around(material, lambda celsius: warmed(grid, watt, celsius), held_c)


def level_of(
    model: Heating | Electrode | Cryoprobe, heat: NeedleHeat, which: int = 0, lethal_c: float | None = None
) -> Array:
    """(rows, columns) above 0 inside the zone: logarithm of the damage, or K below the lethal temperature."""
    if isinstance(model, Cryoprobe):
        return np.asarray((model.lethal_c if lethal_c is None else lethal_c) - heat.coldest_c)
    return np.asarray(np.log(np.maximum(heat.damage[which], 1e-30)))


def _grid(size: ZoneSize) -> NeedleGrid:
    """Room for a zone twice as wide and as long as the chart's, about its middle."""
    rows = math.ceil(size.long_mm + 2.0 * _AROUND_MM + 10.0) | 1
    columns = math.ceil(0.8 * size.short_mm + _AROUND_MM)
    return NeedleGrid(-size.offset_mm - (rows // 2) * _CELL_MM, _CELL_MM, rows, columns)


def predict_shape(
    applicator: Applicator,
    power_w: float,
    time_s: float,
    tissue: Tissue,
    *,
    perfusion: float = 1.0,
    energy: float = 1.0,
    lethal_c: float | None = None,
) -> NeedleShape:
    """Zone around one needle in homogeneous tissue, at the end of the heating or freezing; see `predict_growth`."""
    return predict_growth(applicator, power_w, [time_s], tissue, perfusion=perfusion, energy=energy, lethal_c=lethal_c)[
        0
    ]


def predict_growth(
    applicator: Applicator,
    power_w: float,
    times_s: Sequence[float],
    tissue: Tissue,
    *,
    perfusion: float = 1.0,
    energy: float = 1.0,
    lethal_c: float | None = None,
) -> tuple[NeedleShape, ...]:
    """Zone around one needle in homogeneous tissue, at each of several times of one heating or freezing.

    Parameters
    ----------
    power_w : float
    times_s : sequence of float
        Ascending. Power and the last time inside the chart's range, which is what the fit knows.
    perfusion, energy : float
        Factors on the tissue's perfusion and on the power (or the cold) that arrives.
    lethal_c : float, optional
        Cryoablation: coldest temperature at the zone's edge, if not the device's own.

    Raises
    ------
    ChartRangeError
        Outside the chart.
    NoHeatModelError
    """
    size = applicator.size(power_w, times_s[-1])
    model = _heating(applicator)
    grid = _grid(size)
    around = around_needle(
        model, applicator.control, power_w, grid, -size.offset_mm, tissue, perfusion=perfusion, energy=energy
    )
    if isinstance(model, Cryoprobe):  # what was coldest is known at the end of a run only
        runs = [(around.heat(grid, [time_s]), 0) for time_s in times_s]
    else:
        heat = around.heat(grid, times_s)
        runs = [(heat, n) for n in range(len(times_s))]
    return tuple(shape_of_level(grid, level_of(model, heat, n, lethal_c)) for heat, n in runs)


def predict_band(
    applicator: Applicator, power_w: float, time_s: float, tissue: Tissue, shape: NeedleShape,
    pose_covariance: Array | None = None,
) -> Band:  # fmt: skip
    """How far the zone's surface may lie from where it is predicted.

    Joins, as independent: perfusion (the tissue's ``perfusion_sd``) and deposited power (the device's
    ``efficiency_sd``), each by two more runs at one sigma; the model's error on powers it had not seen; the width of
    the transition itself; and the needle's pose.

    Parameters
    ----------
    shape : NeedleShape
        Of `predict_shape` for the same arguments.
    pose_covariance : (6, 6) float64, optional
        Of tip (mm) and rotation (rad) in the needle's frame.

    Raises
    ------
    ValueError
        There is no zone to begin with.
    """
    if shape.is_empty:
        raise ValueError(
            f"{applicator.name}: {applicator.setting(power_w)}, {time_s:g} s kill nothing in {tissue.name}"
        )
    heating, grid = _heating(applicator), shape.grid
    z, r = grid.z_mm[:, None] - shape.centre_z_mm, grid.r_mm[None]
    along = z**2 / np.maximum(z**2 + r**2, 1e-9)
    modes = [
        np.sqrt(along) * (0.5 * heating.held_out.long_mm), np.sqrt(1.0 - along) * (0.5 * heating.held_out.short_mm),
        np.full(along.shape, TRANSITION_MM[heating.modality]),
    ]  # fmt: skip
    for name, sd in (("perfusion", tissue.perfusion_sd), ("energy", heating.efficiency_sd)):
        if sd > 0.0:
            two = [
                predict_shape(applicator, power_w, time_s, tissue, **{name: math.exp(sign * sd)}).distance_mm
                for sign in (-1.0, 1.0)
            ]
            if all(np.isfinite(t).all() for t in two):
                modes.append(0.5 * (two[1] - two[0]))
            else:  # one of them killed nothing: half of the zone itself is in doubt
                modes.append(np.full(along.shape, 0.25 * shape.short_mm))
    every = np.stack(modes)
    every.setflags(write=False)
    variance = (every**2).sum(axis=0)
    if pose_covariance is not None:
        # Across the surface: a shift by its normal, a turn by its arm. Averaged around the needle.
        c = np.asarray(pose_covariance, dtype=np.float64)
        normal_z, normal_r = np.gradient(shape.distance_mm, grid.spacing_mm)
        arm = normal_r * grid.z_mm[:, None] - normal_z * r
        variance = variance + normal_z**2 * c[2, 2] + normal_r**2 * 0.5 * (c[0, 0] + c[1, 1])
        variance = variance + arm**2 * 0.5 * (c[3, 3] + c[4, 4])
    sigma = np.sqrt(variance)
    return Band(
        shape_of_distance(grid, shape.distance_mm - _Z95 * sigma),
        shape_of_distance(grid, shape.distance_mm + _Z95 * sigma),
        sigma,
        every,
    )


def wide_vessels(
    vessels: NDArray[np.bool_], spacing_mm: float, diameter_mm: float = WIDE_VESSEL_MM
) -> NDArray[np.bool_]:
    """What of a vessel mask is at least ``diameter_mm`` wide: an opening by distances (cubic cells)."""
    if not vessels.any():
        return vessels
    # A tube of diameter d holds cells no farther than (d - pitch) / 2 from its outermost ones.
    inner = ndimage.distance_transform_edt(vessels, spacing_mm) >= 0.5 * diameter_mm
    if not inner.any():
        return np.zeros_like(vessels)
    near = np.asarray(ndimage.distance_transform_edt(~inner, spacing_mm) <= 0.5 * diameter_mm)
    return np.asarray(vessels & near, dtype=np.bool_)


def predict_box(
    applied: Sequence[Applied], tissue: Tissue, *, vessels: Volume | None = None, cell_mm: float = _CELL_MM,
    progress: Progress | None = None,
) -> BoxZone:  # fmt: skip
    """Zone of every applicator together, with wide vessels held at blood temperature.

    The level of a cryoablation is in K below the lethal temperature. A cooled shaft and a cryoprobe are held for the
    whole run.

    Parameters
    ----------
    applied : sequence of Applied
        At least one. Powers and times inside each chart.
    vessels : Volume, optional
        Above 0 in vessels; on any grid.
    cell_mm : float
        Pitch of the box, whose axes are R, A and S.
    progress : callable, optional
        ``(share, text)``; what it raises ends the run.

    Raises
    ------
    ChartRangeError, NoHeatModelError
    ValueError
        No applicator; heat and cold at once; a zone that reaches the edge of the box.
    """
    if not applied:
        raise ValueError("no applicator is at work")
    models = [_heating(one.applicator) for one in applied]
    _fit_together(applied, models)
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    placed = []
    for one, model in zip(applied, models, strict=True):
        size = one.applicator.size(one.power_w, one.time_s)
        needle = _grid(size)
        around = around_needle(model, one.applicator.control, one.power_w, needle, -size.offset_mm, tissue)
        axis = np.asarray(one.ras_from_tip.rotation[:, 2], dtype=np.float64)
        tip = np.asarray(one.ras_from_tip.translation, dtype=np.float64)
        centre = tip - size.offset_mm * axis
        reach = 0.5 * (size.short_mm + (size.long_mm - size.short_mm) * np.abs(axis)) + _AROUND_MM
        low, high = np.minimum(low, centre - reach), np.maximum(high, centre + reach)
        placed.append((one, needle, around, tip, axis))
    counts = [int(n) for n in np.maximum(np.ceil((high - low) / cell_mm), 8)]
    grid = BoxGrid((counts[2], counts[1], counts[0]), cell_mm, tuple(low + 0.5 * cell_mm))
    ras_from_index = np.diag([cell_mm, cell_mm, cell_mm, 1.0])
    ras_from_index[:3, 3] = grid.origin_mm
    held = np.full(grid.shape, np.nan, np.float32)
    ras = Volume.of(held, ras_from_index).voxels_ras()
    if vessels is not None:
        held[wide_vessels(vessels.holds(ras).reshape(grid.shape), cell_mm)] = tissue.blood_c
    bursts = []
    for one, needle, around, tip, axis in placed:
        table, shaft = around.source, None
        if callable(table) or around.held_c is not None:
            alone = around.heat(needle, [one.time_s]).celsius
            if around.held_c is not None:
                shaft = _hold(held, ras, cell_mm, needle, np.isfinite(around.held_c[:, 0]), alone, tip, axis)
            if callable(table):  # as it lies at the end around one needle: it settles within the first minutes
                table = table(alone)
        if table.any():
            laid = needle_source(grid, needle, table, tip, axis)
            if shaft is not None:  # no tissue there
                free = np.where(shaft, 0.0, laid)
                laid = free * (laid.sum() / free.sum())
            bursts.append(Burst(laid, one.start_s, one.start_s + one.time_s))
    material = replace(
        placed[0][2].material, perfusion_per_s=float(np.mean([p[2].material.perfusion_per_s for p in placed]))
    )
    cold = isinstance(models[0], Cryoprobe)
    cells = Cells() if np.isnan(held).all() else Cells(held_c=held)
    end = max(one.start_s + one.time_s for one in applied)
    heat = heat_box(
        grid, material, bursts, [end], cells=cells, limit_c=placed[0][2].limit_c, keep_coldest=cold, progress=progress
    )
    if isinstance(models[0], Cryoprobe):
        level = np.float32(models[0].lethal_c) - heat.coldest_c
    else:
        level = np.log(np.maximum(heat.damage[0], np.float32(1e-12)))
    basis = "; ".join(f"{o.applicator.name} {o.applicator.setting(o.power_w)} {o.time_s:g} s" for o in applied)
    return box_zone(Volume.of(level, ras_from_index), placed[0][4], tissue.name, basis)


def _fit_together(applied: Sequence[Applied], models: Sequence[Heating | Electrode | Cryoprobe]) -> None:
    """`ValueError` for applicators that one run cannot hold."""
    if len({isinstance(m, Cryoprobe) for m in models}) > 1:
        raise ValueError("applicators that heat and applicators that freeze cannot be computed together")
    if len({m.lethal_c for m in models if isinstance(m, Cryoprobe)}) > 1:
        raise ValueError("cryoprobes with different lethal temperatures cannot be computed together")
    if len({one.power_w if one.applicator.control == "C" else math.inf for one in applied}) > 1:
        raise ValueError("applicators set to different temperatures cannot be computed together")
    holds = any(isinstance(m, Cryoprobe) or (isinstance(m, Electrode) and m.shaft_c is not None) for m in models)
    if holds and len({(one.start_s, one.time_s) for one in applied}) > 1:
        raise ValueError("cryoprobes and cooled electrodes must start and stop together to be computed together")


def _hold(
    held: Grid, ras: Array, cell_mm: float, needle: NeedleGrid, active: NDArray[np.bool_], alone: Array, tip: Array,
    axis: Array,
) -> NDArray[np.bool_]:  # fmt: skip
    """Hold the cells of a box around a shaft, and say which they are.

    Cells cannot be as thin as a shaft. Those nearer than `_HELD_CELLS` act, wherever the axis runs between them, like a
    shaft of about `_ACTS_CELLS` radius, and stay as warm as it is there around the needle alone (``alone``, C).
    """
    away = ras - tip
    along = away @ axis
    across = np.sqrt(np.maximum((away**2).sum(axis=-1) - along**2, 0.0))
    row = np.round((along - needle.first_z_mm) / needle.spacing_mm).astype(int)
    near = (row >= 0) & (row < needle.rows) & (across < _HELD_CELLS * cell_mm)
    near[near] = active[row[near]]
    # Around the needle the innermost column is held; the next lies 1.5 pitches off and conducts through the face at 1.
    first, second = needle.spacing_mm * 1.5 * math.exp(-1.0), needle.spacing_mm * 1.5
    share = math.log(_ACTS_CELLS * cell_mm / first) / math.log(second / first)
    value = alone[:, 0] + share * (alone[:, 1] - alone[:, 0])
    flat = held.reshape(-1)
    flat[near] = value[row[near]]
    return np.asarray(near.reshape(held.shape))


def box_zone(level: Volume, axis: Array, tissue: str, basis: str) -> BoxZone:
    """The zone where a level in a box is above 0, with its extents along and across ``axis``.

    Raises
    ------
    ValueError
        It reaches the edge of the box.
    """
    values = np.asarray(level.array)
    spacing = float(level.spacing_mm[0])
    edges = (values[0], values[-1], values[:, 0], values[:, -1], values[:, :, 0], values[:, :, -1])
    if any(float(edge.max()) >= 0.0 for edge in edges):
        raise ValueError(f"the zone reaches the edge of its box of {values.shape} cells")
    if float(values.max()) < 0.0:
        nowhere = Volume.of(np.full(values.shape, -np.inf, np.float32), level.ras_from_index)
        return BoxZone(level, nowhere, np.empty((0, 3)), axis, 0.0, 0.0, 0.0, tissue, basis)
    vertices, faces, normals, _ = measure.marching_cubes(values.copy(), 0.0)  # type: ignore[no-untyped-call]
    corners = vertices[faces]
    across_surface = np.concatenate([normals, normals[faces].mean(axis=1)])[:, ::-1]
    points = np.concatenate([vertices, corners.mean(axis=1)])[:, ::-1]
    ras = np.ascontiguousarray(level.to_ras(points))
    volume = abs(float(np.einsum("ij,ij->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])))) / 6.0
    long_mm, short_mm = extents_along(ras, axis)
    ras.setflags(write=False)
    distance = Volume.of(_box_distance(values >= 0.0, points, across_surface, spacing), level.ras_from_index)
    return BoxZone(
        level, distance, ras, axis, long_mm, short_mm, 1e-3 * volume * spacing**3, tissue, basis
    )  # fmt: skip


def _box_distance(inside: NDArray[np.bool_], surface: Array, normals: Array, spacing_mm: float) -> NDArray[np.float32]:
    """Signed distance of every cell to points on the surface ((i, j, k) indices) with normals there, mm.

    Beside the surface to the plane through the nearest point (which lies up to a quarter of a cell aside), near it to
    the point itself, and beyond to the nearest cell of the other side.
    """
    distance = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    distance -= 0.5 * np.sign(distance)
    near = np.argwhere(np.abs(distance) * spacing_mm <= _NEAR_MM)
    cells = near[:, ::-1].astype(np.float64)
    exact, which = cKDTree(surface).query(cells)
    beside = exact < 2.0
    off = cells[beside] - surface[which[beside]]
    unit = normals[which[beside]] / np.linalg.norm(normals[which[beside]], axis=1, keepdims=True)
    exact[beside] = np.abs(np.einsum("ij,ij->i", off, unit))
    at = tuple(near.T)
    distance[at] = np.where(inside[at], exact, -exact)
    return np.asarray(spacing_mm * distance, dtype=np.float32)


def place_shape(
    applicator: Applicator, power_w: float, time_s: float, tissue: Tissue, shape: NeedleShape, ras_from_tip: Rigid
) -> NeedleZone:
    """A computed shape on the needle; costs nothing, so it is done at every pose."""
    heating = _heating(applicator)
    basis = f"computed for {tissue.name}; device fitted to {heating.fitted_to}, tissue {heating.tissue}"
    return NeedleZone(ras_from_tip, shape, applicator.name, power_w, time_s, tissue.name, basis)
