"""Where a needle, a probe and a stylus can go: rays through the patient's tissue classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, map_coordinates

from drivers.room.geometry import RoomError, unit
from nav.geometry.volume import Volume

__all__ = ["TissueMap", "choose_needle_path", "choose_probe_window", "skin_landmarks"]

F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Name, angle about the trunk's axis (degrees from the patient's right towards the front), height above the target mm.
#: Irregular on purpose: no two of them can be exchanged without leaving a residual. In the order of a short tour.
_LANDMARKS = (
    ("costal_left", 142.0, 6.0),
    ("xiphoid", 90.0, 66.0),
    ("epigastric", 68.0, 18.0),
    ("umbilical", 98.0, -78.0),
    ("costal_right", 44.0, -30.0),
    ("chest_right", 24.0, 58.0),
    ("axillary_right", -8.0, 22.0),
    ("flank_right", 4.0, -66.0),
)

_AIR_HU = -500.0


@dataclass(frozen=True, slots=True, eq=False)
class TissueMap:
    """The patient as far as access matters, on the CT's grid (masks (k, j, i) bool).

    ``avoid`` are lung, bowel, heart, great vessels; ``bone_mm`` and ``avoid_mm`` distances (mm) on a grid coarser by
    ``stride`` (i, j, k).
    """

    ct: Volume
    body: Mask
    bone: Mask
    avoid: Mask
    bone_mm: NDArray[np.float32]
    avoid_mm: NDArray[np.float32]
    stride: tuple[int, int, int]

    @classmethod
    def of(cls, ct: Volume, body: Mask, bone: Mask, avoid: Mask) -> TissueMap:
        """Compute the distances. Axis-aligned or oblique grids alike (distances use the grid's own pitch)."""
        stride = _strides(ct, 2.8)
        pitch = tuple(float(s) * n for s, n in zip(ct.spacing_mm[::-1], stride[::-1], strict=True))
        cut = tuple(slice(None, None, n) for n in stride[::-1])

        def distance(mask: Mask) -> NDArray[np.float32]:
            if not mask[cut].any():
                return np.full(mask[cut].shape, 1e3, dtype=np.float32)
            return np.asarray(distance_transform_edt(~mask[cut], sampling=pitch), dtype=np.float32)

        return cls(ct, body, bone, avoid, distance(bone), distance(avoid), stride)

    def _nearest(self, mask: Mask, ras: F64) -> NDArray[np.bool_]:
        at = np.rint(self.ct.to_index(ras)).astype(int)
        size = np.array(self.ct.size)
        inside = ((at >= 0) & (at < size)).all(axis=-1)
        at = np.clip(at, 0, size - 1)
        return np.asarray(mask[at[..., 2], at[..., 1], at[..., 0]] & inside)

    def _linear(self, coarse: NDArray[np.float32], ras: F64) -> F64:
        index = self.ct.to_index(ras) / np.array(self.stride)
        return np.asarray(map_coordinates(coarse, index[..., ::-1].reshape(-1, 3).T, order=1, mode="nearest")).reshape(
            index.shape[:-1]
        )

    def exit_point(self, origin: F64, direction: F64, reach_mm: float = 320.0) -> F64 | None:
        """The outermost skin point on a ray, refined where the CT crosses −500 HU; None when it leaves the grid."""
        steps = np.arange(0.0, reach_mm, 0.5)
        inside = self._nearest(self.body, origin + steps[:, None] * direction)
        if not inside.any():
            return None
        last = float(steps[np.flatnonzero(inside)[-1]])
        fine = np.arange(last - 4.0, last + 4.0, 0.1)
        points = origin + fine[:, None] * direction
        index = self.ct.to_index(points)
        if (index < 0).any() or (index > np.array(self.ct.size) - 1).any():
            return None
        hu = map_coordinates(self.ct.array, index[:, ::-1].T, order=1, output=np.float64)
        solid = np.flatnonzero(hu > _AIR_HU)
        return np.asarray(points[solid[-1]]) if solid.size else None

    def clearances(self, start: F64, end: F64) -> tuple[float, float]:
        """Smallest distance (mm) of the line from bone, and from what else must not be crossed."""
        count = max(2, int(np.linalg.norm(end - start)))
        points = start + np.linspace(0.0, 1.0, count)[:, None] * (end - start)
        return float(self._linear(self.bone_mm, points).min()), float(self._linear(self.avoid_mm, points).min())

    def normal(self, point: F64) -> F64:
        """Outward unit normal of the skin near ``point``, from the local centre of mass of the body."""
        offsets = np.stack(np.meshgrid(*[np.arange(-15.0, 15.1, 3.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        offsets = offsets[np.linalg.norm(offsets, axis=1) <= 15.0]
        inside = self._nearest(self.body, point + offsets)
        return unit(-offsets[inside].mean(axis=0)) if inside.any() else unit([0.0, 1.0, 0.0])


def _strides(ct: Volume, pitch_mm: float) -> tuple[int, int, int]:
    """Voxels (i, j, k) that make about ``pitch_mm``."""
    i, j, k = (max(1, round(pitch_mm / float(s))) for s in ct.spacing_mm)
    return i, j, k


def _directions(count: int) -> F64:
    """(count, 3) evenly spread unit vectors (golden spiral)."""
    n = np.arange(count) + 0.5
    polar = np.arccos(1.0 - 2.0 * n / count)
    turn = np.pi * (1.0 + np.sqrt(5.0)) * n
    return np.stack([np.cos(turn) * np.sin(polar), np.sin(turn) * np.sin(polar), np.cos(polar)], axis=1)


def choose_needle_path(
    tissue: TissueMap, target: F64, length_mm: tuple[float, float] = (60.0, 110.0)
) -> tuple[F64, F64]:
    """Entry point on the skin, between ribs, and the target: clear of bone, of length within ``length_mm``.

    Raises
    ------
    RoomError
        When no direction of 900 tried is clear.
    """
    best: tuple[float, F64] | None = None
    for direction in _directions(900):
        if direction[1] < -0.15 or abs(direction[2]) > 0.45:
            continue
        skin = tissue.exit_point(target, direction)
        if skin is None:
            continue
        length = float(np.linalg.norm(skin - target))
        if not length_mm[0] <= length <= length_mm[1]:
            continue
        bone, other = tissue.clearances(skin, target)
        if bone < 4.5 or other < 4.0:
            continue
        steep = float(tissue.normal(skin) @ direction)
        cost = abs(length - 0.5 * sum(length_mm)) / 25.0 - min(bone, 10.0) / 4.0 - min(other, 10.0) / 8.0 - 2.0 * steep
        if best is None or cost < best[0]:
            best = (cost, skin)
    if best is None:
        raise RoomError(
            f"no needle path of {length_mm[0]:g} to {length_mm[1]:g} mm reaches the target at "
            f"{np.round(target, 1).tolist()} mm RAS clear of bone; choose another tumour"
        )
    return best[1], target


def choose_probe_window(tissue: TissueMap, entry: F64, target: F64) -> tuple[F64, F64, F64]:
    """Contact point, beam axis and array direction of a probe that sees the target with the needle in its plane.

    Raises
    ------
    RoomError
    """
    needle = unit(target - entry)
    best: tuple[float, F64, F64] | None = None
    for direction in _directions(900):
        cosine = float(-direction @ needle)
        if direction[1] < -0.2 or not np.cos(np.deg2rad(68.0)) <= cosine <= np.cos(np.deg2rad(24.0)):
            continue
        skin = tissue.exit_point(target, direction)
        if skin is None:
            continue
        length = float(np.linalg.norm(skin - target))
        if length > 135.0 or np.linalg.norm(skin - entry) < 35.0:
            continue
        bone, other = tissue.clearances(skin, target)
        steep = float(tissue.normal(skin) @ direction)
        cost = length / 40.0 - min(bone, 12.0) / 3.0 - min(other, 8.0) / 3.0 - 3.0 * steep
        if best is None or cost < best[0]:
            best = (cost, skin, -direction)
    if best is None:
        raise RoomError(f"no place for the ultrasound probe sees the target at {np.round(target, 1).tolist()} mm RAS")
    _, contact, axis = best
    lateral = unit(needle - (needle @ axis) * axis)
    return contact, axis, lateral


def skin_landmarks(tissue: TissueMap, target: F64) -> tuple[list[tuple[str, F64]], list[F64]]:
    """Eight named points round the accessible skin, and their outward normals.

    Heights are squeezed into the CT where it is short.

    Raises
    ------
    RoomError
        When the skin does not lie within the CT.
    """
    si, sj, sk = _strides(tissue.ct, 6.0)
    k, j, i = np.nonzero(tissue.body[::sk, ::sj, ::si])
    ras = tissue.ct.to_ras(np.stack([i * si, j * sj, k * sk], axis=1))
    low, high = float(ras[:, 2].min()) + 8.0, float(ras[:, 2].max()) - 8.0
    points: list[tuple[str, F64]] = []
    normals: list[F64] = []
    for name, angle, above in _LANDMARKS:
        z = float(np.clip(target[2] + above, low, high))
        near = ras[np.abs(ras[:, 2] - z) < 8.0]
        middle = 0.5 * (near.min(axis=0) + near.max(axis=0))
        a = np.deg2rad(angle)
        skin = tissue.exit_point(np.array([middle[0], middle[1], z]), np.array([np.cos(a), np.sin(a), 0.0]))
        if skin is None:
            raise RoomError(f"landmark {name}: the skin does not lie within the CT at height {z:.0f} mm")
        points.append((name, skin))
        normals.append(tissue.normal(skin))
    return points, normals
