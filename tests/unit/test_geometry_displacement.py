"""Displacement fields: where they take points, back again, and into files as ITK reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from nav.geometry.displacement import DisplacementField
from nav.geometry.volume import Volume, VolumeError
from nav.imaging.resample import resample_displaced
from nav.io.displacement_file import read_displacement, write_displacement
from nav.io.errors import ImageWriteError, TransformFileError
from nav.io.itk import sitk
from nav.io.volume_file import write_volume

FLIP = np.array([-1.0, -1.0, 1.0])
SHAPE = (9, 10, 11)


def grid(kind: str) -> NDArray[np.float64]:
    out = np.eye(4)
    turn = {
        "RAS": np.eye(3),
        "LPS": np.diag([-1.0, -1.0, 1.0]),
        "oblique": Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix(),
        "left-handed": np.diag([1.0, 1.0, -1.0]),
    }[kind]
    out[:3, :3] = turn @ np.diag([4.0, 5.0, 7.0])
    out[:3, 3] = 12.0, -30.0, 44.0
    return out


def field(kind: str, size_mm: float = 6.0, seed: int = 0) -> DisplacementField:
    rng = np.random.default_rng(seed)
    vectors = np.stack([gaussian_filter(rng.normal(0, 1, SHAPE), 2.0) for _ in range(3)], axis=-1)
    return DisplacementField.of(size_mm * vectors / np.abs(vectors).max(), grid(kind))


def points_in(one: DisplacementField, count: int, seed: int = 1) -> NDArray[np.float64]:
    top = np.array(SHAPE[::-1]) - 1.0
    return one.grid.to_ras(np.random.default_rng(seed).uniform(0.0, top, (count, 3)))


@pytest.mark.parametrize("kind", ["RAS", "LPS", "oblique", "left-handed"])
def test_simpleitk_takes_points_to_the_same_places(kind: str, tmp_path: Path) -> None:
    one = field(kind)
    write_displacement(tmp_path / "field.nrrd", one)
    image = sitk.ReadImage(str(tmp_path / "field.nrrd"), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(image)
    points = points_in(one, 200)
    there = np.array([transform.TransformPoint((p * FLIP).tolist()) for p in points]) * FLIP
    np.testing.assert_allclose(one.apply(points), there, atol=1e-3)
    assert np.linalg.norm(there - points, axis=1).mean() > 1.0
    back = read_displacement(tmp_path / "field.nrrd")
    np.testing.assert_allclose(back.apply(points), one.apply(points), atol=1e-5)


def test_there_and_back() -> None:
    one = field("oblique")
    points = points_in(one, 300)
    found = one.preimage(one.apply(points))
    known = np.isfinite(found).all(axis=1)
    assert known.mean() > 0.99
    np.testing.assert_allclose(found[known], points[known], atol=2e-3)


def test_the_inverse_on_a_grid_leads_back() -> None:
    one = field("LPS", size_mm=4.0)
    inverse = one.inverse_on(one.grid)
    inner = one.grid.to_ras(np.random.default_rng(2).uniform(2.0, np.array(SHAPE[::-1]) - 3.0, (200, 3)))
    apart = np.linalg.norm(inverse.apply(one.apply(inner)) - inner, axis=1)
    assert apart.max() < 0.5  # linear between nodes: of the curvature only


def test_outside_is_said_not_guessed() -> None:
    one = field("RAS")
    far = one.grid.to_ras(np.array([[-2.0, 3.0, 3.0], [3.0, 3.0, 3.0], [3.0, 3.0, 30.0]]))
    assert np.isnan(one.displacement_at(far)).all(axis=1).tolist() == [True, False, True]
    assert np.isnan(one.preimage(far)).all(axis=1).tolist() == [True, False, True]
    assert one.contains(far).tolist() == [False, True, False]


def test_what_is_no_field_is_refused(tmp_path: Path) -> None:
    vectors = np.zeros((*SHAPE, 3), np.float32)
    vectors[1, 2, 3, 0] = np.nan
    with pytest.raises(VolumeError, match="not finite at 1 of 990 nodes"):
        DisplacementField.of(vectors, np.eye(4))
    with pytest.raises(VolumeError, match=r"shape \(k, j, i, 3\)"):
        DisplacementField.of(np.zeros(SHAPE, np.float32), np.eye(4))
    write_volume(tmp_path / "scalar.nrrd", Volume.of(np.zeros(SHAPE, np.float32), grid("RAS")))
    with pytest.raises(TransformFileError, match="vectors of 3"):
        read_displacement(tmp_path / "scalar.nrrd")
    with pytest.raises(ImageWriteError, match="ends in"):
        write_displacement(tmp_path / "field.tfm", field("RAS"))
    with pytest.raises(ImageWriteError, match="folder"):
        write_displacement(tmp_path / "no" / "field.nrrd", field("RAS"))
    sheared = np.eye(4)
    sheared[0, 1] = 0.1
    with pytest.raises(ImageWriteError, match="right angles"):
        write_displacement(tmp_path / "field.nrrd", DisplacementField.of(field("RAS").vectors, sheared))


@pytest.mark.parametrize("nearest", [False, True])
def test_an_image_is_resampled_as_simpleitk_does(nearest: bool) -> None:
    one = field("LPS")
    rng = np.random.default_rng(3)
    a = grid("LPS").copy()
    a[:3, :3] /= 2.5
    moving = Volume.of(rng.integers(-1000, 1000, (24, 25, 26)).astype(np.int16), a)
    b = grid("LPS").copy()
    b[:3, :3] /= 2.0
    onto = Volume.of(np.zeros((17, 19, 21), np.uint8), b)
    mine = resample_displaced(moving, onto, one, outside=-7.0, nearest=nearest).array

    def image(volume: Volume, values: NDArray[np.generic], vector: bool = False) -> sitk.Image:
        out = sitk.GetImageFromArray(values, isVector=vector)
        out.SetSpacing(volume.spacing_mm.tolist())
        out.SetDirection((FLIP[:, None] * volume.ras_from_index[:3, :3] / volume.spacing_mm).ravel().tolist())
        out.SetOrigin((FLIP * volume.ras_from_index[:3, 3]).tolist())
        return out

    transform = sitk.DisplacementFieldTransform(image(one.grid, one.vectors.astype(np.float64) * FLIP, True))
    how = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    theirs = sitk.GetArrayFromImage(
        sitk.Resample(image(moving, moving.array), image(onto, onto.array), transform, how, -7.0)
    )
    # Half a voxel around its border ITK still extrapolates.
    inner = (mine != -7) & (theirs != -7)
    assert inner.mean() > 0.5
    apart = np.abs(mine[inner].astype(int) - theirs[inner])
    assert (apart > 1).mean() < (2e-3 if nearest else 1e-9)
