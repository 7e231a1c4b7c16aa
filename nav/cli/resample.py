"""``ablation-nav resample``: an image on the grid of another one, through a transform file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["resample"]

HELP = """Resample an image onto the grid of another one.

The transform is a file of `register` (ITK: fixed to moving), also a displacement field; without one the two lie as
their files say. Labels keep their values with --labels.

\b
Examples:
  ablation-nav resample today.nrrd --fixed planning-ct/ --transform registered/transform.tfm --out warped.nrrd
  ablation-nav resample today.nrrd --fixed planning-ct/ --transform registered/displacement.nrrd --out warped.nrrd
  ablation-nav resample tumour.nrrd --fixed planning-ct/ --labels --out tumour-on-ct.nrrd
"""


def resample(
    moving: Annotated[Path, typer.Argument(help="Image to resample: DICOM folder or file.", show_default=False)],
    fixed: Annotated[Path, typer.Option(help="Image whose grid it gets.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Image to write (.nrrd, .nii.gz, .mha).", show_default=False)],
    transform: Annotated[
        Path | None, typer.Option(help="ITK transform (.tfm, .txt, .h5), or a field (.nrrd, .nii.gz, .mha).")
    ] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Nearest voxel instead of interpolation.")] = False,
    outside: Annotated[
        float | None, typer.Option(help="Value where MOVING has no data; its smallest one unless given, 0 for labels.")
    ] = None,
) -> None:
    """See ``HELP``."""
    from nav.cli.images import MOVING_TO_FIXED, read_image
    from nav.geometry.rigid import Rigid
    from nav.imaging.resample import resample_displaced, resample_rigid, upright_grid
    from nav.io.displacement_file import is_displacement_file, read_displacement
    from nav.io.itk_transform import read_itk_rigid
    from nav.io.volume_file import write_volume

    image, onto = read_image(moving), read_image(fixed)
    if outside is None:
        outside = 0.0 if labels else float(image.array.min())
    grid = upright_grid(onto)
    if transform is not None and is_displacement_file(transform):
        result = resample_displaced(image, grid, read_displacement(transform), outside=outside, nearest=labels)
    else:
        moved = Rigid.identity(MOVING_TO_FIXED) if transform is None else read_itk_rigid(transform, MOVING_TO_FIXED)
        result = resample_rigid(image, grid, moved, outside=outside, nearest=labels)
    write_volume(out, result)
    if grid is not onto:
        print("the scan is tilted: written on an upright grid around it")
    print(f"wrote {out}")
