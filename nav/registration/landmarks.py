"""Rigid registration of paired landmarks: closed form, with its own error estimate.

Sources: the fit is Horn/Arun/Umeyama's singular value solution without scale (Umeyama 1991, IEEE TPAMI 13:376). The
error follows Danilchenko & Fitzpatrick 2011 (IEEE TMI 30:679) to first order, which for equal isotropic errors is
Fitzpatrick, West & Maurer 1998 (IEEE TMI 17:694).

Error model. The localisation error of landmark i (touching it, and placing it in the CT) has covariance ``k S_i`` with
``S_i = prior_rms²/3 · I + C_i``: the prior that a person states, plus the covariance of the measured position, where
known. The common scale k is estimated from both the prior (worth ``prior_dof`` degrees of freedom around 1) and the
residuals of the fit (worth ``3N − 6``): three or four landmarks say little about their own error, ten say a lot.
A small residual alone never makes a registration good: FRE and TRE are uncorrelated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from nav.geometry.frames import TransformName
from nav.geometry.rigid import Rigid
from nav.registration.error_distribution import radius_of_share

__all__ = [
    "DUPLICATE_MM",
    "MIN_SPREAD_MM",
    "LandmarkRegistration",
    "OrderWarning",
    "RegistrationError",
    "fit_rigid",
    "fitzpatrick_tre_rms_mm",
    "landmark_covariance",
    "moved_covariance",
    "point_covariance",
    "point_jacobian",
    "register_landmarks",
]

Array = NDArray[np.float64]

#: Landmarks whose rms distance from their best line is below this leave the rotation about that line undetermined.
MIN_SPREAD_MM = 5.0
#: Two landmarks closer than this are taken as one that was touched twice.
DUPLICATE_MM = 1.0


class RegistrationError(ValueError):
    """Landmarks that cannot be registered; the message names what is wrong, its value and its limit."""


@dataclass(frozen=True, slots=True)
class OrderWarning:
    """Another assignment of the touched points to the landmarks fits much better.

    Attributes
    ----------
    kind : str
        ``swapped``: another order fits; ``mirrored``: only a mirror image fits (a flipped axis).
    touched_as : tuple of (str, str)
        (label given, label that fits) of every landmark concerned; empty for ``mirrored``.
    fre_given_mm, fre_best_mm : float
        Fit of the given and of the better assignment.
    """

    kind: str
    touched_as: tuple[tuple[str, str], ...]
    fre_given_mm: float
    fre_best_mm: float

    @property
    def text(self) -> str:
        """Condition and action, for the person."""
        fit = f"FRE {self.fre_given_mm:.1f} mm, {self.fre_best_mm:.1f} mm"
        if self.kind == "mirrored":
            return f"Landmarks fit only as a mirror image ({fit} mirrored): check left/right and the axes of the files"
        pairs = ", ".join(f"{given} is probably {fits}" for given, fits in self.touched_as)
        return f"Landmarks look swapped ({fit} reordered): {pairs}. Collect them again in order"


@dataclass(frozen=True, slots=True, eq=False)
class LandmarkRegistration:
    """A rigid registration from paired landmarks.

    Attributes
    ----------
    transform : Rigid
        From the moving to the fixed frame (``ReferenceToRas``).
    labels : tuple of str
    residuals_mm : (n,) float64
        Distance of every mapped landmark from its fixed partner, also for the excluded ones.
    used : (n,) bool
    weights : (n,) float64
        As used in the fit, mean 1 over the used ones, 0 for the others.
    fre_rms_mm : float
        Root mean square residual of the used ones.
    fle_rms_mm : float
        Estimated 3-D rms localisation error of one landmark, from prior and residuals together.
    covariance : (6, 6) float64
        Of (translation mm, rotation vector rad): left perturbation in the ``to`` frame, about its origin.
    dof : float
        Degrees of freedom behind the scale of ``covariance``: prior plus residuals.
    order_warning : OrderWarning or None
    order_ambiguous : bool
        True when another order fits as well as the given one (a symmetric set): a swap could not be noticed.
    """

    transform: Rigid
    labels: tuple[str, ...]
    residuals_mm: Array
    used: NDArray[np.bool_]
    weights: Array
    fre_rms_mm: float
    fle_rms_mm: float
    covariance: Array
    dof: float
    order_warning: OrderWarning | None
    order_ambiguous: bool

    def covariance_at(self, point: ArrayLike) -> Array:
        """(3, 3) covariance in mm² of the error at ``point``, (3,) mm in the ``to`` frame."""
        return point_covariance(self.covariance, point)

    def tre_rms_at(self, point: ArrayLike) -> float:
        """Predicted rms target registration error in mm at ``point``, (3,) mm in the ``to`` frame."""
        return math.sqrt(float(np.trace(self.covariance_at(point))))

    def radius95_at(self, point: ArrayLike) -> float:
        """Radius in mm around ``point`` that holds 95 % of the registration errors, the estimated FLE included."""
        return radius_of_share(self.covariance_at(point), 0.95, self.dof)


def _skew(v: Array) -> Array:
    return np.array([[0.0, -v[2], v[1]], [v[2], 0.0, -v[0]], [-v[1], v[0], 0.0]])


def point_jacobian(arms: Array) -> Array:
    """(…, 3, 6) derivative of points by a translation and a rotation vector about a centre; ``arms`` (…, 3) from it."""
    out = np.zeros((*arms.shape[:-1], 3, 6))
    out[..., :, :3] = np.eye(3)
    x, y, z = arms[..., 0], arms[..., 1], arms[..., 2]
    out[..., 0, 4], out[..., 0, 5] = z, -y
    out[..., 1, 3], out[..., 1, 5] = -z, x
    out[..., 2, 3], out[..., 2, 4] = y, -x
    return out


def point_covariance(covariance: ArrayLike, point: ArrayLike) -> Array:
    """(3, 3) covariance of a mapped point from a (6, 6) left-perturbation covariance in the ``to`` frame."""
    jacobian = point_jacobian(np.asarray(point, dtype=np.float64))
    return np.asarray(jacobian @ np.asarray(covariance, dtype=np.float64) @ jacobian.T)


def fit_rigid(fixed: Array, moving: Array, weights: Array, *, mirror: bool = False) -> Array:
    """Weighted least squares (4, 4) matrix from ``moving`` to ``fixed``, both (n, 3) mm; ``mirror``: a reflection."""
    w = weights / weights.sum()
    cf, cm = w @ fixed, w @ moving
    u, _, vt = np.linalg.svd((fixed - cf).T @ ((moving - cm) * w[:, None]))
    wanted = -1.0 if mirror else 1.0
    # Umeyama: the smallest singular direction takes the sign that makes the result a rotation and not a reflection.
    d = np.array([1.0, 1.0, wanted * np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    matrix = np.eye(4)
    matrix[:3, :3] = (u * d) @ vt
    matrix[:3, 3] = cf - matrix[:3, :3] @ cm
    return matrix


def _propagate(points: Array, sigmas: Array, weights: Array) -> tuple[Array, Array, float, float]:
    """First-order error of the weighted fit.

    Returns the (6, 6) covariance about the centroid of ``points``, that centroid, and the expected weighted sum of
    squared residuals with its effective degrees of freedom (Satterthwaite; 3N − 6 when all errors are equal).
    """
    n = len(points)
    centre = points.mean(axis=0)
    a = point_jacobian(points - centre).reshape(-1, 6)
    w = np.repeat(weights, 3)
    gain = np.linalg.solve(a.T @ (w[:, None] * a), a.T * w)
    sigma = np.zeros((3 * n, 3 * n))
    for i in range(n):
        sigma[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] = sigmas[i]
    covariance = gain @ sigma @ gain.T
    left = np.sqrt(w)[:, None] * (np.eye(3 * n) - a @ gain)
    b = left @ sigma @ left.T
    expected = float(np.trace(b))
    return covariance, centre, expected, expected * expected / float(np.sum(b * b))


def moved_covariance(covariance: ArrayLike, arm: ArrayLike) -> Array:
    """(6, 6) covariance of (translation, rotation vector) about another centre: ``t_new = t_old + arm × ω``.

    Parameters
    ----------
    covariance : (6, 6) float64
        Translation mm, rotation vector rad, about the old centre.
    arm : (3,) float64
        From the new centre to the old one, mm.
    """
    move = np.eye(6)
    move[:3, 3:] = _skew(np.asarray(arm, dtype=np.float64))
    return np.asarray(move @ np.asarray(covariance, dtype=np.float64) @ move.T)


def landmark_covariance(points: ArrayLike, fle_covariances: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """(6, 6) covariance of a landmark fit with known localisation errors.

    Parameters
    ----------
    points : (n, 3) float64
        Landmarks in the ``to`` frame, mm.
    fle_covariances : (3, 3) or (n, 3, 3) float64
        Localisation error of each landmark, mm², in the ``to`` frame.
    weights : (n,) float64, optional
        Of the fit; equal when omitted.
    """
    p = np.asarray(points, dtype=np.float64)
    sigmas = np.broadcast_to(np.asarray(fle_covariances, dtype=np.float64), (len(p), 3, 3))
    w = np.ones(len(p)) if weights is None else np.asarray(weights, dtype=np.float64)
    covariance, centre, _, _ = _propagate(p, np.asarray(sigmas), w)
    return moved_covariance(covariance, centre)


def fitzpatrick_tre_rms_mm(points: ArrayLike, fle_rms_mm: float, target: ArrayLike) -> float:
    """TRE rms at ``target`` for equal isotropic errors: FLE²/N (1 + ⅓ Σ d_k²/f_k²) (Fitzpatrick 1998)."""
    p = np.asarray(points, dtype=np.float64)
    centred = p - p.mean(axis=0)
    axes = np.linalg.svd(centred)[2]
    f2 = [float(np.mean(np.sum(np.delete(centred @ axes.T, k, axis=1) ** 2, axis=1))) for k in range(3)]
    t = axes @ (np.asarray(target, dtype=np.float64) - p.mean(axis=0))
    ratio = sum(float(t @ t - t[k] ** 2) / f2[k] for k in range(3))
    return float(fle_rms_mm) * math.sqrt((1.0 + ratio / 3.0) / len(p))


def register_landmarks(
    fixed_ras: ArrayLike,
    moving: ArrayLike,
    *,
    name: TransformName | str,
    labels: Sequence[str],
    used: Sequence[bool] | NDArray[np.bool_] | None = None,
    weights: ArrayLike | None = None,
    prior_rms_mm: float = 1.0,
    prior_dof: float = 6.0,
    moving_covariances: ArrayLike | None = None,
) -> LandmarkRegistration:
    """Register landmarks touched in the moving frame to their partners in the fixed frame.

    Parameters
    ----------
    fixed_ras : (n, 3) float64
        Landmarks in the ``to`` frame of ``name`` (RAS mm).
    moving : (n, 3) float64
        The same landmarks, same order, in the ``from`` frame, mm.
    name : TransformName or str
        Such as ``ReferenceToRas``.
    labels : sequence of str
        Names for messages; n of them.
    used : sequence of bool, optional
        Which take part in the fit (all when omitted). Residuals are given for the others too.
    weights : (n,) float64, optional
        Weights of the fit; when omitted, the inverse of each landmark's expected error variance.
    prior_rms_mm : float
        Expected 3-D rms localisation error of one landmark before any residual is seen.
    prior_dof : float
        How far the prior is trusted, in degrees of freedom: its relative standard deviation is 1/sqrt(2 prior_dof),
        29 % for the default of 6.
    moving_covariances : (n, 3, 3) float64, optional
        Known covariance of each measured position, mm² in the moving frame (tracker noise), added to the prior.

    Raises
    ------
    RegistrationError
        Fewer than three used landmarks, values that are not finite, duplicates, or landmarks on a line.
    """
    tname = TransformName.parse(name) if isinstance(name, str) else name
    f = np.array(fixed_ras, dtype=np.float64)
    m = np.array(moving, dtype=np.float64)
    names = tuple(labels)
    n = len(names)
    for what, points in (("fixed", f), ("moving", m)):
        if points.shape != (n, 3):
            raise RegistrationError(f"{tname}: {what} landmarks have shape {points.shape}, expected ({n}, 3)")
    mask = np.ones(n, dtype=np.bool_) if used is None else np.array(used, dtype=np.bool_)
    if mask.shape != (n,):
        raise RegistrationError(f"{tname}: 'used' has shape {mask.shape}, expected ({n},)")
    if not (prior_rms_mm > 0.0 and math.isfinite(prior_rms_mm) and prior_dof > 0.0 and math.isfinite(prior_dof)):
        raise RegistrationError(
            f"{tname}: prior_rms_mm {prior_rms_mm:g} and prior_dof {prior_dof:g} must be positive and finite"
        )
    _check_points(tname, f, m, names, mask)

    sigmas = np.tile(np.eye(3) * prior_rms_mm**2 / 3.0, (n, 1, 1))
    w_all = _check_weights(tname, weights, names, mask)
    covs = _check_covariances(tname, moving_covariances, n)
    if covs is not None:
        # The covariance turns with the fit; a first fit with equal weights gives the rotation (first order).
        r = fit_rigid(f[mask], m[mask], np.ones(int(mask.sum())))[:3, :3]
        sigmas = sigmas + r @ covs @ r.T
    if w_all is None:
        w_all = 3.0 / np.trace(sigmas, axis1=1, axis2=2)
    w_all = np.where(mask, w_all, 0.0)
    w_all = w_all / w_all[mask].mean()

    fu, mu, wu, su = f[mask], m[mask], w_all[mask], sigmas[mask]
    matrix = fit_rigid(fu, mu, wu)
    transform = Rigid.from_matrix(matrix, tname)
    mapped = transform.apply(m)
    residuals = np.linalg.norm(mapped - f, axis=1)
    fre = math.sqrt(float(np.mean(residuals[mask] ** 2)))

    covariance, centre, expected, residual_dof = _propagate(mapped[mask], su, wu)
    scale_seen = float(wu @ residuals[mask] ** 2) / expected
    dof = prior_dof + residual_dof
    scale = (prior_dof + residual_dof * scale_seen) / dof
    fle = math.sqrt(scale * float(np.mean(np.trace(su, axis1=1, axis2=2))))

    fre_expected = prior_rms_mm * math.sqrt(1.0 - 2.0 / len(fu))
    warning, ambiguous = _check_order(fu, mu, [s for s, u in zip(names, mask, strict=True) if u], fre_expected)
    out_covariance = scale * moved_covariance(covariance, centre)
    for array in (residuals, mask, w_all, out_covariance):
        array.setflags(write=False)
    return LandmarkRegistration(
        transform=transform,
        labels=names,
        residuals_mm=residuals,
        used=mask,
        weights=w_all,
        fre_rms_mm=fre,
        fle_rms_mm=fle,
        covariance=out_covariance,
        dof=dof,
        order_warning=warning,
        order_ambiguous=ambiguous,
    )


def _check_points(tname: TransformName, f: Array, m: Array, names: tuple[str, ...], mask: NDArray[np.bool_]) -> None:
    for what, points in (("fixed", f), ("moving", m)):
        bad = [names[i] for i in np.flatnonzero(~np.isfinite(points).all(axis=1))]
        if bad:
            raise RegistrationError(
                f"{tname}: {what} position of {', '.join(bad)} is not finite; clear or collect again"
            )
    count = int(mask.sum())
    if count < 3:
        raise RegistrationError(f"{tname}: {count} landmarks are used, at least 3 are needed; collect or include more")
    index = np.flatnonzero(mask)
    for what, points in (("fixed", f[mask]), ("moving", m[mask])):
        for a, b in combinations(range(count), 2):
            apart = float(np.linalg.norm(points[a] - points[b]))
            if apart < DUPLICATE_MM:
                raise RegistrationError(
                    f"{tname}: {what} landmarks {names[index[a]]} and {names[index[b]]} lie {apart:.2f} mm apart "
                    f"(limit {DUPLICATE_MM:g} mm): the same point twice? collect one of them again"
                )
        spread = float(np.linalg.svd(points - points.mean(axis=0), compute_uv=False)[1]) / math.sqrt(count)
        if spread < MIN_SPREAD_MM:
            raise RegistrationError(
                f"{tname}: the {what} landmarks lie on a line: rms distance from it {spread:.2f} mm, at least "
                f"{MIN_SPREAD_MM:g} mm are needed; add a landmark away from that line"
            )


def _check_weights(
    tname: TransformName, weights: ArrayLike | None, names: tuple[str, ...], mask: NDArray[np.bool_]
) -> Array | None:
    if weights is None:
        return None
    w = np.array(weights, dtype=np.float64)
    if w.shape != mask.shape:
        raise RegistrationError(f"{tname}: weights have shape {w.shape}, expected {mask.shape}")
    bad = [f"{names[i]} = {w[i]:g}" for i in np.flatnonzero(mask & ~(np.isfinite(w) & (w > 0.0)))]
    if bad:
        raise RegistrationError(f"{tname}: weights must be positive and finite: {', '.join(bad)}; exclude instead")
    return w


def _check_covariances(tname: TransformName, covariances: ArrayLike | None, n: int) -> Array | None:
    if covariances is None:
        return None
    c = np.array(covariances, dtype=np.float64)
    if c.shape != (n, 3, 3) or not np.isfinite(c).all():
        raise RegistrationError(f"{tname}: moving_covariances must be finite with shape ({n}, 3, 3), got {c.shape}")
    if n and np.linalg.eigvalsh(c).min() < -1e-9:
        raise RegistrationError(f"{tname}: a moving covariance has a negative eigenvalue")
    return c


def _fre(fixed: Array, moving: Array, *, mirror: bool = False) -> float:
    matrix = fit_rigid(fixed, moving, np.ones(len(fixed)), mirror=mirror)
    return math.sqrt(float(np.mean(np.sum((moving @ matrix[:3, :3].T + matrix[:3, 3] - fixed) ** 2, axis=1))))


def _check_order(
    fixed: Array, moving: Array, names: list[str], fre_expected_mm: float
) -> tuple[OrderWarning | None, bool]:
    """Compare the given assignment with every plausible other one.

    A rigid motion is fixed by three points: the three moving landmarks that span the largest triangle are tried on
    every ordered triple of fixed ones with similar sides, and the rest follows by optimal assignment. That finds any
    permutation at the cost of n³ comparisons instead of n!.

    A swap is reported when the given order fits worse than three times what is expected, and another fits at least
    twice as well. The set is ambiguous when another order fits within twice the expectation.
    """
    n = len(names)
    given = _fre(fixed, moving)
    tolerance = max(6.0 * fre_expected_mm, 5.0)
    best, best_order = math.inf, tuple(range(n))
    for order in _plausible_orders(fixed, moving, tolerance):
        if order != tuple(range(n)):
            fre = _fre(fixed[list(order)], moving)
            if fre < best:
                best, best_order = fre, order
    limit = 3.0 * fre_expected_mm
    if given > limit:
        mirrored = _fre(fixed, moving, mirror=True) if n > 3 else math.inf
        if mirrored < min(0.5 * given, best, limit):
            return OrderWarning("mirrored", (), given, mirrored), False
        if best < 0.5 * given and (best < limit or best < 0.2 * given):
            swaps = tuple((names[i], names[o]) for i, o in enumerate(best_order) if i != o)
            return OrderWarning("swapped", swaps, given, best), False
    return None, best < max(given, 2.0 * fre_expected_mm)


def _plausible_orders(fixed: Array, moving: Array, tolerance_mm: float) -> set[tuple[int, ...]]:
    """Orders of the fixed landmarks that the moving ones can be laid on: moving[i] on fixed[order[i]]."""
    n = len(fixed)

    def area(t: tuple[int, ...]) -> float:
        return float(np.linalg.norm(np.cross(moving[t[1]] - moving[t[0]], moving[t[2]] - moving[t[0]])))

    triangles: list[tuple[int, ...]] = list(combinations(range(n), 3))
    widest = max(triangles, key=area)
    anchor = list(widest)
    sides = np.array([np.linalg.norm(moving[anchor[a]] - moving[anchor[b]]) for a, b in ((0, 1), (1, 2), (2, 0))])
    distances = np.linalg.norm(fixed[:, None] - fixed[None], axis=2)
    triples = np.array(list(permutations(range(n), 3)))
    theirs = np.stack([distances[triples[:, a], triples[:, b]] for a, b in ((0, 1), (1, 2), (2, 0))], axis=1)
    orders: set[tuple[int, ...]] = set()
    for triple in triples[np.abs(theirs - sides).max(axis=1) < tolerance_mm]:
        matrix = fit_rigid(fixed[triple], moving[anchor], np.ones(3))
        mapped = moving @ matrix[:3, :3].T + matrix[:3, 3]
        cost = np.sum((mapped[:, None] - fixed[None]) ** 2, axis=2)
        orders.add(tuple(int(c) for c in linear_sum_assignment(cost)[1]))
    return orders
