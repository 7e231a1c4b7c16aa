"""The page of what has been exchanged names what the tests run, and misses no example program of the C++ library."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from drivers.openigtlink.contents import DATA_TYPES
from tests.system.openigtlink_examples import program_names

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "openigtlink-interoperability.md"


def programs_run() -> set[str]:
    """Programs named in the tests that run them; MetaServer is a device."""
    text = "".join((HERE / f"test_openigtlink_cpp_{side}.py").read_text() for side in ("servers", "clients"))
    return set(re.findall(r'"([A-Z][A-Za-z]+(?:Server|Client)[23]?)"', text)) - {"MetaServer"}


def rows() -> dict[str, str]:
    """Program to its row of the page's first table."""
    table = PAGE.read_text().split("## pyigtl")[0]
    found = {}
    for line in table.splitlines():
        if line.startswith("| ") and ("Server" in line or "Client" in line):
            for name in line.split("|")[1].split(","):
                found[name.strip()] = line
    return found


def test_every_program_is_run_and_on_the_page() -> None:
    assert set(rows()) == programs_run()
    if not program_names():
        pytest.skip("the package openigtlink-examples is not installed")
    assert set(program_names()) == programs_run()


def test_the_page_names_types_that_exist() -> None:
    known = {*DATA_TYPES, "BIND"}
    for program, row in rows().items():
        for name in re.findall(r"\b[A-Z_]{4,}\b", row.split("|")[3]):
            assert re.sub(r"^(GET|STT|STP)_", "", name) in known, (program, name)
