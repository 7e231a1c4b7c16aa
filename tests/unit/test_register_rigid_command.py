"""``register rigid``: two image files in; transform, picture, resampled image and a report out."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from nav.cli.errors import ExitCode
from nav.cli.main import main
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.imaging.checkerboard import checkerboard
from nav.imaging.resample import resample_rigid, upright_grid
from nav.io.errors import ImageWriteError, PointFileError
from nav.io.image_file import read_image_file, swap_lps_ras
from nav.io.itk_transform import read_itk_rigid, write_itk_rigid
from nav.io.point_files import read_points
from nav.io.volume_file import write_volume

SHAPE = (48, 56, 60)
#: Left and back, as a DICOM series.
GRID = np.array([[-3.0, 0, 0, 90], [0, -3.0, 0, 80], [0, 0, 4.0, -100], [0, 0, 0, 1.0]])


def truth() -> NDArray[np.float64]:
    """Fixed to moving, RAS mm."""
    out = np.eye(4)
    out[:3, :3] = Rotation.from_euler("xyz", [4, -6, 5], degrees=True).as_matrix()
    out[:3, 3] = 7.0, -5.0, 9.0
    return out


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(1)
    k, j, i = np.indices(SHAPE).astype(float)
    inside = ((k - 24) / 22) ** 2 + ((j - 28) / 22) ** 2 + ((i - 30) / (25 - k / 8)) ** 2 < 1
    scene = np.where(inside, 60 + 3000 * gaussian_filter(rng.normal(0, 1, SHAPE), 2.5), -1000)
    scene = gaussian_filter(scene, 0.8)
    index = np.linalg.inv(GRID) @ truth() @ GRID  # of the moving image, for voxels of the fixed one
    at = np.stack([i, j, k], -1) @ index[:3, :3].T + index[:3, 3]
    fixed = map_coordinates(scene, at[..., ::-1].transpose(3, 0, 1, 2), order=3, mode="constant", cval=-1000)
    paths = {"fixed": folder / "fixed.nrrd", "moving": folder / "moving.nii.gz", "mask": folder / "mask.nrrd"}
    for name, values in (("fixed", fixed), ("moving", scene)):
        noisy = values + rng.normal(0, 10, SHAPE)
        write_volume(paths[name], Volume.of(np.rint(noisy).astype(np.int16), GRID))
    write_volume(paths["mask"], Volume.of(inside.astype(np.uint8), GRID))
    points = np.array([[0, 0, 0], [20, -10, 5], [-15, 12, -20], [5, 25, 18.0]])
    moved = points @ truth()[:3, :3].T + truth()[:3, 3]
    for name, ras in (("fixed_points", points), ("moving_points", moved)):
        paths[name] = folder / f"{name}.txt"
        rows = "\n".join(" ".join(f"{v:.6f}" for v in row) for row in swap_lps_ras(ras))
        paths[name].write_text(f"point\n{len(ras)}\n{rows}\n")
    return paths


def test_everything_is_written_and_agrees(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "registered"
    points = ["--fixed-points", str(files["fixed_points"]), "--moving-points", str(files["moving_points"])]
    images = [str(files["fixed"]), str(files["moving"])]
    code = main(["register", "rigid", *images, "--out", str(out), "--json", "--threads", "1", *points])
    report = json.loads(capsys.readouterr().out)
    assert code == ExitCode.OK
    assert (report["verdict"], report["reasons"], report["threads"]) == ("good", [], 1)
    assert report["tre_mm"]["before"]["mean"] > 10
    assert report["tre_mm"]["after"]["max"] < 0.3
    assert report["tre_mm"]["after"]["median"] < report["expected_error_mm"]["p95"] < 1.0
    assert report["jacobian"] == {"min": 1.0, "max": 1.0, "folded_fraction": 0.0}
    assert {"seconds", "iterations", "similarity", "inverse_consistency_mm"} <= set(report)
    written = read_itk_rigid(out / "transform.tfm", "MovingToFixed")
    np.testing.assert_allclose(written.matrix, report["transform"]["matrix_ras_mm"], atol=1e-9)
    fixed, warped = (read_image_file(p, PointFileError) for p in (files["fixed"], out / "warped.nrrd"))
    np.testing.assert_allclose(warped.ras_from_index, fixed.ras_from_index, atol=1e-6)
    assert warped.array.dtype == np.int16
    inner = (slice(8, -8),) * 3
    assert np.corrcoef(warped.array[inner].ravel(), fixed.array[inner].ravel())[0, 1] > 0.98
    picture = cv2.imread(str(out / "checkerboard.png"), cv2.IMREAD_UNCHANGED)
    assert picture.dtype == np.uint8
    assert picture.shape[0] == 480
    assert picture.std() > 20


def test_a_bad_one_ends_with_1_and_says_why_and_writes_all_the_same(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_image_file(files["moving"], PointFileError)
    mirrored = tmp_path / "mirrored.mha"
    write_volume(mirrored, Volume.of(np.ascontiguousarray(found.array[:, :, ::-1]), found.ras_from_index))
    assert main(["register", "rigid", str(files["fixed"]), str(mirrored), "--out", str(tmp_path)]) == ExitCode.FAILED
    out, err = capsys.readouterr()
    assert "implausible" in out or "doubtful" in out or "not converged" in out
    assert "patches" in err or "there and back" in err
    assert (tmp_path / "transform.tfm").is_file()


def test_start_mask_and_preset(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = tmp_path / "start.tfm"
    write_itk_rigid(start, Rigid.from_matrix(np.linalg.inv(truth()), "MovingToFixed"))
    images = [str(files["fixed"]), str(files["moving"])]
    options = ["--init", str(start), "--fixed-mask", str(files["mask"]), "--preset", "fast"]
    code = main(["register", "rigid", *images, "--out", str(tmp_path), "--json", *options])
    report = json.loads(capsys.readouterr().out)
    assert code == ExitCode.OK
    assert report["preset"] == "fast"
    assert report["similarity"]["before"] > 0.9


def test_another_modality_needs_the_other_metric(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_image_file(files["moving"], PointFileError)
    values = np.interp(found.array, [-1000, -200, 0, 60, 150, 400], [0, 50, 600, 350, 100, 500])
    other = tmp_path / "other.nrrd"
    write_volume(other, Volume.of(values.astype(np.int16), found.ras_from_index))
    base = ["register", "rigid", str(files["fixed"]), str(other), "--out", str(tmp_path), "--json"]
    points = ["--fixed-points", str(files["fixed_points"]), "--moving-points", str(files["moving_points"])]
    assert main([*base, *points, "--metric", "mutual-information"]) == ExitCode.OK
    report = json.loads(capsys.readouterr().out)
    assert report["metric"] == "mutual-information"
    assert report["tre_mm"]["after"]["max"] < 1.5
    assert 0.0 < report["similarity"]["after"] < 1.0
    assert main(base) == ExitCode.FAILED
    assert json.loads(capsys.readouterr().out)["metric"] == "correlation"


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--metric", "ssd"], ExitCode.USAGE, "correlation and mutual-information"),
        (["--preset", "best"], ExitCode.USAGE, "fast and good"),
        (["--threads", "4096"], ExitCode.USAGE, "this machine gives"),
        (["--fixed-points", "{fixed_points}"], ExitCode.USAGE, "belong together"),
        (["--fixed-mask", "{moving_points}"], ExitCode.INPUT, "not a known image file"),
        (["--init", "nowhere.tfm"], ExitCode.INPUT, "no such file"),
    ],
)
def test_what_is_wrong_is_named(
    files: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: ExitCode,
    text: str,
) -> None:
    more = [option.format(**files) for option in options]
    arguments = ["register", "rigid", str(files["fixed"]), str(files["moving"]), "--out", str(tmp_path), *more]
    assert main(arguments) == code
    assert text in capsys.readouterr().err


def test_a_mask_on_another_grid_and_points_that_do_not_pair(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.nrrd"
    write_volume(other, Volume.of(np.ones((4, 4, 4), np.uint8), np.eye(4)))
    few = tmp_path / "few.txt"
    few.write_text("point\n1\n0 0 0\n")
    base = ["register", "rigid", str(files["fixed"]), str(files["moving"]), "--out", str(tmp_path)]
    assert main([*base, "--moving-mask", str(other)]) == ExitCode.INPUT
    assert "not lie on the grid" in capsys.readouterr().err
    assert main([*base, "--fixed-points", str(files["fixed_points"]), "--moving-points", str(few)]) == ExitCode.INPUT
    assert "holds 4 points" in capsys.readouterr().err


def test_point_files_of_every_kind(tmp_path: Path) -> None:
    ras = np.array([[1.0, 2.0, 3.0], [-4.5, 5.0, 6.25]])
    lps = swap_lps_ras(ras)
    text = tmp_path / "p.txt"
    text.write_text("point\n2\n" + "\n".join(" ".join(map(str, row)) for row in lps))
    names, found = read_points(text)
    assert names == ("1", "2")
    np.testing.assert_allclose(found, ras)
    vtk = tmp_path / "p.vtk"
    vtk.write_text(
        "# vtk DataFile Version 3.0\npoints\nASCII\nDATASET POLYDATA\nPOINTS 2 float\n"
        + " ".join(map(str, lps.ravel()))
    )
    np.testing.assert_allclose(read_points(vtk)[1], ras)
    image = Volume.of(
        np.zeros((9, 9, 9), np.int16), np.array([[-2.0, 0, 0, 1], [0, 3, 0, 2], [0, 0, 4, 3], [0, 0, 0, 1]])
    )
    text.write_text("index\n1\n1 2 3\n")
    np.testing.assert_allclose(read_points(text, image)[1], [[-1.0, 8.0, 15.0]])
    with pytest.raises(PointFileError, match="not known of which image"):
        read_points(text)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "begins with 'nothing'"),
        ("hello world", "begins with 'hello world'"),
        ("point\n3\n1 2 3\n4 5 6\n", "announces 3 points and holds 2"),
        ("point\nthree\n", "damaged"),
        ("point\n1\n1 nan 3\n", "point 1 is not finite"),
        ("# vtk DataFile Version 3.0\nx\nBINARY\n", "without POINTS"),
    ],
)
def test_a_damaged_point_file_is_named(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(content)
    with pytest.raises(PointFileError, match=text):
        read_points(path)


def test_a_volume_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    volume = Volume.of(np.zeros((2, 2, 2), np.int16), np.eye(4))
    with pytest.raises(ImageWriteError, match="ends in"):
        write_volume(tmp_path / "x.png", volume)
    with pytest.raises(ImageWriteError, match="folder does not exist"):
        write_volume(tmp_path / "no" / "x.nrrd", volume)
    sheared = np.eye(4)
    sheared[0, 1] = 0.2
    with pytest.raises(ImageWriteError, match="right angles"):
        write_volume(tmp_path / "x.nrrd", Volume.of(np.zeros((2, 2, 2), np.int16), sheared))


@pytest.mark.parametrize("turn", [None, "left-handed", "tilted"])
def test_a_resampled_volume_stands_where_it_stood(turn: str | None, tmp_path: Path) -> None:
    grid = np.eye(4)
    grid[:3, :3] = Rotation.from_euler("xyz", [10, -20, 30], degrees=True).as_matrix() @ np.diag([1.0, 1.5, 2.5])
    grid[:3, 3] = 5.0, -7.0, 11.0
    if turn == "left-handed":
        grid[:3, 2] *= -1.0
    elif turn == "tilted":
        grid[:3, 2] += 0.3 * grid[:3, 1]
    k, j, i = np.indices((14, 16, 18))
    volume = Volume.of((10 * i + 20 * j - 15 * k).astype(np.float32), grid)
    upright = upright_grid(volume)
    assert (upright is volume) is (turn != "tilted")
    move = Rigid.from_matrix(truth(), "MovingToFixed")
    inside = resample_rigid(volume, upright, Rigid.identity("MovingToFixed"), outside=-9999.0)
    write_volume(tmp_path / "v.nrrd", inside)
    back = read_image_file(tmp_path / "v.nrrd", PointFileError)
    np.testing.assert_allclose(back.ras_from_index, upright.ras_from_index, atol=1e-6)
    # A linear image: its value at every place is known.
    shifted = resample_rigid(volume, upright, move, outside=-9999.0)
    for moved, array in ((np.eye(4), inside.array), (move.matrix, shifted.array)):
        known = np.argwhere(array > -9000)
        ras = upright.to_ras(known[:, ::-1])
        index = volume.to_index((ras - moved[:3, 3]) @ moved[:3, :3])
        wanted = index @ np.array([10.0, 20.0, -15.0])
        assert len(known) > 500
        np.testing.assert_allclose(array[tuple(known.T)], wanted, atol=0.05)


def test_the_checkerboard_shows_both_in_one_window_with_the_head_up() -> None:
    array = np.zeros((20, 22, 24), np.int16)
    array[10:] = 1000  # the upper half of the body
    up = Volume.of(array, np.diag([2.0, 2.0, 2.0, 1.0]))
    picture = checkerboard(up, Volume.of(array // 2, up.ras_from_index))
    side = picture[:, picture.shape[1] // 2 :]
    assert side[:200].mean() > 100
    assert side[280:].mean() < 20
    assert {0, 255} <= {int(v) for v in np.unique(picture)}
    half = np.unique(side[:200])
    assert half.min() < 150 < half.max()
    with pytest.raises(ValueError, match="share a grid"):
        checkerboard(up, Volume.of(array[1:], up.ras_from_index))


def test_points_and_images_go_through_the_written_transform(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transform = tmp_path / "t.tfm"
    write_itk_rigid(transform, Rigid.from_matrix(np.linalg.inv(truth()), "MovingToFixed"))
    there, back = tmp_path / "there.mrk.json", tmp_path / "back.mrk.json"
    points = str(files["fixed_points"])
    assert main(["transform-points", points, "--transform", str(transform), "--out", str(there)]) == ExitCode.OK
    names, found = read_points(there)
    assert names == ("1", "2", "3", "4")
    np.testing.assert_allclose(found, read_points(files["moving_points"])[1], atol=1e-4)
    back_again = ["transform-points", str(there), "--transform", str(transform), "--inverse", "--out", str(back)]
    assert main(back_again) == ExitCode.OK
    np.testing.assert_allclose(read_points(back)[1], read_points(files["fixed_points"])[1], atol=1e-4)
    out = tmp_path / "warped.nrrd"
    onto = ["--fixed", str(files["fixed"]), "--transform", str(transform)]
    assert main(["resample", str(files["moving"]), *onto, "--out", str(out)]) == ExitCode.OK
    fixed, warped = (read_image_file(p, PointFileError).array for p in (files["fixed"], out))
    inner = (slice(8, -8),) * 3
    assert np.corrcoef(warped[inner].ravel(), fixed[inner].ravel())[0, 1] > 0.98
    labels = tmp_path / "labels.nii.gz"
    assert main(["resample", str(files["mask"]), *onto, "--labels", "--out", str(labels)]) == ExitCode.OK
    assert set(np.unique(read_image_file(labels, PointFileError).array)) == {0, 1}
    assert "wrote" in capsys.readouterr().out
    assert main(["resample", str(files["mask"]), *onto, "--out", str(tmp_path / "x.png")]) == ExitCode.INPUT
    assert "ends in" in capsys.readouterr().err
