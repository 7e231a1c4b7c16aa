"""The simulated patient: looks like a CT, is the same every time, and can be reached."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from drivers.room.anatomy import PatientParameters, Tissue, acquire, build_anatomy
from drivers.room.geometry import PatientGeometry, RoomError
from drivers.room.patient import BUILT_IN_ROLES, LabelRoles, PatientModel, build_patient, patient_case, patient_from_ct
from nav.geometry.volume import Volume

COARSE = PatientParameters(size=(64, 50, 36), spacing_mm=(5.6, 5.6, 6.2))


def labels_along(model: PatientModel, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    points = start + np.linspace(0.0, 1.0, 400)[:, None] * (end - start)
    i, j, k = np.rint(model.labels.to_index(points)).astype(int).T
    return np.asarray(model.labels.array[k, j, i])


def test_painting_is_decided_by_the_seed() -> None:
    one, same = build_anatomy(COARSE), build_anatomy(COARSE)
    other = build_anatomy(PatientParameters(seed=2, size=COARSE.size, spacing_mm=COARSE.spacing_mm))
    assert np.array_equal(one.hu, same.hu)
    assert np.array_equal(one.labels, same.labels)
    assert np.array_equal(acquire(one.hu, 11.0, 1), acquire(same.hu, 11.0, 1))
    assert one.tumours != other.tumours
    assert not np.array_equal(one.labels, other.labels)


def test_tissues_have_the_values_of_a_contrast_ct(room_patient: PatientModel) -> None:
    ct, labels = np.asarray(room_patient.ct.array), np.asarray(room_patient.labels.array)
    assert ct.dtype == np.int16
    expected = {Tissue.LIVER: 112, Tissue.SPLEEN: 122, Tissue.LUNG: -850, Tissue.TUMOUR_1: 58, Tissue.HEART: 135}
    for tissue, hu in expected.items():
        assert np.median(ct[labels == tissue]) == pytest.approx(hu, abs=9), tissue.name
    assert np.median(ct[labels == Tissue.RIB]) > 180
    assert np.median(ct[labels == Tissue.PORTAL_VEIN]) > 150
    assert np.median(ct[labels == Tissue.OUTSIDE]) == pytest.approx(-1000, abs=5)


def test_noise_is_correlated_and_has_its_size(room_patient: PatientModel) -> None:
    noise = room_patient.ct.array.astype(float) - room_patient.clean.array
    deep = np.zeros(noise.shape, bool)
    deep[:, 80:130, 150:220] = np.asarray(room_patient.labels.array)[:, 80:130, 150:220] == Tissue.LIVER
    values = noise[deep]
    # The scanner's blur also flattens some of the tissue's own texture, so a little below the 11 HU set.
    assert 9.0 < values.std() < 12.5
    both = deep[:, :, 1:] & deep[:, :, :-1]
    a, b = noise[:, :, 1:][both], noise[:, :, :-1][both]
    assert 0.25 < np.corrcoef(a, b)[0, 1] < 0.8


def test_edges_show_partial_volume(room_patient: PatientModel) -> None:
    # Along a ray through the skin some voxel lies between air and tissue, and not everywhere at the same share.
    row = room_patient.clean.array[60, :, 100:156].astype(float)
    between = ((row > -900) & (row < -150)).sum(axis=0)
    assert (between >= 1).mean() > 0.8
    shares = row[(row > -900) & (row < -150)]
    assert np.ptp(shares) > 400


def test_the_planned_path_is_clear_and_ends_in_the_tumour(room_patient: PatientModel) -> None:
    geometry = room_patient.geometry
    entry, target = np.array(geometry.entry), np.array(geometry.target)
    assert 60.0 <= np.linalg.norm(target - entry) <= 110.0
    crossed = {int(v) for v in np.unique(labels_along(room_patient, entry, target))}
    assert not crossed & {Tissue.RIB, Tissue.SPINE, Tissue.LUNG, Tissue.BOWEL, Tissue.GREAT_VESSEL}
    assert Tissue.LIVER in crossed
    assert Tissue.TUMOUR_1 in crossed
    outside = entry + 3.0 * (entry - target) / np.linalg.norm(entry - target)
    assert labels_along(room_patient, outside, outside)[0] == Tissue.OUTSIDE
    volume_ml = (np.asarray(room_patient.labels.array) == Tissue.TUMOUR_1).sum() * room_patient.labels.voxel_volume_mm3
    assert volume_ml / 1000 == pytest.approx(4.0 / 3.0 * np.pi, rel=0.08)  # a ball of 20 mm


def test_a_second_tumour_touches_a_vessel_and_does_not_cover_it(room_patient: PatientModel) -> None:
    from scipy.ndimage import distance_transform_edt

    labels = np.asarray(room_patient.labels.array)
    vessels = (labels == Tissue.PORTAL_VEIN) | (labels == Tissue.HEPATIC_VEIN)
    distance = distance_transform_edt(~vessels, sampling=room_patient.labels.spacing_mm[::-1])
    near = distance[labels == Tissue.TUMOUR_2].min()
    assert near < 5.0


def test_landmarks_lie_on_the_skin_and_cannot_be_exchanged(room_patient: PatientModel) -> None:
    geometry = room_patient.geometry
    names = [name for name, _ in geometry.landmarks]
    points = np.array([p for _, p in geometry.landmarks])
    assert len(set(names)) == 8
    for point, normal in zip(points, np.array(geometry.landmark_normals), strict=True):
        inside, outside = point - 3.0 * normal, point + 3.0 * normal
        assert labels_along(room_patient, inside, inside)[0] > 0
        assert labels_along(room_patient, outside, outside)[0] == 0
    centred = points - points.mean(axis=0)
    for a, b in combinations(range(8), 2):
        order = list(range(8))
        order[a], order[b] = b, a
        _, rssd = Rotation.align_vectors(centred, centred[order])
        assert rssd / np.sqrt(8) > 4.0, f"{names[a]} and {names[b]} may be exchanged unseen"


def test_a_marker_can_be_seen_in_the_ct(room_patient: PatientModel) -> None:
    for _, point in room_patient.geometry.landmarks:
        index = np.rint(room_patient.ct.to_index(np.array(point))).astype(int)
        i, j, k = index
        around = room_patient.clean.array[k - 5 : k + 6, j - 5 : j + 6, i - 5 : i + 6]
        assert around.max() > 300


def test_cache_gives_the_same_patient_without_painting(tmp_path: Path, room_patient: PatientModel) -> None:
    said: list[str] = []
    again = build_patient(cache=room_patient.folder.parent, progress=said.append)
    assert said == []
    assert again.geometry == room_patient.geometry
    assert np.array_equal(again.ct.array[70], room_patient.ct.array[70])
    assert again.ct.array.flags.writeable is False
    with pytest.raises(RoomError, match="delete the folder"):
        PatientModel.load(tmp_path)


def test_geometry_survives_json(room_patient: PatientModel) -> None:
    import json

    text = json.dumps(room_patient.geometry.to_dict())
    assert PatientGeometry.from_dict(json.loads(text)) == room_patient.geometry


def test_case_holds_what_a_procedure_needs(room_patient: PatientModel) -> None:
    case = patient_case(room_patient)
    assert case.tumour is not None
    assert case.tumour.array.dtype == np.uint8
    i, j, k = np.rint(case.tumour.to_index(np.array(case.paths[0].target_ras))).astype(int)
    assert case.tumour.array[k, j, i] == 1
    assert int(case.tumour.array.sum()) == int((np.asarray(room_patient.labels.array) == Tissue.TUMOUR_1).sum())
    assert [p.name for p in case.landmarks] == [name for name, _ in room_patient.geometry.landmarks]
    assert case.identity.patient_name == ""
    assert case.vessels is not None
    assert case.bones is not None
    assert case.divots[0].name == room_patient.geometry.divot_name


def _oblique(model: PatientModel) -> tuple[Volume, Volume]:
    """The built-in patient as a coarser CT on an oblique, left-handed grid: (CT, labels)."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("zx", [6, 4], degrees=True).as_matrix() @ model.ct.ras_from_index[:3, :3]
    matrix[:3, 3] = [11.0, -40.0, 300.0] + matrix[:3, :3] @ (-(np.array(model.ct.size) - 1) / 2.0)
    flip = np.eye(4)
    flip[0, 0], flip[0, 3] = -1.0, model.ct.size[0] - 1
    coarse = np.diag([2.0, 2.0, 1.0, 1.0])
    affine = matrix @ flip @ coarse
    return (
        Volume.of(np.ascontiguousarray(model.ct.array[:, ::2, ::-1][:, :, ::2]), affine),
        Volume.of(np.ascontiguousarray(model.labels.array[:, ::2, ::-1][:, :, ::2]), affine),
    )


def test_any_ct_with_labels_can_be_the_patient(room_patient: PatientModel, tmp_path: Path) -> None:
    ct, labels = _oblique(room_patient)
    roles = LabelRoles(tumour=(20,), liver=BUILT_IN_ROLES.liver, bone=BUILT_IN_ROLES.bone, avoid=BUILT_IN_ROLES.avoid)
    model = patient_from_ct(ct, labels, roles, cache=tmp_path)
    geometry = model.geometry
    i, j, k = np.rint(model.labels.to_index(np.array(geometry.target))).astype(int)
    assert model.labels.array[k, j, i] == 20
    crossed = set(labels_along(model, np.array(geometry.entry), np.array(geometry.target)).tolist())
    assert not crossed & set(BUILT_IN_ROLES.bone + BUILT_IN_ROLES.avoid)
    assert model.breathing(10.0).weight_at(np.array(geometry.target))[0] > 0.8
    # A label map on another grid is taken over by place.
    shifted = labels.ras_from_index.copy()
    shifted[:3, 3] = labels.to_ras(np.array([6, 4, 2]))
    cut = Volume.of(np.ascontiguousarray(labels.array[2:, 4:, 6:]), shifted)
    from_cut = patient_from_ct(ct, cut, roles, cache=tmp_path)
    assert np.allclose(from_cut.geometry.target, geometry.target, atol=1e-6)


def test_what_cannot_be_a_patient_is_refused(room_patient: PatientModel, tmp_path: Path) -> None:
    ct, labels = _oblique(room_patient)
    with pytest.raises(RoomError, match=r"tumour labels \[77\]"):
        patient_from_ct(ct, labels, LabelRoles(tumour=(77,)), cache=tmp_path)
    far = labels.ras_from_index.copy()
    far[2, 3] += 5000.0
    with pytest.raises(RoomError, match="does not overlap"):
        patient_from_ct(ct, Volume.of(labels.array, far), LabelRoles(tumour=(20,)), cache=tmp_path)
