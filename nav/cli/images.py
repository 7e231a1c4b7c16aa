"""Images of any modality from what a person names: a DICOM folder or slice, or an image file."""

from __future__ import annotations

from pathlib import Path

from nav.geometry.volume import Volume
from nav.io.ct import load_ct
from nav.io.errors import InputFileError
from nav.io.image_file import image_suffix, read_image_file

__all__ = ["MOVING_TO_FIXED", "read_image"]

#: What the transform of two images maps.
MOVING_TO_FIXED = "MovingToFixed"


def read_image(path: Path) -> Volume:
    """A volume with the scalar type of its file; DICOM as int16 HU.

    Raises
    ------
    InputFileError
        It cannot be read; the message says why.
    """
    if path.is_file() and image_suffix(path):
        found = read_image_file(path, InputFileError)
        return Volume.of(found.array, found.ras_from_index)
    return load_ct(path).volume
