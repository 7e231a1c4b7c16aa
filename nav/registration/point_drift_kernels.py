"""Kernel of coherent point drift: which point belongs to which, softly.

Its plain twin stands in ``tests/reference/test_point_drift_twin.py``.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from nav.geometry.kernels import KernelSpec

__all__ = ["BLOCKS", "KERNELS", "soft_matches"]

#: Fixed points are looked at in so many blocks, whose sums are added in a fixed order: the number of threads does not
#: matter.
BLOCKS = 16
#: Below 2 to this power a probability is nothing.
_LEAST_POWER = -60.0


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def soft_matches(fixed, moved, variance, outliers, sums, at_fixed, likelihood, out):  # type: ignore[no-untyped-def]
    """The expectation step (Myronenko and Song 2010, IEEE TPAMI 32:2262, eq. 6).

    ``P[m, n] = exp(-|fixed n - moved m|² / 2 variance) / (sum over m of the same + outliers)``.

    ``fixed`` (3, n), ``moved`` (3, m) float32; ``outliers``: the constant of the uniform part; ``sums`` (BLOCKS, 4, m)
    float32: scratch; ``at_fixed`` (n,) float64: sum over m of P; ``likelihood`` (BLOCKS,) float64: sum of logarithms of
    the denominators; ``out`` (4, m) float64: sums over n of P x, P y, P z and P. A fixed point whose denominator is
    0 belongs to none.
    """
    n, m = fixed.shape[1], moved.shape[1]
    one = np.float32(1.0)
    # exp(t) = 2^k 2^f: the power of two by its bits, the rest by a polynomial (relative error below 2e-7).
    factor = np.float32(-0.5 / variance * 1.4426950408889634)
    least = np.float32(_LEAST_POWER)
    for block in prange(BLOCKS):
        share = np.empty(m, np.float32)
        bits = np.empty(m, np.int32)
        powers = bits.view(np.float32)
        sums[block] = np.float32(0.0)
        likelihood[block] = 0.0
        for i in range(n * block // BLOCKS, n * (block + 1) // BLOCKS):
            x, y, z = fixed[0, i], fixed[1, i], fixed[2, i]
            if np.isnan(x + y + z):
                at_fixed[i] = 0.0
                continue
            for j in range(m):
                dx, dy, dz = x - moved[0, j], y - moved[1, j], z - moved[2, j]
                t = max((dx * dx + dy * dy + dz * dz) * factor, least)
                k = np.floor(t)
                f = t - k
                bits[j] = (np.int32(k) + np.int32(127)) << np.int32(23)
                share[j] = one + f * (
                    np.float32(0.693147182)
                    + f
                    * (
                        np.float32(0.240226462)
                        + f
                        * (
                            np.float32(0.0555032)
                            + f * (np.float32(0.00966990) + f * (np.float32(0.00121954) + f * np.float32(0.000233756)))
                        )
                    )
                )
            # In single precision over groups, in double over all.
            total = 0.0
            for j in range(m):
                share[j] *= powers[j]
                total += np.float64(share[j])
            below = total + outliers
            at_fixed[i] = total / below if below > 0.0 else 0.0
            if not below > 0.0:
                continue
            likelihood[block] += np.log(below)
            over = np.float32(1.0 / below)
            for j in range(m):
                p = share[j] * over
                sums[block, 0, j] += p * x
                sums[block, 1, j] += p * y
                sums[block, 2, j] += p * z
                sums[block, 3, j] += p
    for c in range(4):
        for j in range(m):
            whole = 0.0
            for block in range(BLOCKS):
                whole += sums[block, c, j]
            out[c, j] = whole


_ROWS = "float32[:, ::1]"

KERNELS = (
    KernelSpec(
        "point drift: soft matches",
        soft_matches,
        (f"{_ROWS}, {_ROWS}, float64, float64, float32[:, :, ::1], float64[::1], float64[::1], float64[:, ::1]",),
    ),
)
