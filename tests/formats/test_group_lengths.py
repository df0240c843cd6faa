"""Which lengths groups take where the one asked for does not divide K."""

import pytest

from numbacalib.formats.group_lengths import group_lengths

SMOLLM2 = {"q_proj": 576, "down_proj": 1536}


@pytest.mark.parametrize(
    ("channels", "asked", "uniform", "expected"),
    [
        (SMOLLM2, 128, True, [96, 96]),
        (SMOLLM2, 128, False, [96, 128]),
        (SMOLLM2, 64, True, [64, 64]),
        ({"a": 96, "b": 192}, 64, True, [48, 48]),
        ({"a": 96, "b": 192}, 64, False, [48, 64]),
        ({"a": 96, "b": 80}, 128, False, [96, 80]),
        ({"a": 96, "b": 80}, 128, True, [16, 16]),
        ({"a": 64, "b": 96}, 8, True, [8, 8]),  # as asked, however short
        ({"a": 8, "b": 24}, 8, False, [8, 8]),
        ({"a": 96, "b": 82}, 64, False, [48, 41]),
        ({"a": 576, "b": 7}, None, True, [None, None]),
        ({"a": 896, "b": 4864}, 1 << 31, False, [896, 4864]),
    ],
)
def test_the_longest_divisor_up_to_the_one_asked_for(channels, asked, uniform, expected):
    assert list(group_lengths(channels, asked, uniform=uniform).values()) == expected


@pytest.mark.parametrize(
    ("channels", "asked", "uniform", "message"),
    [
        ({"a": 262}, 128, False, "128 does not divide K = 262, and 2, .* use 131 or none"),
        ({"a": 64}, 12, False, "12 does not divide K = 64, and 8, .* under 16: use 16 or none"),
        (
            {"a": 127},
            64,
            True,
            r"64 does not divide K = 127, and 1, .* use 127 or none \(one scale",
        ),
        (
            {"a": 96, "b": 88},
            64,
            True,
            "divide K = 88, 96, and 8, .*: use none .* or the symmetric grid",
        ),
    ],
)
def test_lengths_that_nobody_would_want_are_refused(channels, asked, uniform, message):
    with pytest.raises(ValueError, match=f"group_size: .*{message}"):
        group_lengths(channels, asked, uniform=uniform)


@pytest.mark.parametrize(
    ("whole_rows", "use"), [(True, r"none \(one scale a row\)$"), (False, "another format$")]
)
def test_what_a_format_with_few_lengths_may_take_instead_is_said(whole_rows, use):
    with pytest.raises(ValueError, match=f"no shorter one of 32, 64 does: use {use}"):
        group_lengths({"a": 80}, 64, uniform=True, allowed=(32, 64), whole_rows=whole_rows)
