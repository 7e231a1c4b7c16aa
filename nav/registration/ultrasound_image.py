"""Rigid registration of tracked ultrasound to CT: local fits of the ultrasound by the CT and its gradient (LC2).

In every patch of every frame the ultrasound is fitted by ``a · CT + b · |∇CT| + c`` (LC2: Fuerst, Wein, Müller, Navab,
"Automatic ultrasound-MRI registration for neurosurgery using the 2D and 3D LC2 metric", MedIA 2014; Wein et al. 2008
for CT): what an organ looks like in ultrasound says little about its HU, but locally either the HU or its edges explain
the image. Here the patches are small, and each is also freed of its linear trend, on both sides: shadows, gain and
attenuation leave little else in a small patch, and it is their large structure that otherwise draws the optimum away.

The share that is left unexplained, weighted over patches, is a separable least-squares problem: for a pose the fits are
closed form, and Gauss-Newton on the projected residual (variable projection, Golub and Pereyra 1973, in Kaufman's form)
refines the pose in a few steps. The basin is a few millimetres wide, so a fixed cloud of poses is looked at first, and
smaller ones about the best.

An interface reflects: close to the truth b is not negative wherever the edge explains much, by chance in half of the
patches. Near the optimum it is held at 0 or above, which tells the truth from what is about it.

How far the result may be off, with tissue that has moved smoothly since the CT, is taken from the data: parts of the
image, each shifted on its own, ask for other places (`nav.registration.ultrasound_motion`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from nav.geometry.kernels import KernelSpec
from nav.geometry.rigid import Rigid, rotation_angle_rad
from nav.geometry.volume import Volume
from nav.registration import pyramid
from nav.registration import ultrasound_kernels as kernels
from nav.registration.error_distribution import radius_of_share
from nav.registration.landmarks import point_jacobian
from nav.registration.ultrasound_ct import FLOOR_HU2, HIGH_HU, LOW_HU, channels_at, soft_tissue_around
from nav.registration.ultrasound_frames import (
    MOST_FRAMES,
    FrameLevel,
    TrackedFrames,
    choose_frames,
    frame_level,
)
from nav.registration.ultrasound_motion import SHIFTS_MM, UnseenMotion, unseen_motion
from nav.registration.verdict import ImageRegistrationError, Verdict

__all__ = [
    "CAPTURE_DEG",
    "CAPTURE_MM",
    "KERNELS",
    "SIDE",
    "Progress",
    "UltrasoundRegistration",
    "error_doubts",
    "register_ultrasound",
]

Array = NDArray[np.float64]

#: What a registration needs compiled.
KERNELS: tuple[KernelSpec, ...] = (*pyramid.KERNELS, *kernels.KERNELS)

#: The cloud of poses that is looked at fills a ball of this size.
CAPTURE_MM, CAPTURE_DEG = 10.0, 8.0
#: Pixels of the frames, and voxels of the CT, on each level, mm, from the coarsest.
LEVELS_MM = ((2.5, 2.5), (2.0, 1.6), (1.5, 1.3))
#: Whether an edge may only add to the image, as an interface does. Where poses are far off that would not help: beside
#: its echo an edge explains the dark.
ECHOES = (False, True, True)
#: Pixels of a patch, on every level.
SIDE = 7
#: Frames on each level: more of them tell poses apart no better (structure is what is lacking), but are more exact.
FRAMES = (8, 10, MOST_FRAMES)
#: Poses looked at on the coarsest level, and how many of the best are refined there by so many steps: first and again.
POSES = 512
FIRST, AGAIN = (48, 2), (20, 4)
#: How many are refined on the second level, by at most so many steps, and steps on the finest.
KEPT, STEPS, MOST_STEPS = 8, 5, 20
#: Rounds of poses around the best one before the finest level: how many are looked at, how many of them are refined,
#: and how far they reach, mm and degrees. Where an organ holds little, optima lie beside each other.
ROUNDS = ((64, 4, 3.0, 2.5), (96, 5, 5.0, 4.0), (64, 4, 3.0, 2.5))
#: Poses that are closer than this, root mean square over the patches, mm, are one.
SAME_MM = 1.0
#: Steps for half of the frames, from where all of them led to.
HALF_STEPS = 8
#: A step is cut to this many pitches; one that would, made longer, be below this share of
#: the pitch ends the level.
MOST_STEP, STEP_SHARE = 1.5, 0.05
#: Steps are made longer up to this factor.
MOST_PACE = 8.0
#: Fewer patches with structure than this determine nothing.
LEAST_PATCHES = 60
#: Parts of the image, each shifted on its own: along the sweep, across and along the image.
PARTS = (6, 2, 2)
#: Poses elsewhere that say what similarity chance gives, their distance in mm and degrees.
CHANCE_POSES, CHANCE_MM, CHANCE_DEG = 48, (8.0, 20.0), (4.0, 15.0)
#: Standard deviations above chance. What was wrong (another patient, mirrored, 40 mm off; 106 cases) reached 4.4; what
#: was right 1.8 to 12, nine in ten above 3.7.
GOOD_EVIDENCE, LEAST_EVIDENCE = 5.0, 3.5
#: Halves of the frames, each on its own, lie so far apart, mm: right ones up to 1.3.
GOOD_HALVES_MM, MOST_HALVES_MM = 1.25, 5.0
#: Further from its start than this times `CAPTURE_MM` or `CAPTURE_DEG` nothing is looked for.
FARTHEST = 1.5
#: Errors per axis that no part knows of, mm: one for all (what reflects lies beside what the CT shows as the edge; the
#: tracker), and one that is divided by the evidence (optima beside the right one). How long the tails of errors are
#: beside what is known of their size: as those of a t distribution. Chosen on registrations of known truth.
COMMON_MM, WEAK_MM, DOF = 0.5, 3.0, 5.0
#: Good poses are off by no more than this, mm, in 95 of 100 (median over the patches): beyond it, tissue has moved, or
#: parts are explained as well elsewhere.
GOOD_ERROR_MM = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class UltrasoundRegistration:
    """A rigid transform from the frames' reference to the CT, and how far to trust it.

    Attributes
    ----------
    transform : Rigid
        Reference (moving) to CT (fixed), RAS mm.
    iterations : int
        Gauss-Newton steps, of all starts.
    similarity_before, similarity_after : float
        LC2 over the patches of the finest level, 0 to 1: share of what is more than a linear trend in a patch that CT
        and gradient explain.
    overlap : float
        Share of the patches (by weight) that lie inside the CT (and its mask).
    evidence : float
        How many standard deviations the similarity lies above that at poses 8 to 20 mm and 4 to 15 degrees away,
        without the quarter of the image that says most for it.
    agreement : float
        Share of the patches, by weight, that the CT explains better than 95 % of patches are explained at such poses:
        0.05 by chance.
    halves_mm : float
        Root mean square distance, over the patches, between the registrations of the odd and of the even frames.
    frames : (m,) intp
        The frames that were used.
    motion : UnseenMotion
        What parts of the image say of motion, and of the pose.
    error_mm : float
        Stated for 95 % of the errors, median over the patches.
    verdict : Verdict
    reasons : tuple of str
        Why the verdict is not good; empty when it is.
    """

    transform: Rigid
    iterations: int
    similarity_before: float
    similarity_after: float
    overlap: float
    evidence: float
    agreement: float
    halves_mm: float
    frames: NDArray[np.intp]
    motion: UnseenMotion
    error_mm: float
    verdict: Verdict
    reasons: tuple[str, ...]

    @property
    def dof(self) -> float:
        """Degrees of freedom of the error's t distribution."""
        return DOF

    def covariance_at(self, points_ras: ArrayLike) -> Array:
        """(n, 3, 3) scale matrix, mm², of the error's t distribution of `dof` at points of the CT, (n, 3) RAS mm."""
        return _scale_at(self.motion, self.evidence, np.atleast_2d(np.asarray(points_ras, np.float64)))

    def expected_error_mm(self, points_ras: ArrayLike, share: float = 0.95) -> Array:
        """(n,) radius, mm, that holds ``share`` of the errors at points of the CT, (n, 3) RAS mm.

        With smooth motion of the tissue since the CT; not with what slides, such as an organ along the ribs.
        """
        return np.array([radius_of_share(c, share, self.dof) for c in self.covariance_at(points_ras)])


def _scale_at(motion: UnseenMotion, evidence: float, points: Array) -> Array:
    weak = WEAK_MM / max(evidence, 1.0)
    return np.asarray(motion.second_moment_at(points) + (COMMON_MM**2 + weak**2) * np.eye(3))


Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, eq=False)
class _Level:
    """Frames, and the CT beside them."""

    look: FrameLevel
    ct: NDArray[np.float32]
    index_from_ras: Array
    pitch_mm: float
    places: Array  # (m, 3) middles of the patches, in the reference
    centre: Array  # (4,) of all of them, by weight
    size_mm: float
    echo: bool  # an edge may only add to the image

    def fits(self, pose: Array, slopes: bool = True) -> tuple[Array, Array]:
        """(m, SUMS) of `kernels.patch_fits` at ``pose``, RAS from reference, and the centre (3,) it turns about."""
        about = (pose @ self.centre)[:3]
        ras_from_pixel = (pose @ self.look.reference_from_pixel)[:, :3]
        ras_from_pixel[:, :, 2] -= about
        out = np.empty((len(self.look.patches), kernels.SUMS))
        turn = self.index_from_ras[:3, :3]
        kernels.patch_fits(
            self.look.images, self.look.patches, self.look.side, self.ct, np.ascontiguousarray(turn, np.float32),
            np.ascontiguousarray(turn @ about + self.index_from_ras[:3, 3], np.float32),
            np.ascontiguousarray(ras_from_pixel, np.float32), FLOOR_HU2, self.echo, slopes, out,
        )  # fmt: skip
        return out, about

    def sums(self, poses: Sequence[Array]) -> Array:
        """(n, 2) at each of ``poses``: weight times share explained, and weight, of the patches in the CT."""
        index = (self.index_from_ras @ np.array(poses))[:, None] @ self.look.reference_from_pixel[None]
        out = np.empty((len(poses), 2))
        kernels.similarities(
            self.look.images, self.look.patches, self.look.weights, self.look.side, self.ct,
            np.ascontiguousarray(index[:, :, :3], np.float32), FLOOR_HU2, self.echo, out,
        )  # fmt: skip
        return out

    def similarities(self, poses: Sequence[Array]) -> Array:
        """(n,) at each of ``poses``; less than half of the patches in the CT counts against it."""
        return _mean_share(self.sums(poses), float(self.look.weights.sum()))

    def part(self, chosen: NDArray[np.bool_]) -> _Level:
        """With the ``chosen`` (m,) patches only."""
        return replace(self, look=self.look.part(chosen), places=self.places[chosen])


def _mean_share(sums: Array, weight: float) -> Array:
    """(...) share explained from (..., 2) sums over patches of ``weight`` altogether."""
    known = sums[..., 1] / max(weight, 1e-12)
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1e-12) * np.minimum(2.0 * known, 1.0))


def _step_matrices(steps: Array, centre: Array) -> Array:
    """(n, 4, 4) of translations, mm, and rotation vectors, rad, (n, 6), about ``centre``."""
    out = np.tile(np.eye(4), (len(steps), 1, 1))
    out[:, :3, :3] = Rotation.from_rotvec(steps[:, 3:]).as_matrix()
    out[:, :3, 3] = centre - out[:, :3, :3] @ centre + steps[:, :3]
    return out


@dataclass(slots=True)
class _State:
    pose: Array
    similarity: float = 0.0
    overlap: float = 0.0
    steps: int = 0
    converged: bool = False


def _value(level: _Level, fits: Array) -> tuple[float, Array]:
    """Share explained, and the weights (m,) of the least-squares problem: a patch's over its own sum of squares."""
    total = fits[:, kernels.TOTAL]
    known = total > 0.0
    each = np.where(known, level.look.weights / np.where(known, total, 1.0), 0.0)
    weight = float(level.look.weights[known].sum())
    return (1.0 - float(each @ fits[:, kernels.RESIDUAL]) / weight if weight > 0.0 else 0.0), each


def _system(fits: Array, each: Array, arms: Array) -> tuple[Array, Array]:
    """Hessian (6, 6) and gradient (6,); to the Hessian a rotation only shifts a patch, by its arm (m, 3)."""
    shifted = point_jacobian(arms)
    pulled = (each[:, None] * fits[:, kernels.HESSIAN :]).reshape(-1, 3, 3) @ shifted
    hessian = shifted.reshape(-1, 6).T @ pulled.reshape(-1, 6)
    return hessian, each @ fits[:, kernels.GRADIENT : kernels.HESSIAN]


def _solve(h: Array, g: Array) -> Array:
    """The step; what the patches do not determine is left alone."""
    d = np.sqrt(np.maximum(np.diag(h), 1e-30))
    return np.asarray(-np.linalg.lstsq(h / np.outer(d, d), g / d, rcond=1e-7)[0] / d)


def _descend(level: _Level, pose: Array, steps: int) -> _State:
    """Steps until they become small.

    Noise of the CT adds to the Hessian and not to the slope, so that a step falls short by a factor that nobody knows:
    as long as they help, steps are made longer.
    """
    state = _State(pose)
    fits, about = level.fits(pose)
    state.similarity, each = _value(level, fits)
    pace = 0.5 * MOST_PACE
    small = STEP_SHARE * level.pitch_mm / MOST_PACE
    while state.steps < steps and not state.converged:
        step = pace * _solve(*_system(fits, each, level.places @ state.pose[:3, :3].T + state.pose[:3, 3] - about))
        moved = float(np.linalg.norm(step[:3]) + np.linalg.norm(step[3:]) * level.size_mm)
        if moved > MOST_STEP * level.pitch_mm:
            step *= MOST_STEP * level.pitch_mm / moved
        there = _step_matrices(step[None], about)[0] @ state.pose
        state.steps += 1
        after, about_after = level.fits(there, slopes=state.steps < steps)
        similarity, each_after = _value(level, after)
        if similarity > state.similarity:
            state.converged = moved < small * pace
            state.pose, state.similarity, fits, each, about = there, similarity, after, each_after, about_after
            pace = min(1.8 * pace, MOST_PACE)
        else:
            state.converged = pace < 0.3 or moved < small * pace
            pace /= 4.0
    known = fits[:, kernels.TOTAL] > 0.0
    state.overlap = float(level.look.weights[known].sum() / max(level.look.weights.sum(), 1e-12))
    return state


def _cloud(count: int, millimetres: tuple[float, float], degrees: tuple[float, float], seed: int) -> Array:
    """(count, 6) steps, always the same: directions at random, distances even in volume between both limits."""
    rng = np.random.default_rng(seed)
    out = np.empty((count, 6))
    for part, (low, high) in ((slice(0, 3), millimetres), (slice(3, 6), tuple(np.deg2rad(degrees)))):
        direction = rng.normal(0, 1, (count, 3))
        radius = (low**3 + (high**3 - low**3) * rng.random(count)) ** (1.0 / 3.0)
        out[:, part] = direction / np.linalg.norm(direction, axis=1)[:, None] * radius[:, None]
    return out


def _around(level: _Level, pose: Array, steps: Array) -> list[Array]:
    about = (pose @ level.centre)[:3]
    return list(_step_matrices(steps, about) @ pose)


def _apart_mm(one: Array, two: Array, points: Array) -> float:
    """Root mean square distance between where two poses take ``points`` (n, 3)."""
    apart = points @ (one - two)[:3, :3].T + (one - two)[:3, 3]
    return float(np.sqrt((apart**2).sum(axis=1).mean()))


def _best(level: _Level, poses: Sequence[Array], count: int, same_mm: float = 0.0) -> list[Array]:
    """The ``count`` most similar ones, no two closer than ``same_mm`` over the patches."""
    points = level.places[:: max(1, len(level.places) // 50)]
    out: list[Array] = []
    for n in np.argsort(-level.similarities(poses), kind="stable"):
        if same_mm <= 0.0 or all(_apart_mm(poses[n], other, points) >= same_mm for other in out):
            out.append(poses[n])
        if len(out) == count:
            break
    return out


def _reach(level: _Level, start: Array, pose: Array) -> tuple[float, float]:
    """How far ``pose`` moves the middle of the patches, and turns, from ``start``: in `CAPTURE_MM`, `CAPTURE_DEG`."""
    moved = np.linalg.norm(((pose - start) @ level.centre)[:3])
    turned = math.degrees(rotation_angle_rad(pose[:3, :3] @ start[:3, :3].T))
    return float(moved) / CAPTURE_MM, turned / CAPTURE_DEG


def _thinned(chosen: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    return chosen[np.unique(np.linspace(0, len(chosen) - 1, most).round().astype(np.intp))]


def _levels(
    fixed: Volume, mask: NDArray[np.generic] | None, moving: TrackedFrames, chosen: NDArray[np.intp], start: Array
) -> list[_Level]:
    """From the coarsest; the coarse ones with few of the frames."""
    ct, cut = soft_tissue_around(fixed, mask, moving.corners(chosen) @ start[:3, :3].T + start[:3, 3])
    out = []
    sources = channels_at(ct, cut, [pitch for _, pitch in LEVELS_MM])
    for n, ((pixel_mm, _), (index_from_ras, channels)) in enumerate(zip(LEVELS_MM, sources, strict=True)):
        look = frame_level(moving, _thinned(chosen, FRAMES[n]), pixel_mm, SIDE)
        structure = float(look.weights.sum())
        if structure < LEAST_PATCHES:
            raise ImageRegistrationError(
                f"the ultrasound shows structure in about {structure:.0f} patches of {SIDE * pixel_mm:g} mm only, at "
                f"least {LEAST_PATCHES} are needed; use more frames, with the liver's vessels and edges in them"
            )
        places = look.centres()
        centre = look.weights @ places / structure
        size = math.sqrt(float(look.weights @ ((places - centre) ** 2).sum(axis=1)) / structure)
        out.append(_Level(look, channels, index_from_ras, pixel_mm, places, np.array([*centre, 1.0]), size, ECHOES[n]))
    return out


def _parts(level: _Level, pose: Array) -> UnseenMotion:
    """What the `PARTS` of the image, each shifted on its own, say of ``pose``."""
    look = level.look
    block = np.zeros(len(look.patches), np.int64)
    keys = (look.patches[:, 0], look.patches[:, 2], look.patches[:, 1])
    for key, parts in zip(keys, PARTS, strict=True):
        rank = np.argsort(np.argsort(key, kind="stable"), kind="stable")
        block = block * parts + rank * parts // len(rank)
    shifted = np.tile(pose, (len(SHIFTS_MM), 1, 1))
    shifted[:, :3, 3] += SHIFTS_MM
    weights = np.asarray(np.bincount(block, look.weights), np.float64)
    used = np.flatnonzero(weights > 0.0)
    places = level.places @ pose[:3, :3].T + pose[:3, 3]
    middles = np.stack([np.bincount(block, look.weights * along) for along in places.T], axis=1)
    explained = np.array([level.part(block == n).sums(list(shifted))[:, 0] for n in used])
    return unseen_motion(explained, middles[used] / weights[used, None], weights[used])


def _evidence(level: _Level, pose: Array, elsewhere: Sequence[Array]) -> float:
    """Standard deviations of the similarity elsewhere by which that at ``pose`` lies above their mean.

    Without the quarter of the image (shallow or deep, left or right) that says most for it: one interface, such as gas
    beside the liver, can be explained very well with all else astray.
    """
    rows, columns = level.look.patches[:, 1], level.look.patches[:, 2]
    quarter = 2 * (rows > np.median(rows)) + (columns > np.median(columns))
    sums = np.zeros((4, 1 + len(elsewhere), 2))
    weights = np.zeros(4)
    for n in np.unique(quarter):
        part = level.part(quarter == n)
        sums[n], weights[n] = part.sums([pose, *elsewhere]), part.look.weights.sum()
    out = []
    for n in np.unique(quarter):
        shares = _mean_share(sums.sum(axis=0) - sums[n], float(weights.sum() - weights[n]))
        out.append(float((shares[0] - shares[1:].mean()) / max(shares[1:].std(ddof=1), 1e-9)))
    return min(out)


def error_doubts(error_mm: float) -> tuple[str, ...]:
    """What speaks against a registration that may be off by ``error_mm``: a sentence, or nothing."""
    if error_mm <= GOOD_ERROR_MM:
        return ()
    return (
        f"it may be off by {error_mm:.1f} mm (good up to {GOOD_ERROR_MM:g} mm): tissue has moved, so that parts of the "
        "image ask for other places, or shows too little to tell",
    )


@dataclass(frozen=True, slots=True)
class _Quality:
    evidence: float
    agreement: float
    halves_mm: float
    reach: tuple[float, float]
    error_mm: float


def _judge(state: _State, found: _Quality) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and a sentence for each thing that speaks against the registration, the worst first."""
    wrong, doubts = [], []
    if state.overlap < 0.5:
        wrong.append(f"only {state.overlap:.0%} of the ultrasound lies inside the CT (least 50%)")
    evidence = f"the CT explains the ultrasound {found.evidence:.1f} standard deviations better than elsewhere only"
    if found.evidence < LEAST_EVIDENCE:
        wrong.append(
            f"{evidence} (least {LEAST_EVIDENCE:g}): another patient, a mirrored image, too little structure, or a "
            f"start too far off ({CAPTURE_MM:g} mm and {CAPTURE_DEG:g} degrees are looked at)"
        )
    elif found.evidence < GOOD_EVIDENCE:
        doubts.append(f"{evidence} (good from {GOOD_EVIDENCE:g})")
    apart = f"both halves of the frames, each on its own, lie {found.halves_mm:.1f} mm apart"
    if found.halves_mm > MOST_HALVES_MM:
        wrong.append(f"{apart} (most {MOST_HALVES_MM:g} mm)")
    elif found.halves_mm > GOOD_HALVES_MM:
        doubts.append(f"{apart} (good up to {GOOD_HALVES_MM:g} mm)")
    doubts += error_doubts(found.error_mm)
    if max(found.reach) > FARTHEST:
        moved, turned = found.reach[0] * CAPTURE_MM, found.reach[1] * CAPTURE_DEG
        doubts.append(
            f"it moves the ultrasound by {moved:.0f} mm and {turned:.0f} degrees from the start (looked for up to "
            f"{CAPTURE_MM:g} mm and {CAPTURE_DEG:g} degrees)"
        )
    if wrong:
        return Verdict.IMPLAUSIBLE, (*wrong, *doubts)
    if not state.converged:
        return Verdict.NOT_CONVERGED, (f"not settled after {MOST_STEPS} steps on the finest level", *doubts)
    return (Verdict.DOUBTFUL, tuple(doubts)) if doubts else (Verdict.GOOD, ())


def register_ultrasound(
    fixed: Volume,
    moving: TrackedFrames,
    *,
    initial: Rigid,
    fixed_mask: NDArray[np.generic] | None = None,
    progress: Progress | None = None,
) -> UltrasoundRegistration:
    """Register tracked ultrasound frames to a CT, rigidly.

    Parameters
    ----------
    fixed : Volume
        CT, HU.
    moving : TrackedFrames
        In their reference's mm; `planes_of_volume` makes them of a compounded volume.
    initial : Rigid
        Reference to CT, RAS mm: where to start, within `CAPTURE_MM` and `CAPTURE_DEG` of the truth. Its name is that of
        the result.
    fixed_mask : (k, j, i), optional
        On the CT's grid: where it is looked at, not 0. None: everywhere.
    progress : callable, optional
        Called with the share done, 0 to 1, and what is being done; what it raises ends the registration.

    Returns
    -------
    UltrasoundRegistration
        Also when it is wrong: ``verdict`` and ``reasons`` say so.

    Raises
    ------
    ImageRegistrationError
        They cannot be registered at all: no structure, nothing in common, a CT that is constant or not finite.
    """
    tell = progress or (lambda _share, _text: None)
    if fixed_mask is not None and fixed_mask.shape != fixed.array.shape:
        raise ImageRegistrationError(
            f"the fixed mask has {fixed_mask.shape} voxels (k, j, i), its image {fixed.array.shape}; resample it"
        )
    if fixed_mask is not None and not fixed_mask.any():
        raise ImageRegistrationError("the fixed mask is empty; choose the label that covers the body or organ")
    tell(0.0, "choosing frames")
    chosen = choose_frames(moving, MOST_FRAMES)
    start = initial.matrix.copy()
    levels = _levels(fixed, fixed_mask, moving, chosen, start)
    finest = levels[-1]
    if not np.isfinite(levels[0].ct).all() and fixed_mask is None:
        raise ImageRegistrationError("the CT holds voxels that are not finite; replace or mask them")
    if float(np.nanmax(levels[0].ct[..., 1], initial=0.0)) == 0.0:
        raise ImageRegistrationError(
            f"the CT is constant around the ultrasound (HU are cut to {LOW_HU:g} to {HIGH_HU:g})"
        )
    tell(0.1, "looking around")
    steps = _cloud(POSES, (0.0, CAPTURE_MM * 1.1), (0.0, CAPTURE_DEG * 1.1), seed=1)
    steps[0] = 0.0
    poses = _around(levels[0], start, steps)
    iterations = 0

    def refined(level: _Level, poses: Sequence[Array], steps: int) -> list[Array]:
        """The best first."""
        nonlocal iterations
        states = [_descend(level, pose, steps) for pose in poses]
        iterations += sum(state.steps for state in states)
        near = [s for s in states if max(_reach(level, start, s.pose)) <= FARTHEST]
        states = near or states
        return [s.pose for s in sorted(states, key=lambda s: -s.similarity * min(2.0 * s.overlap, 1.0))]

    candidates = refined(levels[0], _best(levels[0], poses, FIRST[0]), FIRST[1])
    candidates = refined(levels[0], candidates[: AGAIN[0]], AGAIN[1])
    tell(0.4, f"at {levels[1].pitch_mm:g} mm")
    candidates = refined(levels[1], _best(levels[1], candidates, KEPT, SAME_MM), STEPS)
    tell(0.6, "looking around the best")
    for n, (count, some, millimetres, degrees) in enumerate(ROUNDS):
        near = _around(levels[1], candidates[0], _cloud(count, (0.0, millimetres), (0.0, degrees), seed=3 + n))
        found = refined(levels[1], _best(levels[1], near, some, SAME_MM), STEPS)
        candidates = _best(levels[1], [*candidates, *found], KEPT, SAME_MM)
    tell(0.7, f"at {finest.pitch_mm:g} mm")
    state = _descend(finest, _best(finest, candidates, 1)[0], MOST_STEPS)
    iterations += state.steps
    if state.overlap == 0.0:
        raise ImageRegistrationError("the ultrasound and the CT have nothing in common; give another start (--init)")
    tell(0.9, "quality")
    elsewhere = _around(finest, state.pose, _cloud(CHANCE_POSES, CHANCE_MM, CHANCE_DEG, seed=2))
    looked = levels[1]  # fewer frames, the same structure
    points = finest.places
    odd = finest.look.patches[:, 0] % 2 == 1
    halves = [_descend(finest.part(half), state.pose, HALF_STEPS).pose for half in (odd, ~odd)]
    look = frame_level(moving, chosen, looked.pitch_mm, SIDE)
    every = replace(looked, look=look, places=look.centres())
    evidence, motion = _evidence(looked, state.pose, elsewhere), _parts(every, state.pose)
    places = points[:: max(1, len(points) // 50)] @ state.pose[:3, :3].T + state.pose[:3, 3]
    quality = _Quality(
        evidence=evidence,
        agreement=_agreement(looked, state.pose, elsewhere[:: max(1, CHANCE_POSES // 8)]),
        halves_mm=_apart_mm(halves[0], halves[1], points),
        reach=_reach(finest, start, state.pose),
        error_mm=float(np.median([radius_of_share(c, 0.95, DOF) for c in _scale_at(motion, evidence, places)])),
    )
    verdict, reasons = _judge(state, quality)
    return UltrasoundRegistration(
        transform=Rigid.from_matrix(state.pose, initial.name),
        iterations=iterations,
        similarity_before=float(finest.similarities([start])[0]),
        similarity_after=state.similarity,
        overlap=state.overlap,
        evidence=quality.evidence,
        agreement=quality.agreement,
        halves_mm=quality.halves_mm,
        frames=chosen,
        motion=motion,
        error_mm=quality.error_mm,
        verdict=verdict,
        reasons=reasons,
    )


def _agreement(level: _Level, pose: Array, elsewhere: Sequence[Array]) -> float:
    """Share of the patches, by weight, that are explained better than 95 % of patches are elsewhere."""

    def shares(at: Array) -> Array:
        fits, _ = level.fits(at, slopes=False)
        total = fits[:, kernels.TOTAL]
        return np.where(total > 0.0, 1.0 - fits[:, kernels.RESIDUAL] / np.where(total > 0.0, total, 1.0), np.nan)

    here = shares(pose)
    known = np.isfinite(here)
    by_chance = np.concatenate([shares(at) for at in elsewhere])
    by_chance = by_chance[np.isfinite(by_chance)]
    if not known.any() or not len(by_chance):
        return 0.0
    weights = level.look.weights[known]
    return float(weights @ (here[known] > np.percentile(by_chance, 95.0)) / weights.sum())
