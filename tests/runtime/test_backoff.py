"""When what failed is tried again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.window import to_ns
from fusedge.runtime.backoff import FIRST_S, FORGIVEN_S, JITTER, LONGEST_S, Backoff


def waits_s(backoff: Backoff, count: int, now_ns: int = 0) -> list[float]:
    """How long each of `count` failures in a row waits."""
    waits = []
    for _ in range(count):
        retry_ns = backoff.retry_ns(now_ns)
        waits.append((retry_ns - now_ns) / 1e9)
        now_ns = retry_ns
    return waits


def within(wait_s: float, failures: int) -> bool:
    """Whether it is what the n-th failure in a row waits."""
    longest_s = min(LONGEST_S, FIRST_S * 2 ** (failures - 1))
    return longest_s * (1 - JITTER) <= wait_s <= longest_s


@given(seed=st.text(max_size=10), now_ns=st.integers(-(2**60), 2**60))
def test_each_failure_waits_twice_as_long_up_to_a_limit(seed: str, now_ns: int) -> None:
    waits = waits_s(Backoff(seed), 40, now_ns)
    assert all(within(wait_s, number) for number, wait_s in enumerate(waits, start=1))
    assert waits[-1] >= 0.8 * LONGEST_S


def test_it_goes_on_for_ever() -> None:
    waits = waits_s(Backoff("camera"), 5000)
    assert all(within(wait_s, 99) for wait_s in waits[10:])


def test_what_failed_together_does_not_come_back_together() -> None:
    first = [waits_s(Backoff(f"camera {n}"), 1)[0] for n in range(100)]
    assert len(set(first)) == 100 and max(first) - min(first) > FIRST_S * JITTER / 2
    assert len({round(w, 6) for w in waits_s(Backoff("camera"), 30)[10:]}) == 20


def test_the_same_name_waits_the_same() -> None:
    assert waits_s(Backoff("camera"), 10) == waits_s(Backoff("camera"), 10)
    assert waits_s(Backoff("camera"), 10) != waits_s(Backoff("other"), 10)


@given(before=st.integers(1, 12), worked_s=st.floats(0, 30))
def test_only_what_has_worked_for_a_while_starts_afresh(before: int, worked_s: float) -> None:
    backoff = Backoff("camera")
    waits_s(backoff, before)
    begun_ns, failed_ns = to_ns(1000), to_ns(1000 + worked_s)
    backoff.started(begun_ns)
    forgiven = failed_ns - begun_ns >= to_ns(FORGIVEN_S)
    (wait_s,) = waits_s(backoff, 1, failed_ns)
    assert within(wait_s, 1 if forgiven else before + 1)
    # It counts once: a second failure without having worked in between is one more in a row.
    (wait_s,) = waits_s(backoff, 1, to_ns(10_000))
    assert within(wait_s, 2 if forgiven else before + 2)


def test_a_success_that_was_cut_short_does_not_help_a_later_one() -> None:
    backoff = Backoff("camera")
    for failures in range(1, 6):
        backoff.started(to_ns(100 * failures))
        (wait_s,) = waits_s(backoff, 1, to_ns(100 * failures + 9.9))
        assert within(wait_s, failures)
