"""Kernels of the path check: exact distances to voxel boxes on a grid, and needle paths marched through them.

Distances lie on the grid as whole steps of `STEP_MM`, rounded down and cut at `FARTHEST_MM`, so a byte holds one and
reading it errs on the safe side. Points are millimetres along the grid's axes, from the middle of its first cell.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from nav.geometry.kernels import KernelSpec

__all__ = ["FARTHEST_MM", "KERNELS", "STEP_MM"]

#: What one unit of a stored distance stands for, mm.
STEP_MM = 0.1
#: Larger distances are stored as this one, mm.
FARTHEST_MM = 20.0

# No reassociation: the same bits from a fresh compilation and from the cache.
_FAST = {"nsz"}


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath=_FAST)
def _rows(marked, pitch, cap, out):  # type: ignore[no-untyped-def]
    """Squared distance along i from every cell's middle to the nearest marked cell's box, at most ``cap``."""
    for k in prange(marked.shape[0]):
        for j in range(marked.shape[1]):
            last = -1.0
            for i in range(marked.shape[2]):
                if marked[k, j, i] != 0:
                    last = np.float64(i)
                    out[k, j, i] = 0.0
                elif last >= 0.0:
                    d = (i - last - 0.5) * pitch
                    out[k, j, i] = min(d * d, cap)
                else:
                    out[k, j, i] = cap
            last = -1.0
            for i in range(marked.shape[2] - 1, -1, -1):
                if marked[k, j, i] != 0:
                    last = np.float64(i)
                elif last >= 0.0:
                    d = (last - i - 0.5) * pitch
                    out[k, j, i] = min(out[k, j, i], d * d)


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath=_FAST)
def _columns(squared, pitch, reach, out):  # type: ignore[no-untyped-def]
    """Lower envelope along j: ``out[j] = min over j' of squared[j'] + (gap between the boxes)²``."""
    n = squared.shape[1]
    for k in prange(squared.shape[0]):
        for j in range(n):
            for i in range(squared.shape[2]):
                out[k, j, i] = squared[k, j, i]
            for other in range(max(0, j - reach), min(n, j + reach + 1)):
                if other != j:
                    gap = np.float32((abs(other - j) - 0.5) * pitch)
                    gap *= gap
                    for i in range(squared.shape[2]):
                        out[k, j, i] = min(out[k, j, i], squared[k, other, i] + gap)


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath=_FAST)
def _slices(squared, pitch, reach, slack, step, out):  # type: ignore[no-untyped-def]
    """The same along k; then the root, less ``slack``, in steps, rounded down."""
    n = squared.shape[0]
    for j in prange(squared.shape[1]):
        row = np.empty(squared.shape[2], np.float32)
        for k in range(n):
            for i in range(squared.shape[2]):
                row[i] = squared[k, j, i]
            for other in range(max(0, k - reach), min(n, k + reach + 1)):
                if other != k:
                    gap = np.float32((abs(other - k) - 0.5) * pitch)
                    gap *= gap
                    for i in range(squared.shape[2]):
                        row[i] = min(row[i], squared[other, j, i] + gap)
            for i in range(squared.shape[2]):
                # The rounding of float32, a millionth, must not lift a value over a step.
                d = (math.sqrt(row[i]) * (1.0 - 1e-6) - slack) / step
                out[k, j, i] = np.uint8(max(d, 0.0))


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FAST)
def _at(field, x, y, z, per_mm):  # type: ignore[no-untyped-def]
    """Trilinear value at a point; beyond the border the border's value."""
    u = min(max(x * per_mm[0], 0.0), field.shape[2] - 1.0)
    v = min(max(y * per_mm[1], 0.0), field.shape[1] - 1.0)
    w = min(max(z * per_mm[2], 0.0), field.shape[0] - 1.0)
    i, j, k = int(u), int(v), int(w)
    a, b, c = u - i, v - j, w - k
    i1, j1, k1 = min(i + 1, field.shape[2] - 1), min(j + 1, field.shape[1] - 1), min(k + 1, field.shape[0] - 1)
    near = (field[k, j, i] * (1.0 - a) + field[k, j, i1] * a) * (1.0 - b)
    near += (field[k, j1, i] * (1.0 - a) + field[k, j1, i1] * a) * b
    far = (field[k1, j, i] * (1.0 - a) + field[k1, j, i1] * a) * (1.0 - b)
    far += (field[k1, j1, i] * (1.0 - a) + field[k1, j1, i1] * a) * b
    return near * (1.0 - c) + far * c


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_FAST)
def _signed(out_field, in_field, x, y, z, per_mm):  # type: ignore[no-untyped-def]
    """Distance to the organ, negative inside."""
    return _at(out_field, x, y, z, per_mm) - _at(in_field, x, y, z, per_mm)


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath=_FAST)
def _check(entries, tips, obstacles, needed, reserve, through, organ, tumour, sure, per_mm, base, hit, places):  # type: ignore[no-untyped-def]
    """March every path; see `nav.planning.paths`."""
    step_mm, advance, normal_mm, graze = base[0], base[1], base[2], base[3] / base[0]
    for n in prange(entries.shape[0]):
        x, y, z = entries[n, 0], entries[n, 1], entries[n, 2]
        dx, dy, dz = tips[n, 0] - x, tips[n, 1] - y, tips[n, 2] - z
        length = math.sqrt(dx * dx + dy * dy + dz * dz)
        for c in range(hit.shape[1]):
            hit[n, c] = 0
        for c in range(places.shape[1]):
            places[n, c] = math.nan
        if not (0.0 < length < 1e6):
            for c in range(hit.shape[1]):
                hit[n, c] = 1
            continue
        dx, dy, dz = dx / length, dy / length, dz / length
        # Where the path is first sure to be in the organ. From where it may touch it, it must only go deeper: what
        # rises again has grazed the organ.
        capsule = -1.0
        lowest = 1e9
        sine = 1.0
        grazes = False
        s = 0.0
        while s <= length:
            px, py, pz = x + s * dx, y + s * dy, z + s * dz
            v = _signed(organ[0], organ[1], px, py, pz, per_mm)
            if s == 0.0 and v <= 0.0:
                break
            if v < sure:
                lowest = min(lowest, v)
                # The capsule lies somewhere between the first touch and here: the flattest angle counts.
                h = normal_mm
                gx = _at(organ[2], px + h, py, pz, per_mm) - _at(organ[2], px - h, py, pz, per_mm)
                gy = _at(organ[2], px, py + h, pz, per_mm) - _at(organ[2], px, py - h, pz, per_mm)
                gz = _at(organ[2], px, py, pz + h, per_mm) - _at(organ[2], px, py, pz - h, per_mm)
                g = math.sqrt(gx * gx + gy * gy + gz * gz)
                sine = min(sine, (gx * dx + gy * dy + gz * dz) / g if g > 0.0 else 0.0)
            if v <= -sure:
                capsule = s
                break
            grazes = grazes or v > lowest + graze
            s += max(advance, (v - sure) * step_mm)
        count = obstacles.shape[0]
        if capsule < 0.0:
            hit[n, count] = 1
        else:
            places[n, 0] = capsule
            if grazes:
                hit[n, count + 1] = 1
            places[n, 2] = sine
        # In the organ to the tip; where it is first near the tumour, and first sure to be in it.
        near = -1.0
        inside = -1.0
        s = max(capsule, 0.0)
        while True:
            px, py, pz = x + s * dx, y + s * dy, z + s * dz
            t_out = _at(tumour[0], px, py, pz, per_mm)
            if near < 0.0 and t_out < sure:
                near = s
            if inside < 0.0 and t_out < sure and _at(tumour[1], px, py, pz, per_mm) >= sure:
                inside = s
            free = math.inf
            if capsule >= 0.0:
                v = -_signed(organ[0], organ[1], px, py, pz, per_mm)
                if v < sure:
                    hit[n, count + 1] = 1
                free = v
            if s >= length:
                break
            if near < 0.0:
                free = min(free, t_out)
            elif inside < 0.0:
                free = 0.0
            s = min(length, s + min(max(advance, (free - sure) * step_mm), FARTHEST_MM))
        if capsule >= 0.0:
            places[n, 1] = near - capsule if near >= 0.0 else length - capsule
        for o in range(count):
            end = inside if through[o] != 0 and inside >= 0.0 else length
            s = 0.0
            while True:
                v = _at(obstacles[o], x + s * dx, y + s * dy, z + s * dz, per_mm)
                if v < needed[o]:
                    hit[n, o] = 1
                    break
                if s >= end:
                    break
                s = min(end, s + max(advance, (v - reserve[o]) * step_mm))


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath=_FAST)
def _nearest(entries, tips, obstacles, advance, per_mm, out):  # type: ignore[no-untyped-def]
    """Smallest stored distance to every obstacle along every path, at points ``advance`` mm apart."""
    for n in prange(entries.shape[0]):
        x, y, z = entries[n, 0], entries[n, 1], entries[n, 2]
        dx, dy, dz = tips[n, 0] - x, tips[n, 1] - y, tips[n, 2] - z
        length = math.sqrt(dx * dx + dy * dy + dz * dz)
        steps = int(np.ceil(length / advance))
        for o in range(obstacles.shape[0]):
            best = 255.0
            for m in range(steps + 1):
                t = m / max(steps, 1)
                best = min(best, _at(obstacles[o], x + t * dx, y + t * dy, z + t * dz, per_mm))
            out[n, o] = best


_POINTS = "Array(float64, 2, 'C', readonly=True)"
_FIELDS = "Array(uint8, 4, 'C', readonly=True)"
_VECTOR = "Array(float64, 1, 'C', readonly=True)"

KERNELS: tuple[KernelSpec, ...] = (
    KernelSpec(
        "planning: distance along rows",
        _rows,
        ("Array(uint8, 3, 'C', readonly=True), float64, float64, float32[:,:,::1]",),
    ),
    KernelSpec("planning: distance along columns", _columns, ("float32[:,:,::1], float64, int64, float32[:,:,::1]",)),
    KernelSpec(
        "planning: distance along slices",
        _slices,
        ("float32[:,:,::1], float64, int64, float64, float64, uint8[:,:,::1]",),
    ),
    KernelSpec(
        "planning: check of paths",
        _check,
        (
            f"{_POINTS}, {_POINTS}, {_FIELDS}, {_VECTOR}, {_VECTOR}, Array(uint8, 1, 'C', readonly=True), {_FIELDS}, "
            f"{_FIELDS}, float64, {_VECTOR}, {_VECTOR}, uint8[:,::1], float32[:,::1]",
        ),
    ),
    KernelSpec(
        "planning: nearest obstacle",
        _nearest,
        (f"{_POINTS}, {_POINTS}, {_FIELDS}, float64, {_VECTOR}, float32[:,::1]",),
    ),
)
