"""Poses and pictures to try a connection with: computed, and marked so wherever a message has room for it. Pure."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["MARK", "RADIUS_MM", "TURN_S", "trial_image", "trial_pose"]

#: Goes into metadata and STATUS texts beside trial data.
MARK = "test data of ablation-nav igtl send: computed, no real device"
#: The pose goes round in a circle of this radius, in this time, so far from the tracker.
RADIUS_MM, TURN_S, DISTANCE_MM = 20.0, 10.0, 1000.0
#: The picture: rows and columns, mm per pixel.
SIZE, SPACING_MM = 256, 0.5

#: Letters of 5 x 7 pixels, a row per number, the highest bit on the left.
_LETTERS = {
    "T": (0b11111, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100),
    "E": (0b11111, 0b10000, 0b10000, 0b11110, 0b10000, 0b10000, 0b11111),
    "S": (0b01111, 0b10000, 0b10000, 0b01110, 0b00001, 0b00001, 0b11110),
}
_ZOOM = 8


def trial_pose(seconds: float) -> NDArray[np.float64]:
    """(4, 4), mm: a slow circle in the x-y plane of the receiver's frame, turning about z as it goes.

    Parameters
    ----------
    seconds : float
        Since the beginning.
    """
    angle = 2.0 * math.pi * seconds / TURN_S
    c, s = math.cos(angle), math.sin(angle)
    return np.array(
        [[c, -s, 0.0, RADIUS_MM * c], [s, c, 0.0, RADIUS_MM * s], [0.0, 0.0, 1.0, -DISTANCE_MM], [0.0, 0.0, 0.0, 1.0]]
    )


def trial_image(seconds: float) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """A picture that reads TEST, so that a mirrored or turned one is seen at once, with a bar that moves.

    Returns
    -------
    array : (1, rows, columns) uint8
    mm_from_index : (4, 4)
        Voxel centres to mm; the middle of the first row lies at the origin, as that of an ultrasound array.
    """
    image = np.tile(np.linspace(16, 96, SIZE).astype(np.uint8), (SIZE, 1))
    top, left = SIZE // 2 - 7 * _ZOOM // 2, (SIZE - (4 * 6 - 1) * _ZOOM) // 2
    for n, letter in enumerate("TEST"):
        rows = np.array([[row >> (4 - bit) & 1 for bit in range(5)] for row in _LETTERS[letter]], dtype=bool)
        drawn = np.kron(rows, np.ones((_ZOOM, _ZOOM), dtype=bool))
        at = left + n * 6 * _ZOOM
        image[top : top + drawn.shape[0], at : at + drawn.shape[1]][drawn] = 255
    bar = int(seconds / TURN_S * SIZE) % SIZE
    image[-16:, bar : bar + 8] = 255
    matrix = np.diag([SPACING_MM, SPACING_MM, 1.0, 1.0])
    matrix[0, 3] = -SPACING_MM * (SIZE - 1) / 2.0
    return image[np.newaxis], matrix
