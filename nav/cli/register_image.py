"""Reads two images, registers them, writes what came of it: behind ``ablation-nav register rigid``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from nav.cli.errors import CommandError, ExitCode
from nav.cli.images import MOVING_TO_FIXED, read_image
from nav.cli.progress import Steps
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.imaging.checkerboard import checkerboard
from nav.imaging.resample import resample_rigid, upright_grid
from nav.io.errors import MaskError
from nav.io.image_file import read_image_file
from nav.io.itk_transform import read_itk_rigid, write_itk_rigid
from nav.io.point_files import read_points
from nav.io.volume_file import write_volume
from nav.registration.error_distribution import radius_of_share
from nav.registration.rigid_image import KERNELS, RigidImageRegistration, register_rigid

__all__ = ["FINEST_MM", "Inputs", "rigid"]

#: Finest level of a preset, mm.
FINEST_MM = {"fast": 2.5, "good": 0.0}
#: Points at which the error is predicted.
_POINTS = 200


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files of one registration."""

    fixed: Path
    moving: Path
    fixed_mask: Path | None = None
    moving_mask: Path | None = None
    fixed_points: Path | None = None
    moving_points: Path | None = None
    initial: Path | None = None


def rigid(files: Inputs, *, preset: str, threads: int, out: Path, steps: Steps) -> dict[str, Any]:
    """Register, write into ``out``, and return the report; keys in ``docs/register-json.md``."""
    if (files.fixed_points is None) is not (files.moving_points is None):
        raise CommandError("--fixed-points and --moving-points belong together; give both or none", ExitCode.USAGE)
    most = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    if threads > most:
        raise CommandError(f"--threads {threads}: this machine gives {most}", ExitCode.USAGE)
    numba.set_num_threads(threads or most)
    with steps.step("Reading"):
        fixed, moving = read_image(files.fixed), read_image(files.moving)
        masks = [_mask(path, image) for path, image in ((files.fixed_mask, fixed), (files.moving_mask, moving))]
        stays = Rigid.identity(MOVING_TO_FIXED)
        initial = stays if files.initial is None else read_itk_rigid(files.initial, MOVING_TO_FIXED)
        points = _point_pairs(files, fixed, moving)
    with steps.step("Preparing kernels"):
        for spec in KERNELS:
            spec.compile()
    out.mkdir(parents=True, exist_ok=True)
    with steps.step("Registering") as update:
        begin = time.perf_counter()
        result = register_rigid(
            fixed, moving, initial=initial, fixed_mask=masks[0], moving_mask=masks[1], finest_mm=FINEST_MM[preset],
            progress=update,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
    report = {"method": "rigid", "preset": preset, "threads": int(numba.get_num_threads()), "seconds": seconds}
    report |= _report(result, fixed, masks[0])
    if points is not None:
        report["tre_mm"] = _tre(points, initial, result.transform)
    with steps.step("Writing"):
        names = {"transform": "transform.tfm", "warped": "warped.nrrd", "checkerboard": "checkerboard.png"}
        write_itk_rigid(out / names["transform"], result.transform)
        grid = upright_grid(fixed)  # image files cannot say that a scan is tilted
        warped = resample_rigid(moving, grid, result.transform, outside=float(moving.array.min()))
        write_volume(out / names["warped"], warped)
        picture = out / names["checkerboard"]
        beside = fixed if grid is fixed else resample_rigid(fixed, grid, stays, outside=float(fixed.array.min()))
        if not cv2.imwrite(str(picture), checkerboard(beside, warped)):
            raise CommandError(f"{picture}: cannot be written", ExitCode.INPUT)
    report["out"] = {what: str(out / name) for what, name in names.items()}
    return report


def _mask(path: Path | None, image: Volume) -> NDArray[np.generic] | None:
    if path is None:
        return None
    found = read_image_file(path, MaskError)
    if not Volume.of(found.array, found.ras_from_index).same_grid_as(image, tolerance_mm=0.1):
        raise MaskError(f"{path}: does not lie on the grid of its image; resample it to the image first")
    return found.array


def _point_pairs(
    files: Inputs, fixed: Volume, moving: Volume
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    if files.fixed_points is None or files.moving_points is None:
        return None
    names, one = read_points(files.fixed_points, fixed)
    other_names, two = read_points(files.moving_points, moving)
    if len(one) != len(two):
        raise CommandError(
            f"{files.fixed_points} holds {len(one)} points, {files.moving_points} {len(two)}; they go in pairs",
            ExitCode.INPUT,
        )
    if len(set(names)) == len(names) and set(names) == set(other_names):
        two = two[[other_names.index(name) for name in names]]
    return one, two


def _tre(
    points: tuple[NDArray[np.float64], NDArray[np.float64]], before: Rigid, after: Rigid
) -> dict[str, dict[str, float]]:
    one, two = points
    first, last = (np.linalg.norm(t.inverse().apply(one) - two, axis=1) for t in (before, after))
    return {
        "before": {"mean": float(first.mean()), "median": float(np.median(first))},
        "after": {
            "mean": float(last.mean()),
            "median": float(np.median(last)),
            "p95": float(np.percentile(last, 95)),
            "max": float(last.max()),
        },
    }


def _report(result: RigidImageRegistration, fixed: Volume, mask: NDArray[np.generic] | None) -> dict[str, Any]:
    inside = fixed.array > fixed.array.mean() if mask is None else mask != 0
    places = np.flatnonzero(inside)
    places = places[:: max(1, len(places) // _POINTS)]
    index = np.stack(np.unravel_index(places, inside.shape)[::-1], axis=1)
    spread = result.covariance_at(fixed.to_ras(index)).mean(axis=0)
    return {
        "iterations": result.iterations,
        "similarity": {"before": result.similarity_before, "after": result.similarity_after},
        "jacobian": {"min": 1.0, "max": 1.0, "folded_fraction": 0.0},
        "expected_error_mm": {"median": radius_of_share(spread, 0.5), "p95": radius_of_share(spread, 0.95)},
        "inverse_consistency_mm": result.inverse_consistency_mm,
        "overlap": result.overlap,
        "agreement": result.agreement,
        "deformation_mm": result.deformation_mm,
        "transform": {"name": result.transform.name.wire, "matrix_ras_mm": result.transform.matrix.tolist()},
        "verdict": result.verdict.value,
        "reasons": list(result.reasons),
    }
