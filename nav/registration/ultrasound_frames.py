"""Tracked ultrasound frames: what of them is image, which of them are used, and their patches."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_fill_holes, label

from nav.geometry.volume import Volume
from nav.registration import ultrasound_kernels as kernels
from nav.registration.verdict import ImageRegistrationError

__all__ = ["MOST_FRAMES", "FrameLevel", "TrackedFrames", "choose_frames", "compound", "frame_level", "planes_of_volume"]

Array = NDArray[np.float64]

#: More frames than this are not used.
MOST_FRAMES = 30
#: Smallest range of grey values over a sweep that makes a pixel part of the image and not of the frame around it.
LEAST_RANGE = 3
#: Grey values of noise, standard deviation of a reduced pixel: variance below its square is no structure.
NOISE_GREY = 6.0


@dataclass(frozen=True, slots=True, eq=False)
class TrackedFrames:
    """Ultrasound frames in a common space.

    Attributes
    ----------
    images : (n, rows, columns) uint8, C-contiguous, read-only
    reference_from_pixel : (n, 4, 4) float64, read-only
        (column, row, 0, 1) at pixel centres to mm.
    mask : (rows, columns) uint8, read-only
        1 where there is an image (the fan).
    """

    images: NDArray[np.uint8]
    reference_from_pixel: Array
    mask: NDArray[np.uint8]

    @classmethod
    def of(
        cls, images: NDArray[np.uint8], reference_from_pixel: ArrayLike, mask: NDArray[np.generic] | None = None
    ) -> TrackedFrames:
        """Check and freeze; without a mask, the fan is what changes over the frames.

        Raises
        ------
        ImageRegistrationError
            No frames, another type, poses that are no affine matrices, or no image in them.
        """
        matrices = np.array(reference_from_pixel, np.float64)
        if images.ndim != 3 or 0 in images.shape or images.dtype != np.uint8:
            raise ImageRegistrationError(
                f"the ultrasound is {images.dtype} {images.shape}; expected uint8 (frames, rows, columns), none empty"
            )
        if matrices.shape != (len(images), 4, 4) or not np.isfinite(matrices).all():
            raise ImageRegistrationError(
                f"the poses are {matrices.shape}, expected a finite (4, 4) for each of the {len(images)} frames; leave "
                "out the frames whose tool was lost"
            )
        pitch = np.linalg.norm(matrices[:, :3, :2], axis=1)
        if pitch.min() <= 0.0 or np.ptp(pitch, axis=0).max() > 0.01 * pitch.max():
            raise ImageRegistrationError(
                f"the pixels are {pitch.min():.3g} to {pitch.max():.3g} mm wide; every frame needs the same calibration"
            )
        if mask is None:
            mask = _fan(images)
        if mask.shape != images.shape[1:]:
            raise ImageRegistrationError(f"the ultrasound mask has {mask.shape} pixels, its frames {images.shape[1:]}")
        if not mask.any():
            raise ImageRegistrationError("the ultrasound frames are constant: no image in them")
        frames, fan = np.ascontiguousarray(images).view(), np.ascontiguousarray(mask != 0).view(np.uint8)
        frames.setflags(write=False)
        matrices.setflags(write=False)
        fan.setflags(write=False)
        return cls(frames, matrices, fan)

    @property
    def pixel_mm(self) -> Array:
        """(2,) width of a row and of a column."""
        return np.asarray(np.linalg.norm(self.reference_from_pixel[0, :3, :2], axis=0)[::-1], np.float64)

    def corners(self, chosen: NDArray[np.intp]) -> Array:
        """(4 m, 3) mm: the middles of the corner pixels of the ``chosen`` (m,) frames."""
        rows, columns = self.images.shape[1] - 1, self.images.shape[2] - 1
        pixels = np.array([[0, 0, 0, 1.0], [columns, 0, 0, 1], [0, rows, 0, 1], [columns, rows, 0, 1]])
        places = (self.reference_from_pixel[chosen] @ pixels.T)[:, :3]
        return np.asarray(places.transpose(0, 2, 1).reshape(-1, 3))


def _fan(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Where pixels change from frame to frame (a single frame: where they are not black), largest piece, filled."""
    low, high = images.min(axis=0), images.max(axis=0)
    changes = high.astype(int) - low >= LEAST_RANGE if len(images) > 1 else high > 0
    pieces, count = label(changes)
    if count == 0:
        return np.zeros(changes.shape, np.uint8)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return np.asarray(binary_fill_holes(pieces == sizes.argmax()), np.uint8)


def planes_of_volume(volume: Volume) -> TrackedFrames:
    """A compounded volume as parallel frames: its planes across the shortest side; zero is outside.

    Raises
    ------
    ImageRegistrationError
        It is empty, or not finite.
    """
    array = np.asarray(volume.array, np.float32)
    if not np.isfinite(array).all():
        raise ImageRegistrationError("the ultrasound volume holds voxels that are not finite; replace them by zero")
    if float(np.ptp(array)) == 0.0:
        raise ImageRegistrationError(f"the ultrasound volume is constant ({array.flat[0]:g} everywhere)")
    low = float(array.min())
    grey = np.rint((array - low) * (255.0 / float(array.max() - low))).astype(np.uint8)
    extent = np.array(volume.size) * volume.spacing_mm
    axis = int(np.argmin(extent))  # of i, j, k
    across = [a for a in (0, 1, 2) if a != axis]  # columns, rows
    images = np.moveaxis(grey, 2 - axis, 0)  # (plane, row, column): k before j before i
    matrices = np.zeros((len(images), 4, 4))
    matrices[:, :, 0] = volume.ras_from_index[:, across[0]]
    matrices[:, :, 1] = volume.ras_from_index[:, across[1]]
    matrices[:, :, 2] = volume.ras_from_index[:, axis]
    planes = np.arange(len(images))[:, None]
    matrices[:, :, 3] = volume.ras_from_index[:, 3] + planes * volume.ras_from_index[:, axis]
    return TrackedFrames.of(np.ascontiguousarray(images), matrices, (images.max(axis=0) > 0).astype(np.uint8))


@dataclass(frozen=True, slots=True, eq=False)
class FrameLevel:
    """Reduced frames and the patches in them.

    Attributes
    ----------
    images : (m, side²) float32
        Pixels of every patch, row by row, freed of their linear trend; zero where there is nothing else.
    patches : (m, 3) int32
        Frame, first row, first column.
    weights : (m,) float64
        Share of a patch's variance that is more than noise.
    side : int
        Pixels of a patch along each side.
    reference_from_pixel : (n, 4, 3) float64
        (column, row, 1) of a reduced pixel to mm.
    """

    images: NDArray[np.float32]
    patches: NDArray[np.int32]
    weights: Array
    side: int
    reference_from_pixel: Array

    def part(self, chosen: NDArray[np.bool_]) -> FrameLevel:
        """With the ``chosen`` (m,) patches only."""
        return replace(
            self, images=np.ascontiguousarray(self.images[chosen]),
            patches=np.ascontiguousarray(self.patches[chosen]), weights=self.weights[chosen],
        )  # fmt: skip

    def centres(self) -> Array:
        """(m, 3) middle of every patch, mm."""
        half = (self.side - 1) / 2.0
        pixels = np.stack([self.patches[:, 2] + half, self.patches[:, 1] + half, np.ones(len(self.patches))], axis=1)
        return np.asarray(np.einsum("mab,mb->ma", self.reference_from_pixel[self.patches[:, 0]], pixels)[:, :3])


def _freed_of_trend(pixels: Array, side: int) -> NDArray[np.float32]:
    """(m, side²) without mean and slopes, each row a patch; what is left by rounding becomes zero."""
    row, column = np.indices((side, side)).reshape(2, -1) - 0.5 * (side - 1)
    trend = np.stack([np.ones(side * side), column, row], axis=1)
    trend /= np.linalg.norm(trend, axis=0)
    freed = pixels - (pixels @ trend) @ trend.T
    freed[(freed**2).sum(axis=1) <= 1e-9 * (pixels**2).sum(axis=1)] = 0.0
    return np.ascontiguousarray(freed, np.float32)


def frame_level(moving: TrackedFrames, chosen: NDArray[np.intp], pitch_mm: float, side: int) -> FrameLevel:
    """The ``chosen`` frames at about ``pitch_mm``, and every whole patch of ``side`` pixels in them, side by side."""
    factor = np.maximum(1, np.round(pitch_mm / moving.pixel_mm)).astype(np.int64)
    rows, columns = (int(n) // int(f) for n, f in zip(moving.images.shape[1:], factor, strict=True))
    frames = np.empty((len(chosen), rows, columns), np.float32)
    kernels.reduce_frames(np.ascontiguousarray(moving.images[chosen]), moving.mask, factor, frames)
    down, across = rows // side, columns // side
    tiles = frames[:, : down * side, : across * side].reshape(len(chosen), down, side, across, side)
    pixels = tiles.transpose(0, 1, 3, 2, 4).reshape(-1, side * side)
    whole = np.flatnonzero(np.isfinite(pixels.sum(axis=1)))
    places = np.stack(np.unravel_index(whole, (len(chosen), down, across)), axis=1)
    greys = np.asarray(pixels[whole], np.float64)
    spread = greys.var(axis=1)
    lift = np.zeros((4, 3))
    lift[0, 0], lift[0, 2] = factor[1], (factor[1] - 1) / 2.0
    lift[1, 1], lift[1, 2] = factor[0], (factor[0] - 1) / 2.0
    lift[3, 2] = 1.0
    return FrameLevel(
        _freed_of_trend(greys, side),
        np.ascontiguousarray(places * np.array([1, side, side]), np.int32),
        spread / (spread + NOISE_GREY**2),
        side,
        moving.reference_from_pixel[chosen] @ lift,
    )


def choose_frames(moving: TrackedFrames, most: int) -> NDArray[np.intp]:
    """(m,) the frames to use, ascending: those with structure, spread over the poses.

    One after the other, the frame is taken that is farthest from all taken before, its distance weighted by the share
    of its image with structure. Frames with less than a quarter of the best one's structure (no contact) are left out.
    """
    tiles = frame_level(moving, np.arange(len(moving.images)), 4.0, 5)
    structure = np.bincount(tiles.patches[:, 0], tiles.weights, minlength=len(moving.images))
    useful = np.flatnonzero(structure >= 0.25 * structure.max())
    if len(useful) <= most:
        return useful
    rows, columns = moving.images.shape[1:]
    pixels = np.array([[0, 0, 0, 1.0], [columns, 0, 0, 1], [0, rows, 0, 1], [columns, rows, 0, 1]])
    corners = (moving.reference_from_pixel[useful] @ pixels.T)[:, :3].reshape(len(useful), -1)
    taken = [int(structure[useful].argmax())]
    nearest = np.full(len(useful), np.inf)
    while len(taken) < most:
        nearest = np.minimum(nearest, np.linalg.norm(corners - corners[taken[-1]], axis=1))
        score = nearest * np.sqrt(structure[useful] / structure.max())
        score[taken] = -1.0
        taken.append(int(score.argmax()))
    return np.sort(useful[taken])


def compound(moving: TrackedFrames, chosen: NDArray[np.intp], ras_from_reference: Array, pitch_mm: float) -> Volume:
    """The ``chosen`` frames in an upright RAS grid around them, uint8: a voxel is the mean of its pixels, 0 without.

    Parameters
    ----------
    pitch_mm : float
        Of the voxels; pixels are taken no denser than half of it.
    """
    rows, columns = np.nonzero(moving.mask)
    stride = np.maximum(1, np.floor(0.5 * pitch_mm / moving.pixel_mm)).astype(int)
    thin = (rows % stride[0] == 0) & (columns % stride[1] == 0)
    pixels = np.stack([columns[thin], rows[thin], np.zeros(thin.sum()), np.ones(thin.sum())]).astype(np.float64)
    matrices = ras_from_reference @ moving.reference_from_pixel[chosen]
    places = (matrices @ pixels)[:, :3].transpose(0, 2, 1).reshape(-1, 3)
    grey = moving.images[chosen][:, rows[thin], columns[thin]].ravel()
    low = places.min(axis=0)
    index = np.rint((places - low) / pitch_mm).astype(np.int64)
    size = index.max(axis=0) + 1
    flat = (index[:, 2] * size[1] + index[:, 1]) * size[0] + index[:, 0]
    total = np.bincount(flat, grey, minlength=int(size.prod()))
    count = np.bincount(flat, minlength=int(size.prod()))
    mean = np.where(count > 0, np.maximum(total / np.maximum(count, 1), 1.0), 0.0)
    grid = np.diag([pitch_mm, pitch_mm, pitch_mm, 1.0])
    grid[:3, 3] = low
    return Volume.of(np.rint(mean).astype(np.uint8).reshape(tuple(size[::-1])), grid)
