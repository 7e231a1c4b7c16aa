"""What series a DICOM folder holds: one pass over the headers, without pixels."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from nav.io.errors import CtReadError

__all__ = ["FolderScan", "Progress", "Series", "SeriesInfo", "SliceHeader", "is_dicom_file", "scan_folder"]

#: Called with (done, total).
Progress = Callable[[int, int], None]

_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "ImageType",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "InstanceNumber",
    "AcquisitionNumber",
    "ImagesInAcquisition",
    "PatientName",
    "PatientID",
    "FrameOfReferenceUID",
    "Laterality",
    "ImageLaterality",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SliceThickness",
    "GantryDetectorTilt",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
]
_CT_CLASSES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1")


@dataclass(frozen=True, slots=True, eq=False)
class SliceHeader:
    """Header of one DICOM image file. Positions and directions are LPS as stored; None where the tag is absent."""

    path: Path
    sop_uid: str
    modality: str
    localizer: bool
    study_uid: str
    series_uid: str
    series_number: int | None
    description: str
    instance_number: int | None
    images_in_acquisition: int | None
    patient_name: str
    patient_id: str
    frame_of_reference_uid: str
    laterality: str
    position_lps: tuple[float, ...] | None
    orientation_lps: tuple[float, ...] | None
    pixel_spacing_mm: tuple[float, ...] | None
    rows: int
    columns: int
    frames: int
    thickness_mm: float | None
    tilt_deg: float | None
    slope: float | None
    intercept: float | None
    rescale_type: str
    transfer_syntax_uid: str


@dataclass(frozen=True, slots=True)
class SeriesInfo:
    """One series, as shown to the person who chooses.

    ``index`` is its number in the list, from 1; ``note`` says why it cannot be the CT (empty when it can).
    """

    index: int
    uid: str
    series_number: int | None
    description: str
    modality: str
    slices: int
    rows: int
    columns: int
    note: str = ""

    def line(self) -> str:
        """One line for a list."""
        number = "-" if self.series_number is None else str(self.series_number)
        text = (
            f"{self.index}: series {number}, {self.modality or 'no modality'}, {self.slices} slices of "
            f"{self.columns}×{self.rows}, {self.description or 'no description'}, UID {self.uid or 'empty'}"
        )
        return f"{text} ({self.note})" if self.note else text


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One series with its headers, in file order."""

    info: SeriesInfo
    slices: tuple[SliceHeader, ...]


@dataclass(frozen=True, slots=True, eq=False)
class FolderScan:
    """What stands in a folder."""

    folder: Path
    series: tuple[Series, ...]
    skipped: tuple[str, ...] = field(default=())


def is_dicom_file(path: Path) -> bool:
    """True when the file carries the DICOM mark (``DICM`` at byte 128)."""
    try:
        with path.open("rb") as stream:
            stream.seek(128)
            return stream.read(4) == b"DICM"
    except OSError:
        return False


def scan_folder(folder: Path, progress: Progress | None = None) -> FolderScan:
    """Read every header below ``folder`` and group the images by series.

    Raises
    ------
    CtReadError
        No folder, no file, no DICOM image, an empty file, or an image header that breaks off.
    """
    if not folder.is_dir():
        raise CtReadError(f"{folder}: no such folder")
    files = sorted(
        Path(root) / name
        for root, _, names in os.walk(folder)
        for name in names
        if not name.startswith(".") and name != "DICOMDIR"
    )
    if not files:
        raise CtReadError(f"{folder}: the folder is empty; give the folder that holds the CT's slices")
    headers: list[SliceHeader] = []
    skipped: list[str] = []
    for done, file in enumerate(files, start=1):
        header = _read_header(file)
        if header is None:
            skipped.append(file.name)
        else:
            headers.append(header)
        if progress is not None:
            progress(done, len(files))
    if not headers:
        raise CtReadError(f"{folder}: none of its {len(files)} files is a DICOM image, the first is {files[0].name}")
    groups: dict[tuple[str, str, bool], list[SliceHeader]] = {}
    for header in headers:
        groups.setdefault((header.series_uid, header.modality, header.localizer), []).append(header)
    ordered = sorted(
        groups.values(),
        key=lambda g: (g[0].series_number is None, g[0].series_number or 0, g[0].series_uid, g[0].modality),
    )
    return FolderScan(
        folder, tuple(Series(_info(i, g), tuple(g)) for i, g in enumerate(ordered, start=1)), tuple(skipped)
    )


def _info(index: int, slices: list[SliceHeader]) -> SeriesInfo:
    first = slices[0]
    note = ""
    if first.modality != "CT":
        note = f"modality {first.modality or 'missing'}, not CT"
    elif first.localizer:
        note = "localizer, not a volume"
    elif len(slices) < 2:
        note = "enhanced multi-frame CT, not supported" if first.frames > 1 else "a single slice, not a volume"
    return SeriesInfo(
        index, first.series_uid, first.series_number, first.description, first.modality, len(slices), first.rows,
        first.columns, note,
    )  # fmt: skip


def _read_header(file: Path) -> SliceHeader | None:
    """The header of an image; None for a file that is no DICOM image."""
    size = file.stat().st_size
    if size == 0:
        if file.suffix.lower() in ("", ".dcm", ".ima", ".img") or file.suffix[1:].isdigit():
            raise CtReadError(f"{file}: is empty (0 bytes), its transfer broke off; copy it again or remove it")
        return None
    if not is_dicom_file(file):
        return None
    try:
        data = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
        sop_class = str(data.get("SOPClassUID", "") or data.file_meta.get("MediaStorageSOPClassUID", ""))
        rows, columns = int(data.get("Rows", 0) or 0), int(data.get("Columns", 0) or 0)
        if rows == 0 or columns == 0:
            if sop_class in _CT_CLASSES:
                raise CtReadError(f"{file}: says it is a CT slice but its header breaks off; copy it again")
            return None
        return SliceHeader(
            path=file,
            sop_uid=_text(data, "SOPInstanceUID"),
            modality=_text(data, "Modality"),
            localizer="LOCALIZER" in [str(v).upper() for v in _values(data, "ImageType")],
            study_uid=_text(data, "StudyInstanceUID"),
            series_uid=_text(data, "SeriesInstanceUID"),
            series_number=_integer(data, "SeriesNumber"),
            description=_text(data, "SeriesDescription"),
            instance_number=_integer(data, "InstanceNumber"),
            images_in_acquisition=_integer(data, "ImagesInAcquisition"),
            patient_name=_text(data, "PatientName"),
            patient_id=_text(data, "PatientID"),
            frame_of_reference_uid=_text(data, "FrameOfReferenceUID"),
            laterality=_text(data, "ImageLaterality") or _text(data, "Laterality"),
            position_lps=_floats(data, "ImagePositionPatient", 3),
            orientation_lps=_floats(data, "ImageOrientationPatient", 6),
            pixel_spacing_mm=_floats(data, "PixelSpacing", 2),
            rows=rows,
            columns=columns,
            frames=_integer(data, "NumberOfFrames") or 1,
            thickness_mm=_number(data, "SliceThickness"),
            tilt_deg=_number(data, "GantryDetectorTilt"),
            slope=_number(data, "RescaleSlope"),
            intercept=_number(data, "RescaleIntercept"),
            rescale_type=_text(data, "RescaleType"),
            transfer_syntax_uid=str(data.file_meta.get("TransferSyntaxUID", "")),
        )
    except CtReadError:
        raise
    except (InvalidDicomError, EOFError, ValueError, TypeError, KeyError, AttributeError, OSError) as problem:
        raise CtReadError(f"{file}: its DICOM header is damaged or breaks off ({problem}); copy it again") from None


def _text(data: pydicom.Dataset, keyword: str) -> str:
    value = data.get(keyword, "")
    return "" if value is None else str(value).strip().strip("\0")


def _values(data: pydicom.Dataset, keyword: str) -> list[Any]:
    value = data.get(keyword)
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | int | float) else list(value)


def _integer(data: pydicom.Dataset, keyword: str) -> int | None:
    values = _values(data, keyword)
    return int(values[0]) if values else None


def _number(data: pydicom.Dataset, keyword: str) -> float | None:
    values = _values(data, keyword)
    return float(values[0]) if values else None


def _floats(data: pydicom.Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    values = tuple(float(v) for v in _values(data, keyword))
    return values if len(values) == count and np.isfinite(values).all() else None
