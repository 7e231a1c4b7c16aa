"""One image file (NRRD, NIfTI, MHA/MHD) into an array and an affine to RAS; the one LPS flip of the program."""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nav.io.errors import InputFileError
from nav.io.itk import last_line, sitk

__all__ = ["IMAGE_SUFFIXES", "ImageFile", "image_suffix", "read_image_file", "swap_lps_ras"]

IMAGE_SUFFIXES = (".nrrd", ".nhdr", ".nii", ".nii.gz", ".mha", ".mhd")

_FLIP = np.array([-1.0, -1.0, 1.0])


def swap_lps_ras(points: ArrayLike) -> NDArray[np.float64]:
    """LPS ⇄ RAS of points or direction vectors, shape (..., 3), mm: x and y change sign (its own inverse)."""
    return np.asarray(np.asarray(points, dtype=np.float64) * _FLIP)


@dataclass(frozen=True, slots=True, eq=False)
class ImageFile:
    """What one file holds.

    Attributes
    ----------
    array : (k, j, i) as stored
    ras_from_index : (4, 4) float64
        Takes (i, j, k, 1) at voxel centres to RAS mm.
    metadata : dict
        Textual header entries, keys as in the file.
    """

    array: NDArray[np.generic]
    ras_from_index: NDArray[np.float64]
    metadata: dict[str, str]


def image_suffix(path: Path) -> str:
    """The image suffix of ``path`` (``".nii.gz"`` counts as one), or ``""``."""
    name = path.name.lower()
    return next((s for s in sorted(IMAGE_SUFFIXES, key=len, reverse=True) if name.endswith(s)), "")


def read_image_file(path: Path | str, error: type[InputFileError], components: int = 1) -> ImageFile:
    """Read a 3-D image of scalars, or of vectors with so many ``components``; then the array is (k, j, i, components).

    Raises
    ------
    error
        The type given: absent, unreadable, truncated, not three-dimensional, several components, or without a stated
        orientation (a NIfTI whose qform and sform codes are both 0, a NRRD without ``space``): left and right would
        be a guess.
    """
    file = Path(path)
    if not file.is_file():
        raise error(f"{file}: no such file")
    suffix = image_suffix(file)
    if not suffix:
        raise error(f"{file}: not a known image file; expected one of {', '.join(IMAGE_SUFFIXES)}")
    if file.stat().st_size == 0:
        raise error(f"{file}: is empty (0 bytes); copy it again")
    if suffix in (".nii", ".nii.gz"):
        _check_nifti_length(file, suffix == ".nii.gz", error)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
        dimension, held = reader.GetDimension(), reader.GetNumberOfComponents()
        if held != components or dimension not in (3, 4) or (dimension == 4 and reader.GetSize()[3] != 1):
            expected = (
                "one three-dimensional scalar image (overlapping segments: export as a label map)"
                if components == 1
                else f"a three-dimensional image of vectors of {components}"
            )
            raise error(
                f"{file}: holds {dimension} dimensions of size {reader.GetSize()} with {held} components per voxel; "
                f"expected {expected}"
            )
        if dimension == 4:
            reader.SetExtractSize([*reader.GetSize()[:3], 0])
        image = reader.Execute()
    except RuntimeError as problem:
        raise error(f"{file}: cannot be read, it may be truncated or damaged ({last_line(problem)})") from None
    metadata = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    _check_orientation(file, suffix, metadata, error)
    affine = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = _FLIP[:, None] * (directions * np.array(image.GetSpacing()))
    affine[:3, 3] = swap_lps_ras(image.GetOrigin())
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise error(f"{file}: its geometry is singular: spacing {image.GetSpacing()}, direction {image.GetDirection()}")
    return ImageFile(sitk.GetArrayFromImage(image), affine, metadata)


def _check_orientation(file: Path, suffix: str, metadata: dict[str, str], error: type[InputFileError]) -> None:
    if suffix in (".nii", ".nii.gz") and metadata.get("qform_code") == "0" and metadata.get("sform_code") == "0":
        raise error(
            f"{file}: qform_code and sform_code are both 0, so it does not say which side is left; "
            "export it again with an orientation"
        )
    if suffix in (".nrrd", ".nhdr") and not metadata.get("NRRD_space"):
        raise error(
            f"{file}: has no 'space' field, so it does not say which side is left; export it again with "
            "space, space directions and space origin"
        )


def _check_nifti_length(file: Path, compressed: bool, error: type[InputFileError]) -> None:
    """Refuse a truncated NIfTI: ITK's reader fills what is missing and says nothing."""
    try:
        with gzip.open(file, "rb") if compressed else file.open("rb") as stream:
            header = stream.read(540)
            expected = _nifti_length(header)
            if expected is None:
                raise error(f"{file}: is not a NIfTI file (its header says {header[:4].hex()})")
            if not compressed:
                actual = file.stat().st_size
            else:
                # A gzip member ends in its length; only files of several members need to be unpacked to be measured.
                with file.open("rb") as raw:
                    raw.seek(-4, 2)
                    actual = struct.unpack("<I", raw.read(4))[0]
                if actual != expected % 2**32:
                    actual = len(header)
                    while block := stream.read(1 << 20):
                        actual += len(block)
    except (OSError, EOFError) as problem:
        raise error(f"{file}: is truncated or damaged ({problem}); copy it again") from None
    if actual != expected % 2**32 and actual < expected:
        raise error(f"{file}: is truncated: holds {actual} bytes, its header says {expected}; copy it again")


def _nifti_length(header: bytes) -> int | None:
    """Bytes of header and voxels that a NIfTI-1 or NIfTI-2 header announces; None when it is neither."""
    for order in "<>":
        if header[:4] == struct.pack(order + "i", 348) and len(header) >= 348:
            dims = struct.unpack_from(order + "8h", header, 40)
            bits = struct.unpack_from(order + "h", header, 72)[0]
            offset = int(struct.unpack_from(order + "f", header, 108)[0])
        elif header[:4] == struct.pack(order + "i", 540) and len(header) >= 540:
            dims = struct.unpack_from(order + "8q", header, 16)
            bits = struct.unpack_from(order + "h", header, 14)[0]
            offset = struct.unpack_from(order + "q", header, 168)[0]
        else:
            continue
        if not 1 <= dims[0] <= 7:
            return None
        voxels = 1
        for size in dims[1 : dims[0] + 1]:
            voxels *= max(int(size), 1)
        return int(offset) + voxels * int(bits) // 8
    return None
