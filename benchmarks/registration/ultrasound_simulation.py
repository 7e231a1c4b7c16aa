"""Tracked B-mode sweeps over the liver of a real CT, with a known pose: what the registration is measured on.

The images are made in the geometry of a curved array, at the CT's native resolution with cubic splines, and share no
code and no interpolation with the registration. Nor do they share the CT's noise, which no tissue has: they are made of
the CT freed of it (total variation), while the registration is given the CT as it was measured. What a piece of tissue
looks like comes from its label where there are labels (an organ's echogenicity has little to do with its HU), from its
HU otherwise. Per beam: backscatter with fully
developed speckle (complex Gaussian, correlated by the point spread), averaged over a slice of 2 to 4 mm; specular
echoes where the acoustic impedance jumps, strong only where the beam meets the surface at a right angle; attenuation
against an imperfect time gain; shadows behind bone and gas with reverberation in them; noise that the gain lifts with
depth; lost contact; log compression to 8 bits. Some of what the CT shows is missing (a share of the vessels, lesions of
the liver's own echogenicity), and there is some that the CT does not show (septa, regional differences).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates, spline_filter
from scipy.spatial.transform import Rotation
from skimage.restoration import denoise_tv_chambolle

from nav.geometry.volume import Volume

Array = NDArray[np.float64]

#: Labels of 3D-IRCADb-01 as ``ct_liver`` has them.
BODY, VESSEL_OUT, BONE, LUNGS, KIDNEYS = 1, (17, 33, 513), 65, (257, 321), (129, 193)
SPLEEN, LIVER, TUMOUR, VESSELS = 385, 449, 451, (465, 481)

#: Classes of tissue.
GAS, FLUID, FAT, MUSCLE, PARENCHYMA, SPLENIC, RENAL, LESION, CORTEX = range(9)
#: Echogenicity against the liver's, dB, and its scatter from sweep to sweep; attenuation beyond what the gain makes up
#: for, dB/mm there and back.
ECHO_DB = np.array([-30.0, -22.0, 3.0, -5.0, 0.0, 1.0, -3.0, -4.0, 2.0])
ECHO_SPREAD_DB = np.array([2.0, 3.0, 3.0, 2.5, 0.0, 1.5, 2.0, 4.0, 2.0])
LOSS_DB_MM = np.array([40.0, -0.25, 0.06, 0.05, 0.0, -0.02, 0.02, 0.0, 6.0])

#: Weight of total variation, HU: leaves less than 1 HU of the 7 and 11 HU of noise from voxel to voxel in a liver.
NOISE_WEIGHT_HU = 15.0
IMAGE_PITCH_MM = 0.5
#: Of the nodes of a motion.
MOTION_PITCH_MM = 6.0
_AXIAL_MM = 0.7
_BEAMS = 128
#: Random fields of the tissue: voxels along every axis (they repeat), and their pitch.
_FIELD, FIELD_MM = 96, 1.8
_OFFSETS = np.array([-1.0, 0.0, 1.0])
_WEIGHTS = np.array([0.27, 0.46, 0.27])


@dataclass(frozen=True)
class Patient:
    """A CT ready to be scanned: spline coefficients and tissue classes on its native grid."""

    ct: Volume
    coefficients: NDArray[np.float32]
    tissue: NDArray[np.uint8]
    liver: NDArray[np.bool_]
    body: NDArray[np.bool_]
    places: NDArray[np.int64]


def _tissue_by_hu(hu: NDArray[np.float32], liver_hu: float) -> NDArray[np.uint8]:
    out = np.full(hu.shape, PARENCHYMA, np.uint8)
    out[hu < liver_hu - 25.0] = MUSCLE
    out[hu < 25.0] = FLUID
    out[hu < -15.0] = FAT
    out[hu < -250.0] = GAS
    out[hu > liver_hu + 35.0] = FLUID  # contrast in vessels
    out[hu > 260.0] = CORTEX
    return out


def patient(ct: Volume, labels: NDArray[np.generic] | None, liver: NDArray[np.bool_]) -> Patient:
    """``labels`` on the CT's grid as in ``ct_liver``; without them tissue is told by HU."""
    hu = np.clip(ct.array, -1000, 2000).astype(np.float32)
    hu = denoise_tv_chambolle(hu, weight=NOISE_WEIGHT_HU, eps=5e-4, max_num_iter=40).astype(np.float32)
    calm = gaussian_filter(hu, np.minimum(1.0, 0.8 / ct.spacing_mm[::-1]))
    tissue = _tissue_by_hu(calm, float(np.median(hu[liver])))
    body = calm > -300.0
    if labels is not None:
        tissue[(tissue == PARENCHYMA) | ((tissue == FLUID) & (calm > 100.0))] = MUSCLE
        tissue[labels == LIVER] = PARENCHYMA
        tissue[labels == TUMOUR] = LESION
        tissue[labels == SPLEEN] = SPLENIC
        tissue[np.isin(labels, KIDNEYS) & (calm > 80.0)] = RENAL
        tissue[np.isin(labels, (*VESSELS, *VESSEL_OUT)) & (calm > 90.0)] = FLUID
        tissue[np.isin(labels, LUNGS)] = GAS
        tissue[labels == BONE] = np.where(calm[labels == BONE] > 180.0, CORTEX, MUSCLE)
        body = (labels != 0) | body
    return Patient(ct, spline_filter(hu, order=3, output=np.float32), tissue, liver, body, np.argwhere(liver))


@dataclass(frozen=True)
class Sweep:
    """Tracked frames and the truth.

    Attributes
    ----------
    images : (n, rows, columns) uint8
    reference_from_pixel : (n, 4, 4) float64
        (column, row, 0, 1) to Reference, mm; with the tracker's noise.
    ras_from_reference : (4, 4) float64
        Where nothing moves.
    motion : Motion, optional
        Of the tissue, on top of it.
    """

    images: NDArray[np.uint8]
    reference_from_pixel: Array
    ras_from_reference: Array
    motion: Motion | None = None


def _pose_about(point: Array, rotation: Array) -> Array:
    out = np.eye(4)
    out[:3, :3] = rotation
    out[:3, 3] = point - rotation @ point
    return out


def random_pose(centre: Array, millimetres: float, degrees: float, rng: np.random.Generator) -> Array:
    """(4, 4) about ``centre``, exactly so far and so turned."""
    direction, axis = (v / np.linalg.norm(v) for v in rng.normal(0, 1, (2, 3)))
    out = _pose_about(centre, Rotation.from_rotvec(np.deg2rad(degrees) * axis).as_matrix())
    out[:3, 3] += millimetres * direction
    return out


def _nearest(volume: NDArray[np.generic], index: Array, outside: float) -> NDArray[np.generic]:
    at = np.rint(index).astype(np.int64)
    shape = np.array(volume.shape[::-1])
    inside = ((at >= 0) & (at < shape)).all(axis=-1)
    at = np.clip(at, 0, shape - 1)
    return np.where(inside, volume[at[..., 2], at[..., 1], at[..., 0]], np.array(outside, volume.dtype))


@dataclass(frozen=True)
class Motion:
    """Smooth motion of the tissue since the CT was taken: what is seen at a place x lies in the CT at x + d(x).

    Attributes
    ----------
    values : (3, i, j, k) float32
        d, mm, at nodes `MOTION_PITCH_MM` apart.
    first_ras : (3,) float64
        Node 0, 0, 0.
    """

    values: NDArray[np.float32]
    first_ras: Array

    @classmethod
    def about(cls, centre: Array, peak_mm: float, length_mm: float, rng: np.random.Generator) -> Motion:
        """Gaussian random field, alike over ``length_mm``, no longer than ``peak_mm`` in a box of 240 mm."""
        half = int(np.ceil(120.0 / MOTION_PITCH_MM))
        sigma = length_mm / np.sqrt(2.0) / MOTION_PITCH_MM
        pad = int(3 * sigma)
        size = 2 * (half + pad) + 1
        values = np.stack([gaussian_filter(rng.normal(0, 1, (size,) * 3), sigma) for _ in range(3)])
        values = values[:, pad:-pad, pad:-pad, pad:-pad]
        values *= peak_mm / np.linalg.norm(values, axis=0).max()
        return cls(values.astype(np.float32), centre - half * MOTION_PITCH_MM)

    def displacement(self, points: Array) -> Array:
        """(..., 3) mm at points (..., 3) RAS mm; beyond the box as at its face."""
        at = np.moveaxis((points - self.first_ras) / MOTION_PITCH_MM, -1, 0)
        return np.stack([map_coordinates(v, at, np.float64, order=1, mode="nearest") for v in self.values], axis=-1)


def _skin(who: Patient, target: Array, outward: Array) -> Array | None:
    """Where the line from ``target`` outward leaves the body for good, RAS mm."""
    steps = np.arange(0.0, 260.0, 1.0)
    points = target + steps[:, None] * outward
    inside = _nearest(who.body, who.ct.to_index(points), 0).astype(bool)
    last = np.flatnonzero(inside)
    return None if len(last) == 0 else np.asarray(points[last[-1]])


@dataclass(frozen=True)
class _Array:
    """The transducer and its settings in one sweep."""

    radius_mm: float
    half_angle: float
    depth_mm: float
    slice_mm: float
    echo_db: Array
    gain_error_db_mm: float
    noise_db: float
    floor_db: float
    range_db: float
    missing: NDArray[np.float32]
    extra_db: NDArray[np.float32]
    septa: NDArray[np.float32]


def _window(who: Patient, rng: np.random.Generator) -> tuple[Array, Array]:
    """A view that a sonographer would keep: a target in the liver, and the direction from it to the probe."""
    places = who.places
    centre = who.ct.to_ras(places.mean(axis=0)[::-1])
    best: tuple[float, Array, Array] | None = None
    for _ in range(40):
        target = centre + rng.uniform(0.2, 0.7) * (who.ct.to_ras(places[rng.integers(len(places))][::-1]) - centre)
        # From the front to the right side, somewhat from below.
        azimuth, elevation = rng.uniform(np.deg2rad(-10), np.deg2rad(85)), rng.uniform(np.deg2rad(-35), np.deg2rad(5))
        outward = np.array(
            [np.sin(azimuth) * np.cos(elevation), np.cos(azimuth) * np.cos(elevation), np.sin(elevation)]
        )
        skin = _skin(who, target, outward)
        if skin is None:
            continue
        # How much of the liver is seen along a bundle of lines in the plane and across it.
        seen = 0.0
        side = np.cross(outward, [0.0, 0.0, 1.0])
        for angle in np.deg2rad([-24, -12, 0, 12, 24]):
            for axis in (side / np.linalg.norm(side), np.array([0.0, 0.0, 1.0])):
                ray = -(np.cos(angle) * outward + np.sin(angle) * axis)
                along = skin + np.arange(0.0, 130.0, 2.0)[:, None] * ray
                index = who.ct.to_index(along)
                kinds = _nearest(who.tissue, index, GAS)
                free = np.cumsum(np.isin(kinds[3:], (GAS, CORTEX))) < 2
                seen += float((_nearest(who.liver, index, 0)[3:].astype(bool) & free).sum())
        if best is None or seen > best[0]:
            best = (seen, target, outward)
        if seen > 300.0:
            break
    assert best is not None
    return best[1], best[2]


def _poses(who: Patient, count: int, rng: np.random.Generator) -> Array:
    """(n, 4, 4): Probe (lateral x, elevation y, depth z; origin at the middle of the array's face) to RAS."""
    target, outward = _window(who, rng)
    skin = _skin(who, target, outward)
    assert skin is not None
    depth = -outward
    lateral = np.cross(depth, [0.0, 0.0, 1.0])
    lateral = Rotation.from_rotvec(depth * rng.uniform(-1.2, 1.2)).apply(lateral / np.linalg.norm(lateral))
    lateral -= depth * (lateral @ depth)
    lateral /= np.linalg.norm(lateral)
    elevation = np.cross(depth, lateral)
    fan, travel = (rng.uniform(22, 38), rng.uniform(0, 12)) if rng.random() < 0.6 else (rng.uniform(4, 14), 45.0)
    share = np.linspace(-0.5, 0.5, count) + rng.normal(0, 0.15 / count, count)
    wobble = gaussian_filter1d(rng.normal(0, 1, (count, 6)), 4.0, axis=0) * 3.0
    out = np.empty((count, 4, 4))
    for n in range(count):
        place = _skin(who, target + travel * share[n] * elevation + wobble[n, :3], outward)
        tilt = Rotation.from_rotvec(lateral * np.deg2rad(fan * share[n]) + np.deg2rad(1.5) * wobble[n, 3:]).as_matrix()
        out[n] = np.eye(4)
        out[n, :3, :3] = tilt @ np.stack([lateral, elevation, depth], axis=1)
        # The array is pressed in a little.
        out[n, :3, 3] = (skin if place is None else place) + 4.0 * depth
    return out


def _echoes(
    who: Patient, probe: _Array, ras_from_probe: Array, offset: float, motion: Motion | None
) -> tuple[Array, Array, Array]:
    """Backscatter (dB), specular amplitude and loss (dB per sample), each (beams, samples), of one elevation."""
    depth = (np.arange(int(probe.depth_mm / _AXIAL_MM)) + 0.5) * _AXIAL_MM
    angle = np.linspace(-probe.half_angle, probe.half_angle, _BEAMS)
    radius = probe.radius_mm + depth
    # The slice is thinnest in the focus.
    thick = 0.5 * probe.slice_mm * np.sqrt(1.0 + ((depth - 70.0) / 70.0) ** 2)
    local = np.empty((_BEAMS, len(depth), 3))
    local[..., 0] = np.sin(angle)[:, None] * radius
    local[..., 1] = offset * thick
    local[..., 2] = np.cos(angle)[:, None] * radius - probe.radius_mm
    points = local @ ras_from_probe[:3, :3].T + ras_from_probe[:3, 3]
    if motion is not None:
        points = points + motion.displacement(points)
    index = who.ct.to_index(points.reshape(-1, 3)).reshape(points.shape)
    # Beyond the first and last slice the patient goes on, as far as the image tells not otherwise.
    index[..., 2] = np.clip(index[..., 2], 0.0, who.ct.array.shape[0] - 1.0)
    hu = map_coordinates(
        who.coefficients, index[..., ::-1].transpose(2, 0, 1), order=3, prefilter=False, mode="constant", cval=-1000.0
    )
    kind = _nearest(who.tissue, index, GAS)
    # Gel between the array and the skin; what is still air further in has no contact.
    before = np.cumsum(kind != GAS, axis=1) == 0
    kind = np.where(before & (depth < 14.0), FLUID, kind)
    hu = np.where(before & (depth < 14.0), 5.0, hu)
    # Fields that belong to the tissue, not to the CT.
    i, j, k = np.moveaxis(np.rint(points / FIELD_MM).astype(np.int64) % _FIELD, -1, 0)
    flat = (k * _FIELD + j) * _FIELD + i

    def of(values: NDArray[np.float32]) -> Array:
        return np.asarray(values.ravel()[flat])

    inside_liver = np.isin(kind, (FLUID, LESION)) & (_nearest(who.liver, index, 0) > 0)
    kind = np.where(inside_liver & (of(probe.missing) > 0.9), PARENCHYMA, kind)
    echo = probe.echo_db[kind]
    grain = np.where(kind == MUSCLE, 2.5, np.where(kind == FAT, 3.0, 1.5))
    echo = echo + np.where(np.isin(kind, (FLUID, GAS)), 0.0, of(probe.extra_db) * grain)
    septa = of(probe.septa)
    echo = echo + np.where((septa > 0) & ~np.isin(kind, (FLUID, GAS)), np.where(kind == PARENCHYMA, 8.0, 7.0), 0.0)
    # Fat looks brighter the fatter.
    echo = echo + np.where(kind == FAT, np.clip((-hu - 60.0) / 40.0, -1, 1) * 1.5, 0.0)
    # Impedance from density; the labels' edges count too, for organs have capsules.
    impedance = 1.0 + 0.001 * np.clip(hu, -900.0, 1000.0)
    capsule = np.where(np.isin(kind, (FLUID,)), 0.012, np.where(kind == FAT, -0.02, 0.0))
    impedance = gaussian_filter1d(impedance + capsule, 1.0, axis=1)
    along = np.gradient(impedance, _AXIAL_MM, axis=1)
    across = np.gradient(impedance, axis=0) / (radius * (angle[1] - angle[0]))
    size = np.hypot(along, gaussian_filter1d(across, 1.0, axis=0)) + 1e-9
    specular = np.abs(along) / (2.0 * impedance) * (np.abs(along) / size) ** 3
    return echo, specular, LOSS_DB_MM[kind] * _AXIAL_MM


def _frame(
    who: Patient, probe: _Array, ras_from_probe: Array, rng: np.random.Generator, motion: Motion | None
) -> NDArray[np.float32]:
    """Grey values along the beams, (beams, samples)."""
    power, specular, loss = 0.0, 0.0, 0.0
    for offset, weight in zip(_OFFSETS, _WEIGHTS, strict=True):
        echo, mirror, lost = _echoes(who, probe, ras_from_probe, offset, motion)
        power = power + weight * 10.0 ** (echo / 10.0)
        specular = specular + weight * mirror
        loss = loss + weight * lost
    samples = power.shape[1]
    depth = (np.arange(samples) + 0.5) * _AXIAL_MM
    # A reflector uses up the beam as well.
    gone = np.cumsum(np.minimum(loss, 30.0), axis=1) - loss
    gone = np.clip(gaussian_filter1d(gone, 1.0, axis=0), -12.0, 90.0) + probe.gain_error_db_mm * (depth - 60.0)
    shadow = np.clip(gone, 0.0, 90.0)
    # In the shadow of gas or bone: reverberation of what lies before it.
    haze = 10.0 ** ((-16.0 - 0.1 * np.clip(shadow - 20.0, 0.0, 60.0)) / 10.0) * (shadow > 20.0)
    contact = np.clip(gaussian_filter1d(rng.normal(0, 1, _BEAMS), 6.0) * 8.0, -4.0, 2.0)
    edge = np.abs(np.linspace(-1, 1, _BEAMS))
    level = -gone + contact[:, None] - 4.0 * np.clip(edge - 0.85, 0, 1)[:, None] / 0.15
    energy = power * 10.0 ** (level / 10.0)
    rough = gaussian_filter(rng.normal(0, 1, power.shape), (2.0, 3.0)) * 6.0
    bright = (60.0 * specular) ** 2 * 10.0 ** (level / 10.0) * np.exp(rough * 0.5)
    noise = 10.0 ** ((probe.noise_db + 0.22 * (depth - 60.0)) / 10.0)
    # Speckle: complex Gaussian scatterers, seen through the point spread.
    fine = 2
    shape = (power.shape[0], samples * fine)
    amplitude = np.repeat(np.sqrt(energy + haze + noise), fine, axis=1)
    speckle = 0.0
    for _ in range(2):
        part = gaussian_filter(rng.normal(0, 1, shape) * amplitude, (1.0, 0.32 / (_AXIAL_MM / fine)))
        speckle = speckle + part**2
    speckle = speckle * (4.0 * np.pi * 1.0 * 0.32 / (_AXIAL_MM / fine)) / 2.0  # back to the mean energy before
    together = speckle.reshape(power.shape[0], samples, fine).mean(axis=2) + gaussian_filter(bright, (0.8, 0.6))
    decibel = 10.0 * np.log10(together + 1e-12)
    return np.asarray(np.clip((decibel - probe.floor_db) / probe.range_db, 0.0, 1.0) * 255.0, np.float32)


def _scan_converted(probe: _Array, polar: NDArray[np.float32]) -> tuple[NDArray[np.uint8], Array]:
    """(rows, columns) uint8 and (4, 4) of (column, row, 0) to Probe, mm."""
    half = (probe.radius_mm + probe.depth_mm) * np.sin(probe.half_angle) + 2.0
    top = probe.radius_mm * np.cos(probe.half_angle) - probe.radius_mm - 2.0
    x = np.arange(-half, half, IMAGE_PITCH_MM)
    z = np.arange(top, probe.depth_mm + 2.0, IMAGE_PITCH_MM)
    zz, xx = np.meshgrid(z, x, indexing="ij")
    radius = np.hypot(xx, zz + probe.radius_mm)
    angle = np.arctan2(xx, zz + probe.radius_mm)
    beam = (angle + probe.half_angle) / (2.0 * probe.half_angle) * (_BEAMS - 1)
    sample = (radius - probe.radius_mm) / _AXIAL_MM - 0.5
    grey = map_coordinates(polar, [beam, sample], order=1, mode="nearest")
    fan = (np.abs(angle) <= probe.half_angle) & (radius >= probe.radius_mm) & (sample <= polar.shape[1] - 0.5)
    probe_from_pixel = np.eye(4)
    # Columns along x, rows along z, and the third axis so that it is right-handed.
    probe_from_pixel[:3, :3] = IMAGE_PITCH_MM * np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])
    probe_from_pixel[:3, 3] = x[0], 0.0, z[0]
    return np.where(fan, np.maximum(np.rint(grey), 1.0), 0.0).astype(np.uint8), probe_from_pixel


@lru_cache
def _smooth_field(sigma: float) -> NDArray[np.float32]:
    values = np.random.default_rng(int(10 * sigma)).normal(0, 1, (_FIELD, _FIELD, _FIELD)).astype(np.float32)
    values = gaussian_filter(values, sigma, mode="wrap")
    return np.asarray(values / values.std(), np.float32)


def _device(rng: np.random.Generator) -> _Array:

    def smooth(sigma: float) -> NDArray[np.float32]:
        return np.roll(_smooth_field(sigma), rng.integers(0, _FIELD, 3), axis=(0, 1, 2))

    texture = 0.7 * smooth(5.0) + 0.7 * smooth(1.6)
    plates = np.abs(smooth(4.1))
    where = smooth(6.0)
    return _Array(
        radius_mm=rng.uniform(45, 62),
        half_angle=rng.uniform(0.48, 0.62),
        depth_mm=rng.uniform(120, 160),
        slice_mm=rng.uniform(2.0, 4.0),
        echo_db=ECHO_DB + ECHO_SPREAD_DB * rng.normal(0, 1, len(ECHO_DB)),
        gain_error_db_mm=rng.uniform(-0.06, 0.08),
        noise_db=rng.uniform(-30, -22),
        floor_db=rng.uniform(-26, -20),
        range_db=rng.uniform(52, 64),
        missing=smooth(5.1),
        extra_db=texture,
        septa=np.asarray((plates < 0.05) & (where > 1.0), np.float32),
    )


def simulate(who: Patient, frames: int, rng: np.random.Generator, moved: tuple[float, float] | None = None) -> Sweep:
    """A sweep of ``frames`` frames; ``moved``: through tissue that has moved by up to so much, alike over so much, mm.

    What a frame shows is the same with and without motion, but for where it lies (and whose speckle it is).
    """
    probe = _device(rng)
    poses = _poses(who, frames, rng)
    motion = None
    if moved is not None:
        middle = (poses @ np.array([0.0, 0.0, 0.5 * probe.depth_mm, 1.0]))[:, :3].mean(axis=0)
        motion = Motion.about(middle, *moved, rng)
    images, pixel = [], np.eye(4)
    for pose in poses:
        image, pixel = _scan_converted(probe, _frame(who, probe, pose, rng, motion))
        images.append(image)
    # Reference: somewhere on the patient, turned anyhow.
    ras_from_reference = random_pose(np.zeros(3), rng.uniform(50, 200), rng.uniform(20, 160), rng)
    tracked = []
    for pose in poses:
        jitter = random_pose(pose[:3, 3] + 60.0 * pose[:3, 2], abs(rng.normal(0, 0.3)), abs(rng.normal(0, 0.15)), rng)
        tracked.append(np.linalg.inv(ras_from_reference) @ jitter @ pose @ pixel)
    return Sweep(np.array(images), np.array(tracked), ras_from_reference, motion)
