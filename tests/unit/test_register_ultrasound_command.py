"""``register ultrasound``: a sequence metafile and a CT in; transform, pictures and a report out."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from nav.cli.errors import ExitCode
from nav.cli.main import main
from nav.geometry.poses import PoseStatus
from nav.io.errors import InputFileError
from nav.io.image_file import read_image_file, swap_lps_ras
from nav.io.itk import sitk
from nav.io.itk_transform import read_itk_rigid, write_itk_rigid
from nav.io.sequence import TrackedSequence, TransformTrack, write_sequence
from nav.io.volume_file import write_volume
from tests.unit.test_registration_ultrasound import NAME, SWEEP, ct, points, ras_from_reference, start


def write_sweep(path: Path, transform: str = "ImageToReference") -> None:
    """The sweep with one frame whose tool was lost."""
    count = len(SWEEP.images)
    lost = SWEEP.reference_from_pixel.copy()
    lost[3] = np.nan
    statuses = tuple(PoseStatus.MISSING if n == 3 else PoseStatus.OK for n in range(count))
    track = TransformTrack(transform, lost, statuses)
    write_sequence(
        path, TrackedSequence(np.arange(count) / 20.0, {transform: track}, SWEEP.images, np.ones(count, np.bool_))
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ultrasound")
    paths = {name: folder / name for name in ("ct.nrrd", "sweep.igs.mha", "start.tfm", "fixed.txt", "moving.txt")}
    write_volume(paths["ct.nrrd"], ct())
    write_sweep(paths["sweep.igs.mha"])
    write_itk_rigid(paths["start.tfm"], start(6.0, 5.0))
    there = points() @ np.linalg.inv(ras_from_reference())[:3, :3].T + np.linalg.inv(ras_from_reference())[:3, 3]
    for name, ras in (("fixed.txt", points()), ("moving.txt", there)):
        rows = "\n".join(" ".join(f"{v:.6f}" for v in row) for row in swap_lps_ras(ras))
        paths[name].write_text(f"point\n{len(ras)}\n{rows}\n")
    return paths


def test_everything_is_written_and_agrees(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "registered"
    images = [str(files["ct.nrrd"]), str(files["sweep.igs.mha"])]
    pairs = ["--fixed-points", str(files["fixed.txt"]), "--moving-points", str(files["moving.txt"])]
    options = ["--init", str(files["start.tfm"]), "--out", str(out), "--threads", "1", "--json"]
    code = main(["register", "ultrasound", *images, *options, *pairs])
    report = json.loads(capsys.readouterr().out)
    assert code == ExitCode.OK
    assert (report["verdict"], report["reasons"]) == ("good", [])
    assert report["tre_mm"]["before"]["mean"] > 4.0
    assert report["tre_mm"]["after"]["max"] < 1.2
    assert 0.0 < report["expected_error_mm"]["median"] < report["expected_error_mm"]["p95"] < 5.0
    assert 0.0 < report["motion_mm"] < 2.0
    assert len(report["frames"]) == len(SWEEP.images) - 1
    written = read_itk_rigid(out / "transform.tfm", NAME)
    np.testing.assert_allclose(written.matrix, report["transform"]["matrix_ras_mm"], atol=1e-9)
    warped = read_image_file(out / "warped.nrrd", InputFileError)
    assert warped.array.dtype == np.uint8
    assert 0.02 < (warped.array > 0).mean() < 0.9
    assert cv2.imread(str(out / "checkerboard.png"), cv2.IMREAD_UNCHANGED).std() > 20


def test_the_displacement_takes_points_of_the_ct_to_the_reference(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(files["ct.nrrd"]), str(files["sweep.igs.mha"])]
    pairs = ["--fixed-points", str(files["fixed.txt"]), "--moving-points", str(files["moving.txt"])]
    options = ["--init", str(files["start.tfm"]), "--out", str(tmp_path), "--deform", "--json"]
    assert main(["register", "ultrasound", *images, *options, *pairs]) == ExitCode.OK
    report = json.loads(capsys.readouterr().out)
    assert report["deform"]["followed"] is False  # nothing has moved
    assert report["jacobian"] == {"min": 1.0, "max": 1.0, "folded_fraction": 0.0}
    assert report["tre_mm"]["after"]["max"] < 1.2
    rigid = read_itk_rigid(tmp_path / "transform.tfm", NAME).inverse()
    image = sitk.ReadImage(report["out"]["displacement"], sitk.sitkVectorFloat64)
    field = sitk.DisplacementFieldTransform(image)
    there = swap_lps_ras(np.array([field.TransformPoint(p.tolist()) for p in swap_lps_ras(points())]))
    np.testing.assert_allclose(there, rigid.apply(points()), atol=1e-3)


def test_a_wrong_ct_ends_with_1_and_says_why(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirrored = tmp_path / "mirrored.nrrd"
    image = ct()
    write_volume(mirrored, type(image).of(np.ascontiguousarray(image.array[:, :, ::-1]), image.ras_from_index))
    options = ["--init", str(files["start.tfm"]), "--out", str(tmp_path)]
    code = main(["register", "ultrasound", str(mirrored), str(files["sweep.igs.mha"]), *options])
    out, err = capsys.readouterr()
    assert code == ExitCode.FAILED
    assert "above chance" in out
    assert "standard deviations" in err or "halves" in err
    assert (tmp_path / "transform.tfm").is_file()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--image-transform", "ProbeToReference"], "ImageToReference"),
        (["--fixed-points", "fixed.txt"], "belong together"),
    ],
)
def test_what_is_missing_is_named(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    images = [str(files["ct.nrrd"]), str(files["sweep.igs.mha"])]
    code = main(["register", "ultrasound", *images, "--out", str(tmp_path), *options])
    assert code in (ExitCode.INPUT, ExitCode.USAGE)
    assert text in capsys.readouterr().err
