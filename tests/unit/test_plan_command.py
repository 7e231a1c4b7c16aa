"""``ablation-nav plan``: masks and a CT in, a plan out that ``run`` can load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nav.cli.errors import ExitCode
from nav.cli.main import main
from nav.cli.mask_spec import parse_spec
from nav.cli.plan_files import disc
from nav.geometry.volume import Volume
from nav.io.case_loader import load_case
from nav.io.markups import read_markups
from nav.io.volume_file import write_volume
from tests.unit.planning_phantom import ORGAN, TUMOUR, ball, box, grid

SPACING = (1.5, 1.5, 2.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("case")
    on = grid(SPACING, 75.0)
    organ, tumour = (np.asarray(ball(on, *b).array) for b in (ORGAN, TUMOUR))
    rib = np.asarray(box(on, (38.0, -60.0, -6.0), (44.0, 60.0, 6.0)).array)
    labels = organ + tumour + 3 * rib
    inside = np.asarray(ball(on, np.zeros(3), 58.0).array)
    hu = np.where(inside > 0, 40, -1000).astype(np.int16)
    write_volume(folder / "ct.nrrd", Volume.of(hu, on.ras_from_index))
    write_volume(folder / "labels.nrrd", Volume.of(labels.astype(np.uint8), on.ras_from_index))
    pose = np.eye(4)
    pose[:3, :3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
    pose[:3, 3] = (6.0, 30.0, 2.0)  # in the organ: is moved back
    np.savetxt(folder / "pose.txt", pose)
    return folder


def arguments(files: Path, out: Path, *more: str) -> list[str]:
    labels = files / "labels.nrrd"
    return ["plan", "--target", f"{labels}:2", "--organ", f"{labels}:1+2", "--avoid", f"rib={labels}:3@2",
            "--applicator", "emprint", "--time", "300", "--out", str(out), "--json", *more]  # fmt: skip


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nav.planning.plan.CANDIDATES", 3000)
    monkeypatch.setattr("nav.planning.plan._PLACED_PATHS", 10)


def test_plan_from_the_skin_is_loaded_by_run(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ablation-9.mrk.json").write_text("left by a plan before")
    code = main(arguments(files, tmp_path, "--ct", str(files / "ct.nrrd"), "--weight", "risk=3"))
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == ExitCode.OK
    assert json.loads((tmp_path / "plan.json").read_text()) == report
    assert report["verdict"] == "covered"
    assert report["coverage"] >= 0.995
    assert 0.0 <= report["p_margin_ge5"] <= 1.0
    assert report["weights"]["risk"] == 3.0
    assert len(report["paths"]) == 20
    for path in report["paths"]:
        assert set(path) >= {"entry_ras", "target_ras", "length_mm", "angle_deg", "criteria", "feasible", "violated"}
        assert path["feasible"]
        assert not path["violated"]
        assert set(path["criteria"]) == set(report["weights"])
        length = np.linalg.norm(np.subtract(path["entry_ras"], path["target_ras"]))
        assert path["length_mm"] == pytest.approx(length, abs=0.01)
        assert 55.0 < np.linalg.norm(path["entry_ras"]) < 62.0
        assert path["distances_mm"]["rib"] >= 2.0
    (one,) = report["applicators"]
    assert (one["tier"], one["time_s"]) == (0, 300.0)
    assert "brochure" in one["citation"]
    assert one["basis"]
    case = load_case(files / "ct.nrrd", plan_path=report["out"]["markups"])
    assert case.paths[0].entry_ras == pytest.approx(one["entry_ras"])
    planned = load_case(files / "ct.nrrd", plan_path=tmp_path / "plan.json").paths
    assert len(planned) == 1 + len(report["paths"])
    assert planned[0].entry_ras == tuple(one["entry_ras"])
    assert planned[0].setting == f"{one['applicator']} {one['power_w']:g} W {one['time_s']:g} s"
    assert [p.score for p in planned[1:]] == [p["score"] for p in report["paths"]]
    assert dict(planned[1].criteria) == report["paths"][0]["criteria"]
    assert case.paths[0].target_ras == pytest.approx(one["target_ras"])
    assert read_markups(tmp_path / "ablation-1.mrk.json").paths == case.paths
    assert not (tmp_path / "ablation-9.mrk.json").exists()
    picture = cv2.imread(str(tmp_path / "plan.png"))
    assert picture.shape == (460 + 26, 920, 3)
    assert (picture == (90, 230, 90)).all(axis=2).sum() > 200


def test_plan_from_a_pose_and_without_a_way(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    poses = ("--entries", str(files / "pose.txt"), "--entry-spread", "6")
    assert main(arguments(files, tmp_path, *poses)) == ExitCode.OK
    report = json.loads(capsys.readouterr().out)
    assert all(np.linalg.norm(p["entry_ras"]) > 36.0 for p in report["paths"])
    assert main(arguments(files, tmp_path, *poses, "--needle-length", "39")) == ExitCode.FAILED
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["verdict"] == "no_path"
    assert "length 100 %" in report["reasons"][0]
    assert report["reasons"][0] in captured.err
    assert not report["applicators"]
    assert report["paths"]
    assert all("length" in p["violated"] and not p["feasible"] for p in report["paths"])
    assert not (tmp_path / "plan.mrk.json").exists()


@pytest.mark.parametrize(
    ("more", "code", "text"),
    [
        ((), ExitCode.USAGE, "give --ct"),
        (("--ct", "ct.nrrd", "--up", "X"), ExitCode.USAGE, "--up X"),
        (("--ct", "ct.nrrd", "--avoid", "labels.nrrd"), ExitCode.USAGE, "expected NAME=FILE"),
        (("--ct", "ct.nrrd", "--weight", "beauty=1"), ExitCode.USAGE, "the criteria are length"),
        (("--ct", "ct.nrrd", "--power", "200"), ExitCode.CONFIGURATION, "power 200 W"),
        (("--ct", "ct.nrrd", "--margin", "-1"), ExitCode.CONFIGURATION, "cover.margin_mm"),
        (("--ct", "ct.nrrd", "--organ", "labels.nrrd:7"), ExitCode.INPUT, "label 7 is not in it"),
    ],
)  # fmt: skip
def test_mistakes_are_named(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...], code: ExitCode, text: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(files)
    assert main(arguments(files, tmp_path, *more)) == code
    assert text in capsys.readouterr().err


def test_structures_are_parsed() -> None:
    spec = parse_spec("big vessels=a/b.nii.gz:465+481@3.5,3", "--avoid", named=True)
    assert (spec.name, str(spec.path), spec.labels) == ("big vessels", "a/b.nii.gz", (465, 481))
    assert (spec.clearance_mm, spec.diameter_mm) == (3.5, 3.0)
    assert parse_spec("l.nrrd:451/2", "--target", named=False).piece == 2
    assert parse_spec("v=l.nrrd@4", "--avoid", named=True).labels == ()


def test_disc_lies_across_the_axis() -> None:
    axis = np.array([1.0, 2.0, -2.0]) / 3.0
    points = disc(np.array([5.0, 6.0, 7.0]), axis, 10.0)
    assert points[0].tolist() == [5.0, 6.0, 7.0]
    assert np.abs((points - points[0]) @ axis).max() < 1e-9
    assert 290 < len(points) < 330
    assert np.linalg.norm(points - points[0], axis=1).max() <= 10.0 + 1e-9
