"""``ablation-nav register ultrasound``: tracked ultrasound onto the planning CT."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nav.cli.errors import CommandError, ExitCode

if TYPE_CHECKING:
    from nav.geometry.volume import Volume
    from nav.registration.ultrasound_deformable import UltrasoundDeformation
    from nav.registration.ultrasound_frames import TrackedFrames
    from nav.registration.ultrasound_image import UltrasoundRegistration

__all__ = ["HELP", "ultrasound"]

HELP = """Register a tracked ultrasound sweep, or a compounded ultrasound volume, to the planning CT.

FIXED is the CT: a DICOM folder or an image file. MOVING is a sequence metafile of PLUS or Slicer (.igs.mha, .seq.mha)
with the images' poses, or an image file with a compounded volume (0: outside). The start (--init, or else both as they
lie in space) may be off by 10 mm and 8 degrees. Into --out go transform.tfm (ITK, LPS, fixed to moving: from the CT to
the sequence's reference), warped.nrrd (the CT's neighbourhood of the frames, filled with what they show) and
checkerboard.png. The pose is rigid; with --deform, smooth motion of the tissue is followed on top of it, and goes into
displacement.nrrd (the pose included) if both halves of the frames agree on it. Ends with 0 when the verdict is good,
with 1 otherwise; the files are written all the same.

\b
Examples:
  ablation-nav register ultrasound planning-ct/ sweep.igs.mha --init start.tfm --out registered --json
  ablation-nav register ultrasound ct.nrrd compounded.mha --deform --out registered
"""

#: Points at which the error is predicted.
_POINTS = 200
#: Of these one is looked for, in this order, unless --image-transform names it.
_IMAGE_TRANSFORMS = ("ImageToReference", "ImageToTracker", "ImageToRas")


def ultrasound(
    fixed: Annotated[Path, typer.Argument(help="CT: DICOM folder or file.", show_default=False)],
    moving: Annotated[Path, typer.Argument(help="Tracked sequence or compounded volume.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for what is written.", show_default=False)],
    fixed_mask: Annotated[Path | None, typer.Option(help="Look only here; on the grid of FIXED.")] = None,
    fixed_points: Annotated[
        Path | None, typer.Option(help="Points to measure the error at (.mrk.json, .fcsv, elastix text, VTK).")
    ] = None,
    moving_points: Annotated[Path | None, typer.Option(help="The same points in the reference of MOVING.")] = None,
    init: Annotated[Path | None, typer.Option(help="Where to start: ITK transform, fixed to moving.")] = None,
    image_transform: Annotated[
        str | None, typer.Option(help="The images' pose in the sequence, such as ImageToReference.")
    ] = None,
    deform: Annotated[bool, typer.Option("--deform", help="Follow smooth motion of the tissue too.")] = False,
    threads: Annotated[int, typer.Option(help="0: all. The result does not depend on it.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON (docs/register-json.md).")] = False,
) -> None:
    """See ``HELP``."""
    # Imported here, so that the help costs nothing.
    from nav.cli import registration_files as shared
    from nav.cli.progress import Steps
    from nav.geometry.rigid import Rigid
    from nav.imaging.resample import resample_rigid
    from nav.io.displacement_file import write_displacement
    from nav.io.itk_transform import write_itk_rigid
    from nav.io.volume_file import write_volume
    from nav.registration.ultrasound_deformable import deform_ultrasound
    from nav.registration.ultrasound_frames import compound
    from nav.registration.ultrasound_image import KERNELS, register_ultrasound

    steps = Steps()
    used = shared.set_threads(threads)
    with steps.step("Reading ultrasound"):
        frames = _moving(moving, image_transform)
    # A sweep has no grid of its own, and the frames are read already: the CT stands in for the moving image.
    files = shared.Files(fixed, fixed, fixed_mask, None, fixed_points, moving_points, init)
    given = shared.read_inputs(files, steps)
    shared.prepare(KERNELS, steps)
    out.mkdir(parents=True, exist_ok=True)
    with steps.step("Registering") as update:
        begin = time.perf_counter()
        result = register_ultrasound(
            given.fixed, frames, initial=given.initial, fixed_mask=given.fixed_mask, progress=update
        )
        deformation = None
        if deform:
            deformation = deform_ultrasound(
                given.fixed, frames, result, fixed_mask=given.fixed_mask, progress=update
            )  # fmt: skip
        seconds = time.perf_counter() - begin
    report: dict[str, Any] = {"method": "ultrasound", "threads": used, "seconds": seconds}
    report |= _report(result, deformation, frames)
    if given.points is not None:
        back = result.transform.inverse().apply if deformation is None else deformation.to_reference
        report["tre_mm"] = shared.tre_mm(given.points, given.initial.inverse().apply, back)
    with steps.step("Writing"):
        names = {"transform": "transform.tfm", "warped": "warped.nrrd", "checkerboard": "checkerboard.png"}
        write_itk_rigid(out / names["transform"], result.transform)
        warped = compound(frames, result.frames, result.transform.matrix, float(given.fixed.spacing_mm.mean()))
        write_volume(out / names["warped"], warped)
        stays = Rigid.identity(result.transform.name)
        beside = resample_rigid(given.fixed, warped, stays, outside=float(given.fixed.array.min()))
        shared.write_checkerboard(out / names["checkerboard"], _as_grey(beside), warped)
        if deformation is not None:
            names["displacement"] = "displacement.nrrd"
            write_displacement(out / names["displacement"], deformation.displacement())
    report["out"] = {what: str(out / name) for what, name in names.items()}
    similarity = report["similarity"]
    text = [
        f"LC2                {similarity['before']:.3f} before, {similarity['after']:.3f} after",
        f"above chance       {report['evidence']:.1f} standard deviations",
        f"halves             {report['halves_mm']:.2f} mm apart",
        f"frames used        {len(report['frames'])}",
    ]
    if deformation is not None:
        followed = f"up to {deformation.longest_mm:.1f} mm" if deformation.followed else "none that the halves agree on"
        text.append(f"motion             {followed}")
    shared.finish(report, text, as_json=as_json)


def _as_grey(ct: Volume) -> Volume:
    """Soft tissue as 1 to 255, so that it can stand beside ultrasound in one picture."""
    import numpy as np

    from nav.geometry.volume import Volume
    from nav.registration.ultrasound_ct import HIGH_HU, LOW_HU

    share = (ct.array.astype(np.float32) - LOW_HU) / (HIGH_HU - LOW_HU)
    return Volume.of((1.0 + 254.0 * np.clip(share, 0.0, 1.0)).astype(np.uint8), ct.ras_from_index)


def _moving(path: Path, image_transform: str | None) -> TrackedFrames:
    from nav.cli.images import read_image
    from nav.registration.ultrasound_frames import planes_of_volume

    name = path.name.lower()
    if name.endswith((".igs.mha", ".seq.mha", ".igs.mhd", ".igs.nrrd", ".seq.nrrd")):
        return _tracked(path, image_transform)
    return planes_of_volume(read_image(path))


def _tracked(path: Path, wanted: str | None) -> TrackedFrames:
    """Frames with an image and a valid pose: ImageToReference, or ProbeToReference after the header's ImageToProbe."""
    import numpy as np

    from nav.io.sequence import read_sequence
    from nav.registration.ultrasound_frames import TrackedFrames

    sequence = read_sequence(path)
    if sequence.images is None:
        raise CommandError(f"{path}: holds no images", ExitCode.INPUT)
    names = [wanted] if wanted else [name for name in _IMAGE_TRANSFORMS if name in sequence.transforms]
    if not names or names[0] not in sequence.transforms:
        there = ", ".join(sorted(sequence.transforms)) or "none"
        raise CommandError(
            f"{path}: has no {wanted or ' or '.join(_IMAGE_TRANSFORMS)} (there: {there}); name the images' pose with "
            "--image-transform, or let the recorder write ImageToReference",
            ExitCode.INPUT,
        )
    track = sequence.transforms[names[0]]
    use = track.valid & sequence.image_valid
    if not use.any():
        raise CommandError(f"{path}: no frame has both an image and a valid {names[0]}", ExitCode.INPUT)
    images = sequence.images[use]
    if images.ndim == 4:
        images = np.rint(images[..., :3].mean(axis=3)).astype(np.uint8)
    if images.dtype != np.uint8:
        high = max(float(images.max()), 1.0)
        images = np.rint(np.clip(images, 0, None) * (255.0 / high)).astype(np.uint8)
    return TrackedFrames.of(images, track.matrices[use])


def _report(
    result: UltrasoundRegistration, deformation: UltrasoundDeformation | None, frames: TrackedFrames
) -> dict[str, Any]:
    import numpy as np

    from nav.registration.error_distribution import radius_of_share

    rows, columns = np.nonzero(frames.mask)
    few = np.linspace(0, len(rows) - 1, _POINTS // 8).astype(int)
    pixels = np.stack([columns[few], rows[few], np.zeros(len(few)), np.ones(len(few))])
    every = result.frames[:: max(1, len(result.frames) // 8)]
    places = (result.transform.matrix @ frames.reference_from_pixel[every] @ pixels)[:, :3].transpose(0, 2, 1)
    judged = result if deformation is None else deformation
    spread = judged.covariance_at(places.reshape(-1, 3)).mean(axis=0)
    report: dict[str, Any] = {
        "iterations": result.iterations,
        "similarity": {"before": result.similarity_before, "after": result.similarity_after},
        "jacobian": {"min": 1.0, "max": 1.0, "folded_fraction": 0.0},
        "expected_error_mm": {
            name: radius_of_share(spread, share, judged.dof) for name, share in (("median", 0.5), ("p95", 0.95))
        },
        "inverse_consistency_mm": None,
        "overlap": result.overlap,
        "evidence": result.evidence,
        "agreement": result.agreement,
        "halves_mm": result.halves_mm,
        "motion_mm": result.motion.motion_mm,
        "frames": result.frames.tolist(),
        "transform": {"name": result.transform.name.wire, "matrix_ras_mm": result.transform.matrix.tolist()},
        "verdict": judged.verdict.value,
        "reasons": list(judged.reasons),
    }
    if deformation is not None:
        report["iterations"] += deformation.iterations
        report["jacobian"] = {
            "min": deformation.jacobian_min,
            "max": deformation.jacobian_max,
            "folded_fraction": deformation.folded_fraction,
        }
        report["deform"] = {
            "followed": deformation.followed,
            "gain": deformation.gain,
            "longest_mm": deformation.longest_mm,
            "similarity": {"before": deformation.similarity_before, "after": deformation.similarity_after},
        }
    return report
