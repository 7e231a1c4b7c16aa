"""The errors of reading files: each names the file, the value, the limit and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nav.io.checks import Mismatch
    from nav.io.dicom_series import SeriesInfo

__all__ = [
    "CaseMismatchError",
    "CtGeometryError",
    "CtReadError",
    "ImageWriteError",
    "InputFileError",
    "MarkupsError",
    "MaskError",
    "PointFileError",
    "SequenceError",
    "SeveralSeriesError",
    "SurfaceFileError",
    "TransformFileError",
]


class InputFileError(ValueError):
    """Base of everything that can be wrong with a file that a person gave; nothing is half-loaded when it is raised."""


class CtReadError(InputFileError):
    """The CT cannot be read: empty folder, damaged or truncated file, another modality, unsupported encoding."""


class CtGeometryError(InputFileError):
    """The slices do not form one regular grid: missing, duplicate or unevenly spaced slices, mixed orientations."""


class SeveralSeriesError(InputFileError):
    """A folder holds several CT series and none was named. ``series`` lists them, for the person to choose from."""

    def __init__(self, message: str, series: tuple[SeriesInfo, ...]) -> None:
        self.series = series
        super().__init__(message)


class MaskError(InputFileError):
    """A mask or label map that cannot be used: empty, unknown label, no overlap with the CT, unreadable."""


class MarkupsError(InputFileError):
    """A markups file that cannot be used."""


class PointFileError(InputFileError):
    """A list of points that cannot be used."""


class SurfaceFileError(InputFileError):
    """A surface that cannot be used."""


class ImageWriteError(InputFileError):
    """A volume that cannot be written: another suffix, a folder that is not there."""


class TransformFileError(InputFileError):
    """A transform file that cannot be used: unreadable, of another kind, or not rigid."""


class SequenceError(InputFileError):
    """A sequence metafile that cannot be used."""


class CaseMismatchError(InputFileError):
    """Files that do not belong together. ``mismatches`` holds every disagreement, values side by side."""

    def __init__(self, message: str, mismatches: tuple[Mismatch, ...] = ()) -> None:
        self.mismatches = mismatches
        super().__init__(message)
