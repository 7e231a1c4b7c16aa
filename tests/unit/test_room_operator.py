"""The scripted operator: everything is there whatever the duration, at its time, and true to what is declared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivers.room.geometry import RoomError, RoomSetup
from drivers.room.operator import Script
from drivers.room.patient import PatientModel
from nav.runtime.events import ApplyRegistration, BreathHold, CheckTip, CollectLandmark, StartGuidance

DURATIONS = (8.0, 9.5, 15.0, 23.99, 24.0, 33.0, 60.0, 120.0)


def times_of(script: Script, kind: type) -> list[float]:
    return [e.time_s for e in script.events if isinstance(e.event, kind)]


@pytest.mark.parametrize("duration", DURATIONS)
def test_every_duration_holds_landmarks_rest_and_advance(
    duration: float, room_patient: PatientModel, room_setup: RoomSetup
) -> None:
    script = Script.build(room_patient.geometry, room_setup, duration)
    assert script.phases[0].start_s == 0.0
    assert script.phases[-1].end_s == pytest.approx(duration)
    for before, after in zip(script.phases[:-1], script.phases[1:], strict=True):
        assert before.end_s == after.start_s
    for name in ("rest", "advance"):
        assert any(p.name == name and p.held and p.end_s - p.start_s >= 1.5 for p in script.phases), name
    collected = [e.event.name for e in script.events if isinstance(e.event, CollectLandmark)]
    assert collected == [name for name, _ in room_patient.geometry.landmarks]
    assert [e.time_s for e in script.events] == sorted(e.time_s for e in script.events)
    applied, checked, started = (times_of(script, k)[0] for k in (ApplyRegistration, CheckTip, StartGuidance))
    first_rest = next(p for p in script.phases if p.name == "rest")
    assert times_of(script, CollectLandmark)[-1] < applied < checked < started < first_rest.start_s


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(duration=st.floats(8.0, 200.0), seed=st.integers(0, 1000))
def test_the_declared_hold_is_a_real_one(
    duration: float, seed: int, room_patient: PatientModel, room_setup: RoomSetup
) -> None:
    script = Script.build(room_patient.geometry, room_setup, duration, seed)
    t = np.arange(0.0, duration, 0.02)
    declared = np.zeros(len(t), bool)
    for item in script.events:
        if isinstance(item.event, BreathHold):
            declared[t >= item.time_s] = item.event.held
    breath = script.breath(t)
    assert np.all(breath[declared] == 0.0)
    assert np.all(breath[[script.held(float(x)) for x in t]] == 0.0)
    depth = script.depth(t)
    length = np.linalg.norm(np.subtract(room_patient.geometry.target, room_patient.geometry.entry))
    assert depth.min() >= -1e-9
    assert depth.max() <= length + 1e-9
    moving = np.array([(p := script.phase_at(float(x))) is not None and p.name in ("rest", "check") for x in t])
    speed = np.gradient(depth, t)
    inner = moving & np.roll(moving, 1) & np.roll(moving, -1)
    assert np.abs(speed[inner][1:-1]).max(initial=0.0) < 1e-6


@pytest.mark.parametrize("duration", [8.0, 12.0, 40.0])
def test_the_stylus_rests_while_a_landmark_is_averaged(
    duration: float, room_patient: PatientModel, room_setup: RoomSetup
) -> None:
    script = Script.build(room_patient.geometry, room_setup, duration)
    collected = [e for e in script.events if isinstance(e.event, CollectLandmark)]
    for n, item in enumerate(collected):
        assert isinstance(item.event, CollectLandmark)
        # The event arrives 20 to 40 ms later; 30 ms more for a busy computer.
        window = np.arange(item.time_s + 0.02 - item.event.dwell_s, item.time_s + 0.07, 0.005)
        tips = script.stylus_tip(window)[:, :3, 3]
        assert np.linalg.norm(tips - script.touched[n], axis=1).max() < 0.7  # the hand's tremor only
        assert np.linalg.norm(tips.mean(axis=0) - script.touched[n]) < 0.15


def test_the_needle_waits_in_the_divot_and_then_at_its_entry(room_patient: PatientModel, room_setup: RoomSetup) -> None:
    script = Script.build(room_patient.geometry, room_setup, 8.0)
    checked = times_of(script, CheckTip)[0]
    tips = script.needle_tip(np.arange(checked - 0.3, checked + 0.06, 0.01))[:, :3, 3]
    assert np.linalg.norm(tips - room_patient.geometry.divot, axis=1).max() < 0.7
    rest = next(p for p in script.phases if p.name == "rest")
    tips = script.needle_tip(np.linspace(rest.start_s, rest.end_s, 50))[:, :3, 3]
    assert np.linalg.norm(tips - room_patient.geometry.entry, axis=1).max() < room_setup.simulation.aiming_mm + 0.7


def test_the_advance_keeps_its_speed_and_direction(room_patient: PatientModel, room_setup: RoomSetup) -> None:
    steady = RoomSetup(
        room_setup.simulation.model_copy(update={"tremor_mm": 0.0}),
        room_setup.needle_from_tip, room_setup.stylus_from_tip, room_setup.probe_from_image,
    )  # fmt: skip
    script = Script.build(room_patient.geometry, steady, 20.0)
    advance = next(p for p in script.phases if p.name == "advance")
    t = np.arange(advance.start_s + 0.2, advance.end_s - 0.2, 0.05)
    poses = script.needle_tip(t)
    velocity = np.gradient(poses[:, :3, 3], t, axis=0)[1:-1]
    assert np.allclose(np.linalg.norm(velocity, axis=1), 10.0, rtol=1e-6)
    assert np.allclose(velocity / 10.0, poses[1:-1, :3, 2], atol=1e-6)
    plan = np.subtract(room_patient.geometry.target, room_patient.geometry.entry)
    angle = np.degrees(np.arccos(poses[0, :3, 2] @ plan / np.linalg.norm(plan)))
    assert angle == pytest.approx(steady.simulation.aiming_deg, abs=1e-6)
    end = script.needle_tip(np.array([advance.end_s + 0.1]))[0, :3, 3]
    assert np.linalg.norm(end - room_patient.geometry.target) < 4.0


def test_inside_the_body_the_needle_rides_on_the_tissue(room_patient: PatientModel, room_setup: RoomSetup) -> None:
    script = Script.build(room_patient.geometry, room_setup, 45.0)
    sweep = next(p for p in script.phases if p.name == "sweep")
    t = np.linspace(sweep.start_s, sweep.end_s, 800)
    low = script.needle_tip(t)[:, 2, 3]
    assert np.ptp(low[script.depth(t) > 60.0]) > 8.0


def test_poses_are_rigid_and_steady(room_patient: PatientModel, room_setup: RoomSetup) -> None:
    script = Script.build(room_patient.geometry, room_setup, 45.0)
    tools = script.tools(np.linspace(-2.0, 46.0, 500))
    rotations = tools[..., :3, :3]
    assert np.allclose(rotations @ np.swapaxes(rotations, -1, -2), np.eye(3), atol=1e-9)
    assert np.allclose(np.linalg.det(rotations), 1.0)
    fine = script.tools(np.arange(0.0, 45.0, 1.0 / 240.0))
    jumps = np.linalg.norm(np.diff(fine[:, :, :3, 3], axis=0), axis=2).max(axis=0) * 240.0
    assert np.all(jumps < 2500.0), f"mm/s: {jumps}"  # nothing jumps: fast hands at most
    assert np.array_equal(tools[0, 3], tools[-1, 3])


def test_picking_errors_have_their_size_and_depend_on_the_seed(
    room_patient: PatientModel, room_setup: RoomSetup
) -> None:
    marks = np.array([p for _, p in room_patient.geometry.landmarks])
    errors = np.array(
        [Script.build(room_patient.geometry, room_setup, 8.0, seed).touched - marks for seed in range(200)]
    )
    # 4800 normal numbers: the rms is known to 1 %.
    assert np.sqrt((errors**2).sum(axis=2).mean()) == pytest.approx(1.0, rel=0.04)
    assert np.abs(errors.mean(axis=(0, 1))).max() < 0.06
    again = Script.build(room_patient.geometry, room_setup, 8.0, 3)
    assert np.array_equal(again.touched - marks, errors[3])


def test_too_short_a_procedure_is_refused(room_patient: PatientModel, room_setup: RoomSetup) -> None:
    with pytest.raises(RoomError, match=r"duration 7\.9 s.*8 s or more"):
        Script.build(room_patient.geometry, room_setup, 7.9)
