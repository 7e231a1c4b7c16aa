"""Deformable registration: landmarks of a lung and of breathing livers, known deformations of the abdomen.

    python benchmarks/registration/deformable.py [--cases 20] [--stated 60] [--wrong 20] [--peers] [--gpu] [--json FILE]

Data: the shared folder's lung CT pair (51 landmarks), liver MR pairs (landmarks inside and outside the liver), and the
abdominal CTs at 256×256×128 voxels: the moving image is the CT, the fixed one the CT resampled with cubic splines
through a random smooth deformation of up to 18 mm; noise of 20 HU on both, or the contrast phase changed too. Stated
errors and wrong pairs: at half the resolution, deformations of 2 to 18 mm over 25 to 60 mm, noise of 5 to 40 HU, one
in three with another contrast phase. Every part runs in a process of its own, so that its peak memory can be told.
On a GPU (``--gpu``): lung and first abdominal case, times and how far it is from the processor's result.
Peers (on the lung and on the first abdominal case): SimpleITK's demons, and where installed elastix and greedy.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

sys.path.insert(0, str(Path(__file__).resolve().parent))
from rigid import DATA, SHAPE, SOURCES, THREADS, body

from nav.geometry.rigid import Rigid
from nav.geometry.volume import Volume
from nav.io.image_file import read_image_file, swap_lps_ras
from nav.io.itk import sitk
from nav.io.point_files import read_points
from nav.registration import rigid_image
from nav.registration.deformable import KERNELS, prepare_device, register_deformable
from nav.registration.deformable_device import CPU, device_named
from nav.registration.verdict import Verdict

Array = NDArray[np.float64]
STAYS = Rigid.identity("MovingToFixed")
NOISE_HU = 20.0
LIVERS = (("dataset18", "cyc_1_10"), ("dataset18", "cyc_3_10"), ("dataset19", "cyc_1_6"), ("dataset19", "cyc_1_9"))
#: The two presets, as in the command.
PRESETS: dict[str, dict[str, Any]] = {"fast": {"finest_mm": 2.0, "sliding": False}, "good": {}}


def volume(path: Path) -> Volume:
    found = read_image_file(path, ValueError)  # type: ignore[type-var]
    return Volume.of(found.array, found.ras_from_index)


def distances(errors: Array) -> dict[str, float]:
    return {
        "mean": float(errors.mean()), "median": float(np.median(errors)), "p95": float(np.percentile(errors, 95)),
        "max": float(errors.max()),
    }  # fmt: skip


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    out = call()
    return out, time.perf_counter() - begin


def quality(result: Any) -> dict[str, Any]:
    return {
        "verdict": result.verdict.value, "agreement": result.agreement, "folded_fraction": result.folded_fraction,
        "jacobian_min": result.jacobian_min, "inverse_consistency_mm": result.inverse_consistency_mm,
    }  # fmt: skip


def lung_pair() -> tuple[Volume, Volume, Array, Array, Rigid]:
    """Images, landmarks (RAS mm), and the rigid alignment that everybody starts from."""
    folder = DATA / "lung_ct_pair"
    fixed, moving = (volume(folder / f"3DCT_lung_{name}.mha") for name in ("baseline", "followup"))
    points = [
        read_points(folder / f"itk_CT_3D_lung_{name}_point_set_corrected.txt", image)[1]
        for name, image in (("fixed", fixed), ("moving", moving))
    ]
    rigid = rigid_image.register_rigid(fixed, moving, initial=STAYS).transform
    return fixed, moving, points[0], points[1], rigid


def lung() -> dict[str, Any]:
    fixed, moving, one, two, rigid = lung_pair()
    out: dict[str, Any] = {"rigid_mm": distances(np.linalg.norm(rigid.inverse().apply(one) - two, axis=1))}
    for preset, settings in PRESETS.items():
        register_deformable(fixed, moving, initial=rigid, **settings)
        runs = [timed(lambda s=settings: register_deformable(fixed, moving, initial=rigid, **s)) for _ in range(3)]
        result = runs[0][0]
        errors = np.linalg.norm(result.displacement.apply(one) - two, axis=1)
        out[preset] = {"seconds": float(np.median([s for _, s in runs])), "tre_mm": distances(errors)} | quality(result)
    return out


def livers() -> dict[str, Any]:
    out: dict[str, Any] = {}
    for dataset, cycle in LIVERS:
        folder = DATA / "liver_breathing_mri" / dataset
        fixed = volume(folder / "exhMaster_unmasked.force_direction.mha")
        moving = volume(folder / f"{cycle}.force_direction.mha")
        if (dataset, cycle) == ("dataset18", "cyc_1_10"):
            # The file says 5 mm slices; its landmarks, and the other files of the series, say 4.
            grid = fixed.ras_from_index.copy()
            grid[:3, 3] = moving.ras_from_index[:3, 3]
            moving = Volume.of(moving.array, grid)
        register_deformable(fixed, moving, initial=STAYS)
        result, seconds = timed(lambda f=fixed, m=moving: register_deformable(f, m, initial=STAYS))
        kept: dict[str, Any] = {"seconds": seconds}
        for where, name in (("inside", "liver"), ("outside", "outside")):
            one, two = (read_points(folder / f"{c}LM{name}.vtk", fixed)[1] for c in ("exhMaster", cycle))
            kept[where] = distances(np.linalg.norm(result.displacement.apply(one) - two, axis=1))
            kept[where]["before"] = float(np.linalg.norm(one - two, axis=1).mean())
        out[f"{dataset}/{cycle}"] = kept | quality(result)
    for where in ("inside", "outside"):
        out[f"mean_{where}"] = float(np.mean([out[f"{d}/{c}"][where]["mean"] for d, c in LIVERS]))
    return out


class Case:
    """A CT through a known deformation: fixed, moving, and the truth at points of the fixed image."""

    def __init__(
        self, ct: Volume, organ: NDArray[np.bool_] | None, rng: np.random.Generator, *, peak_mm: float, wave_mm: float,
        noise: float, contrast: bool, half: bool = False,
    ) -> None:  # fmt: skip
        source = ct.array.astype(np.float32)
        grid = ct.ras_from_index
        moving = source
        if half:
            moving = source.reshape(SHAPE[0] // 2, 2, SHAPE[1] // 2, 2, SHAPE[2] // 2, 2).mean(axis=(1, 3, 5))
            source = gaussian_filter(source, 0.8)  # what is averaged there is not sharper here
            grid = grid @ np.array([[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 2, 0.5], [0, 0, 0, 1.0]])
        field = self._field(moving.shape, np.linalg.norm(grid[:3, :3], axis=0), rng, peak_mm, wave_mm)
        k, j, i = np.indices(moving.shape, np.float32)
        there = np.stack([i, j, k], axis=-1) @ grid[:3, :3].T + grid[:3, 3] + field
        to = ct.index_from_ras
        at = np.moveaxis((there @ to[:3, :3].T + to[:3, 3])[..., ::-1], -1, 0)
        # Beyond the CT the body goes on: its last slice is repeated (and not counted), rather than a face made.
        fixed = map_coordinates(source, at, order=3, mode="nearest")
        if contrast:
            moving = np.where(moving > 20, moving + 0.8 * np.clip(moving - 20, 0, 80), moving)
            shade = gaussian_filter(rng.normal(0, 1, moving.shape), 6 if half else 12)
            moving = np.where(moving > -50, moving + 30.0 * shade / shade.std(), moving)
        self.fixed, self.moving = (
            Volume.of((a + rng.normal(0, noise, a.shape)).astype(np.float32), grid) for a in (fixed, moving)
        )
        top = np.array(ct.array.shape)[:, None, None, None] - 1
        held = ((at >= 0) & (at <= top)).all(axis=0) & (gaussian_filter(fixed, 1.0) > -200)
        self.field, self.held = field, held
        self.organ = held
        if organ is not None and not half:
            self.organ = held & (map_coordinates(organ.astype(np.uint8), at, order=0) > 0)

    @staticmethod
    def _field(
        shape: tuple[int, ...], spacing: Array, rng: np.random.Generator, peak_mm: float, wave_mm: float
    ) -> NDArray[np.float32]:
        pitch = 8.0
        size = np.array(shape) * spacing[::-1]
        pad = int(3 * wave_mm / pitch)
        coarse = [
            gaussian_filter(rng.normal(0, 1, np.ceil(size / pitch).astype(int) + 1 + 2 * pad), wave_mm / pitch)
            for _ in range(3)
        ]
        axes = [np.arange(n, dtype=np.float32) * s / pitch + pad for n, s in zip(shape, spacing[::-1], strict=True)]
        at = np.meshgrid(*axes, indexing="ij")
        field = np.stack([map_coordinates(c, at, order=3).astype(np.float32) for c in coarse], axis=-1)
        return np.asarray(field * peak_mm / np.linalg.norm(field, axis=-1).max(), np.float32)

    def errors(self, displacement_at: Callable[[Array], Array], where: NDArray[np.bool_], most: int = 20_000) -> Array:
        """And the points they belong to, in `points`."""
        index = np.argwhere(where)
        index = index[:: max(1, len(index) // most)]
        self.points = self.fixed.to_ras(index[:, ::-1])
        return np.asarray(np.linalg.norm(displacement_at(self.points) - self.field[tuple(index.T)], axis=1))


def organ_of(name: str) -> NDArray[np.bool_] | None:
    """The liver of ct_liver on the voxels of `SHAPE`."""
    if name != "ct_liver":
        return None
    labels = read_image_file(DATA / "ct_liver" / "labels.nrrd", ValueError)  # type: ignore[type-var]
    step = np.array(labels.array.shape) / np.array(SHAPE)
    at = np.meshgrid(*[np.rint(np.arange(n) * s).astype(int) for n, s in zip(SHAPE, step, strict=True)], indexing="ij")
    return np.asarray(np.isin(labels.array[tuple(at)], (449, 451, 453, 465, 481)))


def abdomen(cases: int) -> dict[str, Any]:
    kept: dict[str, list[Any]] = {"seconds": [], "mean": [], "organ_p95": [], "changed_mean": [], "changed_p95": [],
                                  "folded": [], "jacobian_min": [], "good": [], "initial": []}  # fmt: skip
    for name, path in SOURCES.items():
        ct = body(path)
        organ = organ_of(name)
        for n in range(-(-cases // 2)):
            for contrast in (False, True):
                rng = np.random.default_rng(1000 * n + sum(name.encode()))
                case = Case(ct, organ, rng, peak_mm=18.0, wave_mm=40.0, noise=NOISE_HU, contrast=contrast)
                if not kept["seconds"]:
                    register_deformable(case.fixed, case.moving, initial=STAYS)
                result, seconds = timed(lambda c=case: register_deformable(c.fixed, c.moving, initial=STAYS))
                errors = case.errors(result.displacement.displacement_at, case.held)
                inside = case.errors(result.displacement.displacement_at, case.organ)
                kept["seconds"].append(seconds)
                kept["changed_mean" if contrast else "mean"].append(float(errors.mean()))
                kept["changed_p95" if contrast else "organ_p95"].append(float(np.percentile(inside, 95)))
                kept["folded"].append(result.folded_fraction)
                kept["jacobian_min"].append(result.jacobian_min)
                kept["good"].append(result.verdict is Verdict.GOOD)
                kept["initial"].append(float(np.linalg.norm(case.field[case.held], axis=1).mean()))
    out: dict[str, Any] = {
        key: {"median": float(np.median(v)), "largest": float(np.max(v))}
        for key, v in kept.items()
        if key not in ("folded", "jacobian_min", "good")
    }
    return out | {
        "cases": len(kept["seconds"]), "folded_fraction": float(np.max(kept["folded"])),
        "jacobian_min": float(np.min(kept["jacobian_min"])), "called_good": float(np.mean(kept["good"])),
    }  # fmt: skip


def drawn(ct: Volume, rng: np.random.Generator) -> Case:
    return Case(
        ct, None, rng, peak_mm=rng.uniform(2, 18), wave_mm=rng.uniform(25, 60), noise=rng.uniform(5, 40) / 2,
        contrast=rng.random() < 0.3, half=True,
    )  # fmt: skip


def stated(cases: int) -> dict[str, Any]:
    """Coverage of the stated 95 % at random points in the body, on cases that nothing was fitted on."""
    bodies = [body(path) for path in SOURCES.values()]
    within, share, medians, good = [], [], [], []
    for n in range(cases):
        case = drawn(bodies[n % 2], np.random.default_rng(50_000 + n))
        result = register_deformable(case.fixed, case.moving, initial=STAYS)
        errors = case.errors(result.displacement.displacement_at, case.held, 1000)
        radius = result.expected_error_mm(case.points)
        within.append((errors <= radius).mean())
        share.append(float(errors.mean()))
        medians.append(float(np.median(radius)))
        good.append(result.verdict is Verdict.GOOD)
    return {
        "cases": cases, "within_stated_95": float(np.mean(within)),
        "of_cases": {q: float(np.percentile(within, q)) for q in (0, 5, 25, 50, 75)},
        "error_mm": float(np.mean(share)), "stated_mm": float(np.median(medians)), "called_good": float(np.mean(good)),
    }  # fmt: skip


def wrong(cases: int) -> dict[str, Any]:
    """Pairs that cannot be right: how many are called good, and how many implausible."""
    bodies = [body(path) for path in SOURCES.values()]
    called: dict[str, list[str]] = {
        "mirrored": [],
        "other patient": [],
        "60 mm off": [],
        "upside down": [],
        "half the field of view": [],
    }
    for n in range(cases):
        rng = np.random.default_rng(90_000 + n)
        case, other = drawn(bodies[n % 2], rng), drawn(bodies[(n + 1) % 2], rng)
        shifted = case.moving.ras_from_index.copy()
        way = rng.normal(0, 1, 3)
        shifted[:3, 3] += 60.0 * way / np.linalg.norm(way)
        grid = case.moving.ras_from_index
        half = case.moving.array[: SHAPE[0] // 4].copy()
        moving = {
            "mirrored": Volume.of(np.ascontiguousarray(case.moving.array[:, :, ::-1]), grid),
            "other patient": Volume.of(other.moving.array, grid),
            "60 mm off": Volume.of(case.moving.array, shifted),
            "upside down": Volume.of(np.ascontiguousarray(case.moving.array[::-1]), grid),
            "half the field of view": Volume.of(half, grid),
        }
        for kind, image in moving.items():
            called[kind].append(register_deformable(case.fixed, image, initial=STAYS).verdict.value)
    return {
        kind: {"cases": len(v), "called_good": v.count("good"), "implausible": v.count("implausible")}
        for kind, v in called.items()
    }


def first_abdomen() -> Case:
    name, path = next(iter(SOURCES.items()))
    rng = np.random.default_rng(sum(name.encode()))
    return Case(body(path), organ_of(name), rng, peak_mm=18.0, wave_mm=40.0, noise=NOISE_HU, contrast=False)


def gpu() -> dict[str, Any]:
    """Seconds and errors on the processor and on the GPU, and how far the fields are apart at the nodes."""
    device, case = device_named("cuda"), first_abdomen()
    case.errors(np.zeros_like, case.held)
    at = np.rint(case.fixed.to_index(case.points)[:, ::-1]).astype(int)
    truth = case.points + case.field[tuple(at.T)]
    pairs = {"lung": lung_pair(), "abdomen": (case.fixed, case.moving, case.points, truth, STAYS)}
    out: dict[str, Any] = {"seconds_to_compile": timed(partial(prepare_device, device))[1]}
    for (pair, (fixed, moving, one, two, rigid)), preset in itertools.product(pairs.items(), PRESETS):
        kept: dict[str, Any] = {}
        fields = []
        for where in (CPU, device):
            call = partial(register_deformable, fixed, moving, initial=rigid, device=where, **PRESETS[preset])
            runs = [timed(call) for _ in range(6)]
            found = [result.displacement for result, _ in runs]
            kept[where.name] = {
                "seconds": float(np.median([seconds for _, seconds in runs[1:]])),
                "tre_mm": distances(np.linalg.norm(found[0].apply(one) - two, axis=1)),
                "same_every_time": all(np.array_equal(f.vectors, found[0].vectors) for f in found),
            }
            fields.append(found[0].vectors)
        apart = np.linalg.norm(fields[1] - fields[0], axis=-1)
        kept["apart_mm"] = distances(apart) | {"p99": float(np.percentile(apart, 99))}
        out[f"{pair}, {preset}"] = kept
    return out


# --- peers, all in LPS, on images that lie on each other rigidly -----------------------------------------------------


def itk_image(one: Volume, values: NDArray[np.generic] | None = None) -> Any:
    out = sitk.GetImageFromArray((one.array if values is None else values).astype(np.float32))
    out.SetSpacing(one.spacing_mm.tolist())
    out.SetDirection(swap_lps_ras((one.ras_from_index[:3, :3] / one.spacing_mm).T).T.ravel().tolist())
    out.SetOrigin(swap_lps_ras(one.ras_from_index[:3, 3]).tolist())
    return out


def at_points(field: Any) -> Callable[[Array], Array]:
    transform = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    return lambda p: np.array([transform.TransformPoint(q.tolist()) for q in swap_lps_ras(p)]) * (-1, -1, 1) - p


def by_demons(fixed: Any, moving: Any) -> Any:
    matched = sitk.HistogramMatching(moving, fixed, 256, 16, True)
    method = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    method.SetStandardDeviations(1.5)
    method.SetSmoothDisplacementField(True)
    field = None
    for shrink, steps in ((8, 40), (4, 30), (2, 20)):
        factors = [max(1, round(shrink * min(fixed.GetSpacing()) / s)) for s in fixed.GetSpacing()]
        small = [sitk.Shrink(sitk.DiscreteGaussian(i, (0.5 * shrink) ** 2 / 4), factors) for i in (fixed, matched)]
        method.SetNumberOfIterations(steps)
        field = method.Execute(*small) if field is None else method.Execute(*small, sitk.Resample(field, small[0]))
    return field


def by_elastix(fixed: Any, moving: Any) -> Any:
    import itk

    images = []
    for one in (fixed, moving):
        image = itk.image_from_array(sitk.GetArrayFromImage(one))
        image.SetSpacing(np.array(one.GetSpacing()))
        image.SetDirection(np.array(one.GetDirection()).reshape(3, 3))
        image.SetOrigin(np.array(one.GetOrigin()))
        images.append(image)
    parameters = itk.ParameterObject.New()
    settings = itk.ParameterObject.GetDefaultParameterMap("bspline", 4, 10.0)
    settings["Metric"] = ["AdvancedNormalizedCorrelation"]
    settings["Registration"] = ["MultiResolutionRegistration"]
    settings["MaximumNumberOfIterations"] = ["300"]
    settings["NumberOfSpatialSamples"] = ["3000"]
    parameters.AddParameterMap(settings)
    found = itk.ElastixRegistrationMethod.New(*images)
    found.SetParameterObject(parameters)
    found.SetNumberOfThreads(THREADS)
    found.LogToConsoleOff()
    found.UpdateLargestPossibleRegion()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # it leaves the field in a file as well
        field = itk.transformix_deformation_field(images[1], found.GetTransformParameterObject())
    out = sitk.GetImageFromArray(itk.array_from_image(field), isVector=True)
    out.CopyInformation(fixed)
    return out


def by_greedy(fixed: Any, moving: Any) -> Any:
    from picsl_greedy import Greedy3D

    greedy = Greedy3D()
    greedy.execute(
        f"-d 3 -i fixed moving -m NCC 2x2x2 -n 100x50x10 -o field -s 1.732vox 0.7071vox -threads {THREADS} -V 0",
        fixed=fixed, moving=moving, field=None,
    )  # fmt: skip
    return greedy["field"]


def peers() -> dict[str, Any]:
    """Wall time without reading files, and the same errors as ours."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(THREADS)
    methods = {"SimpleITK demons": by_demons, "elastix": by_elastix, "greedy": by_greedy}
    out: dict[str, Any] = {}
    fixed, moving, one, two, rigid = lung_pair()
    case = first_abdomen()
    aligned = Volume.of(moving.array, rigid.matrix @ moving.ras_from_index)
    pairs = {"lung": (itk_image(fixed), itk_image(aligned)), "abdomen": (itk_image(case.fixed), itk_image(case.moving))}
    # On one grid: demons know no other.
    darkest = float(aligned.array.min())
    pairs = {
        name: (one, sitk.Resample(two, one, sitk.Transform(), sitk.sitkLinear, darkest))
        for name, (one, two) in pairs.items()
    }
    for method, call in methods.items():
        for pair, images in pairs.items():
            try:
                field, seconds = timed(lambda c=call, i=images: c(*i))
            except ImportError:
                continue
            there = at_points(field)
            if pair == "lung":
                errors = np.linalg.norm(rigid.inverse().apply(one + there(one)) - two, axis=1)
            else:
                errors = case.errors(there, case.held)
            out[f"{method}, {pair}"] = {"seconds": seconds, "error_mm": distances(errors)}
    return out


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "lung": lung, "livers": livers, "abdomen": abdomen, "stated": stated, "wrong": wrong, "peers": peers,
    "gpu": gpu,
}  # fmt: skip


def _child(part: str, arguments: tuple[int, ...], out: Any) -> None:
    numba.set_num_threads(min(THREADS, numba.config.NUMBA_NUM_THREADS))
    for spec in (*KERNELS, *rigid_image.KERNELS):
        spec.compile()
    report = PARTS[part](*arguments)
    out.put(report | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=20, help="deformations of the abdomen, each in two contrasts")
    parser.add_argument("--stated", type=int, default=60, help="cases for the stated error; 0: none")
    parser.add_argument("--wrong", type=int, default=20, help="cases of each kind of wrong pair; 0: none")
    parser.add_argument("--peers", action="store_true", help="run the peers too (minutes)")
    parser.add_argument("--gpu", action="store_true", help="on a GPU too")
    parser.add_argument("--only", help="one part: " + ", ".join(PARTS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"skipped: no real data in {DATA} (set ABLATION_NAV_DATA)")
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
    chosen: dict[str, tuple[int, ...]] = {"lung": (), "livers": (), "abdomen": (options.cases,)}
    chosen |= {"stated": (options.stated,)} if options.stated else {}
    chosen |= {"wrong": (options.wrong,)} if options.wrong else {}
    chosen |= {"peers": ()} if options.peers else {}
    chosen |= {"gpu": ()} if options.gpu else {}
    if options.only:
        chosen = {options.only: chosen.get(options.only, ())}
    context = multiprocessing.get_context("spawn")
    report = {}
    for part, arguments in chosen.items():
        queue = context.Queue()
        child = context.Process(target=_child, args=(part, arguments, queue))
        child.start()
        while child.is_alive() and queue.empty():
            time.sleep(0.2)
        if not queue.empty():
            report[part] = queue.get()
        child.join()
        if child.exitcode:
            print(f"{part} failed", file=sys.stderr)
            return 1
        print(json.dumps({part: report[part]}, indent=1), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
