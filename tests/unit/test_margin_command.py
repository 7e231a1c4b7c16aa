"""``ablation-nav margin``: files on different grids, transforms and their direction, labels, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from tumour_phantoms import OBLIQUE, ball_on, empty_grid

from nav.cli.errors import ExitCode
from nav.cli.main import main
from nav.geometry.displacement import DisplacementField
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.io.displacement_file import write_displacement
from nav.io.itk_transform import write_itk_rigid
from nav.io.surface_files import read_surface_file
from nav.io.volume_file import write_volume

KEYS = {
    "mam_mm", "mam_excluding_capsule_mm", "excluded_fraction", "fraction_lt0", "fraction_0_5", "fraction_ge5",
    "coverage_histogram", "voxel_uncertainty_mm", "method",
}  # fmt: skip
UP = np.array([0.0, 0.0, 1.0])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tumour of 8 mm at −3 mm among other labels, an ablation of 14 mm in a turned grid; the tumour 3 mm too low."""
    folder = tmp_path_factory.mktemp("margin")
    grid = empty_grid((1.0, 1.0, 1.5), half_mm=24.0)
    labels = ball_on(grid, -3.0 * UP, 8.0, value=7).array + ball_on(grid, 15.0 * UP, 3.0, value=3).array
    write_volume(folder / "labels.nrrd", Volume.of(labels, grid.ras_from_index))
    write_volume(folder / "tumour.nrrd", ball_on(grid, -3.0 * UP, 8.0))
    turned = empty_grid((0.9, 0.9, 1.0), half_mm=26.0, directions=OBLIQUE)
    write_volume(folder / "ablation.nrrd", ball_on(turned, np.zeros(3), 14.0))
    write_volume(folder / "empty.nrrd", grid)
    move = np.eye(4)
    move[:3, 3] = 3.0 * UP
    write_itk_rigid(folder / "up.tfm", Rigid.from_matrix(move, "MovingToFixed"))
    vectors = np.zeros((5, 5, 5, 3), np.float32)
    vectors[..., 2] = -3.0  # of the image after (fixed) to the one before
    affine = np.diag([20.0, 20.0, 20.0, 1.0])
    affine[:3, 3] = -40.0
    write_displacement(folder / "up.nrrd", DisplacementField.of(vectors, affine))
    return folder


def run(capsys: pytest.CaptureFixture[str], files: Path, out: Path, *more: str, tumour: str = "tumour.nrrd") -> dict:
    code = main(
        ["margin", "--tumor", str(files / tumour), "--ablation", str(files / "ablation.nrrd"), "--out", str(out),
         "--json", *more]
    )  # fmt: skip
    text = capsys.readouterr().out
    assert code == 0
    report = json.loads(text)
    assert json.loads((out / "margin.json").read_text(encoding="utf-8")) == report
    return report


def test_grids_differ_and_files_are_written(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(capsys, files, tmp_path, "--tumor-label", "7", tumour="labels.nrrd")
    assert report.keys() >= KEYS
    assert report["mam_mm"] == pytest.approx(3.0, abs=0.35)
    assert abs(report["mam_mm"] - 3.0) <= report["voxel_uncertainty_mm"] < 1.5
    assert report["labels"] == {"tumour": [7], "ablation": [1]}
    assert (report["mam_excluding_capsule_mm"], report["excluded_fraction"]) == (None, None)
    assert report["fraction_lt0"] + report["fraction_0_5"] + report["fraction_ge5"] == pytest.approx(1.0)
    assert [c["margin_mm"] for c in report["coverage_histogram"]] == list(range(1, 11))
    assert len(report["cohorts"]) >= 5
    points, triangles = read_surface_file(tmp_path / "margin.vtk")
    assert np.linalg.norm(points + 3.0 * UP, axis=1) == pytest.approx(8.0, abs=0.5)
    data = (tmp_path / "margin.vtk").read_bytes()
    place = data.index(b"SCALARS margin_mm float 1\nLOOKUP_TABLE default\n") + 47
    values = np.frombuffer(data, ">f4", len(points), place)
    # Positive inside; here 14 mm less the distance from the ablation's centre.
    np.testing.assert_allclose(values, 14.0 - np.linalg.norm(points, axis=1), atol=0.35)
    assert len(triangles) > 1000
    picture = cv2.imread(str(tmp_path / "margin.png"))
    assert picture.shape[0] > 500
    # Pale blue of 5 mm and more, orange of 2.5 mm and more: both parts of the surface are there.
    assert report["fraction_ge5"] > 0.3
    shown = picture[:330, :1200].reshape(-1, 3).astype(int)
    assert (shown[:, 0] > shown[:, 2] + 40).sum() > 2000
    assert (shown[:, 2] > shown[:, 0] + 40).sum() > 2000


@pytest.mark.parametrize("transform", ["up.tfm", "up.nrrd"])
def test_the_transform_moves_the_tumour(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], transform: str
) -> None:
    report = run(capsys, files, tmp_path, "--transform", str(files / transform), "--contraction", "0.1", "--sigma", "2")
    assert report["mam_mm"] == pytest.approx(6.0, abs=0.35)
    # 14 mm blown up by 1 / 0.9.
    assert report["contraction"]["mam_mm"] - report["mam_mm"] == pytest.approx(14.0 / 0.9 - 14.0, abs=0.1)
    assert any("it counts twice" in w for w in report["warnings"]) is transform.endswith(".nrrd")
    assert 0.55 < report["p_margin_ge5"] < 0.75


def test_voxel_borders_and_text(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(capsys, files, tmp_path, "--method", "voxel-border")
    assert report["method"] == "voxel-border"
    assert 1.0 < report["mam_mm"] < 3.0
    assert report.keys() >= KEYS
    assert main(["margin", "--tumor", str(files / "tumour.nrrd"), "--ablation", str(files / "ablation.nrrd"), "--out",
                 str(tmp_path)]) == 0  # fmt: skip
    text = capsys.readouterr().out
    assert "minimum margin     2.9 mm, voxels alone ±1.0 mm" in text
    assert "not this patient's risk" in text
    assert "Wang 2013" in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--tumor", "labels.nrrd"], ExitCode.INPUT, "give a label"),
        (["--tumor", "empty.nrrd"], ExitCode.INPUT, "empty"),
        (["--tumor", "absent.nrrd"], ExitCode.INPUT, "no such file"),
        (["--tumor", "tumour.nrrd", "--contraction", "0.3"], ExitCode.USAGE, "between 0 and 0.15"),
        (["--tumor", "tumour.nrrd", "--method", "qam"], ExitCode.USAGE, "voxel-border"),
        (["--tumor", "tumour.nrrd", "--sigma", "-1"], ExitCode.USAGE, "--sigma -1"),
    ],
)
def test_what_is_refused(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: ExitCode, words: str
) -> None:
    arguments[1] = str(files / arguments[1])
    ended = main(["margin", *arguments, "--ablation", str(files / "ablation.nrrd"), "--out", str(tmp_path / "o")])
    assert ended == code
    assert words in capsys.readouterr().err
