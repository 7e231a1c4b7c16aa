"""What rigid registrations of two images share: where they look, how they step, and what they say of themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.registration import rigid_kernels as kernels
from nav.registration.error_distribution import radius_of_share
from nav.registration.image_checks import check_image
from nav.registration.landmarks import point_covariance
from nav.registration.pyramid import Level, image_pyramid, mask_at
from nav.registration.verdict import Verdict

__all__ = [
    "CAPTURE_DEG",
    "CAPTURE_MM",
    "COARSEST_MM",
    "FARTHEST_DEG",
    "FARTHEST_MM",
    "LEAST_OVERLAP",
    "LEAST_SAMPLES",
    "PATCH_MM",
    "Masked",
    "Pair",
    "Progress",
    "RigidImageRegistration",
    "Samples",
    "agreement_level",
    "apart_mm",
    "index_from_index",
    "inverse",
    "look_at",
    "matrix_of_step",
    "other_starts",
    "patch_correlations",
    "solve",
    "used_levels",
]

Array = NDArray[np.float64]

#: From so far off, at so large an angle, every one of the 200 starts of ``benchmarks/registration`` came home.
CAPTURE_MM, CAPTURE_DEG = 20.0, 15.0
#: Coarsest level, mm: about half the capture range, so that what belongs together overlaps.
COARSEST_MM = 9.0
#: Most samples per level, from the finest; more do not move the result, fewer do.
MOST_SAMPLES = (80_000, 40_000, 20_000, 12_000)
#: Levels of more voxels than this are not used: half their resolution is far below the error already.
MOST_VOXELS = 20_000_000
#: Of all cells, those with the weakest gradients tell of noise only.
WEAKEST_SHARE = 0.4
#: Fewer samples than this determine nothing.
LEAST_SAMPLES = 500
#: The body is looked at in so many pieces along each axis (BLOCKS = SPLIT³).
SPLIT = 4

#: Quality is looked at in patches so wide ...
PATCH_MM = 20.0
#: ... on the coarsest level that is at most so coarse.
AGREEMENT_PITCH_MM = 4.6
#: Of the fixed image, at least so much has to lie inside the moving one.
LEAST_OVERLAP = 0.25
#: Further from its start than this nobody lies between two scans that share a coordinate system.
FARTHEST_MM, FARTHEST_DEG = 100.0, 45.0

Progress = Callable[[float, str], None]
#: One level of an image with its mask.
Masked = tuple[Level, NDArray[np.uint8]]
#: One level of the fixed and of the moving image.
Pair = tuple[Masked, Masked]


@dataclass(frozen=True, slots=True, eq=False)
class RigidImageRegistration:
    """A rigid transform between two images, and how far to trust it.

    Attributes
    ----------
    transform : Rigid
        Moving to fixed, RAS mm.
    iterations : int
        Gauss-Newton steps on all levels.
    similarity_before, similarity_after : float
        Correlation of the samples at the start and at the end, -1 to 1.
    overlap : float
        Share of the samples that lie inside the moving image (and its mask).
    agreement : float
        Share of the patches with structure, `PATCH_MM` wide, in which both images show the same: a correlation of more
        than `AGREES`.
    scale : float or None
        Fixed intensity per moving intensity; None where the metric knows no such thing.
    centre_ras : (3,) float64
        Centre of the samples, fixed frame, mm.
    covariance : (6, 6) float64
        Of (translation mm, rotation vector rad) at ``centre_ras``, fixed frame: of the pose alone.
    deformation_mm : float
        How far the pieces of the body lie from where the pose takes them, root mean square: what a rigid transform
        cannot follow.
    inverse_consistency_mm : float
        Root mean square distance, over the samples, between this transform and the inverse of the registration of the
        fixed to the moving image.
    verdict : Verdict
    reasons : tuple of str
        Why the verdict is not good; empty when it is.
    """

    transform: Rigid
    iterations: int
    similarity_before: float
    similarity_after: float
    overlap: float
    agreement: float
    scale: float | None
    centre_ras: Array
    covariance: Array
    deformation_mm: float
    inverse_consistency_mm: float
    verdict: Verdict
    reasons: tuple[str, ...]

    def covariance_at(self, points_ras: ArrayLike) -> Array:
        """(n, 3, 3) covariance, mm², of where points of the fixed image, (n, 3) RAS mm, are taken to."""
        shape = self.deformation_mm**2 / 3.0 * np.eye(3)
        arms = np.atleast_2d(np.asarray(points_ras, np.float64)) - self.centre_ras
        return np.array([point_covariance(self.covariance, arm) + shape for arm in arms])

    def expected_error_mm(self, points_ras: ArrayLike, share: float = 0.95) -> Array:
        """(n,) radius, mm, that holds ``share`` of the errors at points of the fixed image, (n, 3) RAS mm."""
        dof = float(kernels.BLOCKS - 1)
        return np.array([radius_of_share(c, share, dof) for c in self.covariance_at(points_ras)])


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Where one level of the fixed image is looked at, RAS mm; ``size_mm``: rms distance of it from ``centre``."""

    level: Level
    positions: NDArray[np.float32]
    values: NDArray[np.float32]
    jacobian: NDArray[np.float32]
    centre: Array
    size_mm: float

    def points_ras(self, every: int = 1) -> Array:
        """(m, 3) RAS mm of the samples, of one in ``every``."""
        return self.level.volume.to_ras(self.positions[::every])


#: Places at which two poses are compared.
_POINTS = 2000


def look_at(level: Level, mask: NDArray[np.uint8], depth: int) -> Samples:
    """``depth``: of the level, 0 for the finest that is used."""
    most = MOST_SAMPLES[min(depth, len(MOST_SAMPLES) - 1)]
    image, spacing = level.volume, level.volume.spacing_mm
    shape = np.array(image.array.shape)
    # Cells as near to cubes as voxels allow, so many that the weakest can be left out.
    side = (math.prod(image.array.shape) * float(np.prod(spacing)) * (1.0 - WEAKEST_SHARE) / most) ** (1.0 / 3.0)
    cell = np.maximum(1, np.round(side / spacing[::-1])).astype(np.int64)
    count = int(np.prod(-(-shape // cell)))
    positions = np.empty((count, 3), np.float32)
    values = np.empty(count, np.float32)
    gradients = np.empty((count, 4), np.float32)
    # A gradient per voxel is a row vector: in space it is multiplied by the inverse from the right.
    turn = np.ascontiguousarray(np.linalg.inv(image.ras_from_index[:3, :3]).T, np.float32)
    kernels.strongest_gradients(image.array, mask, cell, turn, positions, values, gradients)
    strength = gradients[:, 3]
    known = strength[strength > 0.0]
    rank = max(int(WEAKEST_SHARE * len(known)), len(known) - most)
    weakest = np.partition(known, rank)[rank] if len(known) else 0.0
    found = (strength > 0.0) & (strength >= weakest)
    positions, values, world = positions[found], values[found], gradients[found, :3].astype(np.float64)
    order = _in_blocks(positions)
    positions, values, world = positions[order], values[order], world[order]
    points = image.to_ras(positions)
    centre = points.mean(axis=0) if len(points) else np.zeros(3)
    arms = points - centre
    jacobian = np.concatenate([world, np.cross(arms, world)], axis=1)
    size_mm = float(np.sqrt((arms**2).sum(axis=1).mean())) if len(points) else 0.0
    return Samples(
        level,
        np.ascontiguousarray(positions),
        np.ascontiguousarray(values),
        np.ascontiguousarray(jacobian, np.float32),
        centre,
        size_mm,
    )


def _in_blocks(positions: NDArray[np.float32]) -> NDArray[np.intp]:
    """(n,) order in which every block of samples is a compact piece of the body: four by four by four, equal shares."""
    places = positions.astype(np.int16)  # whole voxels; 16 bits are sorted by radix
    parts = [np.arange(len(positions))]
    for axis in (2, 1, 0):
        parts = [
            piece
            for part in parts
            for piece in np.array_split(part[np.argsort(places[part, axis], kind="stable")], SPLIT)
        ]
    # Within a piece in the order of memory.
    return np.concatenate([np.sort(part) for part in parts])


def matrix_of_step(step: Array, centre: Array) -> Array:
    """(4, 4) of a translation, mm, and a rotation vector, rad, about ``centre``."""
    rotation = Rotation.from_rotvec(step[3:]).as_matrix()
    out = np.eye(4)
    out[:3, :3] = rotation
    out[:3, 3] = centre - rotation @ centre + step[:3]
    return out


def inverse(matrix: Array) -> Array:
    return np.asarray(np.linalg.inv(matrix), np.float64)


def index_from_index(fixed: Level, moving: Level, pose: Array) -> NDArray[np.float32]:
    """(4, 4): indices (i, j, k) of ``fixed`` to those of ``moving``."""
    return np.asarray(moving.volume.index_from_ras @ pose @ fixed.volume.ras_from_index, np.float32)


def solve(h: Array, g: Array) -> Array:
    """The step; what the samples do not determine is left alone."""
    d = np.sqrt(np.maximum(np.diag(h), 1e-30))
    return np.asarray(-np.linalg.lstsq(h / np.outer(d, d), g / d, rcond=1e-7)[0] / d)


def used_levels(image: Volume, mask: NDArray[np.generic] | None, what: str) -> list[Masked]:
    """Levels that are used, from the finest, each with its mask."""
    check_image(image, mask, what)
    levels = image_pyramid(image, COARSEST_MM)
    used = [level for level in levels if level.volume.array.size <= MOST_VOXELS] or [levels[-1]]
    return [(level, mask_at(mask, level)) for level in used]


def apart_mm(one: Array, two: Array, samples: Samples) -> float:
    """Root mean square distance between where two poses take the samples."""
    points = samples.points_ras(every=max(1, len(samples.positions) // _POINTS))
    apart = points @ (one - two)[:3, :3].T + (one - two)[:3, 3]
    return float(np.sqrt((apart**2).sum(axis=1).mean()))


def other_starts(samples: Samples, moving: Level, start: Array) -> list[Array]:
    """Poses around ``start`` and around the one that lays centre on centre."""
    centred = start.copy()
    centred[:3, 3] += moving.volume.centre_ras() - (start[:3, :3] @ samples.centre + start[:3, 3])
    angle, shift = math.radians(CAPTURE_DEG), CAPTURE_MM
    steps = [np.zeros(6)]
    for axis in range(6):
        for sign in (-1.0, 1.0):
            step = np.zeros(6)
            step[axis] = sign * (shift if axis < 3 else angle)
            steps.append(step)
    return [base @ matrix_of_step(step, samples.centre) for base in (start, centred) for step in steps]


def agreement_level(pairs: Sequence[Pair], coarsest_mm: float = AGREEMENT_PITCH_MM) -> Pair:
    """Of the pairs, from the finest, the coarsest that is at most so coarse: the one to look at patches on."""
    return pairs[max((n for n in range(len(pairs)) if pairs[n][0][0].pitch_mm <= coarsest_mm), default=0)]


def patch_correlations(pair: Pair, pose: Array) -> Array:
    """Correlation in every patch of the fixed image, `PATCH_MM` wide; NaN where it shows no structure or the moving
    image (or its mask) does not reach.
    """
    (level, mask), (other, other_mask) = pair
    image = level.volume.array
    side = np.maximum(2, np.round(PATCH_MM / level.volume.spacing_mm[::-1])).astype(np.int64)
    out = np.empty(tuple(-(-np.array(image.shape) // side)))
    some = image[::3, ::3]
    noise = float(np.median(np.abs(np.diff(some, axis=2)))) / 0.954  # of one voxel, from its neighbour's too
    index = index_from_index(level, other, pose)
    kernels.patch_correlations(image, mask, other.volume.array, other_mask, index, side, (2.0 * noise) ** 2, out)
    return out
