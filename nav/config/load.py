"""Load and validate TOML; every mistake is listed at once with its path, its value and what is allowed."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

__all__ = ["ConfigError", "config_sha256", "load_toml", "parse_toml", "shipped_config", "validated"]

ModelT = TypeVar("ModelT", bound=BaseModel)


class ConfigError(ValueError):
    """A configuration that cannot be used. ``problems`` holds one line per mistake."""

    def __init__(self, where: str, problems: list[str]) -> None:
        self.where = where
        self.problems = problems
        count = f"{len(problems)} mistake" + ("s" if len(problems) != 1 else "")
        super().__init__(f"{where}: {count}\n" + "\n".join(f"  {p}" for p in problems))


def parse_toml(text: str, model: type[ModelT], where: str) -> ModelT:
    """Validate TOML ``text`` against ``model``; ``where`` names it in errors.

    Raises
    ------
    ConfigError
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(where, [f"not valid TOML: {error}"]) from None
    return validated(data, model, where)


def validated(data: dict[str, Any], model: type[ModelT], where: str) -> ModelT:
    """``data`` as a ``model``; ``where`` names it in errors.

    Raises
    ------
    ConfigError
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(where, [_line(e) for e in error.errors() if not _is_echo(e)]) from None


def _is_echo(error: object) -> bool:
    """True for a list called too short only because its items are wrong, which is reported already."""
    assert isinstance(error, dict)
    items = error.get("input")
    return error["type"] == "too_short" and isinstance(items, list) and len(items) >= error["ctx"]["min_length"]


def _line(error: object) -> str:
    assert isinstance(error, dict)
    path = ""
    for part in error["loc"]:
        path += f"[{part}]" if isinstance(part, int) else ("." if path else "") + str(part)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "unknown key; remove it or correct its spelling"
    if error["type"] == "missing":
        return f"{path}: missing; this key is required"
    value = error.get("input")
    shown = repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return f"{path or '(top level)'} = {shown}: {message[:1].lower() + message[1:]}"


def load_toml(path: Path | str, model: type[ModelT]) -> ModelT:
    """Read and validate a TOML file."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(file), [f"cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(file), [f"is not UTF-8: {error.reason} at byte {error.start}"]) from None
    return parse_toml(text, model, str(file))


def config_sha256(config: BaseModel) -> str:
    """Hash of the validated configuration: the same settings give the same hash, whatever the layout of the file."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()


def shipped_config(*parts: str) -> Path:
    """Path of a configuration that ships with the program, such as ``shipped_config("rooms", "simulated.toml")``."""
    import configs

    return Path(configs.__file__).parent.joinpath(*parts)
