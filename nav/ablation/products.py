"""Products of matrices on one thread."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["small_product"]

Array = NDArray[np.float64]

#: Multiplications in one call of the linear algebra library that keep it on one thread.
_MOST = 200_000


def small_product(left: Array, right: Array) -> Array:
    """``left @ right`` in pieces too small for the library's threads.

    At every pose the products are so small that waking threads, and waiting for them, takes longer than the work.
    """
    out = np.empty((len(left), right.shape[1]))
    step = max(_MOST // max(right.size, 1), 1)
    for start in range(0, len(left), step):
        np.matmul(left[start : start + step], right, out=out[start : start + step])
    return out
