"""``ablation-nav room``: the simulated procedure room on its own, for any OpenIGTLink client."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nav.cli.errors import CommandError, ExitCode

if TYPE_CHECKING:
    from drivers.room.patient import PatientModel
    from nav.cli.progress import Steps

__all__ = ["room"]

HELP = """Start the simulated procedure room: tracker, ultrasound and CT-fluoroscopy over OpenIGTLink.

The scripted procedure begins when the first client connects to the tracker (or at once with --at-once) and lasts
--duration seconds; then everything rests until Ctrl-C. The ground truth is written to --truth when it begins.
The patient is built in, or made from any CT with a label map.

\b
Examples:
  ablation-nav room --truth truth.jsonl
  ablation-nav room my-room.toml --seed 7 --duration 60
  ablation-nav room --ct CT_FOLDER --labels labels.nrrd --tumor-label 451 --liver-label 449 --bone-label 65
"""


def room(
    config: Annotated[Path | None, typer.Argument(metavar="ROOM.toml", help="Default: the built-in room.")] = None,
    duration: Annotated[float, typer.Option(help="Seconds of the procedure; 8 or more.")] = 3600.0,
    seed: Annotated[int | None, typer.Option(help="Seed of noise and operator; default: the room's.")] = None,
    truth: Annotated[Path | None, typer.Option(help="Ground truth to write (JSON lines).")] = None,
    at_once: Annotated[bool, typer.Option("--at-once", help="Begin without waiting for a client.")] = False,
    free_ports: Annotated[bool, typer.Option("--free-ports", help="Let the system choose the ports.")] = False,
    end: Annotated[bool, typer.Option("--end", help="End after the procedure instead of resting.")] = False,
    ct: Annotated[Path | None, typer.Option(help="A CT to play the patient.")] = None,
    series: Annotated[str | None, typer.Option(help="Series of the CT, where it holds several.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Label map of that CT.")] = None,
    tumor_label: Annotated[list[int] | None, typer.Option(help="Value of the tumour (repeatable).")] = None,
    liver_label: Annotated[list[int] | None, typer.Option(help="Value of the liver (repeatable).")] = None,
    bone_label: Annotated[list[int] | None, typer.Option(help="Value of bone; default: above 250 HU.")] = None,
    vessel_label: Annotated[list[int] | None, typer.Option(help="Value of liver vessels (repeatable).")] = None,
    avoid_label: Annotated[list[int] | None, typer.Option(help="Value no needle may cross (repeatable).")] = None,
) -> None:
    """See ``HELP``."""
    from drivers.room.operator import MIN_DURATION_S
    from drivers.room.server import start_room
    from nav.cli.progress import Steps
    from nav.config.load import load_toml, shipped_config
    from nav.config.room import RoomConfig

    if duration < MIN_DURATION_S:
        raise CommandError(
            f"--duration {duration:g}: landmarks, a rest and an advance need {MIN_DURATION_S:g} s or more",
            ExitCode.USAGE,
        )
    if (ct is None) != (labels is None) or (ct is not None and not tumor_label):
        raise CommandError("--ct, --labels and --tumor-label belong together; give all three", ExitCode.USAGE)
    settings = load_toml(config or shipped_config("rooms", "simulated.toml"), RoomConfig)
    steps = Steps()
    patient = None
    if ct is not None and labels is not None:
        roles = {
            "tumour": tuple(tumor_label or ()),
            "liver": tuple(liver_label or ()) + tuple(vessel_label or ()) + tuple(tumor_label or ()),
            "bone": tuple(bone_label or ()),
            "vessels": tuple(vessel_label or ()),
            "avoid": tuple(avoid_label or ()),
        }
        patient = _patient(ct, series, labels, roles, steps)
    with steps.step("Simulated room") as update:
        processes = start_room(
            settings,
            seed=seed,
            truth_path=truth,
            patient=patient,
            automatic_ports=free_ports,
            progress=lambda text: update(-1.0, text),
        )
    with processes:
        for name, port in processes.ports.items():
            typer.echo(f"{name}: port {port}")
        try:
            if not at_once:
                typer.echo("waiting for a client of the tracker (Ctrl-C ends)")
                processes.wait_for_client()
            begun = processes.begin(duration)
            typer.echo(f"procedure of {duration:g} s begun" + (f", ground truth in {truth}" if truth else ""))
            over_ns = begun.local_ns(duration)
            while not (end and time.monotonic_ns() > over_ns):
                if not all(processes.alive().values()):
                    raise CommandError("; ".join(processes.problems()))
                time.sleep(0.2)
        except KeyboardInterrupt:
            typer.echo("ended")


def _patient(
    ct: Path, series: str | None, labels: Path, roles: dict[str, tuple[int, ...]], steps: Steps
) -> PatientModel:
    """Read a CT and its labels and make a patient of them."""
    from drivers.room.patient import LabelRoles, patient_from_ct
    from nav.io.ct import load_ct
    from nav.io.labels import read_label_map

    with steps.step("Patient from CT") as update:
        chosen: str | int | None = int(series) if series is not None and series.isdecimal() else series
        scan = load_ct(ct, series=chosen, progress=lambda n, of: update(n / max(of, 1), "reading slices"))
        update(-1.0, "reading labels")
        drawn = read_label_map(labels)
        return patient_from_ct(
            scan.volume, drawn.volume, LabelRoles(**roles), source=ct.name, progress=lambda text: update(-1.0, text)
        )
