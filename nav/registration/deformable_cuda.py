"""The first GPU that CUDA names, for the dense steps of a deformable registration."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from numba import config, cuda
from numpy.typing import NDArray

from nav.registration import deformable_cuda_kernels as kernels
from nav.registration.deformable_device import Device, DeviceError

__all__ = ["cuda_device"]


def cuda_device() -> Device:
    """The GPU.

    Raises
    ------
    DeviceError
        The extra is not installed, or no GPU answers.
    """
    simulated = bool(config.ENABLE_CUDASIM)  # type: ignore[attr-defined]
    if not simulated and importlib.util.find_spec("numba_cuda") is None:
        raise DeviceError("device cuda: the package numba-cuda is not installed; pip install 'ablation-nav[gpu]'")
    if not cuda.is_available():
        raise DeviceError(
            "device cuda: no NVIDIA GPU answers; look whether nvidia-smi lists one (its driver), or use --device cpu"
        )
    # Coarse levels are small and cannot fill a GPU: nothing that a person could do something about.
    config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # type: ignore[attr-defined]
    name = "simulated" if simulated else _text(cuda.get_current_device().name)
    return Device(
        f"cuda: {name}", kernels, array=_there, home=_home, empty=cuda.device_array, copied=_copied,
        plus=kernels.plus, weights=lambda counted: counted,
    )  # fmt: skip


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _there(array: NDArray[Any]) -> Any:
    return cuda.to_device(np.ascontiguousarray(array))


def _home(array: Any) -> NDArray[Any]:
    out: NDArray[Any] = array.copy_to_host()
    return out


def _copied(array: Any) -> Any:
    out = cuda.device_array_like(array)
    out.copy_to_device(array)
    return out
