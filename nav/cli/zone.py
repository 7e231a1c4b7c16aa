"""``ablation-nav zone``: the zone of one applicator, from its chart or computed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nav.cli.errors import CommandError, ExitCode

if TYPE_CHECKING:
    from nav.ablation.needle_zone import NeedleShape
    from nav.ablation.zone import BoxZone, EllipsoidZone, NeedleZone

    Zone = EllipsoidZone | NeedleZone | BoxZone
    from nav.geometry.rigid import Rigid

__all__ = ["HELP", "zone"]

HELP = """The zone that an applicator makes at a power and a time, as a mask and in numbers.

Tier 0 is the manufacturer's chart: a reference, never a prediction. Tier 1 computes the heat around the needle in
homogeneous tissue, tier 2 in three dimensions. The vessels of --vessel that are at least 3 mm wide draw the zone in: in
tier 2 they are held at the temperature of blood, in tier 1 a rule from an experiment with microwaves is used.
--power is what is set on the device, in the unit of its file: W, mA, C, or a target size in cm. A frozen zone reaches
to the device's lethal temperature (-20 C); beside it goes where -40 C was reached, which leaves no cell alive. Computed
zones come with a band: dead inside the inner surface with 95 %, alive outside the outer one with 95 %, as far as
perfusion, deposited power, the model's own error and the needle's pose are known. Without --tip the needle's tip lies
at the origin and looks up. Into --out goes the zone's mask, beside it those of the band.

\b
Examples:
  ablation-nav zone --applicator emprint --power 75 --time 300 --tissue liver --tier 1 --out zone.nrrd --json
  ablation-nav zone --applicator emprint --power 100 --time 600 --tier 2 --vessel labels.nrrd --vessel-label 465 \\
      --tip=-61,30,1540 --entry=-150,20,1560 --out zone.nrrd
"""

#: Pitch of the masks written, mm, and what they hold around the outermost surface.
_PITCH_MM, _AROUND_MM = 0.5, 2.0
#: In whose frame a tier 1 zone is computed; it is placed by this transform.
RAS_FROM_TIP = "TipToRas"


def zone(
    applicator: Annotated[str, typer.Option(help="Name of a shipped applicator, or a .toml file.", show_default=False)],
    power: Annotated[float, typer.Option(help="W, or the unit that the device is set in.", show_default=False)],
    seconds: Annotated[float, typer.Option("--time", help="s.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Mask to write (.nrrd, .nii.gz, .mha).", show_default=False)],
    tissue: Annotated[str, typer.Option(help="Name of a shipped tissue, or a .toml file.")] = "liver",
    tier: Annotated[int, typer.Option(help="0 chart, 1 around the needle, 2 in three dimensions.", min=0, max=2)] = 1,
    vessel: Annotated[Path | None, typer.Option(help="Mask or label map of vessels; tiers 1 and 2.")] = None,
    vessel_label: Annotated[list[int] | None, typer.Option(help="Label of vessels in it; may be repeated.")] = None,
    tip: Annotated[str, typer.Option(metavar="X,Y,Z", help="Needle tip, RAS mm.")] = "",
    entry: Annotated[str, typer.Option(metavar="X,Y,Z", help="A point on the shaft, RAS mm.")] = "",
    tip_sigma_mm: Annotated[float, typer.Option(help="1 sigma of the tip along each axis, for the band.")] = 0.0,
    angle_sigma_deg: Annotated[float, typer.Option(help="1 sigma of the needle's angle, for the band.")] = 0.0,
    threads: Annotated[int, typer.Option(help="0: all. The result does not depend on it.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON (docs/zone-json.md).")] = False,
) -> None:
    """See ``HELP``."""
    # Imported here, so that the help costs nothing.
    import json
    import math

    import numpy as np

    from nav.ablation import axisymmetric, bioheat, margin
    from nav.ablation.applicators import Cryoprobe, load_applicator, place_zone
    from nav.ablation.prediction import (
        SURE_C,
        Applied,
        box_zone,
        place_shape,
        predict_band,
        predict_box,
        predict_shape,
    )
    from nav.ablation.thermal import load_tissue
    from nav.ablation.vessel_cut import NoVesselRuleError, cut_zone, vessel_walls
    from nav.ablation.zone_surface import zone_map
    from nav.cli.progress import Steps
    from nav.cli.registration_files import prepare, set_threads
    from nav.geometry.volume import Volume
    from nav.io.labels import load_mask
    from nav.io.volume_file import write_volume

    if vessel is not None and tier == 0:
        raise CommandError("--vessel: tier 0 is the manufacturer's chart and knows no vessels", ExitCode.USAGE)
    if vessel_label and vessel is None:
        raise CommandError("--vessel-label: needs --vessel", ExitCode.USAGE)
    for name, value in (("--tip-sigma-mm", tip_sigma_mm), ("--angle-sigma-deg", angle_sigma_deg)):
        if not (math.isfinite(value) and value >= 0.0):
            raise CommandError(f"{name} {value:g}: must be 0 or more", ExitCode.USAGE)
    steps = Steps()
    used = set_threads(threads)
    device, material = load_applicator(applicator), load_tissue(tissue)
    pose = _pose(tip, entry)
    chart = device.size(power, seconds)
    report: dict[str, Any] = {
        "applicator": device.name, "power_w": power, "control": device.control, "time_s": seconds,
        "tissue": material.name if tier else None,
        "tier": tier, "threads": used,
    }  # fmt: skip
    inner = outer = None
    sure: Zone | None = None
    warnings: list[str] = [] if device.doubt is None else [device.doubt]
    if tier > 0:
        fitted = device.heating
        if fitted is not None and load_tissue(fitted.tissue).name != material.name:
            warnings.append(
                f"{device.name} was fitted to zones in tissue {fitted.tissue!r}: how well that carries over to "
                f"{material.name!r} is not known, and not in the band"
            )
        prepare((*axisymmetric.KERNELS, *margin.KERNELS, *(bioheat.KERNELS if tier == 2 else ())), steps)
    begin = time.perf_counter()
    placed: Zone
    if tier == 0:
        placed = place_zone(device, power, seconds, pose)
        semi, half = placed.semi_long_mm, placed.semi_short_mm
        report |= {"long_mm": chart.long_mm, "short_mm": chart.short_mm}
        report["volume_ml"] = 4e-3 / 3.0 * math.pi * semi * half * half
        report |= {"seconds": time.perf_counter() - begin, "band": None}
        report |= {"basis": device.basis, "citation": device.citation}
    else:
        with steps.step("Heating around the needle"):
            shape = predict_shape(device, power, seconds, material)
            placed = place_shape(device, power, seconds, material, shape, pose)
        report["seconds"] = time.perf_counter() - begin
        if shape.is_empty:
            raise CommandError(f"{device.name}: {device.setting(power)}, {seconds:g} s kill nothing in {material.name}")
        sigma = np.array([tip_sigma_mm] * 3 + [math.radians(angle_sigma_deg)] * 3)
        band = predict_band(device, power, seconds, material, shape, np.diag(sigma**2))
        inner, outer = (place_shape(device, power, seconds, material, s, pose) for s in (band.inner, band.outer))
        report["basis"] = placed.basis
        report |= {"long_mm": shape.long_mm, "short_mm": shape.short_mm, "volume_ml": shape.volume_ml}
        report["band"] = {"inner": _numbers(band.inner), "outer": _numbers(band.outer)}
        probe = device.heating if isinstance(device.heating, Cryoprobe) else None
        if probe is not None:
            report["lethal_c"] = probe.lethal_c
            warnings.append(
                f"between {probe.lethal_c:g} and {SURE_C:g} C some cells survive: the zone's rim is not all dead"
            )
            shape = predict_shape(device, power, seconds, material, lethal_c=SURE_C)
            sure = place_shape(device, power, seconds, material, shape, pose)
            report["sure"] = {"celsius": SURE_C, **_numbers(shape)}
        mask = None
        if vessel is not None:
            with steps.step("Reading"):
                mask = load_mask(vessel, label=vessel_label, ct=None).volume
        if tier == 1 and mask is not None:
            walls = vessel_walls(mask)
            begin = time.perf_counter()
            try:
                placed, inner, outer = (cut_zone(z, walls, device.modality) for z in (placed, inner, outer))
            except NoVesselRuleError as error:
                raise CommandError(str(error)) from None
            report["seconds"] += time.perf_counter() - begin
            report["basis"] = placed.basis
            report |= _measured(placed)
            report["band"] = {"inner": _measured(inner), "outer": _measured(outer)}
            if not len(walls.points_ras):
                warnings.append("no vessel in --vessel is 3 mm wide: none draws the zone in")
        report["vessel_correction"] = None if mask is None else "empirical" if tier == 1 else "computed"
        if tier == 2:
            begin = time.perf_counter()
            with steps.step("Heating in three dimensions") as update:
                box = predict_box([Applied(device, power, seconds, pose)], material, vessels=mask, progress=update)
            report["seconds"] = time.perf_counter() - begin
            report |= {"long_mm": box.long_mm, "short_mm": box.short_mm, "volume_ml": box.volume_ml}
            # The band is that of the needle alone: what it allows for moves the surface alike beside a vessel.
            report["band_of_tier"] = 1
            placed = box
            if probe is not None:
                colder = np.asarray(box.level.array, dtype=np.float32) + np.float32(SURE_C - probe.lethal_c)
                part = box_zone(Volume.of(colder, box.level.ras_from_index), box.axis_ras, material.name, box.basis)
                report["sure"] = {"celsius": SURE_C, **_numbers(part)}
                sure = part
    with steps.step("Writing"):
        written: dict[str, Zone | None] = {"zone": placed, "inner": inner, "outer": outer, "sure": sure}
        zones = {name: zone for name, zone in written.items() if zone is not None}
        files = {name: out if name == "zone" else _beside(out, name) for name in zones}
        for name, mask in zip(zones, zone_map(list(zones.values()), _PITCH_MM, _AROUND_MM), strict=True):
            write_volume(files[name], mask)
    report["warnings"] = warnings
    report["out"] = {what: str(path) for what, path in files.items()}
    if as_json:
        print(json.dumps(report, indent=2, default=float))
        return
    kind = ("manufacturer's chart, not a prediction", "computed around the needle", "computed in three dimensions")
    print(f"{device.name}, {device.setting(power)}, {seconds:g} s: {kind[tier]} (tier {tier})")
    print(f"  {report['long_mm']:.1f} mm long, {report['short_mm']:.1f} mm across, {report['volume_ml']:.1f} ml")
    if report["band"]:
        low, high = report["band"]["inner"], report["band"]["outer"]
        print(f"  band: {low['short_mm']:.1f} to {high['short_mm']:.1f} mm across, {low['volume_ml']:.1f} to "
              f"{high['volume_ml']:.1f} ml")  # fmt: skip
    if "sure" in report:
        cold = report["sure"]
        print(f"  {report['lethal_c']:g} C at its edge; {cold['celsius']:g} C: {cold['long_mm']:.1f} mm long, "
              f"{cold['short_mm']:.1f} mm across, {cold['volume_ml']:.1f} ml")  # fmt: skip
    print(f"  {report['basis']}")
    for warning in warnings:
        print(f"  warning: {warning}")
    print(f"wrote {', '.join(str(p) for p in files.values())}")


def _numbers(shape: NeedleShape | BoxZone) -> dict[str, float]:
    return {"long_mm": shape.long_mm, "short_mm": shape.short_mm, "volume_ml": shape.volume_ml}


def _measured(zone: NeedleZone) -> dict[str, float]:
    """Of a zone that vessels draw in: no body of revolution any more."""
    from nav.ablation.zone_surface import zone_mesh
    from nav.geometry.directions import extents_along

    mesh = zone_mesh(zone)
    long_mm, short_mm = extents_along(mesh.vertices, zone.ras_from_tip.rotation[:, 2])
    return {"long_mm": long_mm, "short_mm": short_mm, "volume_ml": 1e-3 * mesh.volume_mm3}


def _beside(out: Path, name: str) -> Path:
    from nav.io.image_file import image_suffix

    suffix = image_suffix(out)
    return out.with_name(f"{out.name[: len(out.name) - len(suffix)]}-{name}{suffix}")


def _pose(tip: str, entry: str) -> Rigid:
    import numpy as np

    from nav.cli.run import parse_point
    from nav.geometry.directions import rigid_along
    from nav.geometry.rigid import Rigid

    if bool(tip) != bool(entry):
        raise CommandError("--tip and --entry: give both, or neither", ExitCode.USAGE)
    if not tip:
        return Rigid.identity(RAS_FROM_TIP)
    at, back = np.array(parse_point(tip, "--tip")), np.array(parse_point(entry, "--entry"))
    length = float(np.linalg.norm(at - back))
    if not length > 1.0:
        raise CommandError(f"--entry lies {length:g} mm from --tip: at least 1 mm is needed", ExitCode.USAGE)
    return rigid_along(at, (at - back) / length, RAS_FROM_TIP)
