"""Messages as JSON and back, byte for byte. The keys are described in ``docs/igtl-json.md``.

The content is given by the fields of its type in `drivers.openigtlink.contents`. Whatever plain JSON cannot say stands
beside it under a key of its own (``..._raw``, ``metadata_entries``, ``content_raw``), so that nothing is lost.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from drivers.openigtlink.contents import (
    DATA_TYPES,
    SCALAR_TYPES,
    BindChild,
    Content,
    EmptyContent,
    ImageContent,
    content_class,
    unpack_content,
    unpack_message,
)
from drivers.openigtlink.crc64 import crc64
from drivers.openigtlink.errors import EncodeError, WireError
from drivers.openigtlink.text import WireText
from drivers.openigtlink.wire import (
    HEADER_SIZE,
    Header,
    MetadataEntry,
    WireMessage,
    crc_mismatch,
    ns_from_stamp,
    pack_message,
    parse_header,
    parse_message,
    stamp_from_ns,
)

__all__ = ["error_as_json", "header_as_json", "message_as_json", "message_from_json"]

#: Longer arrays are written as base64.
LONGEST_LIST = 256
#: BIND in BIND is taken apart down to here; further in it stays bytes.
DEEPEST_BIND = 4

#: Byte order of pixels by the number in the message.
_ORDERS: dict[int, Literal[">", "<"]] = {1: ">", 2: "<"}
_IGNORED = frozenset({"offset", "body_size", "crc"})
_KEYS = frozenset(
    {
        "version", "type", "type_raw", "device", "device_raw", "timestamp", "message_id", "metadata",
        "metadata_entries", "metadata_index", "extension", "content", "content_raw",
    }
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ to JSON


def message_as_json(raw: bytes | memoryview) -> dict[str, Any]:
    """One whole message.

    Raises
    ------
    WireError
        When the bytes are not one message or its CRC is wrong.
    ContentError
        When its content is wrong; `header_as_json` still shows the header then.
    """
    header = parse_header(raw)
    message = parse_message(raw)
    out = header_as_json(header, memoryview(raw)[HEADER_SIZE:])
    if not out["crc"]["ok"]:
        raise crc_mismatch(header, int(out["crc"]["computed"], 16))
    out["message_id"] = message.message_id if message.version == 2 else None
    out |= _metadata_as_json(message)
    content = unpack_message(message)
    if content is None:
        out["content"] = {"base64": _base64(message.content)}
        return out
    out["content"] = _content_as_json(content)
    try:
        same = content.pack() == message.content
    except EncodeError:
        same = False
    if not same:
        out["content_raw"] = _base64(message.content)
    return out


def header_as_json(header: Header, body: bytes | memoryview) -> dict[str, Any]:
    """The header, and whether its CRC is that of the body."""
    seconds, fraction = header.stamp
    found = crc64(body)
    out: dict[str, Any] = {"version": header.version}
    out |= _text("type", header.type_name) | _text("device", header.device)
    out["timestamp"] = {"ns": header.sender_ns, "seconds": seconds, "fraction": fraction}
    out["body_size"] = header.body_size
    out["crc"] = {"stated": f"{header.crc:016x}", "computed": f"{found:016x}", "ok": found == header.crc}
    return out


def error_as_json(error: WireError) -> dict[str, Any]:
    """What is wrong, where, what stands there, and what may."""
    plain = error.value if isinstance(error.value, (int, str)) else str(error.value)
    return {
        "kind": type(error).__name__,
        "what": error.what,
        "offset": error.offset,
        "value": plain,
        "limit": str(error.limit),
        "message": str(error),
    }


def _base64(raw: bytes | memoryview) -> str:
    return base64.b64encode(raw).decode("ascii")


def _text(key: str, text: str) -> dict[str, Any]:
    """The text, and beside it its bytes where the text alone does not give them."""
    return {key: str(text)} | ({f"{key}_raw": _base64(text.raw)} if isinstance(text, WireText) else {})


def _metadata_as_json(message: WireMessage) -> dict[str, Any]:
    out: dict[str, Any] = {"metadata": {str(key): str(value) for key, value in message.metadata.items()}}
    entries = message.entries
    plain = len(message.metadata) == len(entries) and not any(
        isinstance(e.key, WireText) or isinstance(e.value, WireText) or e.encoding != (3 if e.value.isascii() else 106)
        for e in entries
    )
    if not plain:
        out["metadata_entries"] = [
            _text("key", e.key) | _text("value", e.value) | {"encoding": e.encoding} for e in entries
        ]
    if message.version == 2 and not message.has_index:
        out["metadata_index"] = False
    if message.extension:
        out["extension"] = _base64(message.extension)
    return out


def _content_as_json(content: Content, depth: int = 0) -> dict[str, Any]:
    if isinstance(content, EmptyContent):
        return {"empty": True}
    out = _fields_as_json(content, depth)
    if isinstance(content, ImageContent):
        out["pixels"] = _pixels_as_json(content)
    return out


def _fields_as_json(thing: Any, depth: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    kind: Any = type(thing)
    for one in dataclasses.fields(thing):
        value = getattr(thing, one.name)
        if isinstance(value, str):
            out |= _text(one.name, value)
        elif isinstance(thing, BindChild) and one.name == "content":
            out["content"] = _child_as_json(thing, depth)
        elif isinstance(value, np.ndarray):
            out[one.name] = _array_as_json(value, _only_dtype(_hints(kind)[one.name]))
        else:
            out[one.name] = _value_as_json(value, depth)
    return out


def _value_as_json(value: Any, depth: int) -> Any:
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case str():
            return {"text": str(value), "raw": _base64(value.raw)} if isinstance(value, WireText) else value
        case bytes() | memoryview():
            return _base64(value)
        case tuple():
            return [_value_as_json(part, depth) for part in value]
        case _:
            return _fields_as_json(value, depth)


def _only_dtype(hint: Any) -> np.dtype[Any] | None:
    """The dtype of an array field that has but one."""
    kind = typing.get_args(typing.get_args(hint)[1])[0]
    return None if kind is np.generic else np.dtype(kind)


def _array_as_json(array: NDArray[Any], only: np.dtype[Any] | None) -> Any:
    """A short, finite array as (nested) list, with dtype and shape where they are open; else as its bytes."""
    shape = {"dtype": str(array.dtype), "shape": list(array.shape)}
    short = 0 < array.size <= LONGEST_LIST or array.shape == (0,)
    if short and array.dtype.kind != "c" and np.isfinite(array).all():
        return array.tolist() if only is not None and array.dtype == only else shape | {"values": array.tolist()}
    raw = array.astype(array.dtype.newbyteorder("<"), order="C").tobytes()
    return shape | {"base64": _base64(raw)}


def _pixels_as_json(image: ImageContent) -> Any:
    """Pixels as a flat list where they are few, i fastest, components interleaved; else base64 as on the wire."""
    dtype = np.dtype(SCALAR_TYPES[image.scalar])
    order = _ORDERS.get(image.endian)
    if order is None or len(image.pixels) // dtype.itemsize > LONGEST_LIST:
        return _base64(image.pixels)
    values = np.frombuffer(image.pixels, dtype.newbyteorder(order))
    return values.tolist() if np.isfinite(values).all() else _base64(image.pixels)


def _child_as_json(child: BindChild, depth: int) -> Any:
    """The content of a BIND's child taken apart, where that gives its bytes back; else base64."""
    try:
        content = unpack_content(child.type_name, child.content) if depth < DEEPEST_BIND else None
        if content is not None and content.pack() == child.content:
            return _content_as_json(content, depth + 1)
    except (WireError, EncodeError):
        pass
    return _base64(child.content)


# ---------------------------------------------------------------------------------------------------------- from JSON


def message_from_json(spec: Mapping[str, Any]) -> bytes:
    """One whole message of what `message_as_json` gives, or of less: all but ``type`` and ``content`` has a default.

    Sizes and CRC are computed; what the specification says of them is not looked at.

    Raises
    ------
    EncodeError
        With the path of the key that is wrong.
    """
    if not isinstance(spec, Mapping):
        raise EncodeError(f"message: expected an object, got {type(spec).__name__}")
    if "error" in spec:
        raise EncodeError("error: this message could not be decoded, so there is nothing to encode")
    _no_others("message", spec, _KEYS | _IGNORED)
    if not isinstance(spec.get("type"), str):
        raise EncodeError("type: is missing, or is no text")
    type_name = _read_text("type", spec)
    return pack_message(
        type_name,
        _read_text("device", spec, ""),
        _content_from_json(type_name, spec),
        stamp=_stamp_from_json(spec.get("timestamp")),
        version=_whole("version", spec.get("version", 1)),
        metadata=_metadata_from_json(spec),
        message_id=_whole("message_id", spec.get("message_id") or 0),
        extension=_bytes("extension", spec.get("extension", "")),
        has_index=spec.get("metadata_index", True) is not False,
    )


def _no_others(path: str, spec: Mapping[str, Any], known: frozenset[str] | set[str]) -> None:
    if others := sorted(str(key) for key in spec.keys() - known):
        raise EncodeError(f"{path}: unknown keys {', '.join(others)}; known: {', '.join(sorted(known))}")


def _whole(path: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise EncodeError(f"{path}: {value!r} is no whole number")
    return value


def _bytes(path: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise EncodeError(f"{path}: expected base64, got {type(value).__name__}")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EncodeError(f"{path}: no base64: {error}") from None


def _read_text(key: str, spec: Mapping[str, Any], default: str | None = None, path: str = "") -> str:
    text = spec.get(key, default)
    if not isinstance(text, str):
        raise EncodeError(f"{path}{key}: expected text, got {text!r}")
    raw = spec.get(f"{key}_raw")
    return text if raw is None else WireText(text, _bytes(f"{path}{key}_raw", raw))


def _stamp_from_json(value: Any) -> tuple[int, int]:
    if value is None:
        return 0, 0
    if not isinstance(value, Mapping):
        raise EncodeError(f"timestamp: expected an object with ns, or seconds and fraction, got {value!r}")
    _no_others("timestamp", value, {"ns", "seconds", "fraction"})
    ns = value.get("ns")
    ns = None if ns is None else _whole("timestamp.ns", ns)
    if "seconds" not in value and "fraction" not in value:
        return stamp_from_ns(ns)
    stamp = _whole("timestamp.seconds", value.get("seconds", 0)), _whole("timestamp.fraction", value.get("fraction", 0))
    if "ns" in value and ns_from_stamp(*stamp) != ns:
        raise EncodeError(f"timestamp: ns is {ns}, seconds and fraction say {ns_from_stamp(*stamp)}; leave one out")
    return stamp


def _metadata_from_json(spec: Mapping[str, Any]) -> list[MetadataEntry]:
    entries = spec.get("metadata_entries")
    if entries is None:
        metadata = spec.get("metadata") or {}
        if not isinstance(metadata, Mapping) or not all(isinstance(value, str) for value in metadata.values()):
            raise EncodeError("metadata: expected an object whose values are text")
        return [MetadataEntry(key, value) for key, value in metadata.items()]
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise EncodeError("metadata_entries: expected a list of objects with key, value, encoding")
    out = []
    for n, entry in enumerate(entries):
        path = f"metadata_entries[{n}]."
        _no_others(path[:-1], entry, {"key", "key_raw", "value", "value_raw", "encoding"})
        encoding = _whole(f"{path}encoding", entry.get("encoding", 0))
        out.append(MetadataEntry(_read_text("key", entry, path=path), _read_text("value", entry, path=path), encoding))
    return out


def _content_from_json(type_name: str, spec: Mapping[str, Any]) -> bytes:
    if "content_raw" in spec:
        return _bytes("content_raw", spec["content_raw"])
    value = spec.get("content")
    return _packed_content("content", type_name, value)


def _packed_content(path: str, type_name: str, value: Any) -> bytes:
    if not isinstance(value, Mapping):
        raise EncodeError(f"{path}: expected an object, got {type(value).__name__}")
    if value.keys() == {"base64"}:
        return _bytes(f"{path}.base64", value["base64"])
    if value == {"empty": True} and type_name in DATA_TYPES:
        return b""
    found = content_class(type_name)
    if found is None:
        raise EncodeError(f"{path}: message type {type_name!r} is not known; give its bytes as {{'base64': ...}}")
    value = dict(value)
    if found is ImageContent:
        value["pixels"] = _pixels_from_json(path, value)
    content: Content = _object(path, value, found)
    try:
        return content.pack()
    except EncodeError as error:
        raise EncodeError(f"{path}: {error}") from None


def _pixels_from_json(path: str, image: Mapping[str, Any]) -> Any:
    """Base64 of the pixels, also where they are given as a list."""
    values = image.get("pixels")
    if not isinstance(values, list):
        return values
    kind, order = SCALAR_TYPES.get(image.get("scalar", 0)), _ORDERS.get(image.get("endian", 0))
    if kind is None or order is None:
        raise EncodeError(f"{path}.pixels: a list needs scalar (one of {list(SCALAR_TYPES)}) and endian (1 or 2)")
    return _base64(_numbers(f"{path}.pixels", values, np.dtype(kind)).astype(np.dtype(kind).newbyteorder(order)).data)


def _numbers(path: str, values: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array of ``dtype`` with exactly these values."""
    try:
        array = np.array(values)
    except ValueError:
        raise EncodeError(f"{path}: rows of different length") from None
    if array.size and array.dtype.kind not in "iuf":
        raise EncodeError(f"{path}: expected numbers, got {array.dtype}")
    if array.size and dtype.kind in "iu":
        info = np.iinfo(dtype)
        if array.dtype.kind == "f" or array.min() < info.min or array.max() > info.max:
            raise EncodeError(f"{path}: whole numbers of {info.min} to {info.max} expected")
    with np.errstate(over="ignore"):
        out = array.astype(dtype)
    if out.dtype.kind == "f" and not np.isfinite(out).all():
        raise EncodeError(f"{path}: a value is not finite in {dtype}; give the array as base64")
    return out


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _object(path: str, value: Any, kind: type) -> Any:
    """A content or a part of one from its fields."""
    if not isinstance(value, Mapping):
        raise EncodeError(f"{path}: expected an object, got {type(value).__name__}")
    fields = {one.name: one for one in dataclasses.fields(kind)}
    _no_others(path, value, set(fields) | {f"{name}_raw" for name, one in fields.items() if _hints(kind)[name] is str})
    given: dict[str, Any] = {}
    for name, one in fields.items():
        here = f"{path}.{name}"
        if name not in value:
            if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
                raise EncodeError(f"{here}: is missing")
            continue
        if _hints(kind)[name] is str:
            given[name] = _read_text(name, value, path=f"{path}.")
        elif kind is BindChild and name == "content" and isinstance(value[name], Mapping):
            given[name] = _packed_content(here, str(value.get("type_name")), value[name])
        else:
            given[name] = _value(here, value[name], _hints(kind)[name])
    return kind(**given)


def _value(path: str, value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _value(path, value, next(one for one in arguments if one is not type(None)))
    if hint is int:
        return _whole(path, value)
    if hint is float:
        return _real(path, value)
    if hint is str:
        if isinstance(value, Mapping):
            _no_others(path, value, {"text", "raw"})
            return WireText(str(value.get("text", "")), _bytes(f"{path}.raw", value.get("raw")))
        return _read_text("text", {"text": value}, path=f"{path}: ")
    if hint is bytes:
        return _bytes(path, value)
    if hint is memoryview:
        return memoryview(_bytes(path, value))
    if origin is np.ndarray:
        return _array(path, value, hint)
    if origin is tuple:
        return _tuple(path, value, arguments)
    return _object(path, value, hint)


def _real(path: str, value: Any) -> float:
    if value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise EncodeError(f"{path}: {value!r} is no number")
    return float(value)


def _tuple(path: str, value: Any, hints: Sequence[Any]) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise EncodeError(f"{path}: expected a list, got {type(value).__name__}")
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = [hints[0]] * len(value)
    elif len(value) != len(hints):
        raise EncodeError(f"{path}: {len(value)} values, expected {len(hints)}")
    return tuple(_value(f"{path}[{n}]", one, hint) for n, (one, hint) in enumerate(zip(value, hints, strict=True)))


def _array(path: str, value: Any, hint: Any) -> NDArray[Any]:
    """An array: its values, or its bytes; ``dtype`` may be left out where the field has but one."""
    if isinstance(value, list):
        value = {"values": value}
    if not isinstance(value, Mapping):
        raise EncodeError(f"{path}: expected a list, or an object with dtype, shape and values or base64")
    _no_others(path, value, {"dtype", "shape", "values", "base64"})
    try:
        dtype = np.dtype(value["dtype"]) if "dtype" in value else _only_dtype(hint) or np.dtype(object)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "iufc":
        raise EncodeError(f"{path}.dtype: {value.get('dtype')!r} is none that can be sent; for example 'uint8'")
    if "base64" in value:
        raw = _bytes(f"{path}.base64", value["base64"])
        if len(raw) % dtype.itemsize:
            raise EncodeError(f"{path}.base64: {len(raw)} bytes are no whole number of {dtype}")
        array = np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype)
    else:
        array = _numbers(f"{path}.values", value.get("values"), dtype)
    if "shape" in value:
        shape = _tuple(f"{path}.shape", value["shape"], [int, ...])
        if min(shape, default=0) < 0 or math.prod(shape) != array.size:
            raise EncodeError(f"{path}.shape: {list(shape)} does not fit {array.size} numbers")
        try:
            array = array.reshape(shape)
        except ValueError as error:  # without numbers, and yet too large or with too many axes
            raise EncodeError(f"{path}.shape: {list(shape)}: {error}") from None
    return array
