"""YAML of settings: bounded, and without what lets a small file stand for a huge one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import yaml

from fusedge.bundle.errors import FusedgeError

MAX_BYTES = 1 << 18  # a list of so many ones takes 2.6 s to load
MAX_DEPTH = 32


class _Strict:
    """Takes no aliases, no tags and no repeated keys."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # type: ignore[attr-defined]
            raise yaml.YAMLError("aliases (*name) are not taken")
        tag = self.peek_event().tag  # type: ignore[attr-defined]  # None where it is not written
        if tag is not None:
            raise yaml.YAMLError(f"tags ({tag[:80]}) are not taken")
        if self.depth >= MAX_DEPTH:
            raise yaml.YAMLError(f"is more than {MAX_DEPTH} levels deep")
        self.depth += 1
        node = super().compose_node(parent, index)  # type: ignore[misc]
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        counts = Counter(str(key.value) for key, _ in node.value)
        for key, count in counts.most_common(1):
            if count > 1:
                raise yaml.YAMLError(f"{key[:80]!r} is given twice")
        return super().construct_mapping(node, deep)  # type: ignore[misc]


class _Loader(_Strict, yaml.SafeLoader):  # type: ignore[misc]
    """Makes tables, lists, text, numbers, dates and truth values."""


class _TextLoader(_Strict, yaml.BaseLoader):  # type: ignore[misc]
    """Makes tables, lists and text, and nothing else: `1`, `no` and `2018-04-08` stay text."""


def load_yaml(content: bytes, where: str, *, text_only: bool = False) -> Any:
    """What YAML text says; raises FusedgeError where it cannot be taken."""
    if len(content) > MAX_BYTES:
        raise FusedgeError(f"has more than {MAX_BYTES} bytes", where=where)
    try:
        return yaml.load(content.decode(), _TextLoader if text_only else _Loader)  # both are safe
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise FusedgeError(f"is no YAML that can be taken: {error}", where=where) from None
