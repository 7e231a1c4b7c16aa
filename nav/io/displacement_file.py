"""Displacements on a grid into a file, as ITK's DisplacementFieldTransform takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nav.geometry.volume import MOST_SKEW, Volume
from nav.io.errors import ImageWriteError
from nav.io.image_file import IMAGE_SUFFIXES, image_suffix, swap_lps_ras
from nav.io.itk import last_line, sitk

__all__ = ["write_displacement"]


def write_displacement(path: Path | str, displacement_ras: NDArray[np.float64], grid: Volume) -> None:
    """Write where every voxel of ``grid`` is taken to, minus where it lies, as float32 vectors in LPS, mm.

    Parameters
    ----------
    displacement_ras : (k, j, i, 3) float64, mm, RAS
    grid : Volume
        Says where the voxels lie.

    Raises
    ------
    ImageWriteError
        Another suffix, a sheared grid, another shape, or a folder that cannot be written to.
    """
    file = Path(path)
    if not image_suffix(file):
        raise ImageWriteError(f"{file}: an image file ends in {', '.join(IMAGE_SUFFIXES)}")
    if grid.skew > MOST_SKEW:
        raise ImageWriteError(f"{file}: the axes of the grid are not at right angles; image files cannot say that")
    if displacement_ras.shape != (*grid.array.shape, 3):
        raise ImageWriteError(
            f"{file}: the displacements have shape {displacement_ras.shape}, the grid {grid.array.shape} (k, j, i)"
        )
    spacing = grid.spacing_mm
    image = sitk.GetImageFromArray(swap_lps_ras(displacement_ras).astype(np.float32), isVector=True)
    image.SetSpacing(spacing.tolist())
    image.SetDirection(swap_lps_ras((grid.ras_from_index[:3, :3] / spacing).T).T.ravel().tolist())
    image.SetOrigin(swap_lps_ras(grid.ras_from_index[:3, 3]).tolist())
    if not file.parent.is_dir():
        raise ImageWriteError(f"{file}: its folder does not exist")
    try:
        sitk.WriteImage(image, str(file), True)
    except RuntimeError as error:
        raise ImageWriteError(f"{file}: cannot be written ({last_line(error)})") from None
