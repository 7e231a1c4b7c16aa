"""What an MR or a PET scanner would see of a patient whose CT is known: simulated, for measurements with known truth.

Nothing here is shared with the program: images are sampled with cubic splines from the CT at its own resolution, over
the thickness of a slice, through the true pose. Intensities come from curves that are neither monotonic nor one to one,
from labels where there are any (tumour, liver, spleen, kidneys, vessels), and from a texture that the CT does not show.
On top lie a bias field of the coil, Rician noise and a smaller field of view; the CT's own noise is smoothed away
first, so that both images have noise of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, spline_filter, zoom

from nav.geometry.volume import Volume

__all__ = ["MR", "PET", "Contrast", "Scanner", "patient", "scan"]

Array = NDArray[np.float64]

#: HU and what is seen there. Bone and air are dark, fat is bright or not, fluid is the brightest or not.
CURVES: dict[str, list[tuple[float, float]]] = {
    "T1": [(-1000, 0), (-700, 25), (-250, 60), (-130, 820), (-70, 800), (-15, 180), (10, 210), (60, 430), (110, 520),
           (170, 380), (230, 200), (400, 140), (900, 30), (3000, 20)],
    "T2": [(-1000, 0), (-700, 40), (-250, 80), (-130, 640), (-70, 600), (-15, 850), (10, 900), (45, 300), (80, 220),
           (120, 260), (180, 90), (230, 160), (400, 120), (900, 30), (3000, 20)],
    "T1 fat saturated": [(-1000, 0), (-700, 20), (-250, 30), (-130, 120), (-70, 110), (-15, 150), (30, 300), (60, 380),
                         (110, 560), (150, 700), (220, 620), (300, 180), (500, 100), (900, 25), (3000, 20)],
    "PET": [(-1000, 0), (-850, 0.35), (-250, 0.5), (-100, 0.3), (0, 0.9), (60, 1.1), (120, 2.0), (200, 1.8), (350, 1.6),
            (800, 0.9), (3000, 0.2)],
}  # fmt: skip
#: Labels of 3D-IRCADb-01 case 1 and what is seen there.
ORGANS: dict[str, dict[int, float]] = {
    "T1": {449: 560, 451: 330, 453: 330, 385: 340, 129: 390, 193: 390, 513: 120, 465: 300, 481: 300},
    "T2": {449: 240, 451: 620, 453: 620, 385: 560, 129: 700, 193: 700, 513: 70, 465: 400, 481: 380},
    "T1 fat saturated": {449: 600, 451: 260, 453: 260, 385: 420, 129: 800, 193: 800, 513: 850, 465: 780, 481: 760},
    "PET": {449: 2.1, 451: 5.5, 453: 5.5, 385: 1.8, 129: 6.0, 193: 6.0, 513: 1.6, 465: 1.7, 481: 1.7},
}


@dataclass(frozen=True)
class Contrast:
    """What a scanner would see without noise: ``spline`` coefficients (k, j, i) on the CT's grid."""

    name: str
    spline: NDArray[np.float32]
    index_from_ras: Array
    brightest: float


@dataclass(frozen=True)
class Scanner:
    """Voxels (mm along i, j, k) and how the image is spoilt.

    Attributes
    ----------
    field_mm : tuple of 3 float
        Most it shows along x, y, z.
    bias : float
        Sensitivity of the coil varies by so much (standard deviation of its logarithm).
    noise : float
        Of one channel, by the brightest tissue.
    smoothness_mm : float
        Full width at half maximum of the image's (and its noise's) blur.
    """

    spacing_mm: tuple[float, float, float]
    field_mm: tuple[float, float, float] = (330.0, 260.0, 150.0)
    bias: float = 0.2
    noise: float = 0.04
    smoothness_mm: float = 0.0


MR = (
    Scanner((1.5, 1.5, 4.0)),
    Scanner((1.2, 1.2, 3.0), (300.0, 240.0, 170.0), 0.25, 0.05),
    Scanner((2.0, 2.0, 2.0), (340.0, 280.0, 130.0), 0.15, 0.03),
)
PET = (Scanner((4.07, 4.07, 3.0), (600.0, 600.0, 400.0), 0.0, 0.12, 5.0),)


def patient(ct: Volume, labels: NDArray[np.generic] | None, rng: np.random.Generator) -> dict[str, Contrast]:
    """What can be seen of a patient, by the name of the contrast."""
    spacing = ct.spacing_mm[::-1]
    smooth = gaussian_filter(ct.array.astype(np.float32), 0.9 / spacing)
    shape = ct.array.shape
    coarse = [max(4, int(n * s / 5.0)) for n, s in zip(shape, spacing, strict=True)]
    out = {}
    for name, curve in CURVES.items():
        seen = np.interp(smooth, *np.array(curve).T).astype(np.float32)
        if labels is not None:
            for label, value in ORGANS[name].items():
                seen[labels == label] = value
        texture = zoom(gaussian_filter(rng.normal(0, 1, coarse), 1.0), np.array(shape) / coarse, order=1)
        seen *= 1.0 + 0.08 * (texture / texture.std()).astype(np.float32)
        seen = gaussian_filter(seen, 0.5 / spacing)
        out[name] = Contrast(name, spline_filter(seen, 3, np.float32), ct.index_from_ras, max(v for _, v in curve))
    return out


def _smooth_field(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Standard deviation 1, over about half of the image."""
    small = gaussian_filter(rng.normal(0, 1, (12, 12, 12)), 2.5)[2:10, 2:10, 2:10]
    field = zoom(small, np.array(shape) / 8.0, order=3, grid_mode=True, mode="nearest")
    return np.asarray((field - field.mean()) / field.std())


def scan(contrast: Contrast, scanner: Scanner, centre_ras: Array, truth: Array, rng: np.random.Generator) -> Volume:
    """The patient in a scanner; ``truth`` takes CT to scanner, RAS mm, ``centre_ras`` is the middle of the scan."""
    spacing = np.array(scanner.spacing_mm)
    size = np.round(np.array(scanner.field_mm) / spacing).astype(int)
    grid = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    grid[:3, 3] = centre_ras - grid[:3, :3] @ ((size - 1) / 2.0) + rng.uniform(-3, 3, 3)
    parts = max(1, round(float(spacing[2]) / 1.0))
    total = np.zeros(tuple(size[::-1]), np.float32)
    k, j, i = np.indices(total.shape, np.float32)
    for part in range(parts):
        index = contrast.index_from_ras @ np.linalg.inv(truth) @ grid
        within = k + (part + 0.5) / parts - 0.5
        at = [index[r, 0] * i + index[r, 1] * j + index[r, 2] * within + index[r, 3] for r in (2, 1, 0)]
        total += map_coordinates(contrast.spline, at, order=3, mode="constant", prefilter=False)
    image: Any = total / parts
    sigma = scanner.smoothness_mm / 2.355 / spacing[::-1]
    image = gaussian_filter(image, sigma)
    if scanner.bias:
        image = image * np.exp(scanner.bias * _smooth_field(image.shape, rng))
    noise = scanner.noise * contrast.brightest
    channels = [gaussian_filter(rng.normal(0, 1, image.shape), sigma) for _ in range(2)]
    one, two = (noise * c / c.std() for c in channels)
    if scanner.smoothness_mm:  # counts: the noise grows with what is counted
        image = np.maximum(image + one * np.sqrt(np.maximum(image, 0.0) / contrast.brightest), 0.0) * 1000.0
    else:
        image = np.hypot(image + one, two)
    return Volume.of(np.rint(image).astype(np.int16), grid)
