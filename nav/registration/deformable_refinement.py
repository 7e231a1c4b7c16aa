"""Gauss-Newton on one level, landmarks that pull on it, and the end of what folds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from nav.registration import deformable_kernels as kernels
from nav.registration.deformable_stage import Field, Stage, derivatives_of

__all__ = ["LEAST_JACOBIAN", "Marks", "refined", "without_folds"]

Array = NDArray[np.float64]

STIFFNESS = 0.8
#: Of the smoothing S: root mean square width, in nodes.
SMOOTHING_NODES = 2.0
#: Norm of the gradient of u at which the body is half as stiff: more than organs are stretched by breathing.
SLIDING_STRAIN = 0.8
#: Determinants below it are resisted; no cell of the result is below `LEAST_JACOBIAN`.
RESISTED_JACOBIAN, LEAST_JACOBIAN = 0.3, 0.05
SWEEPS, SMOOTHING_SWEEPS = 10, 6
#: Over-relaxation; at the strength that is used here both solve to a few percent of a step.
RELAXATION, SMOOTHING_RELAXATION = 1.6, 1.3


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """Landmarks: places (n, 3) of the fixed image, RAS mm, the displacement wanted there, and how much it counts."""

    places: Array
    wanted: Array
    weight: Array

    def added(self, stage: Stage, field: Field, matrix: Field, right: Field) -> None:
        """Their share of the normal equations: at the eight nodes around each, by its trilinear weight."""
        shape = np.array(field.shape[:3])
        at = (self.places - stage.ras_from_node[:3, 3]) @ np.linalg.inv(stage.ras_from_node[:3, :3]).T
        at = np.clip(at[:, ::-1], 0.0, shape - 1.0)
        first = np.minimum(at.astype(np.int64), np.maximum(shape - 2, 0))
        part = at - first
        corners = np.array(list(np.ndindex(2, 2, 2)))
        nodes = np.minimum(first[:, None] + corners, shape - 1)  # (n, 8, 3)
        share = np.where(corners, part[:, None], 1.0 - part[:, None]).prod(axis=2)
        k, j, i = np.moveaxis(nodes, 2, 0)
        here = (share[..., None] * field[k, j, i]).sum(axis=1)
        pull = self.weight[:, None] * share
        for c in (0, 3, 5):
            np.add.at(matrix[..., c], (k, j, i), pull)
        for c in range(3):
            np.add.at(right[..., c], (k, j, i), pull * (self.wanted - here)[:, None, c])


def refined(
    stage: Stage, field: Field, steps: int, marks: Marks | None, report: Callable[[], None], momentum: float = 0.0
) -> Field:
    """Gauss-Newton on one level; ``field`` (k, j, i, 3) on its nodes.

    ``momentum``: share of the last step by which the next one starts ahead.
    """
    device, on = stage.device, stage.device.kernels
    node_mm = np.linalg.norm(stage.ras_from_node[:3, :3], axis=0)
    per_node = derivatives_of(stage.ras_from_node)
    per_axis = np.asarray(STIFFNESS * kernels.STEP**3 / node_mm**2, np.float32)
    smoothing = np.asarray(SMOOTHING_NODES**2 / 2.0 * (node_mm.min() / node_mm) ** 2, np.float32)
    stiff = device.empty(field.shape[:3], np.float32)
    now = earlier = device.array(field)
    for step in range(steps):
        report()
        if step > 0:
            now, earlier = device.plus(now, momentum, device.plus(now, -1.0, earlier)), now
        stage.warp(now)
        matrix, right = stage.normal_equations()
        if marks is not None:
            sums = device.home(matrix), device.home(right)
            marks.added(stage, device.home(now), *sums)
            matrix, right = (device.array(part) for part in sums)
        on.stiffness(now, per_node, np.float32(SLIDING_STRAIN), np.float32(RESISTED_JACOBIAN), stiff)
        smooth = device.copied(now)
        on.smoothed(now, stiff, smoothing, np.float32(SMOOTHING_RELAXATION), SMOOTHING_SWEEPS, smooth)
        before = device.plus(now, -1.0, smooth)
        rest = device.copied(before)
        on.solved(matrix, right, before, stiff, per_axis, np.float32(RELAXATION), SWEEPS, rest)
        now = device.plus(smooth, 1.0, rest)
    return device.home(now)


def without_folds(field: Field, ras_from_node: Array) -> tuple[Field, Field, Field]:
    """``field``, smoothed where it is below `LEAST_JACOBIAN`; and the least and the largest Jacobian of each cell."""
    turn = derivatives_of(ras_from_node)
    cells = tuple(n - 1 for n in field.shape[:3])
    least, most = np.empty(cells, np.float32), np.empty(cells, np.float32)
    field = field.copy()
    for round_ in range(200):
        kernels.cell_jacobians(field, turn, least, most)
        folded = least < LEAST_JACOBIAN
        if not folded.any():
            break
        marked = np.zeros(field.shape[:3], bool)
        for corner in np.ndindex(2, 2, 2):
            marked[tuple(slice(c, n + c) for c, n in zip(corner, cells, strict=True))] |= folded
        # The longer it takes, the wider it is smoothed.
        if round_ >= 10:
            marked = binary_dilation(marked, iterations=1 + round_ // 20)
        padded = np.pad(field, ((1, 1), (1, 1), (1, 1), (0, 0)), mode="edge")
        mean = np.zeros_like(field)
        for axis in range(3):
            for side in (0, 2):
                part = [slice(1, -1)] * 3
                part[axis] = slice(side, side + field.shape[axis])
                mean += padded[tuple(part)] / np.float32(6.0)
        field[marked] = mean[marked]
    return field, least, most
