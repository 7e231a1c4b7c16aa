"""A real CT with labels plays the patient of the simulated room."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from drivers.room.fluoro import FluoroSimulator
from drivers.room.geometry import RoomSetup
from drivers.room.operator import Script
from drivers.room.patient import LabelRoles, patient_from_ct
from drivers.room.ultrasound import UltrasoundSimulator
from nav.io.ct import load_ct
from nav.io.labels import read_label_map


def test_a_liver_ct_becomes_a_patient(shared_data: Path, room_setup: RoomSetup, tmp_path: Path) -> None:
    ct = load_ct(shared_data / "ct_liver" / "dicom").volume
    labels = read_label_map(shared_data / "ct_liver" / "labels.nrrd").volume
    roles = LabelRoles(tumour=(451,), liver=(449, 451, 465, 481), bone=(65,), vessels=(465, 481), avoid=(257, 321))
    model = patient_from_ct(ct, labels, roles, cache=tmp_path)
    geometry = model.geometry
    entry, target = np.array(geometry.entry), np.array(geometry.target)
    assert 60.0 <= np.linalg.norm(entry - target) <= 110.0
    points = entry + np.linspace(0.0, 1.0, 300)[:, None] * (target - entry)
    i, j, k = np.rint(model.labels.to_index(points)).astype(int).T
    crossed = set(model.labels.array[k, j, i].tolist())
    assert 451 in crossed
    assert not crossed & {65, 257, 321}
    script = Script.build(geometry, room_setup, 20.0)
    advance = next(p for p in script.phases if p.name == "advance")
    picture = UltrasoundSimulator(model, room_setup).image(script, advance.end_s)
    assert 30.0 < picture[60:400, 200:312].mean() < 220.0
    slice_, matrix = FluoroSimulator(model, room_setup).image(script, advance.end_s)
    index = np.linalg.inv(matrix) @ [*script.needle_tip(np.array([advance.end_s]))[0, :3, 3], 1.0]
    around = slice_[int(index[1]) - 4 : int(index[1]) + 5, int(index[0]) - 4 : int(index[0]) + 5]
    assert around.max() > 600  # the needle's metal at its tip
