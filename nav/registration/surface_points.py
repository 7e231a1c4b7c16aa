"""Surfaces as points with normals: from meshes, and from bare points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from nav.registration.verdict import ImageRegistrationError

__all__ = ["LEAST_POINTS", "Surface"]

Array = NDArray[np.float64]

#: Fewer points determine no surface registration: six unknowns, and something to tell noise from.
LEAST_POINTS = 20
#: Neighbours that a normal is taken from.
NEIGHBOURS = 14
#: Sides of triangles longer than so many times the usual are sampled in between.
LONG_SIDES = 2.5
#: Points that sampling may add.
MOST_ADDED = 200_000


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """Points on a surface.

    Attributes
    ----------
    points : (n, 3) float64, read-only
        RAS mm.
    normals : (n, 3) float64, read-only, or None
        Of length one.
    oriented : bool
        Whether normals point outwards (those of bare points may point either way).
    """

    points: Array
    normals: Array | None
    oriented: bool

    @classmethod
    def of(cls, points: ArrayLike, normals: ArrayLike | None = None, *, what: str = "surface") -> Surface:
        """Points and, where known, outward normals.

        Raises
        ------
        ImageRegistrationError
            Fewer than `LEAST_POINTS`, wrong shapes, values that are not finite, all in one place or on one line.
        """
        p = np.array(points, np.float64)
        if p.ndim != 2 or p.shape[1:] != (3,):
            raise ImageRegistrationError(f"the {what} has points of shape {p.shape}, expected (n, 3)")
        if len(p) < LEAST_POINTS:
            raise ImageRegistrationError(f"the {what} has {len(p)} points, at least {LEAST_POINTS} are needed")
        bad = np.flatnonzero(~np.isfinite(p).all(axis=1))
        if len(bad):
            raise ImageRegistrationError(
                f"the {what} has {len(bad)} points that are not finite, first number {bad[0] + 1}; leave them out"
            )
        widths = np.sqrt(np.maximum(np.linalg.eigvalsh(np.cov((p - p.mean(axis=0)).T)), 0.0))
        if widths[1] < 1.0:
            raise ImageRegistrationError(
                f"the points of the {what} lie on a line (root mean square distance from it {widths[1]:.2g} mm, at "
                "least 1 mm is needed); collect them over a surface"
            )
        n = None
        if normals is not None:
            n = np.array(normals, np.float64)
            if n.shape != p.shape:
                raise ImageRegistrationError(f"the {what} has {len(p)} points and normals of shape {n.shape}")
            length = np.linalg.norm(n, axis=1)
            if not (np.isfinite(length).all() and (length > 0.0).all()):
                raise ImageRegistrationError(f"the {what} has normals that are zero or not finite; leave them out")
            n = n / length[:, None]
            n.setflags(write=False)
        p.setflags(write=False)
        return cls(p, n, n is not None)

    @classmethod
    def of_mesh(cls, vertices: ArrayLike, triangles: ArrayLike, *, what: str = "surface") -> Surface:
        """Vertices of a mesh, with normals of the triangles around each, weighted by area.

        ``vertices`` (n, 3) RAS mm; ``triangles`` (m, 3), counter-clockwise seen from outside. Triangles with sides far
        longer than the usual (flat faces) are sampled in between, with their own normal.

        Raises
        ------
        ImageRegistrationError
            As `of`; no triangle with an area.
        """
        v, t = np.asarray(vertices, np.float64), np.asarray(triangles, np.int64)
        if not np.isfinite(v).all():
            raise ImageRegistrationError(f"the {what} has vertices that are not finite; export it again")
        v, t = _welded(v, t)
        a, b, c = (v[t[:, n]] for n in range(3))
        area = np.cross(b - a, c - a)
        size = np.linalg.norm(area, axis=1)
        if not (size > 0.0).any():
            raise ImageRegistrationError(f"the {what} has {len(t)} triangles and none with an area; export it again")
        normals = np.zeros_like(v)
        for n in range(3):
            for axis in range(3):
                normals[:, axis] += np.bincount(t[:, n], area[:, axis], len(v))
        length = np.linalg.norm(normals, axis=1)
        used = length > 1e-12 * size.max()
        points, directions = [v[used]], [normals[used] / length[used, None]]
        sides = np.stack([np.linalg.norm(b - a, axis=1), np.linalg.norm(c - b, axis=1), np.linalg.norm(a - c, axis=1)])
        # As if the area were shared evenly by a few thousand points, should all triangles be long.
        usual = min(float(np.median(sides)), float(np.sqrt(size.sum() / 2.0 / 4000.0)))
        pieces = np.ceil(sides.max(axis=0) / max(LONG_SIDES * usual, 1e-9)).astype(np.int64)
        pieces[size == 0.0] = 1
        if float((pieces[pieces > 1].astype(np.float64) ** 2).sum()) > MOST_ADDED:
            pieces = np.minimum(pieces, 8)
        for number in np.flatnonzero(pieces > 1)[: MOST_ADDED // 4]:
            k = int(pieces[number])
            i, j = np.divmod(np.arange(k * k), k)
            inside = i + j < k
            u, w = ((x[inside] + 1.0 / 3.0) / k for x in (i, j))
            points.append(a[number] + u[:, None] * (b - a)[number] + w[:, None] * (c - a)[number])
            directions.append(np.broadcast_to(area[number] / size[number], (len(u), 3)))
        return cls.of(np.concatenate(points), np.concatenate(directions), what=what)

    def with_normals(self) -> Surface:
        """Itself, or with the normals of the planes through `NEIGHBOURS` neighbours (either way round)."""
        if self.normals is not None:
            return self
        _, near = cKDTree(self.points).query(self.points, k=min(NEIGHBOURS, len(self.points)))
        around = self.points[near] - self.points[near].mean(axis=1, keepdims=True)
        normals = np.linalg.eigh(np.einsum("nki,nkj->nij", around, around))[1][:, :, 0]
        normals.setflags(write=False)
        return Surface(self.points, normals, False)


def _welded(vertices: Array, triangles: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
    """One vertex where several stand in one place (STL has three for every triangle)."""
    _, first, back = np.unique(vertices.round(5), axis=0, return_index=True, return_inverse=True)
    return vertices[first], back.reshape(-1)[triangles]
