"""Small image and DICOM files that the tests of `nav.io` write themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from scipy.spatial.transform import Rotation

from nav.io.itk import sitk

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
SERIES = "1.2.3.4.5"
OBLIQUE = Rotation.from_euler("xyz", [12.0, -7.0, 25.0], degrees=True).as_matrix()

#: LPS directions of (i, j, k), the file's axes, in which one and the same patient may be stored.
AXES = {
    "lps": np.eye(3),
    "ras": np.diag([-1.0, -1.0, 1.0]),
    "oblique": OBLIQUE,
    "sagittal": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
}


def write_slice(file: Path, pixels: NDArray[np.integer[Any]], position: Any, **tags: Any) -> None:
    """One CT slice. ``position`` is LPS mm; ``tags`` override or (None) remove what is written by default."""
    compressed_or_implicit = tags.pop("transfer_syntax", ExplicitVRLittleEndian)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CT_CLASS
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[str(file)])
    meta.TransferSyntaxUID = compressed_or_implicit
    data = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
    values: dict[str, Any] = {
        "SOPClassUID": CT_CLASS,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PatientName": "Doe^Jane",
        "PatientID": "4711",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": SERIES,
        "SeriesNumber": 2,
        "SeriesDescription": "portal venous",
        "FrameOfReferenceUID": "1.2.3.9",
        "ImagePositionPatient": [float(v) for v in position],
        "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        "PixelSpacing": [0.9, 0.7],
        "SliceThickness": 3.0,
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1 if pixels.dtype.kind == "i" else 0,
        "RescaleSlope": 1.0,
        "RescaleIntercept": -1024.0,
    }
    for key, value in {**values, **tags}.items():
        if value is not None:
            setattr(data, key, value)
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW"
    data.save_as(file, enforce_file_format=True)


def write_series(
    folder: Path,
    *,
    count: int = 6,
    step: Any = (0.0, 0.0, 2.5),
    origin: Any = (-20.0, -30.0, 100.0),
    bright: tuple[int, int, int] | None = None,
    rows: int = 12,
    columns: int = 10,
    leave_out: tuple[int, ...] = (),
    prefix: str = "image_",
    **tags: Any,
) -> list[Path]:
    """A series of small slices without file extensions, written in an order that is not that of space.

    Slice k holds raw value 1000 + k (HU −24 + k after the intercept); ``bright`` = (i, j, k) is raw 3000.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for k in range(count):
        if k in leave_out:
            continue
        pixels = np.full((rows, columns), 1000 + k, dtype=np.int16)
        pixels[0, 0] = 0
        if bright is not None and bright[2] == k:
            pixels[bright[1], bright[0]] = 3000
        # Names sort differently from positions, as in real folders (image_0, image_1, image_10 …).
        file = folder / f"{prefix}{(k * 7) % 101:03d}"
        write_slice(file, pixels, np.add(origin, np.multiply(k, step)), **tags)
        files.append(file)
    return files


def write_image(
    file: Path, array: NDArray[Any], *, spacing: Any = (1.0, 1.0, 1.0), origin: Any = (0.0, 0.0, 0.0), axes: Any = None,
    metadata: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    """An image through SimpleITK, in LPS. ``array`` is (k, j, i); the columns of ``axes`` are directions."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(v) for v in spacing])
    image.SetOrigin([float(v) for v in origin])
    if axes is not None:
        image.SetDirection(np.asarray(axes, dtype=np.float64).ravel().tolist())
    for key, value in (metadata or {}).items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(file))
    return file


IMPLICIT = ImplicitVRLittleEndian
