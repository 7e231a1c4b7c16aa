"""What every ``ablation-nav register`` of images shares: its files, masks, point pairs, and how it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numba
import numpy as np
import typer
from numpy.typing import NDArray

from nav.cli.errors import CommandError, ExitCode
from nav.cli.images import MOVING_TO_FIXED, read_image
from nav.cli.progress import Steps
from nav.geometry.kernels import KernelSpec
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.imaging.checkerboard import checkerboard
from nav.imaging.resample import resample_rigid
from nav.io.errors import MaskError
from nav.io.image_file import read_image_file
from nav.io.itk_transform import read_itk_rigid
from nav.io.point_files import read_points

__all__ = [
    "Files",
    "Inputs",
    "finish",
    "points_inside",
    "prepare",
    "read_initial",
    "read_inputs",
    "read_point_pairs",
    "set_threads",
    "tre_mm",
    "write_checkerboard",
]

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one registration."""

    fixed: Path
    moving: Path
    fixed_mask: Path | None = None
    moving_mask: Path | None = None
    fixed_points: Path | None = None
    moving_points: Path | None = None
    initial: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What stands in them: ``points`` are pairs, (n, 3) RAS mm each; ``initial`` is moving to fixed."""

    fixed: Volume
    moving: Volume
    fixed_mask: NDArray[np.generic] | None
    moving_mask: NDArray[np.generic] | None
    points: tuple[Points, Points] | None
    initial: Rigid


def set_threads(threads: int) -> int:
    """Let kernels run on so many threads (0: all there are); returns how many."""
    most = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    if threads > most:
        raise CommandError(f"--threads {threads}: this machine gives {most}", ExitCode.USAGE)
    numba.set_num_threads(threads or most)
    return threads or most


def prepare(kernels: Iterable[KernelSpec], steps: Steps) -> None:
    """Compile, or load, what a registration needs."""
    with steps.step("Preparing kernels"):
        for spec in kernels:
            spec.compile()


def read_inputs(files: Files, steps: Steps, *, read_moving: Callable[[Path], Volume] = read_image) -> Inputs:
    """Read and check everything before anything is computed; ``read_moving`` reads the moving image."""
    _check_both_or_none(files.fixed_points, files.moving_points)
    with steps.step("Reading"):
        fixed, moving = read_image(files.fixed), read_moving(files.moving)
        return Inputs(
            fixed,
            moving,
            _mask(files.fixed_mask, fixed),
            _mask(files.moving_mask, moving),
            read_point_pairs(files.fixed_points, files.moving_points, fixed, moving),
            read_initial(files.initial),
        )


def _check_both_or_none(fixed_points: Path | None, moving_points: Path | None) -> None:
    if (fixed_points is None) is not (moving_points is None):
        raise CommandError("--fixed-points and --moving-points belong together; give both or none", ExitCode.USAGE)


def read_initial(path: Path | None) -> Rigid:
    """Where to start, moving to fixed: the identity without a file."""
    return Rigid.identity(MOVING_TO_FIXED) if path is None else read_itk_rigid(path, MOVING_TO_FIXED)


def _mask(path: Path | None, image: Volume) -> NDArray[np.generic] | None:
    if path is None:
        return None
    found = read_image_file(path, MaskError)
    if not Volume.of(found.array, found.ras_from_index).same_grid_as(image, tolerance_mm=0.1):
        raise MaskError(f"{path}: does not lie on the grid of its image; resample it to the image first")
    return found.array


def read_point_pairs(
    fixed_points: Path | None, moving_points: Path | None, fixed: Volume | None = None, moving: Volume | None = None
) -> tuple[Points, Points] | None:
    """Pairs of points, (n, 3) RAS mm each, or None without files; ``fixed``, ``moving``: images of their indices."""
    _check_both_or_none(fixed_points, moving_points)
    if fixed_points is None or moving_points is None:
        return None
    names, one = read_points(fixed_points, fixed)
    other_names, two = read_points(moving_points, moving)
    if len(one) != len(two):
        raise CommandError(
            f"{fixed_points} holds {len(one)} points, {moving_points} {len(two)}; they go in pairs",
            ExitCode.INPUT,
        )
    if len(set(names)) == len(names) and set(names) == set(other_names):
        two = two[[other_names.index(name) for name in names]]
    return one, two


def tre_mm(
    points: tuple[Points, Points], before: Callable[[Points], Points], after: Callable[[Points], Points]
) -> dict[str, dict[str, float]]:
    """Distances at pairs of points; ``before``, ``after`` take (n, 3) points of the fixed image to the moving one."""
    one, two = points
    first, last = (np.linalg.norm(there(one) - two, axis=1) for there in (before, after))
    return {
        "before": {"mean": float(first.mean()), "median": float(np.median(first))},
        "after": {
            "mean": float(last.mean()),
            "median": float(np.median(last)),
            "p95": float(np.percentile(last, 95)),
            "max": float(last.max()),
        },
    }


def points_inside(image: Volume, mask: NDArray[np.generic] | None, about: int) -> Points:
    """(n, 3) RAS mm: ``about`` so many voxels of the mask, without one of everything brighter than the mean."""
    values = np.asarray(image.array, np.float32)
    inside = values > np.nanmean(values, dtype=np.float64) if mask is None else mask != 0
    places = np.flatnonzero(inside)
    places = places[:: max(1, len(places) // about)]
    return image.to_ras(np.stack(np.unravel_index(places, inside.shape)[::-1], axis=1))


def write_checkerboard(path: Path, fixed: Volume, warped: Volume) -> None:
    """The picture of both, on the grid of ``warped``."""
    if fixed.array.shape != warped.array.shape or not np.allclose(fixed.ras_from_index, warped.ras_from_index):
        fixed = resample_rigid(fixed, warped, Rigid.identity(MOVING_TO_FIXED), outside=float(fixed.array.min()))
    if not cv2.imwrite(str(path), checkerboard(fixed, warped)):
        raise CommandError(f"{path}: cannot be written", ExitCode.INPUT)


def finish(report: dict[str, Any], text: list[str], *, as_json: bool) -> None:
    """Print the report, or ``text`` about it; says why, and ends with 1, when the verdict is not good."""
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(f"{report['verdict'].replace('_', ' ')}, in {report['seconds']:.2f} s")
        error, tre = report["expected_error_mm"], report.get("tre_mm")
        text = [f"expected error     {error['median']:.2f} mm median, {error['p95']:.2f} mm for 95 %", *text]
        if tre is not None:
            before, after = tre["before"]["mean"], tre["after"]["mean"]
            text.append(f"at the points      {before:.2f} mm before, {after:.2f} mm after (mean)")
        print("\n".join([*text, *(f"wrote {path}" for path in report["out"].values())]))
    if report["reasons"]:
        for reason in report["reasons"]:
            print(f"ablation-nav: {report['verdict'].replace('_', ' ')}: {reason}", file=sys.stderr)
        raise typer.Exit(ExitCode.FAILED)
