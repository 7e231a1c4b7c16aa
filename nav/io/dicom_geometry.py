"""From slice positions to one regular grid, or a refusal that names the values. Works in LPS as stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nav.io.dicom_series import SliceHeader
from nav.io.errors import CtGeometryError

__all__ = ["SliceGrid", "slice_grid"]

#: A slice further than this from its place in the regular grid makes the geometry uneven, mm. Positions rounded to
#: 0.1 mm by the scanner stay below it; anything above would displace what is drawn there by as much.
POSITION_TOLERANCE_MM = 0.1

#: Gap, in units of the median gap, from which slices are called missing rather than uneven.
MISSING_GAP = 1.5

#: Tilt below this many degrees is rounding of the header.
TILT_TOLERANCE_DEG = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class SliceGrid:
    """Slices in order along the normal, and the affine they share.

    Attributes
    ----------
    order : tuple of int
        Index of each slice of the grid in the list given (duplicates left out).
    lps_from_index : (4, 4) float64
        Takes (i, j, k, 1) at voxel centres to LPS mm. Its third column is the measured step from slice to slice: with
        a tilted gantry it is not perpendicular to the slices, and the grid is sheared exactly as it was acquired.
    tilt_deg : float
        Angle between that step and the slices' normal.
    duplicates : tuple of int
        Indices of exact copies that were left out.
    """

    order: tuple[int, ...]
    lps_from_index: NDArray[np.float64]
    tilt_deg: float
    duplicates: tuple[int, ...]


def slice_grid(slices: tuple[SliceHeader, ...]) -> SliceGrid:
    """Sort by position along the normal and check that the slices form one regular grid.

    Raises
    ------
    CtGeometryError
        Missing tags, mixed orientation, pixel spacing or size, duplicate, missing or unevenly spaced slices.
    """
    if len(slices) < 2:
        raise CtGeometryError(f"{slices[0].path.name}: a single slice has no spacing; at least 2 are needed")
    _check_tags(slices)
    first = slices[0]
    row, column = _axes(first)
    normal = np.cross(row, column)
    positions = np.array([s.position_lps for s in slices], dtype=np.float64)
    along = positions @ normal
    order = [int(i) for i in np.argsort(along, kind="stable")]
    order, duplicates = _without_copies(slices, positions, order)
    if len(order) < 2:
        raise CtGeometryError(f"{first.path.parent}: all {len(slices)} slices lie at the same position")
    _check_gaps(slices, positions, along, order)
    step = (positions[order[-1]] - positions[order[0]]) / (len(order) - 1)
    ideal = positions[order[0]] + np.arange(len(order))[:, None] * step
    off = np.linalg.norm(positions[order] - ideal, axis=1)
    worst = int(off.argmax())
    if off[worst] > POSITION_TOLERANCE_MM:
        raise CtGeometryError(
            f"slice {worst + 1} of {len(order)} ({slices[order[worst]].path.name}) at "
            f"{_point(positions[order[worst]])} LPS mm lies {off[worst]:.2f} mm from its place in an even stack, limit "
            f"{POSITION_TOLERANCE_MM} mm: the slices are unevenly spaced or shifted sideways; use an evenly spaced "
            "reconstruction"
        )
    assert first.pixel_spacing_mm is not None
    affine = np.eye(4)
    affine[:3, 0] = row * first.pixel_spacing_mm[1]
    affine[:3, 1] = column * first.pixel_spacing_mm[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[order[0]]
    sideways = float(np.linalg.norm(step - (step @ normal) * normal))
    tilt_deg = float(np.degrees(np.arctan2(sideways, step @ normal)))
    return SliceGrid(tuple(order), affine, tilt_deg if tilt_deg > TILT_TOLERANCE_DEG else 0.0, tuple(duplicates))


def _check_tags(slices: tuple[SliceHeader, ...]) -> None:
    first = slices[0]
    for s in slices:
        for keyword, value in (
            ("ImagePositionPatient", s.position_lps),
            ("ImageOrientationPatient", s.orientation_lps),
            ("PixelSpacing", s.pixel_spacing_mm),
        ):
            if value is None:
                raise CtGeometryError(f"{s.path.name}: {keyword} is missing or not numeric; its place is unknown")
        assert s.orientation_lps
        assert s.pixel_spacing_mm
        assert first.orientation_lps
        assert first.pixel_spacing_mm
        if min(s.pixel_spacing_mm) <= 0.0:
            raise CtGeometryError(f"{s.path.name}: PixelSpacing is {_point(s.pixel_spacing_mm)} mm, must be positive")
        if (s.rows, s.columns) != (first.rows, first.columns):
            raise CtGeometryError(
                f"slices differ in size: {first.path.name} has {first.columns}×{first.rows}, {s.path.name} has "
                f"{s.columns}×{s.rows}; they do not form one volume"
            )
        if np.abs(np.subtract(s.orientation_lps, first.orientation_lps)).max() > 1e-3:
            raise CtGeometryError(
                f"slices differ in orientation: {first.path.name} has {_point(first.orientation_lps)}, {s.path.name} "
                f"has {_point(s.orientation_lps)}; they do not form one volume"
            )
        if np.abs(np.subtract(s.pixel_spacing_mm, first.pixel_spacing_mm)).max() > 1e-4:
            raise CtGeometryError(
                f"slices differ in PixelSpacing: {first.path.name} has {_point(first.pixel_spacing_mm)} mm, "
                f"{s.path.name} has {_point(s.pixel_spacing_mm)} mm; they do not form one volume"
            )
        if s.frame_of_reference_uid != first.frame_of_reference_uid:
            raise CtGeometryError(
                f"slices differ in FrameOfReferenceUID ({first.path.name} and {s.path.name}); the patient or the "
                "table may have moved between them"
            )


def _axes(header: SliceHeader) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit directions of rows (i) and columns (j), LPS."""
    row = np.array(header.orientation_lps[:3] if header.orientation_lps else (), dtype=np.float64)
    column = np.array(header.orientation_lps[3:] if header.orientation_lps else (), dtype=np.float64)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if abs(lengths[0] - 1) > 1e-3 or abs(lengths[1] - 1) > 1e-3 or abs(float(row @ column)) > 1e-3:
        raise CtGeometryError(
            f"{header.path.name}: ImageOrientationPatient {_point(header.orientation_lps or ())} is not two "
            "perpendicular unit vectors"
        )
    row = row / lengths[0]
    column = column - (column @ row) * row
    return row, column / np.linalg.norm(column)


def _without_copies(
    slices: tuple[SliceHeader, ...], positions: NDArray[np.float64], order: list[int]
) -> tuple[list[int], list[int]]:
    """Leave exact copies out; two different slices at one position are refused."""
    kept: list[int] = []
    copies: list[int] = []
    for i in order:
        if not kept or np.linalg.norm(positions[i] - positions[kept[-1]]) > 1e-3:
            kept.append(i)
            continue
        a, b = slices[kept[-1]], slices[i]
        same_uid = a.sop_uid != "" and a.sop_uid == b.sop_uid
        if not same_uid and a.path.read_bytes() != b.path.read_bytes():
            raise CtGeometryError(
                f"two different slices at {_point(positions[i])} LPS mm: {a.path.name} and {b.path.name}; the folder "
                "may mix two acquisitions or phases: put one of them into a folder of its own"
            )
        copies.append(i)
    return kept, copies


def _check_gaps(
    slices: tuple[SliceHeader, ...], positions: NDArray[np.float64], along: NDArray[np.float64], order: list[int]
) -> None:
    gaps = np.diff(along[order])
    usual = float(np.median(gaps))
    if usual <= 1e-3:
        raise CtGeometryError(
            f"{slices[0].path.parent}: slices follow each other at {usual:.4f} mm along their normal; they do not "
            "form a stack"
        )
    wide = np.flatnonzero(gaps > MISSING_GAP * usual)
    missing = np.rint(gaps[wide] / usual).astype(int) - 1
    whole = np.abs(gaps[wide] / usual - (missing + 1)) * usual <= POSITION_TOLERANCE_MM * (missing + 1)
    rest = np.delete(gaps, wide)
    if wide.size and bool(whole.all()) and bool((np.abs(rest - usual) <= 2 * POSITION_TOLERANCE_MM).all()):
        places = "; ".join(
            f"{count} between slice {at + 1} at {_point(positions[order[at]])} ({slices[order[at]].path.name}) and "
            f"slice {at + 2} at {_point(positions[order[at + 1]])} LPS mm ({slices[order[at + 1]].path.name})"
            for at, count in zip(wide[:5], missing[:5], strict=True)
        )
        more = f", and {wide.size - 5} more gaps" if wide.size > 5 else ""
        raise CtGeometryError(
            f"{int(missing.sum())} slice(s) missing, the usual step is {usual:.3f} mm: {places}{more}; "
            "copy the series again"
        )
    if float(gaps.max() - gaps.min()) > 2 * POSITION_TOLERANCE_MM:
        at_min, at_max = int(gaps.argmin()), int(gaps.argmax())
        raise CtGeometryError(
            f"uneven slice spacing: {gaps[at_min]:.3f} mm between slices {at_min + 1} and {at_min + 2}, "
            f"{gaps[at_max]:.3f} mm between slices {at_max + 1} and {at_max + 2} (usual {usual:.3f} mm, allowed "
            f"spread {2 * POSITION_TOLERANCE_MM} mm); use an evenly spaced reconstruction"
        )


def _point(values: tuple[float, ...] | NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{float(v):.6g}" for v in values) + ")"
