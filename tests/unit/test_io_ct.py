"""Loading a CT: geometry, values, and a clear refusal for everything that would place it wrongly."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from io_support import AXES, IMPLICIT, OBLIQUE, write_image, write_series, write_slice

from nav.io.ct import list_series, load_ct
from nav.io.errors import CtGeometryError, CtReadError, SeveralSeriesError
from nav.io.itk import sitk


def test_bright_voxel_is_found_at_its_ras_point(tmp_path: Path) -> None:
    write_series(tmp_path, bright=(3, 5, 2))
    ct = load_ct(tmp_path)
    k, j, i = np.argwhere(ct.volume.array == 3000 - 1024)[0]
    # Column spacing is PixelSpacing[1], row spacing PixelSpacing[0]; x and y change sign from LPS to RAS.
    expected = (-(-20.0 + 3 * 0.7), -(-30.0 + 5 * 0.9), 100.0 + 2 * 2.5)
    np.testing.assert_allclose(ct.volume.to_ras([i, j, k]), expected, atol=1e-9)
    assert ct.volume.array.dtype == np.int16
    assert ct.volume.array[2, 1, 1] == 1002 - 1024
    assert ct.geometry.spacing_mm == pytest.approx((0.7, 0.9, 2.5))
    assert ct.geometry.axes == ("L", "P", "S")
    assert not ct.volume.array.flags.writeable


def test_spacing_comes_from_positions_not_from_slice_thickness(tmp_path: Path) -> None:
    write_series(tmp_path, SliceThickness=5.0)
    ct = load_ct(tmp_path)
    assert ct.geometry.spacing_mm[2] == pytest.approx(2.5)
    assert ct.geometry.slice_thickness_mm == 5.0


@pytest.mark.parametrize("downward", [False, True])
def test_oblique_series_in_either_direction(tmp_path: Path, downward: bool) -> None:
    row, column, normal = OBLIQUE.T
    step = (-2.0 if downward else 2.0) * normal
    origin = np.array([15.0, -40.0, 60.0])
    write_series(
        tmp_path, step=step, origin=origin, bright=(4, 6, 1), ImageOrientationPatient=[*row.tolist(), *column.tolist()]
    )
    ct = load_ct(tmp_path)
    k, j, i = np.argwhere(ct.volume.array == 3000 - 1024)[0]
    lps = origin + 4 * 0.7 * row + 6 * 0.9 * column + 1 * step
    np.testing.assert_allclose(ct.volume.to_ras([i, j, k]), lps * (-1, -1, 1), atol=1e-6)
    assert ct.geometry.tilt_deg == 0.0


def test_gantry_tilt_is_placed_exactly_and_said(tmp_path: Path) -> None:
    tilt = np.radians(15.0)
    column = [0.0, np.cos(tilt), -np.sin(tilt)]
    step = np.array([0.0, 0.0, 3.0])
    origin = np.array([-10.0, -20.0, 5.0])
    write_series(tmp_path, step=step, origin=origin, bright=(2, 9, 4), ImageOrientationPatient=[1.0, 0.0, 0.0, *column])
    ct = load_ct(tmp_path)
    k, j, i = np.argwhere(ct.volume.array == 3000 - 1024)[0]
    lps = origin + 2 * 0.7 * np.array([1.0, 0, 0]) + 9 * 0.9 * np.array(column) + 4 * step
    np.testing.assert_allclose(ct.volume.to_ras([i, j, k]), lps * (-1, -1, 1), atol=1e-6)
    assert ct.geometry.tilt_deg == pytest.approx(15.0, abs=1e-3)
    assert any("gantry tilt 15.00°" in w for w in ct.warnings)


def test_stated_tilt_without_tilted_positions_is_said(tmp_path: Path) -> None:
    write_series(tmp_path, GantryDetectorTilt=12.0)
    assert any("states a gantry tilt of 12°" in w for w in load_ct(tmp_path).warnings)


def test_missing_slice_is_refused_with_its_place(tmp_path: Path) -> None:
    write_series(tmp_path, leave_out=(3,))
    with pytest.raises(CtGeometryError, match=r"1 slice\(s\) missing.*between slice 3 at \(-20, -30, 105\)"):
        load_ct(tmp_path)


def test_uneven_spacing_is_refused_with_both_gaps(tmp_path: Path) -> None:
    files = write_series(tmp_path, count=5)
    files[4].unlink()
    write_slice(tmp_path / "odd", np.zeros((12, 10), np.int16), (-20.0, -30.0, 100.0 + 4 * 2.5 + 0.6))
    with pytest.raises(CtGeometryError, match=r"uneven slice spacing: 2\.500 mm.*3\.100 mm between slices 4 and 5"):
        load_ct(tmp_path)


def test_slice_shifted_sideways_is_refused(tmp_path: Path) -> None:
    files = write_series(tmp_path, count=5)
    files[2].unlink()
    write_slice(tmp_path / "odd", np.zeros((12, 10), np.int16), (-17.0, -30.0, 105.0))
    with pytest.raises(CtGeometryError, match=r"slice 3 of 5 \(odd\).*lies 3\.00 mm from its place"):
        load_ct(tmp_path)


def test_positions_rounded_by_the_scanner_are_accepted(tmp_path: Path) -> None:
    for k in range(9):
        write_slice(tmp_path / f"s{k}", np.full((4, 4), k, np.int16), (0.0, 0.0, round(k * 0.625, 1)))
    assert load_ct(tmp_path).geometry.spacing_mm[2] == pytest.approx(0.625)


def test_exact_copy_of_a_slice_is_left_out_and_said(tmp_path: Path) -> None:
    files = write_series(tmp_path)
    (tmp_path / "copy").write_bytes(files[1].read_bytes())
    ct = load_ct(tmp_path)
    assert ct.volume.array.shape[0] == 6
    assert any("1 exact copies" in w for w in ct.warnings)


def test_two_different_slices_at_one_place_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path)
    write_slice(tmp_path / "other", np.full((12, 10), 7, np.int16), (-20.0, -30.0, 105.0))
    with pytest.raises(CtGeometryError, match=r"two different slices at \(-20, -30, 105\)"):
        load_ct(tmp_path)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"ImageOrientationPatient": [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]}, "differ in orientation"),
        ({"PixelSpacing": [0.9, 0.8]}, "differ in PixelSpacing"),
        ({"FrameOfReferenceUID": "1.2.3.10"}, "differ in FrameOfReferenceUID"),
        ({"ImagePositionPatient": None}, "ImagePositionPatient is missing"),
        ({"PixelSpacing": None}, "PixelSpacing is missing"),
        ({"ImageOrientationPatient": [1.0, 0.0, 0.0, 0.5, 1.0, 0.0]}, "differ in orientation"),
    ],
)
def test_a_slice_that_does_not_belong_is_refused(tmp_path: Path, tags: dict[str, object], message: str) -> None:
    write_series(tmp_path, count=4)
    write_slice(tmp_path / "odd", np.zeros((12, 10), np.int16), (-20.0, -30.0, 110.0), **tags)
    with pytest.raises(CtGeometryError, match=message):
        load_ct(tmp_path)


def test_skewed_orientation_vectors_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path, ImageOrientationPatient=[1.0, 0.0, 0.0, 0.1, 0.995, 0.0])
    with pytest.raises(CtGeometryError, match="not two perpendicular unit vectors"):
        load_ct(tmp_path)


def test_slices_of_another_patient_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path, count=4)
    write_slice(tmp_path / "odd", np.zeros((12, 10), np.int16), (-20.0, -30.0, 110.0), PatientID="4712")
    with pytest.raises(CtReadError, match="differ in PatientID"):
        load_ct(tmp_path)


def test_several_series_are_listed_and_can_be_named(tmp_path: Path) -> None:
    write_series(tmp_path / "a", count=4)
    write_series(tmp_path / "b", count=5, SeriesInstanceUID="1.9.9", SeriesNumber=3, SeriesDescription="arterial")
    with pytest.raises(SeveralSeriesError) as caught:
        load_ct(tmp_path)
    assert [(s.index, s.uid, s.slices) for s in caught.value.series] == [(1, "1.2.3.4.5", 4), (2, "1.9.9", 5)]
    assert "arterial" in str(caught.value)
    assert "1.9.9" in str(caught.value)
    assert load_ct(tmp_path, series=2).volume.array.shape[0] == 5
    assert load_ct(tmp_path, series="2").volume.array.shape[0] == 5
    assert load_ct(tmp_path, series="1.2.3.4.5").volume.array.shape[0] == 4
    assert load_ct(tmp_path / "b" / "image_000").series is not None
    with pytest.raises(CtReadError, match="no series '3'"):
        load_ct(tmp_path, series=3)
    assert [s.description for s in list_series(tmp_path)] == ["portal venous", "arterial"]
    assert [s.description for s in list_series(tmp_path / "b" / "image_000")] == ["arterial"]
    assert list_series(write_image(tmp_path / "ct.nrrd", np.zeros((4, 4, 4), np.int16))) == ()


def test_localizer_and_other_modalities_are_left_aside_and_said(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", count=4)
    write_series(tmp_path / "scout", count=1, SeriesInstanceUID="1.5", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "pet", count=4, SeriesInstanceUID="1.6", Modality="PT")
    ct = load_ct(tmp_path)
    assert ct.volume.array.shape[0] == 4
    assert sum("left aside" in w for w in ct.warnings) == 2
    with pytest.raises(CtReadError, match="modality PT, not CT"):
        load_ct(tmp_path, series="1.6")


def test_another_modality_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, Modality="MR")
    with pytest.raises(CtReadError, match="modality MR, not CT"):
        load_ct(tmp_path)


def test_empty_absent_and_foreign_folders(tmp_path: Path) -> None:
    with pytest.raises(CtReadError, match="the folder is empty"):
        load_ct(tmp_path)
    with pytest.raises(CtReadError, match="no such file or folder"):
        load_ct(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CtReadError, match=r"none of its 1 files is a DICOM image, the first is notes\.txt"):
        load_ct(tmp_path)
    with pytest.raises(CtReadError, match="neither a DICOM folder nor a known image file"):
        load_ct(tmp_path / "notes.txt")


@pytest.mark.parametrize("keep", [0, 200, 600, -50])
def test_truncated_slice_is_named(tmp_path: Path, keep: int) -> None:
    files = write_series(tmp_path)
    content = files[3].read_bytes()
    files[3].write_bytes(content[:keep])
    with pytest.raises((CtReadError, CtGeometryError), match=files[3].name):
        load_ct(tmp_path)


def test_foreign_file_among_slices_is_said(tmp_path: Path) -> None:
    write_series(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    assert any("notes.txt" in w for w in load_ct(tmp_path).warnings)


def test_missing_frame_of_reference_and_rescale_are_said(tmp_path: Path) -> None:
    write_series(tmp_path, FrameOfReferenceUID=None, RescaleSlope=None, RescaleIntercept=None)
    ct = load_ct(tmp_path)
    assert any("FrameOfReferenceUID is missing" in w for w in ct.warnings)
    assert any("Rescale" in w for w in ct.warnings)
    assert ct.volume.array[1, 1, 1] == 1001


def test_rescale_slope_implicit_vr_and_clipping(tmp_path: Path) -> None:
    write_series(tmp_path, transfer_syntax=IMPLICIT, RescaleSlope=0.5, RescaleIntercept=-100.5)
    assert load_ct(tmp_path).volume.array[2, 1, 1] == 400  # 0.5 · 1002 − 100.5 = 400.5, to even
    write_series(tmp_path, RescaleSlope=100.0, RescaleIntercept=0.0)
    ct = load_ct(tmp_path)
    assert ct.volume.array.max() == 32767
    assert any("clipped" in w for w in ct.warnings)


def test_spare_bits_and_padding(tmp_path: Path) -> None:
    """12 stored bits with overlay bits above them, and padding that must not look like metal."""
    for k in range(3):
        pixels = np.full((4, 4), 1100 | 0x7000, dtype=np.uint16)
        pixels[0, 0] = 4095
        write_slice(tmp_path / f"s{k}", pixels, (0, 0, 2.0 * k), BitsStored=12, HighBit=11, PixelPaddingValue=4095)
    hu = load_ct(tmp_path).volume.array
    assert hu[1, 1, 1] == 1100 - 1024
    assert hu[1, 0, 0] == -1024


def test_pseudonym_is_stable_and_says_nothing(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", SeriesInstanceUID="1.7")
    a, again, b = load_ct(tmp_path / "a").identity, load_ct(tmp_path / "a").identity, load_ct(tmp_path / "b").identity
    assert a.pseudonym == again.pseudonym != b.pseudonym
    assert a.patient_name == "Doe^Jane"
    assert "Doe" not in a.pseudonym
    assert "4711" not in a.pseudonym


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    write_series(tmp_path)
    seen: list[tuple[int, int]] = []
    load_ct(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (12, 12)


@pytest.mark.parametrize("suffix", [".nrrd", ".nii", ".nii.gz", ".mha"])
@pytest.mark.parametrize("axes", sorted(AXES))
def test_one_landmark_in_every_format_and_orientation(tmp_path: Path, suffix: str, axes: str) -> None:
    array = np.full((7, 6, 5), -1000, dtype=np.int16)
    array[4, 2, 1] = 700
    origin, spacing = np.array([12.0, -33.0, 140.0]), np.array([0.6, 0.8, 2.5])
    file = write_image(tmp_path / f"ct{suffix}", array, spacing=spacing, origin=origin, axes=AXES[axes])
    ct = load_ct(file)
    k, j, i = np.argwhere(ct.volume.array == 700)[0]
    lps = origin + AXES[axes] @ (spacing * (1, 2, 4))
    np.testing.assert_allclose(ct.volume.to_ras([i, j, k]), lps * (-1, -1, 1), atol=2e-5)
    np.testing.assert_allclose(ct.volume.spacing_mm, spacing, atol=1e-5)


@pytest.mark.parametrize("suffix", [".nrrd", ".nii", ".nii.gz", ".mha"])
def test_truncated_image_file_is_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(1).integers(-1000, 1000, (9, 20, 20)).astype(np.int16)
    file = write_image(tmp_path / f"ct{suffix}", noise)
    content = file.read_bytes()
    for keep in (len(content) // 2, len(content) - 100):
        file.write_bytes(content[:keep])
        with pytest.raises(CtReadError, match="truncated"):
            load_ct(file)
    file.write_bytes(b"")
    with pytest.raises(CtReadError, match="empty"):
        load_ct(file)


def test_image_without_orientation_is_refused(tmp_path: Path) -> None:
    array = np.zeros((4, 4, 4), np.int16)
    nrrd = write_image(tmp_path / "a.nrrd", array)
    nrrd.write_bytes(nrrd.read_bytes().replace(b"space: left-posterior-superior\n", b"space dimension: 3\n"))
    with pytest.raises(CtReadError, match="no 'space' field"):
        load_ct(nrrd)
    nifti = write_image(tmp_path / "a.nii", array)
    content = bytearray(nifti.read_bytes())
    content[252:256] = b"\0\0\0\0"  # qform_code and sform_code, two int16
    nifti.write_bytes(bytes(content))
    with pytest.raises(CtReadError, match="qform_code and sform_code are both 0"):
        load_ct(nifti)


def test_four_dimensional_and_colour_images_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "series.nrrd"
    sitk.WriteImage(sitk.Image([4, 4, 4, 3], sitk.sitkInt16), str(file))
    with pytest.raises(CtReadError, match="three-dimensional scalar image"):
        load_ct(file)
    sitk.WriteImage(sitk.Image([4, 4, 4], sitk.sitkVectorUInt8, 3), str(file))
    with pytest.raises(CtReadError, match="3 components"):
        load_ct(file)


def test_float_image_is_rounded_and_nan_is_air(tmp_path: Path) -> None:
    array = np.full((4, 4, 4), -999.6, dtype=np.float32)
    array[0, 0, 0], array[1, 1, 1] = np.nan, 1e6
    ct = load_ct(write_image(tmp_path / "ct.nrrd", array))
    assert (ct.volume.array[0, 0, 0], ct.volume.array[1, 1, 1], ct.volume.array[2, 2, 2]) == (-1024, 32767, -1000)
    assert any("2 voxels" in w for w in ct.warnings)


def test_liver_ct(shared_data: Path) -> None:
    began = time.process_time()
    ct = load_ct(shared_data / "ct_liver" / "dicom")
    spent_s = time.process_time() - began
    assert ct.volume.array.shape == (129, 512, 512)
    assert ct.geometry.spacing_mm == pytest.approx((0.57, 0.57, 1.6), abs=1e-6)
    assert any("FrameOfReferenceUID is missing" in w for w in ct.warnings)
    assert spent_s < 2.5
    # Independent reader, its own sorting: same voxels, same place.
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(shared_data / "ct_liver" / "dicom")))
    image = reader.Execute()
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(image), ct.volume.array)
    lps = np.array(image.TransformIndexToPhysicalPoint((100, 200, 50)))
    np.testing.assert_allclose(ct.volume.to_ras([100, 200, 50]), lps * (-1, -1, 1), atol=1e-6)


def test_jpeg_2000_series(shared_data: Path) -> None:
    ct = load_ct(shared_data / "ct_small" / "dicom_jpeg2000")
    assert ct.volume.array.shape == (20, 512, 512)
    assert ct.geometry.spacing_mm[2] == pytest.approx(2.0)
    assert ct.geometry.slice_thickness_mm == 3.0
    assert ct.volume.array[0, 0, 0] == -1024  # outside the reconstruction circle
    assert -200 < np.median(ct.volume.array[10, 200:300, 200:300]) < 200
