"""``ablation-nav register slice``: a thick CT slice, or a few, onto the CT."""

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
    from nav.registration.slice_deformable import SliceDeformation
    from nav.registration.slice_rigid import SliceRegistration

__all__ = ["HELP", "slices"]

HELP = """Find where a CT slice, or a short stack, lies in a CT, and say how far the result may be trusted.

FIXED is the CT; MOVING is one thick slice of CT fluoroscopy, or up to 8: an image file, a DICOM slice or a folder. The
start (--init, or else as both lie in space) may be off by 10 mm and 8 degrees. With --deform, local motion around the
needle's tip (or --around) is followed too. Into --out go transform.tfm (ITK, LPS, fixed to moving), warped.nrrd (the
CT, averaged over the slice thickness, on the grid of MOVING), checkerboard.png, and with --deform displacement.nrrd.
Ends with 0 when the verdict is good, with 1 otherwise; the files are written all the same.

\b
Examples:
  ablation-nav register slice planning-ct/ fluoroscopy.dcm --out found --json
  ablation-nav register slice planning-ct/ stack.nrrd --thickness 5 --deform --out found
"""

#: Finest level of a preset, mm.
FINEST_MM = {"fast": 2.5, "good": 1.0}
#: Points at which the error is predicted.
_POINTS = 200


def slices(
    fixed: Annotated[Path, typer.Argument(help="The CT: DICOM folder or file.", show_default=False)],
    moving: Annotated[Path, typer.Argument(help="Slice or short stack of a CT.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for what is written.", show_default=False)],
    fixed_mask: Annotated[Path | None, typer.Option(help="Look only here; on the grid of FIXED.")] = None,
    moving_mask: Annotated[Path | None, typer.Option(help="Look only here; on the grid of MOVING.")] = None,
    fixed_points: Annotated[
        Path | None, typer.Option(help="Points to measure the error at (.mrk.json, .fcsv, elastix text, VTK).")
    ] = None,
    moving_points: Annotated[Path | None, typer.Option(help="The same points in MOVING.")] = None,
    init: Annotated[Path | None, typer.Option(help="Where to start: ITK transform, fixed to moving.")] = None,
    thickness: Annotated[
        float | None, typer.Option(help="Of a slice, mm; as DICOM says or the pitch of the stack unless given.")
    ] = None,
    deform: Annotated[bool, typer.Option("--deform", help="Follow local motion around the needle too.")] = False,
    around: Annotated[
        str | None, typer.Option(help="Point R,A,S of MOVING to deform around; the needle's tip unless given.")
    ] = None,
    preset: Annotated[str, typer.Option(help="fast (down to 2.5 mm) or good (down to 1 mm).")] = "good",
    threads: Annotated[int, typer.Option(help="0: all. The result does not depend on it.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON (docs/register-json.md).")] = False,
) -> None:
    """See ``HELP``."""
    # Imported here, so that the help costs nothing.
    from nav.cli import registration_files as shared
    from nav.cli.progress import Steps
    from nav.geometry.displacement import DisplacementField
    from nav.io.ct_slices import load_ct_slices
    from nav.io.displacement_file import write_displacement
    from nav.io.itk_transform import write_itk_rigid
    from nav.io.volume_file import write_volume
    from nav.registration.slice_deformable import KERNELS, deform_slice, needle_point
    from nav.registration.slice_preparation import prepare_for_slices
    from nav.registration.slice_rigid import register_slice

    if preset not in FINEST_MM:
        raise CommandError(f"--preset {preset}: there are {' and '.join(FINEST_MM)}", ExitCode.USAGE)
    if around is not None and not deform:
        raise CommandError("--around says where to deform; give --deform too", ExitCode.USAGE)
    place = None if around is None else _point(around)
    steps = Steps()
    used = shared.set_threads(threads)
    thick = thickness

    def read(path: Path) -> Volume:
        nonlocal thick
        found = load_ct_slices(path)
        thick = found.thickness_mm if thick is None else thick
        return found.volume

    given = shared.read_inputs(
        shared.Files(fixed, moving, fixed_mask, moving_mask, fixed_points, moving_points, init), steps, read_moving=read
    )
    assert thick is not None
    shared.prepare(KERNELS, steps)
    out.mkdir(parents=True, exist_ok=True)
    with steps.step("Preparing the CT"):
        begin = time.perf_counter()
        axes = given.moving.ras_from_index[:3, :3]
        prepared = prepare_for_slices(
            given.fixed, thickness_mm=thick, normal_ras=given.initial.rotate(_normal(axes)), mask=given.fixed_mask,
            finest_mm=FINEST_MM[preset],
        )  # fmt: skip
        preparation = time.perf_counter() - begin
    deformation = None
    with steps.step("Registering") as update:
        begin = time.perf_counter()
        result = register_slice(
            prepared, given.moving, initial=given.initial, mask=given.moving_mask, progress=update
        )  # fmt: skip
        if deform:
            deformation = deform_slice(
                prepared, given.moving, result, mask=given.moving_mask, progress=update,
                around=needle_point(given.moving) if place is None else place,
            )  # fmt: skip
        seconds = time.perf_counter() - begin
    report: dict[str, Any] = {"method": "slice", "preset": preset, "threads": used, "seconds": seconds}
    report |= {"preparation_seconds": preparation, "thickness_mm": thick}
    report |= _report(result, deformation, given.moving, given.moving_mask)
    there = result.transform.apply if deformation is None else deformation.to_ct
    if given.points is not None:
        # At points of the slice, for that is where the displacement is known.
        report["tre_mm"] = shared.tre_mm(given.points[::-1], given.initial.apply, there)
    with steps.step("Writing"):
        names = {"transform": "transform.tfm", "warped": "warped.nrrd", "checkerboard": "checkerboard.png"}
        write_itk_rigid(out / names["transform"], result.transform)
        points = _grid_points(given.moving)
        found = there(points)
        warped = _seen(prepared.levels[0].volume, found, given.moving)
        write_volume(out / names["warped"], warped)
        shared.write_checkerboard(out / names["checkerboard"], given.moving, warped)
        if deformation is not None:
            names["displacement"] = "displacement.nrrd"
            vectors = (found - points).reshape(*given.moving.array.shape, 3)
            field = DisplacementField.of(vectors, given.moving.ras_from_index)
            write_displacement(out / names["displacement"], field)
    report["out"] = {what: str(out / name) for what, name in names.items()}
    similarity = report["similarity"]
    text = [
        f"correlation        {similarity['before']:.3f} before, {similarity['after']:.3f} after",
        f"patches explained  {report['explained']:.0%}, with noise only {report['quiet']:.0%}",
    ]
    if deformation is not None:
        text.append(f"local displacement up to {deformation.longest_mm:.1f} mm")
    shared.finish(report, text, as_json=as_json)


def _point(text: str) -> NDArray[np.float64]:
    import numpy as np

    try:
        values = np.array([float(v) for v in text.split(",")])
    except ValueError:
        values = np.zeros(0)
    if values.shape != (3,) or not np.isfinite(values).all():
        raise CommandError(f"--around {text}: expected three numbers R,A,S in mm", ExitCode.USAGE)
    return values


def _normal(axes: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    return np.cross(axes[:, 0], axes[:, 1])


def _grid_points(volume: Volume) -> NDArray[np.float64]:
    """(n, 3) RAS mm of all voxels, as they come."""
    import numpy as np

    k, j, i = np.indices(volume.array.shape)
    return volume.to_ras(np.stack([i.ravel(), j.ravel(), k.ravel()], axis=1))


def _seen(ct: Volume, found: NDArray[np.float64], slices_volume: Volume) -> Volume:
    """``ct`` at points (n, 3) RAS mm, on the grid of the slices, HU as int16; air outside."""
    import numpy as np
    from scipy.ndimage import map_coordinates

    from nav.geometry.volume import Volume

    at = ct.to_index(found)[:, ::-1].T
    values = map_coordinates(ct.array, at, order=1, mode="constant", cval=-1024.0)
    values = np.rint(np.nan_to_num(values, nan=-1024.0)).clip(-32768, 32767).astype(np.int16)
    return Volume.of(values.reshape(slices_volume.array.shape), slices_volume.ras_from_index)


def _report(
    result: SliceRegistration, deformation: SliceDeformation | None, moving: Volume, mask: NDArray[np.generic] | None
) -> dict[str, Any]:
    from nav.cli.registration_files import points_inside
    from nav.registration.error_distribution import radius_of_share

    points = points_inside(moving, mask, _POINTS)
    if deformation is None:
        at = result.covariance_at(result.transform.apply(points))
    else:
        at = deformation.covariance_at(points)
    spread = at.mean(axis=0)
    judged = result if deformation is None else deformation
    report: dict[str, Any] = {
        "iterations": result.iterations,
        "similarity": {"before": result.similarity_before, "after": result.similarity_after},
        "jacobian": {"min": 1.0, "max": 1.0, "folded_fraction": 0.0},
        "expected_error_mm": {
            "median": radius_of_share(spread, 0.5),
            "p95": radius_of_share(spread, 0.95),
        },
        "inverse_consistency_mm": None,
        "overlap": result.overlap,
        "explained": result.explained,
        "quiet": result.quiet,
        "scale": result.scale,
        "deformation_mm": result.deformation_mm,
        "second_best": {"share": result.second_share, "distance_mm": result.second_mm},
        "transform": {"name": result.transform.name.wire, "matrix_ras_mm": result.transform.matrix.tolist()},
        "verdict": judged.verdict.value,
        "reasons": list(judged.reasons),
    }
    if deformation is not None:
        report["iterations"] += deformation.iterations
        report["jacobian"] = {
            "min": deformation.jacobian_min,
            "max": deformation.jacobian_max,
            "folded_fraction": deformation.folded_fraction,
        }
        report["deform"] = {
            "around_ras": deformation.around.tolist(),
            "longest_mm": deformation.longest_mm,
            "quiet_before": deformation.quiet_before,
            "quiet_after": deformation.quiet,
            "expected_error_p95_mm": float(deformation.expected_error_mm(deformation.around)[0]),
        }
    return report
