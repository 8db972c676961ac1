"""The value of a `map` option: a table in YAML, in a file or in the URI itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.regular_file import read_file
from fusedge.bundle.strict_yaml import MAX_BYTES, load_yaml
from fusedge.devices.capture.address import Address


def read_map(address: Address, option: str = "map") -> tuple[dict[str, Any], str]:
    """The table that an option gives, inline where it begins with `{`, and where it stands.

    Its values are tables, lists and text. Raises FusedgeError where there is no such table.
    """
    value = address.text(option)
    if value.lstrip().startswith("{"):
        where = f"{option} in {address.uri}"
        return parse_map(value.encode(), where), where
    return parse_map(read_file(Path(value), MAX_BYTES), value), value


def parse_map(content: bytes, where: str) -> dict[str, Any]:
    """The table in YAML text; raises FusedgeError where it is none."""
    raw = load_yaml(content, where, text_only=True)
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise FusedgeError("is not a table: `name: value`, a line each", where=where)
    return raw
