"""Planning on real livers: candidates per second, coverage, and every path checked again by another way.

    python benchmarks/ablation/planning.py [--only NAME] [--recheck 200] [--applicator emprint] [--json FILE]

Seven tumours of one CT, from the skin (bone, lungs, kidneys, spleen, vessels are avoided), and the five nodules of
three other patients, from the given needle poses (hepatic artery, hepatic and portal vein are avoided). The second
check samples the paths every 0.2 mm against the masks' own voxels and shares no code with the planner.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from nav.ablation.applicators import load_applicator
from nav.ablation.tumour import TumourModel
from nav.cli.plan_files import read_entries
from nav.geometry.volume import Volume
from nav.io.labels import extract_mask, read_label_map
from nav.planning import kernels
from nav.planning.anatomy import Avoid, skin_points
from nav.planning.paths import PathLimits, check_paths
from nav.planning.plan import Entries, find_paths, place
from nav.planning.settings import load_settings
from nav.planning.zones import chart_zones

DATA = Path(os.environ.get("ABLATION_NAV_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
STEP_MM = 0.2

F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass
class Case:
    """One tumour and what surrounds it."""

    name: str
    lattice: Volume
    target: Volume
    organ: list[Volume]
    avoid: list[Avoid]
    entries: Entries
    limits: PathLimits


def ct_liver() -> Iterator[Case]:
    """The seven tumours of one CT."""
    labels = read_label_map(DATA / "ct_liver" / "labels.nrrd")

    def mask(*values: int, piece: int | None = None) -> Volume:
        return extract_mask(labels, label=values, ct=None, component=piece, find_components=False).volume

    structures = {"bone": ((65,), 1.0), "lung": ((257, 321), 5.0), "kidney": ((129, 193), 5.0), "spleen": ((385,), 5.0),
                  "vessels": ((465, 481, 17, 33), 3.0), "artery": ((513,), 3.0)}  # fmt: skip
    avoid = [Avoid(name, mask(*values), mm) for name, (values, mm) in structures.items()]
    body = Volume.of((np.asarray(labels.volume.array) > 0).astype(np.uint8), labels.volume.ras_from_index)
    entries = Entries.of(skin_points(body, body=body))
    organ = [mask(449, 451, 453, 465, 481)]
    for piece in range(1, 8):
        target = mask(451, piece=piece)
        yield Case(
            f"ct_liver {piece}", labels.volume, target, organ, avoid, entries, PathLimits(up_ras=(0.0, 1.0, 0.0))
        )


def liver_cases() -> Iterator[Case]:
    """The nodules of three patients, from the given poses."""
    listed = {
        "Patient1": [("nodule", ["start1"])],
        "Patient2": [("nodule1", ["target1_start1", "target1_start2"]), ("nodule2", ["target2_start1"])],
        "Patient3": [("nodule1", ["nodule1_start1"]), ("nodule2", ["nodule2_start1"])],
    }
    for patient, nodules in listed.items():
        folder = DATA / "liver_cases" / patient
        files = {f.name.lower().removesuffix(".nii.gz"): f for f in folder.glob("*.nii.gz")}
        masks = {
            n: extract_mask(read_label_map(f), label=None, ct=None, find_components=False).volume
            for n, f in files.items()
        }
        vessels = ("hepaticartery", "hepaticvein", "portalvein")
        for nodule, poses in nodules:
            target = masks[nodule]
            middle = target.to_ras(np.argwhere(np.asarray(target.array) > 0)[:, ::-1].mean(axis=0))
            entries = read_entries([folder / f"{p}.txt" for p in poses], 30.0, middle)
            # Vessels and nodules are holes in the liver's mask.
            organ = [masks["liver"], *(masks[v] for v in vessels), *(masks[n] for n, _ in nodules)]
            avoid = [Avoid(v, masks[v], 3.0) for v in vessels]
            yield Case(
                f"{patient} {nodule}", masks["liver"], target, organ, avoid, entries, PathLimits(needle_length_mm=200.0)
            )


def inside(mask: Volume, points: F64) -> Bools:
    """Nearest voxel, written out once more."""
    inverse = np.linalg.inv(mask.ras_from_index)
    index = np.floor(points @ inverse[:3, :3].T + inverse[:3, 3] + 0.5).astype(np.int64)
    ok = np.all((index >= 0) & (index < np.array(mask.array.shape[::-1])), axis=-1)
    index[~ok] = 0
    return ok & (np.asarray(mask.array)[index[..., 2], index[..., 1], index[..., 0]] > 0)


class Recheck:
    """Paths against the masks as they were read."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.trees: list[tuple[cKDTree, F64, Volume]] = []
        for structure in case.avoid:
            mask = structure.mask
            centres = mask.to_ras(np.argwhere(np.asarray(mask.array) > 0)[:, ::-1])
            own = inside(case.target, centres)  # in the target nothing can be avoided
            self.trees.append((cKDTree(centres[~own]), own, mask))
        first = case.organ[0]
        body = np.asarray(first.array) > 0
        points = first.to_ras(np.argwhere(np.ones_like(body))[:, ::-1]) if len(case.organ) > 1 else None
        if points is not None:
            for part in case.organ[1:]:
                body |= inside(part, points).reshape(body.shape)
        index = np.floor(
            first.to_index(case.target.to_ras(np.argwhere(np.asarray(case.target.array) > 0)[:, ::-1])) + 0.5
        ).astype(int)
        ok = np.all((index >= 0) & (index < np.array(body.shape[::-1])), axis=1)
        body[tuple(index[ok][:, ::-1].T)] = True
        self.body = Volume.of(ndimage.binary_fill_holes(body).astype(np.uint8), first.ras_from_index)
        blurred = ndimage.gaussian_filter(self.body.array.astype(np.float32), 3.0 / first.spacing_mm[::-1])
        self.blurred = blurred

    def normal(self, point: F64) -> F64:
        """Outward, from the blurred mask."""
        steps = 1.5 * np.vstack([np.eye(3), -np.eye(3)])
        at = self.body.to_index(point + steps)[:, ::-1].T
        v = ndimage.map_coordinates(self.blurred, at, order=1, mode="nearest")
        n = v[3:] - v[:3]
        return np.asarray(n / max(float(np.linalg.norm(n)), 1e-9))

    def violations(self, entry: F64, tip: F64) -> list[str]:
        """Names of the hard constraints that a path breaks."""
        out = []
        limits = self.case.limits
        length = float(np.linalg.norm(tip - entry))
        direction = (tip - entry) / length
        count = int(np.ceil(length / STEP_MM)) + 1
        points = entry + np.linspace(0.0, 1.0, count)[:, None] * (tip - entry)
        in_target, in_organ = inside(self.case.target, points), inside(self.body, points)
        first = int(np.argmax(in_target)) if in_target.any() else count
        if length > limits.needle_length_mm:
            out.append("length")
        if limits.up_ras is not None and direction @ limits.up_ras > np.sin(np.radians(limits.from_below_deg)):
            out.append("from_below")
        if in_organ[0] or not in_organ.any():
            out.append("reaches_organ")
        else:
            enters = int(np.argmax(in_organ))
            # The steps of a voxelised capsule may be touched before the path is in the organ for good (2 mm).
            runs = np.flatnonzero(np.convolve(in_organ, np.ones(10, int), "valid") == 10)
            enters = int(runs[0]) if runs.size else enters
            if not in_organ[enters:].all():
                out.append("stays_in_organ")
            if (first - enters) * length / (count - 1) < limits.parenchyma_mm:
                out.append("parenchyma")
            sine = -float(self.normal(points[enters]) @ direction)
            if np.degrees(np.arcsin(np.clip(sine, -1, 1))) < limits.capsule_angle_deg:
                out.append("capsule_angle")
        for structure, (tree, own, mask) in zip(self.case.avoid, self.trees, strict=True):
            checked = points[:first] if own.any() else points
            if not len(checked) or not tree.n:
                continue
            half = 0.5 * mask.spacing_mm
            bound = structure.clearance_mm + float(np.linalg.norm(half))
            near = tree.query(checked, distance_upper_bound=bound)[0] <= bound
            axes = mask.ras_from_index[:3, :3] / mask.spacing_mm
            for point in checked[near]:
                voxels = tree.data[tree.query_ball_point(point, bound)]
                gap = np.maximum(np.abs((point - voxels) @ axes) - half, 0.0)
                if np.linalg.norm(gap, axis=1).min() < structure.clearance_mm:
                    out.append(structure.name)
                    break
        return out


def measure(case: Case, applicator: str, most_rechecked: int) -> dict[str, Any]:
    """Plan one case and check it again."""
    settings = load_settings()
    zones = chart_zones(load_applicator(applicator))
    model = TumourModel.from_mask(case.target, margin_mm=settings.cover.margin_mm)
    begin, cpu = time.perf_counter(), time.process_time()
    paths = find_paths(
        case.lattice, case.target, case.organ, case.avoid, case.entries, zones, case.limits, settings, model
    )
    found, found_cpu = time.perf_counter(), time.process_time()
    placed = place(paths, zones, model, case.limits, settings)
    done, done_cpu = time.perf_counter(), time.process_time()
    checks = paths.checks
    again, again_cpu = time.perf_counter(), time.process_time()
    check_paths(paths.anatomy, checks.entries_ras, checks.tips_ras, case.limits)
    check_s, check_cpu = time.perf_counter() - again, time.process_time() - again_cpu
    recheck = Recheck(case)
    rng = np.random.default_rng(0)
    several = paths.feasible[rng.permutation(len(paths.feasible))[:most_rechecked]]
    pairs = [(checks.entries_ras[n], checks.tips_ras[n]) for n in several]
    pairs += list(zip(placed.entries_ras, placed.placements.tips_ras, strict=True))
    broken: dict[str, int] = {}
    for entry, tip in pairs:
        for name in recheck.violations(entry, tip):
            broken[name] = broken.get(name, 0) + 1
    # The other way round: how many refused paths does the second check find nothing wrong with?
    refused = np.flatnonzero(~checks.feasible)
    refused = refused[rng.permutation(len(refused))[:most_rechecked]]
    too_strict = sum(not recheck.violations(checks.entries_ras[n], checks.tips_ras[n]) for n in refused)
    report = {
        "candidates": len(checks.length_mm), "check_seconds": check_s, "check_cpu_seconds": check_cpu,
        "candidates_per_second": len(checks.length_mm) / check_s, "feasible": len(paths.feasible),
        "paths_seconds": found - begin, "paths_cpu_seconds": found_cpu - cpu, "place_seconds": done - found,
        "place_cpu_seconds": done_cpu - found_cpu, "applicators": len(placed.placements.zone),
        "method": placed.cover.method, "greedy_applicators": placed.cover.greedy_applicators,
        "lower_bound": placed.cover.lower_bound, "gap": placed.cover.gap, "coverage": placed.coverage,
        "reachable": placed.cover.reachable, "healthy_ml": placed.healthy_ml,
        "target_ml": model.volume_ml, "min_margin_mm": placed.min_margin_mm, "p_margin_ge5": placed.p_margin_ge5,
        "reason": placed.reason, "violated": checks.counts, "rechecked": len(pairs), "violations": broken,
        "refused_though_fine": too_strict / max(len(refused), 1), "warnings": list(paths.anatomy.warnings),
    }  # fmt: skip
    print(
        f"{case.name:18} {report['candidates']:6} paths {check_s:5.2f} s, {report['feasible']:5} feasible | "
        f"{report['applicators']:2} ablations ({report['method']}, greedy {report['greedy_applicators']}), coverage "
        f"{100 * placed.coverage:5.1f} %, healthy {placed.healthy_ml:5.1f} ml, p {placed.p_margin_ge5} | "
        f"{done - begin:5.1f} s | {len(pairs)} checked again: {broken or 'none broken'}; "
        f"{100 * report['refused_though_fine']:.1f} % refused though fine {placed.reason}"
        + ("" if len(paths.feasible) else f" {checks.counts}"),
        flush=True,
    )
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--recheck", type=int, default=200)
    parser.add_argument("--applicator", default="emprint")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not (DATA / "ct_liver").is_dir():
        print("real data folder not found (set ABLATION_NAV_DATA to its path)")
        return
    for kernel in kernels.KERNELS:
        kernel.compile()
    report = {}
    for source in (ct_liver, liver_cases):
        for case in source():
            if options.only in case.name:
                report[case.name] = measure(case, options.applicator, options.recheck)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
