"""The scripted operator: what hands, needle, stylus, probe and breath do, as pure functions of the script's time.

Script time 0 is the beginning of the procedure; before it everything rests. Whatever the duration (8 s or more), the
script holds the touching of all landmarks, a breath-hold at rest with the needle at its entry, and an advance along the
plan; longer ones add free breathing, the whole way to the target, and sweeps of the probe.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from drivers.room.breathing import DIRECTION, inhalation
from drivers.room.geometry import PatientGeometry, RoomError, RoomSetup, look_along, unit
from nav.runtime.events import (
    AddNote,
    ApplyRegistration,
    BreathHold,
    CheckTip,
    CollectLandmark,
    OperatorEvent,
    StartGuidance,
)

__all__ = ["FACE_COLUMN", "FACE_ROW", "MIN_DURATION_S", "Phase", "Script", "ScriptEvent", "face_from_probe"]

F64 = NDArray[np.float64]

#: The shortest procedure that holds everything, s.
MIN_DURATION_S = 8.0

#: Pixel (column, row) of the middle of the probe's face in the ultrasound image.
FACE_COLUMN, FACE_ROW = 255.5, 16.0

_SINGLE_HOLD_UP_TO_S = 24.0
_RAMP_S = 0.15
_REACH_S = 0.25


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the procedure. ``name``: landmarks, check, approach, rest, advance, free or sweep."""

    name: str
    start_s: float
    end_s: float
    held: bool


@dataclass(frozen=True, slots=True)
class ScriptEvent:
    """An action of the operator's foot switch."""

    time_s: float
    event: OperatorEvent


@dataclass(frozen=True, slots=True, eq=False)
class _Track:
    """Points (m, 3) and directions (m, 3) at times (m,); minimum-jerk movement between neighbours."""

    times: F64
    points: F64
    axes: F64

    def at(self, t: F64) -> tuple[F64, F64]:
        upper = np.clip(np.searchsorted(self.times, t, side="right"), 1, len(self.times) - 1)
        lower = upper - 1
        span = np.maximum(self.times[upper] - self.times[lower], 1e-9)
        u = np.clip((t - self.times[lower]) / span, 0.0, 1.0)
        s = (u * u * u * (10.0 - 15.0 * u + 6.0 * u * u))[:, None]
        points = self.points[lower] + s * (self.points[upper] - self.points[lower])
        axes = self.axes[lower] + s * (self.axes[upper] - self.axes[lower])
        return points, axes / np.linalg.norm(axes, axis=1, keepdims=True)


@dataclass(frozen=True, slots=True)
class _Move:
    """A change of the needle's depth at constant speed with short ramps."""

    start_s: float
    end_s: float
    from_mm: float
    to_mm: float

    def progress(self, t: F64) -> F64:
        """0 before, 1 after."""
        whole = self.end_s - self.start_s
        ramp = min(_RAMP_S, 0.4 * whole)
        u = np.clip(t - self.start_s, 0.0, whole)
        speed = 1.0 / (whole - ramp)
        early = np.minimum(u, ramp)
        late = np.maximum(u - (whole - ramp), 0.0)
        return np.asarray(speed * (u - early + early**2 / (2.0 * ramp) - late**2 / (2.0 * ramp)))


def _frames(points: F64, axes: F64, near_x: F64) -> F64:
    """(n, 4, 4) poses with +Z along ``axes``."""
    x = near_x - (axes @ near_x)[:, None] * axes
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    out = np.zeros((len(points), 4, 4))
    out[:, :3, 0], out[:, :3, 1], out[:, :3, 2], out[:, :3, 3] = x, np.cross(axes, x), axes, points
    out[:, 3, 3] = 1.0
    return out


def face_from_probe(setup: RoomSetup) -> F64:
    """(4, 4) from Probe to the probe's face: origin in its middle, +Z the middle beam, +X along the array."""
    m = setup.probe_from_image
    middle = m[:3, :3] @ np.array([FACE_COLUMN, FACE_ROW, 0.0]) + m[:3, 3]
    return np.asarray(np.linalg.inv(look_along(middle, m[:3, 1], m[:3, 0])))


class _Writer:
    """Writes phases and events down in order."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self.events: list[ScriptEvent] = []
        self.now = 0.0

    def phase(self, name: str, duration_s: float, held: bool) -> Phase:
        phase = Phase(name, self.now, self.now + duration_s, held)
        if not self.phases or self.phases[-1].name != name:
            self.say(self.now + 0.01, AddNote(f"phase: {name}"))
        self.phases.append(phase)
        self.now = phase.end_s
        return phase

    def say(self, time_s: float, event: OperatorEvent) -> None:
        self.events.append(ScriptEvent(time_s, event))


@dataclass(frozen=True, slots=True, eq=False)
class Script:
    """The whole procedure.

    Attributes
    ----------
    duration_s : float
    phases : tuple of Phase
        Without gaps from 0 to ``duration_s``.
    events : tuple of ScriptEvent
        In order of time.
    touched : (8, 3) float64
        Where the operator really puts the stylus for each landmark, RAS mm (picking error included).
    """

    geometry: PatientGeometry
    setup: RoomSetup
    seed: int
    duration_s: float
    phases: tuple[Phase, ...]
    events: tuple[ScriptEvent, ...]
    touched: F64
    needle_track: _Track
    stylus_track: _Track
    needle_near_x: F64
    needle_line: tuple[F64, F64]
    moves: tuple[_Move, ...]
    breaths: tuple[tuple[float, float], ...]
    sweeps: tuple[tuple[float, float], ...]
    _tremor_hz: F64
    _tremor_phase: F64

    @classmethod
    def build(cls, geometry: PatientGeometry, setup: RoomSetup, duration_s: float, seed: int | None = None) -> Self:
        """Write the script for a duration (s, at least `MIN_DURATION_S`).

        Raises
        ------
        RoomError
            When the duration is too short.
        """
        if not MIN_DURATION_S <= duration_s <= 86400.0:
            raise RoomError(
                f"duration {duration_s:g} s: a procedure with landmarks, a rest and an advance needs "
                f"{MIN_DURATION_S:g} s or more (at most 86400)"
            )
        sim = setup.simulation
        number = sim.seed if seed is None else seed
        rng = np.random.default_rng([number, 0x0B])
        touched, entry, axis, tremor_hz, tremor_phase = _hand(geometry, setup, rng)
        length = float(np.linalg.norm(np.subtract(geometry.target, geometry.entry)))
        writer = _Writer()
        stylus_keys = _write_landmarks(writer, geometry, touched, duration_s - MIN_DURATION_S)
        leave_divot = writer.now
        moves = _write_procedure(writer, duration_s, length, sim.advance_mm_s, sim.breathing_period_s)
        events = tuple(sorted(writer.events, key=lambda e: e.time_s))
        divot = np.array(geometry.divot)
        needle_track = _Track(
            np.array([-1.0, leave_divot, leave_divot + _REACH_S]),
            np.stack([divot, divot, entry]),
            np.stack([axis] * 3),
        )
        return cls(
            geometry=geometry,
            setup=setup,
            seed=number,
            duration_s=duration_s,
            phases=tuple(writer.phases),
            events=events,
            touched=touched,
            needle_track=needle_track,
            stylus_track=stylus_keys,
            needle_near_x=np.array([0.3, 0.5, 0.8]),
            needle_line=(entry, axis),
            moves=tuple(moves),
            breaths=tuple((p.start_s, p.end_s) for p in writer.phases if not p.held),
            sweeps=tuple((p.start_s, p.end_s) for p in writer.phases if p.name == "sweep"),
            _tremor_hz=tremor_hz,
            _tremor_phase=tremor_phase,
        )

    def phase_at(self, t: float) -> Phase | None:
        """The phase at a time; None before and after."""
        at = bisect_right(self.phases, t, key=lambda p: p.start_s) - 1
        return self.phases[at] if at >= 0 and t < self.phases[at].end_s else None

    def held(self, t: float) -> bool:
        """Whether the breath is held (before and after the script the patient rests at exhale)."""
        phase = self.phase_at(t)
        return phase.held if phase is not None else True

    def breath(self, t: F64) -> F64:
        """Depth of breath, 0 (exhale, held) to 1, at times (n,) s."""
        times = np.atleast_1d(np.asarray(t, dtype=np.float64))
        out = np.zeros_like(times)
        for (start, end), now in _spells(self.breaths, times):
            out[now] = inhalation(times[now] - start, end - start, self.setup.simulation.breathing_period_s)
        return out

    def depth(self, t: F64) -> F64:
        """How far (mm) the needle has been advanced from the skin along its line, at times (n,) s."""
        times = np.atleast_1d(np.asarray(t, dtype=np.float64))
        out = np.zeros_like(times)
        latest = np.searchsorted([m.start_s for m in self.moves], times, side="right") - 1
        for n in np.unique(latest[latest >= 0]):
            move, now = self.moves[n], latest == n
            out[now] = move.from_mm + (move.to_mm - move.from_mm) * move.progress(times[now])
        return out

    def _shake(self, tool: int, t: F64) -> F64:
        """(n, 3) mm: tremor of the hand, three sinusoids of 7 to 11 Hz per axis."""
        waves = np.sin(2.0 * np.pi * self._tremor_hz[tool] * t[:, None, None] + self._tremor_phase[tool])
        return np.asarray(waves.sum(axis=2) * (self.setup.simulation.tremor_mm * np.sqrt(2.0 / 3.0)))

    def needle_tip(self, t: F64) -> F64:
        """(n, 4, 4) ``ras_from_needle_tip`` at times (n,) s. Inside the body the needle rides on the tissue."""
        times = np.atleast_1d(np.asarray(t, dtype=np.float64))
        points, axes = self.needle_track.at(times)
        depth = self.depth(times)
        sim = self.setup.simulation
        motion = np.array(self.geometry.path_motion)
        length = float(np.linalg.norm(np.subtract(self.geometry.target, self.geometry.entry)))
        weight = np.interp(depth / length, np.linspace(0.0, 1.0, len(motion)), motion) * (depth > 0.5)
        ride = (self.breath(times) * weight * sim.breathing_mm)[:, None] * DIRECTION
        points = points + depth[:, None] * axes + ride + self._shake(0, times)
        return _frames(points, axes, self.needle_near_x)

    def stylus_tip(self, t: F64) -> F64:
        """(n, 4, 4) ``ras_from_stylus_tip`` at times (n,) s."""
        times = np.atleast_1d(np.asarray(t, dtype=np.float64))
        points, axes = self.stylus_track.at(times)
        return _frames(points + self._shake(1, times), axes, np.array([0.21, 0.33, 0.92]))

    def probe(self, t: F64) -> F64:
        """(n, 4, 4) ``ras_from_probe`` (marker) at times (n,) s: the face stays on the skin, the plane is tilted."""
        times = np.atleast_1d(np.asarray(t, dtype=np.float64))
        geometry = self.geometry
        contact, beam = np.array(geometry.probe_contact), unit(geometry.probe_axis)
        lateral = unit(np.array(geometry.probe_lateral) - (np.array(geometry.probe_lateral) @ beam) * beam)
        tilt = np.deg2rad(2.0) * np.sin(2.0 * np.pi * np.maximum(times, 0.0) / 7.0) * np.clip(times, 0.0, 1.0)
        for (start, end), now in _spells(self.sweeps, times):
            u = np.clip((times[now] - start) / (end - start), 0.0, 1.0)
            tilt[now] += np.deg2rad(14.0) * np.sin(2.0 * np.pi * u) * np.sqrt(np.sin(np.pi * u))
        elevation = np.cross(beam, lateral)
        axes = np.cos(tilt)[:, None] * beam + np.sin(tilt)[:, None] * elevation
        face = _frames(contact + 0.5 * self._shake(2, times), axes, lateral)
        return np.asarray(face @ face_from_probe(self.setup))

    def tools(self, t: F64) -> F64:
        """(n, 4, 4, 4) true ``ras_from_marker`` of Needle, Stylus, Probe, Reference (in this order) at times (n,)."""
        times = np.atleast_1d(np.asarray(t, dtype=np.float64))
        out = np.empty((len(times), 4, 4, 4))
        out[:, 0] = self.needle_tip(times) @ np.linalg.inv(self.setup.needle_from_tip)
        out[:, 1] = self.stylus_tip(times) @ np.linalg.inv(self.setup.stylus_from_tip)
        out[:, 2] = self.probe(times)
        out[:, 3] = np.array(self.geometry.reference_marker).reshape(4, 4)
        return out


def _hand(geometry: PatientGeometry, setup: RoomSetup, rng: np.random.Generator) -> tuple[F64, F64, F64, F64, F64]:
    """The operator's errors: touched points, true entry and axis of the needle, tremor."""
    sim = setup.simulation
    marks = np.array([p for _, p in geometry.landmarks])
    touched = marks + rng.standard_normal(marks.shape) * (sim.picking_rms_mm / np.sqrt(3.0))
    planned_entry, target = np.array(geometry.entry), np.array(geometry.target)
    plan = unit(target - planned_entry)
    side = look_along(planned_entry, plan, [0.1, 0.2, 0.9])
    turn, lean = rng.uniform(0.0, 2.0 * np.pi, 2)
    entry = planned_entry + side[:3, :2] @ np.array([np.cos(turn), np.sin(turn)]) * sim.aiming_mm
    tilt = np.deg2rad(sim.aiming_deg)
    axis = np.cos(tilt) * plan + np.sin(tilt) * (side[:3, :2] @ np.array([np.cos(lean), np.sin(lean)]))
    tremor_hz = rng.uniform(7.0, 11.0, (3, 3, 3))
    tremor_phase = rng.uniform(0.0, 2.0 * np.pi, (3, 3, 3))
    return touched, entry, axis, tremor_hz, tremor_phase


def _write_landmarks(writer: _Writer, geometry: PatientGeometry, touched: F64, spare_s: float) -> _Track:
    """Touch every landmark, press the foot switch, apply the registration, check the needle's tip in its divot."""
    reach = min(0.13 + 0.02 * spare_s, 0.40)
    dwell = min(0.38 + 0.02 * spare_s, 0.60)
    normals = np.array(geometry.landmark_normals)
    lean = np.array([0.0, 0.35, 0.1])
    axes = np.array([unit(-n - lean) for n in normals])
    times, points, directions = [-1.0, 0.05], [touched[0] + 25.0 * normals[0]] * 2, [axes[0]] * 2
    writer.say(0.03, BreathHold(True))
    start = 0.05
    for n, (name, _) in enumerate(geometry.landmarks):
        arrive = start + reach
        times += [arrive, arrive + dwell]
        points += [touched[n]] * 2
        directions += [axes[n]] * 2
        # The foot switch goes down where the averaging window (0.25 s before the event's arrival, 20 to 40 ms later)
        # lies in the middle of the dwell: at least 50 ms of rest remain on both sides.
        window = 0.25
        press = arrive + 0.5 * (dwell + window) - 0.03
        writer.say(press, CollectLandmark(name=name, dwell_s=window))
        start = arrive + dwell
    times.append(start + 0.3)
    points.append(touched[-1] + 60.0 * normals[-1])
    directions.append(axes[-1])
    writer.phase("landmarks", start, True)
    easy = min(1.0, spare_s / 10.0)
    check = writer.phase("check", 0.18 + 0.6 * easy, True)
    writer.say(check.start_s + 0.02, ApplyRegistration())
    writer.say(check.start_s + 0.08 + 0.4 * easy, CheckTip(divot=geometry.divot_name))
    writer.say(check.start_s + 0.13 + 0.45 * easy, StartGuidance())
    return _Track(np.array(times), np.array(points), np.array(directions))


def _advance_s(distance_mm: float, speed_mm_s: float) -> float:
    return distance_mm / speed_mm_s + _RAMP_S


def _write_procedure(
    writer: _Writer, end_s: float, length_mm: float, speed_mm_s: float, period_s: float
) -> list[_Move]:
    """Rest, advance, and what longer durations have room for."""
    moves: list[_Move] = []
    spare = end_s - MIN_DURATION_S

    def breathe(name: str, duration_s: float, withdraw_from: float = 0.0) -> None:
        writer.say(writer.now - 0.1, BreathHold(False))
        phase = writer.phase(name, duration_s, False)
        if withdraw_from > 0.0:
            moves.append(_Move(phase.start_s + 0.5, phase.start_s + 0.5 + withdraw_from / 30.0, withdraw_from, 0.0))
        if writer.now < end_s - 1e-6:
            writer.say(writer.now + 0.05, BreathHold(True))

    def puncture(rest_s: float) -> float:
        """Rest at the entry, advance as far as time allows, rest again; gives the depth reached."""
        writer.phase("rest", rest_s, True)
        left = end_s - writer.now
        whole = _advance_s(length_mm, speed_mm_s)
        reached = min(length_mm, (max(left - 0.2, 0.5) - _RAMP_S) * speed_mm_s)
        depth = reached if left < whole + 0.3 else length_mm
        phase = writer.phase("advance", _advance_s(depth, speed_mm_s), True)
        moves.append(_Move(phase.start_s, phase.end_s, 0.0, depth))
        return depth

    if end_s < _SINGLE_HOLD_UP_TO_S:
        writer.phase("approach", _REACH_S, True)
        puncture(min(1.55 + 0.1 * spare, 2.5))
        writer.phase("rest", max(end_s - writer.now, 0.0), True)
        return moves
    breathe("free", period_s if end_s < 32.0 else 2.0 * period_s)
    depth = puncture(2.0)
    cycle = 2.0 * period_s + 2.0 + _advance_s(length_mm, speed_mm_s)
    while writer.now < end_s - 1e-6:
        left = end_s - writer.now
        if left < 4.0 + period_s:
            writer.phase("rest", left, True)
            break
        writer.phase("rest", 2.0, True)
        left = end_s - writer.now
        if left < cycle + 2.0:
            breathe("sweep", left)
            break
        breathe("sweep", max(2.0 * period_s, 0.5 + depth / 30.0), withdraw_from=depth)
        depth = puncture(2.0)
    return moves


def _spells(
    spells: tuple[tuple[float, float], ...], times: F64
) -> Iterator[tuple[tuple[float, float], NDArray[np.bool_]]]:
    """Those of the ordered ``spells`` that hold any of ``times``, each with the mask of the times within it."""
    latest = np.searchsorted([start for start, _ in spells], times, side="right") - 1
    for n in np.unique(latest[latest >= 0]):
        now = (latest == n) & (times <= spells[n][1])
        if now.any():
            yield spells[n], now
