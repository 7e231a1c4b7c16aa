"""``ablation-nav register landmarks``: paired landmarks of two markups files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nav.cli.errors import CommandError, ExitCode

if TYPE_CHECKING:
    from nav.registration.landmarks import LandmarkRegistration

__all__ = ["HELP", "landmarks"]

HELP = """Register paired landmarks in closed form, and say how far the result may be trusted.

Landmarks are paired by label, whatever their order in the files. The transform takes points of the moving file's frame
to the fixed file's frame. The file written is an ITK transform as Slicer and ITK expect it (LPS, fixed to moving).

\b
Examples:
  ablation-nav register landmarks --fixed ct.mrk.json --moving touched.mrk.json --out T.tfm --json
  ablation-nav register landmarks --fixed ct.mrk.json --moving touched.mrk.json --out T.tfm \\
      --exclude navel --target 45,-20,-110
"""


def landmarks(
    fixed: Annotated[Path, typer.Option(help="Landmarks in the CT (.mrk.json or .fcsv).", show_default=False)],
    moving: Annotated[Path, typer.Option(help="The same landmarks as touched.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Transform to write (.tfm, .txt, .h5).", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON (docs/register-json.md).")] = False,
    exclude: Annotated[list[str] | None, typer.Option(help="Leave a landmark out of the fit (repeatable).")] = None,
    target: Annotated[str, typer.Option(metavar="X,Y,Z", help="Predict the error here; RAS mm.")] = "",
    name: Annotated[str, typer.Option(help="Name of the transform, moving to fixed.")] = "ReferenceToRas",
    prior_rms_mm: Annotated[
        float,
        typer.Option(help="Expected 3-D rms error of touching one landmark, before residuals are seen.", min=0.01),
    ] = 1.0,
) -> None:
    """See ``HELP``."""
    # Imported here, so that the help costs nothing.
    import numpy as np

    from nav.io.itk_transform import write_itk_rigid
    from nav.io.markups import read_markups
    from nav.registration.landmarks import register_landmarks

    point = _parse_point(target) if target else None
    files = {"fixed": read_markups(fixed), "moving": read_markups(moving)}
    marks = {side: {mark.name: mark.ras for mark in file.landmarks} for side, file in files.items()}
    labels = [label for label in marks["fixed"] if label in marks["moving"]]
    unpaired = {
        "fixed": [label for label in marks["fixed"] if label not in marks["moving"]],
        "moving": [label for label in marks["moving"] if label not in marks["fixed"]],
    }
    if len(labels) < 3:
        held = {side: ", ".join(names) or "none" for side, names in marks.items()}
        raise CommandError(
            f"only {len(labels)} landmarks have the same label in both files, at least 3 are needed; "
            f"{fixed} holds {held['fixed']}; {moving} holds {held['moving']}",
            ExitCode.INPUT,
        )
    unknown = [label for label in exclude or [] if label not in labels]
    if unknown:
        raise CommandError(
            f"--exclude {', '.join(unknown)}: no such paired landmark; there are {', '.join(labels)}", ExitCode.USAGE
        )
    result = register_landmarks(
        np.array([marks["fixed"][label] for label in labels]),
        np.array([marks["moving"][label] for label in labels]),
        name=name,
        labels=labels,
        used=[label not in (exclude or []) for label in labels],
        prior_rms_mm=prior_rms_mm,
    )
    write_itk_rigid(out, result.transform)
    report = _report(result, point)
    report["unpaired"] = unpaired
    report["warnings"] += [warning for file in files.values() for warning in file.warnings]
    report["out"] = str(out)
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(_as_text(report))
    for warning in report["warnings"]:
        print(f"ablation-nav: warning: {warning}", file=sys.stderr)


def _report(result: LandmarkRegistration, target_ras: tuple[float, float, float] | None) -> dict[str, Any]:
    """The result as plain values; keys in ``docs/register-json.md``.

    Parameters
    ----------
    result : LandmarkRegistration
    target_ras : (3,) RAS mm or None
        Where the TRE is predicted; keys of it are None without.
    """
    warnings = []
    if result.order_warning is not None:
        warnings.append(result.order_warning.text)
    if result.order_ambiguous:
        warnings.append(
            "another order of the landmarks fits as well: a swap would go unnoticed; add one off the symmetry"
        )
    return {
        "method": "landmarks",
        "transform": {"name": result.transform.name.wire, "matrix_ras_mm": result.transform.matrix.tolist()},
        "fre_mm": result.fre_rms_mm,
        "fle_mm": result.fle_rms_mm,
        "target_ras": list(target_ras) if target_ras else None,
        "tre_at_target_mm": result.tre_rms_at(target_ras) if target_ras else None,
        "tre_radius95_mm": result.radius95_at(target_ras) if target_ras else None,
        "landmarks": [
            {"name": label, "residual_mm": float(residual), "used": bool(used)}
            for label, residual, used in zip(result.labels, result.residuals_mm, result.used, strict=True)
        ],
        "order_suspicious": result.order_warning is not None,
        "order_ambiguous": result.order_ambiguous,
        "warnings": warnings,
    }


def _parse_point(text: str) -> tuple[float, float, float]:
    try:
        x, y, z = (float(part) for part in text.replace(" ", "").split(","))
    except ValueError:
        raise CommandError(f"--target {text!r}: expected three numbers X,Y,Z in RAS mm", ExitCode.USAGE) from None
    if not all(abs(v) < 1e5 for v in (x, y, z)):
        raise CommandError(f"--target {text!r}: every number must be finite and below 100000 mm", ExitCode.USAGE)
    return x, y, z


def _as_text(report: dict[str, Any]) -> str:
    lines = [f"{report['transform']['name']} from {sum(m['used'] for m in report['landmarks'])} landmarks"]
    for mark in report["landmarks"]:
        note = "" if mark["used"] else "  (not used)"
        lines.append(f"  {mark['name']:<24} residual {mark['residual_mm']:6.2f} mm{note}")
    lines.append(f"FRE {report['fre_mm']:.2f} mm, estimated FLE {report['fle_mm']:.2f} mm (rms)")
    if report["tre_at_target_mm"] is not None:
        lines.append(
            f"predicted TRE at the target {report['tre_at_target_mm']:.2f} mm rms, "
            f"95 % within {report['tre_radius95_mm']:.2f} mm"
        )
    for side in ("fixed", "moving"):
        if report["unpaired"][side]:
            lines.append(f"only in the {side} file: {', '.join(report['unpaired'][side])}")
    lines.append(f"written: {report['out']}")
    return "\n".join(lines)
