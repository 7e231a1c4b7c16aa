"""Slicer markups: points and lines come back where they were, whatever the coordinate system."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nav.io.case import CaseIdentity, Landmark, PlannedPath
from nav.io.errors import MarkupsError
from nav.io.markups import read_markups, write_landmarks, write_paths

LANDMARKS = (Landmark("xiphoid", (1.5, -20.25, 3.0)), Landmark("umbilicus", (-4.0, 55.0, -120.125)))
PATH = PlannedPath("antenna 1", (10.0, 90.0, 5.0), (12.0, 20.0, -7.0))


def markup(kind: str = "Fiducial", **changes: Any) -> dict[str, Any]:
    """What Slicer writes, shortened."""
    points = [
        {"id": "1", "label": "a", "position": [1.0, 2.0, 3.0], "positionStatus": "defined"},
        {"id": "2", "label": "b", "position": [4.0, 5.0, 6.0], "positionStatus": "defined"},
    ]
    return {"type": kind, "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": points, **changes}


def save(tmp_path: Path, *markups: Any) -> Path:
    file = tmp_path / "x.mrk.json"
    file.write_text(json.dumps({"@schema": "…", "markups": list(markups)}), encoding="utf-8")
    return file


def test_round_trip(tmp_path: Path) -> None:
    write_landmarks(tmp_path / "l.mrk.json", LANDMARKS)
    write_paths(tmp_path / "p.mrk.json", [PATH])
    assert read_markups(tmp_path / "l.mrk.json").landmarks == LANDMARKS
    assert read_markups(tmp_path / "p.mrk.json").paths == (PATH,)
    stored = json.loads((tmp_path / "l.mrk.json").read_text())["markups"][0]
    assert stored["coordinateSystem"] == "LPS"
    assert stored["controlPoints"][0]["position"] == [-1.5, 20.25, 3.0]


def test_written_case_is_pseudonymous(tmp_path: Path) -> None:
    case = CaseIdentity("CASE-1", patient_name="Doe^Jane", patient_id="4711", frame_of_reference_uid="1.2.3.9")
    write_paths(tmp_path / "p.mrk.json", [PATH], case=case)
    text = (tmp_path / "p.mrk.json").read_text()
    for secret in ("Doe", "4711", "1.2.3.9"):
        assert secret not in text
    assert read_markups(tmp_path / "p.mrk.json").identifiers["pseudonym"] == "CASE-1"


@pytest.mark.parametrize(("system", "sign"), [("LPS", -1.0), ("RAS", 1.0), ("ras", 1.0)])
def test_coordinate_system_decides(tmp_path: Path, system: str, sign: float) -> None:
    found = read_markups(save(tmp_path, markup(coordinateSystem=system)))
    assert found.landmarks == (Landmark("a", (sign, 2 * sign, 3.0)), Landmark("b", (4 * sign, 5 * sign, 6.0)))


def test_line_is_entry_then_target(tmp_path: Path) -> None:
    found = read_markups(save(tmp_path, markup("Line", coordinateSystem="RAS"), markup()))
    assert found.paths == (PlannedPath("path 1", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),)
    assert len(found.landmarks) == 2


def test_undefined_points_and_other_kinds_are_left_out_and_said(tmp_path: Path) -> None:
    points = markup()["controlPoints"]
    points[1] = {"label": "b", "position": [0, 0, 0], "positionStatus": "undefined"}
    found = read_markups(save(tmp_path, markup(controlPoints=points), markup("Plane")))
    assert [m.name for m in found.landmarks] == ["a"]
    assert any("point b is left out, its position is undefined" in w for w in found.warnings)
    assert any("'Plane' is not used" in w for w in found.warnings)


def plan(**changes: Any) -> dict[str, Any]:
    """A small plan.json."""
    ends = {"entry_ras": [0, 60, 0], "target_ras": [0.0, 10.0, 5.0]}
    return {
        "applicators": [{"name": "ablation 1", "applicator": "Emprint", "power_w": 75.0, "time_s": 300.0, **ends}],
        "paths": [
            {**ends, "feasible": True, "score": 0.5, "criteria": {"risk": 0.25, "alignment": None}},
            {**ends, "feasible": False, "score": None, "criteria": {}},
        ],
        "ablationNav": {"pseudonym": "CASE-1"},
        **changes,
    }


def test_a_plan_holds_its_ablations_and_feasible_candidates(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(plan()))
    found = read_markups(tmp_path / "plan.json")
    ends = ((0.0, 60.0, 0.0), (0.0, 10.0, 5.0))
    assert found.paths == (
        PlannedPath("ablation 1", *ends, setting="Emprint 75 W 300 s"),
        PlannedPath("path 1", *ends, score=0.5, criteria=(("risk", 0.25),)),
    )
    assert found.identifiers == {"pseudonym": "CASE-1"}
    assert any("1 paths that break" in w for w in found.warnings)


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ({"entry_ras": [0, 1]}, "entry_ras is \\[0, 1\\], must be three finite numbers"),
        ({"target_ras": [0, 60, "x"]}, "must be three finite numbers"),
        ({"target_ras": [0, 60, 0.5]}, "less than 1 mm apart"),
        ({"target_ras": [0, 60000.0, 0.5]}, "from the origin"),
    ],
)
def test_broken_plans_are_refused(tmp_path: Path, ends: dict[str, Any], message: str) -> None:
    item = {"entry_ras": [0, 60, 0], "target_ras": [0, 10, 5], "feasible": True, **ends}
    (tmp_path / "plan.json").write_text(json.dumps(plan(paths=[item])))
    with pytest.raises(MarkupsError, match=message):
        read_markups(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (markup(coordinateSystem="XYZ"), "coordinateSystem = 'XYZ', must be LPS or RAS"),
        (markup(coordinateUnits="m"), "coordinateUnits = 'm', must be mm"),
        (markup(controlPoints=[{"label": "a", "position": [1, 2]}]), "must be three finite numbers"),
        (markup(controlPoints=[{"label": "a", "position": [1, 2, float("nan")]}]), "must be three finite numbers"),
        (markup(controlPoints=[{"label": "a", "position": [1, 2, 5e6]}]), "must be three finite numbers"),
        (markup(controlPoints=[{"label": "a", "position": "here"}]), "must be three finite numbers"),
        (markup(controlPoints=[*markup()["controlPoints"][:1]] * 2), "given twice: a"),
        (markup("Line", controlPoints=markup()["controlPoints"][:1]), "two defined points"),
        (markup("Line", controlPoints=[markup()["controlPoints"][0]] * 2), "less than 1 mm apart"),
        ("no object", "is not an object"),
    ],
)
def test_broken_markups_are_refused(tmp_path: Path, broken: Any, message: str) -> None:
    with pytest.raises(MarkupsError, match=message):
        read_markups(save(tmp_path, broken))


def test_broken_files_are_refused(tmp_path: Path) -> None:
    write_landmarks(tmp_path / "l.mrk.json", LANDMARKS)
    text = (tmp_path / "l.mrk.json").read_text()
    (tmp_path / "cut.mrk.json").write_text(text[: len(text) // 2])
    with pytest.raises(MarkupsError, match="may be truncated"):
        read_markups(tmp_path / "cut.mrk.json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(MarkupsError, match="no 'markups' list"):
        read_markups(tmp_path / "other.json")
    with pytest.raises(MarkupsError, match="cannot be read"):
        read_markups(tmp_path / "nowhere.mrk.json")
    (tmp_path / "binary.mrk.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(MarkupsError, match="not UTF-8"):
        read_markups(tmp_path / "binary.mrk.json")


@pytest.mark.parametrize(("system", "sign"), [("LPS", -1.0), ("0", 1.0), ("1", -1.0), ("RAS", 1.0)])
def test_fcsv(tmp_path: Path, system: str, sign: float) -> None:
    file = tmp_path / "x.fcsv"
    file.write_text(
        f"# Markups fiducial file version = 4.11\n# CoordinateSystem = {system}\n"
        "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
        'vtkMRMLMarkupsFiducialNode_0,1,2.5,3,0,0,0,1,1,1,0,F-1,,\nn_1,4,5,6,0,0,0,1,1,1,0,"with, comma",,\n'
    )
    found = read_markups(file).landmarks
    assert [m.name for m in found] == ["F-1", "with, comma"]
    np.testing.assert_allclose(found[0].ras, (sign, 2.5 * sign, 3.0))


def test_broken_fcsv_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.fcsv"
    file.write_text("# columns = id,x,y,z\na,1,2,3\n")
    with pytest.raises(MarkupsError, match="CoordinateSystem = 'missing'"):
        read_markups(file)
    file.write_text("# CoordinateSystem = LPS\n# columns = id,x,y,z\na,1,two,3\n")
    with pytest.raises(MarkupsError, match="line 3 holds no x, y, z"):
        read_markups(file)
    file.write_text("# CoordinateSystem = LPS\n")
    with pytest.raises(MarkupsError, match="holds no points"):
        read_markups(file)
