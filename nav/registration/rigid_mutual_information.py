"""Rigid registration of two images of different modalities (CT to MR, CT to PET): mutual information, coarse to fine.

The mutual information of the grey values of both images, over samples at the strongest gradients of the fixed one, is
made large over the pose. Its joint density is a histogram, shared out linearly and smoothed once by a cubic B-spline
(Parzen windows as in Mattes et al., IEEE TMI 22:120, 2003), with a small share of the product of its margins mixed in,
so that pairs of values that never met yet are unlikely and not impossible.

Steps. With ``t(f, m) = log p(f, m) / (p(f) p(m))`` the mutual information is the mean of t over the samples, and its
derivative that of ``t`` by the fixed value times the gradient of the fixed image (that of the density itself cancels:
Viola and Wells, IJCV 24:137, 1997). It is a log likelihood; its Hessian is taken as the sum of squares of those
derivatives (Fisher scoring), which is positive and needs no second derivative. Steps are composed inversely as in
`rigid_image`: the gradients are taken once per level. A step that loses information is halved.

Grey values are taken to bins half by value, half by rank: soft tissue gets bins although bone and air span the range.

How far the result may be off is taken from the data: the spread of the derivative over 64 pieces of the body, and the
curvature of the information itself, measured around the result (the sandwich estimator, which leaving out one piece
after the other comes to); and what both directions disagree on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve1d

from nav.geometry.kernels import KernelSpec
from nav.geometry.rigid import Rigid, rotation_angle_rad
from nav.geometry.volume import Volume
from nav.registration import mutual_information_kernels as kernels
from nav.registration import pyramid, rigid_kernels
from nav.registration.pyramid import Level, nearest_level
from nav.registration.rigid_common import (
    FARTHEST_DEG,
    FARTHEST_MM,
    LEAST_OVERLAP,
    LEAST_SAMPLES,
    Masked,
    Pair,
    Progress,
    RigidImageRegistration,
    Samples,
    agreement_level,
    apart_mm,
    index_from_index,
    inverse,
    look_at,
    matrix_of_step,
    other_starts,
    patch_correlations,
    solve,
    used_levels,
)
from nav.registration.verdict import ImageRegistrationError, Verdict

__all__ = ["CAPTURE_DEG", "CAPTURE_MM", "KERNELS", "register_rigid_multimodal"]

Array = NDArray[np.float64]

#: What a registration needs compiled.
KERNELS: tuple[KernelSpec, ...] = (*pyramid.KERNELS, *rigid_kernels.KERNELS, *kernels.KERNELS)

#: From so far off, at so large an angle, every start of ``benchmarks/registration/multimodal.py`` came home.
CAPTURE_MM, CAPTURE_DEG = 10.0, 10.0
#: No finer level is used: what lies between voxels of 2 mm does not move the result, and noise grows.
FINEST_MM = 1.8
#: The finest level has as many samples as the second of `rigid_common.MOST_SAMPLES`.
FINEST_DEPTH = 1
#: Grey values beyond these percentiles share the outermost bins.
RANGE_PERCENT = (0.2, 99.8)
#: So many entries has the table from grey value to bin.
TABLE = 512
#: How much of a bin's place is decided by rank, the rest by value.
BY_RANK = 0.5
#: Share of the product of the margins in the joint density.
INDEPENDENT = 0.02
#: A step that moves the body by less than this share of the level's pitch ends the level; none moves it by more than
#: the pitch.
STEP_SHARE, MOST_STEP = 0.005, 1.0
MOST_ITERATIONS = 30
#: A loss below this is no loss: the normalised information is not exact to more.
NO_LOSS = 1e-5
#: The curvature is measured over so much of the pitch to either side.
CURVATURE_SHARE = 0.2
#: Where it is a smaller share of Fisher's than this, nothing holds the pose: right ones have 0.15 and more on CTs,
#: 0.016 in an image made of noise one voxel wide.
LEAST_CURVATURE = 0.01
#: Patches are compared with their surroundings at this distance.
SHIFT_MM = 10.0
#: On the coarsest level that is at most so coarse: patches of four voxels each way.
AGREEMENT_PITCH_MM = 5.2
#: Right registrations agree in 34 to 84 % of the patches, mirrored images in 8 to 19 %, all else wrong below 7 %.
GOOD_AGREEMENT, LEAST_AGREEMENT = 0.28, 0.22
#: There and back, mm: up to 0.5 where it is right (PET included), mostly 1 to 13 where it is wrong.
GOOD_CONSISTENCY_MM, MOST_CONSISTENCY_MM = 1.0, 4.0
#: Pieces of a body that has kept its shape are shifted by up to this share of the pitch, for each modality shows edges
#: of its own; beyond it, a deformation of 0.9 to 1.7 mm is this often what they show.
REST_SHARE, SHIFT_FALLS_SHORT = 0.2, 2.0
#: More than this, mm, no rigid transform should be trusted with.
GOOD_DEFORMATION_MM = 1.0
#: The sandwich takes the pieces for independent and what the modalities do not share for noise. True errors say that
#: its variance is short by this factor, and that per axis this share of the squared distance there and back is missing.
SANDWICH_FALLS_SHORT, CONSISTENCY_SHARE = 2.0, 0.1


@dataclass(slots=True)
class _State:
    """Where the iteration stands: the pose, moving from fixed, RAS mm."""

    pose: Array
    iterations: int = 0
    converged: bool = False
    similarity: float = 0.0
    overlap: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class _Density:
    """``table``: t(f, m) in bins; ``slope``: its derivative by f; ``similarity``: normalised mutual information."""

    table: NDArray[np.float32]
    slope: NDArray[np.float32]
    similarity: float


class _View:
    """The samples of one level of the fixed image, on one level of the moving one; grey values in bins."""

    def __init__(self, fixed: Masked, moving: Masked, depth: int) -> None:
        self.samples: Samples = look_at(*fixed, depth)
        self.moving, self.mask = moving
        self.pitch_mm = self.samples.level.pitch_mm
        self._seen = np.empty(len(self.samples.values), np.float32)
        self._histogram = np.empty((kernels.BLOCKS, kernels.BINS, kernels.BINS), np.float32)

    def density(self, pose: Array) -> _Density:
        """Of the pairs of grey values that meet at ``pose``."""
        kernels.joint_histogram(
            self.samples.positions, self.samples.values, self.moving.volume.array, self.mask,
            index_from_index(self.samples.level, self.moving, pose), self._seen, self._histogram,
        )  # fmt: skip
        return _density(self._histogram)

    def sums(self, density: _Density) -> Array:
        """(BLOCKS, SUMS) at the pose that `density` was last asked for."""
        out = np.empty((kernels.BLOCKS, kernels.SUMS))
        kernels.score(self.samples.values, self._seen, self.samples.jacobian, density.table, density.slope, out)
        return out

    def sums_at(self, pose: Array) -> Array:
        """(BLOCKS, SUMS) at ``pose``, with the density there."""
        return self.sums(self.density(pose))


_SPLINE = np.array([1.0, 4.0, 1.0]) / 6.0


def _density(histogram: NDArray[np.float32]) -> _Density:
    counts = histogram.sum(axis=0, dtype=np.float64)
    total = float(counts.sum())
    if total <= 0.0:
        nothing = np.zeros(counts.shape, np.float32)
        return _Density(nothing, nothing, 0.0)
    for axis in (0, 1):
        counts = convolve1d(counts, _SPLINE, axis=axis, mode="constant")
    joint = counts / counts.sum()
    fixed, moving = joint.sum(axis=1), joint.sum(axis=0)
    apart = np.outer(fixed, moving)
    mixed = (1.0 - INDEPENDENT) * joint + INDEPENDENT * apart
    # Bins that no sample fell into say nothing.
    table = np.log(np.divide(mixed, apart, out=np.ones_like(mixed), where=apart > 0.0))
    entropies = -sum(float((p[p > 0.0] * np.log(p[p > 0.0])).sum()) for p in (fixed, moving))
    information = float((joint * table).sum())
    similarity = 2.0 * information / entropies if entropies > 0.0 else 0.0
    slope = np.gradient(table, axis=0)
    return _Density(np.ascontiguousarray(table, np.float32), np.ascontiguousarray(slope, np.float32), similarity)


def _in_bins(levels: Sequence[Masked], used: Sequence[Masked]) -> list[Masked]:
    """``used`` with grey values as places among the bins; how they are taken there is told by one of ``levels``."""
    level, mask = levels[min(2, len(levels) - 1)]
    values = level.volume.array[mask != 0] if mask.any() else level.volume.array.ravel()
    low, high = (float(v) for v in np.percentile(values, RANGE_PERCENT))
    if high <= low:  # nearly everything has one value: let the rest decide
        low, high = float(values.min()), float(values.max())
    if high <= low:
        low, high = float(level.volume.array.min()), float(level.volume.array.max())
    counts = np.histogram(np.clip(values, low, high), TABLE - 1, (low, high))[0]
    rank = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
    place = BY_RANK * rank + (1.0 - BY_RANK) * np.linspace(0.0, 1.0, TABLE)
    # Half a bin from the ends: the sum of a few roundings stays inside.
    table = (0.5 + place * (kernels.BINS - 2)).astype(np.float32)
    out = []
    for used_level, used_mask in used:
        array = np.empty(used_level.volume.array.shape, np.float32)
        per_unit = np.float32((TABLE - 1) / (high - low))
        kernels.to_bins(used_level.volume.array, table, np.float32(low), per_unit, array)
        out.append((Level(Volume.of(array, used_level.volume.ras_from_index), used_level.factors), used_mask))
    return out


def _pairs(fixed: Sequence[Masked], moving: Sequence[Masked], finest_mm: float) -> list[Pair]:
    """Levels to use, in bins, from the finest: those of the fixed image, each with the one of its pitch."""
    ones = [one for one in fixed if one[0].pitch_mm >= finest_mm] or [fixed[-1]]
    of_moving = [level for level, _ in moving]
    others = [moving[nearest_level(of_moving, level.pitch_mm)] for level, _ in ones]
    return list(zip(_in_bins(fixed, ones), _in_bins(moving, others), strict=True))


def _hessian(s: Array) -> Array:
    """(6, 6) from sums (SUMS,)."""
    return s[: kernels.GRADIENT].reshape(6, 6)


def _gradient(s: Array) -> Array:
    """(..., 6) from sums (..., SUMS): up it grows."""
    return s[..., kernels.GRADIENT : kernels.LIKELIHOOD]


def _moved(pose: Array, step: Array, samples: Samples) -> Array:
    return pose @ np.linalg.inv(matrix_of_step(step, samples.centre))


def _descend(view: _View, state: _State) -> None:
    """Steps on one level until they become small."""
    samples, least = view.samples, STEP_SHARE * view.pitch_mm
    state.converged = False
    best, step = -math.inf, np.zeros(6)
    pose = state.pose
    for _ in range(MOST_ITERATIONS):
        density = view.density(pose)
        state.iterations += 1
        if density.similarity < best - NO_LOSS:
            step = 0.5 * step
        else:
            s = view.sums(density).sum(axis=0)
            state.pose, state.similarity, best = pose, density.similarity, density.similarity
            state.overlap = float(s[kernels.INSIDE]) / max(len(samples.values), 1)
            if s[kernels.INSIDE] < 100:
                return
            step = solve(_hessian(s), -_gradient(s))
        size = float(np.linalg.norm(step[:3]) + np.linalg.norm(step[3:]) * samples.size_mm)
        if size > MOST_STEP * view.pitch_mm:
            step = step * (MOST_STEP * view.pitch_mm / size)
        if size < least:
            state.converged = True
            return
        pose = _moved(state.pose, step, samples)


def _covariance(view: _View, state: _State) -> tuple[Array, bool]:
    """(6, 6) of the pose, and whether the information has a summit there at all.

    The curvature is that of the information itself, from its derivative to either side; where it is next to nothing, a
    small share of Fisher's is taken.
    """
    samples = view.samples
    s = view.sums_at(state.pose)
    unit = np.array([1.0] * 3 + [1.0 / max(samples.size_mm, 1.0)] * 3)  # a mm of the body
    by = CURVATURE_SHARE * view.pitch_mm
    curvature = np.empty((6, 6))
    for n in range(6):
        step = np.zeros(6)
        step[n] = by * unit[n]
        ahead, behind = (
            _gradient(view.sums_at(_moved(state.pose, sign * step, samples)).sum(axis=0)) for sign in (1.0, -1.0)
        )
        curvature[n] = (behind - ahead) * unit / (2.0 * by)
    fisher = _hessian(s.sum(axis=0)) * np.outer(unit, unit)
    curvature = 0.5 * (curvature + curvature.T)
    d = 1.0 / np.sqrt(np.maximum(np.diag(fisher), 1e-30))
    values, vectors = np.linalg.eigh(curvature * np.outer(d, d))
    safe = (vectors * (1.0 / np.maximum(values, LEAST_CURVATURE))) @ vectors.T * np.outer(d, d)
    pieces = _gradient(s[s[:, kernels.INSIDE] > 0]) * unit
    n = len(pieces)
    away = pieces - pieces.mean(axis=0)
    spread = n / max(n - 1, 1) * away.T @ away
    return np.asarray(safe @ spread @ safe * np.outer(unit, unit)), bool(values[0] > LEAST_CURVATURE)


def _displacements() -> Array:
    """(14, 3) mm: along the axes and the diagonals, `SHIFT_MM` long."""
    faces = [sign * np.eye(3)[axis] for axis in range(3) for sign in (-1.0, 1.0)]
    corners = [np.array([a, b, c]) / math.sqrt(3.0) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]
    return SHIFT_MM * np.array([*faces, *corners])


def _agreement(pair: Pair, pose: Array) -> float:
    """Share of the patches of one level that fit best where they are, of those with structure to compare.

    They fit as well as grey values of one image tell those of the other by a straight line, rising or falling (the
    square of the correlation); and best, when better than at every place `SHIFT_MM` from it.
    """
    here = patch_correlations(pair, pose) ** 2
    elsewhere, seen = np.zeros(here.shape), np.zeros(here.shape, np.int64)
    for shift in _displacements():
        step = np.eye(4)
        step[:3, 3] = shift
        there = patch_correlations(pair, pose @ step) ** 2
        seen += np.isfinite(there)
        elsewhere = np.fmax(elsewhere, there)
    known = np.isfinite(here) & (2 * seen >= len(_displacements()))
    return float((here > elsewhere)[known].mean()) if known.any() else 0.0


def _inverse_consistency_mm(pair: Pair, state: _State, samples: Samples) -> float:
    """Register the fixed to the moving image from where the other way ended; how far apart the two are."""
    back = _State(inverse(state.pose))
    _descend(_View(pair[1], pair[0], FINEST_DEPTH), back)
    return apart_mm(inverse(back.pose), state.pose, samples)


def _coarse_pose(view: _View, start: Array) -> Array:
    """Where the start given and others around it lead to: the pose with the most information and overlap."""
    found = []
    for pose in other_starts(view.samples, view.moving, start):
        state = _State(pose)
        _descend(view, state)
        found.append(state)
    return max(found, key=lambda s: s.similarity * min(s.overlap / LEAST_OVERLAP, 1.0)).pose


def _deformation_mm(view: _View, state: _State) -> float:
    """How far the points of the body lie from where the pose takes them, root mean square: told by the shifts that
    bring its pieces to rest, each on its own. Short of the truth above some 2 mm.
    """
    squares = []
    for block in view.sums_at(state.pose):
        if block[kernels.INSIDE] < LEAST_SAMPLES / kernels.BLOCKS:
            continue
        h = _hessian(block)[:3, :3]
        shift = solve(h, -_gradient(block)[:3])
        squares.append(float(shift @ shift - np.trace(np.linalg.pinv(h))))
    if not squares:
        return 0.0
    rest = (REST_SHARE * view.pitch_mm) ** 2
    return SHIFT_FALLS_SHORT * math.sqrt(max(float(np.median(squares)) - rest, 0.0))


@dataclass(frozen=True, slots=True, eq=False)
class _Quality:
    agreement: float
    inverse_consistency_mm: float
    moved_mm: float
    turned_deg: float
    deformation_mm: float
    summit: bool


def register_rigid_multimodal(
    fixed: Volume,
    moving: Volume,
    *,
    initial: Rigid,
    fixed_mask: NDArray[np.generic] | None = None,
    moving_mask: NDArray[np.generic] | None = None,
    finest_mm: float = 0.0,
    progress: Progress | None = None,
) -> RigidImageRegistration:
    """Register two images of different modalities: CT to MR, CT to PET, one MR contrast to another.

    Parameters
    ----------
    fixed, moving : Volume
        Any spacing, orientation and scalar type; finite; at least 8 voxels along every axis.
    initial : Rigid
        Moving to fixed, RAS mm: where to start, within `CAPTURE_MM` and `CAPTURE_DEG` of the truth. Its name is that of
        the result.
    fixed_mask, moving_mask : (k, j, i), optional
        On the grid of their image: where it is looked at, not 0. None: everywhere.
    finest_mm : float
        No level finer than this, nor than `FINEST_MM`, is used.
    progress : callable, optional
        Called with the share done, 0 to 1, and what is being done; what it raises ends the registration.

    Returns
    -------
    RigidImageRegistration
        Also when it is wrong: ``verdict`` and ``reasons`` say so. Its similarity is the normalised mutual information
        ``2 I / (H(fixed) + H(moving))``, 0 to 1, of the samples; its agreement the share of the patches with structure
        that fit better where they are than at any of 14 places 10 mm away, which unrelated images do in 7 %.

    Raises
    ------
    ImageRegistrationError
        The images cannot be registered at all: constant, not finite, too thin, an empty mask or one on another grid, or
        nothing in common.
    """
    tell = progress or (lambda _share, _text: None)
    tell(0.0, "pyramids")
    pairs = _pairs(
        used_levels(fixed, fixed_mask, "fixed"),
        used_levels(moving, moving_mask, "moving"),
        max(finest_mm, FINEST_MM),
    )
    start = initial.inverse().matrix.copy()
    views = []
    for n, pair in enumerate(pairs):
        tell(0.3 * n / len(pairs), f"where to look at {pair[0][0].pitch_mm:.1f} mm")
        views.append(_View(*pair, n + FINEST_DEPTH))
        if len(views[-1].samples.values) < LEAST_SAMPLES:
            raise ImageRegistrationError(
                f"the fixed image shows structure in {len(views[-1].samples.values)} places only, at least "
                f"{LEAST_SAMPLES} are needed; use a larger mask or another image"
            )
    similarity_before = views[0].density(start).similarity
    state = _State(start)
    _refine(views, state, lambda share, text: tell(0.3 + 0.3 * share, text))
    patches = agreement_level(pairs, AGREEMENT_PITCH_MM)
    agreement = _agreement(patches, state.pose)
    if agreement < GOOD_AGREEMENT:
        tell(0.6, "other starts")
        other = _State(_coarse_pose(views[-1], start), state.iterations)
        _refine(views, other, lambda share, text: tell(0.7 + 0.2 * share, text))
        now = _agreement(patches, other.pose)
        # What agrees more is more likely right.
        if now > agreement:
            state, agreement = other, now
        else:
            state.iterations = other.iterations
    view = views[0]
    if state.overlap * len(view.samples.values) < LEAST_SAMPLES:
        raise ImageRegistrationError(
            f"the images have nothing in common: {state.overlap:.1%} of the fixed image lies inside the moving one "
            "(and its mask); give a start (--init) that brings them together"
        )
    tell(0.9, "quality")
    covariance, summit = _covariance(view, state)
    found = _Quality(
        agreement=agreement,
        inverse_consistency_mm=_inverse_consistency_mm(pairs[0], state, view.samples),
        moved_mm=apart_mm(state.pose, start, view.samples),
        turned_deg=math.degrees(rotation_angle_rad(state.pose[:3, :3] @ start[:3, :3].T)),
        deformation_mm=_deformation_mm(view, state),
        summit=summit,
    )
    covariance = SANDWICH_FALLS_SHORT * covariance
    covariance[:3, :3] += CONSISTENCY_SHARE * found.inverse_consistency_mm**2 * np.eye(3)
    verdict, reasons = _judge(state, found)
    tell(1.0, "done")
    return RigidImageRegistration(
        Rigid.from_matrix(np.linalg.inv(state.pose), initial.name),
        state.iterations,
        similarity_before,
        state.similarity,
        state.overlap,
        found.agreement,
        None,
        view.samples.centre,
        covariance,
        found.deformation_mm,
        found.inverse_consistency_mm,
        verdict,
        reasons,
    )


def _refine(views: Sequence[_View], state: _State, tell: Progress) -> None:
    """From the coarsest view to the finest, which is the first."""
    for n, view in enumerate(reversed(views)):
        tell(n / len(views), f"at {view.pitch_mm:.1f} mm")
        _descend(view, state)


def _judge(state: _State, found: _Quality) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and a sentence for each thing that speaks against the registration, the worst first."""
    wrong, doubts = [], []
    if state.overlap < LEAST_OVERLAP:
        wrong.append(
            f"only {state.overlap:.0%} of the fixed image lies inside the moving one (least {LEAST_OVERLAP:.0%})"
        )
    agreement = f"only {found.agreement:.0%} of the patches fit best where they are"
    if found.agreement < LEAST_AGREEMENT:
        wrong.append(
            f"{agreement} (least {LEAST_AGREEMENT:.0%}, unrelated images 7 %): another patient, a mirrored image, or a "
            f"start too far off ({CAPTURE_MM:g} mm and {CAPTURE_DEG:g} degrees are safe)"
        )
    elif found.agreement < GOOD_AGREEMENT:
        doubts.append(f"{agreement} (good from {GOOD_AGREEMENT:.0%}): the body has changed, or an image is mirrored")
    apart = f"there and back differ by {found.inverse_consistency_mm:.2f} mm"
    if found.inverse_consistency_mm > MOST_CONSISTENCY_MM:
        wrong.append(f"{apart} (most {MOST_CONSISTENCY_MM:g} mm)")
    elif found.inverse_consistency_mm > GOOD_CONSISTENCY_MM:
        doubts.append(f"{apart} (good up to {GOOD_CONSISTENCY_MM:g} mm)")
    if found.deformation_mm > GOOD_DEFORMATION_MM:
        doubts.append(
            f"the body has changed its shape by about {found.deformation_mm:.1f} mm (good up to "
            f"{GOOD_DEFORMATION_MM:g} mm): a rigid transform cannot follow"
        )
    if not found.summit:
        doubts.append("the mutual information hardly changes in some direction: the images do not determine the pose")
    if found.moved_mm > FARTHEST_MM or found.turned_deg > FARTHEST_DEG:
        doubts.append(
            f"it moves the body by {found.moved_mm:.0f} mm and {found.turned_deg:.0f} degrees from the start "
            f"(expected up to {FARTHEST_MM:g} mm and {FARTHEST_DEG:g} degrees)"
        )
    if wrong:
        return Verdict.IMPLAUSIBLE, (*wrong, *doubts)
    if not state.converged:
        return Verdict.NOT_CONVERGED, (f"not settled after {MOST_ITERATIONS} steps on the finest level", *doubts)
    return (Verdict.DOUBTFUL, tuple(doubts)) if doubts else (Verdict.GOOD, ())
