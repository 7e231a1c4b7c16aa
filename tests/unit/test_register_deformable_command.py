"""``register deformable``: files in; fields, images, a picture and a report out; the fields carry points and images."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from nav.cli.errors import ExitCode
from nav.cli.main import main
from nav.geometry.volume import Volume
from nav.io.displacement_file import read_displacement
from nav.io.image_file import read_image_file, swap_lps_ras
from nav.io.itk import sitk
from nav.io.point_files import read_points
from nav.io.volume_file import write_volume
from nav.registration import deformable_device
from nav.registration.deformable_device import DeviceError

SHAPE = (40, 44, 48)
#: Left and back, as a DICOM series.
GRID = np.array([[-3.0, 0, 0, 70], [0, -3.0, 0, 66], [0, 0, 4.0, -80], [0, 0, 0, 1.0]])


def motion(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 3) mm at points, RAS mm: fixed to moving."""
    x, y, z = points.T / 28.0
    return np.stack([3 * np.sin(y), 4 * np.cos(x), 4 + 2 * np.sin(z)], axis=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(1)
    k, j, i = np.indices(SHAPE).astype(float)
    inside = ((k - 20) / 18) ** 2 + ((j - 22) / 19) ** 2 + ((i - 24) / 21) ** 2 < 1
    scene = gaussian_filter(np.where(inside, 60 + 2500 * gaussian_filter(rng.normal(0, 1, SHAPE), 2.0), -1000), 0.7)
    ras = np.stack([i, j, k], -1).reshape(-1, 3) @ GRID[:3, :3].T + GRID[:3, 3]
    at = (ras + motion(ras) - GRID[:3, 3]) @ np.linalg.inv(GRID[:3, :3]).T
    fixed = map_coordinates(scene, at[:, ::-1].T, order=3, mode="constant", cval=-1000).reshape(SHAPE)
    paths = {"fixed": folder / "fixed.nrrd", "moving": folder / "moving.nii.gz"}
    for name, values in (("fixed", fixed), ("moving", scene)):
        write_volume(paths[name], Volume.of(np.rint(values + rng.normal(0, 10, SHAPE)).astype(np.int16), GRID))
    points = np.array([[0, 0, 0], [20, -10, 5], [-15, 12, -20], [5, 25, 18.0], [-25, -5, 10]])
    for name, where in (("fixed_points", points), ("moving_points", points + motion(points))):
        paths[name] = folder / f"{name}.txt"
        rows = "\n".join(" ".join(f"{v:.6f}" for v in row) for row in swap_lps_ras(where))
        paths[name].write_text(f"point\n{len(where)}\n{rows}\n")
    return paths


@pytest.fixture(scope="module")
def registered(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "new"
    assert main(["register", "deformable", str(files["fixed"]), str(files["moving"]), "--out", str(out)]) == ExitCode.OK
    return out


def test_everything_is_written_and_agrees(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = ["--fixed-points", str(files["fixed_points"]), "--moving-points", str(files["moving_points"])]
    images = [str(files["fixed"]), str(files["moving"])]
    code = main(["register", "deformable", *images, "--out", str(tmp_path), "--json", "--threads", "1", *points])
    report = json.loads(capsys.readouterr().out)
    assert code == ExitCode.OK
    assert (report["verdict"], report["reasons"], report["threads"]) == ("good", [], 1)
    assert report["device"] == "cpu"
    assert report["tre_mm"]["before"]["mean"] > 4
    assert report["tre_mm"]["after"]["mean"] < 0.6
    assert report["expected_error_mm"]["median"] < report["expected_error_mm"]["p95"] < 2.0
    assert 0.0 < report["jacobian"]["min"] < 1.0 < report["jacobian"]["max"]
    assert report["jacobian"]["folded_fraction"] == 0.0
    documented = (Path(__file__).parents[2] / "docs" / "register-json.md").read_text()
    for key in report:
        assert f"`{key}" in documented
    assert all(Path(path).stat().st_size for path in report["out"].values())
    assert cv2.imread(report["out"]["checkerboard"]) is not None
    fixed = read_image_file(files["fixed"], ValueError)  # type: ignore[type-var]
    warped = read_image_file(report["out"]["warped"], ValueError)  # type: ignore[type-var]
    inner = (slice(8, -8),) * 3
    assert np.corrcoef(fixed.array[inner].ravel(), warped.array[inner].ravel())[0, 1] > 0.95
    errors = read_image_file(report["out"]["expected_error"], ValueError).array  # type: ignore[type-var]
    assert (errors > 0.0).all()


def test_itk_takes_points_where_the_command_does(files: dict[str, Path], registered: Path, tmp_path: Path) -> None:
    image = sitk.ReadImage(str(registered / "displacement.nrrd"), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(image)
    out = tmp_path / "moved.mrk.json"
    field = ["--transform", str(registered / "displacement.nrrd")]
    assert main(["transform-points", str(files["fixed_points"]), *field, "--out", str(out)]) == ExitCode.OK
    start, there = read_points(files["fixed_points"])[1], read_points(out)[1]
    theirs = [transform.TransformPoint(point.tolist()) for point in swap_lps_ras(start)]
    np.testing.assert_allclose(there, swap_lps_ras(np.array(theirs)), atol=1e-3)
    assert np.linalg.norm(there - start - motion(start), axis=1).max() < 1.5
    # And back, by either file.
    back = tmp_path / "back.mrk.json"
    assert main(["transform-points", str(out), *field, "--inverse", "--out", str(back)]) == ExitCode.OK
    np.testing.assert_allclose(read_points(back)[1], start, atol=2e-3)
    inverse = read_displacement(registered / "inverse_displacement.nrrd")
    np.testing.assert_allclose(inverse.apply(there), start, atol=0.3)


def test_resample_does_what_the_registration_wrote(files: dict[str, Path], registered: Path, tmp_path: Path) -> None:
    out = tmp_path / "warped.nrrd"
    field = ["--transform", str(registered / "displacement.nrrd")]
    images = [str(files["moving"]), "--fixed", str(files["fixed"])]
    assert main(["resample", *images, *field, "--out", str(out)]) == ExitCode.OK
    mine, first = (read_image_file(path, ValueError).array for path in (out, registered / "warped.nrrd"))  # type: ignore[type-var]
    assert (np.abs(mine.astype(int) - first) <= 1).all()


def test_points_outside_the_field_are_named(
    registered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    far = tmp_path / "far.txt"
    far.write_text("point\n2\n0 0 0\n900 0 0\n")
    field = ["--transform", str(registered / "displacement.nrrd")]
    out = tmp_path / "moved.mrk.json"
    assert main(["transform-points", str(far), *field, "--out", str(out)]) == ExitCode.INPUT
    assert "1 of 2 points lie outside the field" in capsys.readouterr().err
    assert not out.exists()


def test_an_earlier_field_and_points_that_pull(
    files: dict[str, Path], registered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = ["--fixed-points", str(files["fixed_points"]), "--moving-points", str(files["moving_points"])]
    images = [str(files["fixed"]), str(files["moving"])]
    start = ["--start", str(registered / "displacement.nrrd"), "--use-points", "0.5", "--preset", "fast"]
    assert main(["register", "deformable", *images, *start, *points, "--out", str(tmp_path), "--json"]) == ExitCode.OK
    report = json.loads(capsys.readouterr().out)
    assert report["preset"] == "fast"
    assert report["tre_mm"]["after"]["mean"] < 0.5
    code = main(["register", "deformable", *images, "--use-points", "1", "--out", str(tmp_path)])
    assert code == ExitCode.USAGE
    assert "--use-points needs" in capsys.readouterr().err
    code = main(["register", "deformable", *images, "--start", str(files["fixed"]), "--out", str(tmp_path)])
    assert code == ExitCode.INPUT
    assert "vectors of 3" in capsys.readouterr().err
    for wrong in (["--preset", "best"], ["--device", "gpu"]):
        code = main(["register", "deformable", *images, *wrong, "--out", str(tmp_path)])
        assert code == ExitCode.USAGE
        assert f"{' '.join(wrong)}: there are" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_not_replaced(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise DeviceError(f"device {name}: no NVIDIA GPU answers")

    monkeypatch.setattr(deformable_device, "device_named", missing)
    images, out = [str(files["fixed"]), str(files["moving"])], tmp_path / "new"
    code = main(["register", "deformable", *images, "--device", "cuda", "--out", str(out)])
    assert code == ExitCode.ENVIRONMENT
    assert "device cuda: no NVIDIA GPU answers" in capsys.readouterr().err
    assert not out.exists()
