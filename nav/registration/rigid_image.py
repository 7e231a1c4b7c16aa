"""Rigid registration of two images of one modality: Gauss-Newton on the correlation, from coarse to fine.

The sum over samples of ``(a · moving(T x) + b - fixed(x))²`` is made small over the pose T and the intensity map (a, b)
together: with (a, b) at their best, it is ``(1 - NCC²)`` times the variance of the fixed image, so this is the
correlation. Steps are taken in the fixed image's frame and composed inversely (Baker and Matthews, "Lucas-Kanade 20
years on", IJCV 2004): gradients belong to the fixed image and are taken once per level, where they are strongest.

How far the result may be off is taken from the data: how much the slopes of the sum differ between blocks of
neighbouring samples says how much the pose hangs on any part of the body, image noise, interpolation and what is not
rigid included. What a slope is worth in millimetres is told by the true curvature of the sum, from slopes beside the
optimum: noise adds to the gradients, so their squares say about twice as much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nav.geometry.kernels import KernelSpec
from nav.geometry.rigid import Rigid, rotation_angle_rad
from nav.geometry.volume import Volume
from nav.registration import pyramid
from nav.registration import rigid_kernels as kernels
from nav.registration.pyramid import Level
from nav.registration.rigid_common import (
    CAPTURE_DEG,
    CAPTURE_MM,
    FARTHEST_DEG,
    FARTHEST_MM,
    LEAST_OVERLAP,
    LEAST_SAMPLES,
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

__all__ = [
    "CAPTURE_DEG",
    "CAPTURE_MM",
    "KERNELS",
    "RigidImageRegistration",
    "register_rigid",
]

Array = NDArray[np.float64]

#: What a registration needs compiled.
KERNELS: tuple[KernelSpec, ...] = (*pyramid.KERNELS, *kernels.KERNELS)

#: A step that moves the body by less than this share of the level's pitch ends the level.
STEP_SHARE = 0.003
MOST_ITERATIONS = 30
#: Patches agree from this correlation on.
AGREES = 0.5
#: The way back is taken on the coarsest level that is at most so coarse.
BACK_PITCH_MM = 3.0
#: With as many samples as on a level of this depth.
BACK_DEPTH = 2

#: Below this, or `LEAST_OVERLAP`, the first start "looks wrong" on the coarsest level, and others are tried.
LEAST_SIMILARITY = 0.8
#: Pieces of a body that has kept its shape are shifted by this share of the pitch, by interpolation: on the level that
#: is the image itself, and on others.
REST_SHARE = (0.012, 0.05)
#: The deformation by the shift of a piece: 1.7 to 3.0 on the finest level, 0.9 to 1.5 on the next ones, for smooth
#: deformations of 0.2 to 1.4 mm (root mean square) of the benchmark.
FINEST_FALLS_SHORT, COARSER_FALLS_SHORT = 2.4, 1.4
#: A deformation below this share of the next level's pitch is taken as it is; above it, coarser levels up to this pitch
#: are asked too.
SHIFT_SHARE, SHIFT_PITCH_MM = 0.25, 6.0
#: More than this, mm, no rigid transform should be trusted with.
GOOD_DEFORMATION_MM = 1.0
#: Registrations of CT to CT that are right agree in nearly all patches where the images differ by noise only, in 85 %
#: with a table that has moved; mirrored images in up to 62 %, other patients in 16 %; bodies of one outline with other
#: insides in 76 %.
GOOD_AGREEMENT, LEAST_AGREEMENT = 0.8, 0.4
#: There and back, mm: below 0.06 where it is right, 0.3 with some breathing, 1 to 18 where it is wrong.
GOOD_CONSISTENCY_MM, MOST_CONSISTENCY_MM = 0.5, 3.0
#: Slopes are taken so far beside the optimum, share of the pitch, to know the curvature there.
PROBE_SHARE = 0.1
#: All samples have an error in common of which the blocks know nothing: linear interpolation moves an edge that lies at
#: the share w between two voxels by about w (1 - w) (1 - 2 w) / 6 of their distance, 0.012 root mean square over w.
#: Over a turned body w runs through all of its values many times and most of it cancels: this share of the distance is
#: left along each axis (measured over poses of two CTs), and differs as much from one end of the body to the other.
COMMON_SHARE = 0.001
#: There and back differ by up to this share of the pitch through noise and interpolation on the way back alone; of what
#: exceeds it, this share of the square is variance per axis.
CONSISTENCY_REST, CONSISTENCY_SHARE = 0.02, 0.045


@dataclass(slots=True)
class _State:
    """Where the iteration stands: the pose, moving from fixed, RAS mm; the intensity map; what the samples say."""

    pose: Array
    scale: float = 1.0
    offset: float = 0.0
    iterations: int = 0
    converged: bool = False
    similarity: float = 0.0
    overlap: float = 0.0


def _sums(samples: Samples, moving: Level, mask: NDArray[np.uint8], state: _State, robust: float) -> Array:
    """(BLOCKS, SUMS)."""
    index = index_from_index(samples.level, moving, state.pose)
    out = np.empty((kernels.BLOCKS, kernels.SUMS))
    kernels.normal_equations(
        samples.positions, samples.values, samples.jacobian, moving.volume.array, mask, index,
        np.float32(state.scale), np.float32(state.offset), np.float32(robust), out,
    )  # fmt: skip
    return out


#: The model is ``scale * m + offset - (f + J p)``: the residual falls with the pose and rises with the intensity map.
_SIGNS = np.array([-1.0] * 6 + [1.0, 1.0])


def _rows(s: Array) -> Array:
    """(8, 8): the sums of v vᵀ."""
    return s[: kernels.V_R].reshape(8, 8)


def _system(s: Array) -> tuple[Array, Array]:
    """Hessian (8, 8) and gradient (8,) by (translation, rotation, scale, offset) from sums (SUMS,)."""
    return _rows(s) * np.outer(_SIGNS, _SIGNS), s[kernels.V_R : kernels.R_R] * _SIGNS


def _correlation(s: Array, scale: float, offset: float) -> float:
    """Weighted correlation of moving and fixed, from sums (SUMS,) taken with this intensity map."""
    h, rv = _rows(s), s[kernels.V_R : kernels.R_R]
    mm, m, n, rm, r, rr = h[6, 6], h[6, 7], h[7, 7], rv[6], rv[7], s[kernels.R_R]
    if n <= 0.0:
        return 0.0
    f = scale * m + offset * n - r
    mf = scale * mm + offset * m - rm
    ff = scale**2 * mm + offset**2 * n + rr + 2.0 * (scale * offset * m - scale * rm - offset * r)
    spread = (mm / n - (m / n) ** 2) * (ff / n - (f / n) ** 2)
    return float((mf / n - m * f / n**2) / math.sqrt(spread)) if spread > 0.0 else 0.0


def _descend(samples: Samples, moving: Level, mask: NDArray[np.uint8], state: _State) -> Array:
    """Steps on one level until they become small; returns the last sums."""
    robust = 0.0
    least = STEP_SHARE * samples.level.pitch_mm
    state.converged = False
    blocks = np.zeros((kernels.BLOCKS, kernels.SUMS))
    for _ in range(MOST_ITERATIONS):
        blocks = _sums(samples, moving, mask, state, robust)
        s = blocks.sum(axis=0)
        state.similarity = _correlation(s, state.scale, state.offset)
        state.overlap = float(s[kernels.INSIDE]) / max(len(samples.values), 1)
        if s[kernels.INSIDE] < 100:
            return blocks
        step = solve(*_system(s))
        state.scale += float(step[6])
        state.offset += float(step[7])
        state.pose = state.pose @ np.linalg.inv(matrix_of_step(step[:6], samples.centre))
        state.iterations += 1
        robust = 1.0 / max(s[kernels.R_R] / _rows(s)[7, 7], 1e-12)
        if float(np.linalg.norm(step[:3]) + np.linalg.norm(step[3:6]) * samples.size_mm) < least:
            state.converged = True
            return blocks
    return blocks


def _deformation_mm(pairs: Sequence[Pair], looked: Sequence[Samples], finest: Array, state: _State) -> float:
    """How far the points of the body lie from where the pose takes them, root mean square, noise taken off.

    It is told by the shifts that bring the pieces of the body to rest, each on its own. They fall short of it: a piece
    does not move as one, and what moves further than an edge is wide is not followed. The finest level tells best
    whether there is any deformation; where it is not small against the pitch, coarser ones are asked too. ``looked``:
    samples of every level; ``finest``: the last sums on the finest.
    """
    found = FINEST_FALLS_SHORT * _shift_mm(finest, pairs[0][0][0])
    for n in range(1, len(pairs)):
        (level, _), (other, other_mask) = pairs[n]
        if found < SHIFT_SHARE * level.pitch_mm or level.pitch_mm > SHIFT_PITCH_MM:
            break
        samples = looked[n]
        here = _State(state.pose, state.scale, state.offset)
        s = _sums(samples, other, other_mask, here, 0.0).sum(axis=0)
        change = solve(_rows(s)[6:, 6:], s[kernels.V_R : kernels.R_R][6:])  # the intensity map of this level
        here.scale, here.offset = here.scale + float(change[0]), here.offset + float(change[1])
        shift = _shift_mm(_sums(samples, other, other_mask, here, 0.0), level)
        found = max(found, COARSER_FALLS_SHORT * shift)
    return found


def _shift_mm(blocks: Array, level: Level) -> float:
    """The shift that brings a piece of the body to rest; 0 where that is noise and interpolation.

    On the level that is the image itself the root mean square over the pieces, which a few that moved suffice for;
    where voxels are means over several, some pieces shift by that alone, and the median is taken. ``blocks``: (BLOCKS,
    SUMS) on ``level``.
    """
    squares = []
    for block in blocks:
        if block[kernels.INSIDE] < LEAST_SAMPLES / kernels.BLOCKS:
            continue
        h, g = _system(block)
        shift = solve(h[:3, :3], g[:3])
        residual = (block[kernels.R_R] + float(g[:3] @ shift)) / _rows(block)[7, 7]
        squares.append(float(shift @ shift - residual * np.trace(np.linalg.pinv(h[:3, :3]))))
    if not squares:
        return 0.0
    itself = bool((level.factors == 1).all())
    square = float(np.mean(squares) if itself else np.median(squares))
    return math.sqrt(max(square - (REST_SHARE[0 if itself else 1] * level.pitch_mm) ** 2, 0.0))


def _covariance(samples: Samples, moving: Level, mask: NDArray[np.uint8], state: _State) -> Array:
    """(6, 6) covariance of the pose, as the samples tell it, from the slopes of the blocks and the true curvature.

    The sandwich of the theory of M-estimators (Huber 1967), over blocks: neighbours are not independent. The products
    of gradients in the system are no curvature: noise is squared in them, and a step of the iteration covers only 0.43
    to 0.66 of the way for that reason (24 pairs of CTs with 7 to 39 HU of noise).
    """
    s = _sums(samples, moving, mask, state, 0.0).sum(axis=0)
    robust = 1.0 / max(s[kernels.R_R] / max(_rows(s)[7, 7], 1.0), 1e-12)
    blocks = _sums(samples, moving, mask, state, robust)
    blocks = blocks[blocks[:, kernels.INSIDE] > 0]
    if len(blocks) < 2:
        return np.full((6, 6), np.inf)
    curvature, slope = _system(blocks.sum(axis=0))
    unit = np.sqrt(np.maximum(np.diag(curvature), 1e-30))
    away = PROBE_SHARE * samples.level.pitch_mm
    for n in range(6):
        step = np.zeros(6)
        step[n] = away if n < 3 else away / max(samples.size_mm, 1e-9)
        beside = _State(state.pose @ np.linalg.inv(matrix_of_step(step, samples.centre)), state.scale, state.offset)
        there = _system(_sums(samples, moving, mask, beside, robust).sum(axis=0))[1]
        curvature[:, n] = (there - slope) / step[n]
    slopes = np.array([_system(block)[1] for block in blocks])
    slopes -= slopes.mean(axis=0)
    # As in a step: what the samples do not determine is left alone.
    back = np.linalg.pinv(curvature / np.outer(unit, unit), rcond=1e-7) / np.outer(unit, unit)
    spread = len(slopes) / (len(slopes) - 1) * slopes.T @ slopes
    return np.asarray((back @ spread @ back.T)[:6, :6])


def _in_common(samples: Samples) -> Array:
    """(6, 6) covariance of the pose from interpolation, which all samples share."""
    grid = samples.level.volume.ras_from_index[:3, :3]
    out = np.zeros((6, 6))
    out[:3, :3] = COMMON_SHARE**2 * grid @ grid.T
    out[3:, 3:] = COMMON_SHARE**2 * np.trace(grid @ grid.T) / 3.0 / max(samples.size_mm, 1e-9) ** 2 * np.eye(3)
    return out


def _settled(samples: Samples, moving: Level, mask: NDArray[np.uint8], pose: Array) -> _State:
    state = _State(pose.copy())
    _descend(samples, moving, mask, state)
    return state


def _looks_right(state: _State, samples: Samples, start: Array) -> bool:
    return (
        state.converged
        and state.overlap >= LEAST_OVERLAP
        and state.similarity >= LEAST_SIMILARITY
        and apart_mm(state.pose, start, samples) <= FARTHEST_MM
    )


def _coarse_pose(samples: Samples, moving: Level, mask: NDArray[np.uint8], start: Array) -> _State:
    """From the start given, and if that looks wrong from others: the one with the best correlation and overlap."""
    first = _settled(samples, moving, mask, start)
    if _looks_right(first, samples, start):
        return first
    found = [first, *(_settled(samples, moving, mask, pose) for pose in other_starts(samples, moving, start))]
    return max(found, key=lambda s: s.similarity * min(s.overlap / LEAST_OVERLAP, 1.0))


def register_rigid(
    fixed: Volume,
    moving: Volume,
    *,
    initial: Rigid,
    fixed_mask: NDArray[np.generic] | None = None,
    moving_mask: NDArray[np.generic] | None = None,
    finest_mm: float = 0.0,
    progress: Progress | None = None,
) -> RigidImageRegistration:
    """Register two images of one modality (CT to CT, or one MR sequence to itself).

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
        No level finer than this is used.
    progress : callable, optional
        Called with the share done, 0 to 1, and what is being done; what it raises ends the registration.

    Returns
    -------
    RigidImageRegistration
        Also when it is wrong: ``verdict`` and ``reasons`` say so.

    Raises
    ------
    ImageRegistrationError
        The images cannot be registered at all: constant, not finite, too thin, an empty mask or one on another grid, or
        nothing in common from any start.
    """
    tell = progress or (lambda _share, _text: None)
    tell(0.0, "pyramids")
    one = used_levels(fixed, fixed_mask, "fixed")
    two = used_levels(moving, moving_mask, "moving")
    pairs = list(zip(one, two, strict=False))
    pairs = [pair for pair in pairs if pair[0][0].pitch_mm >= finest_mm] or pairs[-1:]
    start = initial.inverse().matrix.copy()
    looked: list[Samples] = []  # from the coarsest
    for n in range(len(pairs) - 1, -1, -1):
        (level, mask), (other, other_mask) = pairs[n]
        tell(1.0 - (n + 1) / (len(pairs) + 1), f"at {level.pitch_mm:.1f} mm")
        samples = look_at(level, mask, n)
        looked.append(samples)
        if len(samples.values) < LEAST_SAMPLES:
            raise ImageRegistrationError(
                f"the fixed image shows structure in {len(samples.values)} places only, at least {LEAST_SAMPLES} are "
                "needed; use a larger mask or another image"
            )
        if n == len(pairs) - 1:
            state = _coarse_pose(samples, other, other_mask, start)
        blocks = _descend(samples, other, other_mask, state)
        if blocks[:, kernels.INSIDE].sum() < LEAST_SAMPLES:
            raise ImageRegistrationError(
                f"the images have nothing in common: {state.overlap:.1%} of the fixed image lies inside the moving one "
                "(and its mask); give a start (--init) that brings them together"
            )
    similarity_before = _similarity_at(samples, other, other_mask, start)
    tell(len(pairs) / (len(pairs) + 1), "quality")
    back = max((n for n in range(len(pairs)) if pairs[n][0][0].pitch_mm <= BACK_PITCH_MM), default=0)
    found = _Quality(
        agreement=_agreement(agreement_level(pairs), state.pose),
        inverse_consistency_mm=_inverse_consistency_mm(pairs[back], state, samples),
        moved_mm=apart_mm(state.pose, start, samples),
        turned_deg=math.degrees(rotation_angle_rad(state.pose[:3, :3] @ start[:3, :3].T)),
        deformation_mm=_deformation_mm(pairs, looked[::-1], blocks, state),
    )
    covariance = _covariance(samples, other, other_mask, state) + _in_common(samples)
    rest = CONSISTENCY_REST * pairs[back][0][0].pitch_mm
    unexplained = max(found.inverse_consistency_mm**2 - rest**2, 0.0)
    covariance[:3, :3] += CONSISTENCY_SHARE * unexplained * np.eye(3)
    verdict, reasons = _judge(state, found)
    tell(1.0, "done")
    return RigidImageRegistration(
        Rigid.from_matrix(np.linalg.inv(state.pose), initial.name),
        state.iterations,
        similarity_before,
        state.similarity,
        state.overlap,
        found.agreement,
        state.scale,
        samples.centre,
        covariance,
        found.deformation_mm,
        found.inverse_consistency_mm,
        verdict,
        reasons,
    )


def _similarity_at(samples: Samples, moving: Level, mask: NDArray[np.uint8], pose: Array) -> float:
    s = _sums(samples, moving, mask, _State(pose), 0.0).sum(axis=0)
    return _correlation(s, 1.0, 0.0)


def _inverse_consistency_mm(pair: Pair, state: _State, samples: Samples) -> float:
    """Register the fixed to the moving image from where the other way ended; how far apart the two are."""
    (level, mask), (other, other_mask) = pair
    back = _State(inverse(state.pose), 1.0 / state.scale if state.scale else 1.0)
    _descend(look_at(other, other_mask, BACK_DEPTH), level, mask, back)
    return apart_mm(inverse(back.pose), state.pose, samples)


@dataclass(frozen=True, slots=True, eq=False)
class _Quality:
    agreement: float
    inverse_consistency_mm: float
    moved_mm: float
    turned_deg: float
    deformation_mm: float


def _agreement(pair: Pair, pose: Array) -> float:
    """Share of the patches of one level that agree, of those with structure to compare."""
    found = patch_correlations(pair, pose)
    known = found[np.isfinite(found)]
    return float((known > AGREES).mean()) if len(known) else 0.0


def _judge(state: _State, found: _Quality) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and a sentence for each thing that speaks against the registration, the worst first."""
    wrong, doubts = [], []
    if state.overlap < LEAST_OVERLAP:
        wrong.append(
            f"only {state.overlap:.0%} of the fixed image lies inside the moving one (least {LEAST_OVERLAP:.0%})"
        )
    if state.scale <= 0.0:
        wrong.append(
            "bright in one image is dark in the other: these are not images of one modality; compare them by mutual "
            "information (--metric mutual-information)"
        )
    agreement = f"the images show the same in {found.agreement:.0%} of the patches only"
    if found.agreement < LEAST_AGREEMENT:
        wrong.append(
            f"{agreement} (least {LEAST_AGREEMENT:.0%}): another patient, a mirrored image, a start too far off "
            f"({CAPTURE_MM:g} mm and {CAPTURE_DEG:g} degrees are safe), or another modality (--metric "
            "mutual-information)"
        )
    elif found.agreement < GOOD_AGREEMENT:
        doubts.append(
            f"{agreement} (good from {GOOD_AGREEMENT:.0%}): the body has changed, an image is mirrored, or the "
            "modalities differ (--metric mutual-information)"
        )
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
