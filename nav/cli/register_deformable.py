"""``ablation-nav register deformable``: two images of one modality that a rigid transform cannot bring together."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from nav.cli.errors import CommandError, ExitCode

__all__ = ["HELP", "deformable"]

HELP = """Register two images of one modality deformably, and say how far the result may be trusted.

FIXED is the image that stays, usually the planning CT; MOVING is brought onto it. Each is a DICOM folder or an image
file. They should lie on each other to about 30 mm (--init, from `register rigid`, or as their files say). Into --out
go displacement.nrrd (ITK displacement field, LPS, fixed to moving, what --init does included), warped.nrrd (MOVING on
the grid of FIXED), inverse_displacement.nrrd, expected_error.nrrd (mm) and checkerboard.png. Ends with 0 when the
verdict is good, with 1 otherwise; the files are written all the same.

\b
Examples:
  ablation-nav register deformable planning-ct/ today.nrrd --init registered/transform.tfm --out deformed --json
  ablation-nav register deformable exhale.mha inhale.mha --fixed-mask body.nrrd --preset fast --out deformed
"""

#: Finest level of a preset, mm.
FINEST_MM = {"fast": 2.0, "good": 0.0}
#: Points at which the error is reported.
_POINTS = 2000


def deformable(
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
    start: Annotated[
        Path | None, typer.Option(help="displacement.nrrd of an earlier registration: refine that, search nothing.")
    ] = None,
    use_points: Annotated[
        float, typer.Option(help="Let the points pull, known to so many mm; 0: only measure at them.", min=0.0)
    ] = 0.0,
    preset: Annotated[str, typer.Option(help="fast (down to 2 mm, nothing slides) or good.")] = "good",
    threads: Annotated[int, typer.Option(help="0: all. The result does not depend on it.", min=0)] = 0,
    device: Annotated[
        str, typer.Option(help="cpu, or cuda: on an NVIDIA GPU, with the extra gpu of this package.")
    ] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON (docs/register-json.md).")] = False,
) -> None:
    """See ``HELP``."""
    # Imported here, so that the help costs nothing.
    import numpy as np

    from nav.cli import registration_files as shared
    from nav.cli.progress import Steps
    from nav.geometry.rigid import Rigid
    from nav.imaging.resample import coarser_grid, resample_displaced, resample_rigid, upright_grid
    from nav.io.displacement_file import read_displacement, write_displacement
    from nav.io.volume_file import write_volume
    from nav.registration.deformable import KERNELS, prepare_device, register_deformable
    from nav.registration.deformable_device import DEVICES, device_named

    if preset not in FINEST_MM:
        raise CommandError(f"--preset {preset}: there are {' and '.join(FINEST_MM)}", ExitCode.USAGE)
    if device not in DEVICES:
        raise CommandError(f"--device {device}: there are {' and '.join(DEVICES)}", ExitCode.USAGE)
    if use_points and fixed_points is None:
        raise CommandError("--use-points needs --fixed-points and --moving-points", ExitCode.USAGE)
    steps = Steps()
    used, runs_on = shared.set_threads(threads), device_named(device)
    given = shared.read_inputs(
        shared.Files(fixed, moving, fixed_mask, moving_mask, fixed_points, moving_points, init), steps
    )
    earlier = None if start is None else read_displacement(start)
    shared.prepare(KERNELS, steps)
    if device != "cpu":
        with steps.step("Preparing the GPU"):
            prepare_device(runs_on)
    out.mkdir(parents=True, exist_ok=True)
    landmarks = None
    if use_points and given.points is not None:
        landmarks = (*given.points, np.full(len(given.points[0]), use_points))
    with steps.step("Registering") as update:
        begin = time.perf_counter()
        result = register_deformable(
            given.fixed, given.moving, initial=given.initial, fixed_mask=given.fixed_mask,
            moving_mask=given.moving_mask, landmarks=landmarks, start=earlier, finest_mm=FINEST_MM[preset],
            sliding=preset != "fast", device=runs_on, progress=update,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
    points = shared.points_inside(given.fixed, given.fixed_mask, _POINTS)
    report: dict[str, Any] = {
        "method": "deformable",
        "preset": preset,
        "threads": used,
        "device": runs_on.name,
        "seconds": seconds,
        "iterations": result.iterations,
        "similarity": {"before": result.similarity_before, "after": result.similarity_after},
        "jacobian": {
            "min": result.jacobian_min, "max": result.jacobian_max, "folded_fraction": result.folded_fraction
        },
        "expected_error_mm": {
            "median": float(np.median(result.expected_error_mm(points, 0.5))),
            "p95": float(np.sqrt(np.mean(result.expected_error_mm(points, 0.95) ** 2))),
        },
        "inverse_consistency_mm": result.inverse_consistency_mm,
        "overlap": result.overlap,
        "agreement": result.agreement,
        "verdict": result.verdict.value,
        "reasons": list(result.reasons),
    }  # fmt: skip
    if given.points is not None:
        report["tre_mm"] = shared.tre_mm(given.points, given.initial.inverse().apply, result.displacement.apply)
    with steps.step("Writing"):
        names = {
            "displacement": "displacement.nrrd", "inverse": "inverse_displacement.nrrd", "warped": "warped.nrrd",
            "expected_error": "expected_error.nrrd", "checkerboard": "checkerboard.png",
        }  # fmt: skip
        grid = upright_grid(given.fixed)  # image files cannot say that a scan is tilted
        field = result.displacement
        nodes = field.grid
        if upright_grid(nodes) is not nodes:
            field = field.at_nodes_of(upright_grid(nodes))
        write_displacement(out / names["displacement"], field)
        there = coarser_grid(upright_grid(given.moving), nodes.spacing_mm)
        write_displacement(out / names["inverse"], result.displacement.inverse_on(there))
        warped = resample_displaced(given.moving, grid, result.displacement, outside=float(given.moving.array.min()))
        write_volume(out / names["warped"], warped)
        errors = result.error_field
        stays = Rigid.identity(given.initial.name)
        write_volume(
            out / names["expected_error"], resample_rigid(errors, upright_grid(errors), stays, outside=float("nan"))
        )
        shared.write_checkerboard(out / names["checkerboard"], given.fixed, warped)
    report["out"] = {what: str(out / name) for what, name in names.items()}
    similarity = report["similarity"]
    text = [
        f"correlation        {similarity['before']:.3f} before, {similarity['after']:.3f} after (local)",
        f"patches that agree {report['agreement']:.0%}",
        f"there and back     {report['inverse_consistency_mm']:.2f} mm",
        f"volume changes     {result.jacobian_min:.2f} to {result.jacobian_max:.2f} times",
    ]
    shared.finish(report, text, as_json=as_json)
