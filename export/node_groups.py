"""Nodes grouped by the user's modules: what is kept or reduced together, and named in reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from fusedge.export.precision import PRODUCTS, RECURRENCES, node_key

MOST = 40
_SMALL = 3  # nodes; such a group without a product or recurrence saves nothing by itself


@dataclass(frozen=True)
class Group:
    """Nodes by their key, in the graph's order; the name is a module's, or `first to last`."""

    name: str
    nodes: tuple[str, ...]


@dataclass
class _Draft:
    first: str
    last: str
    nodes: list[str]
    weighty: bool


def node_groups(model: onnx.ModelProto, most: int = MOST) -> tuple[Group, ...]:
    """All nodes of a graph in at most `most` groups, in the order of their first nodes.

    A group is a module's own nodes. One of up to three nodes without a product or recurrence joins the
    neighbour that is closest in the tree of modules; then neighbours join, closest first, until they are
    few enough. A node without a module goes with the node before it.
    """
    order = {node_key(node): index for index, node in enumerate(model.graph.node)}
    drafts = _by_module(model)
    while (small := _smallest(drafts)) is not None:
        _merge(drafts, small, _nearest(drafts, small))
    while len(drafts) > most:
        pair = max(
            range(len(drafts) - 1),
            key=lambda i: (
                _closeness(drafts[i].last, drafts[i + 1].first),
                -len(drafts[i].nodes) - len(drafts[i + 1].nodes),
            ),
        )
        left, right = drafts[pair : pair + 2]
        drafts[pair : pair + 2] = [
            _Draft(left.first, right.last, left.nodes + right.nodes, left.weighty or right.weighty)
        ]
    return tuple(
        Group(
            draft.first if draft.first == draft.last else f"{draft.first} to {draft.last}",
            tuple(sorted(draft.nodes, key=order.__getitem__)),
        )
        for draft in drafts
    )


def _by_module(model: onnx.ModelProto) -> list[_Draft]:
    drafts: dict[str, _Draft] = {}
    homeless: list[str] = []
    module = ""
    for node in model.graph.node:
        module = node.name.rpartition("/")[0] or module
        weighty = node.op_type in PRODUCTS | RECURRENCES
        if not module:  # no module so far
            homeless.append(node_key(node))
            continue
        draft = drafts.setdefault(module, _Draft(module, module, [], False))
        draft.nodes.append(node_key(node))
        draft.weighty |= weighty
    if not drafts:
        # A graph from elsewhere, without modules: each node is its own.
        return [
            _Draft(name, name, [name], node.op_type in PRODUCTS | RECURRENCES)
            for node in model.graph.node
            for name in (node_key(node),)
        ]
    next(iter(drafts.values())).nodes.extend(homeless)
    return list(drafts.values())


def _smallest(drafts: Sequence[_Draft]) -> int | None:
    """The first group that is too small to stand alone."""
    if len(drafts) == 1:
        return None
    found = (i for i, d in enumerate(drafts) if len(d.nodes) <= _SMALL and not d.weighty)
    return next(found, None)


def _nearest(drafts: Sequence[_Draft], index: int) -> int:
    """The closest other group in the tree of modules; of several the nearest, rather the one before."""
    own = drafts[index].first
    others = (i for i in range(len(drafts)) if i != index)
    return max(others, key=lambda i: (_closeness(own, drafts[i].last), -abs(i - index), -i))


def _merge(drafts: list[_Draft], small: int, into: int) -> None:
    drafts[into].nodes += drafts[small].nodes
    del drafts[small]


def _closeness(one: str, other: str) -> int:
    """How many levels of the tree of modules two have in common."""
    count = 0
    for a, b in zip(one.split("."), other.split("."), strict=False):
        if a != b:
            break
        count += 1
    return count
