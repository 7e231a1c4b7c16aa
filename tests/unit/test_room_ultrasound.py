"""The simulated ultrasound is made from the volume: edges, shadows, speckle and the needle are where they belong."""

from __future__ import annotations

import numpy as np
import pytest

from drivers.room.anatomy import Tissue
from drivers.room.geometry import RoomError, RoomSetup, look_along, unit
from drivers.room.operator import FACE_COLUMN, FACE_ROW, Script, face_from_probe
from drivers.room.patient import PatientModel
from drivers.room.ultrasound import SIZE, UltrasoundSimulator

ROW_MM = 0.32


@pytest.fixture(scope="module")
def simulator(room_patient: PatientModel, room_setup: RoomSetup) -> UltrasoundSimulator:
    return UltrasoundSimulator(room_patient, room_setup, beams=64, samples=224)


def labels_at(model: PatientModel, ras: np.ndarray) -> np.ndarray:
    i, j, k = np.moveaxis(np.rint(model.labels.to_index(ras)).astype(int), -1, 0)
    return np.asarray(model.labels.array[k, j, i])


def face_at(point: np.ndarray, beam: np.ndarray, lateral: np.ndarray, setup: RoomSetup) -> np.ndarray:
    """Pose of the probe with the middle of its face at ``point``."""
    return np.asarray(look_along(point, beam, lateral) @ face_from_probe(setup))


def ras_of_pixel(pose: np.ndarray, setup: RoomSetup, column: float, row: float) -> np.ndarray:
    return np.asarray((pose @ setup.probe_from_image @ [column, row, 0.0, 1.0])[:3])


def rib_view(model: PatientModel, setup: RoomSetup) -> tuple[np.ndarray, float]:
    """A probe straight over a lateral rib, the array along the body; with the rib's depth below the face, mm."""
    centre = np.array([0.0, 0.0, 14.0])
    steps = np.arange(0.0, 175.0, 0.5)[:, None]
    for z in np.arange(0.0, 30.0, 1.0):
        start = np.add(centre, [0.0, 0.0, z])
        ray = labels_at(model, start + steps * np.array([1.0, 0.0, 0.0]))
        rib = np.flatnonzero(ray == Tissue.RIB)
        if rib.size > 14:
            skin = np.flatnonzero(ray > 0)[-1]
            point = start + steps[skin] * np.array([1.0, 0.0, 0.0])
            return face_at(point, np.array([-1.0, 0, 0]), np.array([0, 0, 1.0]), setup), 0.5 * (skin - rib[-1])
    raise AssertionError("no rib found")


def test_a_rib_throws_a_shadow(
    simulator: UltrasoundSimulator, room_patient: PatientModel, room_setup: RoomSetup
) -> None:
    pose, rib_mm = rib_view(room_patient, room_setup)
    image = simulator.picture(pose, 0.0)
    middle = int(FACE_COLUMN)
    rows = FACE_ROW + np.array([rib_mm + 25.0, rib_mm + 70.0]) / ROW_MM
    behind = image[int(rows[0]) : int(rows[1]), middle - 2 : middle + 3].mean()
    at_rib = image[int(FACE_ROW + (rib_mm - 1.5) / ROW_MM) : int(FACE_ROW + (rib_mm + 2.0) / ROW_MM), middle].max()
    # Beside the rib the beam goes on: the nearest column whose way to the same depth meets no bone.
    depth = np.linspace(1.0, rib_mm + 60.0, 200)
    beside = next(
        c
        for c in range(middle + 20, middle + 200)
        if not np.isin(
            labels_at(
                room_patient,
                np.array([ras_of_pixel(pose, room_setup, FACE_COLUMN + (c - FACE_COLUMN) * (50 + d) / (110 + rib_mm),
                                       FACE_ROW + d / ROW_MM) for d in depth]),
            ),
            [Tissue.RIB],
        ).any()
    )  # fmt: skip
    lit = image[int(rows[1]) - 30 : int(rows[1]), beside - 3 : beside + 4].mean()
    assert at_rib > 200
    assert behind < 25
    assert lit > 80


def test_the_tumour_is_dark_where_the_volume_has_it(
    simulator: UltrasoundSimulator, room_patient: PatientModel, room_setup: RoomSetup
) -> None:
    script = Script.build(room_patient.geometry, room_setup, 8.0)
    pose = script.probe(np.array([0.0]))[0]
    image = simulator.picture(pose, 0.0).astype(float)
    row, column = np.mgrid[0:SIZE:3, 0:SIZE:3]
    ras = np.einsum(
        "ab,rcb->rca",
        pose @ room_setup.probe_from_image,
        np.stack([column, row, np.zeros_like(row), np.ones_like(row)], axis=-1),
    )[..., :3]
    inside_ct = np.all((room_patient.labels.to_index(ras) >= 0), axis=-1) & np.all(
        room_patient.labels.to_index(ras) < np.array(room_patient.labels.size) - 1, axis=-1
    )
    labels = np.zeros(row.shape, int)
    labels[inside_ct] = labels_at(room_patient, ras[inside_ct])
    picture = image[::3, ::3]
    target = (labels == Tissue.TUMOUR_1) & (picture > 0)
    near = np.linalg.norm(ras - np.array(room_patient.geometry.target), axis=-1)
    liver = (labels == Tissue.LIVER) & (near < 30.0) & (near > 15.0) & (picture > 0)
    assert target.sum() > 100
    assert picture[target].mean() < picture[liver].mean() - 20
    spread = picture[liver].std() / picture[liver].mean()
    assert 0.08 < spread < 0.5  # speckle, compressed: neither smooth nor salt and pepper


def test_speckle_belongs_to_the_tissue(
    room_patient: PatientModel, room_setup: RoomSetup, simulator: UltrasoundSimulator
) -> None:
    script = Script.build(room_patient.geometry, room_setup, 8.0)
    pose = script.probe(np.array([0.0]))[0]
    held = simulator.picture(pose, 0.0)
    assert np.array_equal(simulator.picture(pose, 0.0), held)
    # Following the tissue: a probe carried along with it sees nearly the same picture, a fixed one another.
    moved = pose.copy()
    moved[:3, 3] += simulator._field.displacement(np.array([room_patient.geometry.target]), 1.0)[0]
    index = np.linalg.inv(pose @ room_setup.probe_from_image) @ [*room_patient.geometry.target, 1.0]
    c, r = int(index[0]), int(index[1])
    window = (slice(r - 45, r + 45), slice(c - 45, c + 45))

    def likeness(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.corrcoef(a[window].ravel().astype(float), b[window].ravel().astype(float))[0, 1])

    following, fixed = simulator.picture(moved, 1.0), simulator.picture(pose, 1.0)
    assert likeness(held, following) > 0.6
    assert likeness(held, fixed) < 0.35


def test_the_needle_is_a_bright_line_in_its_place(
    simulator: UltrasoundSimulator, room_patient: PatientModel, room_setup: RoomSetup
) -> None:
    geometry = room_patient.geometry
    script = Script.build(geometry, room_setup, 8.0)
    pose = script.probe(np.array([0.0]))[0]
    entry, target = np.array(geometry.entry), np.array(geometry.target)
    tip = target - 15.0 * unit(target - entry)
    without = simulator.picture(pose, 0.0).astype(float)
    picture = simulator.picture(pose, 0.0, np.stack([tip, entry - 50.0 * unit(target - entry)])).astype(float)
    change = picture - without
    inverse = np.linalg.inv(pose @ room_setup.probe_from_image)

    def at(ras: np.ndarray) -> np.ndarray:
        c, r = (inverse @ [*ras, 1.0])[:2]
        return change[int(r) - 2 : int(r) + 3, int(c) - 2 : int(c) + 3]

    assert at(tip - 10.0 * unit(target - entry)).max() > 60
    assert at(tip - 25.0 * unit(target - entry)).max() > 60
    assert np.abs(at(tip + 8.0 * unit(target - entry))).max() < 40


def test_the_fan_has_its_form_and_the_rest_is_black(
    simulator: UltrasoundSimulator, room_patient: PatientModel, room_setup: RoomSetup
) -> None:
    script = Script.build(room_patient.geometry, room_setup, 8.0)
    image = simulator.image(script, 3.0)
    assert image.shape == (512, 512)
    assert image.dtype == np.uint8
    assert not image[: int(FACE_ROW) - 13].any()
    assert not image[300:400, :2].any()
    assert not image[510:].any()
    assert image[100:400, 256].mean() > 60


def test_an_unusable_pose_is_refused(simulator: UltrasoundSimulator) -> None:
    pose = np.eye(4)
    pose[0, 3] = np.nan
    with pytest.raises(RoomError, match="not usable"):
        simulator.picture(pose, 0.0)
