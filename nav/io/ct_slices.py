"""Slices of a CT taken during a procedure: a DICOM slice or folder of a few, or an image file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nav.geometry.volume import Volume
from nav.io.ct import load_ct
from nav.io.dicom_geometry import slice_grid
from nav.io.dicom_pixels import read_slice_hu
from nav.io.dicom_series import SliceHeader, is_dicom_file, scan_folder
from nav.io.errors import CtReadError
from nav.io.image_file import image_suffix, read_image_file, swap_lps_ras

__all__ = ["CtSlices", "load_ct_slices"]


@dataclass(frozen=True, slots=True, eq=False)
class CtSlices:
    """One slice or a short stack.

    Attributes
    ----------
    volume : Volume
        k slices; DICOM as int16 HU, an image file with its own scalar type. The pitch along k of a single DICOM slice
        is its thickness.
    thickness_mm : float
        SliceThickness of DICOM, else the pitch along k.
    """

    volume: Volume
    thickness_mm: float


def load_ct_slices(path: Path | str) -> CtSlices:
    """Load slices.

    Parameters
    ----------
    path : image file (NRRD, NIfTI, MHA), one DICOM slice (only it is read), or a folder of the slices of one series

    Raises
    ------
    CtReadError, CtGeometryError
        It cannot be read, or a single slice does not say how thick it is.
    """
    where = Path(path)
    if where.is_file() and image_suffix(where):
        found = read_image_file(where, CtReadError)
        volume = Volume.of(found.array, found.ras_from_index)
        return CtSlices(volume, float(volume.spacing_mm[2]))
    one = where.is_file() and is_dicom_file(where)
    if one or where.is_dir():
        headers = [h for s in scan_folder(where.parent if one else where).series for h in s.slices]
        if one:
            headers = [h for h in headers if h.path.resolve() == where.resolve()]
        if len(headers) == 1:
            return _single(headers[0])
    ct = load_ct(where)
    thickness = ct.geometry.slice_thickness_mm
    return CtSlices(ct.volume, float(ct.volume.spacing_mm[2]) if thickness is None else thickness)


def _single(header: SliceHeader) -> CtSlices:
    thickness = header.thickness_mm
    if header.modality != "CT" or header.localizer or header.frames > 1:
        raise CtReadError(f"{header.path}: is no slice of a CT (modality {header.modality or 'missing'})")
    if thickness is None or not thickness > 0.0:
        raise CtReadError(
            f"{header.path}: does not say how thick the slice is (SliceThickness); convert it to an image"
        )
    # A copy of it, its thickness further along the normal, makes a grid of the one slice.
    beside = header
    if header.position_lps is not None and header.orientation_lps is not None and len(header.orientation_lps) == 6:
        normal = np.cross(header.orientation_lps[:3], header.orientation_lps[3:])
        there = np.array(header.position_lps) + thickness * normal
        beside = replace(header, sop_uid=f"{header.sop_uid}.", position_lps=tuple(there.tolist()))
    grid = slice_grid((header, beside))
    affine = grid.lps_from_index.copy()
    affine[:3] = swap_lps_ras(affine[:3].T).T
    pixels, _ = read_slice_hu(header)
    return CtSlices(Volume.of(pixels[None], affine), float(thickness))
