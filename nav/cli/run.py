"""``ablation-nav run``: guide with the streams of a room, registered to a CT, on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nav.cli.environment import has_display
from nav.cli.errors import CommandError, ExitCode
from nav.cli.mask_spec import parse_spec

__all__ = ["parse_point", "run"]

HELP = """Guide: streams of a room, registered to a CT, on the screen.

Without --ct the case is opened in the window. With --headless the same window is drawn off screen and its screenshots
are kept. OUT gets summary.json, hud-*.png and recording.mcap.

\b
Examples:
  ablation-nav run ROOM.toml --out OUT
  ablation-nav run ROOM.toml --ct CT_FOLDER --tumor TUMOR.nrrd --out OUT
  ablation-nav run ROOM.toml --ct CT_FOLDER --tumor LABELS.nrrd --tumor-label 451 \\
      --tumor-component 2 --vessels LABELS.nrrd:465+481 --plan PLANNED/plan.json --out OUT
"""


def parse_point(text: str, what: str) -> tuple[float, float, float]:
    """``"x,y,z"`` in RAS mm."""
    parts = text.replace(";", ",").split(",")
    try:
        x, y, z = (float(p) for p in parts)
    except ValueError:
        raise CommandError(f"{what} {text!r}: expected three numbers x,y,z (RAS, mm)", ExitCode.USAGE) from None
    return x, y, z


def run(
    room: Annotated[Path, typer.Argument(metavar="ROOM.toml", help="Room configuration.")],
    out: Annotated[Path, typer.Option(help="Folder for summary, screenshots and recording.")],
    ct: Annotated[Path | None, typer.Option(help="DICOM folder, or NRRD, NIfTI, MHA file.")] = None,
    series: Annotated[str | None, typer.Option(help="Number or UID, when the folder holds several series.")] = None,
    tumor: Annotated[Path | None, typer.Option(help="Mask or label map of the tumour.")] = None,
    tumor_label: Annotated[int | None, typer.Option(help="Label of the tumour in the label map.")] = None,
    tumor_component: Annotated[int | None, typer.Option(help="Piece of that label, 1 = largest.")] = None,
    vessels: Annotated[
        str, typer.Option(help="Vessels of the organ: FILE[:LABELS], such as labels.nrrd:465+481.")
    ] = "",
    landmarks: Annotated[Path | None, typer.Option(help="Skin landmarks on the CT (.mrk.json).")] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Planned path(s): lines entry to target (.mrk.json), or a plan.json.")
    ] = None,
    registration: Annotated[Path | None, typer.Option(help="Reference to RAS from a file (.tfm, .h5).")] = None,
    target: Annotated[str, typer.Option(help="Target x,y,z (RAS, mm); default: plan, else centre of the tumour.")] = "",
    entry: Annotated[str, typer.Option(help="Entry x,y,z (RAS, mm).")] = "",
    layout: Annotated[str, typer.Option(help="plan, guide or ultrasound; default: as the case needs it.")] = "",
    headless: Annotated[bool, typer.Option("--headless", help="Draw off screen.")] = False,
    duration: Annotated[float | None, typer.Option(help="End after this many seconds.")] = None,
) -> None:
    """See ``HELP``."""
    from nav.cli.progress import Steps, warm_up_visibly
    from nav.config.load import load_toml
    from nav.config.room import RoomConfig

    config = load_toml(room, RoomConfig)
    headless = headless or not has_display()
    if headless and duration is None:
        raise CommandError("--headless needs --duration S: nobody could close the window", ExitCode.USAGE)
    if layout not in ("", "plan", "guide", "ultrasound"):
        raise CommandError(f"--layout {layout!r}: must be plan, guide or ultrasound", ExitCode.USAGE)
    target_ras = parse_point(target, "--target") if target else None
    entry_ras = parse_point(entry, "--entry") if entry else None
    for option, given in (("--tumor", tumor is not None), ("--vessels", bool(vessels)), ("--plan", plan is not None)):
        if given and ct is None:
            raise CommandError(f"{option} needs --ct: without a CT it lies nowhere", ExitCode.USAGE)
    around = parse_spec(vessels, "--vessels", named=False) if vessels else None
    if around is not None and around.piece is not None:
        raise CommandError(f"--vessels {vessels!r}: a piece cannot be chosen, all vessels count", ExitCode.USAGE)
    steps = Steps()
    case = None
    if ct is not None:
        from nav.io.case_loader import load_case

        with steps.step("Loading the case") as update:
            case = load_case(
                ct,
                series=series,
                tumour_path=tumor,
                tumour_label=tumor_label,
                tumour_component=tumor_component,
                vessels=None if around is None else (around.path, around.labels or None),
                landmarks_path=landmarks,
                plan_path=plan,
                show_identifying=config.privacy.show_patient,
                progress=lambda n, of: update(n / max(of, 1), "slices"),
            )
        for warning in case.warnings:
            steps.say(f"  note: {warning}")
    warm_up_visibly(steps)
    from nav.cli.guidance_run import guide_live

    guide_live(
        config,
        case,
        out=out,
        headless=headless,
        duration_s=duration,
        target_ras=target_ras,
        entry_ras=entry_ras,
        registration=registration,
        layout=layout,
        steps=steps,
    )
