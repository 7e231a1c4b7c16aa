"""Kernels of slice to volume registration: the slab mean, the slices' levels, and Gauss-Newton on the pose.

One call graph, one file (a changed helper elsewhere would leave a stale cache). Plain twins stand in
``tests/reference/test_slice_twins.py``.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from nav.geometry.kernels import KernelSpec

# Numba's isfinite subtracts a number from itself, which `reassoc` makes 0: NaN is found by ``x != x`` here.

__all__ = [
    "BLOCKS",
    "COUNT",
    "KERNELS",
    "RESULTS",
    "SIDE",
    "SQUARES",
    "SUMS",
    "block_sums",
    "descend",
    "patch_moments",
    "slab_mean",
    "slice_level",
]

#: The samples of the last sums are taken in so many blocks of neighbours: what the error estimate leaves out in turn.
BLOCKS = 64
#: Rows and columns of the sums of one block, u uᵀ with u = (six derivatives by the pose, CT value, 1, residual), all
#: weighted; behind them the number of samples inside the CT, and the sum of the squared weights.
SIDE = 9
COUNT, SQUARES = SIDE * SIDE, SIDE * SIDE + 1
SUMS = SQUARES + 1
#: Results of one descent: correlation, share of samples inside, steps, settled (1) or not (0), scale, offset, weighted
#: residual variance, mean of the weights.
RESULTS = 8
#: Samples that are summed at a time.
CHUNK = 256


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def slab_mean(source, offsets, weights, out):  # type: ignore[no-untyped-def]
    """Weighted mean of the voxels at ``offsets`` (m, 3) int64 (k, j, i) of every voxel; at the border, of its edge.

    ``source``, ``out`` (k, j, i) float32; ``weights`` (m,) float32, their sum 1.
    """
    nk, nj, ni = source.shape
    for k in prange(nk):
        row = np.empty(ni, np.float32)
        for j in range(nj):
            row[:] = 0.0
            for m in range(offsets.shape[0]):
                a = min(max(k + offsets[m, 0], 0), nk - 1)
                b = min(max(j + offsets[m, 1], 0), nj - 1)
                d = offsets[m, 2]
                w = weights[m]
                low, high = min(max(0, -d), ni), max(min(ni, ni - d), 0)
                for i in range(low):
                    row[i] += w * source[a, b, 0]
                for i in range(low, high):
                    row[i] += w * source[a, b, i + d]
                for i in range(max(high, low), ni):
                    row[i] += w * source[a, b, ni - 1]
            out[k, j, :] = row


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def slice_level(slices, known, factor, out):  # type: ignore[no-untyped-def]
    """Mean over ``factor`` by ``factor`` pixels of what is ``known``; NaN where less than half of them is.

    ``slices`` (k, j, i) float32; ``known`` (k, j, i) uint8; ``out`` (k, j // factor, i // factor) float32.
    """
    nk, nj, ni = out.shape
    for row in prange(nk * nj):
        k, j = row // nj, row % nj
        for i in range(ni):
            total = np.float32(0.0)
            n = 0
            for b in range(factor):
                for c in range(factor):
                    if known[k, j * factor + b, i * factor + c] != 0:
                        total += slices[k, j * factor + b, i * factor + c]
                        n += 1
            out[k, j, i] = total / np.float32(n) if n > 0 and 2 * n >= factor * factor else np.nan


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def _sum(points, values, volume, index, scale, offset, robust, first, last, v, weight, out):  # type: ignore[no-untyped-def]
    """Add the sums of the samples ``first`` to ``last`` to ``out`` (SUMS,) float64.

    ``v`` (SIDE, CHUNK) and ``weight`` (CHUNK,) float32: room for a chunk.
    """
    nk, nj, ni = volume.shape
    one = np.float32(1.0)
    zero = np.float32(0.0)
    for begin in range(first, last, CHUNK):
        inside = 0
        for q in range(begin, min(begin + CHUNK, last)):
            px, py, pz = points[q, 0], points[q, 1], points[q, 2]
            x = index[0, 0] * px + index[0, 1] * py + index[0, 2] * pz + index[0, 3]
            y = index[1, 0] * px + index[1, 1] * py + index[1, 2] * pz + index[1, 3]
            z = index[2, 0] * px + index[2, 1] * py + index[2, 2] * pz + index[2, 3]
            # Written so that NaN is outside too.
            if not (x >= 0.0 and y >= 0.0 and z >= 0.0 and x < ni - 1 and y < nj - 1 and z < nk - 1):
                continue
            i, j, k = int(x), int(y), int(z)
            fi, fj, fk = x - np.float32(i), y - np.float32(j), z - np.float32(k)
            c000, c001 = volume[k, j, i], volume[k, j, i + 1]
            c010, c011 = volume[k, j + 1, i], volume[k, j + 1, i + 1]
            c100, c101 = volume[k + 1, j, i], volume[k + 1, j, i + 1]
            c110, c111 = volume[k + 1, j + 1, i], volume[k + 1, j + 1, i + 1]
            a00 = c000 + (c001 - c000) * fi
            a01 = c010 + (c011 - c010) * fi
            a10 = c100 + (c101 - c100) * fi
            a11 = c110 + (c111 - c110) * fi
            b0 = a00 + (a01 - a00) * fj
            b1 = a10 + (a11 - a10) * fj
            m = b0 + (b1 - b0) * fk
            if m != m:
                continue
            gk = b1 - b0
            gj = (a01 - a00) + ((a11 - a10) - (a01 - a00)) * fk
            g0 = (c001 - c000) + ((c011 - c010) - (c001 - c000)) * fj
            g1 = (c101 - c100) + ((c111 - c110) - (c101 - c100)) * fj
            gi = g0 + (g1 - g0) * fk
            # By the pose in the slice's frame: translation, and rotation about its origin.
            tx = index[0, 0] * gi + index[1, 0] * gj + index[2, 0] * gk
            ty = index[0, 1] * gi + index[1, 1] * gj + index[2, 1] * gk
            tz = index[0, 2] * gi + index[1, 2] * gj + index[2, 2] * gk
            v[0, inside], v[1, inside], v[2, inside] = tx, ty, tz
            v[3, inside] = py * tz - pz * ty
            v[4, inside] = pz * tx - px * tz
            v[5, inside] = px * ty - py * tx
            v[6, inside] = m
            v[7, inside] = one
            r = scale * m + offset - values[q]
            v[8, inside] = r
            weight[inside] = one / (one + r * r * robust)
            inside += 1
        for a in range(SIDE):
            for b in range(a, SIDE):
                total = zero
                for t in range(inside):
                    total += weight[t] * v[a, t] * v[b, t]
                out[SIDE * a + b] += total
        total = zero
        for t in range(inside):
            total += weight[t] * weight[t]
        out[COUNT] += inside
        out[SQUARES] += total


@njit(nogil=True, cache=True, error_model="numpy")
def _mirror(out):  # type: ignore[no-untyped-def]
    for a in range(SIDE):
        for b in range(a):
            out[SIDE * a + b] = out[SIDE * b + a]


@njit(nogil=True, cache=True, error_model="numpy")
def _solve(sums, damping, factor, step):  # type: ignore[no-untyped-def]
    """Step (8,) of (pose times scale, scale, offset) by Cholesky on the system scaled to a unit diagonal.

    ``factor`` (8, 8): room. False where it is not positive.
    """
    n = SIDE - 1
    for a in range(n):
        if not sums[SIDE * a + a] > 0.0:
            return False
    for a in range(n):
        da = np.sqrt(sums[SIDE * a + a])
        for b in range(a + 1):
            total = sums[SIDE * a + b] / (da * np.sqrt(sums[SIDE * b + b]))
            if a == b:
                total += damping
            for c in range(b):
                total -= factor[a, c] * factor[b, c]
            if a == b:
                if not total > 1e-12:
                    return False
                factor[a, a] = np.sqrt(total)
            else:
                factor[a, b] = total / factor[b, b]
    for a in range(n):
        total = -sums[SIDE * a + n] / np.sqrt(sums[SIDE * a + a])
        for c in range(a):
            total -= factor[a, c] * step[c]
        step[a] = total / factor[a, a]
    for a in range(n - 1, -1, -1):
        total = step[a]
        for c in range(a + 1, n):
            total -= factor[c, a] * step[c]
        step[a] = total / factor[a, a]
    for a in range(n):
        step[a] /= np.sqrt(sums[SIDE * a + a])
    return True


@njit(nogil=True, cache=True, error_model="numpy")
def _turn(pose, step):  # type: ignore[no-untyped-def]
    """``pose`` (3, 4) after a translation and a rotation vector ``step`` (6,) in the slice's frame, in place."""
    for a in range(3):
        pose[a, 3] += pose[a, 0] * step[0] + pose[a, 1] * step[1] + pose[a, 2] * step[2]
    x, y, z = step[3], step[4], step[5]
    angle = np.sqrt(x * x + y * y + z * z)
    if angle < 1e-12:
        return
    x, y, z = x / angle, y / angle, z / angle
    c, s = np.cos(angle), np.sin(angle)
    d = 1.0 - c
    for a in range(3):
        p, q, r = pose[a, 0], pose[a, 1], pose[a, 2]
        pose[a, 0] = p * (c + d * x * x) + q * (d * x * y + s * z) + r * (d * x * z - s * y)
        pose[a, 1] = p * (d * x * y - s * z) + q * (c + d * y * y) + r * (d * y * z + s * x)
        pose[a, 2] = p * (d * x * z + s * y) + q * (d * y * z - s * x) + r * (c + d * z * z)


@njit(nogil=True, cache=True, error_model="numpy")
def _index_of(index_from_ras, pose, index):  # type: ignore[no-untyped-def]
    """``index`` (3, 4) float32 from the slice to the volume's indices (i, j, k)."""
    for a in range(3):
        for b in range(4):
            total = index_from_ras[a, 3] if b == 3 else 0.0
            for c in range(3):
                total += index_from_ras[a, c] * pose[c, b]
            index[a, b] = np.float32(total)


@njit(nogil=True, cache=True, error_model="numpy")
def _correlation(sums, scale, offset):  # type: ignore[no-untyped-def]
    """Weighted correlation of CT and slice, from sums taken with this intensity map."""
    mm, m, n = sums[SIDE * 6 + 6], sums[SIDE * 6 + 7], sums[SIDE * 7 + 7]
    rm, r, rr = sums[SIDE * 6 + 8], sums[SIDE * 7 + 8], sums[SIDE * 8 + 8]
    if not n > 0.0:
        return 0.0
    f = scale * m + offset * n - r
    mf = scale * mm + offset * m - rm
    ff = scale * scale * mm + offset * offset * n + rr + 2.0 * (scale * offset * m - scale * rm - offset * r)
    spread = (mm / n - (m / n) ** 2) * (ff / n - (f / n) ** 2)
    return (mf / n - m * f / (n * n)) / np.sqrt(spread) if spread > 0.0 else 0.0


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def descend(points, values, volume, index_from_ras, poses, settings, results):  # type: ignore[no-untyped-def]
    """Gauss-Newton on ``scale · volume(pose p) + offset - value`` from each of several poses, each on its own.

    ``points`` (n, 3) float32 mm in the slice's frame; ``values`` (n,); ``volume`` (k, j, i) float32, NaN: unknown;
    ``index_from_ras`` (4, 4) float64; ``poses`` (s, 3, 4) float64 slice to RAS, start and result; ``settings`` (5,)
    float64: most steps, a step that moves the samples by less than this many mm is the last, longest step in mm, rms
    distance of the samples from the origin in mm, robustness (a residual of this many standard deviations counts
    half; 0: all count the same); ``results`` (s, RESULTS): in with scale and offset to start from.
    """
    most, least, longest, size, robustness = int(settings[0]), settings[1], settings[2], settings[3], settings[4]
    count = points.shape[0]
    for s in prange(poses.shape[0]):
        v = np.empty((SIDE, CHUNK), np.float32)
        weight = np.empty(CHUNK, np.float32)
        sums = np.empty(SUMS)
        factor = np.empty((8, 8))
        step = np.zeros(8)
        index = np.empty((3, 4), np.float32)
        scale, offset = results[s, 4], results[s, 5]
        variance = 0.0
        if robustness > 0.0:
            variance = results[s, 6]
        steps = 0
        settled = False
        for n in range(most + 1):
            robust = 1.0 / (robustness * robustness * variance) if variance > 0.0 else 0.0
            _index_of(index_from_ras, poses[s], index)
            sums[:] = 0.0
            _sum(points, values, volume, index, np.float32(scale), np.float32(offset), np.float32(robust), 0, count, v,
                 weight, sums)  # fmt: skip
            _mirror(sums)
            if n == most or settled or sums[COUNT] < 100:
                break
            if not _solve(sums, 1e-6, factor, step):
                break
            total = sums[SIDE * 7 + 7]
            if robustness > 0.0:
                variance = max(sums[SIDE * 8 + 8] / total, 1e-9)
            for c in range(6):
                step[c] /= max(abs(scale), 0.2)
            scale += step[6]
            offset += step[7]
            moved = np.sqrt(step[0] ** 2 + step[1] ** 2 + step[2] ** 2)
            turned = np.sqrt(step[3] ** 2 + step[4] ** 2 + step[5] ** 2) * size
            if moved + turned > longest:
                for c in range(6):
                    step[c] *= longest / (moved + turned)
            _turn(poses[s], step)
            steps += 1
            settled = moved + turned < least
        results[s, 0] = _correlation(sums, scale, offset)
        results[s, 1] = sums[COUNT] / max(count, 1)
        results[s, 2] += steps
        results[s, 3] = 1.0 if settled else 0.0
        results[s, 4], results[s, 5] = scale, offset
        results[s, 6] = sums[SIDE * 8 + 8] / sums[SIDE * 7 + 7] if sums[SIDE * 7 + 7] > 0.0 else 0.0
        results[s, 7] = sums[SIDE * 7 + 7] / max(count, 1)


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def block_sums(points, values, volume, index_from_ras, pose, intensity, out):  # type: ignore[no-untyped-def]
    """The sums of `descend` at one pose (3, 4), in BLOCKS equal blocks of samples as they come.

    ``intensity`` (3,) float64: scale, offset, and 1 / squared residual that counts half (0: all count the same);
    ``out`` (BLOCKS, SUMS) float64.
    """
    n = points.shape[0]
    for block in prange(BLOCKS):
        v = np.empty((SIDE, CHUNK), np.float32)
        weight = np.empty(CHUNK, np.float32)
        index = np.empty((3, 4), np.float32)
        _index_of(index_from_ras, pose, index)
        out[block, :] = 0.0
        _sum(points, values, volume, index, np.float32(intensity[0]), np.float32(intensity[1]),
             np.float32(intensity[2]), n * block // BLOCKS, n * (block + 1) // BLOCKS, v,
             weight, out[block])  # fmt: skip
        _mirror(out[block])


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def patch_moments(slices, volume, index, side, out):  # type: ignore[no-untyped-def]
    """Moments of slice and CT in every patch of ``side`` by ``side`` pixels.

    ``slices`` (k, j, i) float32, NaN: unknown; ``volume`` likewise; ``index`` (3, 4) float32 takes indices (i, j, k) of
    the slices to those of the volume; ``out`` (patches along k, j, i, 6) float64: pixels, means of slice and CT, their
    variances, their covariance; NaN where more than half of the patch lies outside either.
    """
    _, nj, ni = slices.shape
    mk, mj, mi = volume.shape
    pk, pj, pi = out.shape[0], out.shape[1], out.shape[2]
    for row in prange(pk * pj):
        k = row // pj
        for column in range(pi):
            n = 0
            sf, sm, sff, smm, sfm = 0.0, 0.0, 0.0, 0.0, 0.0
            for j in range((row % pj) * side, min((row % pj + 1) * side, nj)):
                for i in range(column * side, min((column + 1) * side, ni)):
                    f = np.float64(slices[k, j, i])
                    if f != f:
                        continue
                    x = index[0, 0] * i + index[0, 1] * j + index[0, 2] * k + index[0, 3]
                    y = index[1, 0] * i + index[1, 1] * j + index[1, 2] * k + index[1, 3]
                    z = index[2, 0] * i + index[2, 1] * j + index[2, 2] * k + index[2, 3]
                    if not (x >= 0.0 and y >= 0.0 and z >= 0.0 and x < mi - 1 and y < mj - 1 and z < mk - 1):
                        continue
                    a, b, c = int(x), int(y), int(z)
                    fx, fy, fz = x - a, y - b, z - c
                    m = 0.0
                    for dc in range(2):
                        for db in range(2):
                            for da in range(2):
                                w = (fx if da else 1.0 - fx) * (fy if db else 1.0 - fy) * (fz if dc else 1.0 - fz)
                                m += w * volume[c + dc, b + db, a + da]
                    if m != m:
                        continue
                    n += 1
                    sf += f
                    sm += m
                    sff += f * f
                    smm += m * m
                    sfm += f * m
            for c in range(6):
                out[k, row % pj, column, c] = np.nan
            if 2 * n < side * side or n == 0:
                continue
            out[k, row % pj, column, 0] = n
            out[k, row % pj, column, 1] = sf / n
            out[k, row % pj, column, 2] = sm / n
            out[k, row % pj, column, 3] = sff / n - (sf / n) * (sf / n)
            out[k, row % pj, column, 4] = smm / n - (sm / n) * (sm / n)
            out[k, row % pj, column, 5] = sfm / n - sf / n * sm / n


_IMAGE = "Array(float32, 3, 'C', readonly=True)"
_SAMPLES = f"float32[:, ::1], float32[::1], {_IMAGE}, float64[:, ::1]"

KERNELS = (
    KernelSpec("slice: slab mean", slab_mean, (f"{_IMAGE}, int64[:, ::1], float32[::1], float32[:, :, ::1]",)),
    KernelSpec("slice: levels", slice_level, (f"{_IMAGE}, uint8[:, :, ::1], int64, float32[:, :, ::1]",)),
    KernelSpec("slice: pose", descend, (f"{_SAMPLES}, float64[:, :, ::1], float64[::1], float64[:, ::1]",)),
    KernelSpec("slice: normal equations", block_sums, (f"{_SAMPLES}, float64[:, ::1], float64[::1], float64[:, ::1]",)),
    KernelSpec(
        "slice: patches", patch_moments,
        (f"float32[:, :, ::1], {_IMAGE}, float32[:, ::1], int64, float64[:, :, :, ::1]",),
    ),
)  # fmt: skip
