"""Rigid registration of CT to CT with known truth: success, error, time, and whether the stated error is true.

    python benchmarks/registration/rigid.py [--starts 200] [--truths 10] [--peers 10] [--stated 100] [--wrong 160]
                                            [--json FILE]

Data: the abdominal CTs of the shared folder, brought to 256×256×128 voxels. The fixed image is the CT resampled with
cubic splines through a known pose, the moving image the CT itself; each has noise of its own. Registrations start up to
20 mm and 15° from the truth. Peers on the same pairs, the same two threads and some of the same starts: SimpleITK
(Mattes mutual information) and, where it is installed, elastix.

Two more measurements. ``stated``: how many points lie within the radius said to hold 95 %, over poses alone, poses with
5 to 40 HU of noise, and poses with smooth deformations of 0.5 to 3 mm, on three voxel sizes. ``wrong``: how many are
called good of mirrored images, other patients, starts far outside the capture range, and these with half of the field
of view; a registration that comes home all the same is not among them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, zoom
from scipy.spatial.transform import Rotation

from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.io.ct import load_ct
from nav.io.itk import sitk
from nav.registration.rigid_image import KERNELS, register_rigid
from nav.registration.verdict import Verdict

DATA = Path(os.environ.get("ABLATION_NAV_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
SOURCES = {"ct_liver": DATA / "ct_liver" / "dicom", "ct_small": DATA / "ct_small" / "example_ct.nii.gz"}
SHAPE = (128, 256, 256)
NOISE_HU = 20.0
THREADS = 2
NAME = "MovingToFixed"
#: A registration that leaves points this far from where they belong has failed.
SUCCESS_MM = 1.0
Matrix = NDArray[np.float64]


def body(path: Path) -> Volume:
    """The CT on 256×256×128 voxels, float32."""
    ct = load_ct(path).volume
    step = np.array(ct.array.shape) / np.array(SHAPE)
    at = np.meshgrid(*[np.arange(n) * s for n, s in zip(SHAPE, step, strict=True)], indexing="ij")
    array = map_coordinates(ct.array.astype(np.float32), at, order=3, mode="nearest")
    grid = ct.ras_from_index @ np.diag([*step[::-1], 1.0])
    return Volume.of(array.astype(np.float32), grid)


def pose(volume: Volume, millimetres: float, degrees: float, rng: np.random.Generator) -> Matrix:
    """A pose about the middle of ``volume``, exactly so far and so turned."""
    direction, axis = (v / np.linalg.norm(v) for v in rng.normal(0, 1, (2, 3)))
    out = np.eye(4)
    out[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees) * axis).as_matrix()
    middle = volume.centre_ras()
    out[:3, 3] = middle - out[:3, :3] @ middle + millimetres * direction
    return out


@dataclass(frozen=True)
class Pair:
    """Two images, the truth (fixed to moving), and points (n, 3) of the fixed image inside the body, RAS mm."""

    fixed: Volume
    moving: Volume
    truth: Matrix
    points: Matrix

    def errors_mm(self, found: Matrix) -> Matrix:
        apart = self.points @ (found - self.truth)[:3, :3].T + (found - self.truth)[:3, 3]
        return np.asarray(np.linalg.norm(apart, axis=1))


def pair(ct: Volume, truth: Matrix, rng: np.random.Generator) -> Pair:
    index = ct.index_from_ras @ truth @ ct.ras_from_index
    k, j, i = np.indices(SHAPE, np.float32)
    at = [index[row, 0] * i + index[row, 1] * j + index[row, 2] * k + index[row, 3] for row in (2, 1, 0)]
    fixed = map_coordinates(ct.array, at, order=3, mode="constant", cval=-1000.0)
    inside = np.argwhere(fixed > -200)
    points = ct.to_ras(inside[rng.choice(len(inside), 500, replace=False)][:, ::-1])
    noisy = [np.rint(a + rng.normal(0, NOISE_HU, SHAPE)).astype(np.int16) for a in (fixed, ct.array)]
    return Pair(Volume.of(noisy[0], ct.ras_from_index), Volume.of(noisy[1], ct.ras_from_index), truth, points)


def image(volume: Volume) -> Any:
    """As SimpleITK has it; RAS is given for LPS, the same on both sides."""
    out = sitk.GetImageFromArray(volume.array)
    out.SetSpacing(volume.spacing_mm.tolist())
    out.SetDirection((volume.ras_from_index[:3, :3] / volume.spacing_mm).ravel().tolist())
    out.SetOrigin(volume.ras_from_index[:3, 3].tolist())
    return out


def euler(matrix: Matrix, centre: Matrix) -> Any:
    out = sitk.Euler3DTransform()
    out.SetCenter(centre.tolist())
    out.SetMatrix(matrix[:3, :3].ravel().tolist())
    out.SetTranslation((matrix[:3, 3] + matrix[:3, :3] @ centre - centre).tolist())
    return out


def matrix_of(transform: Any) -> Matrix:
    corners = np.vstack([np.zeros(3), np.eye(3)])
    there = np.array([transform.TransformPoint(p.tolist()) for p in corners])
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = (there[1:] - there[0]).T, there[0]
    return out


def by_simpleitk(this: Pair, start: Matrix) -> Matrix:
    fixed, moving = (sitk.Cast(image(v), sitk.sitkFloat32) for v in (this.fixed, this.moving))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([0.2, 0.05], 1)
    method.SetShrinkFactorsPerLevel([8, 4])
    method.SetSmoothingSigmasPerLevel([0.0, 0.0])  # smoothing all of a large image takes seconds and gains nothing here
    method.SetOptimizerAsRegularStepGradientDescent(4.0, 1e-3, 100)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(euler(start, this.fixed.centre_ras()))
    return matrix_of(method.Execute(fixed, moving))


def by_elastix() -> Callable[[Pair, Matrix], Matrix] | None:
    try:
        import itk
    except ImportError:
        return None

    def register(this: Pair, start: Matrix) -> Matrix:
        images = []
        # The start is given by where the moving image lies.
        for volume, grid in (
            (this.fixed, this.fixed.ras_from_index),
            (this.moving, np.linalg.inv(start) @ this.moving.ras_from_index),
        ):
            one = itk.image_from_array(volume.array.astype(np.float32))
            one.SetSpacing(volume.spacing_mm)
            one.SetDirection(np.ascontiguousarray(grid[:3, :3] / volume.spacing_mm))
            one.SetOrigin(np.ascontiguousarray(grid[:3, 3]))
            images.append(one)
        parameters = itk.ParameterObject.New()
        settings = itk.ParameterObject.GetDefaultParameterMap("rigid", 4)
        settings["MaximumNumberOfIterations"] = ["250"]
        settings["FixedImagePyramid"] = ["FixedShrinkingImagePyramid"]
        settings["MovingImagePyramid"] = ["MovingShrinkingImagePyramid"]
        settings["AutomaticTransformInitialization"] = ["false"]
        parameters.AddParameterMap(settings)
        found = itk.ElastixRegistrationMethod.New(*images)
        found.SetParameterObject(parameters)
        found.SetNumberOfThreads(THREADS)
        found.LogToConsoleOff()
        found.UpdateLargestPossibleRegion()
        result = found.GetTransformParameterObject().GetParameterMap(0)
        values = [float(v) for v in result["TransformParameters"]]
        centre = [float(v) for v in result["CenterOfRotationPoint"]]
        second = sitk.Euler3DTransform(centre, *values[:3], values[3:])
        return start @ matrix_of(second)

    return register


def figures(errors: list[float], seconds: list[float], success_mm: float = SUCCESS_MM) -> dict[str, Any]:
    return {
        "starts": len(errors),
        "success": float(np.mean(np.array(errors) < success_mm)),
        "error_mm": {"median": float(np.median(errors)), "max": float(np.max(errors))},
        "seconds": {"median": float(np.median(seconds)), "max": float(np.max(seconds))},
    }


def run(name: str, ct: Volume, starts: int, truths: int, peers: int) -> dict[str, Any]:
    rng = np.random.default_rng(sum(name.encode()))
    ours: dict[str, list[float]] = {"errors": [], "seconds": [], "covered": [], "good": [], "stated": []}
    others: dict[str, dict[str, list[float]]] = {}
    elastix = by_elastix()
    methods = {"SimpleITK": by_simpleitk} | ({} if elastix is None else {"elastix": elastix})
    for n in range(truths):
        this = pair(ct, pose(ct, rng.uniform(0, 15), rng.uniform(0, 10), rng), rng)
        for m in range(-(-starts // truths)):
            start = this.truth @ pose(ct, rng.uniform(0, 20), rng.uniform(0, 15), rng)
            initial = Rigid.from_matrix(np.linalg.inv(start), NAME)
            if not ours["errors"]:
                register_rigid(this.fixed, this.moving, initial=initial)
            begin = time.perf_counter()
            result = register_rigid(this.fixed, this.moving, initial=initial)
            ours["seconds"].append(time.perf_counter() - begin)
            errors = this.errors_mm(np.linalg.inv(result.transform.matrix))
            stated = result.expected_error_mm(this.points)
            ours["errors"].append(float(errors.mean()))
            ours["stated"].append(float(stated.mean()))
            ours["covered"].append(float((errors <= stated).mean()))
            ours["good"].append(float(result.verdict is Verdict.GOOD))
            if m > 0 or n >= peers:
                continue
            for method, register in methods.items():
                kept = others.setdefault(method, {"errors": [], "seconds": []})
                begin = time.perf_counter()
                found = register(this, start)
                kept["seconds"].append(time.perf_counter() - begin)
                kept["errors"].append(float(this.errors_mm(found).mean()))
    report: dict[str, Any] = {"ours": figures(ours["errors"], ours["seconds"])}
    report["ours"] |= {
        "called_good": float(np.mean(ours["good"])),
        "stated_95_mm": float(np.median(ours["stated"])),
        "within_stated_95": float(np.mean(ours["covered"])),
    }
    return report | {method: figures(kept["errors"], kept["seconds"]) for method, kept in others.items()}


def smooth_shifts(shape: tuple[int, ...], most_mm: float, rng: np.random.Generator) -> list[Matrix]:
    """Three (k, j, i) arrays, mm along x, y, z: a smooth deformation of at most ``most_mm``."""
    parts = [gaussian_filter(rng.normal(0, 1, (20, 20, 20)), rng.uniform(1.2, 2.5))[4:16, 4:16, 4:16] for _ in range(3)]
    longest = float(np.sqrt(sum(part**2 for part in parts)).max())
    scale = np.array(shape) / 12.0
    return [zoom(part * most_mm / longest, scale, order=3, grid_mode=True, mode="nearest") for part in parts]


#: Voxels of the fixed image by those of the CT, along i, j, k.
GRIDS = ((1.0, 1.0, 1.0), (1.0, 1.0, 2.0), (1.25, 1.25, 1.25))
STATED = ("poses", "noise of 5 to 40 HU", "deformation of 0.5 to 3 mm")


def stated(ct: Volume, cases: int, rng: np.random.Generator) -> dict[str, Any]:
    """Share of the points within what was said to hold 95 %, by kind of case."""
    kept: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in STATED}
    for n in range(cases):
        kind, factors = STATED[n % 3], GRIDS[(n // 3) % 3]
        noise = NOISE_HU if kind == STATED[0] else rng.uniform(5, 40)
        truth = pose(ct, rng.uniform(0, 15), rng.uniform(0, 10), rng)
        shape = tuple(int(size / f) for size, f in zip(SHAPE, factors[::-1], strict=True))
        grid = ct.ras_from_index @ np.diag([*factors, 1.0])
        index = ct.index_from_ras @ truth @ grid
        k, j, i = np.indices(shape, np.float32)
        at = [index[row, 0] * i + index[row, 1] * j + index[row, 2] * k + index[row, 3] for row in (2, 1, 0)]
        shifts = smooth_shifts(shape, rng.uniform(0.5, 3.0), rng) if kind == STATED[2] else None
        if shifts is not None:
            turn = ct.index_from_ras[:3, :3]
            at = [a + sum(turn[row, c] * shifts[c] for c in range(3)) for a, row in zip(at, (2, 1, 0), strict=True)]
        array = map_coordinates(ct.array, at, order=3, mode="constant", cval=-1000.0)
        inside = np.argwhere(array > -200)
        picked = inside[rng.choice(len(inside), 300, replace=False)]
        fixed, moving = (
            Volume.of(np.rint(a + rng.normal(0, noise, a.shape)).astype(np.int16), g)
            for a, g in ((array, grid), (ct.array, ct.ras_from_index))
        )
        points = fixed.to_ras(picked[:, ::-1])
        there = points @ truth[:3, :3].T + truth[:3, 3]
        if shifts is not None:
            there += np.stack([shift[tuple(picked.T)] for shift in shifts], axis=1)
        start = truth @ pose(ct, rng.uniform(0, 20), rng.uniform(0, 15), rng)
        result = register_rigid(fixed, moving, initial=Rigid.from_matrix(np.linalg.inv(start), NAME))
        errors = np.linalg.norm(result.transform.inverse().apply(points) - there, axis=1)
        said = result.expected_error_mm(points)
        kept[kind].append((float((errors <= said).mean()), float(np.sqrt((errors**2).mean())), float(said.mean())))
    kept = {kind: rows for kind, rows in kept.items() if rows}
    kept["all"] = [row for rows in list(kept.values()) for row in rows]
    return {
        kind: {
            "cases": len(rows),
            "within_stated_95": float(np.mean([row[0] for row in rows])),
            "error_rms_mm": float(np.median([row[1] for row in rows])),
            "stated_95_mm": float(np.median([row[2] for row in rows])),
        }
        for kind, rows in kept.items()
    }


def mirrored(volume: Volume) -> Volume:
    """Left and right exchanged: a volume whose header is wrong."""
    return Volume.of(np.ascontiguousarray(volume.array[:, :, ::-1]), volume.ras_from_index)


def centred(volume: Volume, on: Volume) -> Volume:
    """The same image, its middle on that of another."""
    grid = volume.ras_from_index.copy()
    grid[:3, 3] += on.centre_ras() - volume.centre_ras()
    return Volume.of(volume.array, grid)


def half(volume: Volume) -> Volume:
    """Its lower half."""
    return Volume.of(np.ascontiguousarray(volume.array[: volume.array.shape[0] // 2]), volume.ras_from_index)


#: A start that nobody would call near, mm and degrees.
FAR_MM, FAR_DEG = (60.0, 150.0), (50.0, 180.0)
Register = Callable[[Volume, Volume, Matrix], tuple[Matrix, bool]]


def wrongs(
    this: Pair, other: Volume, register: Register, kept: dict[str, list[int]], rng: np.random.Generator, right_mm: float
) -> None:
    """Register what cannot be right; ``kept``: for each kind, of how many wrong ones how many were called good."""
    far = this.truth @ pose(this.fixed, rng.uniform(*FAR_MM), rng.uniform(*FAR_DEG), rng)
    near = this.truth @ pose(this.fixed, rng.uniform(0, 15), rng.uniform(0, 10), rng)
    kinds = {
        "mirrored": (this.fixed, mirrored(this.moving), near),
        "another patient": (centred(other, this.fixed), this.moving, near),
        "start far outside": (this.fixed, this.moving, far),
        "half of the field, start far outside": (this.fixed, half(this.moving), far),
    }
    for kind, (fixed, moving, start) in kinds.items():
        found, good = register(fixed, moving, start)
        if "start" in kind and float(this.errors_mm(found).mean()) < right_mm:
            continue
        count = kept.setdefault(kind, [0, 0])
        count[0] += 1
        count[1] += int(good)


def told(kept: dict[str, list[int]]) -> dict[str, Any]:
    cases, good = (sum(count[n] for count in kept.values()) for n in (0, 1))
    return {
        "cases": cases,
        "flagged": 1.0 - good / max(cases, 1),
        "called_good": {kind: f"{count[1]} of {count[0]}" for kind, count in kept.items()},
    }


def wrong(ct: Volume, other: Volume, cases: int, rng: np.random.Generator) -> dict[str, Any]:
    def register(fixed: Volume, moving: Volume, start: Matrix) -> tuple[Matrix, bool]:
        result = register_rigid(fixed, moving, initial=Rigid.from_matrix(np.linalg.inv(start), NAME))
        return np.linalg.inv(result.transform.matrix), result.verdict is Verdict.GOOD

    kept: dict[str, list[int]] = {}
    for _ in range(-(-cases // 4)):
        this = pair(ct, pose(ct, rng.uniform(0, 15), rng.uniform(0, 10), rng), rng)
        wrongs(this, other, register, kept, rng, SUCCESS_MM)
    return told(kept)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--starts", type=int, default=200, help="for each CT")
    parser.add_argument("--truths", type=int, default=10, help="different poses among them")
    parser.add_argument("--peers", type=int, default=10, help="starts that the peers get too")
    parser.add_argument("--stated", type=int, default=100, help="cases for each CT of whether the stated error is true")
    parser.add_argument("--wrong", type=int, default=160, help="registrations for each CT that cannot be right")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not all(path.exists() for path in SOURCES.values()):
        print(f"skipped: no real data in {DATA} (set ABLATION_NAV_DATA)")
        return 0
    numba.set_num_threads(min(THREADS, numba.config.NUMBA_NUM_THREADS))
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(THREADS)
    for spec in KERNELS:
        spec.compile()
    report = {}
    bodies = {name: body(path) for name, path in SOURCES.items()}
    for n, (name, ct) in enumerate(bodies.items()):
        other = list(bodies.values())[1 - n]
        rng = np.random.default_rng(sum(name.encode()) + 1)
        report[name] = run(name, ct, options.starts, options.truths, options.peers) if options.starts else {}
        if options.stated:
            report[name]["stated"] = stated(ct, options.stated, rng)
        if options.wrong:
            report[name]["wrong"] = wrong(ct, other, options.wrong, rng)
    text = json.dumps(report, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
