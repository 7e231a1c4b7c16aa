"""Displacement fields in files: images of vectors (NRRD, NIfTI, MHA) as ITK's `DisplacementFieldTransform` takes them.

A vector says, in LPS mm, how far a point of the fixed image lies from its place in the moving one. Between nodes both
programs interpolate linearly; beyond the field ITK leaves points where they are, here they have no place.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nav.geometry.displacement import DisplacementField
from nav.geometry.volume import MOST_SKEW, VolumeError
from nav.io.errors import ImageWriteError, TransformFileError
from nav.io.image_file import IMAGE_SUFFIXES, image_suffix, read_image_file, swap_lps_ras
from nav.io.itk import last_line, sitk

__all__ = ["is_displacement_file", "read_displacement", "write_displacement"]


def is_displacement_file(path: Path | str) -> bool:
    """Whether the name is that of an image, and so of a field rather than of a transform."""
    return bool(image_suffix(Path(path)))


def write_displacement(path: Path | str, field: DisplacementField) -> None:
    """Write ``field``; the suffix says as what.

    Raises
    ------
    ImageWriteError
        Another suffix, a sheared grid, or a folder that cannot be written to.
    """
    file = Path(path)
    if not image_suffix(file):
        raise ImageWriteError(f"{file}: a displacement field ends in {', '.join(IMAGE_SUFFIXES)}")
    grid = field.grid
    if grid.skew > MOST_SKEW:
        raise ImageWriteError(f"{file}: the axes of the field are not at right angles; image files cannot say that")
    if not file.parent.is_dir():
        raise ImageWriteError(f"{file}: its folder does not exist")
    spacing = grid.spacing_mm
    image = sitk.GetImageFromArray(np.ascontiguousarray(swap_lps_ras(field.vectors), np.float32), isVector=True)
    image.SetSpacing(spacing.tolist())
    image.SetDirection(swap_lps_ras((grid.ras_from_index[:3, :3] / spacing).T).T.ravel().tolist())
    image.SetOrigin(swap_lps_ras(grid.ras_from_index[:3, 3]).tolist())
    try:
        sitk.WriteImage(image, str(file), True)
    except RuntimeError as error:
        raise ImageWriteError(f"{file}: cannot be written ({last_line(error)})") from None


def read_displacement(path: Path | str) -> DisplacementField:
    """A field as other programs write it too.

    Raises
    ------
    TransformFileError
        Absent, damaged, not an image of vectors with three components, or not finite.
    """
    file = read_image_file(path, TransformFileError, components=3)
    try:
        return DisplacementField.of(swap_lps_ras(file.array.astype(np.float64)), file.ras_from_index)
    except VolumeError as error:
        raise TransformFileError(f"{path}: {error}") from None
