"""Kernels of the registration of ultrasound to CT: reduced frames, the CT's two channels, and the local fits.

One call graph, one file (a changed helper elsewhere would leave a stale cache). Plain twins stand in
``tests/reference/test_ultrasound_twins.py``.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from nav.geometry.kernels import KernelSpec

__all__ = [
    "COUNT",
    "FIT",
    "GRADIENT",
    "HESSIAN",
    "KERNELS",
    "RESIDUAL",
    "SUMS",
    "TOTAL",
    "channels",
    "patch_fits",
    "reduce_frames",
    "similarities",
]

#: What `patch_fits` says of a patch: sums of squares about the mean and after the fit, the number of pixels, the fit
#: (a, b), the gradient (6) and the Hessian (36, rows) of half the residual sum by the pose.
TOTAL, RESIDUAL, COUNT, FIT, GRADIENT, HESSIAN, SUMS = 0, 1, 2, 3, 5, 11, 47
#: Pixels of the largest patch.
MOST_PIXELS = 256


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def reduce_frames(images, mask, factor, out):  # type: ignore[no-untyped-def]
    """Mean over blocks of ``factor`` (rows, columns) pixels.

    ``images`` (n, rows, columns) uint8; ``mask`` (rows, columns) uint8, where there is an image; ``out`` float32, NaN
    where half of a block or more is outside.
    """
    fr, fc = factor[0], factor[1]
    n, rows, columns = out.shape
    for line in prange(n * rows):
        frame, row = line // rows, line % rows
        for column in range(columns):
            total, count = 0, 0
            for r in range(row * fr, (row + 1) * fr):
                for c in range(column * fc, (column + 1) * fc):
                    if mask[r, c] != 0:
                        total += int(images[frame, r, c])
                        count += 1
            if 2 * count > fr * fc:
                out[frame, row, column] = np.float32(total) / np.float32(count)
            else:
                out[frame, row, column] = np.float32(np.nan)


# Neither contract nor reassoc: the same bits compiled and cached (make bits).
@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz"})
def channels(image, turn, out):  # type: ignore[no-untyped-def]
    """The image and the magnitude of its gradient, side by side.

    ``image`` (k, j, i) float32; ``turn`` (3, 3) float32 takes a gradient per voxel along i, j, k to one per mm;
    ``out`` (k, j, i, 2). Differences are central, one-sided at the border. NaN where a neighbour is.
    """
    nk, nj, ni = image.shape
    for k in prange(nk):
        k0, k1 = max(k - 1, 0), min(k + 1, nk - 1)
        for j in range(nj):
            j0, j1 = max(j - 1, 0), min(j + 1, nj - 1)
            for i in range(ni):
                i0, i1 = max(i - 1, 0), min(i + 1, ni - 1)
                gi = (image[k, j, i1] - image[k, j, i0]) / np.float32(max(i1 - i0, 1))
                gj = (image[k, j1, i] - image[k, j0, i]) / np.float32(max(j1 - j0, 1))
                gk = (image[k1, j, i] - image[k0, j, i]) / np.float32(max(k1 - k0, 1))
                x = turn[0, 0] * gi + turn[0, 1] * gj + turn[0, 2] * gk
                y = turn[1, 0] * gi + turn[1, 1] * gj + turn[1, 2] * gk
                z = turn[2, 0] * gi + turn[2, 1] * gj + turn[2, 2] * gk
                out[k, j, i, 0] = image[k, j, i]
                out[k, j, i, 1] = np.sqrt(x * x + y * y + z * z)


@njit(nogil=True, cache=True, inline="always", error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def _fit(n, sp, sg, su, spp, sgg, spg, spu, sgu, suu, floor, echo):  # type: ignore[no-untyped-def]
    """Fit of u by a p + b g + c (``echo``: b not negative) from plain sums.

    Returns a, b, the total and the residual sum of squares, and the inverse (3) of the 2×2 matrix of p and g about
    their means (0 for what does not vary, or is held at 0).
    """
    mp, mg, mu = sp / n, sg / n, su / n
    # A channel that hardly varies explains nothing; the floor keeps the fit from amplifying it.
    cpp, cgg, cpg = spp - n * mp * mp + n * floor, sgg - n * mg * mg + n * floor, spg - n * mp * mg
    cpu, cgu, total = spu - n * mp * mu, sgu - n * mg * mu, suu - n * mu * mu
    det = cpp * cgg - cpg * cpg
    if total <= 1e-9 * n * mu * mu:  # constant, but for rounding
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    if det <= 1e-9 * cpp * cgg:
        return 0.0, 0.0, total, total, 0.0, 0.0, 0.0
    ipp, igg, ipg = cgg / det, cpp / det, -cpg / det
    a, b = ipp * cpu + ipg * cgu, ipg * cpu + igg * cgu
    if echo and b < 0.0:  # an interface reflects; what is dark along an edge is there by chance
        ipp, ipg, igg = 1.0 / cpp, 0.0, 0.0
        a, b = ipp * cpu, 0.0
    return a, b, total, max(total - a * cpu - b * cgu, 0.0), ipp, ipg, igg


# Neither contract nor reassoc: the same bits compiled and cached (make bits).
@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz"})
def patch_fits(frames, patches, side, ct, index_from_ras, centre_index, ras_from_pixel, floor, echo, out):  # type: ignore[no-untyped-def]
    """Fit every patch of ultrasound by the CT's channels, and differentiate what is left by the pose.

    ``frames`` (n, rows, columns) float32, NaN: no image; ``patches`` (m, 3) int32: frame, first row, first column;
    ``side``: pixels of a patch; ``ct`` (k, j, i, 2) float32; ``index_from_ras`` (3, 3) float32, linear part;
    ``centre_index`` (3,) float32: index (i, j, k) of the centre about which the pose turns; ``ras_from_pixel``
    (n, 3, 3) float32: (column, row, 1) to RAS mm from that centre; ``floor``: variance added to both channels;
    ``echo``: an edge may only add to the image (b not negative); ``out`` (m, SUMS) float64: see `TOTAL` and what
    follows. A pixel outside the image, the CT or its mask (NaN): all zero.

    Image and channels are freed of their linear trend in the patch first. The residual is projected onto what the fit
    leaves (variable projection in Kaufman's form), so the Hessian knows that a, b and c follow the pose.
    """
    nk, nj, ni, _ = ct.shape
    one = np.float32(1.0)
    middle = 0.5 * (side - 1)
    slope = side * side * (side * side - 1) / 12.0
    for m in prange(patches.shape[0]):
        v = np.empty((11, MOST_PIXELS))
        frame = patches[m, 0]
        t = ras_from_pixel[frame]
        for c in range(SUMS):
            out[m, c] = 0.0
        n = 0
        sp, sg, su, spp, sgg, spg, spu, sgu, suu = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        pc, pr, gc, gr, uc, ur = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        x = np.empty((12, MOST_PIXELS), np.float32)
        for row in range(patches[m, 1], patches[m, 1] + side):
            for column in range(patches[m, 2], patches[m, 2] + side):
                u = frames[frame, row, column]
                if np.isnan(u):
                    continue
                fc, fr = np.float32(column), np.float32(row)
                rx = t[0, 0] * fc + t[0, 1] * fr + t[0, 2]
                ry = t[1, 0] * fc + t[1, 1] * fr + t[1, 2]
                rz = t[2, 0] * fc + t[2, 1] * fr + t[2, 2]
                fi = index_from_ras[0, 0] * rx + index_from_ras[0, 1] * ry + index_from_ras[0, 2] * rz + centre_index[0]
                fj = index_from_ras[1, 0] * rx + index_from_ras[1, 1] * ry + index_from_ras[1, 2] * rz + centre_index[1]
                fk = index_from_ras[2, 0] * rx + index_from_ras[2, 1] * ry + index_from_ras[2, 2] * rz + centre_index[2]
                # Written so that NaN is outside too.
                if not (fi >= 0.0 and fj >= 0.0 and fk >= 0.0 and fi < ni - 1 and fj < nj - 1 and fk < nk - 1):
                    continue
                i, j, k = int(fi), int(fj), int(fk)
                wi, wj, wk = fi - np.float32(i), fj - np.float32(j), fk - np.float32(k)
                for q in range(2):
                    a000, a001 = ct[k, j, i, q], ct[k, j, i + 1, q]
                    a010, a011 = ct[k, j + 1, i, q], ct[k, j + 1, i + 1, q]
                    a100, a101 = ct[k + 1, j, i, q], ct[k + 1, j, i + 1, q]
                    a110, a111 = ct[k + 1, j + 1, i, q], ct[k + 1, j + 1, i + 1, q]
                    d00, d01, d10, d11 = a001 - a000, a011 - a010, a101 - a100, a111 - a110
                    e00, e01, e10, e11 = a000 + d00 * wi, a010 + d01 * wi, a100 + d10 * wi, a110 + d11 * wi
                    f0, f1 = e00 + (e01 - e00) * wj, e10 + (e11 - e10) * wj
                    gi = (d00 * (one - wj) + d01 * wj) * (one - wk) + (d10 * (one - wj) + d11 * wj) * wk
                    gj = (e01 - e00) * (one - wk) + (e11 - e10) * wk
                    gk = f1 - f0
                    x[4 * q, n] = f0 + gk * wk
                    for d in range(3):
                        x[4 * q + 1 + d, n] = (
                            gi * index_from_ras[0, d] + gj * index_from_ras[1, d] + gk * index_from_ras[2, d]
                        )
                x[8, n], x[9, n], x[10, n], x[11, n] = rx, ry, rz, u
                p, g, w = np.float64(x[0, n]), np.float64(x[4, n]), np.float64(u)
                if np.isnan(p) or np.isnan(g):
                    continue
                sp += p
                sg += g
                su += w
                spp += p * p
                sgg += g * g
                spg += p * g
                spu += p * w
                sgu += g * w
                suu += w * w
                xc, xr = column - patches[m, 2] - middle, row - patches[m, 1] - middle
                v[9, n], v[10, n] = xc, xr
                pc += p * xc
                pr += p * xr
                gc += g * xc
                gr += g * xr
                uc += w * xc
                ur += w * xr
                n += 1
        if n < side * side:
            continue
        spp -= (pc * pc + pr * pr) / slope
        sgg -= (gc * gc + gr * gr) / slope
        suu -= (uc * uc + ur * ur) / slope
        spg -= (pc * gc + pr * gr) / slope
        spu -= (pc * uc + pr * ur) / slope
        sgu -= (gc * uc + gr * ur) / slope
        a, b, total, residual, ipp, ipg, igg = _fit(n, sp, sg, su, spp, sgg, spg, spu, sgu, suu, floor, echo)
        out[m, TOTAL], out[m, RESIDUAL], out[m, COUNT] = total, residual, n
        out[m, FIT], out[m, FIT + 1] = a, b
        if a == 0.0 and b == 0.0:
            continue
        mp, mg, mu = sp / n, sg / n, su / n
        for q in range(n):
            jx = a * x[1, q] + b * x[5, q]
            jy = a * x[2, q] + b * x[6, q]
            jz = a * x[3, q] + b * x[7, q]
            v[0, q], v[1, q], v[2, q] = jx, jy, jz
            v[3, q] = x[9, q] * jz - x[10, q] * jy
            v[4, q] = x[10, q] * jx - x[8, q] * jz
            v[5, q] = x[8, q] * jy - x[9, q] * jx
            xc, xr = v[9, q] / slope, v[10, q] / slope
            v[6, q] = x[0, q] - mp - pc * xc - pr * xr
            v[7, q] = x[4, q] - mg - gc * xc - gr * xr
            v[8, q] = x[11, q] - mu - uc * xc - ur * xr - a * v[6, q] - b * v[7, q]
        for d in range(6):
            s, s_c, s_l, s_p, s_g, s_r = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for q in range(n):
                s += v[d, q]
                s_c += v[d, q] * v[9, q]
                s_l += v[d, q] * v[10, q]
                s_p += v[d, q] * v[6, q]
                s_g += v[d, q] * v[7, q]
                s_r += v[d, q] * v[8, q]
            # The model grows with the step, the residual falls.
            out[m, GRADIENT + d] = -s_r
            mean, left, right = s / n, ipp * s_p + ipg * s_g, ipg * s_p + igg * s_g
            s_c, s_l = s_c / slope, s_l / slope
            for q in range(n):
                v[d, q] -= mean + s_c * v[9, q] + s_l * v[10, q] + left * v[6, q] + right * v[7, q]
        for d in range(6):
            for e in range(d, 6):
                s = 0.0
                for q in range(n):
                    s += v[d, q] * v[e, q]
                out[m, HESSIAN + 6 * d + e] = s
                out[m, HESSIAN + 6 * e + d] = s


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def similarities(frames, patches, weights, side, ct, index_from_pixel, floor, echo, out):  # type: ignore[no-untyped-def]
    """Weighted share of the patches' variance that the CT explains, at many poses.

    As in `patch_fits`, but ``weights`` (m,) float64 and ``index_from_pixel`` (poses, n, 3, 3) float32: (column, row, 1)
    to indices of ``ct``; ``out`` (poses, 2) float64: the sum of weight times share explained, and of the weights of
    patches that lie in the CT.
    """
    nk, nj, ni, _ = ct.shape
    middle = 0.5 * (side - 1)
    slope = side * side * (side * side - 1) / 12.0
    for pose in prange(index_from_pixel.shape[0]):
        explained, known = 0.0, 0.0
        for m in range(patches.shape[0]):
            frame = patches[m, 0]
            t = index_from_pixel[pose, frame]
            n = 0
            sp, sg, su, spp, sgg, spg, spu, sgu, suu = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            pc, pr, gc, gr, uc, ur = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for row in range(patches[m, 1], patches[m, 1] + side):
                for column in range(patches[m, 2], patches[m, 2] + side):
                    u = frames[frame, row, column]
                    if np.isnan(u):
                        continue
                    fc, fr = np.float32(column), np.float32(row)
                    fi = t[0, 0] * fc + t[0, 1] * fr + t[0, 2]
                    fj = t[1, 0] * fc + t[1, 1] * fr + t[1, 2]
                    fk = t[2, 0] * fc + t[2, 1] * fr + t[2, 2]
                    if not (fi >= 0.0 and fj >= 0.0 and fk >= 0.0 and fi < ni - 1 and fj < nj - 1 and fk < nk - 1):
                        continue
                    i, j, k = int(fi), int(fj), int(fk)
                    wi, wj, wk = fi - np.float32(i), fj - np.float32(j), fk - np.float32(k)
                    e00 = ct[k, j, i, 0] + (ct[k, j, i + 1, 0] - ct[k, j, i, 0]) * wi
                    e01 = ct[k, j + 1, i, 0] + (ct[k, j + 1, i + 1, 0] - ct[k, j + 1, i, 0]) * wi
                    e10 = ct[k + 1, j, i, 0] + (ct[k + 1, j, i + 1, 0] - ct[k + 1, j, i, 0]) * wi
                    e11 = ct[k + 1, j + 1, i, 0] + (ct[k + 1, j + 1, i + 1, 0] - ct[k + 1, j + 1, i, 0]) * wi
                    f0, f1 = e00 + (e01 - e00) * wj, e10 + (e11 - e10) * wj
                    p = np.float64(f0 + (f1 - f0) * wk)
                    e00 = ct[k, j, i, 1] + (ct[k, j, i + 1, 1] - ct[k, j, i, 1]) * wi
                    e01 = ct[k, j + 1, i, 1] + (ct[k, j + 1, i + 1, 1] - ct[k, j + 1, i, 1]) * wi
                    e10 = ct[k + 1, j, i, 1] + (ct[k + 1, j, i + 1, 1] - ct[k + 1, j, i, 1]) * wi
                    e11 = ct[k + 1, j + 1, i, 1] + (ct[k + 1, j + 1, i + 1, 1] - ct[k + 1, j + 1, i, 1]) * wi
                    f0, f1 = e00 + (e01 - e00) * wj, e10 + (e11 - e10) * wj
                    g = np.float64(f0 + (f1 - f0) * wk)
                    w = np.float64(u)
                    if np.isnan(p) or np.isnan(g):
                        continue
                    sp += p
                    sg += g
                    su += w
                    spp += p * p
                    sgg += g * g
                    spg += p * g
                    spu += p * w
                    sgu += g * w
                    suu += w * w
                    xc, xr = column - patches[m, 2] - middle, row - patches[m, 1] - middle
                    pc += p * xc
                    pr += p * xr
                    gc += g * xc
                    gr += g * xr
                    uc += w * xc
                    ur += w * xr
                    n += 1
            if n < side * side:
                continue
            spp -= (pc * pc + pr * pr) / slope
            sgg -= (gc * gc + gr * gr) / slope
            suu -= (uc * uc + ur * ur) / slope
            spg -= (pc * gc + pr * gr) / slope
            spu -= (pc * uc + pr * ur) / slope
            sgu -= (gc * uc + gr * ur) / slope
            _, _, total, residual, _, _, _ = _fit(n, sp, sg, su, spp, sgg, spg, spu, sgu, suu, floor, echo)
            if total > 0.0:
                explained += weights[m] * (1.0 - residual / total)
                known += weights[m]
        out[pose, 0], out[pose, 1] = explained, known


_FRAMES = "Array(float32, 3, 'C', readonly=True)"
_CT = "Array(float32, 4, 'C', readonly=True)"
_PATCHES = "Array(int32, 2, 'C', readonly=True)"

KERNELS = (
    KernelSpec(
        "ultrasound: reduced frames",
        reduce_frames,
        ("Array(uint8, 3, 'C', readonly=True), Array(uint8, 2, 'C', readonly=True), int64[::1], float32[:, :, ::1]",),
    ),
    KernelSpec(
        "ultrasound: channels of the CT",
        channels,
        ("Array(float32, 3, 'C', readonly=True), float32[:, ::1], float32[:, :, :, ::1]",),
    ),
    KernelSpec(
        "ultrasound: patches",
        patch_fits,
        (
            f"{_FRAMES}, {_PATCHES}, int64, {_CT}, float32[:, ::1], float32[::1], float32[:, :, ::1], float64, "
            "boolean, float64[:, ::1]",
        ),
    ),
    KernelSpec(
        "ultrasound: similarity at many poses",
        similarities,
        (
            f"{_FRAMES}, {_PATCHES}, Array(float64, 1, 'C', readonly=True), int64, {_CT}, float32[:, :, :, ::1], "
            "float64, boolean, float64[:, ::1]",
        ),
    ),
)
