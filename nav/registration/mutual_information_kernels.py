"""Kernels of the rigid registration by mutual information: grey values as bins, the joint histogram, and one step.

One call graph, one file (a changed helper elsewhere would leave a stale cache). Plain twins stand in
``tests/reference/test_mutual_information_twins.py``.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from nav.geometry.kernels import KernelSpec

__all__ = [
    "BINS",
    "BLOCKS",
    "GRADIENT",
    "INSIDE",
    "KERNELS",
    "LIKELIHOOD",
    "SUMS",
    "joint_histogram",
    "score",
    "to_bins",
]

#: As in `rigid_kernels`: samples are summed in so many blocks of neighbours, in a fixed order.
BLOCKS = 64
#: Bins of either image.
BINS = 40
#: Sums of one block: 36 of s² J Jᵀ (rows), 6 of s J, the sum of the table, and the number of samples inside; J is the
#: derivative of the fixed image by the pose, s that of the table by the fixed image.
SUMS = 44
#: Where in the sums of one block those stand that are no row of s² J Jᵀ.
GRADIENT, LIKELIHOOD, INSIDE = 36, 42, 43
#: Samples that are summed at a time.
CHUNK = 256


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def to_bins(image, table, low, per_unit, out):  # type: ignore[no-untyped-def]
    """Grey values as places among the bins, by linear interpolation.

    ``image`` (k, j, i) float32; ``table`` (m,) float32: the places of the grey values ``low + n / per_unit``; beyond
    its ends the last value holds; not a number stays that. ``out`` (k, j, i) float32.
    """
    nk, nj, ni = image.shape
    last = np.float32(table.size - 1)
    nil = np.float32(0.0)
    for k in prange(nk):
        for j in range(nj):
            for i in range(ni):
                t = (image[k, j, i] - low) * per_unit
                if np.isnan(t):
                    out[k, j, i] = t
                    continue
                t = min(max(t, nil), last)
                n = min(int(t), table.size - 2)
                f = t - np.float32(n)
                out[k, j, i] = table[n] + f * (table[n + 1] - table[n])


@njit(nogil=True, cache=True, inline="always", error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def _trilinear(image, i, j, k, fi, fj, fk):  # type: ignore[no-untyped-def]
    """Value between the voxel (i, j, k) and its next ones, at the shares ``fi``, ``fj``, ``fk`` of the way, float32."""
    one = np.float32(1.0)
    a00 = image[k, j, i] * (one - fi) + image[k, j, i + 1] * fi
    a01 = image[k, j + 1, i] * (one - fi) + image[k, j + 1, i + 1] * fi
    a10 = image[k + 1, j, i] * (one - fi) + image[k + 1, j, i + 1] * fi
    a11 = image[k + 1, j + 1, i] * (one - fi) + image[k + 1, j + 1, i + 1] * fi
    return (a00 * (one - fj) + a01 * fj) * (one - fk) + (a10 * (one - fj) + a11 * fj) * fk


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def joint_histogram(positions, values, moving, mask, index, seen, out):  # type: ignore[no-untyped-def]
    """How often which bin of the fixed image meets which of the moving one, per block; a sample is shared by the four
    nearest pairs of bins.

    ``positions`` (n, 3) float32; ``values`` (n,) places among the bins; ``moving`` (k, j, i) float32 likewise; ``mask``
    (k, j, i) uint8 on its grid or (0, 0, 0): everywhere; ``index`` (4, 4) float32 takes positions to indices (i, j, k)
    of ``moving``; ``seen`` (n,) float32: what is found there, -1 outside; ``out`` (BLOCKS, BINS, BINS) float32.
    """
    n = positions.shape[0]
    nk, nj, ni = moving.shape
    masked = mask.size > 0
    one = np.float32(1.0)
    top = np.float32(BINS - 1)
    for block in prange(BLOCKS):
        for a in range(BINS):
            for b in range(BINS):
                out[block, a, b] = 0.0
        for q in range(n * block // BLOCKS, n * (block + 1) // BLOCKS):
            pi, pj, pk = positions[q, 0], positions[q, 1], positions[q, 2]
            x = index[0, 0] * pi + index[0, 1] * pj + index[0, 2] * pk + index[0, 3]
            y = index[1, 0] * pi + index[1, 1] * pj + index[1, 2] * pk + index[1, 3]
            z = index[2, 0] * pi + index[2, 1] * pj + index[2, 2] * pk + index[2, 3]
            seen[q] = -one
            # Written so that NaN is outside too.
            if not (x >= 0.0 and y >= 0.0 and z >= 0.0 and x < ni - 1 and y < nj - 1 and z < nk - 1):
                continue
            if masked and mask[int(z + 0.5), int(y + 0.5), int(x + 0.5)] == 0:
                continue
            i, j, k = int(x), int(y), int(z)
            m = _trilinear(moving, i, j, k, x - np.float32(i), y - np.float32(j), z - np.float32(k))
            f = values[q]
            if not (m >= 0.0 and m <= top and f >= 0.0 and f <= top):
                continue
            seen[q] = m
            a, b = min(int(f), BINS - 2), min(int(m), BINS - 2)
            u, v = f - np.float32(a), m - np.float32(b)
            out[block, a, b] += (one - u) * (one - v)
            out[block, a, b + 1] += (one - u) * v
            out[block, a + 1, b] += u * (one - v)
            out[block, a + 1, b + 1] += u * v


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def score(values, seen, jacobian, table, slope, out):  # type: ignore[no-untyped-def]
    """Sums of one step, per block of samples.

    ``values``, ``seen`` (n,) float32 as `joint_histogram` leaves them; ``jacobian`` (n, 6) float32: derivative of
    ``values`` by the pose; ``table``, ``slope`` (BINS, BINS) float32, looked up by linear interpolation; ``out``
    (BLOCKS, SUMS) float64.
    """
    n = values.size
    one, nil = np.float32(1.0), np.float32(0.0)
    for block in prange(BLOCKS):
        # As in `rigid_kernels.normal_equations`: a chunk is looked up first and summed then.
        v = np.empty((6, CHUNK), np.float32)
        for c in range(SUMS):
            out[block, c] = 0.0
        first, last = n * block // BLOCKS, n * (block + 1) // BLOCKS
        for begin in range(first, last, CHUNK):
            count = min(CHUNK, last - begin)
            inside = 0
            likelihood = nil
            for t in range(count):
                q = begin + t
                f, m = values[q], seen[q]
                if not m >= nil:
                    continue
                a, b = min(int(f), BINS - 2), min(int(m), BINS - 2)
                fa, fb = f - np.float32(a), m - np.float32(b)
                w00, w01, w10, w11 = (one - fa) * (one - fb), (one - fa) * fb, fa * (one - fb), fa * fb
                likelihood += (
                    w00 * table[a, b] + w01 * table[a, b + 1] + w10 * table[a + 1, b] + w11 * table[a + 1, b + 1]
                )
                s = w00 * slope[a, b] + w01 * slope[a, b + 1] + w10 * slope[a + 1, b] + w11 * slope[a + 1, b + 1]
                for c in range(6):
                    v[c, inside] = s * jacobian[q, c]
                inside += 1
            for a in range(6):
                total = nil
                for t in range(inside):
                    total += v[a, t]
                out[block, GRADIENT + a] += total
                for b in range(a, 6):
                    total = nil
                    for t in range(inside):
                        total += v[a, t] * v[b, t]
                    out[block, 6 * a + b] += total
            out[block, LIKELIHOOD] += likelihood
            out[block, INSIDE] += inside
        for a in range(6):
            for b in range(a):
                out[block, 6 * a + b] = out[block, 6 * b + a]


_IMAGE = "Array(float32, 3, 'C', readonly=True)"
_MASK = "uint8[:, :, ::1]"

KERNELS = (
    KernelSpec("mutual information: bins", to_bins, (f"{_IMAGE}, float32[::1], float32, float32, float32[:, :, ::1]",)),
    KernelSpec(
        "mutual information: joint histogram",
        joint_histogram,
        (f"float32[:, ::1], float32[::1], {_IMAGE}, {_MASK}, float32[:, ::1], float32[::1], float32[:, :, ::1]",),
    ),
    KernelSpec(
        "mutual information: step",
        score,
        ("float32[::1], float32[::1], float32[:, ::1], float32[:, ::1], float32[:, ::1], float64[:, ::1]",),
    ),
)
