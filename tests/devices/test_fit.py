"""What a fit proposes, on devices that are made up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.manifest import Manifest
from fusedge.devices.targets.planning.bundle_plan import plan_bundle, rows_of
from fusedge.devices.targets.planning.estimate import PartEstimate
from fusedge.devices.targets.planning.fit import Fit, FitRow, Limits, Mode, fit, with_slower_parts
from tests.devices.test_bundle_plan import FILES, GPU, QUAD, plain, tiny
from tests.tiny_bundle import modality, tiny_manifest

PARTS = ("fast_encoder", "slow_encoder", "head")
Seconds = Mapping[str, float | None]


def mode(
    name: str = "15W",
    watts: float | None = 15,
    *,
    speed: float = 1,
    seconds: Mapping[str, Seconds] | None = None,
    per_row: float = 0.0,
    alike: bool = False,
    error: float = 1.3,
    most_streams: int = 64,
    unknown: Mapping[str, int] | None = None,
) -> Mode:
    """A mode in which a run takes `seconds` by part and precision, and `per_row` more for each row.

    `unknown` are the operators of each part that were not counted.
    """
    table = seconds or {part: {"fp32": 0.01} for part in PARTS}

    def estimate(part: str, precision: str, batch: int) -> PartEstimate:
        first = table[part][precision]
        took = None if first is None else (first + per_row * (batch - 1)) / speed
        return PartEstimate(part, precision, batch, took, 1, {}, {}, unknown or {})

    return Mode(
        name=name,
        watts=watts,
        precisions={part: dict.fromkeys(found, GPU) for part, found in table.items()},
        estimate=estimate,
        alike=alike,
        error=error,
        most_streams=most_streams,
    )


def all_take(seconds: float) -> dict[str, Seconds]:
    return {part: {"fp32": seconds} for part in PARTS}


def only(found: Fit) -> FitRow:
    (row,) = found.rows
    return row


def test_the_mode_of_fewest_watts_that_fits_is_recommended() -> None:
    modes = [mode("MAXN", 40, speed=8), mode("7W", 7, speed=0.1), mode("15W", 15), mode("25W", 25)]
    found = fit(tiny(), modes, Limits(load=0.06))
    assert [row.fits and not row.slower for row in found.rows] == [True, False, True, True]
    assert found.recommended == "15W"


def test_a_mode_that_fits_as_it_is_goes_before_one_of_fewer_watts_that_must_be_slower() -> None:
    modes = [mode("7W", 7, speed=0.1), mode("15W", 15)]
    found = fit(tiny(), modes, Limits(load=0.3))
    assert found.rows[0].fits
    assert found.rows[0].slower
    assert found.recommended == "15W"


def test_a_mode_of_unknown_watts_comes_last() -> None:
    assert fit(tiny(), [mode("A", None), mode("B", 60)], Limits()).recommended == "B"


def test_nothing_is_recommended_where_nothing_fits() -> None:
    found = fit(tiny(), [mode(seconds=all_take(10))], Limits())
    assert found.recommended is None
    assert not only(found).fits
    assert only(found).slower == {}


def test_full_precision_stays_where_another_is_hardly_faster() -> None:
    seconds: dict[str, Seconds] = {
        "fast_encoder": {"fp32": 0.0104, "fp16": 0.01},
        "slow_encoder": {"fp32": 0.0106, "fp16": 0.01},
        "head": {"fp32": 0.01, "fp16": 0.0052, "int8": 0.005},
    }
    row = only(fit(tiny(), [mode(seconds=seconds)], Limits()))
    assert row.precision == {"fast_encoder": "fp32", "slow_encoder": "fp16", "head": "fp16"}


def test_where_all_parts_must_be_alike_the_precision_is_one_that_all_have() -> None:
    seconds: dict[str, Seconds] = {
        "fast_encoder": {"fp32": 0.01, "fp16": 0.005, "int8": 0.001},
        "slow_encoder": {"fp32": 0.01, "fp16": 0.005, "int8": 0.001},
        "head": {"fp32": 0.01, "fp16": 0.011},
    }
    row = only(fit(tiny(), [mode(seconds=seconds, alike=True)], Limits()))
    assert set(row.precision.values()) == {"fp16"}


def test_no_graph_that_the_device_can_run_is_one_line() -> None:
    seconds: dict[str, Seconds] = {**all_take(0.01), "head": {}}
    with pytest.raises(FusedgeError, match=r"part head: the bundle has no graph that 15W can run"):
        fit(tiny(), [mode(seconds=seconds)], Limits())


def test_the_costliest_part_is_slowed_first_and_by_whole_numbers() -> None:
    seconds: dict[str, Seconds] = {
        "fast_encoder": {"fp32": 0.2},
        "slow_encoder": {"fp32": 0.01},
        "head": {"fp32": 0.01},
    }
    row = only(fit(tiny(), [mode(seconds=seconds)], Limits(load=0.2)))
    assert row.slower == {"fast_encoder": 3}
    assert row.rates_hz == pytest.approx({"fast_encoder": 2 / 3, "slow_encoder": 1, "head": 2})
    assert row.plan.load == pytest.approx(0.2 * 2 / 3 + 0.01 + 0.02)


def test_no_modality_gets_so_slow_that_it_goes_missing() -> None:
    # Its embeddings count for 2 s, and its windows are 0.1 s late: at most one in 1.5 s.
    seconds: dict[str, Seconds] = {**all_take(1e-6), "fast_encoder": {"fp32": 0.2}}
    row = only(fit(tiny(), [mode(seconds=seconds)], Limits(load=0.01)))
    assert not row.fits
    assert "even at the lowest rates at which nothing goes missing" in row.reason
    assert only(fit(tiny(), [mode(seconds=seconds)], Limits(load=0.14))).slower == {
        "fast_encoder": 3
    }


def test_windows_in_which_events_are_looked_for_leave_no_gap() -> None:
    seconds: dict[str, Seconds] = {**all_take(1e-6), "fast_encoder": {"fp32": 0.2}}
    for window_s, slower in ((0.5, {}), (1.0, {"fast_encoder": 2}), (1.2, {"fast_encoder": 2})):
        modalities = (modality("fast", window_s=window_s), modality("slow"))
        manifest = tiny_manifest(modalities, FILES, 2)
        assert [rule.modality for rule in manifest.events] == ["fast"]
        row = only(fit(manifest, [mode(seconds=seconds)], Limits(load=0.21)))
        assert row.slower == slower
        assert row.fits == bool(slower)


def test_only_what_runs_on_the_device_that_is_too_busy_is_slowed() -> None:
    seconds: dict[str, Seconds] = {
        "fast_encoder": {"fp32": 0.2},
        "slow_encoder": {"fp32": 0.01},
        "head": {"fp32": 0.15},
    }
    made = mode(seconds=seconds)
    split = replace(made, precisions={**made.precisions, "head": {"fp32": QUAD}})
    row = only(fit(tiny(), [split], Limits(load=0.35)))
    assert row.slower == {"fast_encoder": 2}


def test_decisions_are_slowed_where_they_take_longer_than_their_period() -> None:
    row = only(fit(tiny(), [mode(seconds=all_take(0.2))], Limits(load=1)))
    assert row.fits
    assert row.slower["head"] == 2
    assert row.plan.worst_s == pytest.approx(0.6)


def test_a_latency_that_is_asked_for_is_not_met_by_slowing_down() -> None:
    row = only(fit(tiny(), [mode(seconds=all_take(0.01))], Limits(latency_s=0.02)))
    assert not row.fits
    assert row.slower == {}
    assert "at any rate" in row.reason


def test_heavy_encoders_that_no_decision_waits_for_are_not_slowed() -> None:
    seconds: dict[str, Seconds] = {
        "fast_encoder": {"fp32": 0.113},
        "slow_encoder": {"fp32": 0.025},
        "head": {"fp32": 0.0003},
    }
    made = mode(seconds=seconds)
    on_cpu = replace(made, precisions={part: {"fp32": QUAD} for part in PARTS})
    row = only(fit(tiny(), [on_cpu], Limits(latency_s=0.001)))
    assert row.fits
    assert row.slower == {}
    assert row.plan.worst_s == pytest.approx(0.0003)


def test_an_encoder_too_slow_for_its_embeddings_is_told() -> None:
    seconds: dict[str, Seconds] = {**all_take(1e-6), "slow_encoder": {"fp32": 0.9}}
    row = only(
        fit(
            tiny_manifest((modality("fast"), modality("slow", max_age_s=1.6)), FILES, 2),
            [mode(seconds=seconds)],
            Limits(load=1),
        )
    )
    assert not row.fits
    assert row.reason == "encoders take so long that slow would be missing at times, at any rate"


def test_the_precision_is_chosen_by_runs_after_a_pause() -> None:
    made = mode(seconds={part: {"fp32": 1e-4, "fp16": 2e-4} for part in PARTS})

    def rested(part: str, precision: str, batch: int) -> PartEstimate:
        paused_s = {"fp32": 9e-4, "fp16": 5e-4}[precision]
        return replace(made.estimate(part, precision, batch), paused_s=paused_s)

    row = only(fit(tiny(), [replace(made, estimate=rested)], Limits()))
    assert set(row.precision.values()) == {"fp16"}


def test_streams_are_counted_up_to_what_the_device_carries() -> None:
    # With n streams: (2 + 1) runs of up to 8 rows, and 2 n of the head, of 10 ms each.
    row = only(fit(tiny(), [mode(error=1.05)], Limits(load=0.2)))
    assert row.streams == 8  # 0.03 + 0.16, and the ninth asks for another run of each encoder
    assert (row.plan.streams, row.sure) == (1, True)
    for most in (64, 5):
        light = mode(seconds=all_take(1e-9), most_streams=most)
        assert only(fit(tiny(), [light], Limits())).streams == most


def test_streams_that_are_asked_for_are_fitted_together() -> None:
    one, four = (
        only(fit(tiny(), [mode()], Limits(load=0.06), streams=streams)) for streams in (1, 4)
    )
    assert not one.slower
    assert four.fits
    assert four.slower
    assert four.streams == four.plan.streams == 4


def test_whether_the_expected_error_is_covered_is_told() -> None:
    load = 0.01 * 5
    assert not only(fit(tiny(), [mode(error=1.3)], Limits(load=load * 1.2))).sure
    assert only(fit(tiny(), [mode(error=1.3)], Limits(load=load * 1.31))).sure


def test_an_unknown_speed_does_not_fit_and_says_why() -> None:
    seconds: dict[str, Seconds] = {**all_take(0.01), "head": {"fp32": None}}
    row = only(fit(tiny(), [mode(seconds=seconds)], Limits()))
    assert not row.fits
    assert row.streams == 0
    assert "unknown: how fast this GPU is at fp32, so how long these parts take: head" in row.reason


def test_what_was_not_counted_is_named_and_nothing_rests_on_it() -> None:
    light = all_take(1e-6)
    row = only(fit(tiny(), [mode(seconds=light, unknown={"x::Mystery": 2})], Limits(), streams=3))
    assert (row.fits, row.sure, row.streams, row.plan.lower_bound) == (True, False, 3, True)
    assert row.note == "not counted, so it may take more: x::Mystery"
    counted = only(fit(tiny(), [mode(seconds=light)], Limits(), streams=3))
    assert (counted.sure, counted.streams, counted.note) == (True, 64, "")


@pytest.mark.parametrize("seconds", [-1e-3, 0.0])
def test_a_time_that_is_not_positive_still_has_a_precision(seconds: float) -> None:
    table: dict[str, Seconds] = {
        part: {"fp32": abs(seconds) + 0.01, "fp16": seconds} for part in PARTS
    }
    row = only(fit(tiny(), [mode(seconds=table)], Limits()))
    assert set(row.precision.values()) == {"fp16"}


def test_a_plain_model_fits_by_its_latency() -> None:
    manifest = plain()
    name = manifest.parts[0].name
    seconds = {name: {"fp32": 0.02, "fp16": 0.01}}
    for latency_s, fits in ((None, True), (0.011, True), (0.009, False)):
        row = only(fit(manifest, [mode(seconds=seconds)], Limits(latency_s=latency_s)))
        assert (row.fits, row.precision, row.streams) == (fits, {name: "fp16"}, int(fits))


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return tiny()


PRECISIONS = st.lists(
    st.sampled_from(["fp32", "fp16", "int8"]), min_size=1, max_size=3, unique=True
)


@settings(max_examples=150, deadline=None)
@given(
    precisions=st.tuples(PRECISIONS, PRECISIONS, PRECISIONS),
    base=st.lists(st.floats(1e-5, 2), min_size=9, max_size=9),
    per_row=st.floats(0, 0.1),
    speeds=st.lists(st.floats(0.05, 20), min_size=1, max_size=4),
    load=st.floats(0.01, 1),
    latency_s=st.none() | st.floats(0.001, 3),
    streams=st.integers(1, 20),
)
def test_what_is_proposed_keeps_the_limits_when_it_is_planned_again(
    manifest: Manifest,
    precisions: Sequence[Sequence[str]],
    base: Sequence[float],
    per_row: float,
    speeds: Sequence[float],
    load: float,
    latency_s: float | None,
    streams: int,
) -> None:
    took = iter(base)
    seconds: dict[str, Seconds] = {
        part: {precision: next(took) for precision in found}
        for part, found in zip(PARTS, precisions, strict=True)
    }
    modes = [
        mode(f"M{i}", watts=5 + i, speed=speed, seconds=seconds, per_row=per_row)
        for i, speed in enumerate(speeds)
    ]
    limits = Limits(load, latency_s)
    found = fit(manifest, modes, limits, streams=streams)
    assert found == fit(manifest, modes, limits, streams=streams)
    for row, made in zip(found.rows, modes, strict=True):
        assert all(row.precision[part] in seconds[part] for part in PARTS)
        if not row.fits:
            assert row.reason
            continue
        slowed = Manifest.model_validate(with_slower_parts(manifest, row.slower).model_dump())
        for count in {streams, row.streams}:
            estimates = {
                p.name: made.estimate(p.name, row.precision[p.name], rows_of(slowed, p, count))
                for p in slowed.parts
            }
            plan = plan_bundle(slowed, estimates, dict.fromkeys(PARTS, GPU), streams=count)
            assert plan.load is not None
            assert plan.worst_s is not None
            assert plan.load <= load
            limit_s = latency_s or 1 / slowed.require_fusion().decision_rate_hz
            assert plan.worst_s <= limit_s
        for before, after in zip(manifest.modalities, slowed.modalities, strict=True):
            assert math.isclose(after.hop_s / before.hop_s % 1, 0, abs_tol=1e-9)
            if after.hop_s != before.hop_s:
                assert after.delay_s + after.hop_s <= after.max_age_s
        assert not row.plan.outdated()
    fitting = [row for row in found.rows if row.fits]
    assert (found.recommended is None) == (not fitting)
