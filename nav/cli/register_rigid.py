"""``ablation-nav register rigid``: two images of one body, of one modality or of two."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nav.cli.errors import CommandError, ExitCode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nav.geometry.volume import Volume
    from nav.registration.rigid_image import RigidImageRegistration

__all__ = ["HELP", "rigid"]

HELP = """Register two images of one body rigidly, and say how far the result may be trusted.

FIXED is the image that stays, usually the planning CT; MOVING is brought onto it. Each is a DICOM folder or an image
file. Images of one modality (CT and CT) are compared by correlation; for CT and MR, or CT and PET, give --metric
mutual-information. The start (--init, or else both as they lie in space) may be off by 20 mm and 15 degrees, across
modalities by 10 mm and 10 degrees. Into --out go transform.tfm (ITK, LPS, fixed to moving), warped.nrrd (MOVING on the
grid of FIXED) and checkerboard.png. Ends with 0 when the verdict is good, with 1 otherwise; the files are written all
the same.

\b
Examples:
  ablation-nav register rigid planning-ct/ today.nrrd --out registered --json
  ablation-nav register rigid before.mha after.mha --fixed-mask liver.nrrd --init start.tfm --out registered
  ablation-nav register rigid planning-ct/ mr.nrrd --metric mutual-information --out registered
"""

#: What the images are compared by, and how its value is called.
METRICS = {"correlation": "correlation", "mutual-information": "mutual information"}

#: Finest level of a preset, mm.
FINEST_MM = {"fast": 2.5, "good": 0.0}
#: Points at which the error is predicted.
_POINTS = 200


def rigid(
    fixed: Annotated[Path, typer.Argument(help="Image that stays: DICOM folder or file.", show_default=False)],
    moving: Annotated[Path, typer.Argument(help="Image that is brought onto it.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for what is written.", show_default=False)],
    fixed_mask: Annotated[Path | None, typer.Option(help="Look only here; on the grid of FIXED.")] = None,
    moving_mask: Annotated[Path | None, typer.Option(help="Look only here; on the grid of MOVING.")] = None,
    fixed_points: Annotated[
        Path | None, typer.Option(help="Points to measure the error at (.mrk.json, .fcsv, elastix text, VTK).")
    ] = None,
    moving_points: Annotated[Path | None, typer.Option(help="The same points in MOVING.")] = None,
    init: Annotated[Path | None, typer.Option(help="Where to start: ITK transform, fixed to moving.")] = None,
    metric: Annotated[
        str, typer.Option(help="correlation (one modality) or mutual-information (CT and MR, CT and PET).")
    ] = "correlation",
    preset: Annotated[str, typer.Option(help="fast (down to 2.5 mm) or good (full resolution).")] = "good",
    threads: Annotated[int, typer.Option(help="0: all. The result does not depend on it.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON (docs/register-json.md).")] = False,
) -> None:
    """See ``HELP``."""
    # Imported here, so that the help costs nothing.
    from nav.cli import registration_files as shared
    from nav.cli.progress import Steps
    from nav.imaging.resample import resample_rigid, upright_grid
    from nav.io.itk_transform import write_itk_rigid
    from nav.io.volume_file import write_volume
    from nav.registration import rigid_image, rigid_mutual_information

    if metric not in METRICS:
        raise CommandError(f"--metric {metric}: there are {' and '.join(METRICS)}", ExitCode.USAGE)
    if preset not in FINEST_MM:
        raise CommandError(f"--preset {preset}: there are {' and '.join(FINEST_MM)}", ExitCode.USAGE)
    steps = Steps()
    used = shared.set_threads(threads)
    given = shared.read_inputs(
        shared.Files(fixed, moving, fixed_mask, moving_mask, fixed_points, moving_points, init), steps
    )
    across = metric == "mutual-information"
    register = rigid_mutual_information.register_rigid_multimodal if across else rigid_image.register_rigid
    shared.prepare(rigid_mutual_information.KERNELS if across else rigid_image.KERNELS, steps)
    out.mkdir(parents=True, exist_ok=True)
    with steps.step("Registering") as update:
        begin = time.perf_counter()
        result = register(
            given.fixed, given.moving, initial=given.initial, fixed_mask=given.fixed_mask,
            moving_mask=given.moving_mask, finest_mm=FINEST_MM[preset], progress=update,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
    report: dict[str, Any] = {"method": "rigid", "metric": metric, "preset": preset, "threads": used}
    report["seconds"] = seconds
    report |= _report(result, given.fixed, given.fixed_mask)
    if given.points is not None:
        report["tre_mm"] = shared.tre_mm(given.points, given.initial.inverse().apply, result.transform.inverse().apply)
    with steps.step("Writing"):
        names = {"transform": "transform.tfm", "warped": "warped.nrrd", "checkerboard": "checkerboard.png"}
        write_itk_rigid(out / names["transform"], result.transform)
        grid = upright_grid(given.fixed)  # image files cannot say that a scan is tilted
        warped = resample_rigid(given.moving, grid, result.transform, outside=float(given.moving.array.min()))
        write_volume(out / names["warped"], warped)
        shared.write_checkerboard(out / names["checkerboard"], given.fixed, warped)
    report["out"] = {what: str(out / name) for what, name in names.items()}
    similarity = report["similarity"]
    text = [
        f"{METRICS[metric]:<19}{similarity['before']:.3f} before, {similarity['after']:.3f} after",
        f"patches that agree {report['agreement']:.0%}",
        f"there and back     {report['inverse_consistency_mm']:.2f} mm",
    ]
    shared.finish(report, text, as_json=as_json)


def _report(result: RigidImageRegistration, fixed: Volume, mask: NDArray[np.generic] | None) -> dict[str, Any]:
    from nav.cli.registration_files import points_inside
    from nav.registration.error_distribution import radius_of_share

    spread = result.covariance_at(points_inside(fixed, mask, _POINTS)).mean(axis=0)
    return {
        "iterations": result.iterations,
        "similarity": {"before": result.similarity_before, "after": result.similarity_after},
        "jacobian": {"min": 1.0, "max": 1.0, "folded_fraction": 0.0},
        "expected_error_mm": {"median": radius_of_share(spread, 0.5), "p95": radius_of_share(spread, 0.95)},
        "inverse_consistency_mm": result.inverse_consistency_mm,
        "overlap": result.overlap,
        "agreement": result.agreement,
        "deformation_mm": result.deformation_mm,
        "transform": {"name": result.transform.name.wire, "matrix_ras_mm": result.transform.matrix.tolist()},
        "verdict": result.verdict.value,
        "reasons": list(result.reasons),
    }
