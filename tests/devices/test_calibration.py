"""Rates fitted to times: they are found again where times follow from rates, whatever else is in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedge.devices.targets.calibration import Fit, Observation, calibrate
from fusedge.devices.targets.kernels import kernels_of
from fusedge.devices.targets.rates import KindRate, Rates
from fusedge.devices.targets.roofline import estimate_part
from fusedge.devices.targets.starts import tensor_count, view_count
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
    """By the formula in the module's text."""
    views = fit.rates.kinds["free"].overhead_s * view_count(work)
    total = fit.rates.run_s + fit.tensor_s * tensor_count(work) + views
    for kernel in kernels_of(work, "cpu"):
        rate = fit.rates.kinds[kernel.kind]
        computing = sum(n / rate.operations_per_s[p] for p, n in kernel.operations.items())
        moving = kernel.bytes / rate.bytes_per_s
        total += kernel.steps * rate.overhead_s + max(computing, moving)
    return total


def test_rates_are_found_again_where_times_follow_from_them() -> None:
    fit = calibrate(observe(probe_works()), "cpu")
    for kind, truth in TRUTH.kinds.items():
        found = fit.rates.kinds[kind]
        assert found.overhead_s == pytest.approx(truth.overhead_s, rel=0.1)
        assert found.operations_per_s["fp32"] == pytest.approx(
            truth.operations_per_s["fp32"], rel=0.02
        )
        assert found.bytes_per_s == pytest.approx(truth.bytes_per_s, rel=0.02)
    assert fit.rates.run_s == pytest.approx(TRUTH.run_s, rel=0.05)
    assert fit.tensor_s == pytest.approx(TENSOR_S, rel=0.05)
    assert fit.rates.kinds["free"].overhead_s == pytest.approx(VIEW_S, rel=0.05)
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
    table = Rates(
        kinds={
            **TRUTH.kinds,
            "product": KindRate(8e-7, {"fp32": 2e11, "fp16": 4e11}, 123e9, "table"),
        },
        run_s=3e-6,
        error=2.0,
        measured=False,
        source="table",
    )
    works = [chain("product", 4, operations, 64) for operations in (10, 1e8, 3e8)]
    fit = calibrate(observe(works), "cpu", table)
    # Every product here waits for its sums, none for its bytes.
    assert fit.rates.kinds["product"].bytes_per_s == pytest.approx(123e9, rel=0.3)


def test_a_table_that_is_off_by_a_factor_is_scaled() -> None:
    kinds = {
        kind: KindRate(
            3 * rate.overhead_s,
            {p: r / 3 for p, r in rate.operations_per_s.items()},
            rate.bytes_per_s / 3,
            "table",
        )
        for kind, rate in TRUTH.kinds.items()
    }
    table = Rates(kinds, 3 * TRUTH.run_s, 2.0, measured=False, source="table")
    fit = calibrate([part("one"), part("two", batch=4)], "cpu", table)
    unseen = part("unseen", batch=2)
    assert estimated(fit, unseen.work) == pytest.approx(unseen.seconds, rel=0.25)
    # no part has a recurrent node: as in the table, with the factor that the others show
    found = fit.rates.kinds["recurrent"]
    assert found.bytes_per_s == pytest.approx(TRUTH.kinds["recurrent"].bytes_per_s, rel=0.1)
    assert "scaled" in found.source


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


def test_without_probes_the_error_is_that_of_each_part_by_the_others() -> None:
    fit = calibrate([part("a"), part("b"), part("c")], "cpu", TRUTH)
    assert fit.rates.error < 1.3
    assert calibrate([part("a")], "cpu", TRUTH).rates.error == 2.0  # nothing to test it with


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
