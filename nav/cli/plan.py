"""``ablation-nav plan``: access paths and the placement of ablations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nav.cli.errors import CommandError, ExitCode

__all__ = ["HELP", "plan"]

HELP = """Find access paths to a tumour, and how many ablations, where and at what setting.

Paths run from the skin (found in the CT, or --body), or from given needle poses and points (--entries), to the target.
Those that meet every hard constraint are ranked by named criteria (weights: --settings); ablations are placed on them
so that target + margin is covered with the least healthy tissue. FILE may be followed by labels, FILE:465+481 (and a
piece of them, FILE:451/2, 1 = largest); --avoid NAME=FILE:LABELS@MM,MM adds the safety distance and, for vessels, the
diameter below which they do not count. Only what is given is avoided. Zones are the manufacturer's reference, not a
prediction for a patient. Into --out go plan.json (docs/plan-json.md), plan.mrk.json (one line per ablation, for
`run --plan`), ablation-N.mrk.json and plan.png. Ends with 0 when the target is covered as wanted, with 1 otherwise.

\b
Examples:
  ablation-nav plan --ct CT_FOLDER --target labels.nrrd:451/2 --organ labels.nrrd:449+451+465+481 \\
    --avoid bone=labels.nrrd:65 --avoid vessels=labels.nrrd:465+481@3 --applicator emprint --out planned --json
  ablation-nav plan --entries pose.txt --target nodule.nii.gz --organ liver.nii.gz --avoid vessels=vein.nii.gz \\
    --applicator amica --out planned
"""


def plan(
    target: Annotated[str, typer.Option(help="Tumour: FILE[:LABELS[/PIECE]].", show_default=False)],
    organ: Annotated[
        list[str], typer.Option(help="Organ round it: FILE[:LABELS]; may be given again.", show_default=False)
    ],
    applicator: Annotated[str, typer.Option(help="Name of a chart, or a .toml file.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for what is written.", show_default=False)],
    ct: Annotated[Path | None, typer.Option(help="DICOM folder, or NRRD, NIfTI, MHA file.")] = None,
    series: Annotated[str | None, typer.Option(help="Number or UID, when the folder holds several series.")] = None,
    avoid: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE[:LABELS][@MM[,MM]]; may be given again.", show_default=False)
    ] = None,
    body: Annotated[str, typer.Option(help="Body: FILE[:LABELS]; without it, found in the CT.")] = "",
    entries: Annotated[
        list[Path] | None,
        typer.Option(help="Needle poses (4×4 text, RAS) or points (.mrk.json, .fcsv); may be given again."),
    ] = None,
    entry_spread: Annotated[
        float, typer.Option(help="Entries also up to this far beside a given one, mm.", min=0.0, max=100.0)
    ] = 20.0,
    power: Annotated[float | None, typer.Option(help="This power only, W.")] = None,
    time: Annotated[float | None, typer.Option(help="This time only, s.")] = None,
    margin: Annotated[float | None, typer.Option(help="Safety margin to cover, mm; default: settings.")] = None,
    reserve: Annotated[
        float, typer.Option(help="Cover this much beyond the margin, against placement errors, mm.", min=0.0, max=10.0)
    ] = 0.0,
    placement_sigma: Annotated[
        float | None, typer.Option(help="Placement error of every tip, 1 sigma per axis, mm; default: settings.")
    ] = None,
    needle_length: Annotated[float | None, typer.Option(help="Usable length, mm; default: settings.")] = None,
    up: Annotated[
        str, typer.Option(help="What points away from the table: A, P, L, R, or none: from below is allowed.")
    ] = "A",
    gantry_tilt: Annotated[
        float, typer.Option(help="Tilt of the scan plane, degrees; + front towards the feet.")
    ] = 0.0,
    settings: Annotated[Path | None, typer.Option(help="Limits, weights, safety distances (.toml).")] = None,
    weight: Annotated[
        list[str] | None, typer.Option(help="CRITERION=WEIGHT instead of the settings'; may be given again.")
    ] = None,
    most_paths: Annotated[int, typer.Option(help="Paths listed.", min=1, max=1000)] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print plan.json.")] = False,
) -> None:
    """See ``HELP``."""
    # Imported here, so that the help costs nothing.
    from nav.cli.plan_files import PlanRequest, run_plan

    if up.upper() not in ("A", "P", "L", "R", "NONE"):
        raise CommandError(f"--up {up}: must be A, P, L, R or none", ExitCode.USAGE)
    if ct is None and not entries:
        raise CommandError("give --ct (paths start at the skin) or --entries", ExitCode.USAGE)
    run_plan(
        PlanRequest(
            target=target,
            organ=tuple(organ),
            avoid=tuple(avoid or ()),
            applicator=applicator,
            out=out,
            ct=ct,
            series=series,
            body=body,
            entries=tuple(entries or ()),
            entry_spread_mm=entry_spread,
            power_w=power,
            time_s=time,
            margin_mm=margin,
            reserve_mm=reserve,
            placement_sigma_mm=placement_sigma,
            needle_length_mm=needle_length,
            up=up.upper(),
            gantry_tilt_deg=gantry_tilt,
            settings=settings,
            weights=tuple(weight or ()),
            most_paths=most_paths,
        ),
        as_json=as_json,
    )
