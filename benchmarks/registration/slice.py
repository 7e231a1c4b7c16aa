"""Slices of CT fluoroscopy onto the CT with known truth: success, error, time, and whether the stated error is true.

    python benchmarks/registration/slice.py [--starts 200] [--motions 60] [--wrong 100] [--peers 20] [--json FILE]

Scenes: `slice_scenes`, from the abdominal CTs of the shared folder; slices of 4 to 8 mm, up to 10 mm and 8° from where
their header says. Everything runs on one thread. Peer on the same slices, the same thread and the same averaged CT:
SimpleITK (Mattes mutual information, levels 4 and 2).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numba
import numpy as np
from slice_scenes import Matrix, Patient, Scene, patient, scene

from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.io.itk import sitk
from nav.registration.slice_deformable import KERNELS, deform_slice
from nav.registration.slice_image import SliceImage
from nav.registration.slice_preparation import SlicePreparation, prepare_for_slices
from nav.registration.slice_rigid import register_slice
from nav.registration.verdict import ImageRegistrationError

DATA = Path(os.environ.get("ABLATION_NAV_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
SOURCES = {"ct_small": DATA / "ct_small" / "example_ct.nii.gz", "ct_liver": DATA / "ct_liver" / "dicom"}
HERE = Rigid.identity("MovingToFixed")
#: A registration that leaves points this far from where they belong has failed.
SUCCESS_MM = 2.0
#: Where local motion was followed, the target must lie as near as this.
FOLLOWED_MM = 1.5


class Prepared:
    """The CT for every nominal thickness, whole millimetres, and the time that took."""

    def __init__(self, ct: Volume) -> None:
        self.ct, self.ready, self.seconds = ct, dict[int, SlicePreparation](), list[float]()

    def of(self, this: Scene) -> SlicePreparation:
        thickness = round(float(this.slices.spacing_mm[2]))
        if thickness not in self.ready:
            begin = time.perf_counter()
            self.ready[thickness] = prepare_for_slices(self.ct, thickness_mm=thickness, normal_ras=[0.0, 0.0, 1.0])
            self.seconds.append(time.perf_counter() - begin)
        return self.ready[thickness]


def image(volume: Volume) -> Any:
    """As SimpleITK has it; RAS is given for LPS, the same on both sides."""
    out = sitk.GetImageFromArray(volume.array.astype(np.float32))
    out.SetSpacing(volume.spacing_mm.tolist())
    out.SetDirection((volume.ras_from_index[:3, :3] / volume.spacing_mm).ravel().tolist())
    out.SetOrigin(volume.ras_from_index[:3, 3].tolist())
    return out


def by_simpleitk(this: Scene, moving: Any) -> Matrix:
    known = SliceImage.of(this.slices)
    fixed = image(this.slices)
    mask = sitk.GetImageFromArray(known.known)
    mask.CopyInformation(fixed)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(mask)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.5, 1)
    method.MetricUseMovingImageGradientFilterOff()  # filtering all of the CT takes seconds
    method.MetricUseFixedImageGradientFilterOff()
    method.SetShrinkFactorsPerLevel([4, 2])
    method.SetSmoothingSigmasPerLevel([0.0, 0.0])  # a single slice cannot be smoothed in three dimensions
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-3, 100)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInterpolator(sitk.sitkLinear)
    start = sitk.Euler3DTransform()
    start.SetCenter(this.slices.centre_ras().tolist())
    method.SetInitialTransform(start)
    found = method.Execute(fixed, moving)
    corners = np.array([found.TransformPoint(p.tolist()) for p in np.vstack([np.zeros(3), np.eye(3)])])
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = (corners[1:] - corners[0]).T, corners[0]
    return out


def figures(errors: list[float], seconds: list[float], limit: float) -> dict[str, Any]:
    if not errors:
        return {}
    return {
        "cases": len(errors),
        "share_below_mm": [float(np.mean(np.array(errors) < limit)), limit],
        "error_mm": {
            "median": float(np.median(errors)),
            "p95": float(np.percentile(errors, 95)),
            "max": float(np.max(errors)),
        },
        "seconds": {"median": float(np.median(seconds)), "p95": float(np.percentile(seconds, 95))},
    }


def rigid(body: Patient, ready: Prepared, starts: int, peers: int, rng: np.random.Generator) -> dict[str, Any]:
    errors, seconds, covered, stated, verdicts = [], [], [], [], Counter[str]()
    peer: tuple[list[float], list[float]] = ([], [])
    warm = False
    for n in range(starts):
        this = scene(body, rng, apart_mm=rng.uniform(0, 10), apart_deg=rng.uniform(0, 8))
        prepared = ready.of(this)
        if not warm:
            register_slice(prepared, this.slices, initial=HERE)
            warm = True
        begin = time.perf_counter()
        result = register_slice(prepared, this.slices, initial=HERE)
        seconds.append(time.perf_counter() - begin)
        away = this.errors_mm(result.transform.matrix)
        said = result.expected_error_mm(result.transform.apply(this.points[::10]))
        errors.append(float(away.mean()))
        stated.append(float(said.mean()))
        covered.append(float((away[::10] <= said).mean()))
        verdicts[result.verdict.value] += 1
        if n < peers:
            moving = image(prepared.levels[0].volume)
            begin = time.perf_counter()
            found = by_simpleitk(this, moving)
            peer[1].append(time.perf_counter() - begin)
            peer[0].append(float(this.errors_mm(found).mean()))
    return {
        "ours": figures(errors, seconds, SUCCESS_MM)
        | {
            "verdicts": dict(verdicts),
            "stated_95_mm": float(np.median(stated)),
            "within_stated_95": float(np.mean(covered)),
        },
        "SimpleITK": figures(*peer, SUCCESS_MM),
    }


def motion(body: Patient, ready: Prepared, cases: int, rng: np.random.Generator) -> dict[str, Any]:
    """10 mm of local motion around the target in any direction, 20 to 30 mm wide (sigma)."""
    before, errors, nearby, seconds, covered, stated, verdicts = [], [], [], [], [], [], Counter[str]()
    for _ in range(cases):
        this = scene(body, rng, apart_mm=rng.uniform(0, 10), apart_deg=rng.uniform(0, 8), motion_mm=10.0)
        prepared = ready.of(this)
        pose = register_slice(prepared, this.slices, initial=HERE)
        begin = time.perf_counter()
        found = deform_slice(prepared, this.slices, pose, around=this.target)
        seconds.append(time.perf_counter() - begin)
        target = this.target[None]
        near = this.points[np.linalg.norm(this.points - this.target, axis=1) < 40.0]
        before.append(float(np.linalg.norm(pose.transform.apply(target) - this.where(target))))
        errors.append(float(np.linalg.norm(found.to_ct(target) - this.where(target))))
        nearby.append(float(np.linalg.norm(found.to_ct(near) - this.where(near), axis=1).mean()) if len(near) else 0.0)
        said = float(found.expected_error_mm(target)[0])
        stated.append(said)
        covered.append(errors[-1] <= said)
        verdicts[found.verdict.value] += 1
    if not errors:
        return {}
    return figures(errors, seconds, FOLLOWED_MM) | {
        "before_mm": float(np.median(before)),
        "within_40_mm_of_the_target_mm": float(np.median(nearby)),
        "verdicts": dict(verdicts),
        "stated_95_mm": float(np.median(stated)),
        "within_stated_95": float(np.mean(covered)),
    }


def wrong(body: Patient, ready: Prepared, cases: int, rng: np.random.Generator) -> dict[str, int]:
    """Verdicts on slices that cannot be right; a refusal counts as one."""
    verdicts = Counter[str]()
    for _ in range(cases):
        this = scene(body, rng, apart_mm=rng.uniform(0, 10), apart_deg=rng.uniform(0, 8), mirrored=ready.ct is body.ct)
        try:
            verdicts[register_slice(ready.of(this), this.slices, initial=HERE).verdict.value] += 1
        except ImageRegistrationError:
            verdicts["refused"] += 1
    return dict(verdicts)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--starts", type=int, default=200, help="for each CT")
    parser.add_argument("--motions", type=int, default=60, help="for each CT")
    parser.add_argument("--wrong", type=int, default=100, help="mirrored, and of another patient, for each CT")
    parser.add_argument("--peers", type=int, default=20, help="starts that the peer gets too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not all(path.exists() for path in SOURCES.values()):
        print(f"skipped: no real data in {DATA} (set ABLATION_NAV_DATA)")
        return 0
    numba.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    for spec in KERNELS:
        spec.compile()
    bodies = {name: patient(path, np.random.default_rng(1)) for name, path in SOURCES.items()}
    report: dict[str, Any] = {}
    for name, body in bodies.items():
        rng = np.random.default_rng(sum(name.encode()))
        ready = Prepared(body.ct)
        other = next(b for n, b in bodies.items() if n != name)
        # The other patient's CT, centre on centre.
        grid = other.ct.ras_from_index.copy()
        grid[:3, 3] += body.ct.centre_ras() - other.ct.centre_ras()
        strange = Prepared(Volume.of(other.ct.array, grid))
        report[name] = {
            "rigid": rigid(body, ready, options.starts, options.peers, rng),
            "local_motion": motion(body, ready, options.motions, rng),
            "mirrored": wrong(body, ready, options.wrong, rng),
            "another_patient": wrong(body, strange, options.wrong, rng),
            "preparation_seconds": float(np.median(ready.seconds)) if ready.seconds else None,
        }
    text = json.dumps(report, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
