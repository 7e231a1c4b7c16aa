"""Breathing: exactly still when held, as large as set in the liver, and invertible."""

from __future__ import annotations

import numpy as np
import pytest

from drivers.room.anatomy import Tissue
from drivers.room.breathing import BreathingField, inhalation
from drivers.room.patient import PatientModel


def centres(model: PatientModel, tissue: Tissue, count: int = 200) -> np.ndarray:
    k, j, i = np.nonzero(np.asarray(model.labels.array) == tissue)
    pick = np.random.default_rng(0).choice(len(k), count, replace=False)
    return model.labels.to_ras(np.stack([i, j, k], axis=1)[pick])


def test_a_held_breath_moves_nothing(room_patient: PatientModel) -> None:
    field = room_patient.breathing(10.0)
    points = centres(room_patient, Tissue.LIVER)
    assert np.array_equal(field.displacement(points, 0.0), np.zeros_like(points))
    assert np.array_equal(field.exhale_from_present(points, 0.0), points)


def test_the_liver_moves_most_and_the_spine_not_at_all(room_patient: PatientModel) -> None:
    field = room_patient.breathing(10.0)
    target = field.displacement(np.array([room_patient.geometry.target]), 1.0)[0]
    assert target[2] == pytest.approx(-10.0, abs=0.3)  # downwards on inhalation, by the peak-to-peak amplitude
    assert target[1] > 1.0
    skin = field.displacement(np.array([p for _, p in room_patient.geometry.landmarks]), 1.0)
    assert np.abs(skin).max() < 1.5
    k, j, i = np.nonzero(np.asarray(room_patient.labels.array) == Tissue.SPINE)
    column = room_patient.labels.to_ras(np.stack([i, j, k], axis=1).astype(float)).mean(axis=0)
    spine = column + np.array([[0.0, 0.0, z] for z in (-70.0, -20.0, 30.0, 70.0)])
    assert np.array_equal(field.displacement(spine, 1.0), np.zeros_like(spine))


def test_the_inverse_finds_the_tissue_again(room_patient: PatientModel) -> None:
    field = room_patient.breathing(20.0)
    exhale = np.concatenate([centres(room_patient, Tissue.LIVER), centres(room_patient, Tissue.BODY)])
    present = exhale + field.displacement(exhale, 0.7)
    assert np.abs(field.exhale_from_present(present, 0.7, iterations=40) - exhale).max() < 0.01


def test_the_field_does_not_fold(room_patient: PatientModel) -> None:
    field = room_patient.breathing(10.0)
    pitch = np.linalg.norm(field.ras_from_index[:3, :3], axis=0)
    steepest = max(float(np.abs(np.diff(field.weight, axis=a)).max() / pitch[2 - a]) for a in range(3))
    assert 10.0 * steepest < 0.8


def test_a_field_of_one_voxel_is_constant() -> None:
    field = BreathingField(np.full((1, 1, 1), 0.5, np.float32), np.eye(4), 10.0)
    assert np.allclose(field.displacement(np.array([[3.0, 4.0, 5.0]]), 1.0), [[0.0, 1.25, -5.0]])


def test_breaths_begin_and_end_at_exhale_and_rest_there() -> None:
    t = np.linspace(0.0, 12.0, 4801)
    depth = inhalation(t, 12.0, 4.0)
    assert depth[0] == 0.0
    assert depth[-1] == 0.0
    assert depth.max() == pytest.approx(1.0, abs=1e-5)
    assert np.abs(np.diff(depth))[[0, -1]].max() < 1e-9  # no jerk when a hold begins or ends
    peaks = (depth[1:-1] > depth[:-2]) & (depth[1:-1] > depth[2:])
    assert peaks.sum() == 3
    assert (depth < 0.1).mean() > 0.35  # more time near exhale than a sine spends there (0.2)
    assert np.array_equal(inhalation(np.array([-1.0, 12.5]), 12.0, 4.0), [0.0, 0.0])
