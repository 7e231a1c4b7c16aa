"""``ablation-nav transform-points``: points through a transform file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["transform_points"]

HELP = """Take points through a transform.

The transform is a file of `register` (ITK: fixed to moving), also a displacement field: points of the fixed image are
taken to where they lie in the moving one, with --inverse the other way.

\b
Examples:
  ablation-nav transform-points targets.mrk.json --transform registered/transform.tfm --out moved.mrk.json
  ablation-nav transform-points targets.mrk.json --transform registered/displacement.nrrd --out moved.mrk.json
  ablation-nav transform-points seen-today.fcsv --transform registered/transform.tfm --inverse --out planned.mrk.json
"""


def transform_points(
    points: Annotated[Path, typer.Argument(help="Points: .mrk.json, .fcsv, elastix text, VTK.", show_default=False)],
    transform: Annotated[
        Path,
        typer.Option(help="ITK transform (.tfm, .txt, .h5), or a field (.nrrd, .nii.gz, .mha).", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Slicer markups to write (.mrk.json).", show_default=False)],
    inverse: Annotated[bool, typer.Option("--inverse", help="From the moving to the fixed image.")] = False,
) -> None:
    """See ``HELP``."""
    import numpy as np

    from nav.cli.errors import CommandError, ExitCode
    from nav.cli.images import MOVING_TO_FIXED
    from nav.io.case import Landmark
    from nav.io.displacement_file import is_displacement_file, read_displacement
    from nav.io.itk_transform import read_itk_rigid
    from nav.io.markups import write_landmarks
    from nav.io.point_files import read_points

    names, ras = read_points(points)
    if is_displacement_file(transform):
        field = read_displacement(transform)
        there = (field.preimage if inverse else field.apply)(ras)
        lost = [name for name, point in zip(names, there, strict=True) if not np.isfinite(point).all()]
        if lost:
            raise CommandError(
                f"{points}: {len(lost)} of {len(names)} points lie outside the field of {transform} ({lost[0]} is the "
                "first); it says nothing of them: leave them out",
                ExitCode.INPUT,
            )
    else:
        moving_to_fixed = read_itk_rigid(transform, MOVING_TO_FIXED)
        there = (moving_to_fixed if inverse else moving_to_fixed.inverse()).apply(ras)
    write_landmarks(
        out, [Landmark(n, (float(x), float(y), float(z))) for n, (x, y, z) in zip(names, there, strict=True)]
    )
    print(f"wrote {len(names)} points to {out}")
