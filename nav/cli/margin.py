"""``ablation-nav margin``: the margin of a measured ablation around a tumour."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nav.cli.errors import CommandError, ExitCode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nav.ablation.mask_margin import MarginShares
    from nav.io.labels import LoadedMask

    Points = NDArray[np.float64]
    Mapping = Callable[[Points], Points]

__all__ = ["HELP", "margin"]

HELP = """Measure the margin of an ablation around a tumour.

Masks of tumour and ablation, each on a grid of its own, are compared where they lie in space (RAS mm). Tumour and
organ are of the image before, the ablation of the one after; --transform is what `register` wrote with the image after
as FIXED and the one before as MOVING: the tumour is moved by it, the ablation never. Into --out go margin.json,
margin.vtk (the tumour's surface with its margins) and margin.png.

\b
Examples:
  ablation-nav margin --tumor tumour.nrrd --ablation zone.nrrd --out measured --json
  ablation-nav margin --tumor labels.nrrd --tumor-label 451 --organ liver.nii.gz --ablation zone.nrrd
    --transform registered/displacement.nrrd --out measured
"""

METHODS = ("surface", "voxel-border")
#: Largest contraction that is corrected: beyond it only ex vivo experiments have been seen.
MOST_CONTRACTION = 0.15


def margin(
    tumor: Annotated[Path, typer.Option(help="Mask or label map of the tumour.", show_default=False)],
    ablation: Annotated[Path, typer.Option(help="Mask or label map of the ablation.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for what is written.", show_default=False)],
    organ: Annotated[
        Path | None, typer.Option(help="Mask of the organ, in the tumour's space: capsule, and clip of the shells.")
    ] = None,
    transform: Annotated[
        Path | None, typer.Option(help="Transform or field of `register` (FIXED: after, MOVING: before).")
    ] = None,
    tumor_label: Annotated[int | None, typer.Option(help="Label of the tumour, where there are several.")] = None,
    tumor_component: Annotated[
        str | None, typer.Option(help="Piece of it: a number from 1, largest first, or 'largest'.")
    ] = None,
    ablation_label: Annotated[int | None, typer.Option(help="Label of the ablation.")] = None,
    organ_label: Annotated[list[int] | None, typer.Option(help="Label of the organ; may be repeated.")] = None,
    method: Annotated[str, typer.Option(help="surface, or voxel-border (as QAM, biased low).")] = "surface",
    contraction: Annotated[
        float,
        typer.Option(help="Linear shrinkage of the zone to undo, up to 0.15; shown beside."),
    ] = 0.0,
    sigma: Annotated[
        float | None, typer.Option(help="1 sigma of registration and segmentation, mm: gives P(margin >= 5 mm).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON (docs/margin-json.md).")] = False,
) -> None:
    """See ``HELP``."""
    if method not in METHODS:
        raise CommandError(f"--method {method}: there are {' and '.join(METHODS)}", ExitCode.USAGE)
    if not 0.0 <= contraction <= MOST_CONTRACTION:
        raise CommandError(
            f"--contraction {contraction:g}: must lie between 0 and {MOST_CONTRACTION:g} (of the length); larger "
            "values were seen outside the body only",
            ExitCode.USAGE,
        )
    if contraction and method != "surface":
        raise CommandError("--contraction works with --method surface only", ExitCode.USAGE)
    if sigma is not None and not (math.isfinite(sigma) and sigma >= 0.0):
        raise CommandError(f"--sigma {sigma:g}: must be 0 mm or more", ExitCode.USAGE)
    begin = time.perf_counter()
    from nav.io.labels import load_mask

    with ThreadPoolExecutor() as pool:  # masks are independent, and most of the work lets go of the interpreter
        loading = {
            "tumour": pool.submit(load_mask, tumor, label=tumor_label, ct=None, component=tumor_component),
            "ablation": pool.submit(load_mask, ablation, label=ablation_label, ct=None),
        }
        if organ is not None:
            loading["organ"] = pool.submit(load_mask, organ, label=organ_label or None, ct=None)
        masks = {what: one.result() for what, one in loading.items()}
    moved, back = _mappings(transform)
    warnings = [w for mask in masks.values() for w in mask.warnings]
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any]
    if method == "surface":
        report = _surface(masks, moved, back, contraction, sigma, out, transform)
    else:
        report = _voxel_border(masks, moved)
    report["warnings"] = [*warnings, *report["warnings"]]
    report["cohorts"] = _cohorts(report["mam_mm"])
    report["labels"] = {what: list(mask.labels) for what, mask in masks.items()}
    report["out"] |= {"report": str(out / "margin.json")}
    report["seconds"] = time.perf_counter() - begin
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    (out / "margin.json").write_text(text + "\n", encoding="utf-8")
    print(text if as_json else _text(report))
    for warning in report["warnings"]:
        print(f"ablation-nav: warning: {warning}", file=sys.stderr)


def _mappings(path: Path | None) -> tuple[Mapping | None, Mapping | None]:
    """From the image before (moving) to the one after (fixed), and back."""
    if path is None:
        return None, None
    from nav.cli.images import MOVING_TO_FIXED
    from nav.io.displacement_file import is_displacement_file, read_displacement
    from nav.io.itk_transform import read_itk_rigid

    if is_displacement_file(path):
        field = read_displacement(path)  # fixed to moving
        return field.preimage, field.apply
    moving_to_fixed = read_itk_rigid(path, MOVING_TO_FIXED)
    return moving_to_fixed.apply, moving_to_fixed.inverse().apply


def _surface(
    masks: dict[str, LoadedMask],
    moved: Mapping | None,
    back: Mapping | None,
    contraction: float,
    sigma: float | None,
    out: Path,
    transform: Path | None,
) -> dict[str, Any]:
    import cv2
    import numpy as np

    from nav.ablation.margin import WANTED_MM
    from nav.ablation.mask_margin import measure_margin
    from nav.ablation.mask_surface import MaskSurface, border_near
    from nav.imaging.margin_picture import margin_picture
    from nav.io.displacement_file import is_displacement_file
    from nav.io.surface_files import write_vtk_mesh

    with ThreadPoolExecutor() as pool:
        surfaces = {
            what: pool.submit(MaskSurface.of_mask, masks[what].volume, what=what) for what in ("tumour", "ablation")
        }
        tumour, zone = (surfaces[what].result() for what in ("tumour", "ablation"))
    organ, outside = None, 0.0
    if "organ" in masks:
        at = zone.vertices if back is None else back(zone.vertices)
        seen = np.vstack([tumour.vertices, at[np.isfinite(at).all(axis=1)]])
        organ, outside = border_near(masks["organ"].volume, seen.min(axis=0), seen.max(axis=0), tumour)
    try:
        result = measure_margin(tumour, zone, organ=organ, moved=moved, back=back)
    except ValueError as error:
        raise CommandError(str(error), ExitCode.INPUT) from None
    report = _shares(result.whole, result.free, result.excluded_fraction if organ is not None else None)
    warnings = list(result.warnings)
    if outside > 0.02:
        warnings.append(f"{outside:.0%} of the tumour lies outside the organ mask; it was added to the organ")
    voxels = result.result.sigma_mm
    report |= {
        "coverage_histogram": [
            {
                "margin_mm": s.margin_mm, "coverage": _finite(s.coverage),
                "shell_ml": s.shell_ml, "uncovered_ml": s.uncovered_ml,
            }
            for s in result.coverage
        ],
        "voxel_uncertainty_mm": result.voxel_uncertainty_mm,
        "method": "surface",
        "worst_point_ras": result.result.worst_point_ras.tolist(),
        "tumour_covered": _finite(result.tumour_covered),
        "coverage_5mm": _finite(result.result.coverage),
        "tumour_ml": tumour.volume_mm3 / 1000.0,
        "ablation_ml": zone.volume_mm3 / 1000.0,
        "sigma_mm": sigma,
        "p_margin_ge5": None if sigma is None else result.probability_of(WANTED_MM, sigma),
        "mam_for_95_percent_mm": None if sigma is None else WANTED_MM + 1.645 * math.hypot(sigma, voxels),
        "contraction": None,
    }  # fmt: skip
    if contraction:
        if zone.parts > 1:
            raise CommandError(
                f"--contraction: the ablation has {zone.parts} separate parts, each shrinks towards its own centre; "
                "measure one part at a time",
                ExitCode.INPUT,
            )
        wider = measure_margin(
            tumour, zone.scaled(1.0 / (1.0 - contraction)), organ=organ, moved=moved, back=back, histogram=False
        )
        report["contraction"] = {
            "share": contraction,
            "centre_ras": zone.centroid_ras.tolist(),
            **_shares(wider.whole, wider.free, wider.excluded_fraction if organ is not None else None),
        }
        if transform is not None and is_displacement_file(transform):
            warnings.append("a displacement field may follow the contraction already: corrected, it counts twice")
    write_vtk_mesh(
        out / "margin.vtk",
        result.vertices,
        result.faces,
        {"margin_mm": result.margins_mm}
        | ({} if result.capsule_mm is None else {"capsule_mm": _bounded(result.capsule_mm)}),
    )
    title = f"minimum margin {report['mam_mm']:.1f} mm (voxels ±{result.voxel_uncertainty_mm:.1f})"
    if report["mam_excluding_capsule_mm"] is not None and organ is not None:
        title += (
            f", without capsule {report['mam_excluding_capsule_mm']:.1f} mm ({result.excluded_fraction:.0%} left out)"
        )
    shown = None
    if organ is not None and len(organ.faces):
        shown = _organ_there(organ.vertices, organ.faces, moved)
    picture = margin_picture(
        result.vertices, result.faces, result.margins_mm, result.result.worst_point_ras, title,
        (zone.vertices, zone.faces), shown,
    )  # fmt: skip
    if not cv2.imwrite(str(out / "margin.png"), np.ascontiguousarray(picture[..., ::-1])):
        raise CommandError(f"{out / 'margin.png'}: cannot be written", ExitCode.INPUT)
    report["warnings"] = warnings
    report["out"] = {"surface": str(out / "margin.vtk"), "picture": str(out / "margin.png")}
    return report


def _organ_there(vertices: Points, faces: NDArray[np.int32], moved: Mapping | None) -> tuple[Points, NDArray[np.int32]]:
    """The organ's mesh in the ablation's space, without what the field does not reach."""
    import numpy as np

    there: Points = vertices if moved is None else moved(vertices)
    known: NDArray[np.bool_] = np.asarray(np.isfinite(there).all(axis=1))
    kept = known[faces].all(axis=1)
    return np.where(known[:, None], there, 0.0), faces[kept]


def _bounded(values: Points) -> Points:
    """Finite numbers for a file: where no border was found within reach, the reach."""
    import numpy as np

    return np.minimum(values, 1000.0)


def _voxel_border(masks: dict[str, LoadedMask], moved: Mapping | None) -> dict[str, Any]:
    from nav.ablation.voxel_border import voxel_border_margin

    organ = masks["organ"].volume if "organ" in masks else None
    try:
        found = voxel_border_margin(masks["tumour"].volume, masks["ablation"].volume, organ=organ, moved=moved)
    except ValueError as error:
        raise CommandError(str(error), ExitCode.INPUT) from None
    # Both borders lie up to one voxel inside: along the longest edges of both.
    bias = float(masks["tumour"].volume.spacing_mm.max() + masks["ablation"].volume.spacing_mm.max())
    return _shares(found.whole, found.free, None if organ is None else found.excluded_fraction) | {
        "coverage_histogram": [],
        "voxel_uncertainty_mm": bias,
        "method": "voxel-border",
        "worst_point_ras": found.points_ras[int(found.margins_mm.argmin())].tolist(),
        "warnings": ["margins between voxel borders are 0.5 to 2 mm too small; use them for comparison only"],
        "out": {},
    }


def _shares(whole: MarginShares, free: MarginShares | None, excluded: float | None) -> dict[str, Any]:
    """Without an organ nothing is known of the capsule: null."""
    return {
        "mam_mm": whole.min_margin_mm,
        "mam_excluding_capsule_mm": None if excluded is None or free is None else free.min_margin_mm,
        "excluded_fraction": excluded,
        "fraction_lt0": whole.lt0,
        "fraction_0_5": whole.from0_to5,
        "fraction_ge5": whole.ge5,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _cohorts(mam_mm: float) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from nav.ablation.outcome import statements_at

    return [asdict(s) | {"text": s.text} for s in statements_at(mam_mm)]


def _text(report: dict[str, Any]) -> str:
    lines = [
        f"minimum margin     {report['mam_mm']:.1f} mm, voxels alone ±{report['voxel_uncertainty_mm']:.1f} mm",
        f"surface            {report['fraction_lt0']:.0%} below 0, {report['fraction_0_5']:.0%} from 0 to 5 mm, "
        f"{report['fraction_ge5']:.0%} with 5 mm and more",
    ]
    if report["excluded_fraction"] is not None:
        free = report["mam_excluding_capsule_mm"]
        lines.append(
            f"without capsule    {'nothing is left' if free is None else f'{free:.1f} mm'}, "
            f"{report['excluded_fraction']:.0%} of the surface left out"
        )
    if report["coverage_histogram"]:
        shells = ", ".join(
            f"{s['margin_mm']:.0f} mm {s['coverage']:.0%}"
            for s in report["coverage_histogram"]
            if s["coverage"] is not None
        )
        lines.append(f"shells ablated     {shells}")
    if report.get("p_margin_ge5") is not None:
        lines.append(
            f"P(margin >= 5 mm)  {report['p_margin_ge5']:.0%} with a stated sigma of {report['sigma_mm']:g} mm; "
            f"95 % from a measured margin of {report['mam_for_95_percent_mm']:.1f} mm"
        )
    if report.get("contraction"):
        c = report["contraction"]
        lines.append(f"with contraction   {c['mam_mm']:.1f} mm, {c['share']:.0%} of the length undone")
    lines.append("published cohorts at this margin (not this patient's risk):")
    lines += [f"  {c['text']}" for c in report["cohorts"]]
    return "\n".join([*lines, *(f"wrote {path}" for path in report["out"].values())])
