"""Heat around one straight needle in homogeneous tissue: one run gives the zone at every time asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nav.ablation.axisymmetric_kernels import KERNELS, march
from nav.ablation.sources import NeedleGrid
from nav.ablation.thermal import GAS_CONSTANT, Material

__all__ = ["KERNELS", "STEP_SHARE", "NeedleHeat", "NeedleSource", "check_times", "death_constants", "heat_needle"]

Array = NDArray[np.float64]
#: Power density, W/mm³: (rows, columns), or what gives it from the temperature there, C.
NeedleSource = Array | Callable[[Array], Array]

#: Share of the largest stable explicit step.
STEP_SHARE = 0.9
#: How often a source that depends on temperature is asked anew, s.
_RENEWED_S = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class NeedleHeat:
    """Result of `heat_needle`.

    Attributes
    ----------
    grid : NeedleGrid
    celsius, coldest_c : (rows, columns) float64
        Temperature at the end; lowest since the start.
    damage : (n, rows, columns) float64
        Arrhenius integral at each of ``times_s``.
    times_s : (n,) float64
    power_share : float
        What the generator still gave at the end, of the power set.
    step_s : float
    balance_k_mm3 : (5,) float64
        Heat delivered, taken by perfusion, gone through the edges, given by held cells, and stored.
    """

    grid: NeedleGrid
    celsius: Array
    coldest_c: Array
    damage: Array
    times_s: Array
    power_share: float
    step_s: float
    balance_k_mm3: Array


def heat_needle(
    grid: NeedleGrid,
    material: Material,
    source_w_per_mm3: NeedleSource,
    times_s: Sequence[float],
    *,
    off_s: float = math.inf,
    held_c: Array | None = None,
    limit_c: float = math.inf,
    most_step_s: float = 1.0,
    insulated: bool = False,
) -> NeedleHeat:
    """Solve the bioheat equation around a needle.

    Parameters
    ----------
    grid : NeedleGrid
    material : Material
    source_w_per_mm3 : (rows, columns) float64, or a function of the temperature in C, both (rows, columns)
        Power density; a function is asked anew every 5 s.
    times_s : sequence of float
        Ascending; the run ends with the last one.
    off_s : float
        When the power goes off.
    held_c : (rows, columns) float64, optional
        Temperature where it is held (a cooled shaft, a cryoprobe), NaN elsewhere.
    limit_c : float
        Hottest temperature at which a generator takes power back.
    most_step_s : float
        Longest step; stability may ask for a shorter one.
    insulated : bool
        No heat passes the edges of the grid; else they stay at the reference temperature.

    Raises
    ------
    ValueError
        Times that do not ascend from above 0; a source of another shape, or one that depends on temperature together
        with ``limit_c``.
    """
    times = np.asarray(times_s, dtype=np.float64)
    check_times(times)
    shape = (grid.rows, grid.columns)
    varies = callable(source_w_per_mm3)
    if varies and math.isfinite(limit_c):
        raise ValueError("limit_c goes with a source that does not depend on temperature")
    # Near the axis a ring conducts through 4 faces' worth of area in the plane and 2 along the needle.
    stiff = 6.0 * material.diffusivity_mm2_per_s * material.curve.stiffest / grid.spacing_mm**2
    longest = 2.0 * STEP_SHARE / (2.0 * stiff + material.perfusion_per_s * max(material.curve.t_slopes))
    steps = math.ceil(times[-1] / min(longest, most_step_s))
    dt = float(times[-1] / steps)
    h = np.zeros(shape)
    free = np.ones(shape, np.bool_)
    reference = material.curve.reference_c
    if held_c is not None:
        free = np.isnan(held_c)
        h[~free] = material.curve.enthalpy(held_c[~free])
    start = h.copy()
    perfusion = np.where(free, material.perfusion_per_s, 0.0)
    omega, coldest, u = np.zeros(shape), np.full(shape, reference), np.empty(shape)
    snapshots = np.empty((len(times), *shape))
    balance = np.zeros(4)
    snap_steps = np.maximum(np.round(times / dt), 1.0).astype(np.int64)
    death = death_constants(material)
    off = min(steps, round(min(off_s, times[-1]) / dt))
    length = max(1, round(_RENEWED_S / dt)) if varies else steps
    for first in range(0, steps, length):
        part = min(length, steps - first)
        source = source_w_per_mm3(material.curve.celsius(h)) if callable(source_w_per_mm3) else source_w_per_mm3
        if source.shape != shape:
            raise ValueError(f"source has shape {source.shape}, the grid {shape}")
        heating = np.ascontiguousarray(1e9 * source / material.heat_per_volume)
        due = slice(*np.searchsorted(snap_steps, (first, first + part), side="right"))
        power = march(
            h, heating, free, perfusion, material.curve.constants, grid.spacing_mm, material.diffusivity_mm2_per_s, dt,
            part, max(0, off - first), reference, material.blood_c, death, limit_c, insulated, omega, coldest,
            snapshots[due], snap_steps[due] - first, u, balance,
        )  # fmt: skip
    stored = float(((h - start) * grid.volumes_mm3).sum())
    return NeedleHeat(
        grid, material.curve.celsius(h), coldest, snapshots, times, float(power), dt, np.append(balance, stored)
    )


def check_times(times: Array) -> None:
    """`ValueError` unless (n,) times, at least one, ascend from above 0."""
    usable = times.ndim == 1 and len(times) > 0 and bool(np.isfinite(times).all())
    if not usable or times[0] <= 0.0 or (np.diff(times) <= 0.0).any():
        raise ValueError(f"times must ascend from above 0 s, got {times.tolist()}")


def death_constants(material: Material) -> Array:
    """(5,) ln of the frequency (1/s), energy over gas constant (K), temperature above which it counts (C); damage at
    which, and temperature (C) below which perfusion stops for good.
    """
    death = material.death
    stops = (material.stasis_damage, material.stasis_c)
    if death is None:
        return np.array([0.0, 0.0, math.inf, *stops])
    return np.array([math.log(death.frequency_per_s), death.energy_j_per_mol / GAS_CONSTANT, death.above_c, *stops])
