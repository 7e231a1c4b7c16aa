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
from nav.registration.verdict import ImageRegistrationError, Verdict

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


def motion(
    body: Patient, ready: Prepared, cases: int, rng: np.random.Generator, slices: int = 1, off_mm: float = 0.0
) -> dict[str, Any]:
    """10 mm of local motion around the target in any direction, 20 to 30 mm wide (sigma).

    One slice of 4 to 8 mm, or a stack of 3 to 5 mm; ``off_mm``: the motion is largest so far from the target.
    """
    thinnest, thickest = (4.0, 8.0) if slices == 1 else (3.0, 5.0)
    before, errors, nearby, seconds, stated = [], [], [], [], []
    parts: tuple[list[float], list[float]] = ([], [])
    covered: tuple[list[bool], list[float], list[float]] = ([], [], [])
    verdicts, poses, trusted = Counter[str](), Counter[str](), []
    for _ in range(cases):
        this = scene(
            body, rng, apart_mm=rng.uniform(0, 10), apart_deg=rng.uniform(0, 8), motion_mm=10.0, motion_off_mm=off_mm,
            slices=slices, thickness_mm=rng.uniform(thinnest, thickest),
        )  # fmt: skip
        prepared = ready.of(this)
        pose = register_slice(prepared, this.slices, initial=HERE)
        poses[pose.verdict.value] += 1
        found_at = pose.transform.apply(this.points)
        off = np.linalg.norm(found_at - this.where(this.points), axis=1)
        covered[2].append(float((off <= pose.expected_error_mm(found_at)).mean()))
        begin = time.process_time()
        found = deform_slice(prepared, this.slices, pose, around=this.target)
        seconds.append(time.process_time() - begin)
        target = this.target[None]
        before.append(float(np.linalg.norm(pose.transform.apply(target) - this.where(target))))
        away = (found.to_ct(target) - this.where(target))[0] @ this.truth[:3, :3]
        errors.append(float(np.linalg.norm(away)))
        parts[0].append(float(np.hypot(away[0], away[1])))
        parts[1].append(float(abs(away[2])))
        said = float(found.expected_error_mm(target)[0])
        stated.append(said)
        covered[0].append(errors[-1] <= said)
        near = this.points[np.linalg.norm(this.points - this.target, axis=1) < 40.0]
        if len(near):
            apart = np.linalg.norm(found.to_ct(near) - this.where(near), axis=1)
            nearby.append(float(apart.mean()))
            covered[1].append(float((apart <= found.expected_error_mm(near)).mean()))
        verdicts[found.verdict.value] += 1
        if found.verdict is Verdict.GOOD:
            trusted.append(errors[-1])
    if not errors:
        return {}
    return figures(errors, seconds, FOLLOWED_MM) | {
        "before_mm": float(np.median(before)),
        "in_plane_mm": {"median": float(np.median(parts[0])), "p95": float(np.percentile(parts[0], 95))},
        "across_mm": {"median": float(np.median(parts[1])), "p95": float(np.percentile(parts[1], 95))},
        "within_40_mm_of_the_target_mm": {"mean": float(np.mean(nearby)), "median": float(np.median(nearby))},
        "verdicts": dict(verdicts),
        "called_good_and_wrong": int(np.sum(np.array(trusted) > FOLLOWED_MM)),
        "called_good_largest_mm": max(trusted, default=0.0),
        "stated_95_mm": float(np.median(stated)),
        "within_stated_95": {"target": float(np.mean(covered[0])), "within_40_mm": float(np.mean(covered[1]))},
        "rigid": {"verdicts": dict(poses), "within_stated_95": float(np.mean(covered[2]))},
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
    parser.add_argument("--motions", type=int, default=60, help="for each CT; half as many of stacks, and off the tip")
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
            "local_motion_stack_of_3": motion(body, ready, options.motions // 2, rng, slices=3),
            "local_motion_10_mm_off_the_tip": motion(body, ready, options.motions // 2, rng, off_mm=10.0),
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
