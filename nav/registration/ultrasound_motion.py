"""How far a rigid pose of ultrasound frames may be off, tissue motion included: from what parts of the image ask for.

Smooth motion of the tissue pulls the whole pose, and neither halves of the frames nor the slope at the optimum show it:
all of the image is explained best there. But parts of the image, each tried at shifts of its own, are explained better
elsewhere, and more so the more has moved.

So the shift of a part is data. That all of the image lies off by a pose, and tissue by a field on top,

    d(x) = J(x) θ + u(x),

is the model: θ normal with variance s², u a Gaussian process of variance a² per axis, alike over some length. What the
parts are explained by at each shift gives their likelihood, taken as normal by its moments (one sweep of expectation
propagation: Minka 2001; Rasmussen and Williams, "Gaussian processes for machine learning", 2006, section 3.6). Neither
a nor s is known: they are summed over, weighted by the marginal likelihood, and never taken as nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import block_diag

from nav.registration.landmarks import point_jacobian

__all__ = ["LENGTH_MM", "SHIFTS_MM", "SPACING_MM", "UnseenMotion", "unseen_motion"]

Array = NDArray[np.float64]

#: Shifts at which parts are tried, along each axis.
SPACING_MM, _MOST_MM = 3.0, 6.0
_LINE = np.arange(-_MOST_MM, _MOST_MM + 0.5 * SPACING_MM, SPACING_MM)
SHIFTS_MM: Array = np.stack(np.meshgrid(_LINE, _LINE, _LINE, indexing="ij"), axis=-1).reshape(-1, 3)
SHIFTS_MM.setflags(write=False)
#: Logarithm of the likelihood for each patch (by weight) that is explained all. Chosen on sweeps of known truth.
CONFIDENCE = 2.5
#: Motion is alike over this (sigma), mm: what is stated hardly depends on it (50 to 80 were tried).
LENGTH_MM = 70.0
#: Standard deviations that are looked at, mm, each as likely before: of motion per axis, and of the pose.
MOTION_MM, POSE_MM = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0), (0.5, 1.0, 2.0, 4.0, 8.0)
#: Least information of a part along any axis, 1/mm².
_LEAST = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class UnseenMotion:
    """Second moments of the error of a rigid pose, anywhere.

    Attributes
    ----------
    centre_ras : (3,) float64
        What the pose turns about, mm.
    places_ras : (r, 3) float64
        Middles of the parts, mm.
    motion_mm : float
        Motion of the tissue per axis, on top of the pose: root mean square over what is believed.
    by_parts : (3 r, 3 r) float64
        What the parts add to the second moment, by the likeness of a place with each of them, mm².
    by_both : (3 r, 6) float64
        The same for likeness and pose.
    by_pose : (6, 6) float64
        Second moments of the pose (translation mm, rotation vector rad) at ``centre_ras``.
    """

    centre_ras: Array
    places_ras: Array
    motion_mm: float
    by_parts: Array
    by_both: Array
    by_pose: Array

    def second_moment_at(self, points_ras: ArrayLike) -> Array:
        """(n, 3, 3) mean of the error's outer product, mm², at points of the CT, (n, 3) RAS mm."""
        points = np.atleast_2d(np.asarray(points_ras, np.float64))
        count = len(self.places_ras)
        near = _likeness(points, self.places_ras)
        turn = point_jacobian(points - self.centre_ras)
        by_parts = np.einsum("nr,rasb->nsab", near, self.by_parts.reshape(count, 3, count, 3))
        mixed = np.einsum("nr,rac->nac", near, self.by_both.reshape(count, 3, 6)) @ turn.transpose(0, 2, 1)
        return np.asarray(
            self.motion_mm**2 * np.eye(3)
            + np.einsum("nsab,ns->nab", by_parts, near)
            + mixed
            + mixed.transpose(0, 2, 1)
            + turn @ self.by_pose @ turn.transpose(0, 2, 1)
        )


def _likeness(one: Array, two: Array) -> Array:
    """(n, m) of motion at (n, 3) and at (m, 3) mm."""
    apart = ((one[:, None] - two[None]) ** 2).sum(axis=2)
    return np.asarray(np.exp(-0.5 * apart / LENGTH_MM**2))


def _asked(explained: Array) -> tuple[Array, Array]:
    """(r, 3, 3) information, 1/mm², and (r, 3) information times mean, of each part's shift.

    The moments of the likelihood over `SHIFTS_MM`, freed of those of the shifts themselves. A shift stands for the
    cell around it.
    """
    log = CONFIDENCE * explained
    share = np.exp(log - log.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    mean = share @ SHIFTS_MM
    cell = SPACING_MM**2 / 12.0 * np.eye(3)
    away = SHIFTS_MM[None] - mean[:, None]
    inverse = np.linalg.inv(np.einsum("rg,rgi,rgj->rij", share, away, away) + cell)
    values, axes = np.linalg.eigh(inverse - np.linalg.inv(SHIFTS_MM.T @ SHIFTS_MM / len(SHIFTS_MM) + cell))
    information = (axes * np.maximum(values, _LEAST)[:, None]) @ axes.transpose(0, 2, 1)
    return information, np.einsum("rij,rj->ri", inverse, mean)


def unseen_motion(explained: Array, places_ras: Array, weights: Array) -> UnseenMotion:
    """What parts of the image say of the pose that they were found at.

    Parameters
    ----------
    explained : (r, g) float64
        Sum over each part's patches of weight times share explained, it alone moved by each of the g `SHIFTS_MM`.
    places_ras : (r, 3) float64
        Middles of the parts in the CT, mm.
    weights : (r,) float64
        Of the parts; above 0.
    """
    count = len(places_ras)
    centre = weights @ places_ras / weights.sum()
    size = math.sqrt(float(weights @ ((places_ras - centre) ** 2).sum(axis=1) / weights.sum()))
    turn = point_jacobian(places_ras - centre).reshape(-1, 6)
    by_turn = turn * np.repeat([1.0, max(size, 1.0) ** -2], 3)  # a pose off by 1 mm, at the parts' distance too
    field, pose = np.kron(_likeness(places_ras, places_ras), np.eye(3)), by_turn @ turn.T
    blocks, asked = _asked(explained)
    information, pull = block_diag(*blocks), asked.ravel()
    logs, squares, moments = [], [], []
    for a in MOTION_MM:
        for s in POSE_MM:
            before = a * a * field + s * s * pose
            system = np.eye(3 * count) + information @ before
            solved = np.linalg.solve(system, np.column_stack([information, pull]))
            weight = solved[:, -1]
            logs.append(0.5 * float(weight @ before @ pull - np.linalg.slogdet(system)[1]))
            squares.append((a * a, s * s))
            moments.append(np.outer(weight, weight) - solved[:, :-1])
    belief = np.exp(np.array(logs) - max(logs))
    belief /= belief.sum()
    motion, off = np.array(squares).T
    by = np.array(moments)
    both, poses = (np.tensordot(belief * factor, by, axes=1) for factor in (motion * off, off * off))
    alone = float(belief @ off) * np.diag(np.repeat([1.0, max(size, 1.0) ** -2], 3))
    return UnseenMotion(
        centre,
        places_ras,
        math.sqrt(float(belief @ motion)),
        np.tensordot(belief * motion * motion, by, axes=1),
        both @ by_turn,
        alone + by_turn.T @ poses @ by_turn,
    )
