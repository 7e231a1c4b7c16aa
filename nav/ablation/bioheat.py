"""Heat in a box of tissue with any number of applicators, vessels and tissues: Pennes' equation in three dimensions.

    rho c dT/dt = div(k grad T) - w (T - T_blood) + Q

explicit in time, finite volumes in space, with the heat of vaporisation or freezing, conductivity that depends on
temperature, cell death (Arrhenius) and perfusion that stops where cells have died. Heat spreads by a tenth of a
millimetre per step: only the box that has warmed so far is computed, and it grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nav.ablation.axisymmetric import STEP_SHARE, check_times, death_constants
from nav.ablation.bioheat_kernels import KERNELS, lay_source, step
from nav.ablation.sources import NeedleGrid
from nav.ablation.thermal import KELVIN, Material
from nav.geometry.directions import axes_along

__all__ = ["KERNELS", "BoxGrid", "BoxHeat", "Burst", "Cells", "heat_box", "needle_source"]

Array = NDArray[np.float64]
Grid = NDArray[np.float32]
Progress = Callable[[float, str], None]

#: Which cells take part is looked at every so many steps, in which heat spreads by less than the cells then added.
_LOOK_STEPS, _ADDED_CELLS = 8, 4
#: They also take part where a source alone, in the time it has or that perfusion leaves it, changes them by so many
#: times the limit.
_SOURCE_SHARE = 3.0


@dataclass(frozen=True, slots=True)
class BoxGrid:
    """Cells of a box: ``(k, j, i)`` arrays, cell (0, 0, 0) centred at ``origin_mm``.

    Attributes
    ----------
    shape : (nk, nj, ni)
    spacing_mm : float
        Of cubic cells.
    origin_mm : (3,) tuple
        Along i, j, k.
    """

    shape: tuple[int, int, int]
    spacing_mm: float
    origin_mm: tuple[float, float, float]

    @property
    def cell_mm3(self) -> float:
        """Volume of a cell."""
        return self.spacing_mm**3


@dataclass(frozen=True, slots=True, eq=False)
class Burst:
    """Power from ``start_s`` to ``stop_s``.

    Attributes
    ----------
    source_w_per_mm3 : (nk, nj, ni) float64
    start_s, stop_s : float
    """

    source_w_per_mm3: Array
    start_s: float
    stop_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """What differs from the material, cell by cell; None where nothing does.

    Attributes
    ----------
    conductivity, capacity : (nk, nj, ni) float32, optional
        Relative to the material's.
    perfusion_per_s : (nk, nj, ni) float32, optional
    held_c : (nk, nj, ni) float32, optional
        Temperature where it is held (a vessel, a cryoprobe), NaN elsewhere.
    start_c : (nk, nj, ni) float32, optional
        Temperature to start from.
    """

    conductivity: Grid | None = None
    capacity: Grid | None = None
    perfusion_per_s: Grid | None = None
    held_c: Grid | None = None
    start_c: Grid | None = None


@dataclass(frozen=True, slots=True, eq=False)
class BoxHeat:
    """Result of `heat_box`.

    Attributes
    ----------
    grid : BoxGrid
    celsius, coldest_c : (nk, nj, ni) float32
        Temperature at the end; lowest since the start (empty unless asked for).
    damage : (n, nk, nj, ni) float32
        Arrhenius integral at each of ``times_s``.
    times_s : (n,) float64
    power_share : float
        What the generator still gave at the end, of the power set.
    steps : int
    step_s : float
    cell_updates : int
    balance_k_mm3 : dict
        With ``ledger``: heat ``delivered``, ``perfused`` away, ``left`` through what is held or the edge, ``stored``.
    """

    grid: BoxGrid
    celsius: Grid
    coldest_c: Grid
    damage: Grid
    times_s: Array
    power_share: float
    steps: int
    step_s: float
    cell_updates: int
    balance_k_mm3: dict[str, float] = field(default_factory=dict)


def needle_source(grid: BoxGrid, needle: NeedleGrid, table: Array, tip_mm: Array, axis: Array) -> Array:
    """Power density in the cells of a box, W/mm³, from a table around the needle whose integral is kept.

    Parameters
    ----------
    table : (rows, columns) float64
        W/mm³ around the needle.
    tip_mm, axis : (3,)
        In the box's frame (i, j, k directions), mm; unit direction of advance.

    Raises
    ------
    ValueError
        Less than 90 % of the power falls into the box.
    """
    out = np.empty(grid.shape)
    lay_source(
        _frozen(table), needle.first_z_mm, needle.spacing_mm, _frozen(tip_mm), _frozen(axis), _frozen(grid.origin_mm),
        grid.spacing_mm, 2, out,
    )  # fmt: skip
    laid, whole = float(out.sum()) * grid.cell_mm3, float((table * needle.volumes_mm3).sum())
    # The mean over a cell is not exact at the antenna; what lies outside the box stays outside.
    if laid < 0.9 * whole:
        raise ValueError(f"{1 - laid / whole:.0%} of the needle's power falls outside the box of {grid.shape} cells")
    if laid > 0.0:
        inside = _share_inside(grid, needle, table, tip_mm, axis)
        out *= inside * whole / laid
    return out


def _share_inside(grid: BoxGrid, needle: NeedleGrid, table: Array, tip_mm: Array, axis: Array) -> float:
    """Share of a table's power inside a box, by points on 16 directions around the needle."""
    tip, along = np.asarray(tip_mm, dtype=np.float64), np.asarray(axis, dtype=np.float64)
    one, two, _ = axes_along(along).T
    low = np.asarray(grid.origin_mm) - 0.5 * grid.spacing_mm
    high = low + np.asarray(grid.shape[::-1]) * grid.spacing_mm
    power = table * needle.volumes_mm3
    share = 0.0
    for angle in (np.arange(16) + 0.5) * (2.0 * np.pi / 16):
        across = np.cos(angle) * one + np.sin(angle) * two
        points = tip + needle.z_mm[:, None, None] * along + needle.r_mm[None, :, None] * across
        share += float(power[((points >= low) & (points <= high)).all(axis=-1)].sum())
    return share / (16.0 * float(power.sum()))


def heat_box(
    grid: BoxGrid,
    material: Material,
    bursts: Sequence[Burst],
    times_s: Sequence[float],
    *,
    cells: Cells | None = None,
    limit_c: float = math.inf,
    most_step_s: float = 2.0,
    takes_part_k: float = 0.1,
    keep_coldest: bool = False,
    ledger: bool = False,
    progress: Progress | None = None,
) -> BoxHeat:
    """Solve the bioheat equation in a box whose outermost cells stay at the reference temperature.

    Parameters
    ----------
    grid : BoxGrid
        At least 3 cells along each axis.
    material : Material
    bursts : sequence of Burst
        What heats (or, negative, cools), and when.
    times_s : sequence of float
        Ascending, at which the damage is kept; the last ends the run.
    cells : Cells, optional
        What differs from the material.
    limit_c : float
        Hottest temperature at which the generator takes power back.
    most_step_s : float
        Longest step; stability may ask for a shorter one.
    takes_part_k : float
        A cell takes part once it is this much warmer or colder than at the start, K. Against taking all along, zones of
        21 and 36 ml came out the same to the last of their cells, in less than half of the time.
    keep_coldest, ledger : bool
        Keep the lowest temperatures, and stop perfusion where tissue froze; keep the heat balance (slow, for
        verification).
    progress : callable, optional
        Called with the share done and a text about every 5 %; what it raises ends the run.

    Raises
    ------
    ValueError
        A grid too small, or arrays of other shapes; the message names them.
    """
    cells = Cells() if cells is None else cells
    times = np.asarray(times_s, dtype=np.float64)
    check_times(times)
    if min(grid.shape) < 3:
        raise ValueError(f"the box has {grid.shape} cells, at least 3 along each axis are needed")
    for name, array in (
        *((f"source {n}", b.source_w_per_mm3) for n, b in enumerate(bursts)), ("conductivity", cells.conductivity),
        ("capacity", cells.capacity), ("perfusion", cells.perfusion_per_s), ("held temperature", cells.held_c),
        ("starting temperature", cells.start_c),
    ):  # fmt: skip
        if array is not None and array.shape != grid.shape:
            raise ValueError(f"{name} has shape {array.shape}, the box {grid.shape}")

    curve = material.curve
    conduct = np.ones((1, 1, 1), np.float32) if cells.conductivity is None else cells.conductivity
    capacity = 1.0 if cells.capacity is None else cells.capacity.astype(np.float64)
    most_perfusion = material.perfusion_per_s if cells.perfusion_per_s is None else float(cells.perfusion_per_s.max())
    # No cell gives away more than it has: 24 / 6 neighbours' worth of conduction, and what blood takes.
    stiff = 4.0 * material.diffusivity_mm2_per_s * curve.stiffest * float(np.max(conduct / capacity))
    longest = STEP_SHARE / (stiff / grid.spacing_mm**2 + most_perfusion * max(curve.t_slopes))
    steps = math.ceil(times[-1] / min(longest, most_step_s))
    dt = float(times[-1] / steps)

    h = np.zeros(grid.shape, np.float32)
    if cells.start_c is not None:
        h[1:-1, 1:-1, 1:-1] = curve.enthalpy(cells.start_c[1:-1, 1:-1, 1:-1])
    free = np.ones(grid.shape, np.bool_)
    if cells.held_c is not None:
        free = np.isnan(cells.held_c)
        h[~free] = curve.enthalpy(cells.held_c[~free])
    h_start = h.copy()
    u = curve.potential(h).astype(np.float32)
    u_new = u.copy()
    gain = _frozen(np.where(free, material.diffusivity_mm2_per_s * dt / grid.spacing_mm**2 / capacity, 0.0), np.float32)
    conduct = _frozen(conduct, np.float32)
    rate = material.perfusion_per_s if cells.perfusion_per_s is None else cells.perfusion_per_s
    loss = np.where(free, rate * dt / capacity, 0.0).astype(np.float32)
    omega = np.zeros(grid.shape, np.float32)
    coldest = np.zeros(grid.shape if keep_coldest else (1, 1, 1), np.float32)
    frequency, energy, above, stasis, stasis_c = death_constants(material)
    floor = above - curve.reference_c if math.isfinite(above) else 1e30
    floor_h = float(curve.enthalpy(above)) if math.isfinite(above) else 1e30
    death = _frozen(
        (frequency + math.log(dt), energy, KELVIN + curve.reference_c, floor, floor_h, stasis,
         stasis_c - curve.reference_c),
        np.float32,
    )  # fmt: skip
    per_watt = 1e9 * dt / material.heat_per_volume
    stop = np.array([math.inf if b.stop_s >= times[-1] else b.stop_s for b in bursts])
    start = np.array([b.start_s for b in bursts])

    most_s = min(float(times[-1]), 1.0 / max(float(np.min(rate)), 1e-9))
    box = _first_box(grid, bursts, np.abs(h) > takes_part_k, per_watt / dt, most_s, takes_part_k)
    constants = _frozen(curve.constants, np.float32)
    hottest = np.full(grid.shape[0], -1e30, np.float32)
    damage = np.empty((len(times), *grid.shape), np.float32)
    snap = np.round(times / dt).astype(int)
    watt: Grid | None = None
    on_before: NDArray[np.bool_] | None = None
    power, updates, taken = 1.0, 0, {"delivered": 0.0, "perfused": 0.0}
    for n in range(steps):
        on = (start <= (n + 0.5) * dt) & ((n + 0.5) * dt < stop)
        if on_before is None or (on != on_before).any():
            total = np.zeros(grid.shape)
            for burst in (b for b, active in zip(bursts, on, strict=True) if active):
                total += burst.source_w_per_mm3
            watt = _frozen(np.where(free, total * per_watt / capacity, 0.0), np.float32)
            on_before = on
        assert watt is not None
        if ledger:
            inner = (slice(1, -1),) * 3
            warm = curve.celsius(h[inner]) - material.blood_c
            cap = capacity[inner] if isinstance(capacity, np.ndarray) else 1.0
            taken["delivered"] += power * float((watt[inner] * cap).sum(dtype=np.float64)) * grid.cell_mm3
            taken["perfused"] += float((loss[inner] * cap * warm).sum(dtype=np.float64)) * grid.cell_mm3
        step(
            h, u, u_new, watt, loss, gain, conduct, cells.conductivity is None, omega, coldest, box, constants,
            np.float32(power), np.float32(material.blood_c - curve.reference_c), death, keep_coldest, hottest,
        )  # fmt: skip
        u, u_new = u_new, u
        updates += int(np.prod(box[1::2] - box[::2]))
        # As around one needle: back within seconds, and up again within tens of seconds.
        if float(hottest.max()) + curve.reference_c > limit_c:
            power *= math.exp(-dt / 4.0)
        elif power < 1.0:
            power = min(1.0, power * math.exp(dt / 20.0))
        if n % _LOOK_STEPS == _LOOK_STEPS - 1:
            box = _grown(box, h, grid.shape, takes_part_k)
        for which in np.flatnonzero(snap == n + 1):
            damage[which] = omega
        if progress is not None and (n + 1) * 20 // steps != n * 20 // steps:
            progress((n + 1) / steps, f"{(n + 1) * dt:.0f} of {times[-1]:.0f} s of heating")
    balance: dict[str, float] = {}
    if ledger:
        cap = capacity if isinstance(capacity, np.ndarray) else 1.0
        stored = float(((h.astype(np.float64) - h_start) * cap).sum()) * grid.cell_mm3
        balance = {**taken, "stored": stored, "left": taken["delivered"] - taken["perfused"] - stored}
    cold = coldest + np.float32(curve.reference_c) if keep_coldest else coldest[:0]
    return BoxHeat(grid, curve.celsius(h).astype(np.float32), cold, damage, times, power, steps, dt, updates, balance)


def _first_box(
    grid: BoxGrid,
    bursts: Sequence[Burst],
    held: NDArray[np.bool_],
    kelvin_per_s: float,
    seconds: float,
    takes_part_k: float,
) -> NDArray[np.int64]:
    """Cells at another temperature, or that a source alone changes by `_SOURCE_SHARE` limits within ``seconds``."""
    active = held.copy()
    for burst in bursts:
        long = min(burst.stop_s - burst.start_s, seconds)
        active |= np.abs(burst.source_w_per_mm3) * (kelvin_per_s * long) > _SOURCE_SHARE * takes_part_k
    box = np.empty(6, np.int64)
    for axis, size in enumerate(grid.shape):
        where = np.flatnonzero(active.any(axis=tuple(a for a in range(3) if a != axis)))
        first, last = (where[0], where[-1]) if len(where) else (size // 2, size // 2)
        box[2 * axis] = max(1, min(first - _ADDED_CELLS, size - 2))
        box[2 * axis + 1] = min(size - 1, max(last + 1 + _ADDED_CELLS, 2))
    box.setflags(write=False)
    return box


def _grown(box: NDArray[np.int64], h: Grid, shape: tuple[int, int, int], takes_part_k: float) -> NDArray[np.int64]:
    """``box`` with `_ADDED_CELLS` more at every face that heat has reached."""
    low, high = box[::2], box[1::2]
    inside = h[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    grown = np.array(box)
    for axis in range(3):
        face = np.moveaxis(inside, axis, 0)
        if low[axis] > 1 and float(np.abs(face[:2]).max()) > takes_part_k:
            grown[2 * axis] = max(1, low[axis] - _ADDED_CELLS)
        if high[axis] < shape[axis] - 1 and float(np.abs(face[-2:]).max()) > takes_part_k:
            grown[2 * axis + 1] = min(shape[axis] - 1, high[axis] + _ADDED_CELLS)
    grown.setflags(write=False)
    return grown


def _frozen(values: object, kind: type = np.float64) -> Any:
    """A C-contiguous read-only array, as the kernels take it."""
    array: NDArray[Any] = np.ascontiguousarray(values, kind).view()
    array.setflags(write=False)
    return array
