"""A whole case, or nothing."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from io_support import write_image, write_series

from nav.io.case import CaseIdentity, Landmark, PlannedPath
from nav.io.case_loader import load_case
from nav.io.ct import load_ct
from nav.io.errors import CaseMismatchError, MarkupsError, MaskError
from nav.io.markups import write_landmarks, write_paths


def mask_file(tmp_path: Path, **metadata: str) -> Path:
    """Two tumour pieces and a vessel, inside the series of `write_series` (LPS −20…−14, −30…−20, 100…112)."""
    array = np.zeros((5, 8, 6), np.uint8)
    array[1, 1:3, 1] = 1
    array[3, 6, 4] = 1
    array[4, 1, 1] = 2
    return write_image(
        tmp_path / "labels.nrrd", array, spacing=(1, 1, 2), origin=(-20.0, -30.0, 101.0), metadata=metadata
    )


def test_everything_together(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    labels = mask_file(tmp_path)
    identity = load_ct(tmp_path / "ct").identity
    write_landmarks(tmp_path / "l.mrk.json", [Landmark("a", (18.0, 28.0, 104.0))], case=identity)
    write_landmarks(tmp_path / "d.mrk.json", [Landmark("divot", (17.0, 28.0, 104.0))])
    path = PlannedPath("antenna", (16.0, 35.0, 104.0), (18.0, 25.0, 105.0))
    write_paths(tmp_path / "p.mrk.json", [path], case=identity)
    case = load_case(
        tmp_path / "ct",
        tumour_path=labels,
        tumour_label=1,
        tumour_component="largest",
        vessels=(labels, 2),
        bones=(labels, (1, 2)),
        landmarks_path=tmp_path / "l.mrk.json",
        divots_path=tmp_path / "d.mrk.json",
        plan_path=tmp_path / "p.mrk.json",
    )
    assert case.tumour is not None
    assert case.vessels is not None
    assert case.bones is not None
    assert [int(v.array.sum()) for v in (case.tumour, case.vessels, case.bones)] == [2, 1, 4]
    assert [m.name for m in (*case.landmarks, *case.divots)] == ["a", "divot"]
    assert case.paths == (path,)
    assert case.identity.pseudonym.startswith("CASE-")
    assert load_case(tmp_path / "ct", pseudonym="phantom 3").identity.pseudonym == "phantom 3"
    assert load_case(tmp_path / "ct").paths == ()


def test_files_of_another_patient_stop(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    labels = mask_file(tmp_path, PatientID="4712")
    with pytest.raises(CaseMismatchError, match="patient ID") as caught:
        load_case(tmp_path / "ct", tumour_path=labels, tumour_label=1)
    assert "4712" not in str(caught.value)
    with pytest.raises(CaseMismatchError, match=r"the CT says 4711, labels\.nrrd says 4712"):
        load_case(tmp_path / "ct", tumour_path=labels, tumour_label=1, show_identifying=True)


def test_plan_of_another_case_and_landmarks_elsewhere_stop(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    path = PlannedPath("antenna", (16.0, 35.0, 104.0), (18.0, 25.0, 105.0))
    write_paths(tmp_path / "p.mrk.json", [path], case=CaseIdentity("CASE-OTHER", frame_of_reference_uid="9.9"))
    with pytest.raises(CaseMismatchError, match="case: the CT says CASE-"):
        load_case(tmp_path / "ct", plan_path=tmp_path / "p.mrk.json")
    write_landmarks(tmp_path / "l.mrk.json", [Landmark("far", (300.0, 0.0, 0.0))])
    with pytest.raises(CaseMismatchError, match="landmark 'far'"):
        load_case(tmp_path / "ct", landmarks_path=tmp_path / "l.mrk.json")


def test_the_wrong_kind_of_markups_stops(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    write_landmarks(tmp_path / "l.mrk.json", [Landmark("a", (18.0, 28.0, 104.0))])
    write_paths(tmp_path / "p.mrk.json", [PlannedPath("antenna", (16.0, 35.0, 104.0), (18.0, 25.0, 105.0))])
    with pytest.raises(MarkupsError, match="holds no needle plan"):
        load_case(tmp_path / "ct", plan_path=tmp_path / "l.mrk.json")
    with pytest.raises(MarkupsError, match="holds no defined point"):
        load_case(tmp_path / "ct", landmarks_path=tmp_path / "p.mrk.json")
    with pytest.raises(MaskError, match="label 9 is not in it"):
        load_case(tmp_path / "ct", tumour_path=mask_file(tmp_path), tumour_label=9)


def test_liver_case_loads_in_time(shared_data: Path) -> None:
    folder = shared_data / "ct_liver"
    seen: list[tuple[int, int]] = []
    began = time.process_time()
    case = load_case(
        folder / "dicom",
        tumour_path=folder / "labels.nrrd",
        tumour_label=451,
        tumour_component=2,
        vessels=(folder / "labels.nrrd", (465, 481)),
        bones=(folder / "labels.nrrd", 65),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert time.process_time() - began < 3.0
    assert case.tumour is not None
    ml = int(case.tumour.array.sum()) * case.tumour.voxel_volume_mm3 / 1000
    assert ml == pytest.approx(10.10, abs=0.005)
    assert "liver_01" not in repr((case.identity.pseudonym, case.warnings))
    assert seen[-1] == (258, 258)
