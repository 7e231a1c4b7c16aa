"""The pixels of one DICOM slice in Hounsfield units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from nav.io.dicom_series import SliceHeader
from nav.io.errors import CtReadError
from nav.io.itk import sitk

__all__ = ["AIR_HU", "clip_to_int16", "read_slice_hu"]

#: What padding (outside the reconstruction circle) is set to: air, so that it is never shown as dense tissue.
AIR_HU = -1024

_UNCOMPRESSED = {
    "1.2.840.10008.1.2": "<",
    "1.2.840.10008.1.2.1": "<",
    "1.2.840.10008.1.2.1.99": "<",
    "1.2.840.10008.1.2.2": ">",
}


def clip_to_int16(values: NDArray[Any]) -> tuple[NDArray[np.int16], int]:
    """Values rounded and clipped into int16, and how many had to be clipped (NaN counts, and becomes `AIR_HU`)."""
    if values.dtype == np.int16:
        return values.astype(np.int16, copy=False), 0
    low, high = -32768, 32767
    if np.issubdtype(values.dtype, np.floating):
        bad = ~np.isfinite(values)
        outside = int(np.count_nonzero(bad | (values < low) | (values > high)))
        rounded = np.rint(np.where(bad, AIR_HU, values))
        return np.clip(rounded, low, high).astype(np.int16), outside
    outside = int(np.count_nonzero((values < low) | (values > high))) if values.dtype.itemsize > 1 else 0
    return (np.clip(values, low, high) if outside else values).astype(np.int16), outside


def read_slice_hu(header: SliceHeader) -> tuple[NDArray[np.int16], int]:
    """Decode one slice.

    Uncompressed pixels are taken straight from the file; compressed ones (JPEG 2000, JPEG, JPEG-LS, RLE) are decoded
    by SimpleITK's GDCM. Rescale slope and intercept are applied once, padding becomes `AIR_HU`.

    Returns
    -------
    hu : (rows, columns) int16
    clipped : int
        Pixels that did not fit into int16.

    Raises
    ------
    CtReadError
        Damaged, truncated, colour, or an encoding that cannot be decoded.
    """
    try:
        data = pydicom.dcmread(header.path)
        samples = int(data.get("SamplesPerPixel", 1) or 1)
        raw_padding = data.get("PixelPaddingValue")
        range_limit = data.get("PixelPaddingRangeLimit", raw_padding)
        padding = None if raw_padding is None else (_whole(raw_padding), _whole(range_limit))
    except (EOFError, ValueError, TypeError, AttributeError, OSError) as problem:
        raise CtReadError(f"{header.path}: is damaged or truncated ({problem}); copy it again") from None
    if samples != 1:
        raise CtReadError(f"{header.path}: has {samples} values per pixel; a CT slice has one")
    slope = 1.0 if header.slope is None else header.slope
    intercept = 0.0 if header.intercept is None else header.intercept
    if header.transfer_syntax_uid in _UNCOMPRESSED:
        values = _rescaled(_raw_pixels(header, data), slope, intercept)
    else:
        values = _decoded_by_gdcm(header)
    if padding is not None:
        ends = sorted(p * slope + intercept for p in padding)
        values = np.where((values >= ends[0]) & (values <= ends[1]), values.dtype.type(AIR_HU), values)
    return clip_to_int16(values)


def _whole(value: object) -> int:
    """An US or SS value; raw bytes when the header leaves the type open."""
    return int.from_bytes(value, "little") if isinstance(value, bytes) else int(str(value))


def _raw_pixels(header: SliceHeader, data: pydicom.Dataset) -> NDArray[Any]:
    allocated, stored = int(data.get("BitsAllocated", 16)), int(data.get("BitsStored", 16))
    high, signed = int(data.get("HighBit", stored - 1)), int(data.get("PixelRepresentation", 0)) == 1
    if allocated not in (8, 16, 32) or not 0 < stored <= allocated or not stored - 1 <= high < allocated:
        raise CtReadError(
            f"{header.path}: BitsAllocated {allocated}, BitsStored {stored}, HighBit {high} cannot be decoded; "
            "8, 16 or 32 bits per pixel are read"
        )
    order = _UNCOMPRESSED[header.transfer_syntax_uid]
    expected = header.rows * header.columns * allocated // 8
    pixels = data.get("PixelData")
    actual = len(pixels) if isinstance(pixels, bytes) else 0
    if actual < expected:
        raise CtReadError(
            f"{header.path}: is truncated: {actual} bytes of pixels where {header.columns}×{header.rows} need "
            f"{expected}; copy it again"
        )
    kind = "i" if signed else "u"
    raw = np.frombuffer(pixels, dtype=f"{order}{kind}{allocated // 8}", count=header.rows * header.columns)
    raw = raw.reshape(header.rows, header.columns).astype(f"={kind}{allocated // 8}", copy=False)
    if stored < allocated:
        # Shift the stored bits to the top and back: drops overlays in spare bits, extends the sign.
        raw = np.right_shift(np.left_shift(raw, allocated - 1 - high), allocated - stored)
    return raw


def _rescaled(raw: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    if slope == 1.0 and intercept == 0.0 and raw.dtype == np.int16:
        return raw
    if slope == 1.0 and intercept == int(intercept):
        return raw.astype(np.int32 if raw.dtype.itemsize < 4 else np.int64) + int(intercept)
    return raw.astype(np.float64) * slope + intercept


def _decoded_by_gdcm(header: SliceHeader) -> NDArray[Any]:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(header.path))
    try:
        image = reader.Execute()
    except RuntimeError as problem:
        reason = [line for line in str(problem).splitlines() if line.strip()][-1].strip()
        raise CtReadError(
            f"{header.path}: cannot be decoded (transfer syntax {header.transfer_syntax_uid}): {reason[-160:]}; it "
            "may be damaged, or its compression is not supported"
        ) from None
    array = sitk.GetArrayFromImage(image)
    if array.shape[-2:] != (header.rows, header.columns) or array.size != header.rows * header.columns:
        raise CtReadError(
            f"{header.path}: decoded to {array.shape}, its header says {header.columns}×{header.rows}; copy it again"
        )
    return np.asarray(array.reshape(header.rows, header.columns))
