"""The files of a plan: what is read, plan.json, markups, and how the command ends."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from nav.ablation import margin as margin_kernels
from nav.ablation.applicators import load_applicator
from nav.ablation.tumour import TumourModel
from nav.cli.errors import CommandError, ExitCode
from nav.cli.mask_spec import Spec, parse_spec
from nav.cli.progress import Steps
from nav.cli.registration_files import prepare
from nav.config.load import validated
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.imaging import reslice
from nav.imaging.plan_picture import PlannedZone, plan_picture
from nav.io.case import CaseIdentity, PlannedPath
from nav.io.ct import load_ct
from nav.io.labels import LabelMap, extract_mask, read_label_map
from nav.io.markups import case_fingerprint, write_paths
from nav.io.point_files import read_points
from nav.planning import kernels
from nav.planning.anatomy import Avoid, skin_points, without_thin_parts
from nav.planning.grid import PlanningError
from nav.planning.paths import PathLimits
from nav.planning.plan import AccessPaths, Entries, Placed, ellipsoids, find_paths, place
from nav.planning.ranking import spread_out
from nav.planning.settings import PlanSettings, load_settings
from nav.planning.zones import chart_zones

__all__ = ["PlanRequest", "disc", "read_entries", "run_plan"]

#: Entries round a given one are this far apart, mm.
_SPREAD_PITCH_MM = 1.0
_UP = {"A": (0.0, 1.0, 0.0), "P": (0.0, -1.0, 0.0), "L": (-1.0, 0.0, 0.0), "R": (1.0, 0.0, 0.0)}

WARNING = (
    "zones are the manufacturer's reference (tier 0), not a prediction for a patient; unions hold for ablations one"
    " after the other; only the structures given are avoided"
)


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """The options of the command."""

    target: str
    organ: tuple[str, ...]
    avoid: tuple[str, ...]
    applicator: str
    out: Path
    ct: Path | None = None
    series: str | None = None
    body: str = ""
    entries: tuple[Path, ...] = ()
    entry_spread_mm: float = 20.0
    power_w: float | None = None
    time_s: float | None = None
    margin_mm: float | None = None
    reserve_mm: float = 0.0
    placement_sigma_mm: float | None = None
    needle_length_mm: float | None = None
    up: str = "A"
    gantry_tilt_deg: float = 0.0
    settings: Path | None = None
    weights: tuple[str, ...] = ()
    most_paths: int = 20


class _Masks:
    """Reads every file once."""

    def __init__(self, ct: Volume | None) -> None:
        self._maps: dict[str, LabelMap] = {}
        self._ct = ct
        self.warnings: list[str] = []

    def of(self, spec: Spec, *, may_be_air: bool = False) -> Volume:
        key = str(spec.path.resolve())
        if key not in self._maps:
            self._maps[key] = read_label_map(spec.path)
        found = extract_mask(
            self._maps[key], label=spec.labels or None, ct=self._ct, component=spec.piece, find_components=False
        )
        self.warnings += [
            w for w in found.warnings if w not in self.warnings and not (may_be_air and "lies in air" in w)
        ]
        return found.volume


def disc(centre: NDArray[np.float64], axis: NDArray[np.float64], radius_mm: float) -> NDArray[np.float64]:
    """(n, 3) points about `_SPREAD_PITCH_MM` apart in the plane across ``axis``, the centre first."""
    helper = np.array([1.0, 0.0, 0.0]) if abs(axis[0]) < 0.8 else np.array([0.0, 1.0, 0.0])
    u = np.cross(axis, helper)
    u /= np.linalg.norm(u)
    v = np.cross(axis, u)
    steps = np.arange(-math.floor(radius_mm / _SPREAD_PITCH_MM), math.floor(radius_mm / _SPREAD_PITCH_MM) + 1)
    a, b = (m.ravel() * _SPREAD_PITCH_MM for m in np.meshgrid(steps, steps))
    order = np.argsort(a**2 + b**2, kind="stable")
    order = order[(a**2 + b**2)[order] <= radius_mm**2 + 1e-9]
    return np.asarray(centre + a[order, None] * u + b[order, None] * v)


def read_entries(paths: Sequence[Path], spread_mm: float, towards: NDArray[np.float64]) -> Entries:
    """Poses (4×4 text, RAS, +Z the advance) and points, each with a disc of entries round it across its axis.

    Raises
    ------
    PlanningError, InputFileError
    """
    points: list[NDArray[np.float64]] = []
    axes: list[NDArray[np.float64]] = []
    for path in paths:
        if path.name.lower().endswith((".json", ".fcsv")):
            for point in read_points(path)[1]:
                axis = towards - point
                spread = disc(point, axis / max(float(np.linalg.norm(axis)), 1e-9), spread_mm)
                points.append(spread)
                axes.append(np.full_like(spread, np.nan))
            continue
        try:
            matrix = np.loadtxt(path)
        except (OSError, ValueError) as error:
            raise PlanningError(f"{path}: cannot be read as a 4×4 needle pose: {error}") from None
        pose = Rigid.from_matrix(matrix, "TipToRas")
        spread = disc(np.array(pose.translation), np.array(pose.rotation[:, 2]), spread_mm)
        points.append(spread)
        axes.append(np.tile(pose.rotation[:, 2], (len(spread), 1)))
    return Entries.of(np.vstack(points), np.vstack(axes))


def _settings(request: PlanRequest) -> PlanSettings:
    found = load_settings(request.settings)
    data = found.model_dump()
    for text in request.weights:
        name, _, value = text.partition("=")
        if name not in data["weights"]:
            raise CommandError(f"--weight {text!r}: the criteria are {', '.join(data['weights'])}", ExitCode.USAGE)
        try:
            data["weights"][name] = float(value)
        except ValueError:
            raise CommandError(f"--weight {text!r}: {value!r} is not a number", ExitCode.USAGE) from None
    for part, key, number in (
        ("cover", "margin_mm", request.margin_mm),
        ("robustness", "placement_sigma_mm", request.placement_sigma_mm),
        ("limits", "needle_length_mm", request.needle_length_mm),
    ):
        if number is not None:
            data[part][key] = number
    return validated(data, PlanSettings, "plan options")


def run_plan(request: PlanRequest, *, as_json: bool) -> None:
    """Read, plan, write, report."""
    steps = Steps()
    begin = time.perf_counter()
    settings = _settings(request)
    applicator = load_applicator(request.applicator)
    zones = chart_zones(applicator, request.power_w, request.time_s)
    target_spec = parse_spec(request.target, "--target", named=False)
    organ_specs = [parse_spec(text, "--organ", named=False) for text in request.organ]
    avoid_specs = [parse_spec(text, "--avoid", named=True) for text in request.avoid]
    with steps.step("Reading"):
        ct, identity = None, None
        if request.ct is not None:
            loaded = load_ct(request.ct, series=request.series)
            ct, identity = loaded.volume, loaded.identity
        masks = _Masks(ct)
        target = masks.of(target_spec)
        organ = [masks.of(spec) for spec in organ_specs]
        avoid = [
            Avoid(
                spec.name,
                without_thin_parts(masks.of(spec, may_be_air=True), spec.diameter_mm),
                settings.clearance_of(spec.name) if spec.clearance_mm is None else spec.clearance_mm,
            )
            for spec in avoid_specs
        ]
        model = TumourModel.from_mask(target, margin_mm=settings.cover.margin_mm)
        if request.entries:
            entries = read_entries(request.entries, request.entry_spread_mm, model.centroid_ras)
        else:
            assert ct is not None
            body = masks.of(parse_spec(request.body, "--body", named=False)) if request.body else None
            entries = Entries.of(skin_points(ct, body=body))
    warnings = [*masks.warnings, *model.warnings]
    limits = PathLimits(
        needle_length_mm=settings.limits.needle_length_mm,
        parenchyma_mm=settings.limits.parenchyma_mm,
        capsule_angle_deg=settings.limits.capsule_angle_deg,
        out_of_plane_deg=settings.limits.out_of_plane_deg,
        gantry_tilt_deg=request.gantry_tilt_deg,
        up_ras=None if request.entries else _UP.get(request.up),
        from_below_deg=settings.limits.from_below_deg,
        pose_angle_deg=settings.limits.pose_angle_deg,
    )
    prepare((*kernels.KERNELS, *margin_kernels.KERNELS, *reslice.KERNELS), steps)
    started = time.perf_counter()
    with steps.step("Finding paths") as update:
        paths = find_paths(ct or organ[0], target, organ, avoid, entries, zones, limits, settings, model, update)
    warnings += paths.anatomy.warnings
    with steps.step("Placing ablations") as update:
        placed = place(paths, zones, model, limits, settings, request.reserve_mm, update)
    report = _report(request, settings, limits, paths, placed, warnings)
    report |= {} if identity is None else case_fingerprint(identity)
    report["seconds"] = {"planning": time.perf_counter() - started}
    with steps.step("Writing"):
        request.out.mkdir(parents=True, exist_ok=True)
        report["out"] = _write(request.out, report, placed, identity, ct, target, organ[0], model)
        report["seconds"]["all"] = time.perf_counter() - begin
        (request.out / "plan.json").write_text(_text(report), encoding="utf-8")
    if as_json:
        print(_text(report), end="")
    else:
        _print(report)
    for warning in warnings:
        print(f"ablation-nav: note: {warning}", file=sys.stderr)
    if report["reasons"]:
        for reason in report["reasons"]:
            print(f"ablation-nav: {report['verdict'].replace('_', ' ')}: {reason}", file=sys.stderr)
        raise typer.Exit(ExitCode.FAILED)


def _text(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _listed(paths: AccessPaths, count: int) -> NDArray[np.intp]:
    """Numbers of the paths to list: the best that differ; without a feasible one, those that violate least."""
    if len(paths.feasible):
        return spread_out(paths.checks, paths.feasible[:20_000], count, 10.0, 6.0, 5.0)
    order = np.lexsort((paths.checks.length_mm, paths.checks.violated.sum(axis=1)))
    return spread_out(paths.checks, order[:5000], min(count, 10), 10.0, 6.0, 5.0)


def _number(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def _report(
    request: PlanRequest, settings: PlanSettings, limits: PathLimits, paths: AccessPaths, placed: Placed,
    warnings: list[str],
) -> dict[str, Any]:  # fmt: skip
    checks = paths.checks
    rank = {int(n): place for place, n in enumerate(paths.feasible)}
    listed = []
    for n in _listed(paths, request.most_paths):
        at = rank.get(int(n))
        listed.append(
            {
                "entry_ras": checks.entries_ras[n].round(3).tolist(),
                "target_ras": checks.tips_ras[n].round(3).tolist(),
                "length_mm": _number(checks.length_mm[n]),
                "angle_deg": _number(checks.capsule_angle_deg[n]),
                "out_of_plane_deg": _number(checks.out_of_plane_deg[n]),
                "parenchyma_mm": _number(checks.parenchyma_mm[n]),
                "criteria": {} if at is None else {c: _number(v[at]) for c, v in paths.criteria.items()},
                "distances_mm": {}
                if at is None
                else dict(zip(paths.anatomy.names, (_number(d) for d in paths.distances_mm[at]), strict=True)),
                "score": None if at is None else _number(paths.scores[at]),
                "pareto": None if at is None else bool(paths.pareto[at]),
                "feasible": at is not None,
                "violated": [c for c, v in zip(checks.constraints, checks.violated[n], strict=True) if v],
            }
        )
    applicators = []
    chosen = placed.placements
    for n, zone in enumerate(chosen.zone_list()):
        applicators.append(
            {
                "name": f"ablation {n + 1}",
                "entry_ras": placed.entries_ras[n].round(3).tolist(),
                "target_ras": chosen.tips_ras[n].round(3).tolist(),
                "length_mm": _number(placed.checks.length_mm[n]),
                "angle_deg": _number(placed.checks.capsule_angle_deg[n]),
                "healthy_ml": _number(chosen.healthy_ml[n]),
                **zone.describe(),
            }
        )
    reasons = [placed.reason] if placed.reason else []
    if not len(paths.feasible):
        counts = sorted(((c, n) for n, c in checks.counts.items() if c), reverse=True)
        share = ", ".join(f"{n} {100 * c / len(checks.length_mm):.0f} %" for c, n in counts)
        reasons = [f"none of {len(checks.length_mm)} paths meets every hard constraint; violated: {share}"]
    cover = placed.cover
    return {
        "verdict": "covered" if not reasons else "no_path" if not len(paths.feasible) else "not_covered",
        "reasons": reasons,
        "paths": listed,
        "applicators": applicators,
        "coverage": _number(placed.coverage),
        "target_coverage": _number(placed.target_coverage),
        "healthy_ml": _number(placed.healthy_ml),
        "min_margin_mm": _number(placed.min_margin_mm),
        "p_margin_ge5": placed.p_margin_ge5,
        "p_target_covered": placed.p_target_covered,
        "placement": {
            "sigma_mm": settings.robustness.placement_sigma_mm,
            "draws": settings.robustness.draws,
            "seed": settings.robustness.seed,
            "reserve_mm": request.reserve_mm,
            "coverage_p5_p50_p95": placed.draws_coverage,
        },
        "cover": {
            "margin_mm": settings.cover.margin_mm,
            "wanted": settings.cover.coverage,
            "reachable": _number(cover.reachable),
            "method": cover.method,
            "greedy_applicators": cover.greedy_applicators,
            "greedy_healthy_ml": _number(cover.greedy_healthy_ml),
            "lower_bound_applicators": cover.lower_bound,
            "gap": cover.gap,
            "time_limit_reached": cover.time_limit_reached,
        },
        "candidates": {
            "paths": len(checks.length_mm),
            "feasible": len(paths.feasible),
            "violated": checks.counts,
            "constraints": {
                **{
                    f"{n}": f"at least {c:g} mm away"
                    for n, c in zip(paths.anatomy.names, paths.anatomy.clearance_mm, strict=True)
                },
                "limits": {name: getattr(limits, name) for name in limits.__slots__},
            },
        },
        "weights": settings.weights.model_dump(),
        "consecutive_only": True,
        "note": WARNING,
        "warnings": warnings,
    }


def _write(
    out: Path, report: dict[str, Any], placed: Placed, identity: CaseIdentity | None, ct: Volume | None,
    target: Volume, organ: Volume, model: TumourModel,
) -> dict[str, Any]:  # fmt: skip
    files: dict[str, Any] = {"plan": str(out / "plan.json")}
    lines = [PlannedPath(a["name"], tuple(a["entry_ras"]), tuple(a["target_ras"])) for a in report["applicators"]]
    for old in (*out.glob("ablation-*.mrk.json"), out / "plan.mrk.json", out / "plan.png"):
        old.unlink(missing_ok=True)  # of a plan before: a line too many would be taken for one of this plan
    if not lines:
        return files
    write_paths(out / "plan.mrk.json", lines, case=identity)
    files["markups"] = str(out / "plan.mrk.json")
    files["lines"] = []
    for n, line in enumerate(lines, start=1):
        write_paths(out / f"ablation-{n}.mrk.json", [line], case=identity)
        files["lines"].append(str(out / f"ablation-{n}.mrk.json"))
    zones = [
        PlannedZone(
            z.centre_ras, z.axis_ras, z.semi_long_mm, z.semi_short_mm, np.array(e.entry_ras), np.array(e.target_ras)
        )
        for z, e in zip(ellipsoids(placed.placements), lines, strict=True)
    ]
    picture = plan_picture(ct, organ, target, model.margin_mm, zones)
    if not cv2.imwrite(str(out / "plan.png"), picture):
        raise CommandError(f"{out / 'plan.png'}: cannot be written", ExitCode.INPUT)
    files["picture"] = str(out / "plan.png")
    return files


def _print(report: dict[str, Any]) -> None:
    candidates, cover = report["candidates"], report["cover"]
    print(f"{report['verdict'].replace('_', ' ')}, in {report['seconds']['planning']:.1f} s")
    print(f"paths              {candidates['feasible']} of {candidates['paths']} are feasible")
    for a in report["applicators"]:
        print(
            f"{a['name']:18} {a['applicator']} {a['power_w']:g} {a['control']}, {a['time_s']:g} s,"
            f" {a['length_mm']:.0f} mm deep, {a['angle_deg']:.0f} deg to the capsule"
        )
    if any(a["offset_basis"] == "assumed" for a in report["applicators"]):
        print("warning: no source says where along the needle these zones lie; they are assumed to end at the tip")
    if report["applicators"]:
        print(f"coverage           {100 * report['coverage']:.1f} % of target + {cover['margin_mm']:g} mm")
        print(f"healthy tissue     {report['healthy_ml']:.1f} ml")
        print(
            f"placement errors   {100 * report['p_margin_ge5']:.0f} % of draws cover target + 5 mm"
            f" ({report['placement']['sigma_mm']:g} mm per axis)"
        )
    print(f"note               {report['note']}")
    for file in report["out"].values():
        for one in file if isinstance(file, list) else [file]:
            print(f"wrote {one}")
