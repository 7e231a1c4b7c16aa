"""The navigation core: from ordered messages, operator events and clock readings to snapshots.

It reads no clock and starts no thread. The same messages, events and readings in the same order give the same
snapshots bit for bit, which is what live guidance, replay and tests share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nav.ablation.zone import MarginResult
from nav.config.room import RoomConfig
from nav.geometry.frames import TransformName
from nav.geometry.graph import FrameGraph
from nav.geometry.poses import PoseRefusal, PoseStatus, TimedPose, TooOld
from nav.geometry.rigid import NotRigidError, Rigid
from nav.guidance.compute import PlanError, compute_guidance
from nav.guidance.gate import GateInputs, GateLimits, evaluate_gate
from nav.guidance.health import StreamHealth
from nav.guidance.numbers import GateState, GateVerdict, GuidanceNumbers, TipUncertainty
from nav.guidance.uncertainty import stylus_touch_covariance
from nav.registration.landmarks import LandmarkRegistration
from nav.runtime.essentials import CaseEssentials
from nav.runtime.events import (
    WIRE_EVENTS,
    ApplyRegistration,
    BreathHold,
    CheckTip,
    ChooseApplicator,
    ClearLandmark,
    CollectLandmark,
    DiscardAblations,
    LoadCase,
    LoadRegistration,
    OperatorEvent,
    SelectLandmark,
    SetPlan,
    StartAblation,
    StartGuidance,
    StopAblation,
    StopGuidance,
    TakeZone,
    UseLandmark,
    event_from_dict,
)
from nav.runtime.images import ImagePlacer
from nav.runtime.live_margin import LiveMargin
from nav.runtime.messages import ImageMessage, LinkMessage, PoseMessage, StatusMessage, TextMessage
from nav.runtime.plan_view import PlanViewer
from nav.runtime.predicted_zones import Prediction, prediction_key
from nav.runtime.slots import Batch, message_order
from nav.runtime.snapshot import NavigationSnapshot, PlacedZone, RegistrationSummary, SetupState, ToolState
from nav.runtime.streams import StreamSet
from nav.runtime.tip_error import TipErrorModel
from nav.runtime.workup import LandmarkWorkup, Touch, TouchError, average_tip
from nav.runtime.zone_state import ZoneState

__all__ = ["NavigationCore"]

#: A tip check above this says that tip calibration or registration is wrong.
TIP_CHECK_LIMIT_MM = 3.0
#: A needle farther than this from the tumour is on its way: no zone is computed in the patient for it.
TIER2_REACH_MM = 30.0
#: Computed zones that wait to be taken over: more than can come between two ticks.
ZONES_KEPT = 4


class NavigationCore:
    """State of one navigation, advanced by `tick`. Not thread-safe: one thread owns it.

    Parameters
    ----------
    room : RoomConfig
    case : CaseEssentials
        Taken up at start; `LoadCase` events take up others.
    cases : mapping, optional
        SHA-256 → essentials, for `LoadCase` events.
    zones : mapping, optional
        SHA-256 → computed zone, for `TakeZone` events.
    """

    def __init__(
        self,
        room: RoomConfig,
        case: CaseEssentials,
        cases: Mapping[str, CaseEssentials] | None = None,
        zones: Mapping[str, Prediction] | None = None,
    ) -> None:
        self.room = room
        self._cases: dict[str, CaseEssentials] = dict(cases or {})
        self._predictions: dict[str, Prediction] = dict(zones or {})
        self.graph = FrameGraph()
        self.streams = StreamSet(room, self.graph)
        self._images = ImagePlacer(room, self.graph)
        self._registration_name = TransformName.of(room.reference_frame, room.ct_frame)
        self._generation = 0
        self._registration: LandmarkRegistration | None = None
        self._registration_method = ""
        self._registration_made_ns = 0
        self._limits = GateLimits(
            max_tre_mm=room.uncertainty.max_tre_mm,
            max_fre_mm=room.uncertainty.max_fre_mm,
            registration_age_min=room.limits.registration_age_warn_min,
            latency_ms=room.limits.latency_warn_ms,
        )
        self._tip_error = TipErrorModel(room)
        self._sequence = 0
        self._events = 0
        self._message = ""
        self._breath_hold: bool | None = None
        self._guiding = False
        self._footswitches = {(s.name, s.footswitch) for s in room.sources if s.footswitch}
        self._place_calibrations()
        choice = room.applicator
        self._zones = ZoneState(choice.name, choice.power_w, choice.time_s, choice.tissue)
        self._message = self._zones.problem
        self._plan_viewer = PlanViewer(str(TransformName.of(room.needle_frame, room.ct_frame)))
        self._take_up(case, generation=0)

    # -- set-up --------------------------------------------------------------------------------------------------

    def _place_calibrations(self) -> None:
        for calibration in self.room.calibrations:
            if calibration.kind != "rigid":
                continue
            transform = calibration.rigid()
            self.graph.set_static(transform, calibration.provenance)
            if frozenset(transform.name) == frozenset(self._registration_name):
                self._registration_method = "assumed" if calibration.provenance == "assumed" else "file"

    def _take_up(self, case: CaseEssentials, *, generation: int) -> None:
        self.case = case
        self._case_generation = generation
        self._workup = LandmarkWorkup(self.room, case.landmarks)
        self._zones.change_case(generation, case.vessels)
        self._margin = LiveMargin(case.tumour, case.samples)
        self._tip_check: dict[str, float] = {}
        self._target: NDArray[np.float64] | None = None
        self._entry: NDArray[np.float64] | None = None
        self._guiding = False
        points = [p.ras for p in case.landmarks] + [p for path in case.paths for p in (path.target_ras, path.entry_ras)]
        self._images.set_anatomy(np.array(points, dtype=np.float64).reshape(-1, 3))
        if case.paths:
            path = case.paths[0]
            self._set_plan(path.target_ras, path.entry_ras)

    def _set_plan(self, target: tuple[float, float, float], entry: tuple[float, float, float] | None) -> None:
        # Refuses a plan without direction before it is in force.
        compute_guidance(
            Rigid.identity(TransformName.of(self.room.needle_frame, self.room.ct_frame)),
            target_ras=target,
            entry_ras=entry,
            tumour=None,
        )
        self._target, self._entry = _point(target), None if entry is None else _point(entry)

    def add_case(self, case: CaseEssentials) -> str:
        """Make a case known so that a `LoadCase` event can take it up; returns its SHA-256."""
        key = case.sha256()
        self._cases[key] = case
        return key

    def add_zone(self, prediction: Prediction) -> str:
        """Make a computed zone known so that a `TakeZone` event can take it over; returns its SHA-256."""
        key = prediction_key(prediction)
        self._predictions[key] = prediction
        while len(self._predictions) > ZONES_KEPT:
            self._predictions.pop(next(iter(self._predictions)))
        return key

    # -- one tick ------------------------------------------------------------------------------------------------

    def tick(
        self,
        batch: Batch,
        events: list[OperatorEvent],
        now_ns: int,
        *,
        faults: tuple[str, ...] = (),
        recording: bool = False,
    ) -> NavigationSnapshot:
        """Take in one batch and the operator's events, then compute at the clock reading ``now_ns``."""
        for source, numbers in batch.overflowed.items():
            self.streams.on_overflow(source, len(numbers))
        superseded = {(m.source, m.sequence) for m in batch.superseded}
        for message in sorted((*batch.messages, *batch.superseded), key=message_order):
            if isinstance(message, LinkMessage):
                self.streams.on_link(message)
                continue
            self.streams.on_any(message)
            if isinstance(message, PoseMessage):
                self.streams.on_poses(message)
            elif isinstance(message, StatusMessage):
                self.streams.on_status(message)
            elif isinstance(message, ImageMessage):
                used = (message.source, message.sequence) not in superseded
                acquired = self.streams.on_image(message, used=used)
                if used and acquired is not None:
                    config = self.streams.images[(message.source, message.device)].config
                    self._images.take(config, message, acquired)
            elif isinstance(message, TextMessage) and (message.source, message.device) in self._footswitches:
                self._footswitch(message)
        for event in events:
            self._events += 1
            self.apply(event, now_ns)
        return self._snapshot(batch.cut, now_ns, faults, recording)

    def _footswitch(self, message: TextMessage) -> None:
        try:
            event = event_from_dict(json.loads(message.text))
        except ValueError as error:
            self._message = f"foot switch {message.device}: {error}"
            return
        if not isinstance(event, WIRE_EVENTS):
            allowed = ", ".join(kind.kind for kind in WIRE_EVENTS)
            self._message = f"foot switch {message.device}: {event.kind} is not for a foot switch; allowed: {allowed}"
            return
        self.apply(event, message.arrival_ns)

    def apply(self, event: OperatorEvent, now_ns: int) -> None:
        """Apply one operator event; what cannot be done is said in the message line and changes nothing."""
        if not isinstance(event, TakeZone):  # Nobody did that: it must not wipe out what somebody is told.
            self._message = ""
        try:
            self._apply(event, now_ns)
        except (TouchError, PoseRefusal, NotRigidError, PlanError) as error:
            self._message = str(error)

    def _apply(self, event: OperatorEvent, now_ns: int) -> None:
        match event:
            case SelectLandmark(name=name):
                self._workup.select(name)
            case CollectLandmark(name=name, dwell_s=dwell):
                self._workup.collect(name or self._workup.active, self._touch(self.room.stylus_frame, now_ns, dwell))
                self._message = self._workup.problem
            case ClearLandmark(name=name):
                self._workup.clear(name)
            case UseLandmark(name=name, used=used):
                self._workup.use(name, used)
            case ApplyRegistration():
                self._apply_fit(now_ns)
            case LoadRegistration(matrix=matrix, provenance=provenance):
                rigid = Rigid.from_matrix(np.array(matrix, dtype=np.float64).reshape(4, 4), self._registration_name)
                self._put_in_force(rigid, "assumed" if provenance == "assumed" else "file", None, now_ns)
            case CheckTip(divot=divot, tool=tool):
                self._check_tip(divot, tool, now_ns)
            case SetPlan(target=target, entry=entry):
                self._set_plan(target, entry)
            case ChooseApplicator(name=name, power_w=power, time_s=time, tissue=tissue):
                self._message = self._zones.choose(name, power, time, tissue)
            case TakeZone(sha256=key):
                prediction = self._predictions.get(key)
                if prediction is None:
                    raise TouchError(f"zone {key[:12]}…: its data is not known here")
                self._zones.take(prediction)
            case StartAblation():
                self._message = self._zones.start(now_ns)
            case StopAblation():
                self._message = self._zones.stop(now_ns)
            case DiscardAblations():
                self._message = self._zones.discard()
            case StartGuidance():
                self._guiding = True
            case StopGuidance():
                self._guiding = False
            case BreathHold(held=held):
                self._breath_hold = held
            case LoadCase(sha256=key):
                if key not in self._cases:
                    raise TouchError(f"case {key[:12]}…: its data is not known here")
                self._change_case(self._cases[key])
            case _:
                pass

    def _touch(self, tip: str, now_ns: int, dwell_s: float) -> Touch:
        frame = self.room.reference_frame
        newest = self.graph.newest_common_time(frame, tip)
        self._refuse_old(tip, frame, newest, now_ns)
        touch = average_tip(self.graph, frame, tip, until_ns=newest, dwell_s=dwell_s)
        return replace(touch, covariance_mm2=self._touch_noise(frame, tip, newest, touch.samples))

    def _touch_noise(self, frame: str, tip: str, time_ns: int, samples: int) -> NDArray[np.float64] | None:
        """(3, 3) mm² of an averaged touch from the noise of both markers, by their lever arms at ``time_ns``."""
        marker = self.room.marker_of(tip)
        try:
            reference_from_tip = self.graph.lookup(frame, tip, time_ns).pose
            reference_from_marker = None if marker is None else self.graph.lookup(frame, marker, time_ns).pose
        except PoseRefusal:
            return None
        return stylus_touch_covariance(
            reference_from_tip, self.room.uncertainty, reference_from_marker=reference_from_marker, samples=samples
        )

    def _apply_fit(self, now_ns: int) -> None:
        fit = self._workup.fit
        if fit is None:
            raise TouchError(self._workup.problem or "no registration yet: collect at least 3 landmarks")
        self._put_in_force(fit.transform, "landmarks", fit, now_ns)

    def _put_in_force(self, rigid: Rigid, method: str, fit: LandmarkRegistration | None, now_ns: int) -> None:
        self._generation += 1
        self.graph.set_static(rigid, method, self._generation)
        self._registration, self._registration_method = fit, method
        self._registration_made_ns = now_ns
        self._tip_check.clear()
        if self._zones.made:
            self._zones.discard()
            self._message = "Another registration: the zones made under the one before are not shown any more"

    def _change_case(self, case: CaseEssentials) -> None:
        """Take up ``case``; only what belongs to the same CT (told by its pseudonym) survives."""
        old, target, entry = self.case, self._target, self._entry
        touched, made = self._workup, self._zones.made
        self._take_up(case, generation=self._case_generation + 1)
        if case.pseudonym == old.pseudonym:
            self._zones.made = made
            self._workup.take_over(touched)
            if not case.paths and target is not None:
                self._target, self._entry = target, entry
            return
        if not old.pseudonym:
            return  # the first case of the session: what the configuration assumes was meant for it
        # A registration to the old CT must not survive it.
        self._generation += 1
        self.graph.remove_static(self._registration_name)
        self._registration, self._registration_method = None, ""

    def _check_tip(self, divot: str, tool: str, now_ns: int) -> None:
        # A skin landmark serves as well as a divot: both are known points of the CT.
        points = (*self.case.divots, *self.case.landmarks)
        point = next((p for p in points if p.name == divot), None)
        if point is None:
            known = ", ".join(p.name for p in points) or "none"
            raise TouchError(f"divot {divot!r}: not one of this case; known: {known}")
        touch = self._touch(tool, now_ns, 0.3)
        edge = self.graph.static(self._registration_name)
        if edge is None:
            raise TouchError("tip check: register first")
        ras = edge.transform.apply(touch.point)
        self._tip_check[tool] = float(np.linalg.norm(ras - np.array(point.ras)))

    # -- reading out ---------------------------------------------------------------------------------------------

    def _lost_limit_ns(self, to_frame: str, from_frame: str) -> int:
        limits = [
            self.streams.tools[b.name.wire].config.lost_limit_ms
            for b in self.graph.moving_on_path(to_frame, from_frame)
            if not b.hold_last
        ]
        return round(min(limits) * 1e6) if limits else 1 << 62

    def _refuse_old(self, tip: str, frame: str, time_ns: int, now_ns: int) -> None:
        age_ns, limit_ns = now_ns - time_ns, self._lost_limit_ns(frame, tip)
        if age_ns > limit_ns:
            raise TooOld(f"{tip} in {frame}: newest pose is {age_ns / 1e6:.0f} ms old, limit {limit_ns / 1e6:.0f} ms")

    def locate(self, tip: str, now_ns: int) -> TimedPose:
        """The newest pose of a tip in RAS, no older than the shortest limit of the streams it rests on.

        Raises
        ------
        PoseRefusal
        """
        newest = self.graph.newest_common_time(self.room.ct_frame, tip)
        self._refuse_old(tip, self.room.ct_frame, newest, now_ns)
        moving = self.graph.moving_on_path(self.room.ct_frame, tip)
        if not all(buffer.hold_last for buffer in moving):
            return self.graph.lookup(self.room.ct_frame, tip, newest)
        # Sent only on change: the pose holds for as long as its link has given a sign of life.
        ages = (self.streams.tools[b.name.wire].monitor.age_ns(now_ns) for b in moving)
        alive_ns = max(newest, now_ns - max((a for a in ages if a is not None), default=0))
        timed = self.graph.lookup(self.room.ct_frame, tip, alive_ns)
        return replace(timed, arrival_ns=max(timed.arrival_ns, alive_ns))

    def _tool(self, tip: str, now_ns: int) -> tuple[ToolState, TimedPose | None, str]:
        try:
            timed = self.locate(tip, now_ns)
        except PoseRefusal as refusal:
            return ToolState(tip, None, PoseStatus.MISSING, 0, 0, str(refusal)), None, refusal.code
        return ToolState(tip, timed.pose, PoseStatus.OK, timed.time_ns, timed.arrival_ns), timed, ""

    def _snapshot(
        self, cut: dict[str, int], now_ns: int, faults: tuple[str, ...], recording: bool
    ) -> NavigationSnapshot:
        health = self.streams.health(now_ns)
        needle, timed, refusal = self._tool(self.room.needle_frame, now_ns)
        tools = {}
        if self.room.stylus_frame != self.room.needle_frame:
            tools[self.room.stylus_frame] = self._tool(self.room.stylus_frame, now_ns)[0]

        guidance: GuidanceNumbers | None = None
        placed: PlacedZone | None = None
        margin: MarginResult | None = None
        uncertainty: TipUncertainty | None = None
        registration = self._registration_summary()
        if timed is not None:
            uncertainty = self._tip_error.at(self.graph, timed, self._registration, self._registration_method, now_ns)
            if self._target is not None:
                guidance = compute_guidance(
                    timed.pose, target_ras=self._target, entry_ras=self._entry, tumour=self.case.tumour
                )
            away_mm = None if guidance is None else guidance.tip_to_surface_mm
            placed = self._zones.at(timed.pose, now_ns, worthwhile=away_mm is None or away_mm <= TIER2_REACH_MM)
            if placed is not None:
                margin = self._margin.at(placed, timed.pose, uncertainty, now_ns)
        else:
            self._margin.forget()
        # Placed before the gate judges: an image that cannot be used is a fault that it tells.
        image, fluoro = (self._images.newest(role, now_ns) for role in ("ultrasound", "fluoro"))
        faults = (*faults, *self._images.problems())
        misplaced = self._images.findings()
        health = tuple(
            replace(s, findings=(*s.findings, misplaced[s.name])) if s.name in misplaced else s for s in health
        )
        gate = self._judge(health, refusal, registration, uncertainty, timed, now_ns, faults)
        if gate.state is GateState.BLANK:
            guidance = placed = margin = uncertainty = None
            needle = ToolState(needle.name, None, needle.status, 0, 0, needle.refusal or gate.reasons[0].text)
        snapshot = NavigationSnapshot(
            sequence=self._sequence,
            now_ns=now_ns,
            cut=cut,
            events=self._events,
            needle=needle,
            tools=tools,
            guidance=guidance,
            placed=placed,
            margin=margin,
            uncertainty=uncertainty,
            gate=gate,
            streams=health,
            registration=registration,
            setup=self._setup_state(),
            target_ras=self._target,
            entry_ras=self._entry,
            image=image,
            fluoro=fluoro,
            breath_hold=self._breath_hold,
            recording=recording,
            faults=faults,
            applicator=self._zones.text,
            case_generation=self._case_generation,
            ablation=self._zones.timer(now_ns),
            setting=self._zones.setting,
            zone_request=self._zones.request,
            made_margin_mm=self._margin.made_mm(self._zones.made),
            plan=self._plan_viewer.view(self._zones, self.case.tumour, self._target, self._entry, self.case.paths),
        )
        self._sequence += 1
        return snapshot

    def _judge(
        self,
        health: tuple[StreamHealth, ...],
        refusal: str,
        registration: RegistrationSummary | None,
        uncertainty: TipUncertainty | None,
        timed: TimedPose | None,
        now_ns: int,
        faults: tuple[str, ...],
    ) -> GateVerdict:
        needed = self._needed_streams()
        # Of poses sent only on change the age is that of a heartbeat, and says nothing of a delay.
        only_held = all(self.streams.tools[name].config.hold_last for name in needed)
        made_ns = self._registration_made_ns
        # A registration from the configuration has no time of its own: its age is not known, and not judged.
        age_min = (now_ns - made_ns) / 60e9 if made_ns else 0.0
        return evaluate_gate(
            GateInputs(
                streams=tuple(s for s in health if s.name in needed or (s.kind == "image" and s.state != "waiting")),
                required=needed,
                needle_refusal=refusal,
                needle_tool=self.room.needle_frame,
                registration_method="" if registration is None else registration.method,
                tre_at_target_mm=None if registration is None else registration.tre_at_target_mm,
                fre_mm=None if registration is None else registration.fre_mm,
                order_warning="" if registration is None else registration.warning,
                registration_age_min=age_min,
                tip_calibration=self._tip_error.tip_calibration,
                tip_rms_mm=None if uncertainty is None or not uncertainty.calibrated else uncertainty.rms_mm,
                latency_ms=None if timed is None or only_held else (now_ns - timed.time_ns) / 1e6,
                respiration=self.room.respiration,
                breath_hold=self._breath_hold,
                guidance_started=self._guiding,
                target_set=self._target is not None,
                tumour_loaded=self.case.tumour is not None,
                zone_problem=self._zones.problem,
                dead_threads=tuple(f.partition(": ")[2] for f in faults if f.startswith("died: ")),
                faults=tuple(f for f in faults if not f.startswith("died: ")),
                limits=self._limits,
            )
        )

    def _needed_streams(self) -> frozenset[str]:
        """Names of the tool streams that the needle in RAS rests on (as far as the frames are joined yet)."""
        try:
            frames = (self.room.ct_frame, self.room.needle_frame)
            return frozenset(b.name.wire for b in self.graph.moving_on_path(*frames))
        except PoseRefusal:
            try:
                frames = (self.room.reference_frame, self.room.needle_frame)
                return frozenset(b.name.wire for b in self.graph.moving_on_path(*frames))
            except PoseRefusal:
                return frozenset()

    def _registration_summary(self) -> RegistrationSummary | None:
        if not self._registration_method:
            return None
        fit = self._registration
        edge = self.graph.static(self._registration_name)
        transform = None if edge is None else edge.transform
        if transform is not None and transform.name != self._registration_name:
            transform = transform.inverse()  # the configuration may state it the other way round
        return RegistrationSummary(
            method=self._registration_method,
            generation=self._generation,
            fre_mm=None if fit is None else fit.fre_rms_mm,
            tre_at_target_mm=None if fit is None or self._target is None else fit.tre_rms_at(self._target),
            made_ns=self._registration_made_ns,
            landmarks=self._workup.rows() if fit is not None else (),
            warning="" if fit is None or fit.order_warning is None else fit.order_warning.text,
            transform=transform,
        )

    def _setup_state(self) -> SetupState:
        rows = self._workup.rows()
        done = {"case"} if self.case.pseudonym else set()
        if self.case.tumour is not None:
            done.add("tumour")
        if self._target is not None:
            done.add("plan")
        if self._registration_method:
            done.add("landmarks")
        if self._tip_check and max(self._tip_check.values()) <= TIP_CHECK_LIMIT_MM:
            done.add("tip_check")
        if self._zones.setting is not None:
            done.add("applicator")
        if self._guiding:
            done.add("guide")
        order = ("case", "tumour", "plan", "landmarks", "tip_check", "applicator")
        step = "guide" if self._guiding else next((s for s in order if s not in done), "guide")
        return SetupState(
            step=step,
            done=frozenset(done),
            next_action=self._next_action(step),
            landmarks=rows,
            active_landmark=self._workup.active,
            tip_check_error_mm=self._tip_check.get(self.room.needle_frame, max(self._tip_check.values(), default=None)),
            message=self._message,
        )

    def _next_action(self, step: str) -> str:
        collected = sum(r.collected for r in self._workup.rows())
        actions = {
            "case": "Open a CT",
            "tumour": "Load or pick the tumour",
            "plan": "Set target and entry",
            "landmarks": f"Touch landmark {self._workup.active} with the stylus and collect ({collected} of "
            f"{len(self._workup.names())} done), then apply"
            if self._workup.names()
            else "Load landmarks or a registration",
            "tip_check": "Put the needle tip into a known divot and check it",
            "applicator": "Choose applicator, power and time",
            "guide": "Advance the needle along the plan" if self._guiding else "Start guidance",
        }
        return actions.get(step, "")


def _point(value: tuple[float, float, float]) -> NDArray[np.float64]:
    out = np.array(value, dtype=np.float64)
    out.setflags(write=False)
    return out
