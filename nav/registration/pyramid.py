"""Image pyramids: the same image at coarser and coarser pitch, each level the mean over blocks of the one before.

Block means neither alias nor shift: the centre of a coarse voxel is the mean of the centres it covers. Axes are halved
so that the levels become as isotropic as the image allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from nav.geometry.kernels import KernelSpec
from nav.geometry.volume import Volume

__all__ = ["KERNELS", "LEAST_VOXELS", "NO_MASK", "Level", "image_pyramid", "mask_at", "nearest_level"]

#: As kernels take it where there is no mask.
NO_MASK = np.zeros((0, 0, 0), np.uint8)
#: No level has fewer voxels than this along any axis.
LEAST_VOXELS = 8


@njit(nogil=True, cache=True, parallel=True, error_model="numpy", fastmath={"nsz", "arcp", "contract", "reassoc"})
def _block_mean(source, factors, out):  # type: ignore[no-untyped-def]
    # The sum over a block runs in a fixed order, whatever the number of threads.
    fk, fj, fi = factors[0], factors[1], factors[2]
    scale = np.float32(1.0 / (fk * fj * fi))
    nk, nj, ni = out.shape
    for k in prange(nk):
        for j in range(nj):
            for i in range(ni):
                total = np.float32(0.0)
                for a in range(fk):
                    for b in range(fj):
                        for c in range(fi):
                            total += source[k * fk + a, j * fj + b, i * fi + c]
                out[k, j, i] = total * scale


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """One level of a pyramid.

    Attributes
    ----------
    volume : Volume
        float32.
    factors : (3,) int64
        Voxels of the image in one voxel of the level, along i, j, k.
    """

    volume: Volume
    factors: NDArray[np.int64]

    @property
    def pitch_mm(self) -> float:
        """Geometric mean of the spacings."""
        return float(np.prod(self.volume.spacing_mm) ** (1.0 / 3.0))


def image_pyramid(image: Volume, coarsest_mm: float) -> tuple[Level, ...]:
    """Levels of ``image`` from the finest (the image itself, as float32) to about ``coarsest_mm``.

    There are as many as fit: every axis keeps at least `LEAST_VOXELS`.
    """
    spacing = image.spacing_mm
    finest_array = np.ascontiguousarray(image.array, np.float32)
    levels = [Level(Volume.of(finest_array, image.ras_from_index), np.ones(3, np.int64))]
    finest = float(spacing.min())
    while (target := finest * 2.0 ** len(levels)) <= coarsest_mm * 1.2:
        factors = np.array([max(1, 2 ** round(np.log2(target / s))) for s in spacing], np.int64)
        step = factors // levels[-1].factors
        before = levels[-1].volume.array
        shape = tuple(int(n) // int(f) for n, f in zip(before.shape, step[::-1], strict=True))
        if min(shape) < LEAST_VOXELS:
            break
        out = np.empty(shape, np.float32)
        _block_mean(before, np.ascontiguousarray(step[::-1]), out)
        # Voxel 0 of the level covers voxels 0 … f - 1 of the image.
        full_from_level = np.diag([*factors.astype(np.float64), 1.0])
        full_from_level[:3, 3] = (factors - 1) / 2.0
        levels.append(Level(Volume.of(out, image.ras_from_index @ full_from_level), factors))
    return tuple(levels)


def nearest_level(levels: Sequence[Level], pitch_mm: float) -> int:
    """Which of the levels has the pitch that is nearest, in ratio, to ``pitch_mm``."""
    return min(range(len(levels)), key=lambda n: abs(math.log(levels[n].pitch_mm / pitch_mm)))


def mask_at(mask: NDArray[np.generic] | None, level: Level) -> NDArray[np.uint8]:
    """A mask on the image's grid, (k, j, i), as (k, j, i) uint8 on that of ``level``: its voxel nearest each centre.

    None, which is everywhere, becomes `NO_MASK`.
    """
    if mask is None:
        return NO_MASK
    picked = mask[tuple(slice(int(f) // 2, None, int(f)) for f in level.factors[::-1])]
    nk, nj, ni = level.volume.array.shape
    return np.ascontiguousarray(picked[:nk, :nj, :ni] != 0).view(np.uint8)


KERNELS = (
    KernelSpec(
        "image pyramid",
        _block_mean,
        ("Array(float32, 3, 'C', readonly=True), int64[::1], float32[:, :, ::1]",),
    ),
)
