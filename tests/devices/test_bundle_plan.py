"""Load, latency and energy of a whole bundle, on estimates that are given."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.lookup import open_bundle
from fusedge.bundle.manifest import Manifest
from fusedge.bundle.window import to_ns
from fusedge.devices.targets.facts.table import Compute
from fusedge.devices.targets.planning.bundle_plan import (
    LIGHT_S,
    MAX_BATCH,
    WAIT_S,
    BundlePlan,
    plan_bundle,
    rows_of,
)
from fusedge.devices.targets.planning.estimate import PartEstimate
from fusedge.runtime import pipeline, runner
from tests.tiny_bundle import modality, tiny_manifest

FILES = {"parts/fast.onnx": b"", "parts/slow.onnx": b"", "parts/head.onnx": b""}
GPU = Compute(multiprocessors=8, watts=15.0)
ALL_GPU = dict.fromkeys(("fast_encoder", "slow_encoder", "head"), GPU)
QUAD = Compute(multiprocessors=0, cores=4, watts=10.0)


def tiny(decision_rate_hz: float = 2, **fast: Any) -> Manifest:
    """`fast` every 0.5 s, 0.1 s late; `slow` every second, 0.6 s late; no events."""
    modalities = (modality("fast", **fast), modality("slow"))
    return tiny_manifest(modalities, FILES, decision_rate_hz, events=())


def estimate(part: str, seconds: float | None, batch: int, **changes: Any) -> PartEstimate:
    """Of one run, whatever it does in that time."""
    made = PartEstimate(part, "fp32", batch, seconds, 1, {}, {}, {})
    return replace(made, **changes)


def planned(
    manifest: Manifest,
    compute: Compute = GPU,
    *,
    streams: int = 1,
    fast: float | None = 0.01,
    slow: float | None = 0.02,
    head: float | None = 0.03,
    rested_s: float | None = None,
    others: dict[str, Compute] | None = None,
    **options: Any,
) -> BundlePlan:
    """The plan where a run of each part takes so many seconds at any number of rows; after a pause
    `rested_s` more.
    """
    seconds = {"fast_encoder": fast, "slow_encoder": slow, "head": head}
    estimates = {}
    for part in manifest.parts:
        took = seconds[part.name]
        paused_s = None if took is None or rested_s is None else took + rested_s
        rows = rows_of(manifest, part, streams)
        estimates[part.name] = estimate(part.name, took, rows, paused_s=paused_s)
    computes = dict.fromkeys(seconds, compute) | (others or {})
    return plan_bundle(manifest, estimates, computes, streams=streams, **options)


def test_the_load_is_the_time_of_each_part_times_its_rate() -> None:
    plan = planned(tiny())
    (gpu,) = plan.devices
    assert plan.load == gpu.load == gpu.busy == pytest.approx(0.01 * 2 + 0.02 * 1 + 0.03 * 2)
    rates = {load.part: load.rate_hz for load in plan.parts}
    assert rates == {"fast_encoder": 2, "slow_encoder": 1, "head": 2}


def test_the_head_is_estimated_with_a_row_for_each_modality_that_it_goes_without() -> None:
    manifest = tiny()
    assert rows_of(manifest, manifest.head) == 3
    assert [rows_of(manifest, part) for part in manifest.encoders] == [1, 1]


def test_streams_share_the_runs_of_an_encoder_but_not_of_the_head() -> None:
    one, five, ten = (planned(tiny(), streams=n) for n in (1, 5, 10))
    runs = [[load.runs for load in plan.parts] for plan in (one, five, ten)]
    # A batch of more than 8 is beyond what the parts are built for.
    assert runs == [[1, 1, 1], [1, 1, 5], [2, 2, 10]]
    assert ten.load == pytest.approx(2 * (0.01 * 2 + 0.02) + 10 * 0.03 * 2)


def test_the_runtime_is_counted_as_it_is() -> None:
    assert MAX_BATCH == runner.MAX_BATCH
    assert (to_ns(LIGHT_S), to_ns(WAIT_S)) == (pipeline.LIGHT_NS, pipeline.WAIT_NS)


def test_a_head_beyond_its_greatest_batch_runs_in_pieces() -> None:
    manifest = tiny()
    estimates = {p.name: estimate(p.name, 0.01, 1) for p in manifest.parts}
    estimates["head"] = estimate("head", 0.01, 2)
    assert plan_bundle(manifest, estimates, ALL_GPU).parts[-1].runs == 2


def test_the_load_of_a_cpu_is_of_the_cores_that_the_runtime_uses() -> None:
    (quad,), (many,), (single,) = (
        planned(tiny(), replace(QUAD, cores=cores), fast=0.1, slow=0.1, head=0.1).devices
        for cores in (4, 64, 1)
    )
    assert (quad.cores, many.cores, single.cores) == (4, 4, 1)
    assert quad.busy == many.busy == single.busy == single.load == pytest.approx(0.5)
    # Each of two parts takes a fifth of one core, and no part runs on two.
    assert quad.load == pytest.approx(0.2)


def test_an_unknown_number_of_cores_counts_as_one_and_is_told() -> None:
    plan = planned(tiny(), replace(QUAD, cores=None))
    assert plan.devices[0].cores == 1
    assert any("cores" in line for line in plan.unknown)


def test_parts_on_the_processor_are_not_a_load_of_the_gpu() -> None:
    plan = planned(tiny(), others={"head": QUAD})
    gpu, cpu = plan.devices
    assert (gpu.device, gpu.load) == ("gpu", pytest.approx(0.04))
    assert (cpu.device, cpu.busy, cpu.load) == ("cpu", pytest.approx(0.06), pytest.approx(0.06))
    assert plan.load == cpu.load
    assert plan.energy_j == pytest.approx((15 * 0.04 + 10 * 0.06) / 2)


def test_a_part_that_rests_is_cold_each_time_it_is_due() -> None:
    plan = planned(tiny(), QUAD, rested_s=0.005)
    assert plan.devices[0].busy == pytest.approx(0.015 * 2 + 0.025 * 1 + 0.035 * 2)
    assert [load.seconds for load in plan.parts] == [0.01, 0.02, 0.03]
    assert [load.paused_s for load in plan.parts] == pytest.approx([0.015, 0.025, 0.035])
    assert plan.typical_s == plan.worst_s == pytest.approx(0.035)
    assert plan.energy_j == pytest.approx(10 * (plan.devices[0].busy or 0) / 2)


def test_only_the_first_of_runs_in_a_row_is_cold() -> None:
    rested = planned(tiny(), QUAD, head=3e-4, rested_s=5e-4, streams=10)
    hot = planned(tiny(), QUAD, head=3e-4, streams=10)
    assert rested.parts[-1].runs == 10
    assert [plan.parts[-1].due_s for plan in (rested, hot)] == pytest.approx([3.5e-3, 3e-3])
    assert rested.typical_s is not None and hot.typical_s is not None
    assert rested.typical_s - hot.typical_s == pytest.approx(5e-4)


def test_a_part_that_hardly_rests_stays_warm() -> None:
    manifest = tiny(decision_rate_hz=200)
    rested, hot = planned(manifest, head=1e-3, rested_s=0.005), planned(manifest, head=1e-3)
    assert rested.parts[-1].share == hot.parts[-1].share == pytest.approx(0.2)
    assert rested.parts[0].share == pytest.approx(0.03)


def test_what_was_not_measured_of_pauses_is_told() -> None:
    hot, rested = planned(tiny(), QUAD), planned(tiny(), QUAD, rested_s=0.005)
    assert any("after a pause" in line and "head" in line for line in hot.ignored)
    assert not any("after a pause" in line for line in rested.ignored)
    assert any("after a pause" in line for line in planned(tiny()).ignored)


LIGHT: dict[str, Any] = {"fast": 1e-4, "slow": 2e-4, "head": 3e-4}


def test_windows_that_are_due_between_decisions_do_not_delay_them() -> None:
    plan = planned(tiny(), **LIGHT)
    # fast is due 0.1 s after every decision, slow 0.1 s after every second one.
    assert plan.typical_s == pytest.approx(3e-4)
    assert plan.worst_s == pytest.approx(1e-4 + 2e-4 + 3e-4)


def test_windows_that_are_due_with_a_decision_come_before_it() -> None:
    plan = planned(tiny(lateness_s=0), **LIGHT)
    assert plan.typical_s == pytest.approx(1e-4 + 3e-4)


def test_a_decision_waits_for_no_heavy_encoder_and_has_an_older_embedding_instead() -> None:
    manifest = tiny(lateness_s=0)
    light, heavy = (planned(manifest, QUAD, slow=0, fast=fast) for fast in (0.0009, 0.12))
    assert (light.worst_s, heavy.worst_s) == (pytest.approx(0.0309), pytest.approx(0.03))
    assert heavy.typical_s == pytest.approx(0.03)
    assert (light.ages[0].computing_s, heavy.ages[0].computing_s) == (0, pytest.approx(0.12))
    # The window that ends with a decision is there for the next one.
    assert (light.ages[0].worst_s, heavy.ages[0].worst_s) == (0, pytest.approx(0.5))


def test_heavy_encoders_that_are_due_together_wait_for_a_free_core() -> None:
    dual, quad = (
        planned(tiny(), replace(QUAD, cores=cores), fast=0.2, slow=0.1) for cores in (2, 4)
    )
    assert [age.computing_s for age in dual.ages] == pytest.approx([0.3, 0.3])
    assert [age.computing_s for age in quad.ages] == pytest.approx([0.2 + 0.1 / 3, 0.1 + 0.2 / 3])
    # One of two cores is kept free of them, and one alone is shared with the head.
    assert dual.load == pytest.approx(0.2 * 2 + 0.1)
    assert planned(tiny(), replace(QUAD, cores=1)).worst_s == pytest.approx(0.06)


def test_on_a_gpu_heavy_encoders_share_it_with_the_head() -> None:
    for heavy_s, worst_s in ((0.01, 0.03 + 0.02), (0.2, 0.03 * 3)):
        plan = planned(tiny(), fast=heavy_s, slow=heavy_s)
        assert plan.worst_s == pytest.approx(worst_s)
        assert plan.typical_s == pytest.approx(0.03 * (1 + 2 * 3 * heavy_s))


def test_a_light_run_is_awaited_no_longer_than_the_runtime_does() -> None:
    plan = planned(tiny(lateness_s=0), QUAD, fast=0.0049, slow=0, head=0, streams=8)
    assert plan.parts[0].light  # 0.6 ms for each stream
    assert plan.typical_s == plan.worst_s == pytest.approx(WAIT_S)


def test_a_modality_that_goes_missing_because_its_encoder_is_slow_keeps_no_limit() -> None:
    plan = planned(tiny(max_age_s=0.7), QUAD, fast=0.45, slow=0, head=0)
    (age, _) = plan.ages
    assert (age.computing_s, age.worst_s) == (pytest.approx(0.45), pytest.approx(1.0))
    assert plan.outdated() == ["fast"]
    assert not plan.keeps(math.inf, None)
    by_itself = planned(tiny(max_age_s=0.4), QUAD, fast=0.45, slow=0, head=0)
    assert by_itself.outdated() == []  # it would be missing at times anyway, as its bundle says
    quick = planned(tiny(max_age_s=0.7), QUAD, fast=0.3, slow=0, head=0)
    assert quick.outdated() == []
    assert quick.keeps(1, None)


def test_the_delay_of_windows_is_told_apart_from_the_computing() -> None:
    fast, slow = planned(tiny(1)).ages
    assert (fast.latency_s, fast.lateness_s) == (0, 0.1)
    assert (slow.latency_s, slow.lateness_s) == (0.5, 0.1)
    # A window of fast ends at every half second and is due 0.1 s later; of slow at every second.
    assert (fast.typical_s, fast.worst_s) == (pytest.approx(0.5), pytest.approx(0.5))
    assert (slow.typical_s, slow.worst_s) == (pytest.approx(1), pytest.approx(1))


@given(
    hop_ms=st.integers(10, 400),
    period_ms=st.integers(10, 400),
    late_ms=st.integers(0, 300),
    compute_ms=st.floats(0, 500),
)
def test_ages_and_latency_are_the_mean_over_all_decisions(
    hop_ms: int, period_ms: int, late_ms: int, compute_ms: float
) -> None:
    manifest = tiny_manifest(
        (
            modality("fast", hop_s=hop_ms / 1000, lateness_s=late_ms / 1000),
            modality("slow", lateness_s=0, latency_s=0),
        ),
        FILES,
        1000 / period_ms,
    )
    plan = planned(manifest, QUAD, fast=compute_ms / 1000, slow=0, head=0)
    awaited = compute_ms < 1
    extra_ms = 0.0 if awaited else compute_ms
    ages, left = [], []
    for tick in range(hop_ms // math.gcd(hop_ms, period_ms)):
        now_ms = 10_000 * hop_ms * period_ms + tick * period_ms
        end_ms = (now_ms - late_ms - math.ceil(extra_ms)) // hop_ms * hop_ms
        ages.append(now_ms - end_ms)
        left.append(max(0.0, end_ms + late_ms + compute_ms - now_ms) if awaited else 0.0)
    # The decision period is kept in whole nanoseconds, which shifts the grid by less than that.
    if to_ns(1 / manifest.require_fusion().decision_rate_hz) == period_ms * 1_000_000:
        assert plan.ages[0].typical_s == pytest.approx(sum(ages) / len(ages) / 1000, abs=1e-9)
        assert plan.ages[0].worst_s == pytest.approx(max(ages) / 1000, abs=1e-9)
        assert plan.typical_s == pytest.approx(sum(left) / len(left) / 1000, abs=1e-9)
    assert plan.worst_s == pytest.approx(compute_ms / 1000 if awaited else 0)


def test_heads_of_many_streams_run_one_after_another_unless_they_take_long() -> None:
    short, long, gpu = (
        planned(tiny(), compute, fast=0, slow=0, head=head, streams=6)
        for compute, head in ((QUAD, 3e-4), (QUAD, 0.03), (GPU, 0.03))
    )
    assert (short.worst_s, short.typical_s) == (pytest.approx(18e-4), pytest.approx(3.5 * 3e-4))
    assert (long.worst_s, long.typical_s) == (pytest.approx(0.06), pytest.approx(0.045))
    assert gpu.worst_s == pytest.approx(0.18)
    # Each stream has its own head, so that they load more than one core.
    assert (long.load, gpu.load) == (pytest.approx(0.36 / 4), pytest.approx(0.36))


def test_the_energy_of_a_decision_is_at_most_the_budget_for_as_long_as_is_computed() -> None:
    for streams in (1, 3):
        plan = planned(tiny(), streams=streams)
        assert plan.load is not None
        assert plan.energy_j == pytest.approx(15 * plan.load / (2 * streams))
        assert not plan.energy_measured


def test_measured_power_goes_before_the_budget() -> None:
    plan = planned(tiny(), watts={"fast_encoder": 1.0, "slow_encoder": 2.0, "head": 3.0})
    joules = (1 * 0.02 + 2 * 0.02 + 3 * 0.06) / 2
    assert (plan.energy_j, plan.energy_measured) == (pytest.approx(joules), True)


def test_without_a_known_power_there_is_no_energy_and_a_reason() -> None:
    for options in ({"compute": replace(GPU, watts=None)}, {"watts": {"head": 1.0}}):
        plan = planned(tiny(), **options)  # type: ignore[arg-type]
        assert (plan.energy_j, plan.energy_measured) == (None, False)
        assert plan.unknown == ("the energy of a decision: what power the device takes",)


def test_a_part_of_unknown_speed_makes_all_that_rests_on_it_unknown() -> None:
    plan = planned(tiny(), slow=None)
    assert plan.load is plan.typical_s is plan.worst_s is plan.energy_j is None
    assert len(plan.unknown) == 1
    assert "slow_encoder" in plan.unknown[0]
    assert not plan.keeps(math.inf, math.inf)


def test_nodes_that_were_not_counted_make_it_a_lower_bound() -> None:
    manifest = tiny()
    estimates = {
        part.name: estimate(part.name, 0.01, rows_of(manifest, part), unknown={"GridSample": 2})
        for part in manifest.parts
    }
    assert plan_bundle(manifest, estimates, ALL_GPU).lower_bound
    assert not planned(manifest).lower_bound


def test_limits_are_kept_or_not() -> None:
    plan = planned(tiny())  # load 0.1, 60 ms at worst, a decision every 500 ms
    assert plan.keeps(0.1 + 1e-9, None)
    assert not plan.keeps(0.09, None)
    assert plan.keeps(1, 0.0601)
    assert not plan.keeps(1, 0.0599)
    assert not plan.keeps(0.1 + 1e-9, None, error=1.1)
    assert not planned(tiny(), head=0.49).keeps(1, None)


def plain() -> Manifest:
    """One part that takes 2 to 32 rows, usually 4, and no modality."""
    driving = open_bundle("driving").manifest
    head = driving.head
    tensors = {
        kind: tuple(
            spec.model_copy(update={"role": kind[:-1], "modality": None})
            for spec in getattr(head, kind)
        )
        for kind in ("inputs", "outputs")
    }
    dims = {"batch": {"least": 2, "usual": 4, "greatest": 32}}
    part = {**head.model_dump(), "kind": "model", "rate_hz": None, "engines": (), "dims": dims}
    fields = {**driving.model_dump(), "modalities": (), "outputs": (), "events": (), "fusion": None}
    return Manifest.model_validate({**fields, "parts": ({**part, **tensors},)})


def test_a_plain_model_has_latency_and_throughput_only() -> None:
    manifest = plain()
    (part,) = manifest.parts
    assert rows_of(manifest, part) == 4
    plan = plan_bundle(
        manifest, {part.name: estimate(part.name, 0.02, 4)}, {part.name: GPU}, error=1.5
    )
    assert plan.typical_s == plan.worst_s == 0.02
    assert plan.throughput_hz == pytest.approx(200)
    assert plan.energy_j == pytest.approx(15 * 0.02)
    assert plan.load is plan.decision_rate_hz is None
    assert any("plain model" in line for line in plan.unknown)
    rested = estimate(part.name, 0.02, 4, paused_s=0.04)
    again = plan_bundle(manifest, {part.name: rested}, {part.name: GPU}, error=1.5)
    assert (again.worst_s, again.throughput_hz) == (0.02, plan.throughput_hz)
    assert again.parts[0].paused_s == pytest.approx(0.04)
    assert plan.keeps(0, None)
    assert plan.keeps(0, 0.02)
    assert not plan.keeps(0, 0.02, error=1.5)


def test_what_is_ignored_and_the_expected_error_are_told() -> None:
    gpu, cpu = planned(tiny(), error=1.4), planned(tiny(), QUAD)
    assert gpu.error == 1.4
    assert any("TensorRT" in line for line in gpu.ignored)
    assert not any("TensorRT" in line for line in cpu.ignored)
