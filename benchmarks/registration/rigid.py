"""Rigid registration of CT to CT with known truth: success, error, time, and whether the stated error is true.

    python benchmarks/registration/rigid.py [--starts 200] [--truths 10] [--peers 10] [--json FILE]

Data: the abdominal CTs of the shared folder, brought to 256×256×128 voxels. The fixed image is the CT resampled with
cubic splines through a known pose, the moving image the CT itself; each has noise of its own. Registrations start up to
20 mm and 15° from the truth. Peers on the same pairs, the same two threads and some of the same starts: SimpleITK
(Mattes mutual information) and, where it is installed, elastix.
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
from scipy.ndimage import map_coordinates
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


def figures(errors: list[float], seconds: list[float]) -> dict[str, Any]:
    return {
        "starts": len(errors),
        "success": float(np.mean(np.array(errors) < SUCCESS_MM)),
        "error_mm": {"median": float(np.median(errors)), "max": float(np.max(errors))},
        "seconds": {"median": float(np.median(seconds)), "max": float(np.max(seconds))},
    }


def run(name: str, path: Path, starts: int, truths: int, peers: int) -> dict[str, Any]:
    rng = np.random.default_rng(sum(name.encode()))
    ct = body(path)
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


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--starts", type=int, default=200, help="for each CT")
    parser.add_argument("--truths", type=int, default=10, help="different poses among them")
    parser.add_argument("--peers", type=int, default=10, help="starts that the peers get too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not all(path.exists() for path in SOURCES.values()):
        print(f"skipped: no real data in {DATA} (set ABLATION_NAV_DATA)")
        return 0
    numba.set_num_threads(min(THREADS, numba.config.NUMBA_NUM_THREADS))
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(THREADS)
    for spec in KERNELS:
        spec.compile()
    report = {name: run(name, path, options.starts, options.truths, options.peers) for name, path in SOURCES.items()}
    text = json.dumps(report, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
