"""Masks: the right label and piece, on their own grid, at the right place, or a refusal that lists what there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from io_support import AXES, OBLIQUE, write_image

from nav.geometry.volume import Volume
from nav.io.ct import load_ct
from nav.io.errors import MaskError
from nav.io.labels import components, extract_mask, load_mask, read_label_map


def ct_volume(extent_mm: float = 100.0, centre: tuple[float, float, float] = (0.0, 0.0, 0.0), hu: int = 50) -> Volume:
    """A CT of 2 mm voxels stored LPS, its box centred at ``centre`` RAS."""
    n = int(extent_mm / 2)
    affine = np.diag([-2.0, -2.0, 2.0, 1.0])
    affine[:3, 3] = np.array(centre) + np.array([1.0, 1.0, -1.0]) * (extent_mm / 2 - 1)
    return Volume.of(np.full((n, n, n), hu, np.int16), affine)


def label_array() -> np.ndarray:
    """Label 3 in two pieces (2×2×2 and 1 voxel, not even diagonal neighbours), label 7 in one."""
    array = np.zeros((12, 14, 16), np.uint8)
    array[4:6, 5:7, 6:8] = 3
    array[9, 9, 9] = 3
    array[2, 2, 2:5] = 7
    return array


@pytest.mark.parametrize("axes", sorted(AXES))
@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".mha"])
def test_mask_keeps_its_own_grid_and_its_place(tmp_path: Path, suffix: str, axes: str) -> None:
    spacing, origin = np.array([0.8, 1.1, 2.0]), np.array([-5.0, -6.0, -12.0])
    file = write_image(tmp_path / f"m{suffix}", label_array(), spacing=spacing, origin=origin, axes=AXES[axes])
    mask = load_mask(file, label=7, ct=ct_volume(), component=None)
    np.testing.assert_allclose(np.sort(mask.volume.spacing_mm), np.sort(spacing), atol=1e-5)
    kji = np.argwhere(mask.volume.array)
    expected = np.array([origin + AXES[axes] @ (spacing * (i, 2, 2)) for i in (2, 3, 4)]) * (-1, -1, 1)
    np.testing.assert_allclose(mask.volume.to_ras(kji[:, ::-1]), expected, atol=2e-5)
    assert mask.volume.array.dtype == np.uint8
    assert mask.volume_ml == pytest.approx(3 * 0.8 * 1.1 * 2.0 / 1000)


def test_margin_of_at_least_12_mm_even_beyond_the_grid(tmp_path: Path) -> None:
    file = write_image(tmp_path / "m.nrrd", label_array(), spacing=(0.8, 1.1, 2.0))
    mask = load_mask(file, label=7, ct=ct_volume())
    kji = np.argwhere(mask.volume.array)
    low, high = kji.min(axis=0), np.array(mask.volume.array.shape) - 1 - kji.max(axis=0)
    room_mm = np.minimum(low, high) * mask.volume.spacing_mm[::-1]
    assert room_mm.min() >= 12.0


def test_components_by_size_with_centroids(tmp_path: Path) -> None:
    file = write_image(tmp_path / "m.nrrd", label_array(), spacing=(1.0, 1.0, 2.0))
    mask = load_mask(file, label=3, ct=ct_volume())
    assert [c.index for c in mask.components] == [1, 2]
    assert [c.volume_ml for c in mask.components] == pytest.approx([0.016, 0.002])
    np.testing.assert_allclose(mask.components[0].centroid_ras, (-6.5, -5.5, 9.0))
    np.testing.assert_allclose(mask.components[1].centroid_ras, (-9.0, -9.0, 18.0))
    for component, voxels in ((1, 8), ("largest", 8), ("2", 1), (2, 1)):
        one = load_mask(file, label=3, ct=ct_volume(), component=component)
        assert int(one.volume.array.sum()) == voxels
        again = components(one.volume)
        assert len(again) == 1
        assert one.component is not None
        np.testing.assert_allclose(again[0].centroid_ras, one.components[one.component - 1].centroid_ras)


def test_pieces_that_touch_at_a_corner_are_one(tmp_path: Path) -> None:
    array = np.zeros((5, 5, 5), np.uint8)
    array[1, 1, 1] = array[2, 2, 2] = 1
    mask = load_mask(write_image(tmp_path / "m.nrrd", array), label=1, ct=ct_volume())
    assert len(mask.components) == 1


def test_components_of_an_empty_mask_are_none() -> None:
    assert components(Volume.of(np.zeros((1, 1, 1), np.uint8), np.eye(4))) == ()


def test_several_labels_are_joined_and_one_label_needs_no_name(tmp_path: Path) -> None:
    file = write_image(tmp_path / "m.nrrd", label_array())
    assert int(load_mask(file, label=(3, 7), ct=ct_volume()).volume.array.sum()) == 12
    only = write_image(tmp_path / "one.nrrd", np.where(label_array() == 3, 3, 0).astype(np.uint16))
    assert load_mask(only, label=None, ct=ct_volume()).labels == (3,)


def test_segment_names_of_slicer_are_read(tmp_path: Path) -> None:
    names = {"Segment0_LabelValue": "3", "Segment0_Name": "metastasis", "Segment1_LabelValue": "7"}
    file = write_image(tmp_path / "m.seg.nrrd", label_array(), metadata=names)
    assert load_mask(file, label=3, ct=ct_volume()).name == "metastasis"
    with pytest.raises(MaskError, match=r"3 metastasis \(0\.01 ml\), 7 \(0\.00 ml\)"):
        load_mask(file, label=None, ct=ct_volume())


@pytest.mark.parametrize(
    ("label", "component", "message"),
    [
        (5, None, r"label 5 is not in it; it holds the labels 3 \(0\.01 ml\), 7 \(0\.00 ml\)"),
        (-1, None, "label -1 is not in it"),
        (70000, None, "label 70000 is not in it"),
        (None, None, "give a label; it holds the labels 3"),
        (3, 3, r"component 3 of label 3 does not exist; there are 1: 0\.01 ml, 2: 0\.00 ml"),
        (3, 0, "component 0"),
        (3, "smallest", "component 'smallest'"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(
    tmp_path: Path, label: int | None, component: int | str | None, message: str
) -> None:
    file = write_image(tmp_path / "m.nrrd", label_array())
    with pytest.raises(MaskError, match=message):
        load_mask(file, label=label, ct=ct_volume(), component=component)


def test_empty_probability_and_negative_maps_are_refused(tmp_path: Path) -> None:
    empty = write_image(tmp_path / "e.nrrd", np.zeros((4, 4, 4), np.uint8))
    for label in (None, 1):
        with pytest.raises(MaskError, match="the mask is empty"):
            load_mask(empty, label=label, ct=ct_volume())
    soft = write_image(tmp_path / "p.nrrd", np.full((4, 4, 4), 0.5, np.float32))
    with pytest.raises(MaskError, match="not probabilities"):
        read_label_map(soft)
    ct_like = write_image(tmp_path / "c.nrrd", np.full((4, 4, 4), -5, np.int16))
    with pytest.raises(MaskError, match="run from -5"):
        read_label_map(ct_like)
    whole = write_image(tmp_path / "w.nrrd", label_array().astype(np.float32))
    assert int(load_mask(whole, label=3, ct=ct_volume()).volume.array.sum()) == 9
    with pytest.raises(MaskError, match="no such file"):
        read_label_map(tmp_path / "nowhere.nrrd")


def test_mask_beside_the_ct_is_refused_with_both_extents(tmp_path: Path) -> None:
    file = write_image(tmp_path / "m.nrrd", label_array(), origin=(500.0, 0.0, 0.0))
    with pytest.raises(MaskError, match=r"does not overlap the CT: structure R -50[0-9.]+ to .* CT R -49\.0 to 49\.0"):
        load_mask(file, label=3, ct=ct_volume())


@pytest.mark.parametrize(
    ("centre", "message"),
    [((80.0, 90.0, 0.0), "left and right are swapped"), ((80.0, 90.0, 0.0), "as when LPS is taken for RAS")],
)
def test_mask_on_the_wrong_side_says_so(tmp_path: Path, centre: tuple[float, float, float], message: str) -> None:
    x, y, z = centre
    # RAS (−x, ±y) where the CT stands at (x, y): the file is LPS, hence the sign.
    mask_ras = (-x, y if "left" in message else -y, z)
    file = write_image(tmp_path / "m.nrrd", label_array(), origin=(-mask_ras[0], -mask_ras[1], mask_ras[2]))
    with pytest.raises(MaskError, match=f"it would lie inside if .*{message}"):
        load_mask(file, label=3, ct=ct_volume(centre=centre))


def test_mirrored_copy_of_the_ct_grid_is_refused(tmp_path: Path) -> None:
    """The structure still overlaps the CT; only the grid tells that it was written mirrored."""
    ct = ct_volume(extent_mm=24.0, centre=(5.0, 0.0, 0.0))
    array = np.zeros((12, 12, 12), np.uint8)
    array[5:7, 5:7, 2:4] = 1
    lps = np.array(ct.ras_from_index)
    lps[:2] *= -1
    right = write_image(tmp_path / "right.nrrd", array, spacing=(2, 2, 2), origin=lps[:3, 3], axes=lps[:3, :3] / 2)
    assert load_mask(right, label=1, ct=ct).warnings == ()
    mirrored = lps.copy()
    mirrored[0] *= -1
    wrong = write_image(
        tmp_path / "wrong.nrrd", array, spacing=(2, 2, 2), origin=mirrored[:3, 3], axes=mirrored[:3, :3] / 2
    )
    with pytest.raises(MaskError, match="its grid is the CT's with left and right swapped"):
        load_mask(wrong, label=1, ct=ct)


def test_partly_outside_in_air_and_cut_off_are_said(tmp_path: Path) -> None:
    file = write_image(tmp_path / "m.nrrd", np.ones((10, 10, 10), np.uint8), origin=(-5.0, -5.0, -5.0))
    half = load_mask(file, label=1, ct=ct_volume(centre=(50.0, 0.0, 0.0)))
    assert any("lies outside the CT" in w for w in half.warnings)
    assert any("cut off" in w for w in half.warnings)
    assert not any("lies in air" in w for w in half.warnings)
    assert any("lies in air" in w for w in load_mask(file, label=1, ct=ct_volume(hu=-900)).warnings)


def test_sheared_grid_is_refused(tmp_path: Path) -> None:
    file = write_image(tmp_path / "m.nrrd", label_array())
    content = file.read_bytes()
    assert b"(0,0,1)" in content
    file.write_bytes(content.replace(b"(0,0,1)", b"(0,0.3,1)"))
    with pytest.raises(MaskError, match=r"sheared|cannot be read"):
        read_label_map(file)


def test_oblique_crop_keeps_every_voxel_where_it_was(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    array = (rng.random((9, 10, 11)) > 0.9).astype(np.uint8)
    file = write_image(tmp_path / "m.nrrd", array, spacing=(0.7, 0.9, 3.0), origin=(1.0, 2.0, 3.0), axes=OBLIQUE)
    whole = read_label_map(file)
    mask = extract_mask(whole, label=1, ct=None)
    before = whole.volume.to_ras(np.argwhere(whole.volume.array)[:, ::-1])
    after = mask.volume.to_ras(np.argwhere(mask.volume.array)[:, ::-1])
    np.testing.assert_allclose(after, before, atol=1e-9)


def test_liver_tumours(shared_data: Path) -> None:
    ct = load_ct(shared_data / "ct_liver" / "dicom").volume
    labels = read_label_map(shared_data / "ct_liver" / "labels.nrrd")
    assert labels.volume.same_grid_as(ct)
    all_pieces = extract_mask(labels, label=451, ct=ct)
    expected_ml = [84.39, 10.10, 7.52, 3.74, 2.72, 2.53, 0.40]
    assert [round(c.volume_ml, 2) for c in all_pieces.components] == expected_ml
    for index in (2, 7):
        one = extract_mask(labels, label=451, ct=ct, component=index)
        assert one.volume_ml == pytest.approx(expected_ml[index - 1], abs=0.005)
        assert one.volume.array.size < 0.05 * ct.array.size
        assert not any("air" in w for w in one.warnings)
    # Liver with what lies in it: tumours and vessels.
    liver = extract_mask(labels, label=(449, 451, 465, 481), ct=ct, find_components=False)
    assert liver.volume_ml == pytest.approx(1489, abs=1)


@pytest.mark.parametrize(
    ("file", "expected_ml"),
    [
        ("Patient1/liver", 1454.1),
        ("Patient2/liver", 1911.8),
        ("Patient1/nodule", 35.6),
        ("Patient2/nodule1", 10.5),
        ("Patient2/nodule2", 15.1),
        ("Patient3/nodule1", 2.5),
        ("Patient3/nodule2", 6.4),
    ],
)
def test_liver_case_volumes(shared_data: Path, file: str, expected_ml: float) -> None:
    mask = load_mask(shared_data / "liver_cases" / f"{file}.nii.gz", label=None, ct=None)
    assert mask.volume_ml == pytest.approx(expected_ml, abs=0.06)
