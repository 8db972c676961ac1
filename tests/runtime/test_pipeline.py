"""From samples to decisions, with values computed by hand."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedge.bundle.archive import Bundle
from fusedge.bundle.manifest import Channel, StatePair, TensorSpec
from fusedge.bundle.sample import Rejection, Sample
from fusedge.bundle.window import to_ns
from fusedge.runtime.backend import AUTOMATIC, PartLoader
from fusedge.runtime.decision import Decision
from fusedge.runtime.events import Event
from fusedge.runtime.head import FusionHead
from fusedge.runtime.label import softmax
from fusedge.runtime.pipeline import Pipeline
from tests.runtime.signals import Machine, Played, by_arrival, signal
from tests.tiny_bundle import BIAS, LABELS, WEIGHTS, modality, write_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("b") / "tiny.fusedge")


def by_hand(means: dict[str, float]) -> list[float]:
    """Probabilities of the labels, from the means of the modalities that are present."""
    logits = [
        BIAS[k] + sum(mean * WEIGHTS[name][k] for name, mean in means.items()) for k in range(2)
    ]
    shares = np.exp(logits)
    return [float(p) for p in shares / shares.sum()]


def check(decision: Decision, means: dict[str, float]) -> None:
    """The decision is what the present modalities' means give."""
    side = decision.outputs["side"]
    expected = by_hand(means)
    assert side.probabilities is not None
    np.testing.assert_allclose(side.probabilities, expected, rtol=1e-5)
    label = int(np.argmax(expected))
    assert side.label == side.momentary_label == LABELS[label]
    for name, share in decision.modalities.items():
        assert share.present == (name in means)
        without = by_hand({other: mean for other, mean in means.items() if other != name})
        lost = expected[label] - without[label]
        assert side.contributions[name] == pytest.approx(lost, abs=1e-6)


def check_that_it_rests_on_nothing(decision: Decision) -> None:
    side = decision.outputs["side"]
    assert decision.problem == "nothing_present"
    assert side.label is side.momentary_label is side.probabilities is side.mean is None
    assert set(side.contributions.values()) == {None}
    assert not any(share.present for share in decision.modalities.values())


def test_decisions_and_contributions_are_those_computed_by_hand(bundle: Bundle) -> None:
    played = Played(bundle, by_arrival(signal("fast", 0.4, 0, 8), signal("slow", 0.5, 0, 8)))
    assert [d.timestamp_ns for d in played.decisions] == [to_ns(t) for t in range(1, 9)]
    check(played.decisions[0], {"fast": 0.4})  # the first slow window is cut at 1.6 s
    for decision in played.decisions[1:]:
        check(decision, {"fast": 0.4, "slow": 0.5})
        assert decision.latency_ns == 0
    # At a tick the newest fast window ended 0.5 s ago (cut 0.1 s after its end), the slow one 1 s.
    ages = [(d.modalities["fast"].age_s, d.modalities["slow"].age_s) for d in played.decisions[1:]]
    assert set(ages) == {(0.5, 1.0)}


def test_each_modality_pulls_as_its_weight_says(bundle: Bundle) -> None:
    played = Played(bundle, by_arrival(signal("fast", 1, 0, 4), signal("slow", 1, 0, 4)))
    side = played.decisions[-1].outputs["side"]
    assert side.label == "left"
    assert (side.contributions["fast"] or 0) > 0 > (side.contributions["slow"] or 0)


@pytest.mark.parametrize(
    "silent", [s for n in range(3) for s in itertools.combinations(("fast", "slow"), n)]
)
def test_a_decision_comes_on_every_tick_whatever_is_silent(
    bundle: Bundle, silent: tuple[str, ...]
) -> None:
    values = {"fast": 0.4, "slow": 0.5}
    speaking = {name: value for name, value in values.items() if name not in silent}
    ticker = [Rejection("other", to_ns(t / 10), "noise", "") for t in range(1, 101)]
    items = by_arrival(*(signal(name, value, 0, 9) for name, value in speaking.items()))
    played = Played(bundle, sorted([*items, *ticker], key=lambda item: item.arrival_ns))
    assert [d.timestamp_ns for d in played.decisions] == [to_ns(t) for t in range(1, 10)]
    for decision in played.decisions[2:]:
        if speaking:
            check(decision, speaking)
        else:
            check_that_it_rests_on_nothing(decision)
    shares = played.decisions[-1].modalities
    assert {name for name, share in shares.items() if share.age_s is None} == set(silent)


def test_a_modality_that_goes_silent_is_missed_and_comes_back(bundle: Bundle) -> None:
    fast = [*signal("fast", 0.4, 0, 4), *signal("fast", -0.6, 10, 14)]
    played = Played(bundle, by_arrival(fast, signal("slow", 0.5, 0, 14)))
    present = [d.modalities["fast"].present for d in played.decisions]
    # The last complete window ends at 4 s and is believed for 2 s; of the new ones, those that end
    # at 10.5 s and 11 s must both have come, the second at 11.1 s.
    assert present == [True] * 6 + [False] * 5 + [True] * 3
    assert [d.timestamp_ns for d in played.decisions] == [to_ns(t) for t in range(1, 15)]
    for decision in played.decisions[6:11]:
        check(decision, {"slow": 0.5})
    for decision in played.decisions[11:]:
        check(decision, {"fast": -0.6, "slow": 0.5})
    assert played.pipeline.statistics()["modalities"]["fast"]["state_resets"] == 1


class CountingHead:
    """A head with a memory: it votes by how many runs it remembers."""

    provider = "test"

    def __init__(self) -> None:
        self.remembered: list[float] = []

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        seen = feeds["state_in.seen"]
        self.remembered.append(float(seen[0, 0]))
        return [np.concatenate([seen, -seen], axis=1), seen + 1]


def with_memory(bundle: Bundle) -> Bundle:
    """The bundle, whose head carries a state."""
    recurrent = Bundle(bundle.path)
    state = {"dtype": "float32", "shape": ("batch", 1)}
    head = bundle.manifest.head
    head = head.model_copy(
        update={
            "inputs": (*head.inputs, TensorSpec(name="state_in.seen", role="state_in", **state)),
            "outputs": (
                *head.outputs,
                TensorSpec(name="state_out.seen", role="state_out", **state),
            ),
            "state": (StatePair(input="state_in.seen", output="state_out.seen", initial="zeros"),),
        }
    )
    parts = tuple(head if part.kind == "head" else part for part in bundle.manifest.parts)
    recurrent.manifest = bundle.manifest.model_copy(update={"parts": parts})
    return recurrent


def test_while_nothing_is_present_the_head_rests_and_its_memory_begins_anew(bundle: Bundle) -> None:
    head, recurrent = CountingHead(), with_memory(bundle)
    others = PartLoader(recurrent, AUTOMATIC)
    items = [*signal("fast", 0.4, 0, 5), *signal("fast", 0.4, 15, 21)]
    played = Played(
        recurrent, items, load=lambda part: head if part.kind == "head" else others(part)
    )
    # A window that ends at 5 s is believed for 2 s; of the new ones two must have come, at 16.1 s.
    there = [d.modalities["fast"].present for d in played.decisions]
    assert there == [True] * 7 + [False] * 9 + [True] * 4
    assert head.remembered == [*range(7), *range(4)]
    for decision, present in zip(played.decisions, there, strict=True):
        if present:
            assert not decision.problem
        else:
            check_that_it_rests_on_nothing(decision)
    statistics = played.pipeline.statistics()
    assert statistics["decisions"] == 20 and statistics["decisions_on_nothing"] == 9
    assert sum(statistics["labels"]["side"].values()) == 11
    runs = statistics["parts"]["head"]["runs"]
    assert runs["received"] == 20 and runs["used"] == 11
    assert runs["dropped"] == {"nothing_present": 9} and statistics["ledger_balanced"]
    assert not statistics["parts"]["head"]["failures"] and not statistics["remarks"]
    json.dumps(played.json(), allow_nan=False)


@pytest.mark.parametrize("head_fails", [False, True])
def test_the_first_label_after_an_absence_is_that_of_the_first_decision(
    tmp_path: Path, head_fails: bool
) -> None:
    plain = write_tiny_bundle(tmp_path / "plain.fusedge")
    output = plain.manifest.outputs[0].model_copy(update={"smoothing_s": 60.0, "hysteresis": 0.5})
    slow_to_change = write_tiny_bundle(tmp_path / "slow.fusedge", outputs=(output,))
    items = [*signal("fast", 1.0, 0, 5), *signal("fast", -1.0, 15, 19)]

    def fail(pipeline: Pipeline, results: list[Decision | Event]) -> None:
        """The head is down all through the absence: that must not keep the old label either."""
        if head_fails and any(result.timestamp_ns == to_ns(7) for result in results):
            pipeline.head_part._retry_ns = to_ns(1000)
        if head_fails and any(result.timestamp_ns == to_ns(16) for result in results):
            pipeline.head_part.reload()(to_ns(16))

    decisions = Played(slow_to_change, items, after_step=fail).decisions
    labels = [d.outputs["side"].label for d in decisions]
    assert labels == ["left"] * 7 + [None] * 9 + ["right"] * 2
    problem = "part_failed" if head_fails else "nothing_present"
    assert [d.problem for d in decisions] == [""] * 7 + [problem] * 9 + [""] * 2
    first = decisions[16].outputs["side"]
    np.testing.assert_array_equal(first.mean, first.probabilities)


def test_a_head_that_is_not_finite_gives_a_decision_without_label(tmp_path: Path) -> None:
    channels = tuple(Channel(name=f"c{i}", unit="1", minimum=-3e38, maximum=3e38) for i in range(2))
    fast = modality("fast", window_s=0.1, channels=channels)
    slow = modality("slow", channels=channels)
    bundle = write_tiny_bundle(tmp_path / "huge.fusedge", modalities=(fast, slow), events=())
    items = by_arrival(
        signal("fast", lambda t: 1.6e38 if round(t, 1) == 3.5 else 0.4, 0, 8),
        signal("slow", lambda t: -1.6e38 if t == 3 else 0.5, 0, 8),
    )
    played = Played(bundle, items)
    # Each embedding is finite, and so is each vote; their sum at 4 s is not.
    labels = [d.outputs["side"].label for d in played.decisions]
    assert [label is None for label in labels] == [t == 4 for t in range(1, 9)]
    assert played.pipeline.statistics()["decisions_not_finite"] == 1
    assert played.decisions[3].modalities["fast"].present
    assert played.decisions[3].outputs["side"].momentary_label is None
    json.dumps(played.json(), allow_nan=False)


@pytest.mark.parametrize("cost_s", [0.3, 0.5, 1.7, 30])
def test_overload_skips_ticks_and_counts_them_and_delay_stays_bounded(
    bundle: Bundle, cost_s: float
) -> None:
    items = by_arrival(signal("fast", 0.4, 0, 120), signal("slow", 0.5, 0, 120))
    played = Played(bundle, items, Machine(cost_s))
    pipeline, decisions = played.pipeline, played.decisions
    statistics = pipeline.statistics()
    assert pipeline.next_tick_ns is not None
    assert statistics["decisions"] == len(decisions)
    assert len(decisions) + statistics["ticks_skipped"] == pipeline.next_tick_ns // to_ns(1) - 1
    # A decision is begun before the next one is due.
    assert max(d.latency_ns for d in decisions) < to_ns(1 + cost_s)
    times_ns = [d.timestamp_ns for d in decisions]
    assert times_ns == sorted(set(times_ns))
    # No tick is missed for longer than two runs take: one that was under way, and one decision.
    assert max(b - a for a, b in itertools.pairwise(times_ns)) <= to_ns(2 * cost_s + 2)
    dropped = [account["dropped"].get("overload", 0) for account in statistics["ledger"].values()]
    assert sum(dropped) > 0 and statistics["ledger_balanced"]
    if cost_s < 1:  # not so slow that what comes back is too old
        assert all(
            any(share.present for share in decision.modalities.values())
            for decision in decisions[3:]
        )


def test_the_age_stays_within_a_period_and_the_runs_at_three_times_the_load(tmp_path: Path) -> None:
    """Asked: a window every 0.1 s, a run that takes 0.3 s; the newest first."""
    fast = modality("fast", window_s=0.1, hop_s=0.1, lateness_s=0, max_age_s=5)
    bundle = write_tiny_bundle(
        tmp_path / "fast.fusedge", modalities=(fast,), events=(), decision_rate_hz=10
    )
    machine = Machine(0.3)
    played = Played(bundle, signal("fast", 0.4, 0, 120), machine)
    ages = [d.modalities["fast"].age_s for d in played.decisions[10:]]
    # On one thread, the decision itself is as slow as the encoder, and they take turns.
    assert max(age for age in ages if age is not None) <= 0.1 + 2 * 0.3 and None not in ages
    half = len(ages) // 2
    assert np.mean(ages[:half]) == pytest.approx(np.mean(ages[half:]), abs=0.02)


def test_without_overload_no_tick_is_skipped(bundle: Bundle) -> None:
    items = by_arrival(signal("fast", 0.4, 0, 30), signal("slow", 0.5, 0, 30))
    played = Played(bundle, items, Machine(0.05))
    assert played.pipeline.statistics()["ticks_skipped"] == 0
    assert [d.timestamp_ns for d in played.decisions] == [to_ns(t) for t in range(1, 31)]
    assert max(d.latency_ns for d in played.decisions) <= to_ns(0.15)


def test_a_short_delay_is_made_up_for_without_a_loss(bundle: Bundle) -> None:
    items = by_arrival(signal("fast", 0.4, 0, 30), signal("slow", 0.5, 0, 30))
    runs = []
    for stall_s in (0.0, 1.8):
        machine = Machine()

        def stall(pipeline: Pipeline, results: list[Decision | Event]) -> None:
            if any(result.timestamp_ns == to_ns(10) for result in results):
                machine.now_ns += to_ns(stall_s)  # noqa: B023

        runs.append(Played(bundle, items, machine, stall).pipeline)
    assert [p.statistics()["ticks_skipped"] for p in runs] == [0, 0]
    assert runs[0].statistics()["modalities"] == runs[1].statistics()["modalities"]
    assert runs[0].ledger.as_dict() == runs[1].ledger.as_dict()


def test_what_takes_too_long_to_make_up_for_is_given_up(bundle: Bundle) -> None:
    items = by_arrival(signal("fast", 0.4, 0, 30), signal("slow", 0.5, 0, 30))
    machine = Machine(0.2)

    def stall(pipeline: Pipeline, results: list[Decision | Event]) -> None:
        if any(result.timestamp_ns == to_ns(10) for result in results):
            machine.now_ns += to_ns(1.8)

    pipeline = Played(bundle, items, machine, stall).pipeline
    runs = pipeline.lanes["fast"].part.account
    assert runs.dropped["overload"] == 4 and runs.unaccounted == 0
    assert pipeline.lanes["fast"].stream.account.dropped == {"overload": 20}


def drive(seed: int, shuffled: bool) -> list[Sample]:
    """A noisy drive with gaps and bumps; the lateness differs, the stamps do not."""
    noise = random.Random(seed)
    values = {round(t / 10, 1): noise.gauss(0, 0.5) + (t % 90 < 5) * 60 for t in range(601)}

    def fast(time_s: float) -> float:
        return values[round(time_s, 1)]

    lateness = random.Random(seed + 1)

    def delay() -> float:
        # The first samples open the session, so that the ticks begin alike.
        return lateness.uniform(0, 0.1) if shuffled else 0.0

    return by_arrival(
        signal("fast", fast, 0, 0.1),
        signal("fast", fast, 0.1, 20, delay_s=delay),
        signal("fast", fast, 26, 60, delay_s=delay),
        signal("slow", lambda t: values[t], 0, 60, delay_s=delay),
    )


def test_two_runs_are_identical(bundle: Bundle) -> None:
    runs = [Played(bundle, drive(1, shuffled=False)) for _ in range(2)]
    assert json.dumps(runs[0].json()) == json.dumps(runs[1].json())
    assert runs[0].pipeline.statistics() == runs[1].pipeline.statistics()
    assert len(runs[0].decisions) > 50 and len(runs[0].events) > 5


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_arrival_inside_the_lateness_changes_nothing(bundle: Bundle, seed: int) -> None:
    in_order, shuffled = drive(seed, shuffled=False), drive(seed, shuffled=True)
    assert [s[:2] for s in in_order] != [s[:2] for s in shuffled]
    end = Sample("fast", to_ns(61), to_ns(61), np.zeros(2, np.float32))
    runs = [Played(bundle, [*items, end]) for items in (in_order, shuffled)]
    assert json.dumps(runs[0].json()) == json.dumps(runs[1].json())
    assert runs[0].pipeline.ledger.as_dict() == runs[1].pipeline.ledger.as_dict()


def test_rejections_and_unknown_modalities_are_in_the_ledger(bundle: Bundle) -> None:
    stranger = Sample("lidar", to_ns(1), to_ns(1), np.zeros(2, np.float32))
    items = [
        Rejection("fast", to_ns(0.5), "no_fix", "line 3"),
        Rejection("fast", to_ns(0.6), "no_fix", "line 4"),
        Rejection("radar", to_ns(0.7), "torn", "line 5"),
        stranger,
        stranger,
    ]
    ledger = Played(bundle, items).pipeline.ledger
    assert ledger.balanced
    assert ledger.as_dict() == {
        "fast": {"received": 2, "used": 0, "dropped": {"no_fix": 2}, "in_flight": 0},
        "slow": {"received": 0, "used": 0, "dropped": {}, "in_flight": 0},
        "radar": {"received": 1, "used": 0, "dropped": {"torn": 1}, "in_flight": 0},
        "lidar": {"received": 2, "used": 0, "dropped": {"not_in_bundle": 2}, "in_flight": 0},
    }


def test_smoothing_and_hysteresis_of_the_manifest_reach_the_decision(tmp_path: Path) -> None:
    plain = write_tiny_bundle(tmp_path / "plain.fusedge")
    output = plain.manifest.outputs[0].model_copy(
        update={"smoothing_s": 3.0, "hysteresis": 0.1, "temperature": 2.0}
    )
    smooth = write_tiny_bundle(tmp_path / "smooth.fusedge", outputs=(output,))
    items = signal("fast", lambda t: 1.0 if t <= 10 else -1.0, 0, 30)
    decisions = Played(smooth, items).decisions
    steady = [d.outputs["side"].label for d in decisions]
    momentary = [d.outputs["side"].momentary_label for d in decisions]
    assert steady[0] == momentary[0] == "left" and steady[-1] == momentary[-1] == "right"
    assert steady.index("right") >= momentary.index("right") + 2
    probabilities = decisions[5].outputs["side"].probabilities
    assert probabilities is not None
    logits = np.float32([[2 * 1.0 + BIAS[0], -2 * 1.0 + BIAS[1]]])
    np.testing.assert_allclose(probabilities, softmax(logits, 2.0)[0], rtol=1e-5)


def test_labels_are_counted(bundle: Bundle) -> None:
    played = Played(bundle, signal("fast", lambda t: 1.0 if t <= 10 else -1.0, 0, 30))
    counts = played.pipeline.statistics()["labels"]["side"]
    assert len(played.decisions) == 29  # at the end of input the tick at 30 s is not due yet
    # The window that ends at 10.5 s is the first of the other side; the tick at 11 s sees it.
    assert counts == {"left": 10, "right": 19}


def test_a_what_if_that_is_not_finite_takes_nothing_from_the_decision(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.array([[2, 0], [0, 2], [np.nan, 0]], np.float32)
    monkeypatch.setattr(FusionHead, "take", lambda self, outputs: ({"logits": rows}, True))
    decision = Played(bundle, by_arrival(signal("fast", 0.4, 0, 3))).decisions[-1]
    side = decision.outputs["side"]
    assert side.label == "left"
    assert (side.contributions["fast"] or 0) > 0.5
    assert side.contributions["slow"] is None
    json.dumps(decision.as_dict(), allow_nan=False)
