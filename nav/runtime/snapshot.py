"""The frozen snapshot that the compute thread publishes: everything the screen shows, with the inputs it rests on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nav.ablation.zone import MarginResult, Zone
from nav.geometry.poses import PoseStatus
from nav.geometry.rigid import Rigid
from nav.guidance.health import StreamHealth
from nav.guidance.numbers import GateVerdict, GuidanceNumbers, TipUncertainty
from nav.runtime.plan_view import PlanView
from nav.runtime.predicted_zones import ZoneRequest
from nav.runtime.zone_state import AblationTimer, PlacedZone, ZoneSetting

__all__ = [
    "AblationTimer",
    "LandmarkRow",
    "NavigationSnapshot",
    "PlacedZone",
    "PlanView",
    "RegistrationSummary",
    "SetupState",
    "StreamHealth",
    "ToolState",
    "TrackedImage",
    "ZoneSetting",
]


@dataclass(frozen=True, slots=True)
class ToolState:
    """A tracked tool in RAS. ``pose`` is None whenever the gate or the tracker withholds it: never a last value."""

    name: str
    pose: Rigid | None
    status: PoseStatus
    acquired_ns: int
    arrival_ns: int
    refusal: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class TrackedImage:
    """An image placed in RAS at its own time. ``ras_from_index`` takes (i, j, k, 1) at pixel centres to RAS mm."""

    device: str
    array: NDArray[np.generic]
    ras_from_index: NDArray[np.float64]
    acquired_ns: int
    arrival_ns: int
    sequence: int


@dataclass(frozen=True, slots=True)
class LandmarkRow:
    """One landmark in the set-up table. ``residual_mm`` is None until it takes part in a fit."""

    name: str
    fixed_ras: tuple[float, float, float]
    collected: bool
    used: bool
    residual_mm: float | None
    scatter_mm: float | None = None


@dataclass(frozen=True, slots=True)
class RegistrationSummary:
    """The registration in force. ``method``: ``landmarks`` | ``file`` | ``assumed``. ``transform``: patient to CT."""

    method: str
    generation: int
    fre_mm: float | None
    tre_at_target_mm: float | None
    made_ns: int
    landmarks: tuple[LandmarkRow, ...] = ()
    warning: str = ""
    transform: Rigid | None = None


@dataclass(frozen=True, slots=True)
class SetupState:
    """Where the set-up stands: which steps are done and what the person does next.

    ``step`` is one of ``case``, ``tumour``, ``plan``, ``landmarks``, ``tip_check``, ``applicator``, ``guide``.
    """

    step: str
    done: frozenset[str]
    next_action: str
    landmarks: tuple[LandmarkRow, ...] = ()
    active_landmark: str = ""
    tip_check_error_mm: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class NavigationSnapshot:
    """Everything that is shown, computed at one clock reading from a recorded cut through the inputs.

    Attributes
    ----------
    sequence : int
        Number of the tick, from 0.
    now_ns : int
        The clock reading of the tick (local monotonic).
    cut : dict
        Source name → number of messages taken in up to this tick.
    events : int
        Operator events taken in up to this tick.
    needle : ToolState
        Needle tip in RAS (frame ``NeedleTip``); +Z is the direction of advance.
    guidance, placed, margin, uncertainty : or None
        None when the gate blanks them.
    ablation : AblationTimer or None
        It runs on while the needle is lost: the power does, too.
    setting : ZoneSetting or None
        Applicator, power, time and tissue in force.
    zone_request : ZoneRequest or None
        The computed zone that is missing.
    made_margin_mm : float or None
        Smallest margin of what ended ablations have killed; None without one.
    plan : PlanView
        What the plan in force and the candidates would give; rests on no pose.
    target_ras, entry_ras : (3,) or None
        The plan in force.
    """

    sequence: int
    now_ns: int
    cut: dict[str, int]
    events: int
    needle: ToolState
    tools: dict[str, ToolState]
    guidance: GuidanceNumbers | None
    placed: PlacedZone | None
    margin: MarginResult | None
    uncertainty: TipUncertainty | None
    gate: GateVerdict
    streams: tuple[StreamHealth, ...]
    registration: RegistrationSummary | None
    setup: SetupState
    target_ras: NDArray[np.float64] | None = None
    entry_ras: NDArray[np.float64] | None = None
    image: TrackedImage | None = None
    fluoro: TrackedImage | None = None
    breath_hold: bool | None = None
    recording: bool = False
    faults: tuple[str, ...] = ()
    applicator: str = ""
    case_generation: int = 0
    ablation: AblationTimer | None = None
    setting: ZoneSetting | None = None
    zone_request: ZoneRequest | None = None
    made_margin_mm: float | None = None
    plan: PlanView = field(default_factory=PlanView)

    @property
    def zone(self) -> Zone | None:
        """The zone at the end of the heating, None when it is blanked."""
        return None if self.placed is None else self.placed.zone
