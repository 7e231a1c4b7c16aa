"""What an operator does: typed events, queued without loss, recorded, and replayed.

Keyboard, mouse, set-up panel and foot switch all end in these. An event carries everything it needs to be applied again
(positions, names), so that a replay does not depend on files chosen in a dialogue.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Annotated, Any, ClassVar

from pydantic import Field, TypeAdapter, ValidationError

__all__ = [
    "WIRE_EVENTS",
    "AcknowledgeAlarm",
    "AddNote",
    "ApplyRegistration",
    "BreathHold",
    "CheckTip",
    "ChooseApplicator",
    "ClearLandmark",
    "CollectLandmark",
    "DiscardAblations",
    "LoadCase",
    "LoadRegistration",
    "OperatorEvent",
    "SelectLandmark",
    "SetPlan",
    "StartAblation",
    "StartGuidance",
    "StopAblation",
    "StopGuidance",
    "TakeZone",
    "UseLandmark",
    "event_from_dict",
    "event_to_dict",
]

Finite = Annotated[float, Field(allow_inf_nan=False)]
Point = tuple[Finite, Finite, Finite]


@dataclass(frozen=True, slots=True)
class OperatorEvent:
    """Base of all events."""

    kind: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class SelectLandmark(OperatorEvent):
    """Make a landmark the one that is collected next."""

    kind: ClassVar[str] = "select_landmark"
    name: str


@dataclass(frozen=True, slots=True)
class CollectLandmark(OperatorEvent):
    """Take the stylus tip, averaged over the last ``dwell_s``, for a landmark (empty name: the active one)."""

    kind: ClassVar[str] = "collect_landmark"
    name: str = ""
    dwell_s: Annotated[float, Field(gt=0.0, le=5.0)] = 0.3


@dataclass(frozen=True, slots=True)
class ClearLandmark(OperatorEvent):
    """Forget a collected landmark."""

    kind: ClassVar[str] = "clear_landmark"
    name: str


@dataclass(frozen=True, slots=True)
class UseLandmark(OperatorEvent):
    """Include or exclude a landmark from the fit."""

    kind: ClassVar[str] = "use_landmark"
    name: str
    used: bool


@dataclass(frozen=True, slots=True)
class ApplyRegistration(OperatorEvent):
    """Put the current landmark fit in force."""

    kind: ClassVar[str] = "apply_registration"


@dataclass(frozen=True, slots=True)
class LoadRegistration(OperatorEvent):
    """Put a registration from a file in force: ``matrix`` maps Reference to RAS, row-major 16 numbers, mm."""

    kind: ClassVar[str] = "load_registration"
    matrix: Annotated[tuple[Finite, ...], Field(min_length=16, max_length=16)]
    provenance: str = "file"


@dataclass(frozen=True, slots=True)
class CheckTip(OperatorEvent):
    """Compare a tool's tip with a known divot (RAS); ``tool`` is its tip frame."""

    kind: ClassVar[str] = "check_tip"
    divot: str
    tool: str = "NeedleTip"


@dataclass(frozen=True, slots=True)
class SetPlan(OperatorEvent):
    """Set entry and target, RAS mm. ``entry`` None: target only."""

    kind: ClassVar[str] = "set_plan"
    target: Point
    entry: Point | None = None
    name: str = "path"


@dataclass(frozen=True, slots=True)
class ChooseApplicator(OperatorEvent):
    """Choose applicator, power and time, and the tissue to compute for (empty: the chart alone)."""

    kind: ClassVar[str] = "choose_applicator"
    name: str
    power_w: float
    time_s: float
    tissue: str = ""


@dataclass(frozen=True, slots=True)
class StartAblation(OperatorEvent):
    """The applicator's power went on."""

    kind: ClassVar[str] = "start_ablation"


@dataclass(frozen=True, slots=True)
class StopAblation(OperatorEvent):
    """The applicator's power went off."""

    kind: ClassVar[str] = "stop_ablation"


@dataclass(frozen=True, slots=True)
class DiscardAblations(OperatorEvent):
    """Forget the zones of the ablations that ended (a rehearsal, or a mistake)."""

    kind: ClassVar[str] = "discard_ablations"


@dataclass(frozen=True, slots=True)
class TakeZone(OperatorEvent):
    """Take over a computed zone, known by its SHA-256 (stored beside the event in a recording), if it is still wanted.

    Nobody does this by hand; it stands among the events because it changes the numbers between two ticks, as they do.
    """

    kind: ClassVar[str] = "take_zone"
    sha256: str


@dataclass(frozen=True, slots=True)
class StartGuidance(OperatorEvent):
    """Begin guiding."""

    kind: ClassVar[str] = "start_guidance"


@dataclass(frozen=True, slots=True)
class StopGuidance(OperatorEvent):
    """Back to the set-up."""

    kind: ClassVar[str] = "stop_guidance"


@dataclass(frozen=True, slots=True)
class BreathHold(OperatorEvent):
    """The breath is held (True) or free (False), as declared by the operator."""

    kind: ClassVar[str] = "breath_hold"
    held: bool


@dataclass(frozen=True, slots=True)
class LoadCase(OperatorEvent):
    """Take up another case: its essentials are known by their SHA-256 (stored beside the event in a recording)."""

    kind: ClassVar[str] = "load_case"
    sha256: str


@dataclass(frozen=True, slots=True)
class AcknowledgeAlarm(OperatorEvent):
    """Stop the flashing of the alarms that stand; they stay visible while their cause lasts."""

    kind: ClassVar[str] = "acknowledge_alarm"


@dataclass(frozen=True, slots=True)
class AddNote(OperatorEvent):
    """A remark for the recording, such as the phase of a scripted procedure."""

    kind: ClassVar[str] = "note"
    text: str


#: What may come from a foot switch, that is from the network: steps of the work that a person at the table does with
#: hands and feet. Not among them is what decides on which data the numbers rest (case, registration from elsewhere,
#: plan, applicator): that is chosen in the window.
WIRE_EVENTS: tuple[type[OperatorEvent], ...] = (
    SelectLandmark,
    CollectLandmark,
    ClearLandmark,
    UseLandmark,
    ApplyRegistration,
    CheckTip,
    StartGuidance,
    StopGuidance,
    StartAblation,
    StopAblation,
    BreathHold,
    AcknowledgeAlarm,
    AddNote,
)

_BY_KIND: dict[str, type[OperatorEvent]] = {cls.kind: cls for cls in OperatorEvent.__subclasses__()}


def event_to_dict(event: OperatorEvent) -> dict[str, Any]:
    """A plain dictionary with ``kind``."""
    return {"kind": event.kind, **asdict(event)}


@cache
def _adapter(kind: str) -> TypeAdapter[OperatorEvent]:
    return TypeAdapter(_BY_KIND[kind])


def event_from_dict(data: Any) -> OperatorEvent:
    """The event of a dictionary made by `event_to_dict`; types and ranges are checked, for it may come from a wire.

    Raises
    ------
    ValueError
        Naming an unknown kind or key, or every value that is not what its key allows.
    """
    if not isinstance(data, dict):
        raise ValueError(f"operator event: {data!r} is not an object with a 'kind'")
    values = dict(data)
    kind = values.pop("kind", None)
    cls = _BY_KIND.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ValueError(f"operator event of kind {kind!r}: unknown; known: {', '.join(sorted(_BY_KIND))}")
    allowed = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - allowed)
    if unknown:
        known = ", ".join(sorted(allowed))
        raise ValueError(f"operator event {kind}: unknown keys {', '.join(unknown)}; known: {known}")
    try:
        return _adapter(cls.kind).validate_python(values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"operator event {kind}: {wrong}") from None
