"""Mix-ups stop with the two values side by side, and say nothing that identifies the patient unless allowed."""

from __future__ import annotations

import numpy as np
import pytest

from nav.geometry.volume import Volume
from nav.io.case import CaseIdentity, Landmark, PlannedPath
from nav.io.checks import (
    Identifiers,
    check_inside_ct,
    compare,
    identifiers_of_ct,
    identifiers_of_markups,
    identifiers_of_metadata,
    masked,
    require_same_case,
)
from nav.io.errors import CaseMismatchError
from nav.io.markups import fingerprint

CT = identifiers_of_ct(
    CaseIdentity(
        "CASE-AAAAAA", patient_name="Doe^Jane", patient_id="1234567", study_uid="1.2.3", frame_of_reference_uid="1.2.9"
    ),
    laterality="R",
)


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        ({"0010|0020": "1234568"}, "patient ID"),
        ({"DICOM_0010_0020": "1234568"}, "patient ID"),
        ({"PatientID": "1234568"}, "patient ID"),
        ({"DICOM.PatientName": "Doe^John"}, "patient name"),
        ({"StudyInstanceUID": "1.2.4"}, "study UID"),
        ({"FrameOfReferenceUID": "1.2.8"}, "frame of reference UID"),
        ({"0020|0062": "left"}, "laterality"),
    ],
)
def test_a_disagreement_is_found_and_named(metadata: dict[str, str], what: str) -> None:
    mask = identifiers_of_metadata(metadata, "tumour.nrrd")
    found = compare(CT, mask)
    assert [m.what for m in found] == [what]
    with pytest.raises(CaseMismatchError) as caught:
        require_same_case(CT, [mask])
    assert caught.value.mismatches == tuple(found)
    assert "tumour.nrrd says" in str(caught.value)
    assert "the CT says" in str(caught.value)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"PatientID": "  1234567 "},
        {"PatientName": "DOE JANE^"},
        {"Laterality": "RIGHT"},
        {"Laterality": "B"},
        {"Modality": "MET_MOD_UNKNOWN", "PatientID": ""},
    ],
)
def test_silence_and_other_spelling_are_no_disagreement(metadata: dict[str, str]) -> None:
    assert compare(CT, identifiers_of_metadata(metadata, "m")) == []


def test_values_are_masked_but_can_be_told_apart() -> None:
    (mismatch,) = compare(CT, Identifiers("m", patient_id="1234568"))
    assert "1234567" not in mismatch.line()
    assert "1234568" not in mismatch.line()
    assert mismatch.first_value != mismatch.second_value
    assert mismatch.first_value.startswith("12… (7 characters, #")
    (shown,) = compare(CT, Identifiers("m", patient_id="1234568"), show_identifying=True)
    assert (shown.first_value, shown.second_value) == ("1234567", "1234568")
    assert masked("4711") == f"… (4 characters, #{masked('4711')[-5:-1]})"


def test_plan_of_another_case() -> None:
    other = {"pseudonym": "CASE-BBBBBB", "frameOfReferenceSha256": fingerprint("1.2.8")}
    assert [m.what for m in compare(CT, identifiers_of_markups(other, "plan"))] == ["frame of reference", "case"]
    # Another series of the same frame of reference: the plan holds there.
    same_frame = {"pseudonym": "CASE-BBBBBB", "frameOfReferenceSha256": fingerprint("1.2.9")}
    assert compare(CT, identifiers_of_markups(same_frame, "plan")) == []
    assert [m.what for m in compare(CT, identifiers_of_markups({"pseudonym": "CASE-BBBBBB"}, "plan"))] == ["case"]
    in_full = identifiers_of_markups({"frameOfReferenceUID": "1.2.8"}, "plan")
    assert [m.what for m in compare(CT, in_full)] == ["frame of reference UID"]


def volume(centre: tuple[float, float, float]) -> Volume:
    affine = np.diag([-2.0, -2.0, 2.0, 1.0])
    affine[:3, 3] = np.add(centre, (49.0, 49.0, -49.0))
    return Volume.of(np.zeros((50, 50, 50), np.int16), affine)


def test_points_must_lie_in_the_ct() -> None:
    ct = volume((80.0, 70.0, 0.0))
    inside = PlannedPath("a", (80.0, 130.0, 0.0), (80.0, 70.0, 0.0))  # entry 10 mm above the field of view
    check_inside_ct(ct, [Landmark("xiphoid", (128.0, 70.0, 0.0))], [inside])
    with pytest.raises(CaseMismatchError, match=r"target of 'b' at \(80\.0, 121\.0, 0\.0\)"):
        check_inside_ct(ct, [], [PlannedPath("b", (80.0, 130.0, 0.0), (80.0, 121.0, 0.0))])
    with pytest.raises(CaseMismatchError, match="left and right are swapped"):
        check_inside_ct(ct, [Landmark("xiphoid", (-80.0, 70.0, 0.0))])
    with pytest.raises(CaseMismatchError, match="as when LPS is taken for RAS") as caught:
        check_inside_ct(ct, [Landmark("l1", (-80.0, -70.0, 0.0)), Landmark("l2", (-85.0, -70.0, 0.0))])
    assert "R 31.0 to 129.0" in str(caught.value)
    assert "'l1'" in str(caught.value)
    assert "'l2'" in str(caught.value)


def test_margin_around_the_ct_is_20_mm() -> None:
    ct = volume((0.0, 0.0, 0.0))  # voxel borders at ±50
    check_inside_ct(ct, [Landmark("l", (0.0, 69.9, 0.0))])
    with pytest.raises(CaseMismatchError, match="landmark 'l'"):
        check_inside_ct(ct, [Landmark("l", (0.0, 70.1, 0.0))])
