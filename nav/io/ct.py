"""Load the pre-operative CT: a DICOM folder or one NRRD, NIfTI or MHA file, into int16 HU in RAS."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nav.geometry.volume import Volume, orientation_letters
from nav.io.case import CaseIdentity
from nav.io.dicom_geometry import SliceGrid, slice_grid
from nav.io.dicom_pixels import clip_to_int16, read_slice_hu
from nav.io.dicom_series import FolderScan, Progress, Series, SeriesInfo, is_dicom_file, scan_folder
from nav.io.errors import CtGeometryError, CtReadError, SeveralSeriesError
from nav.io.image_file import IMAGE_SUFFIXES, image_suffix, read_image_file, swap_lps_ras

__all__ = ["CtGeometry", "LoadedCt", "list_series", "load_ct"]


@dataclass(frozen=True, slots=True)
class CtGeometry:
    """How the CT was acquired, for the person to check.

    Attributes
    ----------
    spacing_mm : tuple of 3 floats
        Pitch along i, j, k from the slices' positions (never from SliceThickness).
    axes : tuple of 3 str
        Where i, j, k point to, such as ``("L", "P", "S")``.
    tilt_deg : float
        Gantry tilt: angle between the step from slice to slice and the slices' normal; the affine is sheared by it.
    slice_thickness_mm : float or None
        The SliceThickness tag, for information.
    """

    spacing_mm: tuple[float, float, float]
    axes: tuple[str, str, str]
    tilt_deg: float = 0.0
    slice_thickness_mm: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LoadedCt:
    """A CT in RAS.

    Attributes
    ----------
    volume : Volume
        int16 HU, its own grid (slices in ascending order along their normal), affine to RAS mm.
    laterality : str
        ``L``, ``R``, ``B`` or empty, from the header.
    series : SeriesInfo or None
        What was chosen in a DICOM folder.
    """

    volume: Volume
    identity: CaseIdentity
    geometry: CtGeometry
    warnings: tuple[str, ...]
    source: str
    laterality: str = ""
    series: SeriesInfo | None = None


def list_series(path: Path | str) -> tuple[SeriesInfo, ...]:
    """The series in a DICOM folder (or beside a DICOM file), numbered from 1; an image file has none.

    Raises
    ------
    CtReadError
    """
    where = Path(path)
    if image_suffix(where) and where.is_file():
        return ()
    folder = where.parent if where.is_file() and is_dicom_file(where) else where
    return tuple(s.info for s in scan_folder(folder).series)


def load_ct(path: Path | str, *, series: str | int | None = None, progress: Progress | None = None) -> LoadedCt:
    """Load a CT.

    Parameters
    ----------
    path : folder of DICOM slices, one of them, or an NRRD/NIfTI/MHA file
    series : str or int, optional
        Number in the list of `list_series` (from 1) or SeriesInstanceUID; needed when there are several.
    progress : callable, optional
        Called with (done, total); reading the headers is the first half, the pixels the second.

    Raises
    ------
    CtReadError
        Nothing there, not a CT, damaged or truncated.
    CtGeometryError
        The slices do not form one regular grid.
    SeveralSeriesError
        Several CT series and none named; the message lists them.
    """
    where = Path(path)
    if not where.exists():
        raise CtReadError(f"{where}: no such file or folder")
    if where.is_dir():
        return _load_series(where, series, progress)
    if image_suffix(where):
        return _load_file(where, progress)
    if is_dicom_file(where):
        return _load_series(where.parent, series if series is not None else _series_of(where), progress)
    raise CtReadError(
        f"{where}: neither a DICOM folder nor a known image file; expected a folder or a file of one of the kinds "
        + ", ".join(IMAGE_SUFFIXES)
    )


def _series_of(file: Path) -> str | int | None:
    """The series that one slice belongs to."""
    for found in scan_folder(file.parent).series:
        if any(s.path == file for s in found.slices):
            return found.info.index
    return None


def _listing(scan: FolderScan) -> str:
    return "\n".join(f"  {s.info.line()}" for s in scan.series)


def _choose(scan: FolderScan, series: str | int | None) -> tuple[Series, list[str]]:
    usable = [s for s in scan.series if not s.info.note]
    if series is not None:
        wanted = str(series).strip()
        named = [s for s in scan.series if s.info.uid == wanted and wanted]
        named = [s for s in named if not s.info.note] or named
        if not named and wanted.isdigit():
            named = [s for s in scan.series if s.info.index == int(wanted)]
        if not named:
            raise CtReadError(
                f"{scan.folder}: no series {wanted!r}; give a number or UID of this list:\n{_listing(scan)}"
            )
        if named[0].info.note:
            raise CtReadError(f"{scan.folder}: series {wanted} cannot be the CT: {named[0].info.note}")
        return named[0], []
    if len(usable) > 1:
        raise SeveralSeriesError(
            f"{scan.folder}: holds {len(usable)} CT series; name one by number or UID:\n{_listing(scan)}",
            tuple(s.info for s in scan.series),
        )
    if not usable:
        if len(scan.series) == 1:
            raise CtReadError(f"{scan.folder}: cannot be loaded as a CT: {scan.series[0].info.note}")
        raise CtReadError(f"{scan.folder}: none of its series can be loaded as a CT:\n{_listing(scan)}")
    # Shown on the screen: no UID here.
    return usable[0], [
        f"left aside: series {s.info.index} of the folder, {s.info.slices} image(s): {s.info.note}"
        for s in scan.series
        if s.info.note
    ]


def _load_series(folder: Path, wanted: str | int | None, progress: Progress | None) -> LoadedCt:
    # Headers are the first half of the work, pixels the second.
    files = 0

    def headers_read(done: int, total: int) -> None:
        nonlocal files
        files = total
        if progress is not None:
            progress(done, 2 * total)

    scan = scan_folder(folder, headers_read)
    chosen, warnings = _choose(scan, wanted)
    if scan.skipped:
        shown = ", ".join(scan.skipped[:3]) + (", …" if len(scan.skipped) > 3 else "")
        warnings.append(f"{len(scan.skipped)} file(s) that are no DICOM images were skipped: {shown}")
    slices = chosen.slices
    multi = next((s for s in slices if s.frames > 1), None)
    if multi is not None:
        raise CtReadError(f"{multi.path}: holds {multi.frames} frames; enhanced multi-frame CT is not supported")
    for label, values in (
        ("PatientID", {s.patient_id for s in slices}),
        ("PatientName", {s.patient_name for s in slices}),
        ("StudyInstanceUID", {s.study_uid for s in slices}),
    ):
        if len(values) > 1:
            raise CtReadError(f"{folder}: slices of one series differ in {label}; the folder mixes patients or studies")
    try:
        grid = slice_grid(slices)
    except CtGeometryError as error:
        raise CtGeometryError(f"{folder}: {error}") from None
    ordered = [slices[i] for i in grid.order]
    array = np.empty((len(ordered), ordered[0].rows, ordered[0].columns), dtype=np.int16)
    clipped = 0
    for k, header in enumerate(ordered):
        array[k], outside = read_slice_hu(header)
        clipped += outside
        if progress is not None:
            progress(files + files * (k + 1) // len(ordered), 2 * files)
    warnings += _series_warnings(chosen, grid, clipped)
    first = ordered[0]
    warnings += _hu_warnings(array)
    content = first.study_uid + "\n" + first.series_uid if first.series_uid else ""
    volume = Volume.of(array, _ras_from_lps(grid.lps_from_index))
    return LoadedCt(
        volume=volume,
        identity=CaseIdentity(
            pseudonym=_pseudonym(content.encode() or array.tobytes()),
            patient_name=first.patient_name,
            patient_id=first.patient_id,
            study_uid=first.study_uid,
            series_uid=first.series_uid,
            frame_of_reference_uid=first.frame_of_reference_uid,
            description=first.description,
        ),
        geometry=_geometry(volume, grid.tilt_deg, first.thickness_mm),
        warnings=tuple(warnings),
        source=str(folder),
        laterality=first.laterality,
        series=chosen.info,
    )


def _series_warnings(chosen: Series, grid: SliceGrid, clipped: int) -> list[str]:
    slices = chosen.slices
    warnings: list[str] = []
    if grid.duplicates:
        names = ", ".join(slices[i].path.name for i in grid.duplicates[:3])
        warnings.append(f"{len(grid.duplicates)} exact copies of slices were left out: {names}")
    if grid.tilt_deg:
        warnings.append(
            f"gantry tilt {grid.tilt_deg:.2f}°: the slices are stacked at an angle; they are placed exactly where they "
            "were acquired (sheared grid)"
        )
    stated = slices[0].tilt_deg
    if stated and not grid.tilt_deg:
        warnings.append(
            f"the header states a gantry tilt of {stated:g}° but the slice positions show none; compare with the "
            "scanner's console before relying on distances"
        )
    if not slices[0].frame_of_reference_uid:
        warnings.append("FrameOfReferenceUID is missing: whether masks and plans belong to this CT cannot be checked")
    if any(s.slope is None or s.intercept is None for s in slices):
        warnings.append("RescaleSlope or RescaleIntercept is missing: stored values are taken as HU")
    kinds = {s.rescale_type for s in slices} - {"", "HU"}
    if kinds:
        warnings.append(f"RescaleType is {', '.join(sorted(kinds))}, not HU")
    announced = slices[0].images_in_acquisition
    if announced is not None and announced > len(slices):
        warnings.append(
            f"the header announces {announced} images in the acquisition, {len(slices)} are here; slices may be "
            "missing at an end of the series"
        )
    if clipped:
        warnings.append(f"{clipped} voxels did not fit into 16 bits and were clipped")
    return warnings


def _hu_warnings(array: NDArray[np.int16]) -> list[str]:
    lowest, highest = int(array.min()), int(array.max())
    if lowest == highest:
        return [f"every voxel has the same value, {lowest}"]
    if lowest > -200:
        return [f"values run from {lowest} to {highest}: no air in the image, they may not be Hounsfield units"]
    return []


def _load_file(file: Path, progress: Progress | None) -> LoadedCt:
    image = read_image_file(file, CtReadError)
    array, clipped = clip_to_int16(image.array)
    warnings = [f"{clipped} voxels did not fit into 16 bits (or were not finite) and were clipped"] if clipped else []
    warnings += _hu_warnings(array)
    volume = Volume.of(array, image.ras_from_index)
    digest = hashlib.sha256(array.tobytes() + image.ras_from_index.tobytes()).digest()
    if progress is not None:
        progress(1, 1)
    return LoadedCt(
        volume=volume,
        identity=CaseIdentity(pseudonym=_pseudonym(digest)),
        geometry=_geometry(volume, 0.0, None),
        warnings=tuple(warnings),
        source=str(file),
    )


def _ras_from_lps(lps_from_index: NDArray[np.float64]) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :] = swap_lps_ras(lps_from_index[:3, :].T).T
    return affine


def _geometry(volume: Volume, tilt_deg: float, thickness_mm: float | None) -> CtGeometry:
    a, b, c = (float(v) for v in volume.spacing_mm)
    axes = [orientation_letters(volume.ras_from_index[:3, axis]) for axis in range(3)]
    return CtGeometry((a, b, c), (axes[0], axes[1], axes[2]), tilt_deg, thickness_mm)


def _pseudonym(content: bytes) -> str:
    """A name that says nothing about the patient and is the same each time the same CT is opened."""
    return "CASE-" + hashlib.sha256(content).hexdigest()[:6].upper()
