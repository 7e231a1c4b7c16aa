"""Where a plane cuts a mesh, an ellipsoid or a plane quadrilateral, in pane pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from nav.geometry.kernels import KernelSpec

__all__ = ["KERNELS", "Mesh", "cut_ellipsoid", "cut_mesh", "cut_quadrilateral"]


@dataclass(frozen=True, slots=True, eq=False)
class Mesh:
    """A triangle mesh.

    Attributes
    ----------
    vertices : (n, 3) float64, C-contiguous, read-only
        RAS mm.
    triangles : (m, 3) int32, C-contiguous, read-only
        Vertex numbers, counter-clockwise seen from outside.
    """

    vertices: NDArray[np.float64]
    triangles: NDArray[np.int32]

    @classmethod
    def of(cls, vertices: ArrayLike, triangles: ArrayLike) -> Mesh:
        """Check shapes and vertex numbers, and freeze.

        Raises
        ------
        ValueError
            On a wrong shape, a coordinate that is not finite, or a vertex number out of range.
        """
        v = np.array(vertices, dtype=np.float64, order="C").reshape(-1, 3)
        t = np.array(triangles, dtype=np.int32, order="C").reshape(-1, 3)
        if not np.isfinite(v).all():
            raise ValueError("mesh holds a vertex that is not finite")
        if t.size and (t.min() < 0 or t.max() >= len(v)):
            raise ValueError(f"mesh refers to vertex {t.min()} to {t.max()}, it has {len(v)}")
        v.setflags(write=False)
        t.setflags(write=False)
        return cls(v, t)

    @property
    def area_mm2(self) -> float:
        """Surface area."""
        a, b, c = (self.vertices[self.triangles[:, n]] for n in range(3))
        return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2.0)

    @property
    def volume_mm3(self) -> float:
        """Enclosed volume, positive when the triangles face outwards."""
        a, b, c = (self.vertices[self.triangles[:, n]] for n in range(3))
        return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6.0)


@njit(nogil=True, cache=True, error_model="numpy")
def _cut_mesh(vertices, triangles, pixel_from_ras, projected, out):  # type: ignore[no-untyped-def]
    """Write segments (2 rows each) into ``out``; return how many rows there are (may exceed ``len(out)``)."""
    m = pixel_from_ras
    for n in range(vertices.shape[0]):
        x, y, z = vertices[n, 0], vertices[n, 1], vertices[n, 2]
        projected[n, 0] = m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]
        projected[n, 1] = m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]
        projected[n, 2] = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
    rows = 0
    for n in range(triangles.shape[0]):
        a, b, c = triangles[n, 0], triangles[n, 1], triangles[n, 2]
        # A vertex on the plane counts as behind it: each cut triangle then has exactly one vertex alone on its side,
        # and neighbours agree about their common edge, so contours close.
        side_a = projected[a, 2] >= 0.0
        side_b = projected[b, 2] >= 0.0
        side_c = projected[c, 2] >= 0.0
        if side_a == side_b and side_b == side_c:
            continue
        if side_b == side_c:
            lone, p, q = a, b, c
        elif side_a == side_c:
            lone, p, q = b, c, a
        else:
            lone, p, q = c, a, b
        if rows + 2 <= out.shape[0]:
            z = projected[lone, 2]
            f = z / (z - projected[p, 2])
            g = z / (z - projected[q, 2])
            for axis in range(2):
                start = projected[lone, axis]
                out[rows, axis] = start + f * (projected[p, axis] - start)
                out[rows + 1, axis] = start + g * (projected[q, axis] - start)
        rows += 2
    return rows


KERNELS: tuple[KernelSpec, ...] = (
    KernelSpec(
        "mesh contour",
        _cut_mesh,
        (
            "Array(float64, 2, 'C', readonly=True), Array(int32, 2, 'C', readonly=True), "
            "Array(float64, 2, 'C', readonly=True), Array(float64, 2, 'C'), Array(float64, 2, 'C')",
        ),
    ),
)


def cut_mesh(mesh: Mesh, pixel_from_ras: NDArray[np.float64], offset_mm: float = 0.0) -> NDArray[np.float64]:
    """Segments of the cut of a plane with a mesh.

    Parameters
    ----------
    mesh : Mesh
    pixel_from_ras : (4, 4) float64
        RAS mm to (x px, y px, depth mm); the plane is depth 0.
    offset_mm : float
        Cut at this depth instead.

    Returns
    -------
    (2 n, 2) float64
        Every two rows are one segment, pane pixels; empty when the plane misses.
    """
    m = np.array(pixel_from_ras, dtype=np.float64, order="C")
    m[2, 3] -= offset_mm
    projected = np.empty_like(mesh.vertices)
    out = np.empty((4096, 2))
    rows = _cut_mesh(mesh.vertices, mesh.triangles, m, projected, out)
    if rows > len(out):
        out = np.empty((rows, 2))
        _cut_mesh(mesh.vertices, mesh.triangles, m, projected, out)
    return out[:rows].copy()


def cut_ellipsoid(
    centre_ras: ArrayLike,
    axis_ras: ArrayLike,
    semi_long_mm: float,
    semi_short_mm: float,
    ras_from_pixel: NDArray[np.float64],
    points: int = 96,
) -> NDArray[np.float64] | None:
    """The ellipse in which the plane cuts an ellipsoid of revolution.

    With ``q = q0 + x u + y v`` the plane's points in the space where the ellipsoid is the unit sphere, the cut is
    ``|q|² = 1``: a quadratic form in (x, y), solved by completing the square.

    Parameters
    ----------
    centre_ras, axis_ras : (3,)
        Centre, RAS mm; direction of the axis of revolution.
    semi_long_mm, semi_short_mm : float
        Along and across the axis, above 0 (either may be the longer one).
    ras_from_pixel : (4, 4) float64
    points : int
        Corners of the polygon returned.

    Returns
    -------
    (points, 2) float64 or None
        Closed polygon in pane pixels; None when the plane misses (or only touches).
    """
    if not (semi_long_mm > 0.0 and semi_short_mm > 0.0):
        raise ValueError(f"ellipsoid semi-axes {semi_long_mm} and {semi_short_mm} mm must be above 0")
    axis = np.asarray(axis_ras, dtype=np.float64)
    axis = axis / np.linalg.norm(axis)
    along = np.outer(axis, axis)
    to_sphere = (np.eye(3) - along) / semi_short_mm + along / semi_long_mm
    uv = to_sphere @ ras_from_pixel[:3, :2]
    q0 = to_sphere @ (ras_from_pixel[:3, 3] - np.asarray(centre_ras, dtype=np.float64))
    form = uv.T @ uv
    middle = -np.linalg.solve(form, uv.T @ q0)
    foot = q0 + uv @ middle
    remaining = 1.0 - float(foot @ foot)
    if remaining <= 0.0:
        return None
    lower = np.linalg.cholesky(form)
    angle = np.linspace(0.0, 2.0 * np.pi, points, endpoint=False)
    circle = np.stack((np.cos(angle), np.sin(angle)))
    return np.asarray((middle[:, None] + np.sqrt(remaining) * np.linalg.solve(lower.T, circle)).T)


def cut_quadrilateral(
    corners_ras: NDArray[np.float64], pixel_from_ras: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """The segment in which the plane cuts a flat convex quadrilateral such as an ultrasound image.

    Parameters
    ----------
    corners_ras : (4, 3) float64
        In order around the outline, RAS mm.

    Returns
    -------
    (2, 2) float64 or None
        Pane pixels; None when the plane misses it or coincides with it.
    """
    p = corners_ras @ pixel_from_ras[:3, :3].T + pixel_from_ras[:3, 3]
    hits = []
    for n in range(4):
        a, b = p[n], p[(n + 1) % 4]
        if (a[2] >= 0.0) != (b[2] >= 0.0):
            hits.append(a[:2] + (a[2] / (a[2] - b[2])) * (b[:2] - a[:2]))
    return np.array(hits) if len(hits) == 2 else None
