"""Simulated CT fluoroscopy with known truth, from the real CTs: what ``benchmarks/registration/slice.py`` registers.

The slice is looked up with cubic splines in the CT as it was scanned, integrated over a trapezoidal profile, and gets
a needle (bright shaft, bloom, dark and bright streaks), noise that is correlated as in a reconstruction, photon
streaks, a gain and an offset, and a circular field of view. The registration sees the CT on 256×256×128 voxels with
noise of its own, and none of this.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates, spline_filter
from scipy.spatial.transform import Rotation

from nav.geometry.volume import Volume
from nav.io.ct import load_ct

Matrix = NDArray[np.float64]

SHAPE = (128, 256, 256)
NOISE_HU = 20.0
PIXELS = 256
OUTSIDE_HU = -1024
SUB_SLICES = 11


@dataclass(frozen=True)
class Patient:
    """A CT: its spline coefficients (k, j, i) as it was scanned, and as the registration sees it."""

    coefficients: NDArray[np.float32]
    grid: Matrix
    ct: Volume


@dataclass(frozen=True)
class Motion:
    """Local motion: a bump of ``peak_mm`` (3,) RAS about ``centre`` (3,) of the slice's frame, ``width_mm`` sigma."""

    peak_mm: Matrix
    centre: Matrix
    width_mm: float

    def at(self, points: Matrix) -> Matrix:
        """(n, 3) mm in the CT, of (n, 3) points of the slice's frame."""
        far = ((points - self.centre) ** 2).sum(axis=1) / self.width_mm**2
        return np.asarray(np.exp(-0.5 * far)[:, None] * self.peak_mm)


@dataclass(frozen=True)
class Scene:
    """A slice or stack, the truth (slice to CT, RAS mm), points (n, 3) of the slice inside the body, and the needle."""

    slices: Volume
    truth: Matrix
    points: Matrix
    target: Matrix
    motion: Motion | None

    def where(self, points: Matrix) -> Matrix:
        """(n, 3): where points of the slice lie in the CT."""
        there = points @ self.truth[:3, :3].T + self.truth[:3, 3]
        return there if self.motion is None else there + self.motion.at(points)

    def errors_mm(self, found: Matrix) -> Matrix:
        apart = self.points @ (found - self.truth)[:3, :3].T + (found - self.truth)[:3, 3]
        return np.asarray(np.linalg.norm(apart, axis=1))


def patient(path: Path, rng: np.random.Generator) -> Patient:
    """The CT at ``path``."""
    scan = load_ct(path).volume
    coefficients = spline_filter(scan.array.astype(np.float32), order=3, output=np.float32, mode="mirror")
    step = np.array(scan.array.shape) / np.array(SHAPE)
    at = np.meshgrid(*[np.arange(n, dtype=np.float32) * np.float32(s) for n, s in zip(SHAPE, step, strict=True)],
                     indexing="ij", sparse=False)  # fmt: skip
    array = map_coordinates(coefficients, at, order=3, mode="nearest", prefilter=False, output=np.float32)
    array += rng.normal(0, NOISE_HU, SHAPE).astype(np.float32)
    grid = scan.ras_from_index @ np.diag([*step[::-1], 1.0])
    ct = Volume.of(np.rint(array).clip(-32768, 32767).astype(np.int16), grid)
    return Patient(coefficients, scan.ras_from_index, ct)


def pose(centre: Matrix, millimetres: float, degrees: float, rng: np.random.Generator) -> Matrix:
    """A pose about ``centre``, exactly so far and so turned."""
    direction, axis = (v / np.linalg.norm(v) for v in rng.normal(0, 1, (2, 3)))
    out = np.eye(4)
    out[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees) * axis).as_matrix()
    out[:3, 3] = centre - out[:3, :3] @ centre + millimetres * direction
    return out


def scene(
    body: Patient,
    rng: np.random.Generator,
    *,
    apart_mm: float,
    apart_deg: float,
    motion_mm: float = 0.0,
    motion_off_mm: float = 0.0,
    thickness_mm: float | None = None,
    slices: int = 1,
    needle: bool = True,
    mirrored: bool = False,
) -> Scene:
    """One scene, ``apart_mm`` and ``apart_deg`` from where its header says (the start is the identity).

    Local motion is largest ``motion_off_mm`` from the needle's tip, in the plane.
    """
    ct = body.ct
    thickness = rng.uniform(4.0, 8.0) if thickness_mm is None else thickness_mm
    low, high = ct.corners_ras().min(axis=0), ct.corners_ras().max(axis=0)
    inside = np.argwhere(ct.array[::8, ::8, ::8] > -200) * 8
    middle = ct.to_ras(np.median(inside, axis=0)[::-1])
    half = 0.5 * slices * thickness + 12.0
    centre = middle + rng.uniform(-15, 15, 3)
    centre[2] = rng.uniform(low[2] + half + 20.0, high[2] - half - 20.0)
    wide = min(float(np.max((high - low)[:2])), 320.0)
    grid = np.diag([wide / PIXELS, wide / PIXELS, thickness, 1.0])
    grid[:3, 3] = centre - grid[:3, :3] @ np.array([(PIXELS - 1) / 2, (PIXELS - 1) / 2, (slices - 1) / 2])
    truth = pose(centre, apart_mm, apart_deg, rng)
    j, i = np.indices((PIXELS, PIXELS))
    plane = np.stack([i.ravel(), j.ravel(), np.zeros(i.size)], 1) @ grid[:3, :3].T + grid[:3, 3]
    radius = rng.uniform(0.3, 0.42) * wide
    fov = np.hypot(*(plane - centre)[:, :2].T) < radius
    seen = plane[fov]
    # The needle's target: tissue, not at the border of the field of view.
    there = seen @ truth[:3, :3].T + truth[:3, 3]
    tissue = _look_up(body, there) > -50
    if not tissue.any():
        return scene(body, rng, apart_mm=apart_mm, apart_deg=apart_deg, motion_mm=motion_mm,
                     motion_off_mm=motion_off_mm, thickness_mm=thickness_mm, slices=slices, needle=needle,
                     mirrored=mirrored)  # fmt: skip
    near = tissue & (np.hypot(*(seen - centre)[:, :2].T) < 0.6 * radius)
    pick = seen[near if near.any() else tissue]
    target = pick[rng.integers(len(pick))].copy()
    target[2] = centre[2]
    motion = None
    if motion_mm > 0.0:
        direction = rng.normal(0, 1, 3)
        motion = Motion(motion_mm * direction / np.linalg.norm(direction), target, rng.uniform(20.0, 30.0))
        if motion_off_mm > 0.0:
            angle = rng.uniform(0.0, 2.0 * np.pi)
            away = motion_off_mm * np.array([np.cos(angle), np.sin(angle), 0.0])
            motion = replace(motion, centre=target + away)
    # Trapezoid: a plateau, and flanks of a fifth of the thickness.
    z = np.linspace(-0.6, 0.6, SUB_SLICES) * thickness
    weight = np.clip((0.6 * thickness - np.abs(z)) / (0.2 * thickness) + 1e-6, 0.0, 1.0)
    weight /= weight.sum()
    out = np.full((slices, PIXELS * PIXELS), float(OUTSIDE_HU))
    noise_hu, gain, offset = rng.uniform(30, 60), rng.uniform(0.95, 1.05), rng.uniform(-15, 15)
    for s in range(slices):
        values = np.zeros(len(seen))
        for dz, w in zip(z, weight, strict=True):
            points = seen + np.array([0, 0, s * thickness + dz])
            there = points @ truth[:3, :3].T + truth[:3, 3]
            if motion is not None:
                there += motion.at(points)
            values += w * _look_up(body, there)
        image = np.full(PIXELS * PIXELS, -1000.0)
        image[fov] = gain * values + offset
        image = image.reshape(PIXELS, PIXELS)
        if needle:
            image += _needle(plane.reshape(PIXELS, PIXELS, 3), target, radius, rng)
        noise = gaussian_filter(rng.normal(0, 1, image.shape), 0.6)
        image += noise_hu * noise / noise.std()
        streaks = gaussian_filter1d(rng.normal(0, 1, image.shape), 12.0, axis=1)
        image += 12.0 * streaks / streaks.std()
        out[s, fov] = np.clip(image.ravel()[fov], OUTSIDE_HU, 3071)
    array = np.rint(out).astype(np.int16).reshape(slices, PIXELS, PIXELS)
    if mirrored:
        array = np.ascontiguousarray(array[:, :, ::-1])
    inner = tissue & (np.hypot(*(seen - centre)[:, :2].T) < radius)
    points = seen[inner][rng.choice(int(inner.sum()), min(400, int(inner.sum())), replace=False)]
    return Scene(Volume.of(array, grid), truth, points, target, motion)


def _look_up(body: Patient, ras: Matrix) -> Matrix:
    index = np.linalg.inv(body.grid)
    at = (ras @ index[:3, :3].T + index[:3, 3])[:, ::-1].T
    return np.asarray(
        map_coordinates(
            body.coefficients, at, order=3, mode="constant", cval=-1000.0, prefilter=False, output=np.float64
        )
    )


def _needle(plane: Matrix, target: Matrix, radius: float, rng: np.random.Generator) -> Matrix:
    """(j, i) HU that a needle in the plane adds, its tip in ``target``."""
    angle = rng.uniform(0, 2 * np.pi)
    along = np.array([np.cos(angle), np.sin(angle)])
    rel = plane[..., :2] - target[:2]
    s = rel @ along  # the shaft runs to where s is positive
    across = rel @ np.array([-along[1], along[0]])
    shaft = 3000.0 * np.exp(-0.5 * (across / 1.0) ** 2) * (s > 0.0) * (s < 1.2 * radius)
    bloom = 500.0 * np.exp(-0.5 * (across / 2.5) ** 2) * (s > -3.0)
    # Dark beside and beyond the shaft, bright and dark rays from the tip.
    dark = -250.0 * np.exp(-0.5 * (np.abs(across) / 5.0 - 1.2) ** 2 * 4.0) * np.exp(-np.abs(np.minimum(s, 0.0)) / 40.0)
    far = np.hypot(s, across)
    theta = np.arctan2(across, s)
    rays = np.zeros_like(far)
    for _ in range(10):
        ray = np.angle(np.exp(1j * (theta - rng.uniform(0, 2 * np.pi))))
        rays += rng.normal(0, 80) * np.exp(-0.5 * (ray / rng.uniform(0.03, 0.1)) ** 2)
    return np.asarray(shaft + bloom + dark + rays * np.exp(-far / 60.0))
