"""What an image must be to be registered."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nav.geometry.volume import Volume
from nav.registration.pyramid import LEAST_VOXELS
from nav.registration.verdict import ImageRegistrationError

__all__ = ["check_image"]


def check_image(image: Volume, mask: NDArray[np.generic] | None, what: str) -> None:
    """``what`` is "fixed" or "moving"; the mask, (k, j, i), lies on the grid of its image.

    Raises
    ------
    ImageRegistrationError
        Too thin, not finite, constant, or a mask that is empty or on another grid.
    """
    if mask is not None and mask.shape != image.array.shape:
        raise ImageRegistrationError(
            f"the {what} mask has {mask.shape} voxels (k, j, i), its image {image.array.shape}; resample it"
        )
    if mask is not None and not mask.any():
        raise ImageRegistrationError(f"the {what} mask is empty; choose the label that covers the body or organ")
    if min(image.array.shape) < LEAST_VOXELS:
        raise ImageRegistrationError(
            f"the {what} image has {image.size} voxels; every axis needs at least {LEAST_VOXELS} "
            "(a slice or a short stack: register it as one)"
        )
    if np.issubdtype(image.array.dtype, np.floating) and not np.isfinite(image.array).all():
        bad = int(np.count_nonzero(~np.isfinite(image.array)))
        raise ImageRegistrationError(f"the {what} image holds {bad} voxels that are not finite; replace or mask them")
    if image.array.min() == image.array.max():
        raise ImageRegistrationError(f"the {what} image is constant ({image.array.flat[0]:g} everywhere)")
