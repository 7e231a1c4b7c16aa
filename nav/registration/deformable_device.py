"""Where the dense steps of a deformable registration run: on the processor, or on a GPU when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nav.registration import deformable_kernels

__all__ = ["CPU", "DEVICES", "Device", "DeviceError", "device_named"]

#: What `device_named` knows.
DEVICES = ("cpu", "cuda")


class DeviceError(Exception):
    """A device that was asked for cannot be used; says what is missing and what to do."""


@dataclass(frozen=True, slots=True)
class Device:
    """Arrays of a device, and the kernels that work on them.

    Attributes
    ----------
    name : str
        As a report names it.
    kernels : module
        `deformable_kernels`, or one with the same functions for arrays of the device.
    array : callable
        A NumPy array on the device; may be the same one.
    home : callable
        An array of the device as a NumPy array; may be the same one.
    empty : callable
        A new array from shape and dtype.
    copied : callable
        A new array like one of the device.
    plus : callable
        ``one + factor * two`` of two fields (k, j, i, 3), as a new one.
    weights : callable
        uint8 (k, j, i) as `search_costs` takes weights.
    """

    name: str
    kernels: ModuleType
    array: Callable[[NDArray[Any]], Any]
    home: Callable[[Any], NDArray[Any]]
    empty: Callable[[tuple[int, ...], type[np.generic]], Any]
    copied: Callable[[Any], Any]
    plus: Callable[[Any, float, Any], Any]
    weights: Callable[[Any], Any]


def _same(array: NDArray[Any]) -> NDArray[Any]:
    return array


def _plus(one: NDArray[Any], factor: float, two: NDArray[Any]) -> NDArray[Any]:
    return one + np.float32(factor) * two


CPU = Device(
    "cpu", deformable_kernels, array=_same, home=_same, empty=np.empty, copied=np.copy, plus=_plus,
    weights=lambda counted: counted.astype(np.float32),
)  # fmt: skip


def device_named(name: str) -> Device:
    """The device ``cpu`` or ``cuda``.

    Raises
    ------
    DeviceError
        There is none of this name, or it cannot be used here.
    """
    if name == "cpu":
        return CPU
    if name != "cuda":
        raise DeviceError(f"device {name}: there are {' and '.join(DEVICES)}")
    # Imported when it is asked for: it is an extra, and takes a while.
    from nav.registration.deformable_cuda import cuda_device

    return cuda_device()
