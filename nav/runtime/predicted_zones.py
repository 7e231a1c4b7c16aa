"""Zones that are computed beside the live thread: what is asked for, what comes back, and how a recording keeps it.

A result names the request it answers. It is taken over only while that very request still stands, so a zone of another
needle pose, setting, tissue or case is never shown.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nav.ablation.growth import ZoneGrowth
from nav.ablation.needle_zone import NeedleShape
from nav.ablation.prediction import Band
from nav.ablation.sources import NeedleGrid
from nav.ablation.zone import BoxZone
from nav.geometry.volume import Volume

__all__ = ["BoxPrediction", "NeedlePrediction", "Prediction", "ZoneRequest", "from_bytes", "prediction_key", "to_bytes"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ZoneRequest:
    """What zone is wanted. Two requests are the same when all of it is.

    Attributes
    ----------
    tier : int
        1 (around the needle, for every pose) or 2 (in the patient, at one pose).
    applicator, tissue : str
        As `load_applicator` and `load_tissue` take them.
    power_w, time_s : float
    case : int
        Generation of the case whose vessels count; 0 in tier 1.
    tip_ras, axis_ras : tuple of float
        Needle tip (RAS mm) and direction of advance; empty in tier 1.
    """

    tier: int
    applicator: str
    power_w: float
    time_s: float
    tissue: str
    case: int = 0
    tip_ras: tuple[float, ...] = ()
    axis_ras: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class NeedlePrediction:
    """Tier 1: the growing zone and its band, in the needle's frame. ``band`` is None where nothing is killed."""

    request: ZoneRequest
    growth: ZoneGrowth
    band: Band | None


@dataclass(frozen=True, slots=True, eq=False)
class BoxPrediction:
    """Tier 2: the zone in the patient."""

    request: ZoneRequest
    zone: BoxZone


Prediction = NeedlePrediction | BoxPrediction


def _put_shape(arrays: dict[str, Any], name: str, shape: NeedleShape) -> None:
    arrays[f"{name}_distance"] = shape.distance_mm
    arrays[f"{name}_outline"] = shape.outline_mm
    arrays[f"{name}_sizes"] = np.array([shape.long_mm, shape.short_mm, shape.centre_z_mm, shape.volume_ml])


def _get_shape(arrays: Any, name: str, grid: NeedleGrid) -> NeedleShape:
    long_mm, short_mm, centre_z_mm, volume_ml = (float(v) for v in arrays[f"{name}_sizes"])
    distance, outline = arrays[f"{name}_distance"], arrays[f"{name}_outline"]
    return NeedleShape(grid, _frozen(distance), _frozen(outline), long_mm, short_mm, centre_z_mm, volume_ml)


def to_bytes(prediction: Prediction) -> bytes:
    """NPZ for a recording."""
    header: dict[str, Any] = {"request": asdict(prediction.request)}
    arrays: dict[str, Any] = {}
    if isinstance(prediction, NeedlePrediction):
        growth = prediction.growth
        header |= {"times_s": growth.times_s, "grid": asdict(growth.whole.grid)}
        for n, shape in enumerate(growth.shapes):
            _put_shape(arrays, f"shape{n}", shape)
        if prediction.band is not None:
            _put_shape(arrays, "inner", prediction.band.inner)
            _put_shape(arrays, "outer", prediction.band.outer)
            arrays |= {"sigma": prediction.band.sigma_mm, "modes": prediction.band.modes_mm}
    else:
        zone = prediction.zone
        header |= {
            "sizes": [zone.long_mm, zone.short_mm, zone.volume_ml], "tissue": zone.tissue, "basis": zone.basis,
        }  # fmt: skip
        arrays = {
            "level": zone.level.array, "distance": zone.distance.array, "ras_from_index": zone.level.ras_from_index,
            "surface": zone.surface_ras, "axis": zone.axis_ras,
        }  # fmt: skip
    out = io.BytesIO()
    np.savez_compressed(out, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    return out.getvalue()


def from_bytes(data: bytes) -> Prediction:
    """Rebuild from `to_bytes`; the same numbers to the bit."""
    with np.load(io.BytesIO(data)) as npz:
        header = json.loads(npz["header"].tobytes())
        asked = header["request"]
        request = ZoneRequest(**(asked | {name: tuple(asked[name]) for name in ("tip_ras", "axis_ras")}))
        if request.tier == 1:
            grid = NeedleGrid(**header["grid"])
            shapes = tuple(_get_shape(npz, f"shape{n}", grid) for n in range(len(header["times_s"])))
            band = None
            if "sigma" in npz.files:
                inner, outer = (_get_shape(npz, name, grid) for name in ("inner", "outer"))
                band = Band(inner, outer, _frozen(npz["sigma"]), _frozen(npz["modes"]))
            return NeedlePrediction(request, ZoneGrowth(tuple(header["times_s"]), shapes), band)
        long_mm, short_mm, volume_ml = header["sizes"]
        level, distance = (Volume.of(npz[name], npz["ras_from_index"]) for name in ("level", "distance"))
        surface, axis = _frozen(npz["surface"]), _frozen(npz["axis"])
        zone = BoxZone(
            level, distance, surface, axis, long_mm, short_mm, volume_ml, header["tissue"], header["basis"]
        )  # fmt: skip
        return BoxPrediction(request, zone)


def prediction_key(prediction: Prediction) -> str:
    """SHA-256 of what was asked for and what came out: names the zone in a recording."""
    digest = hashlib.sha256(json.dumps(asdict(prediction.request)).encode())
    if isinstance(prediction, NeedlePrediction):
        for shape in prediction.growth.shapes:
            digest.update(shape.distance_mm.tobytes())
    else:
        digest.update(np.ascontiguousarray(prediction.zone.level.array).tobytes())
    return digest.hexdigest()


def _frozen(array: Array) -> Array:
    array.setflags(write=False)
    return array
