"""Expressions that name layers: as Python's ``re`` matches them, but in bounded time."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numbacalib.formats.packed_schemes import PackedScheme, PackedSchemes
from numbacalib.formats.target_pattern import TargetPattern

NAMES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.10.self_attn.o_proj",
    "model.layers.11.mlp.down_proj",
    "lm_head",
    "",
]


@pytest.mark.parametrize(
    "pattern",
    [
        r".*self_attn.q_proj$",
        r".*\.layers\.\d+\.mlp\.(gate|up|down)_proj$",
        r"model\.layers\.(0|1[0-9])\..*",
        r"^model\.layers\.[^.]*\.(?:self_attn|mlp)\.\w+$",
        r".*lm_head",
        r".*?[qk]_proj",
        r"(model(\.layers)?)+\.1\d?",
        r"a|model",
        r"",
    ],
)
def test_what_recipes_write_matches_as_in_python(pattern: str) -> None:
    for name in NAMES:
        assert TargetPattern(pattern).matches(name) == bool(re.match(pattern, name)), name


PARTS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\w", "^", "$"])
PATTERNS = st.recursive(
    PARTS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?"])).map(lambda t: f"(?:{t[0]}){t[1]}"),
        st.tuples(inner, inner).map("|".join).map(lambda text: f"({text})"),
        st.lists(inner, max_size=3).map("".join),
    ),
    max_leaves=6,
)


@given(PATTERNS, st.text("ab", max_size=6))
def test_any_expression_matches_as_in_python(pattern: str, name: str) -> None:
    try:
        ours = TargetPattern(pattern)
    except ValueError:
        assert "(" * 5 in re.sub(r"[^(]", "", pattern)  # groups too deep
        return
    assert ours.matches(name) == bool(re.match(pattern, name))


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|a)*$", "(.*)*x", "(a|aa)+$", "(((a*)*)*)*x", "a?" * 300 + "a" * 300, ".*" * 400],
)
def test_expressions_that_backtrack_take_no_time(pattern: str) -> None:
    start = time.perf_counter()
    assert TargetPattern(pattern).matches("a" * 200 + "!") == (pattern == ".*" * 400)
    assert time.perf_counter() - start < 2


OTHERS = ["(", ")", "a)", "*", "a**", "(?!lm_head)", "(?P<x>a)", r"(a)\1", "a{3}", "[", "[]"]
OTHERS += ["[z-a]", r"\b", "\\", "a" * 1001, "(" * 5 + ")" * 5, "(" * 900 + ")" * 900]


@pytest.mark.parametrize("pattern", OTHERS)
def test_what_is_not_taken_says_so(pattern: str) -> None:
    with pytest.raises(ValueError, match="expected letters, '.', .* in an expression of at most"):
        TargetPattern(pattern)


def test_expressions_are_bounded_in_number() -> None:
    scheme = PackedScheme(4, True, 32)
    with pytest.raises(ValueError, match="expected at most 100 expressions, got 101"):
        PackedSchemes([([f"re:{number}" for number in range(101)], scheme)])
