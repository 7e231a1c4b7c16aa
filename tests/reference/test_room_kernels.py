"""The kernels of the simulated ultrasound and CT-fluoroscopy against plain-Python twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from drivers.room.fluoro import add_needle, axial_slice
from drivers.room.ultrasound import envelope, scan_convert, trace_beams

Array = NDArray[np.float64]


def affine(matrix: Array, point: Array) -> Array:
    return np.asarray(matrix[:3, :3] @ point + matrix[:3, 3])


def linear(volume: NDArray[np.generic], index: Array) -> float:
    """Trilinear value; -1000 where not all eight neighbours exist."""
    if not all(0.0 <= index[a] < volume.shape[2 - a] - 1 for a in range(3)):
        return -1000.0
    return float(map_coordinates(volume.astype(float), index[::-1, None], order=1)[0])


def clamped(volume: NDArray[np.generic], index: Array) -> float:
    top = np.array(volume.shape[::-1]) - 1.0
    at = np.clip(index, 0.0, top)
    return float(map_coordinates(volume.astype(float), at[::-1, None], order=1, mode="nearest")[0])


def tissue(value: float) -> tuple[float, float]:
    """Backscatter and loss per mm by HU."""
    if value < -300:
        return 0.02, 0.9
    if value < -30:
        return 0.55, 0.0075
    if value < 25:
        return 0.04 + 0.4 * max(0.0, (-value - 5.0) / 25.0), 0.003
    if value < 90:
        return 0.16 + 0.001 * (value - 25.0), 0.0065
    if value < 145:
        return 0.46, 0.0065
    if value < 200:
        return 0.46 - 0.43 * min(1.0, (value - 145.0) / 14.0), 0.003
    return 0.3, 0.01 + 1.1 * min(max(value - 220.0, 0.0) / 150.0, 1.0)


class Scene:
    """A small random world for `trace_beams`."""

    def __init__(
        self, seed: int, shape: tuple[int, int, int] = (14, 15, 16), weight_shape: tuple[int, ...] = (4, 5, 6)
    ):
        rng = np.random.default_rng(seed)
        steps = rng.choice([-1000, -100, 0, 60, 112, 170, 700], shape)
        self.hu = (steps + rng.integers(-10, 10, shape)).astype(np.int16)
        self.hu.setflags(write=False)
        turn = Rotation.random(random_state=seed).as_matrix()
        ras_from_index = np.eye(4)
        ras_from_index[:3, :3] = turn * 2.0
        ras_from_index[:3, 3] = -ras_from_index[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2.0)
        self.index_from_ras = np.linalg.inv(ras_from_index)
        self.weight = rng.uniform(0.0, 1.0, weight_shape).astype(np.float32)
        weight_affine = ras_from_index.copy()
        weight_affine[:3, :3] *= 3.0
        self.weight_from_ras = np.linalg.inv(weight_affine)
        self.speckle = rng.integers(-127, 128, (5, 5, 5, 2)).astype(np.int8)
        pose = np.eye(4)
        pose[:3, :3] = Rotation.random(random_state=seed + 1).as_matrix()
        pose[:3, 3] = pose[:3, :3] @ [1.0, 2.0, -18.0]
        self.pose = pose
        self.apex, self.lateral, self.axial = np.array([1.0, -2.0, -12.0]), np.eye(3)[0], np.eye(3)[2]
        self.needle = np.stack([affine(pose, np.array([0.5, -2.0, 8.0])), affine(pose, np.array([9.0, -2.0, -9.0]))])

    def kernel(self, motion: Array, needle: Array, beams: int = 7, samples: int = 40) -> list[NDArray[np.float32]]:
        out = [np.full((beams, samples), 99.0, np.float32) for _ in range(3)]
        trace_beams(
            self.hu, self.index_from_ras, self.weight, self.weight_from_ras, motion, self.speckle, 0.42, self.pose,
            self.apex, self.lateral, self.axial, 10.0, 0.4, 30.0, 4.0, needle, *out,
        )  # fmt: skip
        return out

    def twin(self, motion: Array, needle: Array, beams: int = 7, samples: int = 40) -> list[Array]:
        out = [np.zeros((beams, samples)) for _ in range(3)]
        step = 30.0 / samples
        elevation = self.pose[:3, :3] @ np.cross(self.lateral, self.axial)
        for b in range(beams):
            angle = 0.4 * (2.0 * b / max(beams - 1, 1) - 1.0)
            direction = math.sin(angle) * self.lateral + math.cos(angle) * self.axial
            origin, ray = affine(self.pose, self.apex + 10.0 * direction), self.pose[:3, :3] @ direction
            energy, dry, before, moved = 1.0, True, None, np.zeros(3)
            for q in range(samples):
                r = (q + 0.5) * step
                point = origin + r * ray
                echo = 0.0
                if not np.isnan(needle).any():
                    shaft = needle[1] - needle[0]
                    t = (point - needle[0]) @ shaft / (shaft @ shaft + 1e-9)
                    if t >= 0.0:
                        off = point - needle[0] - t * shaft
                        across = off @ elevation
                        away = (off @ off - across**2) / 0.6 + across**2 / 6.0
                        echo = math.exp(-away) if away < 6.0 else 0.0
                if motion.any():
                    if q % 8 == 0:
                        for _ in range(2):
                            moved = clamped(self.weight, affine(self.weight_from_ras, point - moved)) * motion
                    point = point - moved
                value = linear(self.hu, affine(self.index_from_ras, point))
                if dry and value < -300.0 and r < 4.0:
                    value = 5.0
                elif value > -300.0:
                    dry = False
                before = value if before is None else before
                z1, z2 = (1.02 + 0.001 * max(v, -990.0) for v in (before, value))
                jump, before = (z2 - z1) / (z2 + z1), value
                scatter, loss = tissue(value)
                cell = tuple(int(c / 0.42 + 65536.0) % 5 for c in point[::-1])
                out[0][b, q], out[1][b, q] = energy * scatter * 0.025 * self.speckle[cell].astype(float)
                out[2][b, q] = energy * (abs(jump) * 9.0 + 2.2 * echo)
                half = 0.5 * loss * step
                energy *= (1 - min(0.97, 4 * jump**2)) * max(1 - half, 0.0) / (1 + half) * (1 - 0.05 * echo)
                if energy < 2e-4:
                    break
        return out


NO_NEEDLE = np.full((2, 3), np.nan)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("motion", [(0.0, 0.0, 0.0), (0.0, 1.2, -4.5)])
@pytest.mark.parametrize("with_needle", [False, True])
def test_beams_equal_their_twin(seed: int, motion: tuple[float, float, float], with_needle: bool) -> None:
    scene = Scene(seed)
    needle = scene.needle if with_needle else NO_NEEDLE
    got, wanted = scene.kernel(np.array(motion), needle), scene.twin(np.array(motion), needle)
    for a, b in zip(got, wanted, strict=True):
        assert np.allclose(a, b, atol=2e-5)
    assert np.abs(wanted[0]).max() > 0.1
    assert (got[2].max() > 1.5) or not with_needle


def test_beams_through_one_voxel_or_none() -> None:
    motion = np.array([0.0, 1.0, -4.0])
    scene = Scene(3, shape=(1, 1, 1), weight_shape=(1, 1, 1))
    for a, b in zip(scene.kernel(motion, NO_NEEDLE), scene.twin(motion, NO_NEEDLE), strict=True):
        assert np.allclose(a, b, atol=2e-5)
    one = Scene(4)
    for a, b in zip(one.kernel(motion, one.needle, 1, 1), one.twin(motion, one.needle, 1, 1), strict=True):
        assert np.allclose(a, b, atol=2e-5)
    assert one.kernel(motion, NO_NEEDLE, 0, 0)[0].size == 0


def envelope_twin(real: Array, imag: Array, edge: Array, gain: Array) -> Array:
    def shift(a: Array, db: int, dq: int) -> Array:
        b = np.clip(np.arange(a.shape[0]) + db, 0, a.shape[0] - 1)
        q = np.clip(np.arange(a.shape[1]) + dq, 0, a.shape[1] - 1)
        return a[np.ix_(b, q)]

    five, three = (0.12, 0.24, 0.28, 0.24, 0.12), (0.3, 0.4, 0.3)

    def across(a: Array, weights: tuple[float, ...], dq: int) -> Array:
        half = len(weights) // 2
        return np.asarray(sum(w * shift(a, n - half, dq) for n, w in enumerate(weights)))

    re = 0.45 * across(real, five, 0) - 0.27 * (across(real, three, -1) + across(real, three, 1))
    im = 0.45 * across(imag, five, 0) + 0.27 * (across(imag, three, -1) + across(imag, three, 1))
    specular = (
        0.5 * edge + 0.2 * (shift(edge, -1, 0) + shift(edge, 1, 0)) + 0.15 * (shift(edge, 0, -1) + shift(edge, 0, 1))
    )
    level = (np.hypot(re, im) * 2.4 + specular) * gain
    return np.asarray(np.clip(255.0 + 43.0 * np.log(level + 1e-9), 0.0, 255.0))


@pytest.mark.parametrize("shape", [(6, 9), (2, 2), (1, 1), (0, 0), (1, 5)])
def test_envelope_equals_its_twin(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    real, imag = (rng.normal(0.0, 0.3, shape).astype(np.float32) for _ in range(2))
    edge = rng.exponential(0.2, shape).astype(np.float32)
    gain = np.linspace(0.4, 1.0, shape[1]).astype(np.float32)
    out = np.zeros(shape, np.float32)
    envelope(real, imag, edge, gain, out)
    if out.size:
        wanted = envelope_twin(*(a.astype(float) for a in (real, imag, edge, gain)))
        assert np.allclose(out, wanted, atol=0.02)
        assert shape[0] < 6 or np.ptp(wanted) > 20


@pytest.mark.parametrize("shape", [(5, 8), (2, 2), (1, 1), (1, 4)])
def test_scan_conversion_equals_its_twin(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    polar = rng.uniform(0.0, 255.0, shape).astype(np.float32)
    pixel = rng.permutation(50)[:30].astype(np.int32)
    beam = rng.uniform(0.0, shape[0] - 1, 30).astype(np.float32)
    sample = rng.uniform(0.0, shape[1] - 1, 30).astype(np.float32)
    out = np.full(50, 7, np.uint8)
    scan_convert(polar, pixel, beam, sample, out)
    wanted = np.full(50, 7)
    wanted[pixel] = np.floor(map_coordinates(polar.astype(float), [beam, sample], order=1, mode="nearest") + 1e-4)
    assert np.abs(out.astype(int) - wanted).max() <= 1
    assert (out.astype(int) == wanted).mean() > 0.95
    scan_convert(polar, pixel[:0], beam[:0], sample[:0], out)


def slice_twin(
    scene: Scene, motion: Array, matrix: Array, noise: Array, row0: int, column0: int, shape: tuple[int, int]
) -> Array:
    out = np.zeros(shape)
    normal = matrix[:3, 2] / np.linalg.norm(matrix[:3, 2])
    for row in range(shape[0]):
        for column in range(shape[1]):
            total = 0.0
            for part in (-1, 0, 1):
                start = column - column % 16
                point = affine(matrix, np.array([column, row, 0.0])) + part * normal * 4.0 / 3.0
                moved = np.zeros(3)
                if motion.any():
                    # The displacement is taken at every sixteenth column, starting from that of the one before.
                    for anchor in range(0, start + 1, 16):
                        at = affine(matrix, np.array([anchor, row, 0.0])) + part * normal * 4.0 / 3.0
                        for _ in range(2):
                            index = affine(scene.weight_from_ras, at - moved) + 0.5
                            cell = [
                                min(max(int(c), 0), n - 1) for c, n in zip(index, scene.weight.shape[::-1], strict=True)
                            ]
                            moved = float(scene.weight[cell[2], cell[1], cell[0]]) * motion
                total += linear(scene.hu, affine(scene.index_from_ras, point - moved)) / 3.0
            size = noise.shape[0]
            out[row, column] = total + noise[(row + row0) % size, (column + column0) % size]
    return out


@pytest.mark.parametrize("motion", [(0.0, 0.0, 0.0), (0.0, 1.2, -4.5)])
@pytest.mark.parametrize("volume", [(14, 15, 16), (1, 1, 1)])
def test_slice_equals_its_twin(motion: tuple[float, float, float], volume: tuple[int, int, int]) -> None:
    scene = Scene(5, shape=volume)
    matrix = np.diag([-1.1, -1.1, 4.0, 1.0])
    matrix[:3, 3] = 20.0, 12.0, 0.7
    noise = np.random.default_rng(0).normal(0.0, 30.0, (13, 13)).astype(np.float32)
    shape = (20, 36)
    out = np.full(shape, 5.0, np.float32)
    axial_slice(
        scene.hu,
        scene.index_from_ras,
        scene.weight,
        scene.weight_from_ras,
        np.array(motion),
        matrix,
        4.0,
        noise,
        4,
        9,
        out,
    )
    wanted = slice_twin(scene, np.array(motion), matrix, noise, 4, 9, shape)
    # Rounding may put a point at the very edge of the grid or of a cell on its other side.
    assert (np.abs(out - wanted) < 0.05).mean() > 0.98
    assert volume == (1, 1, 1) or wanted.max() > -400
    axial_slice(
        scene.hu, scene.index_from_ras, scene.weight, scene.weight_from_ras, np.array(motion), matrix, 4.0, noise, 4, 9,
        np.zeros((0, 0), np.float32),
    )  # fmt: skip


def needle_twin(
    picture: Array, pitch: float, ends: Array, share: float, reach: float, radius: float, metal: float
) -> Array:
    out = picture.copy()
    axis = (ends[1] - ends[0]) * pitch
    length = math.hypot(*axis) + 1e-6
    axis = axis / length
    for row in range(picture.shape[0]):
        for column in range(picture.shape[1]):
            if not all(
                min(ends[0][a], ends[1][a]) - reach / pitch - 1 < c < max(ends[0][a], ends[1][a]) + reach / pitch + 1
                for a, c in enumerate((column, row))
            ):
                continue
            off = (np.array([column, row]) - ends[0]) * pitch
            along, side = off @ axis, abs(off[0] * axis[1] - off[1] * axis[0])
            beyond = max(along - length, -along, 0.0)
            cover = float(np.clip(0.5 - (math.hypot(side, beyond) - radius) / pitch, 0.0, 1.0))
            fade = math.exp(-beyond / 14.0)
            streak = fade * (
                130.0 * math.exp(-((side - 4.2) ** 2) / 3.0) - 420.0 * math.exp(-((side - 1.4) ** 2) / 1.6)
            )
            if beyond > 0:
                streak -= 380.0 * math.exp(-(side**2) / 1.5) * fade
            old = out[row, column] + share * streak * (1.0 - cover)
            out[row, column] = old + cover * share * (metal - old)
    return out


@pytest.mark.parametrize("ends", [((5.2, 6.1), (20.4, 14.9)), ((12.0, 9.0), (12.0, 9.0)), ((-9.0, 3.0), (50.0, 3.5))])
def test_needle_equals_its_twin(ends: tuple[tuple[float, float], tuple[float, float]]) -> None:
    start = np.random.default_rng(3).normal(0.0, 20.0, (24, 30)).astype(np.float32)
    got = start.copy()
    add_needle(got, 0.7, np.array(ends), 0.4, 60.0, 0.8, 3000.0)
    wanted = needle_twin(start.astype(float), 0.7, np.array(ends), 0.4, 60.0, 0.8, 3000.0)
    assert np.allclose(got, wanted, atol=0.01)
    assert (got - start).max() > 300.0
    one = np.zeros((1, 1), np.float32)
    add_needle(one, 0.7, np.array(ends), 0.4, 60.0, 0.8, 3000.0)
    assert np.isfinite(one).all()
