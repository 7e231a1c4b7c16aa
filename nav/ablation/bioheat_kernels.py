"""Heat in a box of cells (k, j, i): one explicit step of finite volumes, and sources laid onto the cells.

Heat flows between a cell and the 18 that touch it with a face (weight 1/3) or an edge (1/6): unlike the six faces
alone this spreads heat alike in all directions, and its error is one isotropic term, which that of the explicit step
cancels where ``diffusivity · step / pitch²`` is 1/6. It is also stable for longer steps. What leaves a cell enters its
neighbour, so heat is conserved to rounding. Every cell is computed from the step before alone: the result does not
depend on how planes are shared between threads.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from nav.geometry.kernels import KernelSpec

__all__ = ["KERNELS", "lay_source", "step"]


@njit(nogil=True, cache=True, inline="always")
def _sum(h, c, start, slope):  # type: ignore[no-untyped-def]
    """Straight pieces over enthalpy, K: ``c[start]`` and the four slopes from ``c[slope]`` (`StateCurve.constants`)."""
    zero = np.float32(0.0)
    return (
        c[start]
        + c[slope] * min(h, c[2])
        + c[slope + 1] * min(max(h - c[2], zero), c[5])
        + c[slope + 2] * min(max(h - c[3], zero), c[6])
        + c[slope + 3] * max(h - c[4], zero)
    )


@njit(nogil=True, cache=True, inline="always")
def _t_of(h, c):  # type: ignore[no-untyped-def]
    """Temperature above the reference, K."""
    return _sum(h, c, 0, 7)


@njit(nogil=True, cache=True, inline="always")
def _u_of(h, c):  # type: ignore[no-untyped-def]
    """Conduction potential, K."""
    return _sum(h, c, 1, 11)


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz"})
def step(  # type: ignore[no-untyped-def]
    h,
    u,
    u_new,
    heat,
    loss,
    gain,
    conduct,
    uniform,
    omega,
    coldest,
    box,
    curve,
    power,
    blood,
    death,
    watch_cold,
    hottest,
):
    """One explicit step inside ``box``.

    Parameters
    ----------
    h : (nk, nj, ni) float32
        Reduced enthalpy, K; changed in place. The outermost cells are never changed.
    u, u_new : (nk, nj, ni) float32
        Conduction potential of ``h`` before; after (inside ``box`` only).
    heat : (nk, nj, ni) float32
        K per step at full power.
    loss : (nk, nj, ni) float32
        Perfusion rate times the step; set to 0 where it stops.
    gain : (nk, nj, ni) float32
        Diffusivity times step over pitch²; 0 where the temperature is held.
    conduct : (nk, nj, ni) float32
        Conductivity relative to the reference; not read where ``uniform``.
    omega, coldest : (nk, nj, ni) float32
        Arrhenius integral; lowest temperature above the reference.
    box : (6,) int64
        First and last + 1 of k, j, i; within 1 .. n - 1.
    curve : (15,) float32
        `StateCurve.constants`.
    power, blood : float32
        Share of the power; blood's temperature above the reference, K.
    death : (7,) float32
        ln(frequency times step), energy over gas constant (K), reference in kelvin, temperature above the reference
        from which it counts, and the enthalpy there; damage at which perfusion stops, and temperature above the
        reference below which it does (with ``watch_cold``).
    watch_cold : bool
        Keep ``coldest``.
    hottest : (nk,) float32
        Hottest temperature above the reference of each plane, among what can die.
    """
    first, ni = box[4], box[5] - box[4]
    two, zero = np.float32(2.0), np.float32(0.0)
    sixth = np.float32(1.0 / 6.0)
    all_round = np.float32(24.0)
    enough = np.float32(50.0)
    for k in prange(box[0], box[1]):
        row = np.empty(ni, np.float32)
        beside = np.empty(ni + 2, np.float32)
        corner = np.empty(ni, np.float32)
        high = np.float32(-1e30)
        for j in range(box[2], box[3]):
            here = u[k, j, first - 1 : first + ni + 1]
            if uniform:
                south, north = u[k, j - 1, first - 1 : first + ni + 1], u[k, j + 1, first - 1 : first + ni + 1]
                below, above = u[k - 1, j, first - 1 : first + ni + 1], u[k + 1, j, first - 1 : first + ni + 1]
                for i in range(ni + 2):
                    beside[i] = (south[i] + north[i]) + (below[i] + above[i])
                one, three = u[k - 1, j - 1, first : first + ni], u[k - 1, j + 1, first : first + ni]
                five, seven = u[k + 1, j - 1, first : first + ni], u[k + 1, j + 1, first : first + ni]
                for i in range(ni):
                    corner[i] = (one[i] + three[i]) + (five[i] + seven[i])
                for i in range(ni):
                    near = two * ((here[i] + here[i + 2]) + beside[i + 1])
                    far = (beside[i] + beside[i + 2]) + corner[i]
                    row[i] = sixth * ((near + far) - all_round * here[i + 1])
            else:
                for i in range(ni):
                    row[i] = zero
                mine = conduct[k, j, first : first + ni]
                for dk in range(-1, 2):
                    for dj in range(-1, 2):
                        apart = abs(dk) + abs(dj)
                        theirs = conduct[k + dk, j + dj, first - 1 : first + ni + 1]
                        there = u[k + dk, j + dj, first - 1 : first + ni + 1]
                        if apart > 0:
                            # Harmonic mean of two conductivities, times 2 / 6 through a face, 1 / 6 through an edge.
                            weight = two * sixth * (two if apart == 1 else np.float32(1.0))
                            for i in range(ni):
                                joint = weight * mine[i] * theirs[i + 1] / (mine[i] + theirs[i + 1])
                                row[i] += joint * (there[i + 1] - here[i + 1])
                        if apart < 2:
                            weight = two * sixth * (two if apart == 0 else np.float32(1.0))
                            for i in range(ni):
                                joint = weight * mine[i] * theirs[i] / (mine[i] + theirs[i])
                                row[i] += joint * (there[i] - here[i + 1])
                            for i in range(ni):
                                joint = weight * mine[i] * theirs[i + 2] / (mine[i] + theirs[i + 2])
                                row[i] += joint * (there[i + 2] - here[i + 1])
            hr, qr = h[k, j, first : first + ni], heat[k, j, first : first + ni]
            lr, gr = loss[k, j, first : first + ni], gain[k, j, first : first + ni]
            for i in range(ni):
                x = hr[i]
                row[i] = x + gr[i] * row[i] + power * qr[i] - lr[i] * (_t_of(x, curve) - blood)
            un = u_new[k, j, first : first + ni]
            hot = 0
            for i in range(ni):
                x = row[i]
                hr[i] = x
                hot += x > death[4]
            for i in range(ni):
                un[i] = _u_of(row[i], curve)
            if watch_cold:
                cold = coldest[k, j, first : first + ni]
                for i in range(ni):
                    t = _t_of(row[i], curve)
                    cold[i] = cold[i] if t >= cold[i] else t  # NaN stays NaN
                    lr[i] = zero if t < death[6] else lr[i]
            if hot > 0:
                om = omega[k, j, first : first + ni]
                for i in range(ni):
                    x = row[i]
                    if x > death[4]:
                        t = _t_of(x, curve)
                        if t > high:
                            high = t
                        if om[i] < enough:
                            om[i] += np.float32(math.exp(death[0] - death[1] / (t + death[2])))
                            if om[i] >= death[5]:
                                lr[i] = zero
        hottest[k] = high


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz"})
def lay_source(table, first_z, pitch, tip, axis, origin, spacing, fine, out):  # type: ignore[no-untyped-def]
    """Power density of a needle in cells of a box, averaged over ``fine``³ points of each.

    Parameters
    ----------
    table : (rows, columns) float64
        Density around the needle (`NeedleGrid`: rows from ``first_z`` mm, ``pitch`` mm).
    tip, axis : (3,) float64
        Tip in mm and unit direction of advance, in the box's frame (i, j, k directions as x, y, z).
    origin, spacing : (3,) float64
        Centre of cell (0, 0, 0), pitch; x, y, z in mm.
    out : (nk, nj, ni) float64
        Density, 0 beyond the table.
    """
    nk, nj, ni = out.shape
    rows, columns = table.shape
    for k in prange(nk):
        for j in range(nj):
            for i in range(ni):
                total = 0.0
                for c in range(fine):
                    z = origin[2] + spacing * (k + (c + 0.5) / fine - 0.5) - tip[2]
                    for b in range(fine):
                        y = origin[1] + spacing * (j + (b + 0.5) / fine - 0.5) - tip[1]
                        for a in range(fine):
                            x = origin[0] + spacing * (i + (a + 0.5) / fine - 0.5) - tip[0]
                            along = x * axis[0] + y * axis[1] + z * axis[2]
                            r = math.sqrt(max(x * x + y * y + z * z - along * along, 0.0))
                            row = (along - first_z) / pitch
                            column = max(r / pitch - 0.5, 0.0)
                            p = math.floor(row)
                            q = int(column)
                            if p < 0 or p >= rows - 1 or q >= columns - 1:
                                continue
                            v = row - p
                            w = column - q
                            total += (1.0 - v) * ((1.0 - w) * table[p, q] + w * table[p, q + 1]) + v * (
                                (1.0 - w) * table[p + 1, q] + w * table[p + 1, q + 1]
                            )
                out[k, j, i] = total / (fine * fine * fine)


_GRID = "float32[:, :, ::1]"
_READ = "Array(float32, 3, 'C', readonly=True)"
_ROW = "Array(float32, 1, 'C', readonly=True)"
_XYZ = "Array(float64, 1, 'C', readonly=True)"

KERNELS: tuple[KernelSpec, ...] = (
    KernelSpec(
        "heat in a box",
        step,
        (
            f"{_GRID}, {_GRID}, {_GRID}, {_READ}, {_GRID}, {_READ}, {_READ}, bool_, {_GRID}, {_GRID}, "
            f"Array(int64, 1, 'C', readonly=True), {_ROW}, float32, float32, {_ROW}, bool_, float32[::1]",
        ),
    ),
    KernelSpec(
        "source of a needle",
        lay_source,
        (
            f"Array(float64, 2, 'C', readonly=True), float64, float64, {_XYZ}, {_XYZ}, {_XYZ}, float64, int64, "
            "float64[:, :, ::1]",
        ),
    ),
)
