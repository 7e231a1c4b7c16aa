"""The built-in patient: a parametric abdomen painted into a contrast CT with partial volume, texture and noise.

Every organ is a signed distance (mm, negative inside) turned into a coverage fraction over one voxel, so that edges
show partial volume as a scanner does. Tissue values are those of a portal-venous CT at 120 kV (textbook ranges).
Coordinates are RAS mm with the origin in the middle of the trunk; the patient lies supine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Anatomy", "PatientParameters", "Tissue", "Tumour", "acquire", "build_anatomy"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


class Tissue(IntEnum):
    """Values of the label map."""

    OUTSIDE = 0
    BODY = 1
    RIB = 2
    SPINE = 3
    LIVER = 4
    PORTAL_VEIN = 5
    HEPATIC_VEIN = 6
    LUNG = 7
    GREAT_VESSEL = 8
    KIDNEY = 9
    SPLEEN = 10
    BOWEL = 11
    HEART = 12
    TUMOUR_1 = 20
    TUMOUR_2 = 21
    TUMOUR_3 = 22


@dataclass(frozen=True, slots=True)
class PatientParameters:
    """What decides the built-in patient.

    Attributes
    ----------
    seed : int
        Varies the vessels, the tumours' places and shapes, the texture and the noise.
    size : (i, j, k) voxels
    spacing_mm : (3,) along R, A, S
    noise_hu : float
        Standard deviation of the CT's noise.
    """

    seed: int = 1
    size: tuple[int, int, int] = (256, 200, 140)
    spacing_mm: tuple[float, float, float] = (1.4, 1.4, 1.6)
    noise_hu: float = 11.0


@dataclass(frozen=True, slots=True)
class Tumour:
    """A tumour: label value, centre RAS mm, mean radius mm."""

    label: int
    centre_ras: tuple[float, float, float]
    radius_mm: float


@dataclass(frozen=True, slots=True, eq=False)
class Anatomy:
    """The painted patient, noise-free.

    Attributes
    ----------
    hu : (k, j, i) float32
        HU without noise (with tissue texture).
    labels : (k, j, i) uint8
        Values of `Tissue`.
    ras_from_index : (4, 4) float64
    tumours : tuple of Tumour
        The first is the target.
    """

    hu: F32
    labels: NDArray[np.uint8]
    ras_from_index: F64
    tumours: tuple[Tumour, ...]


# Trunk: half axes of the super-ellipse, mm.
_HALF_WIDTH, _HALF_FRONT, _HALF_BACK, _POWER = 160.0, 108.0, 96.0, 2.35
_SPINE_Y = -52.0
_RIB_PITCH, _RIB_RADIUS = 27.0, 5.2


def _trunk(x: F64, y: F64, z: float) -> tuple[F64, F64]:
    """Depth below the skin (mm, positive inside, first order) and the fat's thickness there, at height ``z``."""
    scale = 1.0 - 0.05 * ((z - 15.0) / 110.0) ** 2 + 0.015 * np.sin(z / 38.0)
    a = _HALF_WIDTH * scale
    b = np.where(y > 0.0, _HALF_FRONT, _HALF_BACK) * scale
    u, v = np.abs(x) / a, np.abs(y) / b
    s = u**_POWER + v**_POWER + 1e-12
    rho = s ** (1.0 / _POWER)
    slope = s ** (1.0 / _POWER - 1.0)
    gradient = np.hypot(slope * u ** (_POWER - 1.0) / a, slope * v ** (_POWER - 1.0) / b)
    depth = (1.0 - rho) / np.maximum(gradient, 1.0 / _HALF_WIDTH)
    radius = np.hypot(x, y) + 1e-9
    fat = 9.0 + 9.0 * np.maximum(y / radius, 0.0) ** 2 + 4.0 * np.maximum(-y / radius, 0.0) ** 4
    return depth, fat


def _rib_point(angle_deg: float, z: float, side: float) -> tuple[float, float]:
    """In-plane place of a rib at an angle about the trunk (0 lateral, 90 in front), in the middle of the wall."""
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    low, high = 20.0, 200.0
    for _ in range(40):
        mid = 0.5 * (low + high)
        depth, fat = _trunk(np.array(mid * c), np.array(mid * s), z)
        if depth > fat + 6.5:
            low = mid
        else:
            high = mid
    return side * low * c, low * s


class _Canvas:
    """A volume to paint on, by signed distances inside bounding boxes."""

    def __init__(self, parameters: PatientParameters) -> None:
        ni, nj, nk = parameters.size
        self.spacing = np.array(parameters.spacing_mm, dtype=np.float64)
        self.origin = -self.spacing * (np.array(parameters.size) - 1) / 2.0
        self.hu: F32 = np.full((nk, nj, ni), -1000.0, dtype=np.float32)
        self.labels: NDArray[np.uint8] = np.zeros((nk, nj, ni), dtype=np.uint8)
        self.axes = [(self.origin[a] + self.spacing[a] * np.arange(n)).astype(np.float32)
                     for a, n in enumerate((ni, nj, nk))]  # fmt: skip
        self.pitch = float(self.spacing.mean())

    def box(self, low: F64, high: F64) -> tuple[slice, slice, slice] | None:
        """Slices (k, j, i) of the voxels between two corners, None when outside."""
        shape = self.hu.shape[::-1]
        start = np.maximum(np.floor((low - self.origin) / self.spacing).astype(int), 0)
        stop = np.minimum(np.ceil((high - self.origin) / self.spacing).astype(int) + 1, shape)
        if (stop <= start).any():
            return None
        return slice(start[2], stop[2]), slice(start[1], stop[1]), slice(start[0], stop[0])

    def grid(self, box: tuple[slice, slice, slice]) -> tuple[F32, F32, F32]:
        """Broadcastable x, y, z of a box."""
        x, y, z = self.axes[0][box[2]], self.axes[1][box[1]], self.axes[2][box[0]]
        return x[None, None, :], y[None, :, None], z[:, None, None]

    def paint(
        self,
        low: F64,
        high: F64,
        distance: Callable[[F32, F32, F32], F32],
        hu: float | F32,
        label: int | None,
        only: tuple[int, ...] = (),
    ) -> None:
        """Mix ``hu`` in by coverage, label what is more than half covered; ``only``: within these labels."""
        box = self.box(low, high)
        if box is None:
            return
        sdf = distance(*self.grid(box))
        cover = np.clip(0.5 - sdf / self.pitch, 0.0, 1.0)
        target, labels = self.hu[box], self.labels[box]
        if only:
            cover = np.where(np.isin(labels, only), cover, 0.0).astype(np.float32)
        target += cover * (hu - target)
        if label is not None:
            labels[cover > 0.5] = label

    def capsule(self, p: F64, q: F64, r0: float, r1: float, hu: float, label: int | None) -> None:
        """A tapered tube from ``p`` to ``q``."""
        axis = q - p
        length2 = float(axis @ axis) + 1e-9

        def distance(x: F32, y: F32, z: F32) -> F32:
            dx, dy, dz = x - p[0], y - p[1], z - p[2]
            t = np.clip((dx * axis[0] + dy * axis[1] + dz * axis[2]) / length2, 0.0, 1.0)
            out = np.sqrt((dx - t * axis[0]) ** 2 + (dy - t * axis[1]) ** 2 + (dz - t * axis[2]) ** 2)
            return np.asarray(out - (r0 + t * (r1 - r0)), dtype=np.float32)

        reach = max(r0, r1) + 2.0
        self.paint(np.minimum(p, q) - reach, np.maximum(p, q) + reach, distance, hu, label)

    def ellipsoid(
        self, centre: F64, radii: F64, hu: float | F32, label: int | None, only: tuple[int, ...] = ()
    ) -> None:
        """An ellipsoid with axes along R, A, S."""
        self.paint(centre - radii - 2.0, centre + radii + 2.0,
                   lambda x, y, z: _ellipsoid(x, y, z, centre, radii), hu, label, only)  # fmt: skip


def _ellipsoid(x: F32, y: F32, z: F32, centre: F64, radii: F64) -> F32:
    u, v, w = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1], (z - centre[2]) / radii[2]
    k0 = np.sqrt(u * u + v * v + w * w) + 1e-6
    k1 = np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2 + (w / radii[2]) ** 2) + 1e-9
    return np.asarray(k0 * (k0 - 1.0) / k1, dtype=np.float32)


def _smooth_min(a: F32, b: F32, k: float) -> F32:
    h = np.clip(0.5 + 0.5 * (b - a) / k, 0.0, 1.0)
    return np.asarray(b + h * (a - b) - k * h * (1.0 - h), dtype=np.float32)


def _liver(x: F32, y: F32, z: F32) -> F32:
    """Signed distance of the liver before it is fitted into the trunk: a right and a left lobe, blended."""
    right = _ellipsoid(x, y, z, np.array([74.0, -2.0, 12.0]), np.array([82.0, 84.0, 86.0]))
    left = _ellipsoid(x, y, z, np.array([2.0, 46.0, 36.0]), np.array([82.0, 40.0, 42.0]))
    hollow = _ellipsoid(x, y, z, np.array([8.0, -8.0, -42.0]), np.array([46.0, 48.0, 62.0]))
    return np.maximum(_smooth_min(right, left, 18.0), -hollow)


def _in_liver(point: F64) -> float:
    """Signed distance (mm) of one point to the liver's surface."""
    x, y, z = np.asarray(point, dtype=np.float32).reshape(3, 1)
    return float(_liver(x, y, z)[0])


def _grow(
    rng: np.random.Generator, start: F64, direction: F64, length: float, radius: float, levels: int
) -> list[tuple[F64, F64, float, float]]:
    """A vessel tree as tapered segments: each branch wavers and splits in two (cube law for the radii)."""
    segments: list[tuple[F64, F64, float, float]] = []
    point, heading = start.copy(), direction / np.linalg.norm(direction)
    taper = np.linspace(radius, radius * 0.86, 4)
    for n in range(3):
        heading = heading + 0.16 * rng.standard_normal(3)
        heading /= np.linalg.norm(heading)
        following = point + heading * length / 3.0
        if _in_liver(following) > -5.0:
            return segments
        segments.append((point, following, float(taper[n]), float(taper[n + 1])))
        point = following
    if levels == 0:
        return segments
    normal = np.cross(heading, rng.standard_normal(3))
    normal /= np.linalg.norm(normal)
    share = rng.uniform(0.4, 0.6)
    for sign, part in ((1.0, share), (-1.0, 1.0 - share)):
        turn = np.deg2rad(rng.uniform(24.0, 46.0)) * sign
        branch = np.cos(turn) * heading + np.sin(turn) * normal
        segments += _grow(rng, point, branch, length * rng.uniform(0.72, 0.9),
                          radius * 0.86 * float(np.cbrt(part)), levels - 1)  # fmt: skip
    return segments


def _paint_trunk(canvas: _Canvas) -> F32:
    """Skin, fat, muscle wall, belly fat, table; slice by slice. Gives the depth (mm) beyond the wall's inner side."""
    beyond_wall = np.empty_like(canvas.hu)
    x, y = np.meshgrid(canvas.axes[0].astype(np.float64), canvas.axes[1].astype(np.float64))
    for k, z in enumerate(canvas.axes[2]):
        depth, fat = _trunk(x, y, float(z))
        muscle, inner = depth - fat, depth - fat - 13.0
        beyond_wall[k] = inner
        hu = canvas.hu[k]
        table = np.abs(y + _HALF_BACK + 12.0 - 0.0004 * x * x) - 5.0
        on_table = np.abs(x) < 168.0
        foam = np.where(on_table, np.clip(0.5 - table / canvas.pitch, 0.0, 1.0), 0.0)
        shell = np.where(on_table, np.clip(0.5 - (np.abs(table) - 1.3) / canvas.pitch, 0.0, 1.0), 0.0)
        for cover_table, value in ((foam, -900.0), (shell, 220.0)):
            hu += (cover_table * (value - hu)).astype(np.float32)
        for d, value in ((depth, 25.0), (depth - 2.0, -104.0), (muscle, 58.0), (inner, -96.0)):
            cover = np.clip(0.5 + d / canvas.pitch, 0.0, 1.0).astype(np.float32)
            hu += cover * (np.float32(value) - hu)
        canvas.labels[k][depth > 0.0] = Tissue.BODY
    return beyond_wall


def _paint_organs(canvas: _Canvas, inner: F32) -> None:
    """Lungs, heart, liver, spleen, stomach, kidneys, bowel."""
    everywhere = canvas.box(np.full(3, -1e6), np.full(3, 1e6))
    assert everywhere is not None
    x, y, z = canvas.grid(everywhere)
    low, high = np.full(3, -1e6), np.full(3, 1e6)
    liver = np.maximum(_liver(x, y, z), 2.5 - inner)
    dome_left = _ellipsoid(x, y, z, np.array([-80.0, -4.0, 10.0]), np.array([78.0, 88.0, 66.0]))
    lung = np.maximum(np.maximum(1.0 - inner, 34.0 - z), np.maximum(5.0 - liver, 4.0 - dome_left))
    mediastinum = np.maximum(np.abs(x + 4.0) - 24.0, y - 70.0)
    lung = np.maximum(lung, -mediastinum)
    canvas.paint(low, high, lambda *_: lung, -850.0, Tissue.LUNG)
    canvas.ellipsoid(np.array([-30.0, 36.0, 112.0]), np.array([62.0, 48.0, 40.0]), 135.0, Tissue.HEART)
    canvas.paint(low, high, lambda *_: np.asarray(np.maximum(dome_left + 1.0, 3.0 - inner), np.float32),
                 -100.0, Tissue.BODY, only=(int(Tissue.LUNG), int(Tissue.BODY)))  # fmt: skip
    canvas.ellipsoid(np.array([-58.0, 38.0, 28.0]), np.array([44.0, 38.0, 46.0]), 38.0, Tissue.BOWEL)
    canvas.ellipsoid(np.array([-56.0, 58.0, 34.0]), np.array([34.0, 16.0, 34.0]), -920.0, Tissue.BOWEL)
    spleen_radii = np.array([27.0, 44.0, 52.0])
    canvas.ellipsoid(np.array([-106.0, -24.0, 26.0]), spleen_radii, 122.0, Tissue.SPLEEN)
    canvas.paint(low, high, lambda *_: liver, 112.0, Tissue.LIVER)
    for side in (1.0, -1.0):
        centre = np.array([side * 68.0, -46.0, -52.0 + 8.0 * (side < 0)])
        canvas.ellipsoid(centre, np.array([33.0, 31.0, 56.0]), -100.0, Tissue.BODY)
        canvas.ellipsoid(centre, np.array([26.0, 24.0, 49.0]), 186.0, Tissue.KIDNEY)
        canvas.ellipsoid(centre, np.array([17.0, 15.0, 38.0]), 148.0, Tissue.KIDNEY)
        canvas.ellipsoid(centre - np.array([side * 8.0, 0.0, 0.0]), np.array([14.0, 9.0, 24.0]), -70.0, Tissue.BODY)
    canvas.ellipsoid(np.array([44.0, 52.0, -42.0]), np.array([17.0, 16.0, 28.0]), 12.0, Tissue.BOWEL)


def _paint_bowel(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Loops in the lower belly: wall, content, gas on top."""
    for n in range(26):
        centre = np.array([rng.uniform(-100, 62), rng.uniform(-8, 66), rng.uniform(-106, -52)])
        if centre[0] > 0.0:
            centre[2] = min(centre[2], -84.0)
        turn = rng.uniform(0.0, np.pi)
        bends: list[F64] = []
        for m in range(6):
            depth, fat = _trunk(np.array(centre[0]), np.array(centre[1]), float(centre[2]))
            if float(depth - fat) < 13.0 + 15.0:
                break
            bends.append(centre)
            step = np.array([np.cos(turn + 0.5 * m), 0.5 * np.sin(0.9 * m), 0.6 * np.sin(turn + 0.7 * m)])
            centre = centre + 13.0 * step
        up = np.array([0.0, 5.0, 0.0])
        for radius, hu, lift in ((12.5, 72.0, 0.0), (10.3, 18.0, 0.0), (4.8, -820.0, 1.0 if n % 4 == 0 else -1.0)):
            for p, q in pairwise(bends):
                if lift >= 0.0:
                    canvas.capsule(p + lift * up, q + lift * up, radius, radius, hu, int(Tissue.BOWEL))


def _paint_skeleton(canvas: _Canvas) -> None:
    """Vertebrae with discs and arches, ribs with marrow and cartilage, back muscles."""
    top = canvas.axes[2][-1]
    for side in (1.0, -1.0):
        for z in np.arange(-120.0, 121.0, 12.0):
            canvas.ellipsoid(np.array([side * 34.0, -66.0, z]), np.array([24.0, 17.0, 14.0]), 60.0, None)
    canvas.capsule(np.array([0, _SPINE_Y, -140.0]), np.array([0, _SPINE_Y, 140.0]), 20.0, 20.0, 92.0, Tissue.SPINE)
    for z in np.arange(-126.0, 127.0, 31.0):
        body = np.array([0.0, _SPINE_Y, z])

        def vertebra(x: F32, y: F32, zz: F32, z: float = float(z)) -> F32:
            radial = (np.sqrt((x / 22.5) ** 2 + ((y - _SPINE_Y) / 18.0) ** 2) - 1.0) * 19.0
            return np.asarray(np.maximum(radial, np.abs(zz - z) - 12.5), np.float32)

        def marrow(x: F32, y: F32, zz: F32, shape: Callable[..., F32] = vertebra) -> F32:
            return np.asarray(shape(x, y, zz) + 2.0, np.float32)

        half = np.array([25.0, 21.0, 15.0])
        canvas.paint(body - half, body + half, vertebra, 430.0, Tissue.SPINE)
        canvas.paint(body - half, body + half, marrow, 185.0, Tissue.SPINE)
        arch = body + np.array([0.0, -26.5, -2.0])
        for side in (1.0, -1.0):
            pedicle = body + np.array([side * 12.0, -15.0, 2.0])
            lamina = pedicle + np.array([side * 3.0, -11.0, 0.0])
            canvas.capsule(pedicle, lamina, 4.5, 4.5, 420.0, Tissue.SPINE)
            canvas.capsule(lamina, arch, 4.2, 4.0, 400.0, Tissue.SPINE)
            canvas.capsule(lamina, pedicle + np.array([side * 26.0, -14.0, 2.0]), 4.0, 3.4,
                           380.0, Tissue.SPINE)  # fmt: skip
        canvas.capsule(arch, arch + np.array([0.0, -1.5, -9.0]), 4.2, 4.0, 400.0, Tissue.SPINE)
    canvas.capsule(np.array([0, -71.0, -140.0]), np.array([0, -71.0, 140.0]), 6.0, 6.0, 32.0, Tissue.SPINE)
    for side in (1.0, -1.0):
        for n in range(-3, 9):
            lateral = 68.0 - _RIB_PITCH * n + 54.0
            if lateral < -46.0:
                continue
            front = 72.0 if lateral > 20.0 else (48.0 if lateral > -10.0 else 8.0)
            angles = np.linspace(-78.0, front, 30)
            heights = lateral - 26.0 * np.sin(np.deg2rad(angles))
            in_reach = heights < top + 12.0
            points = [np.array([*_rib_point(a, h, side), h]) for a, h in zip(angles, heights, strict=True)]
            for hu, inset in ((640.0, 0.0), (150.0, 2.0)):
                for m in range(29):
                    if in_reach[m] or in_reach[m + 1]:
                        r = _RIB_RADIUS - inset
                        canvas.capsule(points[m], points[m + 1], r, r, hu, Tissue.RIB)
            if front > 40.0:
                tip = points[-1]
                rise = 46.0 if front > 60.0 else 58.0
                ahead = np.array([*_rib_point(min(front + 17.0, 88.0), tip[2] + rise * 0.4, side), tip[2] + rise * 0.6])
                canvas.capsule(tip, ahead, 5.0, 5.4, 105.0, Tissue.RIB)


def _paint_vessels(canvas: _Canvas, rng: np.random.Generator) -> tuple[F64, float]:
    """Aorta, vena cava, portal and hepatic veins; gives a place on a mid-sized branch and its radius."""

    def tube(points: list[list[float]], r: float, hu: float, label: int) -> None:
        for p, q in pairwise(points):
            canvas.capsule(np.array(p), np.array(q), r, r, hu, label)

    great, portal_label, hepatic_label = int(Tissue.GREAT_VESSEL), int(Tissue.PORTAL_VEIN), int(Tissue.HEPATIC_VEIN)
    tube([[-9, -24, -140], [-8, -23, -40], [-12, -25, 40], [-16, -28, 140]], 10.0, 188.0, great)
    tube([[19, -22, -140], [20, -20, -30], [24, -14, 30], [22, -4, 84], [18, 2, 120]], 11.0, 150.0, great)
    tube([[-14, 2, -140], [-4, 8, -60], [12, 12, -20], [34, 12, -2]], 6.4, 176.0, portal_label)
    tube([[-100, -18, 6], [-60, -6, -6], [-20, 2, -18], [4, 10, -28]], 4.2, 174.0, portal_label)
    hilum = np.array([34.0, 12.0, -2.0])
    portal = _grow(rng, hilum, np.array([1.0, -0.1, 0.15]), 32.0, 6.6, 6)
    portal += _grow(rng, hilum, np.array([0.75, 0.25, 0.75]), 30.0, 5.4, 5)
    portal += _grow(rng, hilum, np.array([-0.45, 0.75, 0.75]), 30.0, 5.0, 4)
    cava = np.array([24.0, -6.0, 68.0])
    hepatic: list[tuple[F64, F64, float, float]] = []
    for heading in ([0.9, -0.35, -0.45], [0.65, 0.6, -0.4], [-0.2, 0.85, -0.35]):
        hepatic += _grow(rng, cava, np.array(heading), 34.0, 6.0, 5)
    for p, q, r0, r1 in hepatic:
        canvas.capsule(p, q, r0, r1, 172.0, hepatic_label)
    for p, q, r0, r1 in portal:
        canvas.capsule(p, q, r0, r1, 190.0, portal_label)
    # A vessel of 2.5 to 4 mm radius, well inside the liver and away from the target: where tumour 2 will sit.
    chosen = [(0.5 * (p + q), 0.5 * (r0 + r1)) for p, q, r0, r1 in portal + hepatic
              if 2.3 < r0 < 4.2 and np.linalg.norm(0.5 * (p + q) - [92.0, 0.0, 6.0]) > 38.0
              and _in_liver(0.5 * (p + q)) < -22.0]  # fmt: skip
    if not chosen:
        chosen = [(0.5 * (hilum + portal[0][1]), 5.0)]
    return chosen[int(rng.integers(len(chosen)))]


def _paint_tumours(canvas: _Canvas, rng: np.random.Generator, vessel: F64, vessel_radius: float) -> tuple[Tumour, ...]:
    """A 20 mm target in the right lobe, one beside a vessel, one in the left lobe; lobed, with a faint rim."""
    target = np.array([90.0, -4.0, 8.0]) + rng.uniform(-4.0, 4.0, 3)
    aside = rng.standard_normal(3)
    aside /= np.linalg.norm(aside)
    second = vessel + aside * (vessel_radius + 7.5 + 1.0)
    third = np.array([4.0, 52.0, 38.0]) + rng.uniform(-5.0, 5.0, 3)
    tumours = []
    for label, centre, radius in ((20, target, 10.0), (21, second, 7.5), (22, third, 6.0)):
        waves = rng.standard_normal((4, 3)) * 2.2
        phases = rng.uniform(0.0, 2.0 * np.pi, 4)

        def lobed(x: F32, y: F32, z: F32, c: F64 = centre, r: float = radius,
                  w: F64 = waves, p: F64 = phases) -> F32:  # fmt: skip
            dx, dy, dz = x - c[0], y - c[1], z - c[2]
            d = np.sqrt(dx * dx + dy * dy + dz * dz) + 1e-6
            bump = sum(np.sin((w[n, 0] * dx + w[n, 1] * dy + w[n, 2] * dz) / d + p[n]) for n in range(4))
            return np.asarray(d - r - 0.035 * r * bump, dtype=np.float32)

        reach = radius * 1.25 + 4.0
        rim = tuple(int(t) for t in (Tissue.LIVER, Tissue.PORTAL_VEIN, Tissue.HEPATIC_VEIN))

        def shell(x: F32, y: F32, z: F32, inside: Callable[..., F32] = lobed) -> F32:
            return np.asarray(inside(x, y, z) - 1.2, dtype=np.float32)

        canvas.paint(centre - reach, centre + reach, shell, 128.0, None, rim)
        canvas.paint(centre - reach, centre + reach, lobed, 62.0, label)
        canvas.ellipsoid(centre, np.full(3, radius * 0.45), 46.0, None)
        tumours.append(Tumour(label, (float(centre[0]), float(centre[1]), float(centre[2])), radius))
    return tuple(tumours)


def _texture(rng: np.random.Generator, shape: tuple[int, ...], step: int) -> F32:
    """Smooth random field of unit variance: coarse white noise, interpolated linearly."""
    nk, nj, ni = shape
    coarse = rng.standard_normal((nk // step + 2, nj // step + 2, ni // step + 2)).astype(np.float32)
    planes = np.stack([cv2.resize(plane, (ni, nj), interpolation=cv2.INTER_CUBIC) for plane in coarse])
    at = np.arange(nk) / step
    lower = at.astype(int)
    weight = (at - lower).astype(np.float32)[:, None, None]
    field = planes[lower] * (1.0 - weight) + planes[lower + 1] * weight
    return np.asarray(field / field.std(), dtype=np.float32)


def build_anatomy(parameters: PatientParameters) -> Anatomy:
    """Paint the patient (deterministic by ``parameters``; about 2 s of CPU at the default size)."""
    rng = np.random.default_rng([parameters.seed, 0xAB])
    canvas = _Canvas(parameters)
    inner = _paint_trunk(canvas)
    _paint_organs(canvas, inner)
    _paint_bowel(canvas, rng)
    _paint_skeleton(canvas)
    vessel, radius = _paint_vessels(canvas, rng)
    tumours = _paint_tumours(canvas, rng, vessel, radius)
    inside = canvas.labels > 0
    soft = inside & (canvas.labels != Tissue.LUNG)
    canvas.hu += np.where(soft, 3.2 * _texture(rng, canvas.hu.shape, 3) + 2.4 * _texture(rng, canvas.hu.shape, 9), 0.0)
    ras_from_index = np.eye(4)
    ras_from_index[:3, :3] = np.diag(canvas.spacing)
    ras_from_index[:3, 3] = canvas.origin
    return Anatomy(canvas.hu, canvas.labels, ras_from_index, tumours)


def acquire(hu: F32, noise_hu: float, seed: int) -> NDArray[np.int16]:
    """What the scanner makes of it: its point spread, and noise correlated as by a soft-tissue kernel; int16 HU.

    ``hu`` (k, j, i) float32; ``noise_hu`` is the standard deviation in soft tissue.
    """
    rng = np.random.default_rng([seed, 0xC7])
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    out = np.empty(hu.shape, dtype=np.int16)
    # 0.75 px blur of white noise leaves 1 / (2 sqrt(pi) sigma) of its deviation per plane; the slight negative lobe
    # (band-pass of filtered back-projection) comes from taking a wider blur away.
    for k in range(hu.shape[0]):
        fine = cv2.GaussianBlur(noise[k], (0, 0), 0.75)
        band = fine - 0.6 * cv2.GaussianBlur(fine, (0, 0), 2.5)
        band *= noise_hu / float(band.std())
        plane = cv2.GaussianBlur(hu[k], (0, 0), 0.45) + band
        np.clip(np.rint(plane), -1024, 3071, out=plane)
        out[k] = plane
    return out
