"""Estimates: what runs as one kernel, how long it takes, and how that follows the device's clocks."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.devices.targets.facts.table import (
    Compute,
    Target,
    find_target,
    jetson_cpu,
    jetson_target,
    jetsons,
    power_modes,
)
from fusedge.devices.targets.planning import default_rates as module
from fusedge.devices.targets.planning.default_rates import default_rates, efficiencies, scaled_rates
from fusedge.devices.targets.planning.kernels import Backend, kernels_of
from fusedge.devices.targets.planning.rates import KindRate, Rates
from fusedge.devices.targets.planning.roofline import estimate_part
from fusedge.devices.targets.work import Kind, NodeWork, PartWork, TensorUse

SIZE = 1000  # bytes of each tensor here
KINDS: dict[str, Kind] = {
    "Conv": "convolution",
    "MatMul": "product",
    "Gemm": "product",
    "Softmax": "normalisation",
    "ReduceMean": "normalisation",
    "MaxPool": "pooling",
    "GRU": "recurrent",
    "Transpose": "movement",
    "Concat": "movement",
    "Reshape": "free",
    "Magic": "unknown",
}


def node(line: str, precision: str = "fp16", steps: int = 1) -> NodeWork:
    """`Operator result: inputs`; an input in capitals is a constant. 100 operations each."""
    head, _, tail = line.partition(":")
    operator, result = head.split()
    kind = KINDS.get(operator, "elementwise")
    operations = {"unknown": None, "free": 0.0, "movement": 0.0}.get(kind, 100.0)
    reads = tuple(TensorUse(name, SIZE, name.isupper()) for name in tail.split())
    return NodeWork(
        result, operator, kind, precision, operations, reads, (TensorUse(result, SIZE),), steps
    )


def part(*lines: str | NodeWork, precision: str = "fp16") -> PartWork:
    nodes = [node(each, precision) if isinstance(each, str) else each for each in lines]
    return PartWork("camera", precision, 1, 18, tuple(nodes), 0, None, 0, 0)


def fused(work: PartWork, backend: Backend) -> list[str]:
    return [" ".join(kernel.names) for kernel in kernels_of(work, backend)]


@pytest.mark.parametrize(
    ("lines", "gpu", "cpu"),
    [
        (["Conv c: x W", "Relu r: c", "MaxPool p: r"], ["c r", "p"], ["c r", "p"]),
        # a residual sum joins the convolution that ends last
        (
            ["Conv a: x W", "Conv b: a V", "Add s: b x", "Relu r: s", "Conv d: r U"],
            ["a", "b s r", "d"],
            ["a", "b", "s", "r", "d"],
        ),
        (
            ["Conv a: x W", "Conv b: x V", "Add s: a b", "Relu r: s"],
            ["a", "b s r"],
            ["a", "b", "s", "r"],
        ),
        # what others read as well is not hidden in another kernel on a CPU
        (["Conv a: x W", "Relu r: a", "Add s: a r"], ["a r s"], ["a", "r", "s"]),
        (["MatMul m: x W", "Add b: m B", "Gelu g: b"], ["m b g"], ["m b", "g"]),
        (["Exp e: x", "Mul m: e x", "Transpose t: m", "Neg n: t"], ["e m t n"], list("emtn")),
        (["Conv c: x W", "Reshape v: c", "Relu r: v"], ["c r"], ["c r"]),
        (["Conv a: x W", "Conv b: x V", "Concat c: a b"], ["a", "b"], ["a", "b", "c"]),
        (["Concat c: x z"], ["c"], ["c"]),
        (["GRU g: x W", "Tanh t: g"], ["g", "t"], ["g", "t"]),
        (["Magic m: x", "Relu r: m"], ["m", "r"], ["m", "r"]),
        (
            [
                *["ReduceMean mean: x A", "Sub d: x mean", "Pow p: d A", "ReduceMean v: p A"],
                *["Add e: v A", "Sqrt s: e", "Div n: d s", "Mul g: n A", "Add o: g A"],
            ],
            ["mean d p v e s n g o"],
            ["mean d p v e s n g o"],
        ),
        (
            ["MatMul m: x W", "Div d: m A", "Erf e: d", "Add a: e A", "Mul b: m a", "Mul o: b A"],
            ["m d e a b o"],
            ["m", "d e a b o"],
        ),
    ],
)
def test_nodes_that_run_as_one(lines: list[str], gpu: list[str], cpu: list[str]) -> None:
    assert fused(part(*lines), "gpu") == gpu
    assert fused(part(*lines), "cpu") == cpu


ATTENTION = ("MatMul s: q k", "Mul m: s A", "Softmax p: m", "MatMul o: p v")


def test_attention_is_one_kernel_below_fp32() -> None:
    (kernel,) = kernels_of(part(*ATTENTION), "gpu")
    assert (kernel.kind, kernel.names) == ("attention", ("s", "m", "p", "o"))
    assert (kernel.read_bytes, kernel.written_bytes) == (4 * SIZE, SIZE)
    assert fused(part(*ATTENTION, precision="fp32"), "gpu") == ["s m", "p", "o"]
    assert fused(part(*ATTENTION, "Neg n: p"), "gpu") == ["s m", "p n", "o"]


def test_quantising_goes_into_the_product_and_int8_is_what_is_moved() -> None:
    held = TensorUse("held", SIZE // 4)
    nodes = [
        replace(node("QuantizeLinear held: x"), writes=(held,)),
        replace(node("DequantizeLinear y: held"), reads=(held,)),
        replace(
            node("DequantizeLinear w: W"),
            reads=(TensorUse("W", 250, constant=True),),
            writes=(TensorUse("w", SIZE, constant=True),),
        ),
        node("Conv c: y w", "int8"),
        node("Relu r: c"),
        node("QuantizeLinear out: r"),
    ]
    quantise, product = kernels_of(part(*nodes), "gpu")
    assert quantise.names == ("held",)
    assert product.names == ("c", "r", "out")
    assert product.read_bytes == SIZE // 4 + 250
    assert product.operations == {"int8": 100.0, "fp16": 200.0}


def test_a_kernel_reads_each_tensor_once_and_writes_what_others_read() -> None:
    work = part("Conv c: x W", "Mul m: c x", "Relu r: m", "MaxPool p: c")
    kernel = kernels_of(work, "gpu")[0]
    assert kernel.names == ("c", "m", "r")
    assert (kernel.read_bytes, kernel.written_bytes) == (2 * SIZE, 2 * SIZE)


LINES = st.lists(
    st.tuples(
        st.sampled_from([*KINDS, "Add", "Relu", "Mul", "QuantizeLinear", "DequantizeLinear"]),
        st.integers(0, 30),
        st.integers(0, 30),
    ),
    min_size=1,
    max_size=12,
)


def chain(drawn: list[tuple[str, int, int]]) -> PartWork:
    names, nodes = ["x"], []
    for index, (operator, first, second) in enumerate(drawn):
        sources = f"{names[first % len(names)]} {names[second % len(names)]}"
        nodes.append(node(f"{operator} t{index}: {sources}"))
        names.append(f"t{index}")
    return part(*nodes)


@given(drawn=LINES, backend=st.sampled_from(["gpu", "cpu"]))
@settings(max_examples=200, deadline=None)
def test_every_node_runs_once_and_after_what_it_reads(drawn: Any, backend: Backend) -> None:
    work = chain(drawn)
    kernels = kernels_of(work, backend)
    names = list(itertools.chain.from_iterable(kernel.names for kernel in kernels))
    assert len(names) == len(set(names))
    silent = {"Reshape", "DequantizeLinear", "Concat"}
    assert set(names) >= {n.name for n in work.nodes if n.operator not in silent}
    place = {name: index for index, kernel in enumerate(kernels) for name in kernel.names}
    for each in work.nodes:
        for use in each.reads:
            if each.name in place and use.name in place:
                assert place[use.name] <= place[each.name]


def rates(**changes: Any) -> Rates:
    """1 µs a start, 1 GFLOPS, 1 GB/s."""
    rate = KindRate(1e-6, {"fp16": 1e9, "fp32": 1e9, "int8": 1e9}, 1e9, "a test")
    kinds: dict[Kind, KindRate] = dict.fromkeys(efficiencies()["cpu"].peak_share, rate)
    return Rates(kinds, 5e-6, 1.5, False, "a test", **changes)


def test_a_kernel_takes_its_start_and_the_slower_of_sums_and_bytes() -> None:
    bound = part("MaxPool p: x")  # 100 operations and 2000 bytes
    found = estimate_part(bound, rates(), "gpu")
    assert found.seconds == pytest.approx(5e-6 + 1e-6 + 2e-6)
    assert found.by_bound == pytest.approx({"launch": 6e-6, "memory": 2e-6, "compute": 0})
    heavy = part(replace(node("Conv c: x W"), operations=9000.0))
    found = estimate_part(heavy, rates(), "gpu")
    assert found.by_bound == pytest.approx({"launch": 6e-6, "memory": 0, "compute": 9e-6})
    assert found.by_kind == pytest.approx({"convolution": 10e-6})


def test_after_a_pause_a_run_wakes_the_processor_and_fetches_nodes_and_weights() -> None:
    work = replace(part("MaxPool p: x"), weight_bytes=1000)
    known = rates(pause_s=1e-4, pause_node_s=2e-6, pause_byte_s=1e-9)
    found = estimate_part(work, known, "cpu")
    assert found.seconds == estimate_part(work, rates(), "cpu").seconds == pytest.approx(8e-6)
    assert found.paused_s == pytest.approx(111e-6)
    assert estimate_part(work, rates(), "cpu").paused_s is None


def test_recurrent_steps_start_one_after_another() -> None:
    work = part(node("GRU g: x W", steps=50))
    found = estimate_part(work, rates(), "gpu")
    assert found.by_bound["launch"] == pytest.approx(5e-6 + 50e-6)


def test_a_small_kernel_loses_in_proportion_until_the_device_is_full() -> None:
    plain = rates().kinds["convolution"]
    slow = replace(plain, fill_s=3e-6, fill_factor=4.0)
    some = replace(rates(), kinds={"convolution": slow})

    def computing(operations: float) -> float:
        work = part(replace(node("Conv c: x W"), operations=operations, reads=(), writes=()))
        return estimate_part(work, some, "gpu").by_bound["compute"]

    assert computing(100.0) == pytest.approx(100e-9 * 5)
    assert computing(9000.0) == pytest.approx(9e-6 + 3e-6)


def test_unknown_nodes_are_told_and_not_counted() -> None:
    found = estimate_part(part("Magic m: x", "MaxPool p: x"), rates(), "gpu")
    assert found.unknown == {"Magic": 1}
    assert found.seconds == estimate_part(part("MaxPool p: x"), rates(), "gpu").seconds
    assert found.kernels == 2


def test_without_a_rate_for_the_precision_there_is_no_estimate() -> None:
    work = part("Conv c: x W", "Softmax s: c", precision="bf16")
    found = estimate_part(work, rates(), "gpu")
    assert (found.seconds, found.by_bound, found.by_kind) == (None, {}, {})
    assert estimate_part(part("Softmax s: x", precision="bf16"), rates(), "gpu").seconds
    lacking = replace(rates(), kinds={})
    assert estimate_part(part("Conv c: x W"), lacking, "gpu").seconds is None


@given(drawn=LINES, backend=st.sampled_from(["gpu", "cpu"]))
@settings(max_examples=100, deadline=None)
def test_the_bounds_add_up(drawn: Any, backend: Backend) -> None:
    found = estimate_part(chain(drawn), rates(), backend)
    assert found.seconds is not None
    assert sum(found.by_bound.values()) == pytest.approx(found.seconds)
    assert sum(found.by_kind.values()) + 5e-6 == pytest.approx(found.seconds)


# The table of efficiencies, and clocks.


def modes() -> list[Target]:
    return [
        jetson_target(row, mode, configuration)
        for row in jetsons().values()
        for configuration in sorted({mode.configuration for mode in row.modes})
        for mode in power_modes(row, configuration)
    ]


def slower_pairs(cpu: bool) -> list[tuple[Target, Compute, Compute]]:
    """Pairs of modes of a module where no clock, count or bandwidth of the first is above the second's."""
    found = []
    for slow, fast in itertools.permutations(modes(), 2):
        if slow.row is not fast.row:
            continue
        pair = [jetson_cpu(each) if cpu else each.compute for each in (slow, fast)]
        numbers = [
            (each.peak.get("fp32"), each.bandwidth_bytes_per_s, each.cpu_mhz) for each in pair
        ]
        clocks = [_clock(each) for each in (slow, fast)]
        if any(None in each for each in numbers) or None in clocks:
            continue
        if all(a <= b for a, b in zip(*numbers, strict=True)) and clocks[0] <= clocks[1]:  # type: ignore[operator]
            found.append((slow, *pair))
    return found


def _clock(target: Target) -> float | None:
    return target.power_mode.gpu_mhz if target.power_mode else None


GPU_PAIRS, CPU_PAIRS = slower_pairs(cpu=False), slower_pairs(cpu=True)


def test_there_are_modes_to_compare() -> None:
    assert len(GPU_PAIRS) >= 10
    assert len(CPU_PAIRS) >= 10


@given(drawn=LINES, index=st.integers(0, 10**6), backend=st.sampled_from(["gpu", "cpu"]))
@settings(max_examples=200, deadline=None)
def test_a_slower_power_mode_is_never_estimated_faster(
    drawn: Any, index: int, backend: Backend
) -> None:
    pairs = GPU_PAIRS if backend == "gpu" else CPU_PAIRS
    target, slow, fast = pairs[index % len(pairs)]
    work = chain(drawn)
    seconds = []
    for compute in (slow, fast):
        found = default_rates(compute, backend, target.compute_capability)
        assert found is not None
        seconds.append(estimate_part(work, found, backend).seconds)
    assert seconds[0] is not None and seconds[1] is not None
    assert seconds[0] >= seconds[1] * (1 - 1e-9)
    carried = scaled_rates(found, fast, slow)
    again = estimate_part(work, carried, backend).seconds
    assert again is not None
    assert again >= seconds[1] * (1 - 1e-9)


def test_rates_of_a_mode_scale_to_those_of_another() -> None:
    fast, slow = (find_target(f"jetson-orin-nano-8gb:{mode}") for mode in ("25W", "15W"))
    known = default_rates(fast.compute, "gpu", fast.compute_capability)
    assert known is not None
    assert scaled_rates(known, fast.compute, fast.compute) == known
    carried = scaled_rates(known, fast.compute, slow.compute)
    direct = default_rates(slow.compute, "gpu", slow.compute_capability)
    assert direct is not None
    for kind, rate in direct.kinds.items():
        assert carried.kinds[kind].operations_per_s == pytest.approx(rate.operations_per_s)
        assert carried.kinds[kind].bytes_per_s == pytest.approx(rate.bytes_per_s)
        assert carried.kinds[kind].fill_s == pytest.approx(rate.fill_s)
    assert carried.error > known.error
    rested = replace(known, pause_s=1e-4, pause_node_s=1e-6, pause_byte_s=1e-11)
    slower = scaled_rates(rested, fast.compute, slow.compute)
    assert slower.run_s / known.run_s == pytest.approx(slower.pause_s / rested.pause_s)
    assert slower.pause_node_s > 1e-6 and slower.pause_byte_s > 1e-11
    with pytest.raises(FusedgeError, match="the bandwidth is not known"):
        scaled_rates(known, fast.compute, replace(slow.compute, bandwidth_bytes_per_s=None))


def test_what_is_not_known_of_a_device_gives_no_rates() -> None:
    nano = find_target("jetson-orin-nano-8gb:15W")
    assert default_rates(nano.compute, "gpu", nano.compute_capability) is not None
    assert default_rates(nano.compute, "gpu", None) is None
    assert default_rates(replace(nano.compute, peak={}), "gpu", "8.7") is None
    lacking = replace(nano.compute, bandwidth_bytes_per_s=None)
    assert default_rates(lacking, "gpu", "8.7") is None
    assert default_rates(find_target("cpu").compute, "cpu", None) is None


def test_a_gpu_with_memory_of_its_own_has_other_efficiencies() -> None:
    card = find_target("rtx-4090")
    found = default_rates(card.compute, "gpu", card.compute_capability)
    assert found is not None
    assert found.error == efficiencies()["discrete"].error
    assert not found.measured
    bandwidth = card.compute.bandwidth_bytes_per_s
    assert bandwidth is not None
    assert all(rate.bytes_per_s < bandwidth for rate in found.kinds.values())


def test_on_a_cpu_fp16_runs_as_fp32_where_it_has_no_instructions() -> None:
    compute = Compute(
        peak={"fp32": 1e11}, bandwidth_bytes_per_s=2e10, multiprocessors=0, cpu_mhz=2000
    )
    found = default_rates(compute, "cpu", None)
    assert found is not None
    known = found.kinds["convolution"].operations_per_s
    assert known["fp16"] == known["fp32"] == known["int8"]
    assert "bf16" not in known


def test_resnet50_takes_about_a_millisecond_on_a_large_gpu() -> None:
    """As published: 1.26 to 1.3 ms on a T4 in fp16, within the error that is told."""
    from benchmarks.published_networks import NETWORKS
    from fusedge.export.part_work import count_work

    work = count_work(NETWORKS["resnet50"]("fp16"), "resnet50", "fp16", {"batch": 1})
    t4 = find_target("t4")
    known = default_rates(t4.compute, "gpu", t4.compute_capability)
    assert known is not None
    seconds = estimate_part(work, known, "gpu").seconds
    assert seconds is not None
    assert abs(math.log(seconds / 1.28e-3)) < math.log(known.error)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("peak_share:", "peak_shares:", "Field required"),
        ("    pooling: 0.3\n", "", "does not have all kinds"),
        ("bandwidth_share: 0.", "bandwidth_share: 7.", "less than or equal to 1"),
        ("launch_us: 1", "launch_us: -1", "greater than or equal to 0"),
    ],
)
def test_a_broken_table_is_refused(
    old: str, new: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    file = tmp_path / "efficiencies.yaml"
    file.write_text(module._FILE.read_text().replace(old, new, 1))
    monkeypatch.setattr(module, "_FILE", file)
    efficiencies.cache_clear()
    try:
        with pytest.raises(FusedgeError, match=says):
            efficiencies()
    finally:
        monkeypatch.undo()
        efficiencies.cache_clear()
