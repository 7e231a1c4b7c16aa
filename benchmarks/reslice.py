"""Cost of a plane: our reslice with window and level against SimpleITK's Resample in the same run.

    python benchmarks/reslice.py [--repeat N] [--json FILE]

CPU time of the calling thread (ours) or of the process (SimpleITK, held to one thread), medians; the ratio of the two
is what compares between machines. The volume is synthetic, 512 × 512 × 300 int16 (157 MB).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from nav.geometry.volume import Volume
from nav.imaging.planes import AXIAL, SAGITTAL, PlaneAxes, needle_axes, plane_matrix
from nav.imaging.reslice import reslice_plane

SIZE = (300, 512, 512)
SPACING_MM = (0.7, 0.7, 1.0)
WINDOW_HU, LEVEL_HU = 400.0, 40.0

PLANES: dict[str, tuple[PlaneAxes, int, int, float]] = {
    "axial 512², 0.6 mm": (AXIAL, 512, 512, 0.6),
    "sagittal 512², 0.6 mm": (SAGITTAL, 512, 512, 0.6),
    "oblique 512², 0.3 mm": (needle_axes((-0.6, -0.7, 0.3))[0], 512, 512, 0.3),
    "oblique 512², 0.6 mm": (needle_axes((-0.6, -0.7, 0.3))[1], 512, 512, 0.6),
    "oblique pane 792 × 519, 0.27 mm": (needle_axes((-0.6, -0.7, 0.3))[2], 792, 519, 0.27),
}


def synthetic_ct() -> Volume:
    """Noise on a smooth background, so that no plane is cheaper than another by its content."""
    rng = np.random.default_rng(1)
    noise = rng.normal(0.0, 30.0, (64, 512, 512)).astype(np.int16)
    array = np.tile(noise, (5, 1, 1))[: SIZE[0]]
    array += (np.arange(SIZE[1], dtype=np.int16)[:, None] // 2 - 80) + np.int16(0)
    return Volume.of(array, np.diag([*SPACING_MM, 1.0]))


def median_ms(work: Callable[[int], object], clock: Callable[[], float], repeat: int) -> float:
    """Median CPU time of a call; the first is left out (caches, first touch)."""
    times = []
    for n in range(repeat + 1):
        start = clock()
        work(n)
        times.append((clock() - start) * 1e3)
    return statistics.median(times[1:])


def sitk_reslice(image: sitk.Image, m: np.ndarray, width: int, height: int, mm_per_px: float) -> np.ndarray:
    """The same plane by SimpleITK: resample to int16, then window and level to uint8.

    The volume's axes are used as ITK's world axes (no flip): it is the same grid either way.
    """
    resample = sitk.ResampleImageFilter()
    resample.SetNumberOfThreads(1)
    resample.SetInterpolator(sitk.sitkLinear)
    resample.SetSize((width, height, 1))
    resample.SetOutputSpacing((mm_per_px, mm_per_px, 1.0))
    resample.SetOutputOrigin(m[:3, 3].tolist())
    resample.SetOutputDirection(
        np.stack((m[:3, 0] / mm_per_px, m[:3, 1] / mm_per_px, m[:3, 2]), axis=1).ravel().tolist()
    )
    resample.SetDefaultPixelValue(-32768)
    plane = sitk.GetArrayFromImage(resample.Execute(image))[0]
    low = LEVEL_HU - WINDOW_HU / 2.0
    grey = (plane.astype(np.float32) - low) * (254.0 / WINDOW_HU) + 1.5
    return np.where(plane == -32768, 0, np.clip(grey, 1, 255)).astype(np.uint8)


def main() -> None:
    """Measure, print a table, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    volume = synthetic_ct()
    image = sitk.GetImageFromArray(volume.array)
    image.SetSpacing(SPACING_MM)
    rows = []
    print(f"{'plane':34s} {'ours ms':>8s} {'SimpleITK ms':>13s} {'ratio':>6s} {'largest difference':>19s}")
    for name, (axes, width, height, mm_per_px) in PLANES.items():
        centre = volume.centre_ras()
        out = np.empty((height, width), np.uint8)

        def plane(n: int) -> np.ndarray:
            # A plane that moves a little every time, as a needle's does.
            return plane_matrix(axes, centre + 0.3 * n * axes.into, width, height, mm_per_px)  # noqa: B023

        def ours(n: int) -> object:
            return reslice_plane(volume, plane(n), width, height, WINDOW_HU, LEVEL_HU, out)  # noqa: B023

        def theirs(n: int) -> np.ndarray:
            return sitk_reslice(image, plane(n), width, height, mm_per_px)  # noqa: B023

        mine = median_ms(ours, time.thread_time, args.repeat)
        other = median_ms(theirs, time.process_time, args.repeat)
        reference = theirs(0).astype(int)
        both = (reference > 0) & (np.asarray(ours(0)) > 0)
        difference = int(np.abs(out.astype(int) - reference)[both].max())
        if difference > 2:
            raise SystemExit(f"{name}: the two pictures differ by {difference} grey values, at most 2 expected")
        rows.append({"plane": name, "ours_ms": mine, "simpleitk_ms": other, "ratio": other / mine, "grey": difference})
        print(f"{name:34s} {mine:8.2f} {other:13.2f} {other / mine:6.1f} {difference:13d} grey")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
