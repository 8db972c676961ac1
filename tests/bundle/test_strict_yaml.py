"""YAML of settings: what is taken, and that nothing else than a FusedgeError comes of any text."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusedge.bundle.errors import FusedgeError
from fusedge.bundle.strict_yaml import MAX_BYTES, MAX_DEPTH, load_yaml


def test_settings_are_tables_lists_and_values() -> None:
    text = b"a: 1\nb: [x, 'y', 1.5, no]\nc: {d: 2018-04-08, e: }\n"
    day = datetime.date(2018, 4, 8)
    assert load_yaml(text, "f") == {"a": 1, "b": ["x", "y", 1.5, False], "c": {"d": day, "e": None}}
    assert load_yaml(text, "f", text_only=True) == {
        "a": "1",
        "b": ["x", "y", "1.5", "no"],
        "c": {"d": "2018-04-08", "e": ""},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *[(f"a: !!{tag}", "tags .* are not taken") for tag in (
            "bool foo", "int ''", "timestamp foo", "float ''", "binary x", "set {1}", "omap [1]",
            "python/object/apply:os.system [ls]", "str 1", "map {}",
        )],
        ("a: ! x", "tags"),
        ("a: !own [1]", "tags"),
        ("a: &x 1\nb: *x", "aliases"),
        ("a: 1\na: 2", "'a' is given twice"),
        ("[" * (MAX_DEPTH + 1), "levels deep"),
        ("a: [", "no YAML"),
        ("#" * (MAX_BYTES + 1), f"more than {MAX_BYTES} bytes"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("text_only", [False, True])
def test_what_is_not_taken_is_refused_in_a_line(text: str, message: str, text_only: bool) -> None:
    with pytest.raises(FusedgeError, match=message) as error:
        load_yaml(text.encode(), "settings.yaml", text_only=text_only)
    assert error.value.where == "settings.yaml" and "\n" not in error.value.line()


_PIECE = st.sampled_from(
    [
        *["a", ": ", "- ", "\n", "  ", "[", "]", "{", "}", ", ", "? ", "&x ", "*x", "!", "!!int "],
        *["!!bool ", "''", '"', "|", ">", "#", "%YAML 1.2\n", "---\n", "...\n", "<<", "=", "."],
        *["1", "0x", "0b", "0o9", "1:2", "+_", "1e3", ".inf", "2018-99-99", "2018-01-01 25:00:00"],
        *["~", "no", "\0", "\t", "\ufeff", "é"],
    ]
)


@given(
    st.lists(_PIECE, max_size=12).map("".join).map(str.encode) | st.binary(max_size=40),
    st.booleans(),
)
def test_any_text_is_read_or_refused_in_a_line(text: bytes, text_only: bool) -> None:
    try:
        load_yaml(text, "f", text_only=text_only)
    except FusedgeError as error:
        assert "\n" not in error.line()
