"""Tracked ultrasound to CT with known truth: success, error, time, capture range, and whether what is stated is true.

    python benchmarks/registration/ultrasound.py [--sweeps 50] [--starts 1] [--frames 30] [--moved 12] [--json FILE]

Sweeps of ``ultrasound_simulation.py`` over the abdominal CTs of the shared folder, each from its own window with its
own transducer, settings, tissue and tracking noise. The CT they are registered to is resampled to 256×256×128 voxels
and has noise of its own. Starts lie exactly 10 mm and 8° from the truth; then there are wrong ones, which must not be
called good: the other patient's CT, a mirrored CT, 40 mm off, and half of the view (unless it is right); then starts
at other distances, for the capture range. Errors are means over points of the liver inside the frames' fan. Where the
real liver sweep (without a CT of its own) is there, it is put onto both CTs, which are the wrong ones.

Then sweeps through tissue that has moved by up to 8 mm, and the same windows without motion, each from 3 mm and 2° off:
the error of the rigid pose alone, and after motion was followed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numba
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter, label, map_coordinates, zoom
from ultrasound_simulation import Patient, Sweep, patient, random_pose, simulate

from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.io.ct import load_ct
from nav.io.errors import MaskError
from nav.io.image_file import read_image_file
from nav.registration.ultrasound_deformable import deform_ultrasound
from nav.registration.ultrasound_frames import TrackedFrames
from nav.registration.ultrasound_image import KERNELS, UltrasoundRegistration, register_ultrasound
from nav.registration.verdict import ImageRegistrationError

DATA = Path(os.environ.get("ABLATION_NAV_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
SHAPE = (128, 256, 256)
NOISE_HU = 15.0
THREADS = 2
NAME = "ReferenceToRas"
SUCCESS_MM = 3.0
#: How far tissue moves at most, over what length alike (sigma), mm; where these sweeps start.
MOVED = (8.0, 60.0)
MOVED_START = (3.0, 2.0)
#: The first of these sweeps: those for the settings lie below.
FIRST_MOVED = 400
Matrix = NDArray[np.float64]


def finer(ct: Volume) -> Volume:
    """Twice as many voxels along every axis: classes of tissue in voxels of 3 mm would be steps in the images."""
    shift = np.eye(4)
    shift[:3, 3] = -0.25  # the outer faces stay
    array = zoom(ct.array.astype(np.float32), 2, order=3, mode="nearest", grid_mode=True)
    return Volume.of(np.rint(array).astype(np.int16), ct.ras_from_index @ shift @ np.diag([0.5, 0.5, 0.5, 1.0]))


def patients() -> dict[str, Patient]:
    labelled = load_ct(DATA / "ct_liver" / "dicom").volume
    labels = read_image_file(DATA / "ct_liver" / "labels.nrrd", MaskError).array
    small = finer(load_ct(DATA / "ct_small" / "example_ct.nii.gz").volume)
    # Its segmentation does not lie on it: the liver is the largest piece of soft tissue in the upper part.
    calm = gaussian_filter(small.array.astype(np.float32), 1.4)
    soft = (calm > 25.0) & (calm < 90.0)
    soft[:140] = False
    pieces, _ = label(binary_erosion(soft, iterations=6))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    liver = binary_dilation(pieces == sizes.argmax(), iterations=6)
    return {
        "ct_liver": patient(labelled, labels, np.isin(labels, (449, 451, 465, 481))),
        "ct_small": patient(small, None, liver),
    }


def registered_to(ct: Volume, rng: np.random.Generator) -> Volume:
    """The CT on 256×256×128 voxels, with noise."""
    step = np.array(ct.array.shape) / np.array(SHAPE)
    at = np.meshgrid(*[np.arange(n) * s for n, s in zip(SHAPE, step, strict=True)], indexing="ij")
    array = map_coordinates(ct.array.astype(np.float32), at, order=3, mode="nearest") + rng.normal(0, NOISE_HU, SHAPE)
    return Volume.of(np.rint(array).astype(np.int16), ct.ras_from_index @ np.diag([*step[::-1], 1.0]))


def liver_points(who: Patient, sweep: Sweep, rng: np.random.Generator) -> Matrix:
    """(n, 3) points of the liver in the frames, in the reference, mm."""
    rows, columns = np.nonzero(sweep.images.max(axis=0) > 0)
    out = []
    for matrix in sweep.reference_from_pixel:
        few = rng.integers(0, len(rows), 40)
        pixels = np.stack([columns[few], rows[few], np.zeros(40), np.ones(40)])
        out.append((matrix @ pixels)[:3].T)
    points = np.concatenate(out)
    index = np.rint(who.ct.to_index(points @ sweep.ras_from_reference[:3, :3].T + sweep.ras_from_reference[:3, 3]))
    index = np.clip(index.astype(int), 0, np.array(who.ct.size) - 1)
    return points[who.liver[index[:, 2], index[:, 1], index[:, 0]]]


def middle(sweep: Sweep) -> Matrix:
    rows, columns = sweep.images.shape[1:]
    pixel = np.array([columns / 2.0, rows / 2.0, 0.0, 1.0])
    return np.asarray((sweep.ras_from_reference @ sweep.reference_from_pixel @ pixel)[:, :3].mean(axis=0))


def register(ct: Volume, sweep: Sweep, start: Matrix) -> tuple[UltrasoundRegistration, float]:
    frames = TrackedFrames.of(sweep.images, sweep.reference_from_pixel)
    begin = time.perf_counter()
    result = register_ultrasound(ct, frames, initial=Rigid.from_matrix(start, NAME))
    return result, time.perf_counter() - begin


def errors_mm(found: Matrix, truth: Matrix, points: Matrix) -> Matrix:
    apart = points @ (found - truth)[:3, :3].T + (found - truth)[:3, 3]
    return np.asarray(np.linalg.norm(apart, axis=1))


def mirrored(ct: Volume) -> Volume:
    return Volume.of(np.ascontiguousarray(ct.array[:, :, ::-1]), ct.ras_from_index)


def half_of(sweep: Sweep) -> Sweep:
    """The left half of the images only."""
    images = sweep.images.copy()
    images[:, :, images.shape[2] // 2 :] = 0
    return Sweep(images, sweep.reference_from_pixel, sweep.ras_from_reference)


def told(image: Volume, sweep: Sweep, start: Matrix, points: Matrix, number: int) -> dict[str, Any]:
    """One registration: where it leaves ``points``, and what it says of itself."""
    try:
        result, seconds = register(image, sweep, start)
    except ImageRegistrationError as error:
        return {"sweep": number, "error_mm": np.inf, "verdict": "refused", "reasons": [str(error)]}
    truth = sweep.ras_from_reference
    errors = errors_mm(result.transform.matrix, truth, points)
    stated = result.expected_error_mm(points @ truth[:3, :3].T + truth[:3, 3])
    return {
        "sweep": number,
        "error_mm": float(errors.mean()),
        "stated_mm": float(stated.mean()),
        "covered": float((errors <= stated).mean()),
        "evidence": result.evidence,
        "agreement": result.agreement,
        "halves_mm": result.halves_mm,
        "verdict": result.verdict.value,
        "reasons": list(result.reasons),
        "seconds": seconds,
    }


def run(name: str, who: Patient, other: Patient, options: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(sum(name.encode()))
    ct, wrong_ct = registered_to(who.ct, rng), registered_to(other.ct, rng)
    kept: list[dict[str, Any]] = []
    wrong: dict[str, list[dict[str, Any]]] = {}
    capture: dict[str, list[dict[str, Any]]] = {}
    for n in range(options.sweeps):
        sweep = simulate(who, options.frames, np.random.default_rng([n, len(name), 1]))
        truth = sweep.ras_from_reference
        points = liver_points(who, sweep, rng)
        one = partial(told, points=points, number=n)
        for _ in range(options.starts):
            kept.append(one(ct, sweep, random_pose(middle(sweep), 10.0, 8.0, rng) @ truth))
        shift = other.ct.to_ras(other.places.mean(axis=0)[::-1]) - who.ct.to_ras(who.places.mean(axis=0)[::-1])
        onto = np.eye(4)
        onto[:3, 3] = shift
        case = ("another patient", "mirrored", "40 mm off", "half of the view")[n % 4]
        match case:
            case "another patient":
                found = one(wrong_ct, sweep, onto @ truth)
            case "mirrored":
                found = one(mirrored(ct), sweep, truth)
            case "40 mm off":
                found = one(ct, sweep, random_pose(middle(sweep), 40.0, 8.0, rng) @ truth)
            case _:
                found = one(ct, half_of(sweep), random_pose(middle(sweep), 10.0, 8.0, rng) @ truth)
        wrong.setdefault(case, []).append(found)
        if n < options.capture:
            for millimetres in (5.0, 15.0, 20.0):
                at = random_pose(middle(sweep), millimetres, 0.8 * millimetres, rng) @ truth
                capture.setdefault(f"{millimetres:g} mm, {0.8 * millimetres:g} deg", []).append(one(ct, sweep, at))
        print(f"{name} sweep {n + 1} of {options.sweeps}", file=sys.stderr, flush=True)
    errors = np.array([k["error_mm"] for k in kept])
    good = np.array([k["verdict"] == "good" for k in kept])
    success = errors < SUCCESS_MM
    noticed = {
        case: [k["verdict"] != "good" or (case != "another patient" and k["error_mm"] < SUCCESS_MM) for k in each]
        for case, each in wrong.items()
    }
    return {
        "sweeps": options.sweeps,
        "starts": len(kept),
        "success": float(success.mean()),
        "error_mm": {q: float(np.percentile(errors, p)) for q, p in (("median", 50), ("p95", 95), ("max", 100))},
        "called_good": float(good.mean()),
        "success_of_good": float(success[good].mean()) if good.any() else None,
        "failures_called_good": int((good & ~success).sum()),
        "error_mm_of_good": float(np.median(errors[good])) if good.any() else None,
        "stated_95_mm": float(np.median([k["stated_mm"] for k in kept])),
        "within_stated_95_of_good": float(np.mean([k["covered"] for k in kept if k["verdict"] == "good"] or [np.nan])),
        "within_stated_95": float(np.mean([k["covered"] for k in kept])),
        "seconds": {"median": float(np.median([k["seconds"] for k in kept]))},
        "wrong_right_or_not_good": {case: f"{sum(found)} of {len(found)}" for case, found in noticed.items()},
        "capture": {c: float(np.mean([k["error_mm"] < SUCCESS_MM for k in each])) for c, each in capture.items()},
        "each": kept,
        "each_wrong": wrong,
        "each_capture": capture,
    }


def moved(name: str, who: Patient, options: argparse.Namespace) -> dict[str, Any]:
    """Errors without and with following motion, where there is motion and where there is none."""
    ct = registered_to(who.ct, np.random.default_rng(sum(name.encode())))
    out: dict[str, Any] = {}
    for case, motion in (("moved", MOVED), ("still", None)):
        each = []
        for n in range(FIRST_MOVED, FIRST_MOVED + options.moved):
            sweep = simulate(who, options.frames, np.random.default_rng([n, len(name), 1]), motion)
            rng = np.random.default_rng([n, 7])
            points, truth = liver_points(who, sweep, rng), sweep.ras_from_reference
            rigid, _ = register(ct, sweep, random_pose(middle(sweep), *MOVED_START, rng) @ truth)
            begin = time.process_time()
            frames = TrackedFrames.of(sweep.images, sweep.reference_from_pixel)
            found = deform_ultrasound(ct, frames, rigid)
            seconds = time.process_time() - begin
            there = points @ truth[:3, :3].T + truth[:3, 3]
            if sweep.motion is not None:
                there = there + sweep.motion.displacement(there)
            before = np.linalg.norm(rigid.transform.apply(points) - there, axis=1)
            after = np.linalg.norm(found.to_ct(points) - there, axis=1)
            few = slice(None, None, max(1, len(points) // 40))
            stated, stated_rigid = found.expected_error_mm(there[few]), rigid.expected_error_mm(there[few])
            each.append(
                {
                    "sweep": n,
                    "rigid_mm": float(before.mean()),
                    "after_mm": float(after.mean()),
                    "stated_mm": float(stated.mean()),
                    "stated_rigid_mm": float(stated_rigid.mean()),
                    "covered_rigid": float((before[few] <= stated_rigid).mean()),
                    "covered": float((after[few] <= stated).mean()),
                    "followed": found.followed,
                    "gain": found.gain,
                    "rigid_verdict": rigid.verdict.value,
                    "verdict": found.verdict.value,
                    "processor_seconds": seconds,
                }
            )
            print(f"{name} {case} sweep {n}", file=sys.stderr, flush=True)
        middles = ("rigid_mm", "after_mm", "stated_rigid_mm", "stated_mm", "processor_seconds")
        out[case] = {
            **{key: float(np.median([k[key] for k in each])) for key in middles},
            "within_stated_95_rigid": float(np.mean([k["covered_rigid"] for k in each])),
            "rigid_called_good": sum(k["rigid_verdict"] == "good" for k in each),
            "within_stated_95": float(np.mean([k["covered"] for k in each])),
            "followed": sum(k["followed"] for k in each),
            "nearer": sum(k["after_mm"] < k["rigid_mm"] for k in each if k["followed"]),
        }
        out[f"each_{case}"] = each
    return out


def real_sweep(whos: dict[str, Patient]) -> dict[str, Any] | None:
    """The public liver sweep: frames chosen, and that neither of the two CTs, both of other people, is taken for its
    own. Its probe's calibration is in the tracking file; the start lays the middle of the frames onto the liver."""
    folder = DATA / "ultrasound_liver_sweep"
    video, tracking = folder / "liver_sweep.h264", folder / "liver_sweep_tracking.npz"
    if not (video.is_file() and tracking.is_file()):
        return None
    capture = cv2.VideoCapture(str(video))
    images = []
    while True:
        there, image = capture.read()
        if not there:
            break
        images.append(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
    with np.load(tracking) as data:
        poses, times = data["tracker_poses"], data["tracker_time"]
        at = data["frame_time"] - float(data["temporal_offset_s"])
        calibration, spacing = data["calibration"], data["spacing_mm"]
    nearest = np.array([int(np.abs(times - t).argmin()) for t in at[: len(images)]])
    rows, columns = images[0].shape
    pixel = np.diag([*spacing, 1.0, 1.0])  # the calibration counts from the middle of the image
    pixel[:2, 3] = -spacing * (np.array([columns, rows]) - 1) / 2.0
    matrices = poses[nearest] @ calibration @ pixel
    frames = TrackedFrames.of(np.array(images), matrices)
    here = (matrices @ np.array([columns / 2.0, rows / 2.0, 0.0, 1.0]))[:, :3].mean(axis=0)
    out: dict[str, Any] = {"frames": len(images)}
    for name, who in whos.items():
        ct = registered_to(who.ct, np.random.default_rng(1))
        liver = who.ct.to_ras(who.places.mean(axis=0)[::-1])
        results = []
        for degrees in (0.0, 90.0, 180.0, 270.0):
            start = random_pose(here, 0.0, degrees, np.random.default_rng(3))
            start[:3, 3] += liver - here
            result = register_ultrasound(ct, frames, initial=Rigid.from_matrix(start, NAME))
            results.append({"verdict": result.verdict.value, "evidence": result.evidence, "halves": result.halves_mm})
            out["used"] = result.frames.tolist()
        out[name] = results
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=50, help="for each CT")
    parser.add_argument("--starts", type=int, default=1, help="for each sweep")
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--capture", type=int, default=10, help="sweeps for the capture range")
    parser.add_argument("--moved", type=int, default=12, help="sweeps through tissue that has moved, and not moved")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not (DATA / "ct_liver").is_dir() or not (DATA / "ct_small").is_dir():
        print(f"skipped: no real data in {DATA} (set ABLATION_NAV_DATA)")
        return 0
    numba.set_num_threads(min(THREADS, numba.config.NUMBA_NUM_THREADS))
    for spec in KERNELS:
        spec.compile()
    whos = patients()
    report: dict[str, Any] = {}
    for name, who in whos.items():
        other = next(w for n, w in whos.items() if n != name)
        if options.sweeps > 0:
            report[name] = run(name, who, other, options)
        if options.moved > 0:
            report[f"{name} motion"] = moved(name, who, options)
    report["real sweep"] = real_sweep(whos)
    text = json.dumps(report, indent=1)
    short = {k: {q: v for q, v in (r or {}).items() if not q.startswith("each")} for k, r in report.items()}
    print(json.dumps(short, indent=1))
    if options.json:
        options.json.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
