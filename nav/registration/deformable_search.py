"""The search for large motion: every displacement within reach, block by block, tied to the neighbours'."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, map_coordinates

from nav.geometry.displacement import DisplacementField
from nav.geometry.volume import Volume
from nav.registration.deformable_kernels import STEP
from nav.registration.deformable_stage import OUTSIDE_COST, Stage, float_square

__all__ = ["searched"]

#: Displacements that are tried lie so far apart, mm, or one voxel.
APART_MM = 3.0
#: Most costs that are held at a time; above, blocks grow.
MOST_COSTS = 60_000_000
#: How strongly, per mm², a match is tied to the median of its neighbours, one round after the other.
TIES = (0.0, 0.0005, 0.002, 0.008, 0.03, 0.1)


def searched(stage: Stage, reach_mm: float, block: int, prior: DisplacementField | None) -> DisplacementField:
    """The best displacement of every block of voxels, tied to its neighbours', at block centres.

    Within ``reach_mm`` of where ``prior`` leads, along every axis; it is part of what comes back.
    """
    volume, device = stage.volume, stage.device
    kernels = device.kernels
    spacing = volume.spacing_mm[::-1]
    stride = np.maximum(1, np.round(APART_MM / spacing)).astype(np.int64)
    reach = np.maximum(1, np.round(reach_mm / (stride * spacing))).astype(np.int64)
    shape = np.array(volume.array.shape)
    while math.prod(-(-shape // block)) * math.prod(2 * reach + 1) > MOST_COSTS:
        block += 1
    blocks = tuple(int(n) for n in -(-shape // block))
    # The moving image on a grid that is wider by the reach.
    wide = np.eye(4)
    wide[:3, 3] = -(stride * reach)[::-1]
    grid = Volume.of(np.empty(tuple(shape + 2 * stride * reach), np.float32), volume.ras_from_index @ wide)
    around = Stage.wider(stage, grid)
    moved = around.field_of(prior)
    around.warp(device.array(moved))
    count = math.prod(2 * reach + 1)
    costs = device.empty((*blocks[:2], count, blocks[2]), np.float32)
    kernels.search_costs(
        stage.normal, device.weights(stage.counted), around.moved_normal, device.weights(around.valid),
        reach, stride, block, np.float32(OUTSIDE_COST), costs,
    )  # fmt: skip
    kernels.spread_costs(costs, device.empty((max(blocks[:2]), count, blocks[2]), np.float32))
    steps = [s * np.arange(-r, r + 1) for r, s in zip(reach, stride, strict=True)]
    voxels = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)[:, ::-1]
    displacements = float_square(voxels @ volume.ras_from_index[:3, :3].T)
    ties, best = device.array(np.zeros((*blocks, 3), np.float32)), device.empty((*blocks, 3), np.float32)
    unseen = _unseen(device.home(stage.counted), block)
    for tie in TIES:
        kernels.nearest_match(costs, displacements, ties, np.float32(tie), best)
        if tie == 0.0 and unseen.any() and not unseen.all():
            # All costs are zero there, and one displacement as good as another: start from the nearest one that is not.
            nearest = distance_transform_edt(unseen, return_distances=False, return_indices=True)
            best = device.array(device.home(best)[tuple(nearest)])
        kernels.median_of_neighbours(best, ties)
    field = device.home(ties)
    centre = np.eye(4)
    centre[:3, :3] *= block
    centre[:3, 3] = (block - 1) / 2.0
    centres = volume.ras_from_index @ centre
    if prior is not None:
        # Found in the image that was moved already: x goes to x + d first, and from there as before.
        found = DisplacementField.of(field, centres)
        there = found.grid.voxels_ras() + field.reshape(-1, 3)
        at = around.volume.to_index(there)[:, ::-1].T / STEP
        for c in range(3):
            more = map_coordinates(moved[..., c], at, order=1, mode="nearest")
            field[..., c] += more.reshape(blocks)
    return DisplacementField.of(field, centres)


def _unseen(counted: NDArray[np.uint8], block: int) -> NDArray[np.bool_]:
    """(blocks along k, j, i) that hold no voxel that counts."""
    out = counted
    for axis in range(3):
        out = np.maximum.reduceat(out, np.arange(0, counted.shape[axis], block), axis=axis)
    return np.asarray(out == 0)
