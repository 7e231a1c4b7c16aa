"""Masks and label maps on any grid: pick a label and a component, crop to the structure, check it against the CT."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nav.geometry.volume import Volume
from nav.io.errors import MaskError
from nav.io.image_file import read_image_file

__all__ = [
    "Component",
    "LabelMap",
    "LoadedMask",
    "components",
    "extract_mask",
    "load_mask",
    "mirrored_fit",
    "read_label_map",
]

#: Room kept around a structure, so that distances to its surface are known near it, mm.
CROP_MARGIN_MM = 12.0

#: Median value below which a structure lies in air, HU: it is then most likely misplaced.
AIR_LIMIT_HU = -500.0

_CONNECTED_26 = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True, slots=True)
class Component:
    """One connected piece of a mask.

    ``index`` counts from 1, largest first; ``centroid_ras`` in mm.
    """

    index: int
    volume_ml: float
    centroid_ras: tuple[float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class LabelMap:
    """A label map as read: ``volume`` holds integer labels on the file's own grid, 0 is background."""

    volume: Volume
    source: str
    metadata: dict[str, str]
    names: dict[int, str]


@dataclass(frozen=True, slots=True, eq=False)
class LoadedMask:
    """A structure.

    Attributes
    ----------
    volume : Volume
        uint8 0/1 on the file's own grid, cropped to the structure with at least `CROP_MARGIN_MM` around it.
    labels : tuple of int
        Label values that make it up; ``name`` is their name in the file, if it has one.
    components : tuple of Component
        All connected pieces of those labels, largest first.
    component : int or None
        The piece that was picked; None when the mask holds all of them.
    """

    volume: Volume
    labels: tuple[int, ...]
    name: str
    components: tuple[Component, ...]
    component: int | None
    warnings: tuple[str, ...]
    source: str
    metadata: dict[str, str]

    @property
    def label(self) -> int:
        """The (first) label value."""
        return self.labels[0]

    @property
    def volume_ml(self) -> float:
        """Volume of the mask."""
        return int(np.count_nonzero(self.volume.array)) * self.volume.voxel_volume_mm3 / 1000.0


def read_label_map(path: Path | str) -> LabelMap:
    """Read a label map or binary mask (NRRD, ``.seg.nrrd`` with one layer, NIfTI, MHA).

    Raises
    ------
    MaskError
        Unreadable, truncated, no stated orientation, sheared grid, or values that are not whole labels ≥ 0.
    """
    image = read_image_file(path, MaskError)
    array: NDArray[Any] = image.array
    if np.issubdtype(array.dtype, np.floating) and (not np.isfinite(array).all() or (array != np.rint(array)).any()):
        raise MaskError(f"{path}: holds values that are not whole numbers; expected labels, not probabilities")
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest > 65535:
        raise MaskError(f"{path}: values run from {lowest} to {highest}; labels must lie between 0 and 65535")
    labels = array.astype(np.uint8 if highest < 256 else np.uint16, copy=False)
    volume = Volume.of(labels, image.ras_from_index)
    if volume.skew > 1e-3:
        raise MaskError(
            f"{path}: its grid is sheared (axes {np.degrees(np.arccos(volume.skew)):.2f}° apart instead of 90°); "
            "distances need an orthogonal grid: resample the mask"
        )
    return LabelMap(volume, str(path), image.metadata, _names(image.metadata))


def _names(metadata: dict[str, str]) -> dict[int, str]:
    """Segment names of a Slicer ``.seg.nrrd`` by label value."""
    names: dict[int, str] = {}
    for key, value in metadata.items():
        match = re.fullmatch(r"(Segment\d+_)LabelValue", key)
        if match and value.strip().isdigit():
            names[int(value)] = metadata.get(match[1] + "Name", "")
    return names


def load_mask(
    path: Path | str,
    *,
    label: int | Sequence[int] | None,
    ct: Volume | None,
    component: int | str | None = None,
) -> LoadedMask:
    """`read_label_map`, then `extract_mask`."""
    return extract_mask(read_label_map(path), label=label, ct=ct, component=component)


def extract_mask(
    label_map: LabelMap,
    *,
    label: int | Sequence[int] | None,
    ct: Volume | None,
    component: int | str | None = None,
    find_components: bool = True,
) -> LoadedMask:
    """Take one structure out of a label map.

    Parameters
    ----------
    label : int, several ints (their union), or None
        None is allowed when the file holds a single label.
    ct : Volume or None
        The CT it must lie in; None skips that check.
    component : int, ``"largest"`` or None
        Piece to keep, numbered from 1, largest first (26-connectivity); None keeps all.
    find_components : bool
        False leaves ``components`` empty when all pieces are kept anyway (saves a second on a skeleton).

    Raises
    ------
    MaskError
        Empty mask, unknown label or component (those present are listed with their volumes), no overlap with the CT
        (both extents are given, and whether a left/right swap would make it fit).
    """
    source, grid = label_map.source, label_map.volume
    wanted = _wanted_labels(label_map, label)
    if len(wanted) == 1:
        selected: NDArray[np.bool_] = np.equal(grid.array, wanted[0])
    else:
        table = np.zeros(_highest_label(grid) + 1, dtype=np.bool_)
        table[list(wanted)] = True
        labels: NDArray[Any] = grid.array
        selected = table[labels]
    box = _bounding_box(selected)
    if box is None:
        raise MaskError(f"{source}: label {_list(wanted)} is not in it; it holds {_inventory(label_map)}")
    touching = [side for a, side in enumerate("kji") if box[a].start == 0 or box[a].stop == grid.array.shape[a]]
    structure = _cropped(selected, box, grid, CROP_MARGIN_MM)
    pieces: tuple[Component, ...] = ()
    chosen: int | None = None
    if component is not None or find_components:
        pieces, numbered, number_of = _label_components(structure)
    if component is not None:
        chosen = 1 if component == "largest" else _component_number(component)
        if chosen is None or not 1 <= chosen <= len(pieces):
            raise MaskError(
                f"{source}: component {component!r} of label {_list(wanted)} does not exist; there are "
                + ", ".join(f"{p.index}: {p.volume_ml:.2f} ml" for p in pieces)
            )
        one = numbered == number_of[chosen - 1]
        box = _bounding_box(one)
        assert box is not None
        structure = _cropped(one, box, structure, CROP_MARGIN_MM)
    warnings: list[str] = []
    if touching:
        warnings.append(
            f"{Path(source).name}: the structure reaches the edge of the mask's grid; it may be cut off there"
        )
    if ct is not None:
        warnings += _check_against_ct(source, structure, grid, ct)
    return LoadedMask(
        volume=structure,
        labels=wanted,
        name=", ".join(filter(None, (label_map.names.get(v, "") for v in wanted))),
        components=pieces,
        component=chosen,
        warnings=tuple(warnings),
        source=source,
        metadata=label_map.metadata,
    )


def components(mask: Volume) -> tuple[Component, ...]:
    """The connected pieces (26-connectivity) of the non-zero voxels, largest first."""
    return _label_components(mask)[0]


def _highest_label(grid: Volume) -> int:
    return 255 if grid.array.dtype == np.uint8 else 65535


def _component_number(component: int | str) -> int | None:
    text = str(component).strip()
    return int(text) if text.isdigit() else None


def _list(labels: Sequence[int]) -> str:
    return "+".join(str(v) for v in labels)


def _inventory(label_map: LabelMap) -> str:
    counts = np.bincount(label_map.volume.array.ravel())
    ml = label_map.volume.voxel_volume_mm3 / 1000.0
    found = [
        f"{value}{' ' + label_map.names[value] if label_map.names.get(value) else ''} ({counts[value] * ml:.2f} ml)"
        for value in np.flatnonzero(counts).tolist()
        if value != 0
    ]
    return "the labels " + ", ".join(found) if found else "no label at all: the mask is empty"


def _wanted_labels(label_map: LabelMap, label: int | Sequence[int] | None) -> tuple[int, ...]:
    if label is None:
        # A count of every value takes most of a second on a whole CT; most masks hold one label.
        array = label_map.volume.array
        highest = int(np.asarray(array).max())
        if highest and np.count_nonzero(array) == np.count_nonzero(np.equal(array, highest)):
            return (highest,)
        present = np.flatnonzero(np.bincount(label_map.volume.array.ravel()))
        present = present[present != 0]
        if present.size != 1:
            raise MaskError(f"{label_map.source}: give a label; it holds {_inventory(label_map)}")
        return (int(present[0]),)
    wanted = (int(label),) if isinstance(label, int | np.integer) else tuple(int(v) for v in label)
    limit = _highest_label(label_map.volume)
    if not wanted or any(v <= 0 or v > limit for v in wanted):
        raise MaskError(f"{label_map.source}: label {_list(wanted)} is not in it; it holds {_inventory(label_map)}")
    return wanted


def _bounding_box(selected: NDArray[np.bool_]) -> tuple[slice, slice, slice] | None:
    """Smallest box that holds every True voxel."""
    plane = np.asarray(selected.any(axis=0))
    spans = []
    for line in (selected.any(axis=(1, 2)), plane.any(axis=1), plane.any(axis=0)):
        at = np.flatnonzero(line)
        if at.size == 0:
            return None
        spans.append(slice(int(at[0]), int(at[-1]) + 1))
    return spans[0], spans[1], spans[2]


def _cropped(selected: NDArray[np.bool_], box: tuple[slice, slice, slice], grid: Volume, margin_mm: float) -> Volume:
    """The box with a margin (zeros where the grid ends earlier), and the affine moved to its first voxel."""
    pad_ijk = np.ceil(margin_mm / grid.spacing_mm).astype(int)
    pad = pad_ijk[::-1]
    array = np.zeros([s.stop - s.start + 2 * int(p) for s, p in zip(box, pad, strict=True)], dtype=np.uint8)
    inner = tuple(slice(int(p), int(p) + s.stop - s.start) for s, p in zip(box, pad, strict=True))
    array[inner] = selected[box]
    start_ijk = np.array([s.start for s in box], dtype=np.float64)[::-1] - pad_ijk
    affine = np.array(grid.ras_from_index)
    affine[:3, 3] = grid.to_ras(start_ijk)
    return Volume.of(array, affine)


def _label_components(mask: Volume) -> tuple[tuple[Component, ...], NDArray[np.int32], NDArray[np.intp]]:
    """The pieces, largest first; the array numbered as scipy met them; and that number of each piece."""
    numbered, count = ndimage.label(mask.array, structure=_CONNECTED_26, output=np.int32)
    if count == 0:
        return (), numbered, np.zeros(0, np.intp)
    flat = np.flatnonzero(mask.array)
    which = numbered.ravel()[flat]
    sizes = np.bincount(which, minlength=count + 1)[1:]
    sums = np.empty((count, 3))
    n_i, n_j, _ = mask.size
    # One axis at a time: a body label has over ten million voxels.
    for axis, (divisor, modulus) in enumerate(((1, n_i), (n_i, n_j), (n_i * n_j, None))):
        index = flat // divisor
        if modulus is not None:
            index %= modulus
        sums[:, axis] = np.bincount(which, weights=index, minlength=count + 1)[1:]
    order = np.argsort(-sizes, kind="stable")
    centroids = mask.to_ras(sums[order] / sizes[order][:, None])
    volumes_ml = sizes[order] * (mask.voxel_volume_mm3 / 1000.0)
    pieces = tuple(
        Component(index, float(ml), (float(c[0]), float(c[1]), float(c[2])))
        for index, (ml, c) in enumerate(zip(volumes_ml, centroids, strict=True), start=1)
    )
    return pieces, numbered, order + 1


def _extent(corners: NDArray[np.float64]) -> str:
    low, high = corners.min(axis=0), corners.max(axis=0)
    return ", ".join(f"{name} {a:.1f} to {b:.1f}" for name, a, b in zip("RAS", low, high, strict=True))


def _inside(points_ras: NDArray[np.float64], ct: Volume) -> NDArray[np.bool_]:
    """Which points lie inside the CT, its outermost voxels included in full."""
    index = ct.to_index(points_ras)
    return np.asarray(((index >= -0.501) & (index <= np.array(ct.size) - 0.499)).all(axis=1))


def mirrored_fit(points_ras: NDArray[np.float64], ct: Volume) -> str:
    """Which swap of sides would bring points that miss the CT into it; empty when none would.

    ``points_ras`` is (n, 3) mm. The usual mix-ups are a left/right mirror and LPS taken for RAS (x and y).
    """
    for flip, text in (
        ((-1.0, -1.0, 1.0), "x and y change sign, as when LPS is taken for RAS"),
        ((-1.0, 1.0, 1.0), "left and right are swapped"),
        ((1.0, -1.0, 1.0), "front and back are swapped"),
    ):
        if bool(_inside(points_ras * np.array(flip), ct).mean() > 0.99):
            return text
    return ""


def _check_against_ct(source: str, structure: Volume, grid: Volume, ct: Volume) -> list[str]:
    flat = np.flatnonzero(structure.array)
    k, j, i = np.unravel_index(flat[:: max(1, flat.size // 20000)], structure.array.shape)
    points = structure.to_ras(np.stack([i, j, k], axis=1))
    _refuse_mirrored_grid(source, grid, ct)
    inside = _inside(points, ct)
    share = float(inside.mean())
    if share == 0.0:
        swap = mirrored_fit(points, ct)
        hint = f"; it would lie inside if {swap}: check the coordinate system" if swap else ""
        raise MaskError(
            f"{source}: the structure does not overlap the CT: structure {_extent(points)}, CT "
            f"{_extent(ct.corners_ras())} (RAS mm){hint}"
        )
    warnings: list[str] = []
    if share < 0.999:
        warnings.append(
            f"{Path(source).name}: {100 * (1 - share):.1f} % of the structure lies outside the CT: structure "
            f"{_extent(points)}, CT {_extent(ct.corners_ras())} (RAS mm)"
        )
    nearest = np.rint(ct.to_index(points[inside])).astype(int)
    nearest = np.clip(nearest, 0, np.array(ct.size) - 1)
    median = float(np.median(ct.array[nearest[:, 2], nearest[:, 1], nearest[:, 0]]))
    if median < AIR_LIMIT_HU:
        warnings.append(
            f"{Path(source).name}: the structure lies in air (median {median:.0f} HU, limit {AIR_LIMIT_HU:.0f}): check "
            "that it belongs to this CT and that left and right are not swapped"
        )
    return warnings


def _refuse_mirrored_grid(source: str, grid: Volume, ct: Volume) -> None:
    """Same box as the CT but for a swapped side: the mask was most likely drawn on this CT and written mirrored."""
    if grid.size != ct.size:
        return
    mask_box, ct_box = grid.corners_ras(), ct.corners_ras()
    tolerance = 0.5 * float(ct.spacing_mm.min())

    def same(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
        ends = np.concatenate([a.min(axis=0) - b.min(axis=0), a.max(axis=0) - b.max(axis=0)])
        return bool(np.abs(ends).max() <= tolerance)

    if same(mask_box, ct_box):
        return
    for flip, text in (((-1.0, 1.0, 1.0), "left and right"), ((-1.0, -1.0, 1.0), "left/right and front/back")):
        if same(mask_box * np.array(flip), ct_box):
            raise MaskError(
                f"{source}: its grid is the CT's with {text} swapped: mask {_extent(mask_box)}, CT {_extent(ct_box)} "
                "(RAS mm); write it again with the right coordinate system (LPS or RAS)"
            )
