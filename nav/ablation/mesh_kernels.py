"""Kernels on triangle meshes: squared distance of a point, and on which side of the surface it lies."""

from __future__ import annotations

import math

from numba import njit

from nav.geometry.kernels import KernelSpec

__all__ = ["KERNELS"]


@njit(nogil=True, cache=True)
def _triangle(ax, ay, az, bx, by, bz, cx, cy, cz):  # type: ignore[no-untyped-def]
    """Squared distance of the origin to a triangle (Ericson, Real-Time Collision Detection, 2005, §5.1.5)."""
    ux, uy, uz = bx - ax, by - ay, bz - az
    vx, vy, vz = cx - ax, cy - ay, cz - az
    d1 = -(ux * ax + uy * ay + uz * az)
    d2 = -(vx * ax + vy * ay + vz * az)
    d3 = -(ux * bx + uy * by + uz * bz)
    d4 = -(vx * bx + vy * by + vz * bz)
    d5 = -(ux * cx + uy * cy + uz * cz)
    d6 = -(vx * cx + vy * cy + vz * cz)
    va = d3 * d6 - d5 * d4
    vb = d5 * d2 - d1 * d6
    vc = d1 * d4 - d3 * d2
    s = 0.0
    t = 0.0
    if d1 <= 0.0 and d2 <= 0.0:
        pass
    elif d3 >= 0.0 and d4 <= d3:
        s = 1.0
    elif vc <= 0.0 and d1 >= 0.0 and d3 <= 0.0:
        s = d1 / (d1 - d3) if d1 != d3 else 0.0
    elif d6 >= 0.0 and d5 <= d6:
        t = 1.0
    elif vb <= 0.0 and d2 >= 0.0 and d6 <= 0.0:
        t = d2 / (d2 - d6) if d2 != d6 else 0.0
    elif va <= 0.0 and d4 - d3 >= 0.0 and d5 - d6 >= 0.0:
        span = (d4 - d3) + (d5 - d6)
        t = (d4 - d3) / span if span > 0.0 else 0.0
        s = 1.0 - t
    else:
        total = va + vb + vc
        if total > 0.0:
            s = vb / total
            t = vc / total
    px, py, pz = ax + s * ux + t * vx, ay + s * uy + t * vy, az + s * uz + t * vz
    return px * px + py * py + pz * pz


@njit(nogil=True, cache=True)
def _nearest_and_winding(x, y, z, vertices, faces, max_edge):  # type: ignore[no-untyped-def]
    """Squared distance of a point to a triangle mesh without loose vertices, and the mesh's winding number about it.

    ``max_edge`` is at least the longest edge. No triangle lies nearer than the nearest vertex unless its own vertices
    are within that distance plus one edge. Outside the vertices' box the winding number is 0 without a sum.

    Winding number: sum of solid angles (van Oosterom & Strackee 1983, IEEE TBME 30:125) / 4π; ±1 inside a closed mesh,
    0 outside.
    """
    best = math.inf
    solid = 0.0
    if faces.shape[0] == 0:
        return best, solid
    below_x, above_x, below_y, above_y, below_z, above_z = True, True, True, True, True, True
    for v in range(vertices.shape[0]):
        dx, dy, dz = vertices[v, 0] - x, vertices[v, 1] - y, vertices[v, 2] - z
        d = dx * dx + dy * dy + dz * dz
        if d < best:
            best = d
        below_x, above_x = below_x and dx > 0.0, above_x and dx < 0.0
        below_y, above_y = below_y and dy > 0.0, above_y and dy < 0.0
        below_z, above_z = below_z and dz > 0.0, above_z and dz < 0.0
    wind = not (below_x or above_x or below_y or above_y or below_z or above_z)
    reach = math.sqrt(best) + max_edge
    reach2 = reach * reach
    for f in range(faces.shape[0]):
        i0, i1, i2 = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, az = vertices[i0, 0] - x, vertices[i0, 1] - y, vertices[i0, 2] - z
        bx, by, bz = vertices[i1, 0] - x, vertices[i1, 1] - y, vertices[i1, 2] - z
        cx, cy, cz = vertices[i2, 0] - x, vertices[i2, 1] - y, vertices[i2, 2] - z
        aa = ax * ax + ay * ay + az * az
        if wind:
            la = math.sqrt(aa)
            lb = math.sqrt(bx * bx + by * by + bz * bz)
            lc = math.sqrt(cx * cx + cy * cy + cz * cz)
            ab = ax * bx + ay * by + az * bz
            bc = bx * cx + by * cy + bz * cz
            ca = cx * ax + cy * ay + cz * az
            det = ax * (by * cz - bz * cy) - ay * (bx * cz - bz * cx) + az * (bx * cy - by * cx)
            solid += math.atan2(det, la * lb * lc + ab * lc + bc * la + ca * lb)
        if aa > reach2:
            continue
        d = _triangle(ax, ay, az, bx, by, bz, cx, cy, cz)
        if d < best:
            best = d
    return best, solid / (2.0 * math.pi)


@njit(nogil=True, cache=True)
def _ring_distances(points, nearest, vertices, faces, start, ring, out):  # type: ignore[no-untyped-def]
    """Squared distance of every point to the triangles around its nearest vertices, into ``out``; inf without any.

    ``nearest`` holds vertex numbers, (n, k); the triangles around vertex v are ``ring[start[v]:start[v + 1]]``.
    """
    for n in range(points.shape[0]):
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        best = math.nan if math.isnan(x + y + z) else math.inf
        for m in range(nearest.shape[1]):
            v = nearest[n, m]
            for t in range(start[v], start[v + 1]):
                i0, i1, i2 = faces[ring[t], 0], faces[ring[t], 1], faces[ring[t], 2]
                d = _triangle(
                    vertices[i0, 0] - x, vertices[i0, 1] - y, vertices[i0, 2] - z,
                    vertices[i1, 0] - x, vertices[i1, 1] - y, vertices[i1, 2] - z,
                    vertices[i2, 0] - x, vertices[i2, 1] - y, vertices[i2, 2] - z,
                )  # fmt: skip
                if d < best:
                    best = d
        out[n] = best


_POINTS = "Array(float64, 2, 'C', readonly=True)"
_NUMBERS = "Array(int64, 1, 'C', readonly=True)"

KERNELS: tuple[KernelSpec, ...] = (
    KernelSpec(
        "mesh: distance and side of a point",
        _nearest_and_winding,
        (f"float64, float64, float64, {_POINTS}, Array(int32, 2, 'C', readonly=True), float64",),
    ),
    KernelSpec(
        "mesh: distance of many points",
        _ring_distances,
        (
            f"{_POINTS}, Array(int64, 2, 'C', readonly=True), {_POINTS}, Array(int32, 2, 'C', readonly=True), "
            f"{_NUMBERS}, {_NUMBERS}, float64[::1]",
        ),
    ),
)
