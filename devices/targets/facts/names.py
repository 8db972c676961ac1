"""The names nearest to one that no table has: what a user who said it may have meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping

# Makers' words before a name, which the tables leave out.
_MAKERS = frozenset(("nvidia", "geforce", "tesla"))
# A laptop's GPU is another chip than the card of its name, and in no table.
_OTHER_CHIPS = frozenset(("laptop", "mobile"))
_FEW = 5


def nearest_names(said: str, known: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The best first. `known` has names with what else they are called; none where nothing is near.

    Names that begin with what was said, then those that have it inside or have all its words; else the same
    with fewer words, from the end; else a likely typing mistake, never in another family.
    """
    words = [word for word in re.findall(r"[a-z0-9]+", said.lower()) if word not in _MAKERS]
    if not words or _OTHER_CHIPS.intersection(words):
        return []
    if found := _with(words, known):
        return found
    for count in range(len(words) - 1, 0, -1):
        found = _with(words[:count], known)
        same = [name for name in found if _words(name) == words[:count]]
        if 0 < len(found) <= _FEW or same:
            return same or found
    return _mistyped("".join(words), known)


def _with(words: list[str], known: Mapping[str, tuple[str, ...]]) -> list[str]:
    plain = "".join(words)
    ranked = []
    for name, others in known.items():
        each = [_words(title) for title in (name, *others)]
        if any("".join(title) == plain for title in each):
            return [name]
        if any("".join(title).startswith(plain) for title in each):
            ranked.append((0, name))
        elif any(_within(words, plain, title) for title in each):
            ranked.append((1, name))
    return [name for _, name in sorted(ranked, key=lambda pair: pair[0])]


def _within(words: list[str], plain: str, title: list[str]) -> bool:
    inside = ("".join(title[start:]).startswith(plain) for start in range(1, len(title)))
    return set(words) <= set(title) or any(inside)


def _mistyped(plain: str, known: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The nearest of those with the same numbers, else with likely mistakes in them."""
    family = {
        squashed: name
        for name in known
        if _alike(_family(plain), _family(squashed := "".join(_words(name))))
    }
    for same in (str.__eq__, _slip):
        like = [name for name in family if _has_numbers(plain, name, same)]
        if found := difflib.get_close_matches(plain, like, n=1, cutoff=0.6):
            return [family[found[0]]]
    return []


def _has_numbers(said: str, name: str, same: Callable[[str, str], bool]) -> bool:
    numbers = re.findall(r"\d+", name)
    return all(any(same(one, each) for each in numbers) for one in re.findall(r"\d+", said))


def _slip(one: str, other: str) -> bool:
    """Whether one digit is another or they are in another order; the first is the generation, and stays."""
    off = sum(mine != theirs for mine, theirs in zip(one, other, strict=False))
    slip = off <= 1 or sorted(one) == sorted(other)
    return len(one) == len(other) and one[0] == other[0] and slip


def _alike(one: str, other: str) -> bool:
    return difflib.SequenceMatcher(None, one, other).ratio() > 0.8


def _family(plain: str) -> str:
    return re.split(r"\d", plain)[0]


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())
