"""The simulated tracker keeps the figures of its configuration, and tells the same story however it is cut."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from drivers.room.geometry import TOOLS, RoomSetup
from drivers.room.operator import Script
from drivers.room.patient import PatientModel
from drivers.room.tracker import TrackerSimulator, measurements


def script_with(room_patient: PatientModel, setup: RoomSetup, duration: float = 60.0, **changes: float) -> Script:
    changed = RoomSetup(
        setup.simulation.model_copy(update=changes),
        setup.needle_from_tip, setup.stylus_from_tip, setup.probe_from_image,
    )  # fmt: skip
    return Script.build(room_patient.geometry, changed, duration)


def test_noise_is_as_configured(room_patient: PatientModel, room_setup: RoomSetup) -> None:
    script = script_with(room_patient, room_setup)
    simulator = TrackerSimulator(script)
    blocks = [simulator.block(n) for n in range(60)]
    times = np.concatenate([b.acquired_s for b in blocks])
    measured = np.concatenate([b.matrices for b in blocks])
    true = np.linalg.inv(room_patient.geometry.ras_from_tracker) @ script.tools(times)
    shift = measured[..., :3, 3] - true[..., :3, 3]
    turn = Rotation.from_matrix(
        (np.swapaxes(true[..., :3, :3], -1, -2) @ measured[..., :3, :3]).reshape(-1, 3, 3)
    ).as_rotvec(degrees=True)
    # 3600 frames of 4 tools: each axis is known to 0.6 %.
    assert shift.reshape(-1, 3).std(axis=0) == pytest.approx([0.15] * 3, rel=0.03)
    assert turn.std(axis=0) == pytest.approx([0.1] * 3, rel=0.03)
    assert np.abs(shift.mean(axis=(0, 1))).max() < 0.006
    tips = (room_patient.geometry.ras_from_tracker @ measured[:, 0] @ room_setup.needle_from_tip)[:, :3, 3]
    error = np.linalg.norm(tips - script.needle_tip(times)[:, :3, 3], axis=1)
    # The marker's turning acts at the tip over the lever arm of 150 mm.
    lever = np.linalg.norm(room_setup.needle_from_tip[:3, 3])
    expected = np.sqrt(3 * 0.15**2 + 2 * (np.deg2rad(0.1) * lever) ** 2)
    assert np.sqrt((error**2).mean()) == pytest.approx(expected, rel=0.03)


def test_latency_and_sampling_are_as_configured(room_patient: PatientModel, room_setup: RoomSetup) -> None:
    simulator = TrackerSimulator(script_with(room_patient, room_setup))
    blocks = [simulator.block(n) for n in range(60)]
    acquired = np.concatenate([b.acquired_s for b in blocks])
    sent = np.concatenate([b.sent_s for b in blocks])
    latency_ms = 1000.0 * (sent - acquired)
    assert latency_ms.min() >= 20.0 - 1e-9
    assert latency_ms.max() <= 40.0 + 1e-9
    # 3600 draws from a uniform distribution of half width 10: mean known to 0.1, deviation 10 / sqrt(3).
    assert latency_ms.mean() == pytest.approx(30.0, abs=0.4)
    assert latency_ms.std() == pytest.approx(10.0 / np.sqrt(3.0), rel=0.04)
    assert np.all(np.diff(sent) >= 0.0)
    period_ms = 1000.0 * np.diff(acquired)
    assert period_ms.mean() == pytest.approx(1000.0 / 60.0, abs=0.01)
    assert period_ms.std() == pytest.approx(np.sqrt(2.0), rel=0.06)
    assert period_ms.min() > 0.0


def test_dropouts_are_short_and_as_frequent_as_configured(room_patient: PatientModel, room_setup: RoomSetup) -> None:
    script = script_with(room_patient, room_setup, duration=8.0)
    simulator = TrackerSimulator(script)
    times = np.arange(0.0, 4000.0, 1.0 / 60.0)
    for tool in range(len(TOOLS)):
        lost = simulator._lost(tool, times)
        # About 800 drop-outs of 40 to 160 ms: the share is known to 4 %.
        assert lost.mean() == pytest.approx(0.02, rel=0.15), TOOLS[tool]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], lost.astype(int), [0]])))
        lengths_ms = (edges[1::2] - edges[::2]) * 1000.0 / 60.0
        assert np.percentile(lengths_ms, 1) >= 40.0 - 17.0
        assert np.percentile(lengths_ms, 97) <= 160.0 + 17.0
    seen = {m.tool for m in measurements(script, 0.0, 8.0)}
    assert seen == set(TOOLS)
    assert len(list(measurements(script, 0.0, 8.0))) < 8 * 60 * 4


def test_a_lost_tool_is_left_out_and_nothing_is_without_dropouts(
    room_patient: PatientModel, room_setup: RoomSetup
) -> None:
    perfect = script_with(room_patient, room_setup, dropout_fraction=0.0, duration=8.0)
    assert sum(1 for m in measurements(perfect, 0.0, 8.0)) == pytest.approx(8 * 60 * 4, abs=8)
    half = script_with(room_patient, room_setup, dropout_fraction=0.5, duration=8.0)
    simulator = TrackerSimulator(half)
    assert simulator._lost(0, np.arange(0.0, 400.0, 1.0 / 60.0)).mean() == pytest.approx(0.5, abs=0.03)


def test_any_stretch_can_be_computed_by_itself(room_patient: PatientModel, room_setup: RoomSetup) -> None:
    script = script_with(room_patient, room_setup, duration=8.0)
    whole = list(measurements(script, -1.0, 5.0))
    parts = list(chain(measurements(script, -1.0, 0.37), measurements(script, 0.37, 2.5), measurements(script, 2.5, 5)))
    assert [(m.frame, m.tool, m.acquired_s, m.sent_s) for m in whole] == [
        (m.frame, m.tool, m.acquired_s, m.sent_s) for m in parts
    ]
    assert all(np.array_equal(a.matrix, b.matrix) for a, b in zip(whole, parts, strict=True))
    other = next(measurements(script, 0.0, 5.0, seed=2))
    same = next(m for m in whole if m.frame == other.frame and m.tool == other.tool)
    assert not np.array_equal(same.matrix, other.matrix)


def test_without_noise_the_chain_leads_back_to_the_truth(room_patient: PatientModel, room_setup: RoomSetup) -> None:
    script = script_with(room_patient, room_setup, tracker_noise_mm=0.0, tracker_noise_deg=0.0, duration=8.0)
    by_frame: dict[int, dict[str, np.ndarray]] = {}
    for m in measurements(script, 6.0, 7.0):
        by_frame.setdefault(m.frame, {})[m.tool] = m.matrix
        by_frame[m.frame]["t"] = np.array([m.acquired_s])
    ras_from_reference = room_patient.geometry.ras_from_reference.matrix
    compared = 0
    for tools in by_frame.values():
        if "Needle" in tools and "Reference" in tools:
            tip = ras_from_reference @ np.linalg.inv(tools["Reference"]) @ tools["Needle"] @ room_setup.needle_from_tip
            assert np.allclose(tip, script.needle_tip(tools["t"])[0], atol=1e-8)
            compared += 1
    assert compared > 40
