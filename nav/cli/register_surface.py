"""``ablation-nav register surface``: points, or a surface, onto a surface."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nav.cli.errors import CommandError, ExitCode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nav.registration.point_drift import PointDrift
    from nav.registration.surface import SurfaceRegistration
    from nav.registration.surface_points import Surface

__all__ = ["HELP", "surface"]

HELP = """Register points, or a surface, to a surface, and say how far the result may be trusted.

FIXED is the surface that stays, usually of the planning CT; MOVING is brought onto it: a surface, or a few hundred
points touched on a part of it. Each is a mesh (.stl, .ply, .obj, .vtk), points (Slicer markups, elastix text, VTK) or
a label map. The start (--init, or else both as they lie in space) may be off by 30 mm and 45 degrees. Into --out goes
transform.tfm (ITK, LPS, fixed to moving); with --deformable (coherent point drift) also moved.vtk, the points of
MOVING where they end up. Ends with 0 when the verdict is good, with 1 otherwise; the files are written all the same.

\b
Examples:
  ablation-nav register surface liver.stl touched.mrk.json --out registered --json
  ablation-nav register surface labels.nrrd today.ply --fixed-label 449 --init start.tfm --out registered
"""

#: Most moving points of a preset; all the fixed ones are used.
MOST_POINTS = {"fast": 5_000, "good": 50_000}
#: Points of either set that drift.
DRIFT_POINTS = {"fast": 800, "good": 2_000}
#: Triangles of the surface of a label map.
_TRIANGLES = 120_000
#: Points at which the error is predicted.
_POINTS = 200


def surface(
    fixed: Annotated[Path, typer.Argument(help="Surface that stays.", show_default=False)],
    moving: Annotated[Path, typer.Argument(help="Points or surface brought onto it.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for what is written.", show_default=False)],
    fixed_label: Annotated[int | None, typer.Option(help="Label of FIXED, where it is a label map.")] = None,
    moving_label: Annotated[int | None, typer.Option(help="Label of MOVING, where it is a label map.")] = None,
    fixed_points: Annotated[
        Path | None, typer.Option(help="Points to measure the error at (.mrk.json, .fcsv, elastix text, VTK).")
    ] = None,
    moving_points: Annotated[Path | None, typer.Option(help="The same points in MOVING.")] = None,
    init: Annotated[Path | None, typer.Option(help="Where to start: ITK transform, fixed to moving.")] = None,
    overlap: Annotated[float, typer.Option(help="Share of MOVING that at least lies on FIXED.")] = 0.7,
    deformable: Annotated[bool, typer.Option("--deformable", help="Let the points move each on its own, too.")] = False,
    preset: Annotated[str, typer.Option(help="fast or good: how many points are used.")] = "good",
    threads: Annotated[int, typer.Option(help="0: all. The result does not depend on it.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON (docs/register-json.md).")] = False,
) -> None:
    """See ``HELP``."""
    # Imported here, so that the help costs nothing.
    from nav.cli import registration_files as shared
    from nav.cli.progress import Steps
    from nav.io.itk_transform import write_itk_rigid
    from nav.io.surface_files import write_vtk_points
    from nav.registration import point_drift
    from nav.registration.point_drift import register_drift
    from nav.registration.surface import KERNELS, register_surface

    if preset not in MOST_POINTS:
        raise CommandError(f"--preset {preset}: there are {' and '.join(MOST_POINTS)}", ExitCode.USAGE)
    steps = Steps()
    used = shared.set_threads(threads)
    with steps.step("Reading"):
        initial = shared.read_initial(init)
        points = shared.read_point_pairs(fixed_points, moving_points)
        stays = _read(fixed, fixed_label, "fixed surface")
        comes = _thinned(_read(moving, moving_label, "moving surface"), MOST_POINTS[preset])
    shared.prepare((*KERNELS, *point_drift.KERNELS) if deformable else KERNELS, steps)
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"method": "surface", "preset": preset, "threads": used, "deformable": deformable}
    names = {"transform": "transform.tfm"}
    with steps.step("Registering") as update:
        begin = time.perf_counter()
        result = register_surface(stays, comes, initial=initial, overlap=overlap, progress=update)
        drift = None
        if deformable:
            most = DRIFT_POINTS[preset]
            drift = register_drift(
                _thinned(stays, most).points, _thinned(comes, most).points, initial=result.transform, rigid=False,
                start_mm=START_MM, outliers=1.0 - overlap, progress=update,
            )  # fmt: skip
        report["seconds"] = time.perf_counter() - begin
    report |= _report(result, drift, comes)
    if points is not None:
        one, two = points
        report["tre_mm"] = shared.tre_mm(
            (two, one), initial.apply, result.transform.apply if drift is None else drift.apply
        )
    with steps.step("Writing"):
        write_itk_rigid(out / names["transform"], result.transform)
        if drift is not None:
            names["moved"] = "moved.vtk"
            write_vtk_points(out / names["moved"], drift.apply(comes.points))
    report["out"] = {what: str(out / name) for what, name in names.items()}
    similarity = report["similarity"]
    text = [
        f"distance           {similarity['before']:.2f} mm before, {similarity['after']:.2f} mm after",
        f"points with a partner {report['matched']:.0%}",
        f"noise              {report['sigma_mm']:.2f} mm",
    ]
    shared.finish(report, text, as_json=as_json)


#: Deviation at which the drift starts after the rigid registration, mm.
START_MM = 6.0


def _read(path: Path, label: int | None, what: str) -> Surface:
    import numpy as np

    from nav.geometry.volume import Volume
    from nav.imaging.surfaces import mask_surface
    from nav.io.errors import MaskError
    from nav.io.image_file import image_suffix
    from nav.io.labels import read_label_map
    from nav.io.point_files import read_points
    from nav.io.surface_files import SURFACE_SUFFIXES, read_surface_file
    from nav.registration.surface_points import Surface

    if image_suffix(path):
        volume = read_label_map(path).volume
        labels = np.asarray(volume.array)
        mask = labels != 0 if label is None else labels == label
        mesh = mask_surface(Volume.of(mask.astype("uint8"), volume.ras_from_index), _TRIANGLES)
        if mesh is None:
            raise MaskError(f"{path}: {'holds nothing' if label is None else f'label {label} does not occur'}")
        return Surface.of_mesh(mesh.vertices, mesh.triangles, what=what)
    if label is not None:
        raise CommandError(f"{path}: is no label map, so there is no label {label} in it", ExitCode.USAGE)
    if path.suffix.lower() in SURFACE_SUFFIXES:
        points, triangles = read_surface_file(path)
        return Surface.of_mesh(points, triangles, what=what) if len(triangles) else Surface.of(points, what=what)
    return Surface.of(read_points(path)[1], what=what)


def _thinned(whole: Surface, most: int) -> Surface:
    """Every so many-th point, of an order that has nothing to do with the place."""
    import numpy as np

    from nav.registration.surface_points import Surface

    if len(whole.points) <= most:
        return whole
    kept = np.sort(np.random.default_rng(0).permutation(len(whole.points))[:most])
    return Surface(whole.points[kept], None if whole.normals is None else whole.normals[kept], whole.oriented)


def _report(result: SurfaceRegistration, drift: PointDrift | None, moving: Surface) -> dict[str, Any]:

    from nav.registration.error_distribution import radius_of_share
    from nav.registration.verdict import Verdict

    places: NDArray[np.float64] = result.transform.apply(moving.points[:: max(1, len(moving.points) // _POINTS)])
    spread = (result if drift is None else drift).covariance_at(places).mean(axis=0)
    report: dict[str, Any] = {
        "iterations": result.iterations + (0 if drift is None else drift.iterations),
        "similarity": {"before": result.distance_before_mm, "after": result.distance_after_mm},
        "jacobian": {"min": 1.0, "max": 1.0, "folded_fraction": 0.0},
        "expected_error_mm": {"median": radius_of_share(spread, 0.5), "p95": radius_of_share(spread, 0.95)},
        "inverse_consistency_mm": None,
        "matched": result.matched,
        "sigma_mm": result.sigma_mm,
        "misfit_mm": result.misfit_mm,
        "rivalry": result.rivalry,
        "open_directions": list(result.open_directions),
        "transform": {"name": result.transform.name.wire, "matrix_ras_mm": result.transform.matrix.tolist()},
        "verdict": result.verdict.value,
        "reasons": list(result.reasons),
    }
    if drift is not None:
        report["similarity"]["after"] = drift.distance_after_mm
        report["jacobian"] = {
            "min": drift.jacobian_min, "max": drift.jacobian_max, "folded_fraction": drift.folded_fraction,
        }  # fmt: skip
        report["drift_sigma_mm"] = drift.sigma_mm
        # What a rigid transform cannot follow is no fault here, but nobody should trust it unseen.
        unseen = result.verdict is Verdict.IMPLAUSIBLE
        verdict = Verdict.DOUBTFUL if unseen and drift.verdict is Verdict.GOOD else drift.verdict
        before = [f"before the points moved on their own: {reason}" for reason in result.reasons] if unseen else []
        report["verdict"], report["reasons"] = verdict.value, [*drift.reasons, *before]
    return report
