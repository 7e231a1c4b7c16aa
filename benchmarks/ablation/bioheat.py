"""Speed of computed zones: tier 1 cold and placed, tier 2 against real time and against the memory's bandwidth.

    python benchmarks/ablation/bioheat.py [--repeats 7] [--json FILE]

Tier 2: ten minutes of a microwave antenna in a box of 96³ cells of 1 mm, with temperature-dependent properties,
vaporisation, a vessel of 5 mm held at blood temperature, perfusion that stops, and cell death.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numba
import numpy as np
from numba import njit, prange

from nav.ablation import axisymmetric, bioheat, margin
from nav.ablation.applicators import load_applicator, place_zone
from nav.ablation.bioheat import BoxGrid, Burst, Cells, heat_box, needle_source
from nav.ablation.margin import compute_margin
from nav.ablation.prediction import place_shape, predict_shape
from nav.ablation.sources import NeedleGrid, line_source
from nav.ablation.thermal import Material, load_tissue
from nav.ablation.tumour import TumourModel
from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume

#: Bytes per cell and step: h, u, loss read and written, heat and gain read, each once.
BYTES_PER_UPDATE = 4 * 7


@njit(parallel=True)
def triad(a, b, c):  # type: ignore[no-untyped-def]
    """STREAM's triad."""
    for i in prange(a.size):
        a[i] = b[i] + np.float32(2.0) * c[i]


def best(run: Callable[[], Any], repeats: int) -> float:
    """Shortest of several runs, s."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


def bandwidth(repeats: int, cells: int) -> float:
    """Bytes per second of the triad on arrays of so many cells."""
    a, b, c = (np.ones(cells, np.float32) for _ in range(3))
    triad(a, b, c)
    return 12.0 * cells / best(lambda: triad(a, b, c), 3 * repeats)


def tier2(repeats: int) -> dict[str, Any]:
    tissue = load_tissue("liver")
    grid = BoxGrid((96, 96, 96), 1.0, (-47.5, -47.5, -47.5))
    needle = NeedleGrid(-60.0, 1.0, 121, 40)
    table = 52.0 * line_source(needle, 0.0, 14.0, 42.0)
    x = np.arange(96) - 47.5
    held = np.full(grid.shape, np.nan, np.float32)
    held[:, np.hypot(x[:, None], x[None] - 12.0) < 2.5] = 37.0
    report: dict[str, Any] = {}
    axis = np.array([0.0, 0.6, 0.8])
    begin = time.perf_counter()
    source = needle_source(grid, needle, table, np.zeros(3), axis)
    report["source_seconds"] = time.perf_counter() - begin
    material, bursts = Material.heated(tissue), [Burst(source, 0.0, 600.0)]
    results: dict[int, bioheat.BoxHeat] = {}
    for threads in (1, 2):
        numba.set_num_threads(threads)
        seconds = best(
            lambda: results.__setitem__(threads, heat_box(grid, material, bursts, [600.0], cells=Cells(held_c=held))),  # noqa: B023
            repeats,
        )
        heat = results[threads]
        report[f"threads_{threads}"] = {
            "seconds": seconds, "times_real_time": 600.0 / seconds, "steps": heat.steps,
            "mcell_updates_per_s": 1e-6 * heat.cell_updates / seconds,
        }  # fmt: skip
    report["same_bits"] = results[1].damage.tobytes() == results[2].damage.tobytes()
    report["dead_ml"] = float((results[2].damage[0] >= 1.0).sum()) / 1e3
    whole = heat_box(grid, material, bursts, [600.0], cells=Cells(held_c=held), takes_part_k=-1.0)
    report["cells_that_differ_from_taking_all_along"] = int(
        ((whole.damage[0] >= 1.0) != (results[2].damage[0] >= 1.0)).sum()
    )
    report["share_of_cells_computed"] = results[2].cell_updates / whole.cell_updates
    for name, cells in (("cache", 96**3), ("memory", 40_000_000)):
        rate = bandwidth(repeats, cells)
        bound = 1e-6 * rate / BYTES_PER_UPDATE
        report[f"{name}_bandwidth"] = {
            "gb_per_s": 1e-9 * rate, "mcell_updates_per_s_bound": bound,
            "reached": report["threads_2"]["mcell_updates_per_s"] / bound,
        }  # fmt: skip
    return report


def ball(radius: float) -> TumourModel:
    n = 2 * int(radius) + 9
    x = np.arange(n) - n // 2
    inside = x[:, None, None] ** 2 + x[None, :, None] ** 2 + x[None, None, :] ** 2 < radius**2
    matrix = np.eye(4)
    matrix[:3, 3] = -(n // 2)
    return TumourModel.from_mask(Volume.of(inside.astype(np.uint8), matrix))


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    for kernel in (*axisymmetric.KERNELS, *bioheat.KERNELS, *margin.KERNELS):
        kernel.compile()
    emprint, liver, tumour = load_applicator("emprint"), load_tissue("liver"), ball(10.0)
    pose = Rigid.identity("TipToRas")
    shape = predict_shape(emprint, 100.0, 600.0, liver)
    numba.set_num_threads(1)
    report: dict[str, Any] = {
        "tier0_and_margin_ms": 1e3
        * best(lambda: compute_margin(tumour, place_zone(emprint, 100.0, 600.0, pose)), 20 * arguments.repeats),
        "tier1_cold_ms": 1e3 * best(lambda: predict_shape(emprint, 100.0, 600.0, liver), arguments.repeats),
        "tier1_placed_and_margin_ms": 1e3
        * best(
            lambda: compute_margin(tumour, place_shape(emprint, 100.0, 600.0, liver, shape, pose)),
            20 * arguments.repeats,
        ),
        "tumour_points": [len(tumour.surface_points), len(tumour.volume_points)],
        "tier2": tier2(arguments.repeats),
    }
    print(json.dumps(report, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
