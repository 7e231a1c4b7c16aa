"""The ground truth file: computed again from its header, it says what its samples say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from drivers.room.geometry import RoomError, RoomSetup
from drivers.room.operator import Script
from drivers.room.patient import PatientModel
from drivers.room.truth import GroundTruth, write_truth
from nav.runtime.events import event_from_dict


def test_header_samples_and_events_agree(room_patient: PatientModel, room_setup: RoomSetup, tmp_path: Path) -> None:
    script = Script.build(room_patient.geometry, room_setup, 9.0, seed=5)
    truth = GroundTruth(script, begin_ns=123_456_789_000, clock_offset_ns=77)
    path = tmp_path / "sub" / "truth.jsonl"
    write_truth(path, truth)
    again = GroundTruth.load(path)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    samples = [x for x in lines if "tip_ras" in x]
    assert len(samples) == 9 * 120
    for sample in samples[::37]:
        assert np.allclose(again.tip_ras(sample["at_ns"]), sample["tip_ras"], atol=1e-6)
        assert again.phase(sample["at_ns"]) == sample["phase"]
        assert again.breath_held(sample["at_ns"]) == sample["held"]
    many = again.tips_ras(np.array([s["at_ns"] for s in samples]))
    assert np.allclose(many, [s["tip_ras"] for s in samples], atol=1e-6)
    events = [(x["at_ns"], event_from_dict(x["event"])) for x in lines if "event" in x]
    assert events == [(truth.local_ns(e.time_s), e.event) for e in script.events]
    assert again.clock_offset_ns == 77
    assert np.array_equal(again.ras_from_reference.matrix, room_patient.geometry.ras_from_reference.matrix)
    assert np.array_equal(np.array(lines[0]["ras_from_reference"]), again.ras_from_reference.matrix)
    assert again.phase(truth.begin_ns - 1) == ""
    assert np.allclose(again.needle_axis(samples[-1]["at_ns"]), script.needle_tip(np.array([8.9]))[0, :3, 2])


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"format": "something else"}\n', encoding="utf-8")
    with pytest.raises(RoomError, match="not a header"):
        GroundTruth.load(path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(RoomError, match=r"x\.jsonl"):
        GroundTruth.load(path)
    with pytest.raises(RoomError, match=r"absent\.jsonl"):
        GroundTruth.load(tmp_path / "absent.jsonl")
