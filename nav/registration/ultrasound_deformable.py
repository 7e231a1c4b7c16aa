"""Smooth motion of the tissue after the rigid registration of ultrasound: a displacement with few parameters.

What the rigid pose takes to y in the CT lies at ``R y + t + u(y)``: u is a cubic B-spline around the patches, R and t
are fitted along with it, for motion has pulled the rigid pose towards it. The prior of u is a Gaussian process (as in
Lüthi, Gerig, Jud, Vetter, "Gaussian process morphable models", IEEE TPAMI 40:1860, 2018): smooth, and zero where
patches say nothing.

What is looked for is what the rigid registration looks for, that the CT explains the patches, here as the sum of the
logarithms of what is left in them: a patch that is explained well counts more. Every patch becomes a frame with a pose
of its own, so the same kernel gives slope and Hessian by a translation of each; the field's normal equations are sums
of them (Gauss-Newton).

Any field of so many parameters explains some more of the ultrasound than none, where nothing has moved too. So the odd
and the even frames are fitted first, each on their own, and each field is tried on the other half. Unless both explain
clearly more of what they have not seen, the rigid pose stays as it is.

How far the result may be off is the inverse of the Hessian with the prior: near structure the patches decide, away from
it the prior says how far tissue may have moved. That holds where no motion was followed as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_array
from scipy.spatial.transform import Rotation

from nav.geometry.displacement import DisplacementField
from nav.geometry.volume import Volume
from nav.registration import ultrasound_kernels as kernels
from nav.registration.bspline import bspline, bspline_slope
from nav.registration.error_distribution import radius_of_share
from nav.registration.landmarks import point_jacobian
from nav.registration.ultrasound_ct import FLOOR_HU2, channels_at, soft_tissue_around
from nav.registration.ultrasound_frames import FrameLevel, TrackedFrames, frame_level
from nav.registration.ultrasound_image import SIDE, Progress, UltrasoundRegistration, error_doubts
from nav.registration.verdict import Verdict

__all__ = ["LEAST_GAIN", "PRIOR_MM", "UltrasoundDeformation", "deform_ultrasound", "judged"]

Array = NDArray[np.float64]

#: Nodes of the B-spline are so far apart, and reach so far around the middles of the patches.
NODE_MM, BORDER_MM = 40.0, 40.0
#: Displacements in the prior, mm, alike over some length (sigma); and a share of variance that each node has by itself.
PRIOR_MM, PRIOR_LENGTH_MM, ROUGH = 4.0, 70.0, 0.01
#: How far the rigid pose may be off, pulled by what has moved: mm, rad (standard deviations).
POSE_MM, POSE_RAD = 5.0, 0.08
#: Pixels of the frames, and voxels of the CT, on each level, mm; steps on each: to stop early is to stay smooth.
LEVELS_MM, MOST_STEPS = ((3.0, 2.5), (2.0, 1.6)), 6
#: So many pixels say the same: what a CT leaves unexplained (vessels that it does not show, textures) is alike over
#: much of a patch and from frame to frame. With fewer, fields followed it.
ALIKE = 150.0
#: No patch counts as explained better than this share left.
LEAST_LEFT = 0.05
#: The CT's noise adds to the Hessian, so steps fall short, by a factor that is followed between these; and by that much
#: the Hessian says too much of what the patches know.
PACE, MOST_PACE, TOO_SURE = 4.0, 8.0, 8.0
#: By so much, in the logarithm of the share left, each half's field must explain the other half better (chosen where
#: the truth is known: 0.006 and below without motion, 0.008 and above in 8 of 10 with it).
LEAST_GAIN = 0.007
#: Standard errors per axis that no patch knows of, mm, as for the rigid pose; the second is divided by the evidence.
COMMON_MM, WEAK_MM = 0.5, 3.0
#: A displacement longer than so many standard deviations of the prior is doubtful.
MOST_DEVIATIONS = 3.0
#: Nodes of the field that is written.
WRITTEN_MM = 8.0
#: To go back: until nothing moves by more than this, mm, at most so often.
_SETTLED_MM, _MOST_ROUNDS = 1e-4, 100


@dataclass(frozen=True, slots=True, eq=False)
class _Field:
    """The B-spline's nodes: where the first lies, RAS mm, and how many there are along each axis."""

    first: Array
    size: tuple[int, ...]

    @classmethod
    def around(cls, points: Array) -> _Field:
        low, high = points.min(axis=0) - BORDER_MM, points.max(axis=0) + BORDER_MM
        size = np.maximum(np.ceil((high - low) / NODE_MM).astype(int) + 1, 4)
        return cls(0.5 * (low + high - (size - 1) * NODE_MM), tuple(int(n) for n in size))

    def basis(self, points: Array, axis: int | None = None) -> Array:
        """(n, N) at points (n, 3) RAS mm, or its derivative along an axis, 1/mm."""
        parts = []
        for d, count in enumerate(self.size):
            at = (points[:, d] - self.first[d]) / NODE_MM
            parts.append(bspline_slope(at, count) / NODE_MM if d == axis else bspline(at, count))
        return np.asarray(np.einsum("na,nb,nc->nabc", *parts).reshape(len(points), -1))

    def prior(self) -> tuple[Array, Array]:
        """(N, N) covariance of the coefficients along one axis, mm², and its inverse."""
        covariance, inverse = np.full((1, 1), PRIOR_MM**2), np.full((1, 1), PRIOR_MM**-2)
        for count in self.size:
            at = np.arange(count, dtype=np.float64)
            values = np.exp(-0.5 * ((at[:, None] - at) * NODE_MM / PRIOR_LENGTH_MM) ** 2) + ROUGH * np.eye(count)
            through = bspline(at, count)  # from coefficients to values at the nodes
            back = np.linalg.inv(through)
            covariance = np.kron(covariance, back @ values @ back.T)
            inverse = np.kron(inverse, through.T @ np.linalg.inv(values) @ through)
        return covariance, inverse


@dataclass(frozen=True, slots=True, eq=False)
class UltrasoundDeformation:
    """Where the frames lie in the CT, tissue having moved smoothly.

    Attributes
    ----------
    rigid : UltrasoundRegistration
        What it starts from.
    followed : bool
        Whether motion was found that both halves of the frames agree on; if not, all is as the rigid pose has it.
    gain : float
        By how much each half's field explains the other half better, the lesser of both: difference of the mean
        logarithm of the share left.
    centre_ras : (3,) float64
        What the pose turns about: the middle of the patches as the rigid pose has it, mm.
    parameters : (3 N + 6,) float64
        Coefficients of the B-spline, mm, all of x first; translation, mm, and rotation vector, rad, after the rigid
        pose.
    covariance : (3 N + 6, 3 N + 6) float64
        Of them.
    iterations : int
        Gauss-Newton steps of the fit to all frames.
    similarity_before, similarity_after : float
        Share of the patches that is explained, 0 to 1, at 2 mm, as for the rigid pose.
    longest_mm : float
        Longest displacement u in a patch's middle.
    error_mm : float
        Stated for 95 % of the errors, median over the patches.
    jacobian_min, jacobian_max, folded_fraction : float
        Of the determinant around the patches; share at or below 0.
    verdict : Verdict
        Never better than the rigid one's, but where motion was followed what is stated counts and not what the rigid
        pose stated.
    reasons : tuple of str
        Why the verdict is not good; empty when it is.
    """

    rigid: UltrasoundRegistration
    followed: bool
    gain: float
    centre_ras: Array
    parameters: Array
    covariance: Array
    iterations: int
    similarity_before: float
    similarity_after: float
    longest_mm: float
    error_mm: float
    jacobian_min: float
    jacobian_max: float
    folded_fraction: float
    verdict: Verdict
    reasons: tuple[str, ...]
    field: _Field
    box: tuple[Array, Array]

    def to_ct(self, points: ArrayLike) -> Array:
        """(n, 3) RAS mm in the CT of points (n, 3) of the reference, mm."""
        p = np.atleast_2d(np.asarray(points, np.float64))
        return _moved(self.field, self.parameters, self.centre_ras, self.rigid.transform.apply(p))

    def to_reference(self, points_ras: ArrayLike) -> Array:
        """(n, 3) mm in the reference of points of the CT, (n, 3) RAS mm, to `_SETTLED_MM` where nothing folds."""
        to = np.atleast_2d(np.asarray(points_ras, np.float64))
        y = to.copy()
        for _ in range(_MOST_ROUNDS):
            miss = to - _moved(self.field, self.parameters, self.centre_ras, y)
            y += miss
            if np.abs(miss).max(initial=0.0) < _SETTLED_MM:
                break
        return self.rigid.transform.inverse().apply(y)

    def displacement(self) -> DisplacementField:
        """From points of the CT to the reference, the pose included, on an upright grid `BORDER_MM` around the
        patches.
        """
        low, high = self.box
        size = np.ceil((high - low + 2.0 * BORDER_MM) / WRITTEN_MM).astype(int) + 1
        grid = np.diag([WRITTEN_MM, WRITTEN_MM, WRITTEN_MM, 1.0])
        grid[:3, 3] = low - BORDER_MM
        nodes = Volume.of(np.zeros(tuple(size[::-1]), np.uint8), grid).voxels_ras()
        vectors = np.concatenate([self.to_reference(part) - part for part in np.array_split(nodes, size[2])])
        return DisplacementField.of(vectors.reshape(*size[::-1], 3), grid)

    @property
    def dof(self) -> float:
        """Degrees of freedom of the error's distribution: infinite, it is taken as normal."""
        return math.inf

    def covariance_at(self, points_ras: ArrayLike) -> Array:
        """(n, 3, 3) covariance, mm², of where points of the CT, (n, 3) RAS mm, are taken from.

        It varies over centimetres, so it is taken at the point itself and not where the rigid pose had it.
        """
        points = np.atleast_2d(np.asarray(points_ras, np.float64))
        basis = self.field.basis(points)
        count = basis.shape[1]
        by_point = np.zeros((len(points), 3, 3 * count + 6))
        for axis in range(3):
            by_point[:, axis, axis * count : (axis + 1) * count] = basis
        by_point[:, :, 3 * count :] = point_jacobian(points - self.centre_ras)
        # Beyond the nodes the B-spline ends, and the prior does not.
        held = np.einsum("na,na->n", basis @ self.field.prior()[0], basis)
        weak = WEAK_MM / max(self.rigid.evidence, 1.0)
        common = np.maximum(PRIOR_MM**2 - held, 0.0) + COMMON_MM**2 + weak**2
        return np.asarray(by_point @ self.covariance @ by_point.transpose(0, 2, 1) + common[:, None, None] * np.eye(3))

    def expected_error_mm(self, points_ras: ArrayLike, share: float = 0.95) -> Array:
        """(n,) radius, mm, that holds ``share`` of the errors at points of the CT, (n, 3) RAS mm."""
        return np.array([radius_of_share(c, share, self.dof) for c in self.covariance_at(points_ras)])


def _moved(field: _Field, parameters: Array, centre: Array, points: Array) -> Array:
    """(n, 3) where points (n, 3), RAS mm as the rigid pose has them, lie in the CT."""
    turn = Rotation.from_rotvec(parameters[-3:]).as_matrix()
    u = field.basis(points) @ parameters[:-6].reshape(3, -1).T
    return np.asarray((points - centre) @ turn.T + centre + parameters[-6:-3] + u)


class _Look:
    """Patches on one level, each a frame of its own, and the CT beside them."""

    def __init__(self, look: FrameLevel, beside: tuple[Array, NDArray[np.float32]], pose: Array, field: _Field) -> None:
        frame = look.patches[:, 0]
        self.images, self.side = look.images, look.side
        self.patches = np.zeros_like(look.patches)
        self.patches[:, 0] = np.arange(len(frame))
        self.weights = look.weights
        self.half = 0.5 * (look.side - 1)
        ras = (pose @ look.reference_from_pixel[frame])[:, :3]
        #: (m, 3, 2) a column's and a row's step, mm.
        self.steps = ras[:, :, :2]
        self.middles = look.centres() @ pose[:3, :3].T + pose[:3, 3]
        self.index_from_ras, self.ct = beside
        self.basis = csr_array(field.basis(self.middles))
        self.slopes = [csr_array(field.basis(self.middles, axis)) for axis in range(3)]

    def fits(self, parameters: Array, centre: Array) -> tuple[Array, Array]:
        """(m, SUMS) of `kernels.patch_fits`, and where the patches' middles lie from ``centre``, (m, 3) mm."""
        coefficients = parameters[:-6].reshape(3, -1).T
        turn = Rotation.from_rotvec(parameters[-3:]).as_matrix()
        linear = turn + np.stack([slope @ coefficients for slope in self.slopes], axis=2)
        arms = (self.middles - centre) @ turn.T + parameters[-6:-3] + self.basis @ coefficients
        ras_from_pixel = np.empty((len(arms), 3, 3))
        ras_from_pixel[:, :, :2] = linear @ self.steps
        ras_from_pixel[:, :, 2] = arms - self.half * ras_from_pixel[:, :, :2].sum(axis=2)
        out = np.empty((len(arms), kernels.SUMS))
        to_index = self.index_from_ras[:3, :3]
        kernels.patch_fits(
            self.images, self.patches, self.side, self.ct, np.ascontiguousarray(to_index, np.float32),
            np.ascontiguousarray(to_index @ centre + self.index_from_ras[:3, 3], np.float32),
            np.ascontiguousarray(ras_from_pixel, np.float32), FLOOR_HU2, True, True, out,
        )  # fmt: skip
        return out, arms

    def left(self, fits: Array) -> tuple[float, Array, Array]:
        """Mean logarithm of the share left (a patch outside the CT: all), each patch's weight in the least-squares
        problem (m,), and its share left (m,).
        """
        total, known = fits[:, kernels.TOTAL], fits[:, kernels.TOTAL] > 0.0
        share = np.where(known, fits[:, kernels.RESIDUAL] / np.where(known, total, 1.0), 1.0)
        floored = np.maximum(share, LEAST_LEFT)
        each = np.where(known, self.weights / (np.where(known, total, 1.0) * floored), 0.0)
        return float(self.weights @ np.log(floored) / self.weights.sum()), each, share

    def system(self, fits: Array, each: Array, arms: Array) -> tuple[Array, Array]:
        """Hessian and gradient by all parameters, before the prior."""
        count = self.basis.shape[1]
        by_place = fits[:, kernels.HESSIAN :].reshape(-1, 3, 3) * each[:, None, None]
        force = fits[:, kernels.GRADIENT : kernels.GRADIENT + 3] * each[:, None]
        pose = point_jacobian(arms)
        pulled = by_place @ pose
        hessian, gradient = np.empty((3 * count + 6,) * 2), np.empty(3 * count + 6)
        parts = [slice(axis * count, (axis + 1) * count) for axis in range(3)]
        across = self.basis.T.tocsr()
        for a, one in enumerate(parts):
            gradient[one] = across @ force[:, a]
            hessian[one, 3 * count :] = across @ pulled[:, a]
            for b in range(a, 3):
                hessian[one, parts[b]] = (across @ (self.basis * by_place[:, a, b, None])).toarray()
                hessian[parts[b], one] = hessian[one, parts[b]]
        hessian[3 * count :, : 3 * count] = hessian[: 3 * count, 3 * count :].T
        hessian[3 * count :, 3 * count :] = np.einsum("mij,mik->jk", pose, pulled)
        gradient[3 * count :] = np.einsum("mij,mi->j", pose, force)
        return hessian, gradient


#: What the patches' sums count against the prior: a pixel each that the fit leaves free, but for those that are alike.
_FACT = (SIDE**2 - 6) / ALIKE


def _descend(look: _Look, parameters: Array, centre: Array, penalty: Array) -> tuple[Array, int]:
    """Steps on one level."""

    def energy(fits: Array, at: Array) -> tuple[float, Array]:
        mean, each, _ = look.left(fits)
        return 0.5 * (_FACT * float(look.weights.sum()) * mean + float(at @ penalty @ at)), each

    fits, arms = look.fits(parameters, centre)
    value, each = energy(fits, parameters)
    pace, steps = PACE, 0
    while steps < MOST_STEPS and pace > 0.3:
        hessian, gradient = look.system(fits, each, arms)
        factor = cho_factor(_FACT / pace * hessian + penalty, check_finite=False)
        there = parameters - cho_solve(factor, _FACT * gradient + penalty @ parameters, check_finite=False)
        steps += 1
        fits_there, arms_there = look.fits(there, centre)
        value_there, each_there = energy(fits_there, there)
        if value_there < value:
            little = value - value_there < 0.05
            parameters, fits, arms, value, each = there, fits_there, arms_there, value_there, each_there
            if little:
                break
            pace = min(1.8 * pace, MOST_PACE)
        else:
            pace /= 4.0
    return parameters, steps


def deform_ultrasound(
    fixed: Volume,
    moving: TrackedFrames,
    rigid: UltrasoundRegistration,
    *,
    fixed_mask: NDArray[np.generic] | None = None,
    progress: Progress | None = None,
) -> UltrasoundDeformation:
    """Follow smooth motion of the tissue.

    Parameters
    ----------
    fixed, moving, fixed_mask
        As for the rigid registration.
    rigid : UltrasoundRegistration
        Of these frames.
    progress : callable, optional
        Called with the share done, 0 to 1, and what is being done; what it raises ends the registration.

    Raises
    ------
    ImageRegistrationError
        The rigid pose does not bring frames and CT together.
    """
    tell = progress or (lambda _share, _text: None)
    tell(0.0, "motion")
    pose = rigid.transform.matrix
    corners = rigid.transform.apply(moving.corners(rigid.frames))
    ct, cut = soft_tissue_around(fixed, fixed_mask, corners)
    sources = channels_at(ct, cut, [pitch for _, pitch in LEVELS_MM])
    whole = [frame_level(moving, rigid.frames, pixel_mm, SIDE) for pixel_mm, _ in LEVELS_MM]
    middles = rigid.transform.apply(whole[0].centres())
    field, centre = _Field.around(middles), middles.mean(axis=0)
    inverse = field.prior()[1]
    penalty = np.diag(np.repeat([0.0, POSE_MM**-2, POSE_RAD**-2], [3 * len(inverse), 3, 3]))
    for axis in range(3):
        part = slice(axis * len(inverse), (axis + 1) * len(inverse))
        penalty[part, part] = inverse
    still = np.zeros(len(penalty))

    def looks(frames: NDArray[np.intp] | None) -> list[_Look]:
        chosen = whole if frames is None else [frame_level(moving, frames, pixel, SIDE) for pixel, _ in LEVELS_MM]
        return [_Look(look, beside, pose, field) for look, beside in zip(chosen, sources, strict=True)]

    def fitted(levels: list[_Look]) -> tuple[Array, int]:
        parameters, steps = still, 0
        for level in levels:
            parameters, more = _descend(level, parameters, centre, penalty)
            steps += more
        return parameters, steps

    halves = [looks(rigid.frames[odd::2]) for odd in (0, 1)]
    gains = []
    for n, half in enumerate(halves):
        parameters, _ = fitted(half)
        other = halves[1 - n][-1]
        gains.append(other.left(other.fits(still, centre)[0])[0] - other.left(other.fits(parameters, centre)[0])[0])
        tell(0.25 * (n + 1), "motion in half of the frames")
    gain = min(gains)
    followed = gain >= LEAST_GAIN
    levels = looks(None)
    parameters, steps = fitted(levels) if followed else (still, 0)
    tell(0.9, "quality")
    finest = levels[-1]
    fits, arms = finest.fits(parameters, centre)
    _, each, after = finest.left(fits)
    _, _, before = finest.left(finest.fits(still, centre)[0])
    known = _FACT / TOO_SURE * finest.system(fits, each, arms)[0]
    low, high = middles.min(axis=0), middles.max(axis=0)
    lines = [np.linspace(low[d], high[d], max(2, math.ceil((high[d] - low[d]) / WRITTEN_MM) + 1)) for d in range(3)]
    places = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 3)
    coefficients = parameters[:-6].reshape(3, -1).T
    slopes = np.stack([field.basis(places, axis) @ coefficients for axis in range(3)], axis=2)
    determinant = np.linalg.det(Rotation.from_rotvec(parameters[-3:]).as_matrix() + slopes)
    found = UltrasoundDeformation(
        rigid, followed, gain, centre, parameters, np.asarray(np.linalg.inv(known + penalty)), steps,
        1.0 - float(finest.weights @ before / finest.weights.sum()),
        1.0 - float(finest.weights @ after / finest.weights.sum()),
        float(np.linalg.norm(finest.basis @ coefficients, axis=1).max()), math.nan, float(determinant.min()),
        float(determinant.max()), float((determinant <= 0.0).mean()), rigid.verdict, rigid.reasons, field, (low, high),
    )  # fmt: skip
    few = middles[:: max(1, len(middles) // 50)]
    found = replace(found, error_mm=float(np.median(found.expected_error_mm(few))))
    verdict, reasons = judged(found)
    return replace(found, verdict=verdict, reasons=reasons)


def judged(found: UltrasoundDeformation) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and a sentence for each thing that speaks against it, the worst first; the rigid one's too."""
    wrong, doubts = [], []
    if found.folded_fraction > 0.0:
        wrong.append(f"the displacement folds over in {found.folded_fraction:.1%} of the volume of the frames")
    if found.similarity_after < found.similarity_before:
        wrong.append(
            f"the CT explains less of the ultrasound with the displacement ({found.similarity_after:.3f}) than "
            f"without ({found.similarity_before:.3f})"
        )
    if found.longest_mm > MOST_DEVIATIONS * PRIOR_MM:
        doubts.append(
            f"tissue moves by up to {found.longest_mm:.1f} mm (likely up to {MOST_DEVIATIONS * PRIOR_MM:g} mm)"
        )
    verdict, kept = found.rigid.verdict, found.rigid.reasons
    if found.followed:
        # What the rigid pose may be off by is what the displacement is there for: its own counts.
        doubts += error_doubts(found.error_mm)
        kept = tuple(reason for reason in kept if reason not in error_doubts(found.rigid.error_mm))
        if verdict is Verdict.DOUBTFUL and not kept:
            verdict = Verdict.GOOD
    reasons = (*wrong, *kept, *doubts)
    if wrong:
        return Verdict.IMPLAUSIBLE, reasons
    if doubts and verdict is Verdict.GOOD:
        return Verdict.DOUBTFUL, reasons
    return verdict, reasons
