"""Tracked ultrasound to CT with known truth: success, error, time, capture range, and whether what is stated is true.

    python benchmarks/registration/ultrasound.py [--sweeps 20] [--starts 5] [--frames 30] [--json FILE]

Sweeps of ``ultrasound_simulation.py`` over the abdominal CTs of the shared folder, each from its own window with its
own transducer, settings, tissue and tracking noise. The CT they are registered to is resampled to 256×256×128 voxels
and has noise of its own. Starts lie exactly 10 mm and 8° from the truth; then 40 mm off, on a mirrored CT and on the
other patient's, all of which must be noticed; then at growing distances, for the capture range. Errors are means over
points of the liver inside the frames' fan. Where the real liver sweep (without a CT of its own) is there, it is put
onto both CTs, which are the wrong ones.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numba
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter, label, map_coordinates
from ultrasound_simulation import Patient, Sweep, patient, random_pose, simulate

from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.io.ct import load_ct
from nav.io.errors import MaskError
from nav.io.image_file import read_image_file
from nav.registration.ultrasound_frames import TrackedFrames
from nav.registration.ultrasound_image import KERNELS, UltrasoundRegistration, register_ultrasound
from nav.registration.verdict import Verdict

DATA = Path(os.environ.get("ABLATION_NAV_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
SHAPE = (128, 256, 256)
NOISE_HU = 15.0
THREADS = 2
NAME = "ReferenceToRas"
SUCCESS_MM = 3.0
Matrix = NDArray[np.float64]


def patients() -> dict[str, Patient]:
    labelled = load_ct(DATA / "ct_liver" / "dicom").volume
    labels = read_image_file(DATA / "ct_liver" / "labels.nrrd", MaskError).array
    small = load_ct(DATA / "ct_small" / "example_ct.nii.gz").volume
    # Its segmentation does not lie on it: the liver is the largest piece of soft tissue in the upper part.
    calm = gaussian_filter(small.array.astype(np.float32), 0.7)
    soft = (calm > 25.0) & (calm < 90.0)
    soft[:70] = False
    pieces, _ = label(binary_erosion(soft, iterations=3))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    liver = binary_dilation(pieces == sizes.argmax(), iterations=3)
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


def run(name: str, who: Patient, other: Patient, options: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(sum(name.encode()))
    ct, wrong_ct = registered_to(who.ct, rng), registered_to(other.ct, rng)
    kept: list[dict[str, Any]] = []
    wrong: dict[str, list[bool]] = {"another patient": [], "mirrored": [], "40 mm off": []}
    capture: dict[str, list[bool]] = {}
    for n in range(options.sweeps):
        sweep = simulate(who, options.frames, np.random.default_rng([n, len(name), 1]))
        truth, points = sweep.ras_from_reference, liver_points(who, sweep, rng)
        ras = points @ truth[:3, :3].T + truth[:3, 3]
        for _ in range(options.starts):
            start = random_pose(middle(sweep), 10.0, 8.0, rng) @ truth
            result, seconds = register(ct, sweep, start)
            errors = errors_mm(result.transform.matrix, truth, points)
            stated = result.expected_error_mm(ras)
            kept.append(
                {
                    "sweep": n,
                    "error_mm": float(errors.mean()),
                    "stated_mm": float(stated.mean()),
                    "covered": float((errors <= stated).mean()),
                    "evidence": result.evidence,
                    "agreement": result.agreement,
                    "halves_mm": result.halves_mm,
                    "verdict": result.verdict.value,
                    "seconds": seconds,
                }
            )
        shift = other.ct.to_ras(other.places.mean(axis=0)[::-1]) - who.ct.to_ras(who.places.mean(axis=0)[::-1])
        onto = np.eye(4)
        onto[:3, 3] = shift
        for case, image, at in (
            ("another patient", wrong_ct, onto @ truth),
            ("mirrored", mirrored(ct), truth),
            ("40 mm off", ct, random_pose(middle(sweep), 40.0, 8.0, rng) @ truth),
        ):
            result, _ = register(image, sweep, at)
            found_anyway = case == "40 mm off" and errors_mm(result.transform.matrix, truth, points).mean() < SUCCESS_MM
            wrong[case].append(bool(found_anyway or result.verdict is not Verdict.GOOD))
        if n < options.capture:
            for millimetres, degrees in ((5.0, 4.0), (15.0, 8.0), (15.0, 12.0), (20.0, 12.0)):
                result, _ = register(ct, sweep, random_pose(middle(sweep), millimetres, degrees, rng) @ truth)
                found = errors_mm(result.transform.matrix, truth, points).mean() < SUCCESS_MM
                capture.setdefault(f"{millimetres:g} mm, {degrees:g} deg", []).append(bool(found))
        print(f"{name} sweep {n + 1} of {options.sweeps}", file=sys.stderr, flush=True)
    errors = np.array([k["error_mm"] for k in kept])
    good = np.array([k["verdict"] == "good" for k in kept])
    success = errors < SUCCESS_MM
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
        "wrong_not_called_good": {case: float(np.mean(found)) for case, found in wrong.items()},
        "wrong_cases": options.sweeps,
        "capture": {case: float(np.mean(found)) for case, found in capture.items()},
        "each": kept,
    }


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
    parser.add_argument("--sweeps", type=int, default=20, help="for each CT")
    parser.add_argument("--starts", type=int, default=5, help="for each sweep")
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--capture", type=int, default=10, help="sweeps for the capture range")
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
        report[name] = run(name, who, other, options)
    report["real sweep"] = real_sweep(whos)
    text = json.dumps(report, indent=1)
    print(json.dumps({k: {q: v for q, v in (r or {}).items() if q != "each"} for k, r in report.items()}, indent=1))
    if options.json:
        options.json.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
