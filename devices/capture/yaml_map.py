"""The value of a `map` option: a table in YAML, in a file or in the URI itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.capture.address import Address

MAX_BYTES = 1 << 16
MAX_DEPTH = 8


class _Loader(yaml.BaseLoader):  # type: ignore[misc]
    """Makes tables, lists and text, and nothing else: `1`, `no` and `2018-04-08` stay text.

    Takes no aliases, by which a small file can stand for a huge one, and no repeated keys.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not taken")
        if self.depth >= MAX_DEPTH:
            raise yaml.YAMLError(f"is more than {MAX_DEPTH} levels deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        counts = Counter(str(key.value) for key, _ in node.value)
        for key, count in counts.most_common(1):
            if count > 1:
                raise yaml.YAMLError(f"{key[:80]!r} is given twice")
        return super().construct_mapping(node, deep)


def read_map(address: Address, option: str = "map") -> tuple[dict[str, Any], str]:
    """The table that an option gives, inline where it begins with `{`, and where it stands.

    Its values are tables, lists and text. Raises FusedgeError where there is no such table.
    """
    value = address.text(option)
    if value.lstrip().startswith("{"):
        where = f"{option} in {address.uri}"
        return parse_map(value.encode(), where), where
    try:
        with Path(value).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero in it
        reason = error.strerror if isinstance(error, OSError) else None
        raise FusedgeError(f"cannot be read: {reason or error}", where=value) from None
    return parse_map(content, value), value


def parse_map(content: bytes, where: str) -> dict[str, Any]:
    """The table in YAML text; raises FusedgeError where it is none."""
    if len(content) > MAX_BYTES:
        raise FusedgeError(f"has more than {MAX_BYTES} bytes", where=where)
    try:
        raw = yaml.load(content.decode(), _Loader)  # a BaseLoader: makes no objects
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise FusedgeError(f"is no YAML that can be taken: {error}", where=where) from None
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise FusedgeError("is not a table: `name: value`, a line each", where=where)
    return raw
