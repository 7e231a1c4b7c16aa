"""``ablation-nav replay``: the recorded inputs through the same program again, to the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nav.cli.environment import has_display
from nav.cli.errors import CommandError, ExitCode

if TYPE_CHECKING:
    from nav.cli.progress import Steps
    from nav.io.case import Case

__all__ = ["replay"]

HELP = """Play a recording through the same program again.

Headless, every recorded tick is computed again as fast as the computer can, compared with the recorded numbers, and
summary.json is written; its navigation block equals the live one bit for bit on the same versions. In the window the
recording plays at its own pace. The pictures need the CT: the built-in patient is made again, any other is named with
--ct.

With --serve the raw streams are served over OpenIGTLink instead, as live sources for any client; a PLUS sequence
metafile (.igs.mha, .igs.nrrd) can be served so, too.

\b
Examples:
  ablation-nav replay OUT/recording.mcap --headless --out REPLAY
  ablation-nav replay OUT/recording.mcap --ct CT_FOLDER --out REPLAY
  ablation-nav replay SEQUENCE.igs.mha --serve 127.0.0.1:18944
"""


def replay(
    recording: Annotated[Path, typer.Argument(help="recording.mcap, or a sequence metafile with --serve.")],
    out: Annotated[Path | None, typer.Option(help="Folder for summary and screenshots.")] = None,
    headless: Annotated[bool, typer.Option("--headless", help="No window: compute, compare, write.")] = False,
    ct: Annotated[Path | None, typer.Option(help="CT for the pictures (DICOM folder or file).")] = None,
    speed: Annotated[float, typer.Option(help="Pace in the window or when serving.", min=0.05, max=20.0)] = 1.0,
    serve: Annotated[str, typer.Option(help="HOST:PORT to serve the streams at instead.")] = "",
    allow: Annotated[
        list[str] | None, typer.Option(help="Network that may connect to --serve, such as 192.0.2.0/24 (repeatable).")
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Serve again from the start at the end.")] = False,
) -> None:
    """See ``HELP``."""
    from nav.cli.progress import Steps

    steps = Steps()
    if serve:
        from nav.cli.serving import serve_file

        serve_file(recording, serve, loop=loop, speed=speed, steps=steps, allow=allow or ())
        return
    if out is None:
        raise CommandError("--out FOLDER is needed for the summary", ExitCode.USAGE)
    out.mkdir(parents=True, exist_ok=True)
    from nav.cli.replaying import RecordedSession

    session = RecordedSession(recording)
    case = _case(session.room, ct, str(session.metadata.get("pseudonym", "")), steps)
    if headless or not has_display():
        from nav.cli.replaying import recompute

        differing, summary = recompute(session, case, out, steps)
        steps.say(f"  {summary['navigation']['n']} guided ticks, {differing} differ from the recording")
        if differing:
            raise CommandError(
                f"{differing} ticks differ from the recording; it was made by other versions of the software "
                f"({session.metadata.get('software')})"
            )
        return
    from nav.cli.replaying import show_replay

    show_replay(session, case, out, speed, steps)


def _case(room: object, ct: Path | None, pseudonym: str, steps: Steps) -> Case | None:
    """The CT for the pictures: named, or the built-in patient when the recording is of it."""
    from drivers.room.anatomy import PatientParameters
    from drivers.room.patient import build_patient, patient_case
    from nav.config.room import RoomConfig

    assert isinstance(room, RoomConfig)
    if ct is not None:
        from nav.io.case_loader import load_case

        with steps.step("Loading the CT") as update:
            case = load_case(ct, progress=lambda n, of: update(n / max(of, 1), "slices"))
        if pseudonym and case.identity.pseudonym != pseudonym:
            raise CommandError(
                f"{ct} is {case.identity.pseudonym}, the recording is of {pseudonym}; name the CT it was made with",
                ExitCode.INPUT,
            )
        return case
    if room.simulation is None:
        return None
    with steps.step("Simulated patient") as update:
        parameters = PatientParameters(seed=room.simulation.patient_seed)
        case = patient_case(build_patient(parameters, None, lambda text: update(-1.0, text)))
    return case if case.identity.pseudonym == pseudonym else None
