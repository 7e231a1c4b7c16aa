"""One level of a pair of images, as the deformable registration works on it: both normalised, the moving one moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from nav.geometry.displacement import DisplacementField
from nav.geometry.volume import Volume
from nav.registration import deformable_kernels as kernels
from nav.registration.deformable_device import CPU, Device
from nav.registration.image_checks import check_image
from nav.registration.pyramid import NO_MASK, Level, image_pyramid, mask_at, nearest_level

__all__ = [
    "OUTSIDE_COST",
    "Field",
    "LevelImage",
    "Stage",
    "derivatives_of",
    "float_square",
    "level_images",
    "stages_of",
]

Array = NDArray[np.float64]
Field = NDArray[np.float32]
#: An array of a stage's device.
OnDevice = Any
Scalar = TypeVar("Scalar", bound=np.generic)

#: Finer levels than the fine one are used up to so many voxels.
MOST_VOXELS = 3_000_000
#: Coarsest pitch of a level, mm: that of the search for large motion. (Levels halve from there.)
COARSE_MM = 5.5
#: Grey values beyond these percentiles count as these.
DARKEST, BRIGHTEST = 0.5, 99.5
#: The box of the normalisation: voxels to each side; least deviation, as a share of the grey range.
RADIUS, LEAST_DEVIATION = 2, 0.02
#: A voxel outside the moving image costs as much as two images that have nothing in common would.
OUTSIDE_COST = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class LevelImage:
    """One level of an image, of grey values between 0 and 1."""

    level: Level
    mask: NDArray[np.uint8]

    @property
    def array(self) -> NDArray[np.float32]:
        return self.level.volume.array  # type: ignore[return-value]


@dataclass(slots=True, eq=False)
class Stage:
    """A pair of levels, the fixed one normalised, and the scratch that its steps need, on a device.

    ``source``, ``source_mask``: the moving level's. ``counted``: voxels of the fixed image that are in its mask, and in
    the moving image and its mask as the pose lays them; what no image shows would else be pulled to the nearest thing
    that one does.
    """

    fixed: LevelImage
    moving: LevelImage
    pose: Array  # moving from fixed, RAS mm
    device: Device
    source: OnDevice
    source_mask: OnDevice
    counted: OnDevice
    normal: OnDevice
    moved: OnDevice
    moved_normal: OnDevice
    valid: OnDevice
    scratch: tuple[OnDevice, OnDevice]

    @classmethod
    def of(cls, fixed: LevelImage, moving: LevelImage, pose: Array, device: Device = CPU) -> Stage:
        shape = fixed.array.shape
        normal, moved, moved_normal, one, two = (device.empty(shape, np.float32) for _ in range(5))
        floor = np.float32(LEAST_DEVIATION**2)
        device.kernels.locally_normalised(device.array(fixed.array), RADIUS, floor, one, two, normal)
        counted, valid = (device.empty(shape, np.uint8) for _ in range(2))
        source, mask = device.array(moving.array), device.array(moving.mask)
        stage = cls(
            fixed, moving, pose, device, source, mask, counted, normal, moved, moved_normal, valid, (one, two)
        )  # fmt: skip
        stage.moved_by(device.array(np.zeros((1, 1, 1, 3), np.float32)), mask, counted)
        if fixed.mask.size:
            stage.counted = device.array(device.home(counted) & (fixed.mask != 0))
        return stage

    @classmethod
    def wider(cls, stage: Stage, grid: Volume) -> Stage:
        """To look at the moving image on another ``grid`` than the fixed image's; there is no fixed image on it."""
        device, shape = stage.device, grid.array.shape
        moved, moved_normal, one, two = (device.empty(shape, np.float32) for _ in range(4))
        image = LevelImage(Level(grid, np.ones(3, np.int64)), NO_MASK)
        # No fixed image: what is not there cannot be compared.
        nothing = device.array(np.zeros((0, 0, 0), np.float32))
        return cls(
            image, stage.moving, stage.pose, device, stage.source, stage.source_mask, device.array(NO_MASK), nothing,
            moved, moved_normal, device.empty(shape, np.uint8), (one, two),
        )  # fmt: skip

    @property
    def volume(self) -> Volume:
        return self.fixed.level.volume

    @property
    def nodes(self) -> tuple[int, int, int]:
        """Nodes along k, j, i: the last one at the last voxel or beyond."""
        k, j, i = ((n - 2 + kernels.STEP) // kernels.STEP + 1 for n in self.volume.array.shape)
        return k, j, i

    @property
    def ras_from_node(self) -> Array:
        return np.asarray(self.volume.ras_from_index @ np.diag([*[float(kernels.STEP)] * 3, 1.0]))

    def field_of(self, other: DisplacementField | None) -> Field:
        """(k, j, i, 3) on the nodes: zero, or another field; beyond its nodes the nearest value."""
        out = np.zeros((*self.nodes, 3), np.float32)
        if other is None:
            return out
        # Each component is an image that does not move. (`DisplacementField.at_nodes_of` on two threads.)
        index = float_square(np.linalg.inv(other.ras_from_index) @ self.ras_from_node)
        still, there = np.zeros((1, 1, 1, 3), np.float32), np.empty(self.nodes, np.uint8)
        part = np.empty(self.nodes, np.float32)
        for c in range(3):
            image = np.ascontiguousarray(other.vectors[..., c])
            kernels.warped(image, NO_MASK, index, float_square(np.eye(3)), still, 1, np.float32(0.0), part, there)
            out[..., c] = part
        return out

    def warp(self, field: OnDevice) -> None:
        """Fill ``moved``, ``moved_normal`` and ``valid``."""
        self.moved_by(field, self.source_mask, self.valid)
        self.device.kernels.locally_normalised(
            self.moved, RADIUS, np.float32(LEAST_DEVIATION**2), *self.scratch, self.moved_normal
        )

    def moved_by(self, field: OnDevice, mask: OnDevice, valid: OnDevice) -> None:
        """Fill ``moved``, and ``valid``: where it is in the moving image and its ``mask``."""
        moving = self.moving.level.volume
        index = moving.index_from_ras @ self.pose @ self.volume.ras_from_index
        turn = (moving.index_from_ras @ self.pose)[:3, :3]
        self.device.kernels.warped(
            self.source, mask, np.asarray(index, np.float32), float_square(turn), field, kernels.STEP,
            np.float32(0.0), self.moved, valid,
        )  # fmt: skip

    def on_nodes(self, field: Field) -> DisplacementField:
        """A field (k, j, i, 3) of this stage's nodes, with where they are."""
        return DisplacementField.of(field, self.ras_from_node)

    def costs(self, field: Field, window_mm: float) -> NDArray[np.float32]:
        """(k, j, i) at the nodes: mean squared difference in a window around."""
        self.warp(self.device.array(field))
        window = [2 * round(window_mm / s / 2.0) + 1 for s in self.volume.spacing_mm[::-1]]
        return self.at_nodes(uniform_filter(self.squared_difference(), window, mode="nearest"))

    def squared_difference(self) -> NDArray[np.float32]:
        """(k, j, i) of the normalised images as they were last warped; `OUTSIDE_COST` where none is counted."""
        home = self.device.home
        counts = home(self.valid) & home(self.counted) != 0
        return np.where(counts, (home(self.normal) - home(self.moved_normal)) ** 2, np.float32(OUTSIDE_COST))

    def normal_equations(self) -> tuple[OnDevice, OnDevice]:
        """Matrix (k, j, i, 6) and right side (k, j, i, 3) at the nodes, of the images as they were last warped."""
        matrix, right = (self.device.empty((*self.nodes, n), np.float32) for n in (6, 3))
        self.device.kernels.data_term(
            self.normal, self.moved_normal, self.counted, self.valid, derivatives_of(self.volume.ras_from_index),
            matrix, right,
        )  # fmt: skip
        return matrix, right

    def at_nodes(self, values: NDArray[Scalar]) -> NDArray[Scalar]:
        """Of values (k, j, i) of the voxels those at the nodes; at nodes beyond the last voxel that one's."""
        places = [np.minimum(kernels.STEP * np.arange(n), m - 1) for n, m in zip(self.nodes, values.shape, strict=True)]
        return values[np.ix_(*places)]


def float_square(matrix: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.ascontiguousarray(matrix, np.float32)


def derivatives_of(grid: NDArray[np.floating]) -> NDArray[np.float32]:
    """(3, 3) that takes differences along i, j, k of a grid, (4, 4) RAS from index, to derivatives in RAS, per mm."""
    return float_square(np.linalg.inv(grid[:3, :3]).T)


def level_images(image: Volume, mask: NDArray[np.generic] | None, what: str) -> list[LevelImage]:
    """Levels of an image, the coarsest first, of grey values between 0 and 1; ``what``: which image, for messages."""
    check_image(image, mask, what)
    some = image.array[::2, ::4, ::4].astype(np.float32)
    low, high = (float(v) for v in np.percentile(some, [DARKEST, BRIGHTEST]))
    if not high > low:
        low, high = float(image.array.min()), float(image.array.max())
    grey = np.clip(image.array.astype(np.float32), low, high)
    grey -= np.float32(low)
    grey /= np.float32(high - low)
    levels = image_pyramid(Volume.of(grey, image.ras_from_index), COARSE_MM)
    return [LevelImage(level, mask_at(mask, level)) for level in levels[::-1]]


def stages_of(
    fixed: list[LevelImage],
    moving: list[LevelImage],
    pose: NDArray[np.floating],
    finest_mm: float,
    device: Device = CPU,
) -> list[Stage]:
    """The coarse stage, the fine one, and finer ones (none below ``finest_mm``); ``pose`` (4, 4): moving from fixed.

    Each has the moving level that is nearest to it in pitch.
    """
    out: list[Stage] = []
    for image in fixed:
        pitch = image.level.pitch_mm
        if len(out) >= 2 and (image.array.size > MOST_VOXELS or pitch < finest_mm):
            break
        alike = nearest_level([one.level for one in moving], pitch)
        out.append(Stage.of(image, moving[alike], np.asarray(pose, np.float64), device))
    return out
