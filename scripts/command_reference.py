#!/usr/bin/env python3
"""Write the helps of all commands into ``docs/commands.md``: ``.venv/bin/python scripts/command_reference.py``."""

import contextlib
import io
import os
from pathlib import Path

from nav.cli.main import COMMANDS, load_command, main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
BEGIN, END = "<!-- helps: begin -->\n", "<!-- helps: end -->\n"


def shown() -> list[list[str]]:
    """Command lines whose help is shown, in the order of the page: of a group, each of its commands."""
    lines = []
    for name in COMMANDS:
        inner = getattr(load_command(name), "commands", None)
        lines += [[name]] if inner is None else [[name, sub] for sub in inner]
    return lines


def help_of(command: list[str]) -> str:
    """What ``--help`` prints, 100 columns wide."""
    os.environ["COLUMNS"] = "100"
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        code = main([*command, "--help"])
    if code != 0:
        raise SystemExit(f"{' '.join(command)} --help ended with {code}")
    return "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())


def helps() -> str:
    """All helps as Markdown."""
    return "\n".join(f"## {' '.join(command)}\n\n```\n{help_of(command)}\n```\n" for command in shown())


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    head, rest = page.split(BEGIN)
    PAGE.write_text(head + BEGIN + helps() + END + rest.split(END)[1], encoding="utf-8")
