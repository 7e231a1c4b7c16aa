"""ITK transform files (``.tfm``, ``.txt`` as text, ``.h5`` as HDF5) in and out, as `Rigid`.

An ITK file lives in LPS and maps the other way round: points of the *fixed* image (where we want to go) to the *moving*
one (where the data is), for that is what resampling needs. A `Rigid` ``ReferenceToRas`` maps moving (Reference) to
fixed (Ras). Hence ``file = L · inv(M) · L`` with ``L = diag(-1, -1, 1, 1)``; Slicer shows ``M`` as "to parent".
The same L stands on both sides by convention, for frames that are no patient space too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nav.geometry.frames import TransformName
from nav.geometry.rigid import NotRigidError, Rigid
from nav.io.errors import TransformFileError
from nav.io.image_file import swap_lps_ras
from nav.io.itk import sitk

__all__ = ["TRANSFORM_SUFFIXES", "read_itk_rigid", "write_itk_rigid"]

TRANSFORM_SUFFIXES = (".tfm", ".txt", ".h5", ".hdf5")


def write_itk_rigid(path: Path | str, rigid: Rigid) -> None:
    """Write ``rigid`` as an AffineTransform_double_3_3, which Slicer and ITK read.

    Raises
    ------
    TransformFileError
        Another suffix, or a folder that cannot be written to.
    """
    file = _checked_suffix(path)
    inverse = rigid.inverse()
    rotation = swap_lps_ras(swap_lps_ras(inverse.rotation).T).T  # L R L
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(rotation.ravel().tolist())
    transform.SetTranslation(swap_lps_ras(inverse.translation).tolist())
    if not file.parent.is_dir():
        raise TransformFileError(f"{file}: its folder does not exist")
    try:
        if file.suffix.lower() in (".h5", ".hdf5"):
            sitk.WriteTransform(transform, str(file))
        else:
            # ITK's own text writer rounds nothing, but a repr is what reads back to the very same numbers.
            numbers = [*rotation.ravel().tolist(), *swap_lps_ras(inverse.translation).tolist()]
            file.write_text(
                "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\nParameters: "
                + " ".join(repr(v + 0.0) for v in numbers)
                + "\nFixedParameters: 0 0 0\n",
                encoding="ascii",
            )
    except (OSError, RuntimeError) as error:
        raise TransformFileError(f"{file}: cannot be written: {error}") from None


def read_itk_rigid(path: Path | str, name: TransformName | str) -> Rigid:
    """Read a rigid transform; ``name`` says what it maps (moving to fixed), such as ``ReferenceToRas``.

    Any linear ITK transform is read (Affine, Euler3D, VersorRigid3D, with its centre; a composite of them), provided
    that it is rigid.

    Raises
    ------
    TransformFileError
        Absent, unreadable, a deformation field, or not rigid (scale, shear, mirror).
    """
    file = _checked_suffix(path)
    if not file.is_file():
        raise TransformFileError(f"{file}: no such file")
    try:
        transform = sitk.ReadTransform(str(file))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise TransformFileError(f"{file}: cannot be read as an ITK transform ({lines[-1][-160:]})") from None
    if transform.GetDimension() != 3 or not transform.IsLinear():
        raise TransformFileError(
            f"{file}: holds a {transform.GetDimension()}-dimensional {transform.GetName()}; expected one linear "
            "three-dimensional transform"
        )
    fixed_to_moving = _matrix_of(transform)
    try:
        inverse = Rigid.from_matrix(fixed_to_moving, TransformName.parse(str(name)).inverse)
    except NotRigidError as error:
        raise TransformFileError(f"{file}: {error}") from None
    return inverse.inverse()


def _checked_suffix(path: Path | str) -> Path:
    file = Path(path)
    if file.suffix.lower() not in TRANSFORM_SUFFIXES:
        raise TransformFileError(f"{file}: a transform file ends in {', '.join(TRANSFORM_SUFFIXES)}")
    return file


def _matrix_of(transform: object) -> NDArray[np.float64]:
    """The RAS matrix of a linear transform, from where it takes the origin and the unit points: centre included."""
    points = np.vstack([np.zeros(3), np.eye(3)])
    images = np.array([sitk.Transform.TransformPoint(transform, swap_lps_ras(p).tolist()) for p in points])
    images = swap_lps_ras(images)
    matrix = np.eye(4)
    matrix[:3, :3] = (images[1:] - images[0]).T
    matrix[:3, 3] = images[0]
    return matrix
