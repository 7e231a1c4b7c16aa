"""Rigid registration across modalities with known truth: CT to MR and to PET, simulated from real CTs.

    python benchmarks/registration/multimodal.py [--truths 24] [--starts 5] [--peers 6] [--wrong 160] [--json FILE]

Data: the abdominal CTs of the shared folder, brought to 256×256×128 voxels with 20 HU of noise; and what an MR and a
PET scanner would see of them (``modalities.py``: three MR contrasts on three voxel sizes, PET of 5 mm). Starts up to
10 mm and 10° from the truth; ``capture``: starts from further away. ``wrong``: how many are called good of mirrored
images, other patients and starts far outside. Peers on the same pairs and the same two threads: SimpleITK (Mattes
mutual information) and, where it is installed, elastix.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numba
import numpy as np
from modalities import MR, PET, Contrast, Scanner, patient, scan
from rigid import (
    DATA,
    NAME,
    NOISE_HU,
    SHAPE,
    SOURCES,
    THREADS,
    Matrix,
    Pair,
    body,
    by_elastix,
    by_simpleitk,
    figures,
    pose,
    told,
    wrongs,
)

from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.io.ct import load_ct
from nav.io.errors import MaskError
from nav.io.image_file import read_image_file
from nav.io.itk import sitk
from nav.registration.rigid_common import RigidImageRegistration
from nav.registration.rigid_mutual_information import CAPTURE_DEG, CAPTURE_MM, KERNELS, register_rigid_multimodal
from nav.registration.verdict import Verdict

LABELS = {"ct_liver": DATA / "ct_liver" / "labels.nrrd"}
#: A registration that leaves points this far from where they belong has failed.
SUCCESS_MM = 2.0
#: Starts further away, mm and degrees, to see where the capture range ends.
CAPTURE = ((10.0, 10.0), (15.0, 15.0), (20.0, 15.0), (30.0, 20.0))
MR_CONTRASTS = ("T1", "T2", "T1 fat saturated")


def seen(ct: Volume, contrast: Contrast, scanner: Scanner, truth: Matrix, rng: np.random.Generator) -> Pair:
    """CT and what the scanner sees, and points inside both."""
    fixed = Volume.of(np.rint(ct.array + rng.normal(0, NOISE_HU, SHAPE)).astype(np.int16), ct.ras_from_index)
    moving = scan(contrast, scanner, ct.centre_ras() + rng.uniform(-10, 10, 3), truth, rng)
    inside = np.argwhere(ct.array > -200)
    points = ct.to_ras(inside[rng.choice(len(inside), 3000, replace=False)][:, ::-1])
    index = moving.to_index(points @ truth[:3, :3].T + truth[:3, 3])
    there = ((index >= 0) & (index <= np.array(moving.size) - 1)).all(axis=1)
    return Pair(fixed, moving, truth, points[there][:300])


def registered(fixed: Volume, moving: Volume, start: Matrix) -> RigidImageRegistration:
    return register_rigid_multimodal(fixed, moving, initial=Rigid.from_matrix(np.linalg.inv(start), NAME))


class Kept:
    """What is measured of one kind of pair."""

    def __init__(self) -> None:
        self.errors: list[float] = []
        self.seconds: list[float] = []
        self.covered: list[float] = []
        self.stated: list[float] = []
        self.good: list[bool] = []
        self.others: dict[str, tuple[list[float], list[float]]] = {}

    def add(self, this: Pair, start: Matrix) -> None:
        begin = time.perf_counter()
        result = registered(this.fixed, this.moving, start)
        self.seconds.append(time.perf_counter() - begin)
        errors = this.errors_mm(np.linalg.inv(result.transform.matrix))
        said = result.expected_error_mm(this.points)
        self.errors.append(float(errors.mean()))
        self.covered.append(float((errors <= said).mean()))
        self.stated.append(float(said.mean()))
        self.good.append(result.verdict is Verdict.GOOD)

    def report(self) -> dict[str, Any]:
        right = np.array(self.errors) < SUCCESS_MM
        good = np.array(self.good)
        out = figures(self.errors, self.seconds, SUCCESS_MM) | {
            "right_called_good": float(good[right].mean()) if right.any() else None,
            "wrong_called_good": int(good[~right].sum()),
            "stated_95_mm": float(np.median(self.stated)),
            "within_stated_95": float(np.mean(self.covered)),
        }
        return out | {name: figures(*kept, SUCCESS_MM) for name, kept in self.others.items()}


def run(name: str, ct: Volume, contrasts: dict[str, Contrast], options: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(sum(name.encode()))
    elastix = by_elastix()
    methods = {"SimpleITK": by_simpleitk} | ({} if elastix is None else {"elastix": elastix})
    kept = {"MR": Kept(), "PET": Kept()}
    capture = {f"{mm:g} mm, {deg:g} degrees": Kept() for mm, deg in CAPTURE}
    for n in range(options.truths):
        truth = pose(ct, rng.uniform(0, 15), rng.uniform(0, 10), rng)
        kind = "PET" if n % 4 == 3 else "MR"
        contrast = contrasts["PET" if kind == "PET" else MR_CONTRASTS[n % 4]]
        this = seen(ct, contrast, PET[0] if kind == "PET" else MR[(n // 4) % len(MR)], truth, rng)
        for m in range(options.starts):
            start = truth @ pose(ct, rng.uniform(0, CAPTURE_MM), rng.uniform(0, CAPTURE_DEG), rng)
            kept[kind].add(this, start)
            if m == 0 and n < options.peers:
                for method, register in methods.items():
                    errors, seconds = kept[kind].others.setdefault(method, ([], []))
                    begin = time.perf_counter()
                    found = register(this, start)
                    seconds.append(time.perf_counter() - begin)
                    errors.append(float(this.errors_mm(found).mean()))
        for (mm, deg), far in zip(CAPTURE, capture.values(), strict=True):
            far.add(this, truth @ pose(ct, mm, deg, rng))
    report = {kind: k.report() for kind, k in kept.items() if k.errors}
    return report | {"capture": {where: k.report() for where, k in capture.items()}}


def wrong(
    ct: Volume, other: Volume, contrasts: dict[str, Contrast], cases: int, rng: np.random.Generator
) -> dict[str, Any]:
    def register(fixed: Volume, moving: Volume, start: Matrix) -> tuple[Matrix, bool]:
        result = registered(fixed, moving, start)
        return np.linalg.inv(result.transform.matrix), result.verdict is Verdict.GOOD

    kept: dict[str, list[int]] = {}
    for n in range(-(-cases // 4)):
        truth = pose(ct, rng.uniform(0, 15), rng.uniform(0, 10), rng)
        contrast = contrasts["PET" if n % 4 == 3 else MR_CONTRASTS[n % 4]]
        scanner = PET[0] if n % 4 == 3 else MR[(n // 4) % len(MR)]
        wrongs(seen(ct, contrast, scanner, truth, rng), other, register, kept, rng, SUCCESS_MM)
    return told(kept)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--truths", type=int, default=24, help="different scans for each CT, one in four a PET")
    parser.add_argument("--starts", type=int, default=5, help="from each of them")
    parser.add_argument("--peers", type=int, default=6, help="scans that the peers get too, from one start")
    parser.add_argument("--wrong", type=int, default=160, help="registrations for each CT that cannot be right")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not all(path.exists() for path in (*SOURCES.values(), *LABELS.values())):
        print(f"skipped: no real data in {DATA} (set ABLATION_NAV_DATA)")
        return 0
    numba.set_num_threads(min(THREADS, numba.config.NUMBA_NUM_THREADS))
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(THREADS)
    for spec in KERNELS:
        spec.compile()
    bodies = {name: body(path) for name, path in SOURCES.items()}
    report = {}
    for n, (name, ct) in enumerate(bodies.items()):
        rng = np.random.default_rng(sum(name.encode()) + 2)
        labels = read_image_file(LABELS[name], MaskError).array if name in LABELS else None
        contrasts = patient(load_ct(SOURCES[name]).volume, labels, rng)
        report[name] = run(name, ct, contrasts, options)
        report[name]["wrong"] = wrong(ct, list(bodies.values())[1 - n], contrasts, options.wrong, rng)
    text = json.dumps(report, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
