"""How far a 3-D error reaches: the radius of the sphere that holds a given share of a normal or t distributed error.

With ``e = sqrt(s) L z``, ``L Lᵀ`` the covariance and ``z`` standard normal, write ``z = ρ n`` with ``n`` uniform on the
unit sphere and ``ρ² ~ χ²₃`` independent of it. Then ``|e|² = s ρ² nᵀΛn`` with Λ the eigenvalues, and

    P(|e| ≤ R) = mean over n of F(R² / (3 nᵀΛn)),

where F is the distribution function of ``s ρ²/3``: that of χ²₃/3 when the covariance is known (s = 1), and Fisher's
F(3, ν) when it was estimated with ν degrees of freedom (s = ν/χ²_ν: the multivariate t distribution). The mean over
the sphere is a smooth two-dimensional integral, taken by Gauss-Legendre quadrature over one octant. It is exact up to
that quadrature, unlike moment matching.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtri, fdtr, fdtri, gammainc

__all__ = ["effective_dof", "error_share_within", "jackknife_covariance", "radius_of_share"]

Array = NDArray[np.float64]

_NODES = 10
_KNOWN_ABOVE_DOF = 1e6


@lru_cache(maxsize=1)
def _octant() -> tuple[Array, Array]:
    """Squared direction cosines (m, 3), the largest axis first, and weights (m,) that sum to 1."""
    x, w = np.polynomial.legendre.leggauss(_NODES)
    x, w = 0.5 * (x + 1.0), 0.5 * w
    c2 = np.repeat(x * x, _NODES)
    cos2 = np.tile(np.cos(0.5 * np.pi * x) ** 2, _NODES)
    squared = np.stack([c2, (1.0 - c2) * cos2, (1.0 - c2) * (1.0 - cos2)], axis=1)
    return squared, np.repeat(w, _NODES) * np.tile(w, _NODES)


def _eigenvalues(covariance: ArrayLike) -> Array:
    c = np.asarray(covariance, dtype=np.float64)
    if c.shape != (3, 3) or not np.isfinite(c).all():
        raise ValueError(f"covariance must be a finite (3, 3) matrix, got shape {c.shape}")
    values = np.linalg.eigvalsh(0.5 * (c + c.T))[::-1]
    if values[2] < -1e-9 * max(values[0], 1e-300):
        raise ValueError(f"covariance has a negative eigenvalue: {values[2]:.3g}")
    return np.asarray(np.maximum(values, 0.0))


def error_share_within(radius_mm: float, covariance: ArrayLike, dof: float = math.inf) -> float:
    """Share of errors no longer than ``radius_mm``.

    Parameters
    ----------
    radius_mm : float
    covariance : (3, 3) float64, mm²
        Covariance (``dof`` infinite) or scale matrix of the t distribution.
    dof : float
        Degrees of freedom with which the scale of ``covariance`` was estimated; infinite when it is known.
    """
    values = _eigenvalues(covariance)
    if values[0] <= 0.0:
        return 1.0 if radius_mm >= 0.0 else 0.0
    return _share(radius_mm * radius_mm, values, dof)


def _share(radius2: float, values: Array, dof: float) -> float:
    squared, weights = _octant()
    x = radius2 / np.maximum(squared @ values, 1e-300)
    if dof > _KNOWN_ABOVE_DOF:
        return float(weights @ gammainc(1.5, 0.5 * x))
    return float(weights @ fdtr(3.0, dof, x / 3.0))


def radius_of_share(covariance: ArrayLike, share: float = 0.95, dof: float = math.inf) -> float:
    """Radius in mm of the sphere about the mean that holds ``share`` of the errors.

    Parameters
    ----------
    covariance : (3, 3) float64, mm², positive semi-definite, any frame
    share : float
        Between 0 and 1, exclusive.
    dof : float
        As in `error_share_within`.

    Notes
    -----
    Solved by secant steps on the exact distribution to 1e-6 in probability, from the radius of the F distribution with
    the same first two moments (Satterthwaite), and kept between the one-dimensional and the isotropic solution for the
    largest eigenvalue, which enclose the root.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"share is {share:g}, must lie between 0 and 1")
    if not dof > 0.0:
        raise ValueError(f"dof is {dof:g}, must be positive")
    values = _eigenvalues(covariance)
    if values[0] <= 0.0:
        return 0.0
    # A little wider than theory, for the quadrature's own error.
    low = 0.95 * values[0] * _quantile(1.0, dof, share)
    high = 1.05 * values[0] * _quantile(3.0, dof, share)
    total = float(values.sum())
    moments = total * total / float(values @ values)
    x = min(max(total / moments * _quantile(moments, dof, share), low), high)
    before, f_before = x, 0.0
    for n in range(60):
        f = _share(x, values, dof) - share
        if abs(f) < 1e-6:
            break
        low, high = (x, high) if f < 0.0 else (low, x)
        if n == 0 or f == f_before:
            following = x * (1.03 if f < 0.0 else 0.97)
        else:
            following = x - f * (x - before) / (f - f_before)
        before, f_before = x, f
        x = following if low < following < high else 0.5 * (low + high)
    return math.sqrt(x)


def _quantile(k: float, dof: float, share: float) -> float:
    """Quantile of χ²_k (scale known) or of k F(k, dof) (scale estimated)."""
    if dof > _KNOWN_ABOVE_DOF:
        return float(chdtri(k, 1.0 - share))
    return k * float(fdtri(k, dof, share))


def jackknife_covariance(left: ArrayLike) -> Array:
    """(m, m) covariance of an estimate from those, (n, m), with one of n pieces left out each (Tukey 1958)."""
    estimates = np.asarray(left, dtype=np.float64)
    away = estimates - estimates.mean(axis=0)
    n = len(estimates)
    return np.asarray((n - 1) / n * away.T @ away)


def effective_dof(total_trace: float, parts: list[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of independently estimated variances (Welch 1947, Satterthwaite 1946).

    Parameters
    ----------
    total_trace : float
        Trace of the whole covariance, mm².
    parts : list of (trace, dof)
        The parts whose scale was estimated; parts with infinite ``dof`` may be left out.
    """
    spread = sum(trace * trace / dof for trace, dof in parts if trace > 0.0)
    return math.inf if spread <= 0.0 else total_trace * total_trace / spread
