"""ITK transform files (``.tfm``, ``.txt`` as text, ``.h5`` as HDF5) in and out, as `Rigid`.

An ITK file lives in LPS and maps the other way round: points of the *fixed* image (where we want to go) to the *moving*
one (where the data is), for that is what resampling needs. A `Rigid` ``ReferenceToRas`` maps moving (Reference) to
fixed (Ras). Hence ``file = L · inv(M) · L`` with ``L = diag(-1, -1, 1, 1)``; Slicer shows ``M`` as "to parent".
The same L stands on both sides by convention, for frames that are no patient space too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nav.geometry.frames import TransformName
from nav.geometry.rigid import NotRigidError, Rigid
from nav.io.errors import TransformFileError
from nav.io.image_file import swap_lps_ras
from nav.io.itk import last_line, sitk

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
        sitk.WriteTransform(transform, str(file))
    except RuntimeError as error:
        raise TransformFileError(f"{file}: cannot be written: {last_line(error)}") from None


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
    if file.suffix.lower() in (".tfm", ".txt"):
        _check_text(file)
    try:
        transform = sitk.ReadTransform(str(file))
    except RuntimeError as error:
        raise TransformFileError(f"{file}: cannot be read as an ITK transform ({last_line(error)})") from None
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


#: Counts of Parameters and FixedParameters of the linear kinds, where ITK has one count only.
_COUNTS = {
    "AffineTransform": (12, 3),
    "MatrixOffsetTransformBase": (12, 3),
    "VersorRigid3DTransform": (6, 3),
    "QuaternionRigidTransform": (7, 3),
    "TranslationTransform": (3, 0),
}


def _check_text(file: Path) -> None:
    """Refuse a text file that breaks off: ITK's reader takes what is missing for the identity and says nothing."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TransformFileError(f"{file}: cannot be read as an ITK transform ({error})") from None
    blocks = re.split(r"^Transform:", text, flags=re.MULTILINE)
    if not text.startswith("#Insight Transform File") or len(blocks) < 2:
        raise TransformFileError(f"{file}: cannot be read as an ITK transform (it does not start as one)")
    for block in blocks[1:]:
        kind = block.split(maxsplit=1)[0] if block.strip() else ""
        if kind.startswith("CompositeTransform"):
            continue
        found = re.search(r"^Parameters:([^\n]*)\n(?:\s*\n)*FixedParameters:([^\n]*)\n", block, re.MULTILINE)
        if found is None:
            raise TransformFileError(
                f"{file}: cannot be read as an ITK transform ({kind or 'a transform'} breaks off: Parameters, "
                "FixedParameters and a line end are needed); copy it again"
            )
        counts = len(found[1].split()), len(found[2].split())
        base, _, sizes = kind.partition("_")
        wanted = _COUNTS.get(base) if sizes.endswith("_3_3") else None
        if wanted is not None and counts != wanted:
            raise TransformFileError(
                f"{file}: cannot be read as an ITK transform ({kind} has {counts[0]} parameters and {counts[1]} fixed "
                f"ones, expected {wanted[0]} and {wanted[1]}); copy it again"
            )


def _checked_suffix(path: Path | str) -> Path:
    file = Path(path)
    if file.suffix.lower() not in TRANSFORM_SUFFIXES:
        raise TransformFileError(f"{file}: a transform file ends in {', '.join(TRANSFORM_SUFFIXES)}")
    return file


def _matrix_of(transform: Any) -> NDArray[np.float64]:
    """The RAS matrix of a linear transform, from where it takes the origin and the unit points: centre included."""
    points = np.vstack([np.zeros(3), np.eye(3)])
    images = np.array([transform.TransformPoint(swap_lps_ras(p).tolist()) for p in points])
    images = swap_lps_ras(images)
    matrix = np.eye(4)
    matrix[:3, :3] = (images[1:] - images[0]).T
    matrix[:3, 3] = images[0]
    return matrix
