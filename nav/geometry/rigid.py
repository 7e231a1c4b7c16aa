"""Rigid transforms in mm between named frames, and the separate type that maps pixels to mm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nav.geometry.frames import TransformName

__all__ = ["FrameMismatchError", "NotRigidError", "PixelMap", "Rigid", "rotation_angle_rad"]

Matrix = NDArray[np.float64]

#: Largest |RᵀR − I| entry taken as rounding of a float32 wire matrix rather than as scale or shear.
ORTHONORMAL_TOLERANCE = 2e-3


class NotRigidError(ValueError):
    """A matrix that is not a rigid transform (non-finite, scaled, sheared, mirrored, or of the wrong shape)."""


class FrameMismatchError(ValueError):
    """Two transforms whose neighbouring frames differ were chained."""


_EYE = np.eye(3)


def _det3(r: Matrix) -> float:
    (a, b, c), (d, e, f), (g, h, i) = r.tolist()
    return float(a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g))


def _frozen(array: ArrayLike) -> Matrix:
    out = np.array(array, dtype=np.float64, order="C")
    out.setflags(write=False)
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Rigid:
    """A rigid transform: ``p_to = R p_from + t``.

    Attributes
    ----------
    name : TransformName
        From which frame to which frame.
    matrix : (4, 4) float64, read-only
        Homogeneous matrix, mm. Orthonormal to machine precision: inputs within `ORTHONORMAL_TOLERANCE` are projected
        to the nearest rotation, anything further away is refused.
    """

    name: TransformName
    matrix: Matrix

    @classmethod
    def from_matrix(cls, matrix: ArrayLike, name: TransformName | str) -> Rigid:
        """Check ``matrix`` and build the transform.

        Raises
        ------
        NotRigidError
            Naming the transform, the value and the limit.
        """
        tname = TransformName.parse(name) if isinstance(name, str) else name
        m = np.array(matrix, dtype=np.float64)
        if m.shape != (4, 4):
            raise NotRigidError(f"{tname}: matrix has shape {m.shape}, expected (4, 4)")
        if not np.isfinite(m).all():
            raise NotRigidError(f"{tname}: matrix holds a value that is not finite")
        if np.abs(m[3] - (0.0, 0.0, 0.0, 1.0)).max() > 1e-6:
            raise NotRigidError(f"{tname}: last row is {m[3].tolist()}, expected [0, 0, 0, 1]")
        r = m[:3, :3]
        off = float(np.abs(r.T @ r - _EYE).max())
        if off > ORTHONORMAL_TOLERANCE:
            raise NotRigidError(
                f"{tname}: not orthonormal, |RᵀR − I| = {off:.3g}, limit {ORTHONORMAL_TOLERANCE:g}; "
                "a scaled matrix (pixels, metres) does not belong in a rigid chain"
            )
        if _det3(r) < 0.0:
            raise NotRigidError(f"{tname}: determinant is negative, the matrix mirrors")
        if off > 1e-12:
            # Nearest rotation (polar factor) by Newton-Schulz: quadratic, so 2e-3 falls below 1e-15 in three steps
            # (Higham 1986, SIAM J. Sci. Stat. Comput. 7:1160); a tenth of the cost of an SVD.
            for _ in range(3):
                r = 1.5 * r - 0.5 * r @ (r.T @ r)
            m[:3, :3] = r
        m[3] = (0.0, 0.0, 0.0, 1.0)
        return cls(tname, _frozen(m))

    @classmethod
    def identity(cls, name: TransformName | str) -> Rigid:
        """The identity between two differently named, coinciding frames."""
        return cls.from_matrix(np.eye(4), name)

    @property
    def rotation(self) -> Matrix:
        """(3, 3) rotation, read-only view."""
        return self.matrix[:3, :3]

    @property
    def translation(self) -> Matrix:
        """(3,) mm, read-only view; the origin of ``from_frame`` in ``to_frame``."""
        return self.matrix[:3, 3]

    def inverse(self) -> Rigid:
        """The transform from ``to_frame`` back to ``from_frame``."""
        m = np.eye(4)
        m[:3, :3] = self.rotation.T
        m[:3, 3] = -self.rotation.T @ self.translation
        return Rigid(self.name.inverse, _frozen(m))

    def __matmul__(self, other: Rigid) -> Rigid:
        """``ras_from_reference @ reference_from_needle``: neighbours must match."""
        if not isinstance(other, Rigid):
            return NotImplemented
        if self.name.from_frame != other.name.to_frame:
            raise FrameMismatchError(
                f"{self.name.code} @ {other.name.code}: {self.name.from_frame} and {other.name.to_frame} do not match"
            )
        name = TransformName(other.name.from_frame, self.name.to_frame)
        return Rigid(name, _frozen(self.matrix @ other.matrix))

    def apply(self, points: ArrayLike) -> Matrix:
        """Map points, shape (3,) or (n, 3), mm in ``from_frame``, to mm in ``to_frame``."""
        p = np.asarray(points, dtype=np.float64)
        return p @ self.rotation.T + self.translation

    def rotate(self, vectors: ArrayLike) -> Matrix:
        """Map directions, shape (3,) or (n, 3): rotation only."""
        return np.asarray(vectors, dtype=np.float64) @ self.rotation.T

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rigid) and self.name == other.name and np.array_equal(self.matrix, other.matrix)

    def __hash__(self) -> int:
        return hash((self.name, (self.matrix + 0.0).tobytes()))  # -0.0 equals 0.0, so it hashes alike

    def __reduce__(self) -> Any:
        return (_rebuild_rigid, (self.name, self.matrix.copy()))


def _rebuild_rigid(name: TransformName, matrix: Matrix) -> Rigid:
    return Rigid(TransformName(*name), _frozen(matrix))


@dataclass(frozen=True, slots=True, eq=False)
class PixelMap:
    """Maps pixel (or voxel) indices to mm: a different type from `Rigid`, so scale never enters a rigid chain.

    Attributes
    ----------
    name : TransformName
        Such as ``ImageToProbe``.
    matrix : (4, 4) float64, read-only
        Takes ``(i, j, k, 1)`` at pixel centres (i = column, j = row) to mm in ``to_frame``. Invertible.
    """

    name: TransformName
    matrix: Matrix

    @classmethod
    def from_matrix(cls, matrix: ArrayLike, name: TransformName | str) -> PixelMap:
        """Check shape, finiteness, last row and invertibility; raise `NotRigidError` otherwise."""
        tname = TransformName.parse(name) if isinstance(name, str) else name
        m = np.array(matrix, dtype=np.float64)
        if m.shape != (4, 4) or not np.isfinite(m).all() or np.abs(m[3] - (0, 0, 0, 1)).max() > 1e-9:
            raise NotRigidError(f"{tname}: not a finite affine (4, 4) matrix with last row [0, 0, 0, 1]")
        if abs(np.linalg.det(m[:3, :3])) < 1e-12:
            raise NotRigidError(f"{tname}: the matrix is singular; give the out-of-plane column a length too")
        return cls(tname, _frozen(m))

    def apply(self, index: ArrayLike) -> Matrix:
        """Map indices, shape (3,) or (n, 3), to mm in ``to_frame``."""
        p = np.asarray(index, dtype=np.float64)
        return p @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def placed_by(self, rigid: Rigid) -> PixelMap:
        """``rigid @ self``: the same pixels in the frame ``rigid`` leads to."""
        if rigid.name.from_frame != self.name.to_frame:
            raise FrameMismatchError(
                f"{rigid.name.code} @ {self.name.code}: {rigid.name.from_frame} and {self.name.to_frame} do not match"
            )
        name = TransformName(self.name.from_frame, rigid.name.to_frame)
        return PixelMap(name, _frozen(rigid.matrix @ self.matrix))


def rotation_angle_rad(rotation: ArrayLike) -> float:
    """Angle of a (3, 3) rotation in [0, π], stable near 0 and π (atan2 of skew part and trace)."""
    r = np.asarray(rotation, dtype=np.float64)
    skew = np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]])
    return float(np.arctan2(np.linalg.norm(skew), np.trace(r) - 1.0))
