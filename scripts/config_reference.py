#!/usr/bin/env python3
"""Write the tables of ``docs/configuration.md`` from the configuration models.

``.venv/bin/python scripts/config_reference.py`` rewrites the part between the markers; a test fails while it is stale.
"""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from nav.ablation.applicators import Applicator
from nav.ablation.thermal import Tissue
from nav.config.room import RoomConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def tables() -> str:
    """All tables as Markdown."""
    parts: list[str] = []
    for root, place, title in ((RoomConfig, "", "Room"), (Applicator, "", "Applicator"), (Tissue, "", "Tissue")):
        parts.append(f"## {title} files\n")
        parts += [_table(model, where) for where, model in _models(root, place)]
    return "\n".join(parts)


def _models(model: type[BaseModel], place: str) -> list[tuple[str, type[BaseModel]]]:
    """(TOML path, model), depth first, in the order of the file."""
    found = [(place, model)]
    for key, field in model.model_fields.items():
        path = f"{place}.{key}" if place else key
        for kind in _parts(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                listed = any(get_origin(part) is tuple for part in [field.annotation, *get_args(field.annotation)])
                found += [(f"[{p}]" if listed and p == path else p, m) for p, m in _models(kind, path)]
    return found


def _parts(kind: Any) -> list[Any]:
    return [kind, *(inner for part in get_args(kind) for inner in _parts(part))]


def _table(model: type[BaseModel], place: str) -> str:
    heading = f"### `[{place}]`\n" if place else "### Top level\n"
    intro = (model.__doc__ or "").strip().split("\n\n")[0]
    rows = [
        f"| `{key}` | {_default(field)} | {_allowed(field)} | {(field.description or '').replace('|', chr(92) + '|')} |"
        for key, field in model.model_fields.items()
    ]
    return "\n".join([heading, intro, "", "| key | default | allowed | meaning |", "|---|---|---|---|", *rows, ""])


def _default(field: Any) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, tuple):
        return "empty"
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _allowed(field: Any) -> str:
    for part in _parts(field.annotation):
        if get_origin(part) is Literal:
            return ", ".join(f'`"{v}"`' if isinstance(v, str) else f"`{v}`" for v in get_args(part))
    limits = []
    for item in [*field.metadata, *_nested_metadata(field.annotation)]:
        for name, sign in _SIGNS.items():
            if getattr(item, name, None) is not None:
                limits.append(f"{sign} {getattr(item, name):g}")
        if getattr(item, "pattern", None):
            limits.append(f"`{item.pattern}`")
    kinds = [part for part in _parts(field.annotation) if isinstance(part, type)]
    kind = next((name for cls, name in _NAMES if cls in kinds), "")
    if get_origin(field.annotation) is list:
        return "4 rows of 4 numbers"
    if any(isinstance(part, type) and issubclass(part, BaseModel) for part in kinds):
        kind = "table" if get_origin(field.annotation) is not tuple else "list of tables"
    return f"{kind} {' and '.join(dict.fromkeys(limits))}".strip()


#: Looked for in this order.
_NAMES = ((bool, "true or false"), (str, "text"), (int, "whole number"), (float, "number"))


def _nested_metadata(kind: Any) -> list[Any]:
    """Constraints inside `Annotated` members of a union."""
    found: list[Any] = []
    for part in _parts(kind):
        for item in getattr(part, "__metadata__", ()):
            found += getattr(item, "metadata", [item])
    return found


def main() -> None:
    """Rewrite the page."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    PAGE.write_text(head + BEGIN + tables() + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
