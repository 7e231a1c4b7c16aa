"""How well computed zones predict powers they were not fitted to, and the fits that `configs/applicators` ship.

    python benchmarks/ablation/held_out.py [--only NAME ...] [--tier2] [--json FILE]

Each set of measured zones (the shipped charts; He 2010, internally cooled, from the shared data) is fitted once as a
whole, and once for each power (or temperature, or organ) without it, which is then predicted. With --tier2 the held-out
powers of microwave devices are also computed in three dimensions, with the same parameters.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from nav.ablation import axisymmetric, bioheat
from nav.ablation.applicators import Cryoprobe, Electrode, Heating, HeldOut, load_applicator
from nav.ablation.bioheat import BoxGrid, Burst, heat_box, needle_source
from nav.ablation.needle_zone import shape_of_level
from nav.ablation.prediction import around_needle, level_of
from nav.ablation.sources import NeedleGrid, line_source
from nav.ablation.thermal import Material, load_tissue

Array = NDArray[np.float64]

DATA = Path(os.environ.get("ABLATION_NAV_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
GRID = NeedleGrid(-60.0, 1.0, 121, 40)
#: What the fit starts from and is held to loosely. Microwave: logarithms of efficiency, active length (mm), absorption
#: (1/m; liver at 2.45 GHz) and perfusion over the tissue's, and the powers of length and efficiency. Radiofrequency:
#: logarithms of power (W), bare length and radius (mm). Cryo: of the probe's cold (K below 0 C) and of its cold length
#: (mm). Then 1 sigma of each.
START = {
    "microwave": np.array([np.log(0.6), np.log(20.0), np.log(47.9), 0.0, 0.0, 0.0]),
    "radiofrequency": np.log([13.0, 22.0, 1.5]),
    "cryo": np.log([150.0, 35.0]),
}
LOOSE = {
    "microwave": np.array([0.5, 0.5, 0.5, 0.15, 0.3, 0.15]),
    "radiofrequency": np.array([0.3, 0.2, 0.3]),
    "cryo": np.array([0.2, 0.2]),
}
#: Radius of a cryoprobe (2.4 mm probes).
PROBE_MM = 1.2
#: Weight of an error in length against one in width: lengths scatter more.
LENGTH_WEIGHT = 0.5


@dataclass(frozen=True)
class Zones:
    """Measured zones: setting, time s, length mm, width mm; the tissue of each; and what they are of."""

    rows: Array
    tissues: NDArray[np.str_]
    modality: str = "microwave"
    control: str = "W"

    def part(self, which: NDArray[np.bool_]) -> Zones:
        return replace(self, rows=self.rows[which], tissues=self.tissues[which])


def he_2010(model: str, tissue: str) -> Zones:
    """Internally cooled antenna (He et al. 2010, Acad Radiol 17:7)."""
    with (DATA / "ablation_zones" / "he2010_mwa.csv").open() as file:
        rows = [
            [float(r[k]) for k in ("power_W", "time_min", "long_axis_diam_mm", "short_axis_diam_mm")]
            for r in csv.DictReader(file)
            if r["model"] == model and r["antenna"] == "internally-cooled"
        ]
    return Zones(np.array(rows) * [1.0, 60.0, 1.0, 1.0], np.array([tissue] * len(rows)))


def chart(*names_and_tissues: str) -> Zones:
    """Shipped charts: ``name:tissue``."""
    rows, tissues = [], []
    for name, _, tissue in (n.partition(":") for n in names_and_tissues):
        device = load_applicator(name)
        rows += [[c.power_w, c.time_s, c.long_mm, c.short_mm] for c in device.chart]
        tissues += [tissue] * len(device.chart)
    return Zones(np.array(rows), np.array(tissues), device.modality, device.control)


def model_of(x: Array, zones: Zones) -> Heating | Electrode | Cryoprobe:
    same: dict[str, Any] = {
        "tissue": str(zones.tissues[0]), "fitted_to": "-", "held_out": HeldOut(long_mm=1.0, short_mm=1.0)
    }  # fmt: skip
    e = [float(v) for v in np.exp(x)]
    if zones.modality == "radiofrequency":
        return Electrode(power_w=e[0], active_length_mm=e[1], radius_mm=e[2], **same)
    if zones.modality == "cryo":
        return Cryoprobe(probe_c=-min(e[0], 196.0), active_length_mm=e[1], radius_mm=PROBE_MM, **same)
    return Heating(
        efficiency=e[0], active_length_mm=e[1], absorption_per_m=e[2], perfusion_scale=e[3], length_power=float(x[4]),
        efficiency_power=float(x[5]), **same,
    )  # fmt: skip


def predicted(x: Array, zones: Zones) -> Array:
    """(n, 2) lengths and widths of tier 1, one run per setting (and, where it freezes, per time)."""
    model = model_of(x, zones)
    out = np.empty((len(zones.rows), 2))
    keys = [
        (t, r[0], r[1] if zones.modality == "cryo" else 0.0) for t, r in zip(zones.tissues, zones.rows, strict=True)
    ]
    for key in dict.fromkeys(keys):
        where = [n for n, k in enumerate(keys) if k == key]
        times = np.unique(zones.rows[where, 1])
        around = around_needle(model, zones.control, key[1], GRID, 0.0, load_tissue(str(key[0])))
        heat = around.heat(GRID, times.tolist())
        shapes = [shape_of_level(GRID, level_of(model, heat, n)) for n in range(len(times))]
        for row in where:
            shape = shapes[int(np.searchsorted(times, zones.rows[row, 1]))]
            out[row] = shape.long_mm, shape.short_mm
    return out


def predicted_in_3d(x: Array, zones: Zones) -> Array:
    """(n, 2) lengths and widths of tier 2, along one oblique direction."""
    from nav.ablation.prediction import box_zone
    from nav.geometry.volume import Volume

    model = model_of(x, zones)
    assert isinstance(model, Heating)
    material = Material.heated(load_tissue(str(zones.tissues[0])), model.perfusion_scale)
    axis = np.array([0.6, 0.0, 0.8])
    box = BoxGrid((104, 84, 96), 1.0, (-47.5, -41.5, -51.5))
    matrix = np.eye(4)
    matrix[:3, 3] = box.origin_mm
    out = np.empty((len(zones.rows), 2))
    for power in np.unique(zones.rows[:, 0]):
        where = np.flatnonzero(zones.rows[:, 0] == power)
        times = np.unique(zones.rows[where, 1])
        table = model.deposited_w(power) * line_source(GRID, 0.0, model.length_mm(power), model.absorption_per_m)
        burst = Burst(needle_source(box, GRID, table, np.zeros(3), axis), 0.0, float(times[-1]))
        heat = heat_box(box, material, [burst], times.tolist())
        for row in where:
            damage = heat.damage[int(np.searchsorted(times, zones.rows[row, 1]))]
            level = Volume.of(np.log(np.maximum(damage, np.float32(1e-12))), matrix)
            zone = box_zone(level, axis, "", "")
            out[row] = zone.long_mm, zone.short_mm
    return out


def fit(zones: Zones, start: Array) -> Array:
    """Parameters by least squares, held loosely to `START`."""
    centre, loose = START[zones.modality], LOOSE[zones.modality].copy()
    if zones.modality == "microwave" and load_tissue(str(zones.tissues[0])).perfusion_ml_per_min_kg == 0.0:
        loose[3] = 1e-3

    # A generator that hunts for its temperature makes sizes rough in the small.
    step = 5e-2 if zones.control == "C" else 1e-2

    def residuals(x: Array) -> Array:
        off = (predicted(x, zones) - zones.rows[:, 2:]) * [LENGTH_WEIGHT, 1.0]
        return np.concatenate([off.ravel(), (x - centre) / loose])

    return np.asarray(least_squares(residuals, start, diff_step=step, max_nfev=15).x)


def rms(errors: Array) -> dict[str, float]:
    return named(np.sqrt((errors**2).mean(axis=0)))


def named(pair: Array) -> dict[str, float]:
    return {"long_mm": round(float(pair[0]), 2), "short_mm": round(float(pair[1]), 2)}


def measure(zones: Zones, in_3d: bool) -> dict[str, Any]:
    begin = time.perf_counter()
    in_3d = in_3d and zones.modality == "microwave"
    x = fit(zones, START[zones.modality])
    inside = predicted(x, zones) - zones.rows[:, 2:]
    held, held_3d = np.empty_like(inside), np.empty_like(inside)
    # A power, a temperature; of frozen zones the organ: the settings are not shared.
    left_out = zones.tissues if zones.modality == "cryo" else zones.rows[:, 0]
    for one in np.unique(left_out):
        out = left_out == one
        if out.all():
            raise SystemExit("one setting only: nothing can be held out")
        without = fit(zones.part(~out), x)
        part = zones.part(out)
        held[out] = predicted(without, part) - part.rows[:, 2:]
        if in_3d:
            held_3d[out] = predicted_in_3d(without, part) - part.rows[:, 2:]
    model = model_of(x, zones)
    fitted = model.model_dump(
        exclude={"modality", "tissue", "fitted_to", "held_out", "efficiency_sd"}, exclude_none=True
    )
    report: dict[str, Any] = {
        "zones": len(zones.rows), "tissues": sorted(set(zones.tissues.tolist())),
        **{k: round(v, 2 if k.endswith(("_mm", "_c", "_per_m", "_w")) else 3) for k, v in fitted.items()},
        "fitted_rms": rms(inside), "held_out_rms": rms(held),
        "held_out_max": named(abs(held).max(axis=0)), "held_out_bias": named(held.mean(axis=0)),
    }  # fmt: skip
    if in_3d:
        report["held_out_rms_tier2"] = rms(held_3d)
        report["tier2_from_tier1_mm"] = round(float(np.abs(held_3d - held).max()), 2)
    report["seconds"] = round(time.perf_counter() - begin, 1)
    return report


def main() -> None:
    """Fit, hold out, print."""
    names = ("he_in_vivo", "he_ex_vivo", "emprint", "amica", "acculis", "emprint_hp", "uniblate", "visica2")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--tier2", action="store_true", help="held-out powers in three dimensions too (minutes)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    for kernel in (*axisymmetric.KERNELS, *bioheat.KERNELS):
        kernel.compile()
    report: dict[str, Any] = {}
    for name in arguments.only:
        if name.startswith("he_") and not DATA.is_dir():
            report[name] = f"skipped: no data at {DATA}"
            continue
        if name == "he_in_vivo":
            zones = he_2010("in_vivo_canine_liver", "liver")
        elif name == "he_ex_vivo":
            zones = he_2010("ex_vivo_porcine_liver", "liver_ex_vivo")
        elif name == "visica2":
            zones = chart("visica2_liver:liver", "visica2_kidney:kidney")
        else:
            zones = chart(f"{name}:liver" if name.startswith("emprint") else f"{name}:liver_ex_vivo")
        report[name] = measure(zones, arguments.tier2)
        print(name, json.dumps(report[name]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
