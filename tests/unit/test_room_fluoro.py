"""The simulated CT-fluoroscopy: slices of the volume at their place, 4 mm thick, noisy, with the needle's metal."""

from __future__ import annotations

import numpy as np
import pytest

from drivers.room.anatomy import Tissue
from drivers.room.fluoro import SLICE_MM, FluoroSimulator
from drivers.room.geometry import RoomSetup, unit
from drivers.room.operator import Script
from drivers.room.patient import PatientModel


@pytest.fixture(scope="module")
def simulator(room_patient: PatientModel, room_setup: RoomSetup) -> FluoroSimulator:
    return FluoroSimulator(room_patient, room_setup, size=128)


def ras_of_pixels(matrix: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    row, column = np.mgrid[0 : shape[0], 0 : shape[1]]
    index = np.stack([column, row, np.zeros_like(row), np.ones_like(row)], axis=-1)
    return np.asarray((index @ matrix.T)[..., :3])


def test_a_slice_shows_the_volume_at_its_place(
    simulator: FluoroSimulator, room_patient: PatientModel, room_setup: RoomSetup
) -> None:
    picture, matrix = simulator.picture(6.0, 0.0)
    assert picture.dtype == np.int16
    assert matrix[2, 3] == 6.0
    assert matrix[0, 0] < 0.0  # columns run to the patient's left
    assert matrix[1, 1] < 0.0  # rows run to the back
    assert np.linalg.norm(matrix[:3, 2]) == pytest.approx(SLICE_MM)
    ras = ras_of_pixels(matrix, picture.shape)
    index = room_patient.clean.to_index(ras)
    inside = np.all((index >= 1) & (index < np.array(room_patient.clean.size) - 2), axis=-1)
    i, j, k = np.rint(index[inside]).astype(int).T
    truth = np.stack([room_patient.clean.array[k + d, j, i] for d in (-1, 0, 1)]).mean(axis=0)
    labels = room_patient.labels.array[k, j, i]
    liver = labels == Tissue.LIVER
    difference = picture[inside] - truth
    assert difference[liver].mean() == pytest.approx(0.0, abs=4.0)
    assert difference[liver].std() == pytest.approx(room_setup.simulation.fluoro_noise_hu, rel=0.2)
    assert np.corrcoef(picture[inside], truth)[0, 1] > 0.97


def test_breathing_moves_the_liver_through_the_slice(simulator: FluoroSimulator, room_patient: PatientModel) -> None:
    target = np.array(room_patient.geometry.target)
    ras = ras_of_pixels(simulator.ras_from_index(target[2]), (128, 128))
    at_target = np.linalg.norm(ras - target, axis=-1) < 5.0
    frames = [simulator.picture(target[2], 0.0, frame=n)[0][at_target].mean() for n in range(4)]
    inhaled = [simulator.picture(target[2], 1.0, frame=n)[0][at_target].mean() for n in range(4)]
    # The tumour of 20 mm has gone 10 mm down: its rim and liver stand in its place.
    assert np.mean(inhaled) > np.mean(frames) + 20.0


def test_the_needle_is_metal_on_its_line_with_streaks(simulator: FluoroSimulator, room_patient: PatientModel) -> None:
    geometry = room_patient.geometry
    entry, target = np.array(geometry.entry), np.array(geometry.target)
    direction = unit(target - entry)
    tip = target - 20.0 * direction
    needle = np.stack([tip - 150.0 * direction, tip])
    without, matrix = simulator.picture(round(tip[2]), 0.0)
    picture, _ = simulator.picture(round(tip[2]), 0.0, needle)
    change = picture.astype(float) - without
    ras = ras_of_pixels(matrix, picture.shape)
    hot = ras[change > 0.6 * change.max()]
    away = np.linalg.norm(np.cross(hot - tip, direction), axis=1)
    assert change.max() > 300
    assert away.max() < simulator.pitch_mm + 2.5
    assert np.all((hot - tip) @ direction < simulator.pitch_mm)
    assert change.min() < -100  # the dark streak
    far = np.linalg.norm(ras - tip, axis=-1) > 80.0
    assert np.abs(change[far]).max() < 1.0


def test_a_needle_out_of_the_slice_is_not_seen(simulator: FluoroSimulator, room_patient: PatientModel) -> None:
    tip = np.add(room_patient.geometry.target, [0.0, 0.0, 40.0])
    level = np.stack([np.add(tip, [100.0, 0.0, 0.0]), tip])
    oblique = np.stack([np.add(tip, [100.0, 0.0, 50.0]), tip])
    without, _ = simulator.picture(0.0, 0.0)
    for needle in (level, oblique):
        assert np.array_equal(simulator.picture(0.0, 0.0, needle)[0], without)


def test_the_slice_follows_the_tip(
    simulator: FluoroSimulator, room_patient: PatientModel, room_setup: RoomSetup
) -> None:
    script = Script.build(room_patient.geometry, room_setup, 20.0)
    advance = next(p for p in script.phases if p.name == "advance")
    for t in (advance.start_s + 1.0, advance.end_s - 0.5):
        _, matrix = simulator.image(script, t)
        assert abs(matrix[2, 3] - script.needle_tip(np.array([t]))[0, 2, 3]) <= 0.5
    resting, matrix = simulator.image(script, 0.0)
    assert matrix[2, 3] == round(room_patient.geometry.target[2])
    assert not np.array_equal(simulator.image(script, 0.0, frame=1)[0], resting)  # the noise is new
