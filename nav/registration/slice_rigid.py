"""Rigid registration of one thick CT slice, or a short stack, to a CT: Gauss-Newton from many starts, coarse to fine.

As in `nav.registration.rigid_image` the sum of ``(a · CT(T x) + b - slice(x))²`` is made small over the pose T and the
intensity map (a, b), but the other way about: a slice has no gradient across its plane, so the derivative is the CT's,
taken at every step where the slice lies (forward composition), and the samples are the slice's pixels. What a needle,
its streaks and local motion spoil counts little (weight ``1 / (1 + r²/(2σ)²)``, Cauchy's).

Across its plane a slice falls into the wrong place easily, so several starts are taken on the coarsest level and the
best of them followed. How far the result may be off is taken from leaving out one tile of the slice after the other
(the delete-a-group jackknife).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from nav.geometry.kernels import KernelSpec
from nav.geometry.rigid import Rigid, rotation_angle_rad
from nav.geometry.volume import Volume
from nav.registration import pyramid
from nav.registration import slice_kernels as kernels
from nav.registration.error_distribution import jackknife_covariance, radius_of_share
from nav.registration.landmarks import point_covariance
from nav.registration.pyramid import Level
from nav.registration.slice_image import BANDS, SliceImage, SliceSamples
from nav.registration.slice_needle import without_shadow
from nav.registration.slice_preparation import SlicePreparation
from nav.registration.verdict import ImageRegistrationError, Verdict

__all__ = [
    "CAPTURE_DEG",
    "CAPTURE_MM",
    "KERNELS",
    "SliceRegistration",
    "noise_variance",
    "register_slice",
    "residual_patches",
]

Array = NDArray[np.float64]
Progress = Callable[[float, str], None]

#: What the registration needs compiled, the preparation of the CT included.
KERNELS: tuple[KernelSpec, ...] = (*pyramid.KERNELS, *kernels.KERNELS)

#: From so far off, at so large an angle, all of 180 simulated slices of two real CTs were found (docs/registration.md).
CAPTURE_MM, CAPTURE_DEG = 10.0, 8.0
#: Starts on the coarsest level: so far across the plane, and tilted so much about both axes of the plane.
START_MM, START_DEG = (-8.0, 0.0, 8.0), (-6.0, 0.0, 6.0)
#: Most steps on a level, and how many poses are followed from it, both from the finest; poses nearer to a better one
#: than this share of the pitch are the same.
MOST_STEPS, FOLLOWED, SAME_SHARE = (12, 12, 10, 8), (1, 2, 3, 6), 0.5
#: A step that moves the slice by less than this share of the level's pitch ends the level; none is longer than this.
STEP_SHARE, LONGEST_STEP = 0.003, 2.0
#: A residual of so many standard deviations counts half.
ROBUST = 2.0
#: Standard deviation of the residuals that a level is begun with, HU.
FIRST_RESIDUAL_HU = 100.0
#: The slice is looked at in so many pieces: leaving one out after the other says how well the pose is known.
GROUPS = kernels.BLOCKS // 4
#: A piece of fewer samples says nothing of its own; how far one may have shifted, mm; and how much more its shift
#: varies than independent pixels of Gaussian noise would have it.
LEAST_OF_GROUP, SHIFT_PRIOR_MM, SHIFT_NOISE = 50.0, 5.0, 2.0
#: Where so much is left of a piece, in standard deviations of a quiet piece, it has moved by so many of its steps.
SHORT = ((1.0, 1.2), (1.2, 4.2))
#: ... and by no more than this, mm: where motion of 10 mm is in its middle.
MOST_MOVED_MM = 7.0
#: Pieces speak for points so far around their middle (sigma, share of the samples' rms distance from theirs).
PIECE_SHARE = 0.35
#: Something has moved if so much is left of a piece and it has moved by more than this, mm; or if so many pieces have
#: moved by more than that, mm (without motion the third seldom seems to have by more than 1.5 mm).
MOVED_LOUD, MOVED_MM, MOVED_PIECES, MOVED_TOGETHER_MM = 1.4, 2.0, 3, 2.0
#: Another pose so far away that explains this share of what the best one explains makes the result ambiguous.
AMBIGUOUS_MM, AMBIGUOUS_SHARE = 3.0, 0.95

#: The CT was averaged along a direction and over a thickness: how far both may be off.
MOST_LEAN_DEG, MOST_THICKNESS_RATIO = 20.0, 1.3
#: Quality is looked at on the coarsest level that is at most so coarse, in patches so wide.
LOOK_PITCH_MM, PATCH_MM = 3.0, 12.0
#: A patch is explained if what is left of it is below this share of what it shows, noise aside ...
EXPLAINED_SHARE = 0.5
#: ... and quiet if it is below so much noise.
QUIET_NOISE = 2.0
#: Share of the patches that are explained and quiet: above 0.72 and 0.72 where the slice is right, 0.55 and 0.64 with
#: 10 mm of local motion; mirrored slices reach 0.62 and 0.65, other patients 0.38 and 0.59.
GOOD_EXPLAINED, LEAST_EXPLAINED = 0.65, 0.5
GOOD_QUIET, LEAST_QUIET = 0.7, 0.6
#: CT HU per slice HU outside this are no two CTs.
SCALE_RANGE = (0.75, 1.33)
#: Farther than this from the start no start looks.
FARTHEST_MM, FARTHEST_DEG = 20.0, 15.0
#: Below this share of the slice inside the CT nothing is known, and below that not much.
LEAST_OVERLAP, GOOD_OVERLAP = 0.25, 0.6
#: Expected error, mm at 95 %, above which the pose is not determined well.
GOOD_ERROR_MM = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class SliceRegistration:
    """Where a slice lies in the CT, and how far to trust it.

    Attributes
    ----------
    transform : Rigid
        Slices (moving) to CT (fixed), RAS mm.
    iterations : int
        Gauss-Newton steps of the pose that was kept, on all levels.
    similarity_before, similarity_after : float
        Weighted correlation of slice and CT at the start and at the end, -1 to 1.
    overlap : float
        Share of the known pixels that lie inside the CT (and its mask).
    explained, quiet : float
        Share of the patches, 12 mm wide, whose structure the CT explains, and in which only noise is left.
    scale, offset : float
        Slice HU = scale · CT HU + offset.
    centre_ras : (3,) float64
        Centre of the slices where they were found, CT frame, mm.
    covariance : (6, 6) float64
        Of (translation mm, rotation vector rad) at ``centre_ras``, CT frame: of the pose alone.
    pieces_ras : (n, 3) float64
        Middles of the pieces of the slice that show enough, CT frame, mm.
    pieces_mm, pieces_known : (n,) float64
        How far each lies from where the pose takes it: what a rigid transform cannot follow; how well that is known, 0
        to 1.
    reach_mm : float
        How far around its middle a piece speaks for, mm (sigma).
    loudest : float
        Residual of the piece with the largest, in standard deviations of a quiet piece (the lower quartile).
    second_share : float
        How much of what this pose explains the best pose elsewhere explains; 0 where there is no other.
    second_mm : float
        How far away that pose is; 0 where there is none.
    verdict : Verdict
    reasons : tuple of str
        Why the verdict is not good; empty when it is.
    """

    transform: Rigid
    iterations: int
    similarity_before: float
    similarity_after: float
    overlap: float
    explained: float
    quiet: float
    scale: float
    offset: float
    centre_ras: Array
    covariance: Array
    pieces_ras: Array
    pieces_mm: Array
    pieces_known: Array
    reach_mm: float
    loudest: float
    second_share: float
    second_mm: float
    verdict: Verdict
    reasons: tuple[str, ...]

    @property
    def deformation_mm(self) -> float:
        """How far the pieces of the slice lie from where the pose takes them, root mean square; infinite if unknown."""
        if not self.pieces_known.sum() > 0.0:
            return math.inf
        return math.sqrt(float(np.average(self.pieces_mm**2, weights=self.pieces_known)))

    def moved_mm(self, points_ras: ArrayLike) -> Array:
        """(n,) how far what lies at points of the CT, (n, 3) RAS mm, may have moved on its own, root mean square."""
        p = np.atleast_2d(np.asarray(points_ras, np.float64))
        if not self.pieces_known.sum() > 0.0:
            return np.full(len(p), math.inf)
        far = ((p[:, None] - self.pieces_ras) ** 2).sum(axis=-1) / self.reach_mm**2
        weights = np.exp(-0.5 * (far - far.min(axis=1, keepdims=True))) * np.maximum(self.pieces_known, 1e-6)
        return np.asarray(np.sqrt(weights @ self.pieces_mm**2 / weights.sum(axis=1)))

    def covariance_at(self, points_ras: ArrayLike) -> Array:
        """(n, 3, 3) covariance, mm², of where the pose puts what lies at points of the CT, (n, 3) RAS mm."""
        own = self.moved_mm(points_ras) ** 2 / 3.0
        return np.asarray(self.pose_covariance_at(points_ras) + own[:, None, None] * np.eye(3))

    def pose_covariance_at(self, points_ras: ArrayLike) -> Array:
        """(n, 3, 3) as `covariance_at`, of the pose alone: without what a rigid transform cannot follow."""
        arms = np.atleast_2d(np.asarray(points_ras, np.float64)) - self.centre_ras
        return np.array([point_covariance(self.covariance, arm) for arm in arms])

    def expected_error_mm(self, points_ras: ArrayLike, share: float = 0.95) -> Array:
        """(n,) radius, mm, that holds ``share`` of the errors at points of the CT, (n, 3) RAS mm, in the slice."""
        dof = float(GROUPS - 1)
        return np.array([radius_of_share(c, share, dof) for c in self.covariance_at(points_ras)])


@dataclass(slots=True, eq=False)
class _Poses:
    """Several poses (s, 3, 4), slices (about their centre) to CT, and what their descent said (s, RESULTS)."""

    poses: Array
    results: Array

    def only(self, chosen: list[int]) -> _Poses:
        return _Poses(self.poses[chosen].copy(), self.results[chosen].copy())


def register_slice(
    prepared: SlicePreparation,
    slices: Volume,
    *,
    initial: Rigid,
    mask: NDArray[np.generic] | None = None,
    progress: Progress | None = None,
) -> SliceRegistration:
    """Find where a slice, or a short stack taken as rigid, lies in a CT.

    Parameters
    ----------
    prepared : SlicePreparation
        The CT, made ready for slices of this thickness and direction.
    slices : Volume
        HU, 1 to 8 slices; NaN, the padding (smallest value) and metal (above 1500 HU) are not looked at.
    initial : Rigid
        Slices to CT, RAS mm: where to start, within `CAPTURE_MM` and `CAPTURE_DEG` of the truth. Its name is that of
        the result.
    mask : (k, j, i), optional
        On the grid of ``slices``: where they are looked at, not 0. None: everywhere.
    progress : callable, optional
        Called with the share done, 0 to 1, and what is being done; what it raises ends the registration.

    Returns
    -------
    SliceRegistration
        Also when it is wrong: ``verdict`` and ``reasons`` say so.

    Raises
    ------
    ImageRegistrationError
        The slices cannot be registered at all: constant, too many, next to nothing known of them, a direction the CT
        was not prepared for, nothing of them inside the CT from any start, or too little structure for a pose.
    """
    tell = progress or (lambda _share, _text: None)
    tell(0.0, "slices")
    image = SliceImage.of(slices, mask)
    _check_direction(prepared, slices, initial)
    base = initial.matrix[:3].copy()
    base[:, 3] += base[:, :3] @ image.centre
    found = _starts(base, slices)
    levels = prepared.levels
    second = (0.0, 0.0)
    for n in range(len(levels) - 1, -1, -1):
        tell(1.0 - (n + 1) / (len(levels) + 1), f"at {levels[n].pitch_mm:.1f} mm")
        samples = image.samples(levels[n])
        found.results[:, 6] = FIRST_RESIDUAL_HU**2
        _descend(samples, levels[n], found, MOST_STEPS[min(n, len(MOST_STEPS) - 1)])
        found = _distinct(found, samples, SAME_SHARE * levels[n].pitch_mm, FOLLOWED[min(n, len(FOLLOWED) - 1)])
        if found.results[0, 1] * len(samples.values) < 100:
            raise ImageRegistrationError(
                f"the slices and the CT have nothing in common: {found.results[0, 1]:.1%} of the slices lie inside the "
                "CT (and its mask); give a start (--init) that brings them together"
            )
        if n == min(1, len(levels) - 1):
            second = _second(samples, levels[n], found)
        if n == 1:
            found = found.only([0])
    tell(len(levels) / (len(levels) + 1), "quality")
    pose, result = found.poses[0], found.results[0]
    rotation = pose[:, :3]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, pose[:, 3] - rotation @ image.centre
    before = _Poses(base[None].copy(), _fresh(1))
    _descend(samples, levels[0], before, 0)
    robust = 1.0 / (ROBUST**2 * max(float(result[6]), 1e-9))
    blocks = _blocks(samples, levels[0], pose, result, robust)
    covariance = _jackknife(blocks, float(result[4]))
    pieces = _pieces(image, samples, levels[0], pose, result)
    turn = np.kron(np.eye(2), rotation)
    explained, quiet = _patches(image, prepared, matrix, result)
    registration = SliceRegistration(
        Rigid.from_matrix(matrix, initial.name),
        int(result[2]),
        float(before.results[0, 0]),
        float(result[0]),
        float(result[1]),
        explained,
        quiet,
        float(result[4]),
        float(result[5]),
        pose[:, 3].copy(),
        turn @ covariance @ turn.T,
        *pieces[:3],
        PIECE_SHARE * samples.size_mm,
        pieces[3],
        *second,
        Verdict.GOOD,
        (),
    )
    tell(1.0, "done")
    return _judged(registration, base, settled=bool(result[3]))


def _check_direction(prepared: SlicePreparation, slices: Volume, initial: Rigid) -> None:
    axes = slices.ras_from_index[:3, :3]
    normal = initial.rotation @ np.cross(axes[:, 0], axes[:, 1])
    cosine = abs(float(normal @ prepared.normal_ras)) / float(np.linalg.norm(normal))
    lean = math.degrees(math.acos(min(cosine, 1.0)))
    if lean > MOST_LEAN_DEG:
        raise ImageRegistrationError(
            f"the slices stand at {lean:.0f} degrees to the direction the CT was prepared for (most "
            f"{MOST_LEAN_DEG:g}); prepare it for this direction"
        )


def _fresh(count: int) -> Array:
    out = np.zeros((count, kernels.RESULTS))
    out[:, 4] = 1.0
    return out


def _starts(base: Array, slices: Volume) -> _Poses:
    """Around ``base``: to either side of the plane, tilted about both axes of the plane."""
    axes = slices.ras_from_index[:3, :2] / np.linalg.norm(slices.ras_from_index[:3, :2], axis=0)
    normal = np.cross(axes[:, 0], axes[:, 1])
    poses = []
    for away in START_MM:
        for one in START_DEG:
            for two in START_DEG:
                pose = base.copy()
                tilt = Rotation.from_rotvec(np.deg2rad(one * axes[:, 0] + two * axes[:, 1])).as_matrix()
                pose[:, 3] += base[:, :3] @ (away * normal)
                pose[:, :3] = base[:, :3] @ tilt
                poses.append(pose)
    return _Poses(np.array(poses), _fresh(len(poses)))


def _descend(samples: SliceSamples, level: Level, found: _Poses, most: int) -> None:
    """Follow every pose on one level, in place."""
    pitch = level.pitch_mm
    settings = np.array([most, STEP_SHARE * pitch, LONGEST_STEP * pitch, samples.size_mm, ROBUST])
    kernels.descend(
        samples.points, samples.values, level.volume.array, level.volume.index_from_ras, found.poses, settings,
        found.results,
    )  # fmt: skip


def _apart_mm(one: Array, two: Array, size_mm: float) -> float:
    return float(np.linalg.norm(one[:, 3] - two[:, 3])) + size_mm * rotation_angle_rad(one[:, :3].T @ two[:, :3])


def _distinct(found: _Poses, samples: SliceSamples, least_mm: float, most: int) -> _Poses:
    """The best ``most`` poses that are not the same, the best first."""
    chosen: list[int] = []
    worth = found.results[:, 0] * np.minimum(found.results[:, 1] / GOOD_OVERLAP, 1.0)
    for n in np.argsort(-worth, kind="stable"):
        if all(_apart_mm(found.poses[n], found.poses[m], samples.size_mm) > least_mm for m in chosen):
            chosen.append(int(n))
        if len(chosen) == most:
            break
    return found.only(chosen)


def _second(samples: SliceSamples, level: Level, found: _Poses) -> tuple[float, float]:
    """How much the second pose explains, by the weights that both get at the residual of the first; how far it is."""
    if len(found.poses) < 2:
        return 0.0, 0.0
    away = _apart_mm(found.poses[0], found.poses[1], samples.size_mm)
    both = _Poses(found.poses.copy(), found.results.copy())
    both.results[:, 6] = found.results[0, 6]
    _descend(samples, level, both, 0)
    first, second = (both.results[n, 7] for n in (0, 1))
    return (float(second / first), away) if away >= AMBIGUOUS_MM else (0.0, 0.0)


def _blocks(samples: SliceSamples, level: Level, pose: Array, result: Array, robust: float) -> Array:
    """(GROUPS, SUMS): the sums at this pose, in pieces of two by two tiles."""
    blocks = np.empty((kernels.BLOCKS, kernels.SUMS))
    kernels.block_sums(
        samples.points, samples.values, level.volume.array, level.volume.index_from_ras, pose,
        np.array([result[4], result[5], robust]), blocks,
    )  # fmt: skip
    half = BANDS // 2
    return np.asarray(blocks.reshape(half, 2, half, 2, -1).sum(axis=(1, 3)).reshape(GROUPS, -1))


def _jackknife(blocks: Array, scale: float) -> Array:
    """(6, 6) covariance of the pose, slices' frame, from leaving out one piece of the slice after the other.

    The steps are those of iteratively reweighted least squares, whose Hessian has the weights w where Newton's has the
    derivative of the influence, ``2 w² - w`` for Cauchy's: a step is that much short of what leaving out does.
    """
    total = blocks.sum(axis=0)
    used = blocks[blocks[:, kernels.COUNT] > 0]
    weights, squares = total[kernels.SIDE * 7 + 7], total[kernels.SQUARES]
    short = weights / max(2.0 * squares - weights, 0.1 * weights)
    systems = (total - used)[:, : kernels.COUNT].reshape(-1, kernels.SIDE, kernels.SIDE)
    # Scaled to a unit diagonal; what the samples do not determine is unknown.
    diagonal = np.sqrt(np.maximum(np.diagonal(systems, axis1=1, axis2=2), 1e-30))[:, :-1]
    hessians = systems[:, :-1, :-1] / (diagonal[:, :, None] * diagonal[:, None, :])
    gradients = systems[:, :-1, -1] / diagonal
    if len(used) < GROUPS // 2 or np.linalg.cond(hessians).max() > 1e8:
        raise ImageRegistrationError(
            "the slices show too little to say where they lie: a shift or tilt changes nothing in them; use a larger "
            "mask or another slice"
        )
    left = (-np.linalg.solve(hessians, gradients[:, :, None])[:, :, 0] / diagonal)[:, :6] * (short / scale)
    return jackknife_covariance(left)


def _pieces(
    image: SliceImage, samples: SliceSamples, level: Level, pose: Array, result: Array
) -> tuple[Array, Array, Array, float]:
    """Of every piece of the slice: its middle (n, 3) RAS mm, how far it has moved and how well that is known (n,).

    The shadow of a needle is left out, and all residuals count the same: those of what has moved are what is looked
    for. A single step from the pose falls short of a shift longer than structures are wide, and the more so the more
    is left of them; how much was measured. Last, what is left of the noisiest piece, in standard deviations of a
    quiet one.
    """
    shown = without_shadow(image).known != 0
    at = np.rint(image.volume.to_index(samples.points + image.centre)).astype(np.intp)
    lit = shown[at[:, 2], at[:, 1], at[:, 0]]
    seen = replace(samples, points=np.where(lit[:, None], samples.points, np.float32(np.nan)))
    blocks = _blocks(seen, level, pose, result, 0.0)
    # Middles of the blocks, then of the pieces of two by two of them.
    n = len(samples.values)
    bounds = n * np.arange(kernels.BLOCKS) // kernels.BLOCKS
    middles = np.add.reduceat(samples.points, bounds, axis=0) / np.diff(np.append(bounds, n))[:, None]
    half = BANDS // 2
    middles = middles.reshape(half, 2, half, 2, 3).mean(axis=(1, 3)).reshape(GROUPS, 3)
    sums = blocks[:, : kernels.COUNT].reshape(-1, kernels.SIDE, kernels.SIDE)
    used = np.flatnonzero(blocks[:, kernels.COUNT] >= LEAST_OF_GROUP)
    if not len(used):
        return np.zeros((0, 3)), np.zeros(0), np.zeros(0), 1.0
    sums = sums[used]
    scale = float(result[4])
    variances = np.maximum(sums[:, 8, 8] / sums[:, 7, 7], 1e-9)
    loud = np.sqrt(variances / np.quantile(variances, 0.25))
    # The prior keeps at rest what nothing in the piece determines.
    hessians = scale**2 * sums[:, :3, :3]
    spreads = np.linalg.inv(hessians + (variances / SHIFT_PRIOR_MM**2)[:, None, None] * np.eye(3))
    shifts = np.linalg.norm(spreads @ (scale * sums[:, :3, 8:]), axis=(1, 2))
    known = np.trace(spreads @ hessians, axis1=1, axis2=2) / 3.0
    noise = variances * np.trace(spreads @ hessians @ spreads, axis1=1, axis2=2)
    left = np.sqrt(np.maximum(shifts**2 - SHIFT_NOISE * noise, 0.0))
    moved = np.minimum(np.interp(loud, *SHORT) * left, MOST_MOVED_MM)
    return pose[:, 3] + middles[used] @ pose[:, :3].T, moved, known, float(loud.max())


def residual_patches(
    image: SliceImage, level: Level, fixed_from_slices: Array, scale: float, offset: float
) -> tuple[Array, Array, float]:
    """What is left of every patch of the slices, what it shows, both as variance, HU²; and the variance of the noise.

    ``fixed_from_slices`` (4, 4). Patches with less than half of their pixels known or inside the CT are left out.
    """
    values, grid = image.level(level.pitch_mm)
    index = (level.volume.index_from_ras @ fixed_from_slices @ grid)[:3].astype(np.float32)
    pixel = float(np.linalg.norm(grid[:3, 0]))
    side = max(2, round(PATCH_MM / pixel))
    nk, nj, ni = values.shape
    out = np.empty((nk, -(-nj // side), -(-ni // side), 6))
    kernels.patch_moments(values, level.volume.array, index, side, out)
    known = out[np.isfinite(out[..., 0])]
    _, mean_slice, mean_ct, var_slice, var_ct, both = known.T
    left = (scale * mean_ct + offset - mean_slice) ** 2 + var_slice + scale**2 * var_ct - 2.0 * scale * both
    shows = np.maximum(var_slice, scale**2 * var_ct)
    return left, shows, noise_variance(values)


def noise_variance(values: NDArray[np.float32]) -> float:
    """HU² of one pixel, (k, j, i) NaN where unknown: from the differences of neighbours, half of which are smaller."""
    steps = np.abs(np.diff(values, axis=2))
    steps = steps[np.isfinite(steps)]
    # The median of |a - b| is 0.954 standard deviations of either.
    return (float(np.median(steps)) / 0.954) ** 2 if len(steps) else math.nan


def _patches(image: SliceImage, prepared: SlicePreparation, matrix: Array, result: Array) -> tuple[float, float]:
    """Share of the patches with structure that are explained, and of all patches that are quiet."""
    level = max((v for v in prepared.levels if v.pitch_mm <= LOOK_PITCH_MM), default=prepared.levels[0], key=_pitch)
    left, shows, noise = residual_patches(image, level, matrix, float(result[4]), float(result[5]))
    structure = shows > 2.0 * noise
    if not structure.any():
        return 0.0, 0.0
    explained = left[structure] < EXPLAINED_SHARE * shows[structure] + noise
    return float(explained.mean()), float((left < QUIET_NOISE * noise).mean())


def _pitch(level: Level) -> float:
    return level.pitch_mm


def _judged(found: SliceRegistration, start: Array, *, settled: bool) -> SliceRegistration:
    """With the verdict, and a sentence for each thing that speaks against it, the worst first."""
    wrong, doubts = [], []
    if found.overlap < LEAST_OVERLAP:
        wrong.append(f"only {found.overlap:.0%} of the slice lies inside the CT (least {LEAST_OVERLAP:.0%})")
    elif found.overlap < GOOD_OVERLAP:
        doubts.append(f"only {found.overlap:.0%} of the slice lies inside the CT (good from {GOOD_OVERLAP:.0%})")
    if not SCALE_RANGE[0] <= found.scale <= SCALE_RANGE[1]:
        wrong.append(
            f"the slice's intensities are {found.scale:.2f} times the CT's (expected {SCALE_RANGE[0]:g} to "
            f"{SCALE_RANGE[1]:g}): another patient, or no CT in HU"
        )
    moved = float(np.linalg.norm(found.centre_ras - start[:, 3]))
    turned = math.degrees(rotation_angle_rad(start[:, :3].T @ found.transform.rotation))
    if moved > FARTHEST_MM or turned > FARTHEST_DEG:
        wrong.append(
            f"it lies {moved:.0f} mm and {turned:.0f} degrees from the start (most {FARTHEST_MM:g} mm and "
            f"{FARTHEST_DEG:g} degrees; {CAPTURE_MM:g} mm and {CAPTURE_DEG:g} degrees are safe): start nearer"
        )
    for share, good, least, text in (
        (found.explained, GOOD_EXPLAINED, LEAST_EXPLAINED, "the CT explains {0:.0%} of the slice's patches only"),
        (found.quiet, GOOD_QUIET, LEAST_QUIET, "more than noise is left in all but {0:.0%} of the slice's patches"),
    ):
        if share < least:
            wrong.append(
                f"{text.format(share)} (least {least:.0%}): another patient, a mirrored slice or a wrong place"
            )
        elif share < good:
            doubts.append(f"{text.format(share)} (good from {good:.0%}): something has moved or is new")
    if found.second_share > AMBIGUOUS_SHARE:
        doubts.append(
            f"a pose {found.second_mm:.0f} mm away explains {found.second_share:.0%} of what this one does (good up to "
            f"{AMBIGUOUS_SHARE:.0%}): start nearer or take more slices"
        )
    farthest = float(found.pieces_mm.max(initial=0.0))
    together = int((found.pieces_mm > MOVED_TOGETHER_MM).sum()) >= MOVED_PIECES
    if together or (found.loudest > MOVED_LOUD and farthest > MOVED_MM):
        doubts.append(
            f"part of the slice has moved on its own, by some {farthest:.0f} mm: follow it (--deform), or do not "
            "rely on the pose there"
        )
    error = radius_of_share(found.pose_covariance_at(found.centre_ras)[0], dof=float(GROUPS - 1))
    if not error <= GOOD_ERROR_MM:
        doubts.append(f"the pose is known to {error:.1f} mm only (good up to {GOOD_ERROR_MM:g} mm): take more slices")
    verdict, reasons = Verdict.GOOD, tuple(doubts)
    if wrong:
        verdict, reasons = Verdict.IMPLAUSIBLE, (*wrong, *doubts)
    elif not settled:
        verdict = Verdict.NOT_CONVERGED
        reasons = (f"not settled after {MOST_STEPS[0]} steps on the finest level", *doubts)
    elif doubts:
        verdict = Verdict.DOUBTFUL
    return replace(found, verdict=verdict, reasons=reasons)
