"""Rates fitted to times: they are found again where times follow from rates, whatever else is in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedge.devices.targets.calibration.calibration import Fit, Observation, calibrate, scale_table
from fusedge.devices.targets.planning.rates import KindRate, Rates
from fusedge.devices.targets.planning.roofline import estimate_part
from fusedge.devices.targets.planning.starts import tensor_count, view_count
from fusedge.devices.targets.work import Kind, NodeWork, PartWork, TensorUse

TENSOR_S, VIEW_S = 4e-7, 2e-7
TRUTH = Rates(
    kinds={
        "product": KindRate(8e-7, {"fp32": 2e11}, 6e10, "truth"),
        "elementwise": KindRate(3e-7, {"fp32": 2e10}, 5e10, "truth"),
        "recurrent": KindRate(5e-7, {"fp32": 8e10}, 2e10, "truth"),
    },
    run_s=3e-6,
    error=1.0,
    measured=True,
    source="truth",
)


def node(
    kind: Kind, index: int, operations: float, size: int, operator: str = "Other", steps: int = 1
) -> NodeWork:
    """One of a chain, which reads and writes tensors of `size` bytes."""
    return NodeWork(
        name=f"node{index}",
        operator=operator,
        kind=kind,
        precision="fp32",
        operations=operations,
        reads=(TensorUse(f"t{index}", size),),
        writes=(TensorUse(f"t{index + 1}", size),),
        steps=steps,
    )


def graph(*nodes: NodeWork, part: str = "part", batch: int = 1) -> PartWork:
    return PartWork(part, "fp32", batch, 18, nodes, 0, None, 0, 0)


def chain(kind: Kind, count: int, operations: float, size: int, **changes: int) -> PartWork:
    return graph(*(node(kind, index, operations, size, **changes) for index in range(count)))


def probe_works() -> list[PartWork]:
    """Of each kind what its start, its sums and its bytes are seen by; views and tensors."""
    works = [
        chain(kind, count, operations, size, steps=steps)
        for kind, steps in (("product", 1), ("elementwise", 1), ("recurrent", 8))
        for count, operations, size in ((20, 10, 8), (4, 5e7, 64), (4, 10, 1 << 20))
    ]
    works.append(graph(*(node("free", i, 0, 8, "Reshape") for i in range(30))))
    apart = [
        NodeWork(f"n{i}", "Neg", "elementwise", "fp32", 1.0, (TensorUse(f"i{i}", 4),), ())
        for i in range(12)
    ]
    works.append(graph(*apart))
    return works


def seconds(work: PartWork) -> float:
    found = estimate_part(work, TRUTH, "cpu").seconds
    assert found is not None
    return found + tensor_count(work) * TENSOR_S + view_count(work) * VIEW_S


def observe(works: Sequence[PartWork], factors: Sequence[float] = ()) -> list[Observation]:
    known = [*factors, *[1.0] * (len(works) - len(factors))]
    return [Observation(w, seconds(w) * f, "probe") for w, f in zip(works, known, strict=True)]


def part(name: str, scale: float = 1.0, batch: int = 1) -> Observation:
    nodes = [node("product", i, 4e6 * batch, 4096) for i in range(6)]
    nodes += [node("elementwise", i, 2e3 * batch, 8192) for i in range(6, 20)]
    work = graph(*nodes, part=name, batch=batch)
    return Observation(work, seconds(work) * scale, "part")


def estimated(fit: Fit, work: PartWork) -> float:
    found = estimate_part(work, fit.rates, "cpu").seconds
    assert found is not None
    return found


def test_rates_are_found_again_where_times_follow_from_them() -> None:
    fit = calibrate(observe(probe_works()), "cpu")
    for kind, truth in TRUTH.kinds.items():
        found = fit.rates.kinds[kind]
        assert found.overhead_s == pytest.approx(truth.overhead_s, rel=0.1)
        assert found.operations_per_s["fp32"] == pytest.approx(
            truth.operations_per_s["fp32"], rel=0.02
        )
        assert found.bytes_per_s == pytest.approx(truth.bytes_per_s, rel=0.02)
    # Seen in no graph alone, so less surely; it is their sum that counts.
    assert fit.rates.run_s == pytest.approx(TRUTH.run_s, rel=0.25)
    assert fit.rates.tensor_s == pytest.approx(TENSOR_S, rel=0.25)
    assert fit.rates.kinds["free"].overhead_s == pytest.approx(VIEW_S, rel=0.1)
    assert fit.rates.measured and 1 <= fit.rates.error < 1.02
    assert fit.graphs == len(probe_works())


def test_a_graph_that_was_not_measured_is_estimated() -> None:
    fit = calibrate(observe(probe_works()), "cpu")
    unseen = part("unseen")
    assert estimated(fit, unseen.work) == pytest.approx(unseen.seconds, rel=0.02)


def test_one_time_that_is_wrong_by_far_hardly_counts() -> None:
    fit = calibrate(observe([*probe_works(), *probe_works()], factors=[1, 1, 20]), "cpu")
    unseen = part("unseen")
    assert estimated(fit, unseen.work) == pytest.approx(unseen.seconds, rel=0.1)


@given(st.lists(st.floats(0.9, 1.1), min_size=11, max_size=11))
@settings(max_examples=25, deadline=None)
def test_noise_of_a_tenth_stays_about_a_tenth(factors: list[float]) -> None:
    fit = calibrate(observe(probe_works(), factors), "cpu")
    unseen = part("unseen")
    assert 0.8 < estimated(fit, unseen.work) / unseen.seconds < 1.25
    assert all(np.isfinite([r.overhead_s, r.bytes_per_s]).all() for r in fit.rates.kinds.values())


def test_what_no_time_tells_stays_where_it_started() -> None:
    works = [chain("product", 4, operations, 64) for operations in (10, 1e8, 3e8)]
    found = calibrate(observe(works), "cpu").rates.kinds["product"]
    # Every product here waits for its sums, none for its bytes.
    assert found.operations_per_s["fp32"] == pytest.approx(2e11, rel=0.05)
    assert found.bytes_per_s == pytest.approx(1 / 3e-11, rel=0.01)


def table(factor: float) -> Rates:
    """The truth, but slower."""
    kinds = {
        kind: KindRate(
            factor * rate.overhead_s,
            {p: r / factor for p, r in rate.operations_per_s.items()},
            rate.bytes_per_s / factor,
            "table",
            fill_s=factor * 1e-6,
            fill_factor=0.5,
        )
        for kind, rate in TRUTH.kinds.items()
    }
    return Rates(kinds, factor * TRUTH.run_s, 2.0, measured=False, source="table")


def engine(name: str, scale: float = 1.0, batch: int = 1) -> Observation:
    """A part on a GPU, by the table's form."""
    work = part(name, batch=batch).work
    found = estimate_part(work, table(1.0), "gpu").seconds
    assert found is not None
    return Observation(work, found * scale, "part")


def test_a_table_that_is_off_by_a_factor_is_scaled() -> None:
    fit = scale_table([engine("one"), engine("two", batch=4)], "gpu", table(3.0))
    assert fit is not None and fit.rates.error == pytest.approx(1) and fit.rates.measured
    unseen = engine("unseen", batch=2)
    found = estimate_part(unseen.work, fit.rates, "gpu").seconds
    assert found == pytest.approx(unseen.seconds)
    # no part has a recurrent node
    truth = TRUTH.kinds["recurrent"]
    assert fit.rates.kinds["recurrent"].bytes_per_s == pytest.approx(truth.bytes_per_s)


def test_the_error_of_a_scaled_table_is_that_of_each_part_by_the_others() -> None:
    fit = scale_table([engine("a"), engine("b"), engine("c", 1.5)], "gpu", table(3.0))
    assert fit is not None and 1.3 < fit.rates.error <= 1.5
    alone = scale_table([engine("a")], "gpu", table(3.0))
    assert alone is not None and alone.rates.error == 2.0  # nothing to test it with


def test_a_table_without_a_kind_of_the_parts_cannot_be_scaled() -> None:
    without = table(1.0)
    kinds = {kind: rate for kind, rate in without.kinds.items() if kind != "product"}
    assert scale_table([engine("a")], "gpu", replace(without, kinds=kinds)) is None


def test_the_expected_error_is_that_of_parts_that_were_not_fitted_to() -> None:
    probes = observe(probe_works())
    good, bad = calibrate([*probes, part("a")], "cpu"), calibrate([*probes, part("a", 1.6)], "cpu")
    assert good.rates.error < 1.05
    assert bad.rates.error == pytest.approx(1.6, rel=0.05)


def test_the_batches_of_a_part_count_as_one_graph() -> None:
    once = calibrate([*observe(probe_works()), part("a", 1.3)], "cpu")
    batches = [part("a", 1.3, batch) for batch in (1, 1, 1, 1)]
    often = calibrate([*observe(probe_works()), *batches], "cpu")
    work = part("a").work
    assert estimated(often, work) == pytest.approx(estimated(once, work), rel=1e-3)


def test_nodes_of_which_nothing_is_known_are_left_out() -> None:
    unknown = NodeWork("x", "Strange", "unknown", "fp32", None, (), ())
    works = probe_works()
    works[0] = graph(*works[0].nodes, unknown)
    fit = calibrate(observe(works), "cpu")
    assert "unknown" not in fit.rates.kinds


def test_views_and_tensors_are_counted() -> None:
    constant = TensorUse("c", 8, constant=True)
    work = graph(
        node("free", 0, 0, 8, "Reshape"),
        NodeWork("k", "Constant", "free", "fp32", 0.0, (), (constant,)),
        NodeWork("m", "MatMul", "product", "fp32", 1.0, (TensorUse("t1", 8), constant), ()),
    )
    assert view_count(work) == 1
    assert tensor_count(work) == 1  # t0 goes in, and t1 is inside


def paused(work: PartWork, origin: Literal["probe", "part"], factor: float = 1.0) -> Observation:
    """After a pause it takes 100 µs more, 2 µs for each node and 20 ps for each byte of its weights."""
    extra_s = 1e-4 + 2e-6 * len(work.nodes) + 2e-11 * work.weight_bytes
    return Observation(work, seconds(work), origin, seconds(work) + factor * extra_s)


def with_weights() -> list[PartWork]:
    works = probe_works()
    return [replace(work, weight_bytes=n * 500_000) for n, work in enumerate(works)]


def test_what_a_pause_costs_is_found_again() -> None:
    fit = calibrate([paused(work, "probe") for work in with_weights()], "cpu")
    assert fit.rates.pause_s == pytest.approx(1e-4, rel=0.1)
    assert fit.rates.pause_node_s == pytest.approx(2e-6, rel=0.1)
    assert fit.rates.pause_byte_s == pytest.approx(2e-11, rel=0.1)


def test_pauses_that_were_not_measured_cost_nothing_that_is_known() -> None:
    rates = calibrate(observe(probe_works()), "cpu").rates
    assert rates.pause_s == rates.pause_node_s == rates.pause_byte_s == 0
    assert estimate_part(part("a").work, rates, "cpu").paused_s is None


def test_a_scaled_table_has_the_pause_of_the_parts() -> None:
    one = engine("a")
    fit = scale_table([replace(one, paused_s=one.seconds + 5e-4)], "gpu", table(1.0))
    assert fit is not None
    found = estimate_part(one.work, fit.rates, "gpu").paused_s
    assert found == pytest.approx(one.seconds + 5e-4, rel=0.05)
