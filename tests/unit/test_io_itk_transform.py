"""ITK transforms: direction and side conventions proved with SimpleITK itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nav.geometry.rigid import Rigid
from nav.io.errors import TransformFileError
from nav.io.itk import sitk
from nav.io.itk_transform import read_itk_rigid, write_itk_rigid

FLIP = np.array([-1.0, -1.0, 1.0])


def some_rigid(seed: int = 0) -> Rigid:
    rng = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    matrix[:3, 3] = rng.uniform(-300, 300, 3)
    return Rigid.from_matrix(matrix, "ReferenceToRas")


@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".h5"])
@pytest.mark.parametrize("seed", range(4))
def test_file_takes_fixed_lps_points_to_moving_ones(tmp_path: Path, suffix: str, seed: int) -> None:
    """ITK resamples: a point of the fixed space (Ras) goes to where its data is in the moving one (Reference)."""
    rigid = some_rigid(seed)
    file = tmp_path / f"t{suffix}"
    write_itk_rigid(file, rigid)
    itk = sitk.ReadTransform(str(file))
    for moving in np.random.default_rng(seed).uniform(-200, 200, (5, 3)):
        fixed = rigid.apply(moving)
        np.testing.assert_allclose(itk.TransformPoint((fixed * FLIP).tolist()), moving * FLIP, atol=1e-9)
    again = read_itk_rigid(file, "ReferenceToRas")
    assert again.name == rigid.name
    np.testing.assert_allclose(again.matrix, rigid.matrix, atol=1e-9)


def test_matrix_is_that_of_slicer(tmp_path: Path) -> None:
    rigid = some_rigid(9)
    write_itk_rigid(tmp_path / "t.tfm", rigid)
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    expected = flip @ np.linalg.inv(rigid.matrix) @ flip
    itk = sitk.AffineTransform(sitk.ReadTransform(str(tmp_path / "t.tfm")))
    np.testing.assert_allclose(np.reshape(itk.GetMatrix(), (3, 3)), expected[:3, :3], atol=1e-12)
    np.testing.assert_allclose(itk.GetTranslation(), expected[:3, 3], atol=1e-9)
    assert "AffineTransform_double_3_3" in (tmp_path / "t.tfm").read_text()


@pytest.mark.parametrize("kind", ["euler", "versor", "affine with centre", "composite"])
def test_other_rigid_kinds_with_a_centre(tmp_path: Path, kind: str) -> None:
    if kind == "versor":
        itk: sitk.Transform = sitk.VersorRigid3DTransform((0.0, 0.6, 0.8), 0.7, (1.0, 2.0, 3.0), (10.0, -20.0, 30.0))
    elif kind == "affine with centre":
        turn = Rotation.from_rotvec([0.2, -0.4, 0.9]).as_matrix()
        itk = sitk.AffineTransform(turn.ravel().tolist(), (3.0, 4.0, 5.0), (10.0, -20.0, 30.0))
    else:
        itk = sitk.Euler3DTransform((10.0, -20.0, 30.0), 0.3, -0.2, 1.1, (5.0, 6.0, -7.0))
        if kind == "composite":
            itk = sitk.CompositeTransform([itk, sitk.TranslationTransform(3, (1.0, 2.0, 3.0))])
    file = tmp_path / ("t.h5" if kind == "composite" else "t.tfm")
    sitk.WriteTransform(itk, str(file))
    rigid = read_itk_rigid(file, "ReferenceToRas")
    for fixed_lps in np.random.default_rng(1).uniform(-200, 200, (5, 3)):
        moving_lps = np.array(itk.TransformPoint(fixed_lps.tolist()))
        np.testing.assert_allclose(rigid.apply(moving_lps * FLIP), fixed_lps * FLIP, atol=1e-9)


def test_not_rigid_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.tfm"
    sitk.WriteTransform(sitk.AffineTransform((2.0, 0, 0, 0, 1, 0, 0, 0, 1), (0.0, 0, 0)), str(file))
    with pytest.raises(TransformFileError, match="not orthonormal"):
        read_itk_rigid(file, "ReferenceToRas")
    sitk.WriteTransform(sitk.AffineTransform((-1.0, 0, 0, 0, 1, 0, 0, 0, 1), (0.0, 0, 0)), str(file))
    with pytest.raises(TransformFileError, match="mirrors"):
        read_itk_rigid(file, "ReferenceToRas")
    field = sitk.DisplacementFieldTransform(sitk.Image([3, 3, 3], sitk.sitkVectorFloat64, 3))
    sitk.WriteTransform(field, str(tmp_path / "f.h5"))
    with pytest.raises(TransformFileError, match="DisplacementFieldTransform; expected one linear"):
        read_itk_rigid(tmp_path / "f.h5", "ReferenceToRas")
    sitk.WriteTransform(sitk.Euler2DTransform(), str(file))
    with pytest.raises(TransformFileError, match="2-dimensional"):
        read_itk_rigid(file, "ReferenceToRas")


def test_unreadable_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TransformFileError, match="no such file"):
        read_itk_rigid(tmp_path / "t.tfm", "ReferenceToRas")
    with pytest.raises(TransformFileError, match=r"ends in \.tfm"):
        read_itk_rigid(tmp_path / "t.json", "ReferenceToRas")
    with pytest.raises(TransformFileError, match="folder does not exist"):
        write_itk_rigid(tmp_path / "no" / "t.tfm", some_rigid())
    for suffix in (".tfm", ".h5"):
        file = tmp_path / f"t{suffix}"
        write_itk_rigid(file, some_rigid())
        content = file.read_bytes()
        for keep in (0, len(content) // 3, len(content) * 2 // 3, len(content) - 4):
            file.write_bytes(content[:keep])
            with pytest.raises(TransformFileError, match="cannot be read as an ITK transform"):
                read_itk_rigid(file, "ReferenceToRas")
