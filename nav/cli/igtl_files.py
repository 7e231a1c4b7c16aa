"""``ablation-nav igtl decode`` and ``encode``: messages in files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drivers.openigtlink.errors import EncodeError, WireError
from drivers.openigtlink.json_form import error_as_json, header_as_json, message_as_json, message_from_json
from drivers.openigtlink.wire import HEADER_SIZE, parse_header
from nav.cli.errors import CommandError, ExitCode

__all__ = ["decode_file", "encode_file", "messages_of"]


def messages_of(data: bytes) -> Iterator[dict[str, Any]]:
    """What `message_as_json` gives for each message of ``data``, with its ``offset``.

    Of a message whose CRC or content is wrong comes the header and, under ``error``, what is wrong; the next one goes
    on behind it. Where a header cannot be read or a body is cut off, an ``error`` without a header is the last.
    Offsets of errors are those in ``data``.
    """
    view = memoryview(data)
    at = 0
    while at < len(data):
        rest = view[at:]
        try:
            header = parse_header(rest)
            if header.body_size > len(rest) - HEADER_SIZE:
                raise WireError(
                    f"body size of {header.type_name} {header.device!r}",
                    offset=42,
                    value=header.body_size,
                    limit=f"{len(rest) - HEADER_SIZE}, the bytes that follow",
                )
        except WireError as error:
            yield {"offset": at, "error": error_as_json(error.moved(at))}
            return
        end = HEADER_SIZE + header.body_size
        try:
            yield {"offset": at} | message_as_json(rest[:end])
        except WireError as error:
            yield {
                "offset": at,
                **header_as_json(header, rest[HEADER_SIZE:end]),
                "error": error_as_json(error.moved(at)),
            }
        at += end


def decode_file(file: Path, as_json: bool) -> int:
    """Print the messages of a file; `ExitCode.INPUT` when anything in it is wrong."""
    if not (data := file.read_bytes()):
        raise CommandError(f"{file}: is empty, there is no message in it", ExitCode.INPUT)
    wrong = 0
    shown = messages_of(data)
    if as_json:
        messages = list(shown)
        wrong = sum("error" in message for message in messages)
        json.dump(messages, sys.stdout, indent=1, allow_nan=False)
        print()
    else:
        for message in shown:
            wrong += "error" in message
            print(_line(message))
    if wrong:
        print(f"ablation-nav: {file}: {wrong} of its messages could not be decoded", file=sys.stderr)
        return ExitCode.INPUT
    return ExitCode.OK


def _line(message: dict[str, Any]) -> str:
    """One message for a person to read."""
    if "type" not in message:
        return f"{message['offset']:>10}  {message['error']['message']}"
    seconds = message["timestamp"]["ns"]
    stamp = "no stamp" if seconds is None else f"{seconds / 1e9:.6f} s"
    head = f"{message['offset']:>10}  v{message['version']} {message['type']} {message['device']!r}  {stamp}"
    if "error" in message:
        return f"{head}  {message['error']['kind']}: {message['error']['message']}"
    parts = [head, f"{message['body_size']} bytes"]
    if message["metadata"]:
        parts.append(", ".join(f"{key}={value}" for key, value in message["metadata"].items()))
    text = json.dumps(message["content"], allow_nan=False, ensure_ascii=False)
    parts.append(text if len(text) <= 200 else f"{text[:200]} ...")
    return "  ".join(parts)


def encode_file(spec: Path, out: Path) -> int:
    """Write the messages of a specification to a file, all of them or none."""
    try:
        loaded = json.loads(spec.read_text("utf-8"))
    except ValueError as error:
        raise CommandError(f"{spec}: no JSON: {error}", ExitCode.INPUT) from None
    messages = loaded if isinstance(loaded, list) else [loaded]
    raw, problems = [], []
    for n, message in enumerate(messages):
        try:
            raw.append(message_from_json(message))
        except EncodeError as error:
            problems.append(f"message {n}: {error}")
    if problems:
        raise CommandError(f"{spec}: {'; '.join(problems)}", ExitCode.INPUT)
    if not raw:
        raise CommandError(f"{spec}: holds no message", ExitCode.INPUT)
    out.write_bytes(b"".join(raw))
    print(f"{out}: {len(raw)} message{'s' if len(raw) > 1 else ''}, {sum(map(len, raw))} bytes")
    return ExitCode.OK
