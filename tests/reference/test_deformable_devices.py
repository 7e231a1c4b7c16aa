"""A GPU, or its simulator, finds what the processor finds; one that cannot be used is not replaced in silence."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nav.geometry.displacement import DisplacementField
from nav.geometry.volume import Volume
from nav.registration.deformable_device import CPU, Device, DeviceError, device_named
from nav.registration.deformable_refinement import Marks, refined
from nav.registration.deformable_search import searched
from nav.registration.deformable_stage import Stage, level_images, stages_of

GRID = np.array([[-20.0, 0, 0, 5], [0, 18.0, 4.0, 1], [0, -4.0, 22.0, 0], [0, 0, 0, 1]])
SHAPE = (9, 8, 10)


@pytest.fixture(scope="module")
def gpu() -> Device:
    try:
        return device_named("cuda")
    except DeviceError as missing:
        pytest.skip(f"{missing}; or simulate one with NUMBA_ENABLE_CUDASIM=1")


def stage_on(device: Device) -> Stage:
    """The moving image is the fixed one a voxel further; both have a mask."""
    image = gaussian_filter(np.random.default_rng(1).normal(0.0, 1.0, SHAPE), 1.0).astype(np.float32)
    fixed, moving = (Volume.of(a, GRID) for a in (image, np.roll(image, 1, axis=1)))
    mask, other = (np.ones(SHAPE, np.uint8) for _ in range(2))
    mask[0], other[:, :, -1] = 0, 0
    levels = level_images(fixed, mask, "fixed"), level_images(moving, other, "moving")
    return stages_of(*levels, np.eye(4), 0.0, device)[0]


@pytest.mark.parametrize("with_prior", [False, True])
def test_the_search_finds_the_same(gpu: Device, with_prior: bool) -> None:
    ahead = np.random.default_rng(2).normal(0.0, 3.0, (4, 4, 5, 3)).astype(np.float32)
    prior = DisplacementField.of(ahead, GRID @ np.diag([2.0, 2.0, 2.0, 1.0])) if with_prior else None
    ours, theirs = (searched(stage_on(device), 20.0, 2, prior) for device in (CPU, gpu))
    assert np.linalg.norm(ours.vectors, axis=-1).max() > 15.0
    np.testing.assert_allclose(theirs.vectors, ours.vectors, atol=1e-4)


@pytest.mark.parametrize("marked", [False, True])
def test_the_refinement_finds_the_same(gpu: Device, marked: bool) -> None:
    marks = Marks(np.array([[-60.0, 70.0, 50.0]]), np.array([[0.0, 9.0, 0.0]]), np.array([2.0])) if marked else None
    ours, theirs = (
        refined(stage, np.zeros((*stage.nodes, 3), np.float32), 2, marks, lambda: None, 0.5)
        for stage in (stage_on(CPU), stage_on(gpu))
    )
    assert np.linalg.norm(ours, axis=-1).max() > 1.0
    np.testing.assert_allclose(theirs, ours, atol=1e-3)


def test_a_device_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba import config, cuda

    monkeypatch.setattr(config, "ENABLE_CUDASIM", 0)
    missing: Any = None
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: missing)
    with pytest.raises(DeviceError, match=r"numba-cuda is not installed; pip install 'ablation-nav\[gpu\]'"):
        device_named("cuda")
    missing = object()
    monkeypatch.setattr(cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="no NVIDIA GPU answers"):
        device_named("cuda")
    with pytest.raises(DeviceError, match="there are cpu and cuda"):
        device_named("gpu")
