"""A plan as a picture: for every ablation two planes along its path, with tumour, margin, zones and needle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nav.geometry.volume import Volume
from nav.imaging.contours import cut_ellipsoid
from nav.imaging.planes import lock_axis_for, needle_axes, pixel_from_ras, plane_matrix, ras_to_pixel
from nav.imaging.reslice import reslice_plane, sample_points

__all__ = ["PlannedZone", "plan_picture"]

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]

#: Pixels of one plane, and ablations shown at most (one row each).
SIZE_PX, MOST_ROWS = 460, 6
#: Colours, BGR.
TUMOUR, MARGIN, ZONE, OTHER, NEEDLE = (60, 60, 255), (0, 200, 255), (90, 230, 90), (70, 140, 70), (255, 220, 120)


class PlannedZone(NamedTuple):
    """An ellipsoid of revolution (centre, axis, semi-axes along and across), and its needle; RAS mm."""

    centre_ras: Array
    axis_ras: Array
    semi_long_mm: float
    semi_short_mm: float
    entry_ras: Array
    tip_ras: Array


def plan_picture(
    ct: Volume | None, organ: Volume, target: Volume, margin_mm: float, ablations: Sequence[PlannedZone]
) -> Picture:
    """(height, width, 3) BGR. A row per ablation: the plane along the needle, and the one at 90° to it.

    Red: target; yellow: target + margin; green: the row's zone, dark green: the others', where the plane cuts them;
    light blue: the needle. Without a CT the organ's mask is the background.
    """
    field = _distance_field(target, margin_mm + 5.0)
    rows = []
    for n, own in enumerate(ablations[:MOST_ROWS]):
        direction = own.tip_ras - own.entry_ras
        length = float(np.linalg.norm(direction))
        along, across, _ = needle_axes(direction, lock_axis_for(direction))
        middle = own.entry_ras + 0.5 * (length + 25.0) * direction / length
        mm_per_px = (length + 60.0) / SIZE_PX
        planes = []
        for axes, text in ((along, "along 0 deg"), (across, "along 90 deg")):
            matrix = plane_matrix(axes, middle, SIZE_PX, SIZE_PX, mm_per_px)
            planes.append(_plane(ct, organ, field, margin_mm, matrix, ablations, n))
            cv2.putText(
                planes[-1],
                f"ablation {n + 1}, {text}",
                (8, 20),
                cv2.FONT_HERSHEY_SIMPLEX,
                0.5,
                (255, 255, 255),
                1,
                cv2.LINE_AA,
            )
            cm = round(10.0 / mm_per_px)
            cv2.line(planes[-1], (SIZE_PX - 12 - cm, SIZE_PX - 12), (SIZE_PX - 12, SIZE_PX - 12), (255, 255, 255), 2)
            cv2.putText(
                planes[-1], "1 cm", (SIZE_PX - 12 - cm, SIZE_PX - 18), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1
            )  # fmt: skip
        rows.append(np.concatenate(planes, axis=1))
    picture = np.concatenate(rows, axis=0)
    key = np.zeros((26, picture.shape[1], 3), np.uint8)
    x = 8
    for text, colour in (
        ("target", TUMOUR), (f"+ {margin_mm:g} mm", MARGIN), ("zone (chart)", ZONE), ("other zones", OTHER),
        ("needle", NEEDLE),
    ):  # fmt: skip
        cv2.line(key, (x, 13), (x + 18, 13), colour, 2)
        cv2.putText(key, text, (x + 24, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (230, 230, 230), 1, cv2.LINE_AA)
        x += 150
    return np.concatenate([picture, key], axis=0)


def _distance_field(target: Volume, far_mm: float) -> Volume:
    """Distance to the target's border in mm, negative inside, within ``far_mm`` of it."""
    filled = np.asarray(target.array) > 0
    box = ndimage.find_objects(filled.view(np.uint8))[0]
    pad = (np.ceil(far_mm / target.spacing_mm) + 1).astype(int)[::-1]
    local = np.pad(filled[box], [(int(p), int(p)) for p in pad])
    sampling = tuple(target.spacing_mm[::-1])
    signed = ndimage.distance_transform_edt(~local, sampling=sampling) - ndimage.distance_transform_edt(
        local, sampling=sampling
    )
    affine = target.ras_from_index.copy()
    affine[:3, 3] = target.to_ras(np.array([s.start for s in box])[::-1] - pad[::-1])
    return Volume.of(signed.astype(np.float32), affine)


def _plane(
    ct: Volume | None, organ: Volume, field: Volume, margin_mm: float, matrix: Array, ablations: Sequence[PlannedZone],
    own: int,
) -> Picture:  # fmt: skip
    if ct is not None:
        grey = reslice_plane(ct, matrix, SIZE_PX, SIZE_PX, 350.0, 50.0)
    else:
        grey = reslice_plane(organ, matrix, SIZE_PX, SIZE_PX, 3.0, 0.5)
    picture = np.ascontiguousarray(np.repeat(grey[:, :, None], 3, axis=2))
    y, x = np.indices((SIZE_PX, SIZE_PX))
    pixels_xyz = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=1).astype(np.float64)
    ras = np.asarray(pixels_xyz @ matrix[:3, :3].T + matrix[:3, 3], np.float64)
    distance = sample_points(field, ras).reshape(SIZE_PX, SIZE_PX)
    for limit, colour in ((margin_mm, MARGIN), (0.0, TUMOUR)):
        inside = np.nan_to_num(distance, nan=1e6) <= limit
        contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, colour, 1, cv2.LINE_AA)
    pixels = pixel_from_ras(matrix)
    for n, zone in enumerate(ablations):
        cut = cut_ellipsoid(zone.centre_ras, zone.axis_ras, zone.semi_long_mm, zone.semi_short_mm, matrix)
        if cut is not None:
            line = np.rint(cut[:, :2]).astype(np.int32)
            cv2.polylines(picture, [line], True, ZONE if n == own else OTHER, 2 if n == own else 1, cv2.LINE_AA)
    ends = ras_to_pixel(pixels, np.stack([ablations[own].entry_ras, ablations[own].tip_ras]))[:, :2]
    a, b = (tuple(int(v) for v in np.rint(e)) for e in ends)
    cv2.line(picture, a, b, NEEDLE, 2, cv2.LINE_AA)
    cv2.circle(picture, b, 3, NEEDLE, -1, cv2.LINE_AA)
    return picture
