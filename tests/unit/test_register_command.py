"""``register landmarks``: pairs by label, writes an ITK transform that reads back, and says how good it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nav.cli.errors import ExitCode
from nav.cli.main import main
from nav.geometry.rigid import Rigid
from nav.io.case import Landmark
from nav.io.itk_transform import read_itk_rigid
from nav.io.markups import write_landmarks

NAMES = ["xiphoid", "navel", "rib left", "rib right", "crest left", "crest right"]
FIXED = np.array([[0, 110, 60], [5, 120, -80], [110, 60, 20], [-120, 55, 15], [130, 40, -120], [-125, 50, -110.0]])


def true_transform() -> Rigid:
    m = np.eye(4)
    m[:3, :3] = Rotation.from_euler("xyz", [20, -30, 140], degrees=True).as_matrix()
    m[:3, 3] = 35.0, -210.0, 77.0
    return Rigid.from_matrix(m, "ReferenceToRas")


def write(path: Path, names: list[str], points: np.ndarray) -> Path:
    write_landmarks(
        path, [Landmark(n, (float(x), float(y), float(z))) for n, (x, y, z) in zip(names, points, strict=True)]
    )
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Fixed and moving landmarks; the moving ones in another order, with 0.5 mm of noise, and one more of them."""
    noise = np.random.default_rng(3).normal(0.0, 0.5 / np.sqrt(3.0), FIXED.shape)
    moving = true_transform().inverse().apply(FIXED) + noise
    fixed = write(tmp_path / "ct.mrk.json", NAMES, FIXED)
    shuffled = [*NAMES[::-1], "nobody"]
    touched = write(tmp_path / "touched.mrk.json", shuffled, np.vstack([moving[::-1], [[0, 0, 0]]]))
    return {"fixed": fixed, "moving": touched, "out": tmp_path / "T.tfm"}


def run(files: dict[str, Path], *more: str) -> int:
    paths = [part for key in ("fixed", "moving", "out") for part in (f"--{key}", str(files[key]))]
    return main(["register", "landmarks", *paths, *more])


def test_result_and_file_agree_with_the_truth(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(files, "--json", "--target", "20, 0,-30") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    written = read_itk_rigid(files["out"], "ReferenceToRas")
    np.testing.assert_allclose(written.matrix, report["transform"]["matrix_ras_mm"], atol=1e-9)
    target = np.array([20.0, 0.0, -30.0])
    error = np.linalg.norm(written.apply(true_transform().inverse().apply(target)) - target)
    assert error < 1.0
    assert 0.0 < report["tre_at_target_mm"] < 1.0
    assert report["tre_radius95_mm"] > report["tre_at_target_mm"]
    assert 0.0 < report["fre_mm"] < 1.0
    assert [mark["name"] for mark in report["landmarks"]] == NAMES
    used = [mark["residual_mm"] for mark in report["landmarks"]]
    assert np.sqrt(np.mean(np.square(used))) == pytest.approx(report["fre_mm"])
    assert report["unpaired"] == {"fixed": [], "moving": ["nobody"]}
    assert report["order_suspicious"] is False
    assert err == ""


def test_keys_are_documented(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run(files, "--json")
    page = (Path(__file__).parents[2] / "docs" / "register-json.md").read_text(encoding="utf-8")
    for key, value in json.loads(capsys.readouterr().out).items():
        names = [f"{key}.{inner}" for inner in value] if isinstance(value, dict) else [key]
        for name in names:
            assert f"`{name}`" in page or f"`{name}[]`" in page


def test_excluded_landmark_keeps_its_residual(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(files, "--json", "--exclude", "navel", "--exclude", "xiphoid") == 0
    marks = {mark["name"]: mark for mark in json.loads(capsys.readouterr().out)["landmarks"]}
    assert [name for name, mark in marks.items() if not mark["used"]] == ["xiphoid", "navel"]
    assert marks["navel"]["residual_mm"] > 0.0


def test_swapped_landmarks_are_named(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    swapped = FIXED.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    write(files["moving"], NAMES, swapped)
    assert run(files, "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["order_suspicious"] is True
    assert "xiphoid" in err
    assert "navel" in err


def test_text_for_a_person(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(files, "--target", "0,0,0", "--exclude", "navel") == 0
    out = capsys.readouterr().out
    assert "ReferenceToRas from 5 landmarks" in out
    assert "(not used)" in out
    assert "predicted TRE at the target" in out
    assert "only in the moving file: nobody" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--exclude", "nose"], ExitCode.USAGE, "--exclude nose"),
        (["--target", "1,2"], ExitCode.USAGE, "--target '1,2'"),
        (["--target", "nan,0,0"], ExitCode.USAGE, "finite"),
        (["--name", "Reference"], ExitCode.INPUT, "'Reference'"),
        ([part for name in NAMES[:4] for part in ("--exclude", name)], ExitCode.INPUT, "at least 3"),
    ],
)
def test_refusals(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], arguments: list[str], code: ExitCode, words: str
) -> None:
    assert run(files, *arguments) == code
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err
    assert not files["out"].exists()


def test_files_without_common_labels(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    write(files["moving"], [f"p{n}" for n in range(6)], FIXED)
    assert run(files) == ExitCode.INPUT
    err = capsys.readouterr().err
    assert "only 0 landmarks have the same label" in err
    assert "p0, p1" in err
