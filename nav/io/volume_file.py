"""Volumes into files: NRRD, NIfTI, MHA, in LPS as ITK writes them."""

from __future__ import annotations

from pathlib import Path

from nav.geometry.volume import MOST_SKEW, Volume
from nav.io.errors import ImageWriteError
from nav.io.image_file import IMAGE_SUFFIXES, image_suffix, swap_lps_ras
from nav.io.itk import last_line, sitk

__all__ = ["write_volume"]


def write_volume(path: Path | str, volume: Volume) -> None:
    """Write ``volume``; the suffix says as what (``.nrrd``, ``.nii.gz``, ``.mha`` …), compressed.

    Raises
    ------
    ImageWriteError
        Another suffix, a sheared grid (which these formats cannot say), or a folder that cannot be written to.
    """
    file = Path(path)
    if not image_suffix(file):
        raise ImageWriteError(f"{file}: an image file ends in {', '.join(IMAGE_SUFFIXES)}")
    spacing = volume.spacing_mm
    if volume.skew > MOST_SKEW:
        raise ImageWriteError(f"{file}: the axes of the volume are not at right angles; image files cannot say that")
    directions = volume.ras_from_index[:3, :3] / spacing
    image = sitk.GetImageFromArray(volume.array)
    image.SetSpacing(spacing.tolist())
    image.SetDirection(swap_lps_ras(directions.T).T.ravel().tolist())
    image.SetOrigin(swap_lps_ras(volume.ras_from_index[:3, 3]).tolist())
    if not file.parent.is_dir():
        raise ImageWriteError(f"{file}: its folder does not exist")
    try:
        sitk.WriteImage(image, str(file), True)
    except RuntimeError as error:
        raise ImageWriteError(f"{file}: cannot be written ({last_line(error)})") from None
