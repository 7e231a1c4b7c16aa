"""A rigid start from the bifurcations of two vessel trees: triangles of equal sides, without a guess at the pose.

Three points fix a pose, and their distances do not depend on it. Triangles of both trees whose sorted sides agree are
matched, every match is a pose, and the pose that brings most points onto others is taken and fitted to all it matched.
Nothing is drawn by chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from nav.geometry.frames import TransformName
from nav.geometry.rigid import Rigid
from nav.registration.error_distribution import radius_of_share
from nav.registration.landmarks import fit_rigid, landmark_covariance, point_covariance
from nav.registration.verdict import ImageRegistrationError, Verdict

__all__ = ["MOST_BIFURCATIONS", "TreeMatch", "match_trees"]

Array = NDArray[np.float64]

#: More bifurcations make more triangles than are needed: give the largest ones.
MOST_BIFURCATIONS = 120
#: Triangles of one tree, the most telling of which are kept: with a long shortest side, and no two sides alike.
MOST_TRIANGLES = 3_000
#: Poses that are looked at.
MOST_POSES = 12_000
#: A side shorter than so many tolerances tells nothing of a rotation.
LEAST_SIDE_TOLERANCES = 4.0
#: Of the smaller tree, this share has to be matched; the best other pose may match so much of what the best one does.
GOOD_MATCHED, LEAST_MATCHED, GOOD_RIVALRY = 0.5, 0.25, 0.75
#: So many pairs make a pose that chance does not.
LEAST_PAIRS, GOOD_PAIRS = 4, 6


@dataclass(frozen=True, slots=True, eq=False)
class TreeMatch:
    """A pose from bifurcations.

    Attributes
    ----------
    transform : Rigid
        Moving to fixed, RAS mm.
    pairs : (p, 2) intp
        Numbers of the fixed and of the moving bifurcation of every pair.
    residual_mm : float
        Root mean square distance of the pairs.
    rivalry : float
        Pairs of the best pose that is another one, over those of this.
    covariance : (6, 6) float64
        Of (translation mm, rotation vector rad) about the origin, fixed frame.
    verdict : Verdict
    reasons : tuple of str
    """

    transform: Rigid
    pairs: NDArray[np.intp]
    residual_mm: float
    rivalry: float
    covariance: Array
    verdict: Verdict
    reasons: tuple[str, ...]

    def expected_error_mm(self, points_ras: ArrayLike, share: float = 0.95) -> Array:
        """(n,) radius, mm, that holds ``share`` of the errors at points, (n, 3) RAS mm in the fixed frame."""
        dof = max(3.0 * len(self.pairs) - 6.0, 1.0)
        points = np.atleast_2d(np.asarray(points_ras, np.float64))
        return np.array([radius_of_share(point_covariance(self.covariance, p), share, dof) for p in points])


def _triangles(points: Array, least_mm: float) -> tuple[NDArray[np.intp], Array]:
    """(t, 3) corners, each opposite to its side, and (t, 3) sides, the longest first; the most telling first."""
    corners = np.array(list(combinations(range(len(points)), 3)), np.intp)
    apart = cdist(points, points)
    sides = np.stack([apart[corners[:, 1], corners[:, 2]], apart[corners[:, 0], corners[:, 2]],
                      apart[corners[:, 0], corners[:, 1]]], axis=1)  # fmt: skip
    order = np.argsort(-sides, axis=1, kind="stable")
    corners, sides = np.take_along_axis(corners, order, 1), np.take_along_axis(sides, order, 1)
    # On a line, the pose could turn about it: the height over the longest side has to be long too.
    half = sides.sum(axis=1) / 2.0
    area = np.sqrt(np.maximum(half * (half - sides[:, 0]) * (half - sides[:, 1]) * (half - sides[:, 2]), 0.0))
    height = 2.0 * area / np.maximum(sides[:, 0], 1e-9)
    used = np.flatnonzero(height >= least_mm)
    used = used[np.argsort(-height[used], kind="stable")][:MOST_TRIANGLES]
    return corners[used], sides[used]


def _poses(fixed: Array, moving: Array) -> Array:
    """(p, 3, 4): from triangles (p, 3, 3), by their frames (longest side, and the plane)."""

    def frames(corners: Array) -> Array:
        u = corners[:, 1] - corners[:, 2]
        w = np.cross(u, corners[:, 0] - corners[:, 2])
        u /= np.linalg.norm(u, axis=1)[:, None]
        w /= np.linalg.norm(w, axis=1)[:, None]
        return np.stack([u, np.cross(w, u), w], axis=2)

    turn = frames(fixed) @ frames(moving).transpose(0, 2, 1)
    shift = fixed.mean(axis=1) - np.einsum("pab,pb->pa", turn, moving.mean(axis=1))
    return np.concatenate([turn, shift[:, :, None]], axis=2)


def _pairs(fixed: Array, moved: Array, tolerance_mm: float) -> NDArray[np.intp]:
    """(p, 2): one to one, within the tolerance, of the least sum of squares."""
    apart = cdist(fixed, moved)
    rows, columns = linear_sum_assignment(np.minimum(apart, 2.0 * tolerance_mm) ** 2)
    near = apart[rows, columns] <= tolerance_mm
    return np.stack([rows[near], columns[near]], axis=1)


def match_trees(
    fixed_ras: ArrayLike,
    moving: ArrayLike,
    *,
    name: TransformName | str,
    tolerance_mm: float = 3.0,
) -> TreeMatch:
    """Bring the bifurcations of one vessel tree onto those of another, wherever both lie.

    Parameters
    ----------
    fixed_ras, moving : (n, 3), (m, 3) mm
        Bifurcations; some may be missing on either side.
    name : TransformName or str
        What the transform maps, such as ``MovingToFixed``.
    tolerance_mm : float
        How far off a bifurcation may lie.

    Raises
    ------
    ImageRegistrationError
        Fewer than `LEAST_PAIRS` or more than `MOST_BIFURCATIONS` on one side, values that are not finite, or no two
        triangles that agree.
    """
    tname = TransformName.parse(name) if isinstance(name, str) else name
    f, m = np.asarray(fixed_ras, np.float64), np.asarray(moving, np.float64)
    for what, points in (("fixed", f), ("moving", m)):
        if points.ndim != 2 or points.shape[1] != 3:
            raise ImageRegistrationError(f"the {what} bifurcations have shape {points.shape}, expected (n, 3)")
        if not LEAST_PAIRS <= len(points) <= MOST_BIFURCATIONS:
            raise ImageRegistrationError(
                f"the {what} tree has {len(points)} bifurcations, {LEAST_PAIRS} to {MOST_BIFURCATIONS} are needed"
            )
        if not np.isfinite(points).all():
            raise ImageRegistrationError(f"the {what} tree has bifurcations that are not finite; leave them out")
    if not (math.isfinite(tolerance_mm) and tolerance_mm > 0.0):
        raise ImageRegistrationError(f"tolerance_mm is {tolerance_mm:g}, it must be positive and finite")
    least = LEAST_SIDE_TOLERANCES * tolerance_mm
    (fc, fs), (mc, ms) = _triangles(f, least), _triangles(m, least)
    nothing = f"no three bifurcations of both trees agree within {tolerance_mm:g} mm: other patients, or more tolerance"
    if len(fc) == 0 or len(mc) == 0:
        raise ImageRegistrationError(nothing)
    found = cKDTree(fs).query_ball_point(ms, tolerance_mm, p=np.inf, return_sorted=True)
    matches = np.array([(i, j) for j, near in enumerate(found) for i in near], np.intp).reshape(-1, 2)
    if len(matches) == 0:
        raise ImageRegistrationError(nothing)
    # The nearest sides first, should there be too many.
    if len(matches) > MOST_POSES:
        off = np.abs(fs[matches[:, 0]] - ms[matches[:, 1]]).max(axis=1)
        matches = matches[np.argsort(off, kind="stable")[:MOST_POSES]]
    poses = _poses(f[fc[matches[:, 0]]], m[mc[matches[:, 1]]])
    tree = cKDTree(f)
    counts = np.empty(len(poses))
    for begin in range(0, len(poses), 2000):
        part = poses[begin : begin + 2000]
        moved = np.einsum("pab,nb->pna", part[:, :, :3], m) + part[:, None, :, 3]
        apart, _ = tree.query(moved, distance_upper_bound=tolerance_mm)
        # How many, and how well: a pair on the spot counts twice one at the tolerance.
        counts[begin : begin + 2000] = np.where(np.isfinite(apart), 1.0 - 0.5 * apart / tolerance_mm, 0.0).sum(axis=1)
    order = np.argsort(-counts, kind="stable")[:100]
    fits = [_refined(f, m, poses[n], tolerance_mm) for n in order]
    fits.sort(key=lambda fit: (-len(fit[1]), fit[2]))
    matrix, pairs, residual = fits[0]
    size = float(np.sqrt(((m - m.mean(axis=0)) ** 2).sum(axis=1).mean()))
    others = []
    for other, other_pairs, _ in fits[1:]:
        apart = m @ (other - matrix)[:3, :3].T + (other - matrix)[:3, 3]
        if math.sqrt(float((apart**2).sum(axis=1).mean())) > max(0.2 * size, 2.0 * tolerance_mm):
            others.append(len(other_pairs))
    rivalry = max(others, default=0) / max(len(pairs), 1)
    if len(pairs) < 3:
        raise ImageRegistrationError(nothing)
    sigma = max(residual * math.sqrt(len(pairs) / max(len(pairs) - 2.0, 1.0)), 0.5 * tolerance_mm)
    covariance = landmark_covariance(f[pairs[:, 0]], np.eye(3) * sigma**2 / 3.0)
    verdict, reasons = _judged(len(pairs), min(len(f), len(m)), rivalry)
    return TreeMatch(Rigid.from_matrix(matrix, tname), pairs, residual, rivalry, covariance, verdict, reasons)


def _refined(f: Array, m: Array, pose: Array, tolerance_mm: float) -> tuple[Array, NDArray[np.intp], float]:
    """Fitted to what it matches until that stays the same."""
    matrix = np.vstack([pose, [0.0, 0.0, 0.0, 1.0]])
    pairs = np.zeros((0, 2), np.intp)
    for _ in range(10):
        now = _pairs(f, m @ matrix[:3, :3].T + matrix[:3, 3], tolerance_mm)
        if np.array_equal(now, pairs) or len(now) < 3:
            break
        pairs = now
        matrix = fit_rigid(f[pairs[:, 0]], m[pairs[:, 1]], np.ones(len(pairs)))
    if len(pairs) < 3:
        return matrix, pairs, math.inf
    off = m[pairs[:, 1]] @ matrix[:3, :3].T + matrix[:3, 3] - f[pairs[:, 0]]
    return matrix, pairs, float(np.sqrt((off**2).sum(axis=1).mean()))


def _judged(pairs: int, least: int, rivalry: float) -> tuple[Verdict, tuple[str, ...]]:
    wrong, doubts = [], []
    share = f"{pairs} of {least} bifurcations are matched"
    if pairs < LEAST_PAIRS or pairs < LEAST_MATCHED * least:
        wrong.append(f"{share} (at least {LEAST_PAIRS}, and {LEAST_MATCHED:.0%})")
    elif pairs < GOOD_PAIRS or pairs < GOOD_MATCHED * least:
        doubts.append(f"{share} (good from {GOOD_PAIRS}, and {GOOD_MATCHED:.0%})")
    if rivalry > GOOD_RIVALRY:
        doubts.append(f"another pose matches {rivalry:.0%} as many (good up to {GOOD_RIVALRY:.0%})")
    if wrong:
        return Verdict.IMPLAUSIBLE, (*wrong, *doubts)
    return (Verdict.DOUBTFUL if doubts else Verdict.GOOD), tuple(doubts)
