"""Groups of nodes in the user's words."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from fusedge.export.node_groups import node_groups
from fusedge.export.precision import node_key
from tests.export.small_net import small_graph


def chain(*nodes: str) -> onnx.ModelProto:
    """`module/op kind`, each node reading the one before."""
    made = []
    for index, text in enumerate(nodes):
        name, _, kind = text.partition(" ")
        inputs = [f"t{index}"] * (2 if kind == "MatMul" else 1)
        made.append(helper.make_node(kind or "Relu", inputs, [f"t{index + 1}"], name))
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 4])
        for n in ("t0", f"t{len(nodes)}")
    ]
    return helper.make_model(helper.make_graph(made, "graph", values[:1], values[1:]))


def test_each_node_is_in_exactly_one_group_in_order() -> None:
    groups = node_groups(small_graph())
    order = [node_key(node) for node in small_graph().graph.node]
    assert sorted(order) == sorted(name for group in groups for name in group.nodes)
    for group in groups:
        assert list(group.nodes) == sorted(group.nodes, key=order.index)


def test_groups_are_the_users_modules() -> None:
    names = [group.name for group in node_groups(small_graph())]
    assert names == ["first", "second", "qkv", "out", "classify"]


def test_a_small_group_joins_the_closest_in_the_tree_of_modules() -> None:
    groups = node_groups(
        chain(
            "a.conv/conv MatMul",
            "b.conv/conv MatMul",
            "a.act/relu",
            "b.act/relu",
        )
    )
    assert [(group.name, group.nodes) for group in groups] == [
        ("a.conv", ("a.conv/conv", "a.act/relu")),
        ("b.conv", ("b.conv/conv", "b.act/relu")),
    ]


def test_many_groups_become_few_neighbours() -> None:
    names = [f"layers.{i}.{part}/op MatMul" for i in range(12) for part in ("q", "k", "v", "out")]
    groups = node_groups(chain(*names))
    assert len(groups) == 40
    assert sum(len(group.nodes) for group in groups) == 48
    few = node_groups(chain(*names), most=12)
    assert [group.name for group in few] == [f"layers.{i}.q to layers.{i}.out" for i in range(12)]


def test_nodes_without_modules_go_with_the_node_before() -> None:
    (first, second) = node_groups(
        chain("relu", "a/product MatMul", "gelu", "b/product MatMul", "tanh Tanh")
    )
    assert first.nodes == ("relu", "a/product", "gelu")
    assert second.nodes == ("b/product", "tanh")


def test_a_graph_without_modules_is_grouped_by_its_nodes() -> None:
    groups = node_groups(chain("one MatMul", "two", "three MatMul"))
    assert [group.nodes for group in groups] == [("one", "two"), ("three",)]
    unnamed = chain("x MatMul")
    unnamed.graph.node[0].name = ""
    assert [group.nodes for group in node_groups(unnamed)] == [("t1",)]
