"""``ablation-nav demo``: the main job in the built-in simulated procedure room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nav.cli.environment import has_display
from nav.cli.errors import CommandError, ExitCode

if TYPE_CHECKING:
    from drivers.room.operator import Phase
    from drivers.room.truth import GroundTruth
    from nav.cli.guidance_run import Shot
    from nav.cli.progress import Steps

__all__ = ["demo"]

HELP = """Play the whole job in the built-in simulated procedure room.

A simulated tracker, ultrasound and CT-fluoroscopy are served by processes of their own over real OpenIGTLink sockets; a
scripted operator touches the landmarks, checks the tip and advances the needle in breath-hold. The ground truth is
known, so summary.json tells how far the tip on the screen was from the true tip.

\b
Examples:
  ablation-nav demo
  ablation-nav demo --headless --duration 30 --out demo-out
"""

DEFAULT_DURATION_S = 30.0
#: The script begins this long after the window is asked to begin it.
LEAD_S = 0.4
#: Phases shorter than this are over before a picture of them is drawn.
SHOT_PHASE_S = 0.4


def demo(
    headless: Annotated[bool, typer.Option("--headless", help="Draw off screen.")] = False,
    duration: Annotated[float, typer.Option(help="Seconds of the procedure; 8 or more.")] = DEFAULT_DURATION_S,
    out: Annotated[Path, typer.Option(help="Folder for summary, screenshots, recording and truth.")] = Path("demo-out"),
    room: Annotated[Path | None, typer.Option(help="Another simulated room (TOML with [simulation]).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of noise and operator; default: the room's.")] = None,
) -> None:
    """See ``HELP``."""
    from drivers.room.operator import MIN_DURATION_S, Script
    from drivers.room.patient import patient_case
    from drivers.room.server import start_room
    from nav.cli.guidance_run import guide_live
    from nav.cli.progress import Steps, warm_up_visibly
    from nav.config.load import load_toml, shipped_config
    from nav.config.room import RoomConfig
    from nav.runtime.clock import SystemClock

    if duration < MIN_DURATION_S:
        raise CommandError(
            f"--duration {duration:g}: landmarks, a rest and an advance need {MIN_DURATION_S:g} s or more",
            ExitCode.USAGE,
        )
    headless = headless or not has_display()
    config = load_toml(room or shipped_config("rooms", "simulated.toml"), RoomConfig)
    steps = Steps()
    out.mkdir(parents=True, exist_ok=True)
    with steps.step("Simulated room") as update:
        processes = start_room(
            config,
            seed=seed,
            truth_path=out / "truth.jsonl",
            automatic_ports=True,
            progress=lambda text: update(-1.0, text),
        )
    with processes:
        case = patient_case(processes.patient)
        warm_up_visibly(steps)
        layouts = _Layouts(SystemClock().now_ns)

        def begin() -> GroundTruth:
            layouts.truth = processes.begin(duration)
            return layouts.truth

        summary = guide_live(
            processes.room,
            case,
            out=out,
            headless=headless,
            # The script starts a moment after `begin`: its last phase must still be seen.
            duration_s=duration + 0.4,
            steps=steps,
            shots=_shots(Script.build(processes.patient.geometry, processes.setup, duration, processes.seed).phases),
            on_shown=begin,
            on_beat=layouts.wanted,
            room_cpu_seconds=processes.cpu_seconds,
        )
        for problem in processes.problems():
            steps.say(f"  problem: {problem}")
    _tell(steps, summary)
    if not (summary.get("truth") or {}).get("tip_error_mm"):
        raise CommandError(
            "no picture of a guided needle could be compared with the truth: this computer was too busy to guide "
            "(see gate.reasons in summary.json); close other programs and try again"
        )


class _Layouts:
    """What a person would look at in each phase."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self.truth: GroundTruth | None = None
        self._now_ns = now_ns
        self._shown = ""

    def wanted(self) -> str:
        """The layout to change to, once per change."""
        if self.truth is None:
            return ""
        phase = self.truth.phase(self._now_ns())
        layout = {"landmarks": "plan", "check": "plan", "sweep": "ultrasound"}.get(phase, "guide" if phase else "")
        if not layout or layout == self._shown:
            return ""
        self._shown = layout
        return layout


def _shots(phases: Sequence[Phase]) -> tuple[Shot, ...]:
    """One screenshot in the middle of each kind of phase, at its first long enough occurrence."""
    from nav.cli.guidance_run import Shot

    shots: dict[str, Shot] = {}
    for phase in phases:
        if phase.name not in shots and phase.end_s - phase.start_s >= SHOT_PHASE_S:
            middle = phase.start_s + (0.85 if phase.name == "landmarks" else 0.6) * (phase.end_s - phase.start_s)
            shots[phase.name] = Shot(middle + LEAD_S, phase.name)
    return tuple(shots.values())


def _tell(steps: Steps, summary: dict[str, Any]) -> None:
    """The figures a person asks for first."""

    def text(block: dict[str, Any] | None) -> str:
        if not block or block.get("p95") is None:
            return "none"
        return f"p50 {block['p50']:.2f}, p95 {block['p95']:.2f}, max {block['max']:.2f}"

    truth = summary.get("truth") or {}
    hud = summary["hud"]
    steps.say(f"  tip error at rest, mm: {text(truth.get('at_rest_tip_error_mm'))}")
    steps.say(f"  tip error while advancing, mm: {text(truth.get('moving_tip_error_mm'))}")
    steps.say(
        f"  pose age at paint, ms: {text(hud['pose_age_at_paint_ms'])}; {hud['fps'] or 0.0:.1f} frames per second"
    )
    steps.say(f"  simulated room: {summary['room_cpu_cores'] or 0.0:.2f} cores")
