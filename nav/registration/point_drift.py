"""Coherent point drift (Myronenko and Song 2010, IEEE TPAMI 32:2262): point sets without partners, rigid or not.

The moving points are centres of a mixture of normal distributions that is fitted to the fixed ones; its variance falls
as they come together, and a uniform part takes up what has no partner. For vessels and sparse surfaces of up to a few
thousand points.

Without rigidity the displacement is ``G W`` with the Gaussian kernel ``G = exp(-d² / 2 reach²)``: the mean of a
Gaussian process with standard deviation `motion_mm` and correlation G. What a moving point tells of its place is the
information of its matches less that which is missing because they are soft (Louis 1982, J. R. Stat. Soc. B 44:226):
nearly nothing along a surface or a vessel, much across it. With it, the expected error is that of the pose, or of the
process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from nav.geometry.rigid import Rigid
from nav.registration.error_distribution import radius_of_share
from nav.registration.landmarks import fit_rigid, point_covariance
from nav.registration.point_drift_kernels import BLOCKS, KERNELS, soft_matches
from nav.registration.surface_points import Surface
from nav.registration.verdict import ImageRegistrationError, Verdict

__all__ = ["KERNELS", "MOST_POINTS", "PointDrift", "register_drift"]

Array = NDArray[np.float64]
Single = NDArray[np.float32]
Progress = Callable[[float, str], None]

#: More points of either set cost minutes, and vessels do not need them: thin them out.
MOST_POINTS = 6000
MOST_ITERATIONS = 150
#: The objective changes by less than this share: at rest.
REST_SHARE = 1e-5
#: From so many points on, the kernel is replaced by its largest eigenvalues, so many of them.
FULL_RANK_POINTS, RANK = 400, 120
#: Of the moving points this share must have found a partner; of the fixed ones the same for a good verdict.
GOOD_MATCHED, LEAST_MATCHED = 0.6, 0.3
#: The mixture's deviation, mm, up to which points that belong together are told apart.
GOOD_SIGMA_MM, MOST_SIGMA_MM = 3.0, 8.0


@dataclass(frozen=True, slots=True, eq=False)
class _Basis:
    """The kernel as ``Q S Qᵀ``."""

    q: Array
    s: Array

    def times(self, weights: Array) -> Array:
        return np.asarray(self.q @ (self.s[:, None] * (self.q.T @ weights)))

    def solve(self, p1: Array, right: Array, softness: float) -> Array:
        """``W`` of ``(diag(p1) G + softness) W = right``, by the matrix inversion lemma on the kept eigenvalues."""
        inner = np.diag(softness / self.s) + self.q.T @ (p1[:, None] * self.q)
        inside = solve(inner, self.q.T @ right, assume_a="pos")
        return np.asarray((right - p1[:, None] * (self.q @ inside)) / softness)


@dataclass(frozen=True, slots=True, eq=False)
class PointDrift:
    """Where moving points end up, and how far to trust it.

    Attributes
    ----------
    moved_ras : (m, 3) float64
        The moving points, fixed frame, mm.
    transform : Rigid
        The rigid part, moving to fixed; without `rigid`, where the displacements start from.
    rigid : bool
    iterations : int
    sigma_mm : float
        Deviation of the mixture per axis at the end: noise, spacing, and what does not fit.
    distance_before_mm, distance_after_mm : float
        Median distance of the moving points from the nearest fixed one.
    matched : float
        Mean probability of the fixed points to belong to a moving one.
    folded_fraction : float
        Share of the moving points around which the displacement turns space inside out.
    jacobian_min, jacobian_max : float
        Change of volume around the moving points.
    verdict : Verdict
    reasons : tuple of str
    """

    moved_ras: Array
    transform: Rigid
    rigid: bool
    iterations: int
    sigma_mm: float
    distance_before_mm: float
    distance_after_mm: float
    matched: float
    folded_fraction: float
    jacobian_min: float
    jacobian_max: float
    verdict: Verdict
    reasons: tuple[str, ...]
    _centres: Array
    _weights: Array
    _covariance: Array
    _basis: _Basis | None
    _reach_mm: float
    _motion_mm: float
    _dof: float

    def apply(self, points: ArrayLike) -> Array:
        """(n, 3) mm of the moving frame to RAS mm of the fixed one."""
        placed = self.transform.apply(np.atleast_2d(np.asarray(points, np.float64)))
        if self.rigid:
            return placed
        return np.asarray(placed + _kernel(placed, self._centres, self._reach_mm) @ self._weights)

    def covariance_at(self, points_ras: ArrayLike) -> Array:
        """(n, 3, 3) covariance, mm², where points of the moving set, given where `transform` takes them, end up."""
        points = np.atleast_2d(np.asarray(points_ras, np.float64))
        if self._basis is None:
            centre = self._centres.mean(axis=0)
            return np.array([point_covariance(self._covariance, p - centre) for p in points])
        across = _kernel(points, self._centres, self._reach_mm) @ (self._basis.q / self._basis.s)
        k = across.shape[1]
        seen = np.einsum("na,axby,nb->nxy", across, self._covariance.reshape(k, 3, k, 3), across, optimize=True)
        unseen = self._motion_mm**2 * np.maximum(1.0 - (across**2 * self._basis.s).sum(axis=1), 0.0)
        return np.asarray(seen + unseen[:, None, None] * np.eye(3))

    def expected_error_mm(self, points_ras: ArrayLike, share: float = 0.95) -> Array:
        """(n,) radius, mm, that holds ``share`` of the errors; ``points_ras`` as in `covariance_at`."""
        return np.array([radius_of_share(c, share, self._dof) for c in self.covariance_at(points_ras)])


def _kernel(one: Array, two: Array, reach_mm: float) -> Array:
    return np.asarray(np.exp(cdist(one, two, "sqeuclidean") * (-0.5 / reach_mm**2)))


def _information(fixed: Array, moved: Array, variance: float, uniform: float) -> Array:
    """(m, 3, 3) per mm²: what every moving point tells about its place.

    What softness hides is taken as if the matches of a point pulled it evenly to all sides, its upper limit.
    """
    n, m = len(fixed), len(moved)
    squares = np.stack([fixed[:, a] * fixed[:, b] for a, b in _PAIRS], axis=1)
    columns = np.concatenate([np.ones((n, 1)), fixed, squares], axis=1)
    below = np.full(n, uniform)
    pieces = [slice(k, k + 500) for k in range(0, m, 500)]
    for piece in pieces:
        below += np.exp(cdist(moved[piece], fixed, "sqeuclidean") * (-0.5 / variance)).sum(axis=0)
    below[below == 0.0] = np.inf
    out = np.empty((m, 3, 3))
    for piece in pieces:
        p = np.exp(cdist(moved[piece], fixed, "sqeuclidean") * (-0.5 / variance)) / below
        y = moved[piece]
        soft = p @ columns
        for number, (a, b) in enumerate(_PAIRS):
            spread = (
                soft[:, 4 + number]
                - soft[:, 1 + a] * y[:, b]
                - soft[:, 1 + b] * y[:, a]
                + soft[:, 0] * y[:, a] * y[:, b]
            )
            out[piece, a, b] = out[piece, b, a] = (p.sum(axis=1) * (a == b) - spread / variance) / variance
    values, vectors = np.linalg.eigh(out)
    return np.asarray((vectors * np.maximum(values, 0.0)[:, None, :]) @ vectors.transpose(0, 2, 1))


_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


def _pose_covariance(arms: Array, information: Array) -> Array:
    """(6, 6) of (translation, rotation vector); what nothing is known of is taken as 30 mm, or a radian."""
    h = np.diag([1.0 / 900.0] * 3 + [1.0] * 3)
    for arm, known in zip(arms, information, strict=True):
        x, y, z = arm
        row = np.hstack([np.eye(3), [[0.0, z, -y], [-z, 0.0, x], [y, -x, 0.0]]])
        h += row.T @ known @ row
    return np.asarray(np.linalg.inv(h))


def _silent(share: float, text: str) -> None:
    """Nobody wants to know."""


class _Matches:
    """Soft matches of one pair of sets; its buffers are allocated once."""

    def __init__(self, fixed: Array, count: int, outliers: float, volume_mm3: float) -> None:
        self._fixed = np.ascontiguousarray(fixed.T, np.float32)
        self._density = outliers / (1.0 - outliers) * count / volume_mm3
        self._sums = np.empty((BLOCKS, 4, count), np.float32)
        self._likelihood = np.empty(BLOCKS)
        self._out = np.empty((4, count))
        self.at_fixed = np.empty(len(fixed))

    def uniform(self, variance: float) -> float:
        """The part of the denominator that belongs to no moving point."""
        return float((2.0 * math.pi * variance) ** 1.5 * self._density)

    def __call__(self, moved: Array, variance: float) -> tuple[Array, Array, float]:
        """``P1`` (m,), ``P X`` (m, 3), and the negative logarithm of the likelihood."""
        n = len(self.at_fixed)
        uniform = self.uniform(variance)
        soft_matches(
            self._fixed, np.ascontiguousarray(moved.T, np.float32), variance, uniform,
            self._sums, self.at_fixed, self._likelihood, self._out,
        )  # fmt: skip
        lost = -float(self._likelihood.sum()) + 1.5 * n * math.log(variance)
        return self._out[3].copy(), self._out[:3].T.copy(), lost


def register_drift(
    fixed_ras: ArrayLike,
    moving: ArrayLike,
    *,
    initial: Rigid,
    rigid: bool = True,
    outliers: float = 0.1,
    reach_mm: float = 30.0,
    motion_mm: float = 10.0,
    start_mm: float | None = None,
    volume_mm3: float | None = None,
    most_iterations: int = MOST_ITERATIONS,
    rank: int | None = None,
    progress: Progress | None = None,
) -> PointDrift:
    """Bring points without partners onto others.

    Parameters
    ----------
    fixed_ras, moving : (n, 3), (m, 3) mm
    initial : Rigid
        Where to start, moving to fixed.
    rigid : bool
        Rotation and translation only; else a displacement of its own for every point as well.
    outliers : float
        Share of the fixed points that belong to nothing, 0 to below 1.
    reach_mm, motion_mm : float
        Of the displacement: how far apart points move alike, and its standard deviation before anything is seen.
    start_mm : float, optional
        Deviation of the mixture at the start; from all distances when omitted. Small: only what is near counts.
    volume_mm3 : float, optional
        Where outliers may lie; the box around the fixed points when omitted. (The paper, and pycpd, take as many mm³ as
        there are points: outliers then win against partners a few mm away.)
    most_iterations : int
    rank : int, optional
        Eigenvalues of the kernel that are kept; all of up to `FULL_RANK_POINTS`, else `RANK`, when omitted.
    progress : callable, optional
        Called with the share done, 0 to 1, and what comes next; raise in it to cancel.

    Raises
    ------
    ImageRegistrationError
        Too few or too many points, values that are not finite, points on a line, a parameter out of range.
    """
    fixed, source = Surface.of(fixed_ras, what="fixed set").points, Surface.of(moving, what="moving set").points
    for what, points in (("fixed", fixed), ("moving", source)):
        if len(points) > MOST_POINTS:
            raise ImageRegistrationError(
                f"the {what} set has {len(points)} points, at most {MOST_POINTS} can drift; thin it out"
            )
    if not 0.0 <= outliers < 1.0:
        raise ImageRegistrationError(f"the share of outliers is {outliers:g}, it must lie from 0 to below 1")
    for name, value in (
        ("reach_mm", reach_mm),
        ("motion_mm", motion_mm),
        ("start_mm", 1.0 if start_mm is None else start_mm),
    ):
        if not (math.isfinite(value) and value > 0.0):
            raise ImageRegistrationError(f"{name} is {value:g}, it must be positive and finite")
    tell: Progress = progress or _silent
    middle = fixed.mean(axis=0)
    x, y = fixed - middle, initial.apply(source) - middle
    box = float(np.prod(np.maximum(np.ptp(x, axis=0), 1.0)))
    matches = _Matches(x, len(y), outliers, box if volume_mm3 is None else volume_mm3)
    variance = start_mm**2 if start_mm else _first_variance(x, y)
    basis = None if rigid else _basis(y, reach_mm, rank)
    pose, weights, moved = np.eye(4), np.zeros_like(y), y.copy()
    least = 1e-10 * float((x**2).sum(axis=1).mean())
    before, iterations, rested = math.inf, 0, False
    for iterations in range(1, most_iterations + 1):
        tell(min(0.9, iterations / 80.0), "Drifting")
        p1, px, lost = matches(moved, variance)
        whole = float(p1.sum())
        if whole < 1e-6:
            raise ImageRegistrationError("no fixed point lies near any moving one; give a start (or a wider one)")
        if basis is None:
            seen = p1 > 1e-12
            pose = fit_rigid(px[seen] / p1[seen, None], y[seen], p1[seen])
            moved = y @ pose[:3, :3].T + pose[:3, 3]
        else:
            weights = basis.solve(p1, px - p1[:, None] * y, variance / motion_mm**2)
            moved = y + basis.times(weights)
            lost += 0.5 / motion_mm**2 * float((weights * basis.times(weights)).sum())
        square = float(matches.at_fixed @ (x**2).sum(axis=1)) - 2.0 * float((px * moved).sum())
        square += float(p1 @ (moved**2).sum(axis=1))
        variance = max(square / (3.0 * whole), least)
        if abs(before - lost) <= REST_SHARE * abs(lost) or variance <= least:
            rested = True
            break
        before = lost
    p1, _, _ = matches(moved, variance)
    if basis is not None:
        # What lies outside the kept eigenvectors moves nothing here, and must not between the points either.
        weights = basis.q @ (basis.q.T @ weights)
    tell(0.95, "Estimating the error")
    # Points closer than the fixed ones lie to each other are not told apart, however small the mixture has become.
    blurred = max(variance, _spacing_mm(x) ** 2)
    information = _information(x, moved, blurred, matches.uniform(blurred))
    return _result(fixed, source, initial, y, middle, pose, weights, moved, p1, variance, basis, reach_mm, motion_mm,
                   iterations, rested, float(matches.at_fixed.mean()), information)  # fmt: skip


def _first_variance(x: Array, y: Array) -> float:
    """Mean squared distance of all pairs, per axis."""
    square = (x**2).sum() / len(x) + (y**2).sum() / len(y) - 2.0 * float(x.mean(axis=0) @ y.mean(axis=0))
    return float(square) / 3.0


def _basis(points: Array, reach_mm: float, rank: int | None) -> _Basis:
    kernel = _kernel(points, points, reach_mm)
    n = len(points)
    kept = min(n, (n if n <= FULL_RANK_POINTS else RANK) if rank is None else rank)
    if n <= FULL_RANK_POINTS or kept * 4 > n:
        s, q = np.linalg.eigh(kernel)
    else:
        # The range by random vectors and two powers (Halko, Martinsson and Tropp 2011, SIAM Rev. 53:217).
        probe = kernel @ np.random.default_rng(0).normal(size=(n, kept + 10))
        for _ in range(2):
            probe = kernel @ np.linalg.qr(probe)[0]
        basis = np.linalg.qr(probe)[0]
        s, small = np.linalg.eigh(basis.T @ kernel @ basis)
        q = basis @ small
    s, q = s[::-1][:kept], q[:, ::-1][:, :kept]
    real = s > 1e-9 * s[0]
    return _Basis(np.ascontiguousarray(q[:, real]), s[real])


def _jacobians(points: Array, centres: Array, weights: Array, reach_mm: float) -> Array:
    """(n,) determinants of the derivative of ``x + G(x) W``."""
    kernel = _kernel(points, centres, reach_mm) / -(reach_mm**2)
    # d/dx_b of sum_k g(x, y_k) W_ka = sum_k g_k (x - y_k)_b W_ka
    whole = np.einsum("nk,ka,nb->nab", kernel, weights, points, optimize=True)
    part = np.einsum("nk,ka,kb->nab", kernel, weights, centres, optimize=True)
    return np.asarray(np.linalg.det(np.eye(3) + whole - part))


def _spacing_mm(points: Array) -> float:
    """Distance of neighbours, the upper tenth."""
    return float(np.percentile(cKDTree(points).query(points, k=2)[0][:, 1], 90))


def _median_distance(fixed: Array, moved: Array) -> float:
    return float(np.median(cKDTree(fixed).query(moved)[0]))


def _result(
    fixed: Array, source: Array, initial: Rigid, placed: Array, middle: Array, pose: Array, weights: Array,
    moved: Array, seen: Array, variance: float, basis: _Basis | None, reach_mm: float, motion_mm: float,
    iterations: int, rested: bool, matched: float, information: Array,
) -> PointDrift:  # fmt: skip
    to, back = np.eye(4), np.eye(4)
    to[:3, 3], back[:3, 3] = middle, -middle
    transform = Rigid.from_matrix(to @ pose @ back @ initial.matrix, initial.name)
    rigid = basis is None
    volumes = np.ones(1) if rigid else _jacobians(placed, placed, weights, reach_mm)
    folded = float((volumes <= 0.0).mean())
    sigma = math.sqrt(variance)
    found = float((seen > 0.05 * seen.mean()).mean())
    wrong, doubts = [], []
    share = f"{matched:.0%} of the fixed and {found:.0%} of the moving points have a partner"
    if min(matched, found) < LEAST_MATCHED:
        wrong.append(f"{share} (at least {LEAST_MATCHED:.0%})")
    elif min(matched, found) < GOOD_MATCHED:
        doubts.append(f"{share} (good from {GOOD_MATCHED:.0%})")
    apart = f"partners are {sigma:.1f} mm apart per axis"
    if sigma > MOST_SIGMA_MM:
        wrong.append(f"{apart} (at most {MOST_SIGMA_MM:g} mm)")
    elif sigma > GOOD_SIGMA_MM:
        doubts.append(f"{apart} (good up to {GOOD_SIGMA_MM:g} mm)")
    if folded > 0.0:
        doubts.append(f"the displacement folds space at {folded:.1%} of the points; give it a longer reach")
    if wrong:
        verdict, reasons = Verdict.IMPLAUSIBLE, (*wrong, *doubts)
    elif not rested:
        verdict, reasons = Verdict.NOT_CONVERGED, (f"not at rest after {iterations} steps", *doubts)
    else:
        verdict, reasons = (Verdict.DOUBTFUL if doubts else Verdict.GOOD), tuple(doubts)
    after = moved + middle
    if basis is None:
        covariance = _pose_covariance(moved - moved.mean(axis=0), information)
    else:
        k = len(basis.s)
        precision = np.einsum("ma,mxy,mb->axby", basis.q, information, basis.q, optimize=True).reshape(3 * k, 3 * k)
        covariance = np.linalg.inv(precision + np.diag(np.repeat(1.0 / (basis.s * motion_mm**2), 3)))
    return PointDrift(
        moved_ras=after, transform=transform, rigid=rigid, iterations=iterations, sigma_mm=sigma,
        distance_before_mm=_median_distance(fixed, initial.apply(source)),
        distance_after_mm=_median_distance(fixed, after), matched=matched, folded_fraction=folded,
        jacobian_min=float(volumes.min()), jacobian_max=float(volumes.max()), verdict=verdict, reasons=reasons,
        _centres=after if rigid else placed + middle, _weights=weights, _covariance=covariance,
        _basis=basis, _reach_mm=reach_mm, _motion_mm=motion_mm, _dof=max(float(seen.sum()) - 6.0, 1.0),
    )  # fmt: skip
