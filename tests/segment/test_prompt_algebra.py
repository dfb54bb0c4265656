"""Prompts combined: what is read, what it means, and what is refused."""

import numpy as np
import pytest

from clipseg_np.errors import InputError
from clipseg_np.segment.prompt_algebra import parse


def shown(expression) -> str:
    """An expression with all its parentheses."""
    if not expression.operator:
        return expression.prompt
    if expression.operator == "!":
        return f"!{shown(expression.parts[0])}"
    return f"({f' {expression.operator} '.join(map(shown, expression.parts))})"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a cat", "a cat"),
        ("  a cat ", "a cat"),
        ("a half-open door", "a half-open door"),
        ("C++ book", "C++ book"),
        ("a cat - a collar", "(a cat - a collar)"),
        ("a + b - c", "((a + b) - c)"),
        ("a - b + c", "((a - b) + c)"),
        ("a + b & c", "(a + (b & c))"),
        ("(a + b) & c", "((a + b) & c)"),
        ("( a + b ) & c", "((a + b) & c)"),
        ("!a", "!a"),
        ("! a & b", "(!a & b)"),
        ("!(a + b)", "!(a + b)"),
        ("!!a", "!!a"),
        ("a & !b", "(a & !b)"),
        ('"rock & roll" - b', "(rock & roll - b)"),
        ('"a (red) thing!"', "a (red) thing!"),
        ("((a))", "a"),
        ("a\t-\tb", "(a - b)"),
        ("ein Tür-Griff & étoile", "(ein Tür-Griff & étoile)"),
        ('12" ring', '12" ring'),
        ('a 12" ring - a 5" star', '(a 12" ring - a 5" star)'),
        ('"12" ring & bell"', '12" ring & bell'),
        ('("12" ring") - "a (b)"', '(12" ring - a (b))'),
        ('"stop" sign', '"stop" sign'),
        ('a "b', 'a "b'),
        ('""12"', '"12'),
        ('"two\nlines"', "two\nlines"),
    ],
)
def test_what_is_read(text, read):
    assert shown(parse(text)) == read


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a -",
        "- a",
        "a + & b",
        "(a",
        "a)",
        "a + (b - c",
        "!",
        '""',
        "a (b)",
        "()",
        '"',
        '"a',
    ]
    + ['"a - b', '"a" b "c'],
)
def test_what_cannot_be_read_says_so(text):
    with pytest.raises(InputError, match="cannot be read: .*Operators are"):
        parse(text)


def test_what_the_advice_says_can_be_done():
    for text in ('12" ring (big)', 'rock & "roll"', '"12', "stop!", "a\n(b)"):
        assert shown(parse(f'"{text}"')) == text


@pytest.mark.parametrize(
    "text",
    ["a cat -a collar", "a cat- a collar", "a cat,a dog", "a|b", "a cat AND a dog", "“a cat”"]
    + ["NOT a cat", "a cat+a dog", "a && b", "a cat – a collar", "猫，犬", "a; b", "a - b,c"],
)
def test_what_looks_like_operators_is_warned_of_unless_quoted(text, recwarn):
    parse(f'"{text}"')
    assert not recwarn
    with pytest.warns(UserWarning, match="is read as one text. Operators are"):
        parse(text)


@pytest.mark.parametrize(
    "text",
    ["a half-open door", "C++ book", "an A+ grade", "R&B", "18+ sign", "a red circle", "a - b & !c"]
    + ["sand and sea", 'a 12" ring', "über-groß"],
)
def test_what_is_plain_is_not_warned_of(text, recwarn):
    parse(text)
    assert not recwarn


def test_one_text_that_combine_would_read_otherwise_is_warned_of(segmenter, image, recwarn):
    for text in ("a half-open door", "R&B", "a cat (big)", '12" ring'):
        segmenter(image, text)
    assert not recwarn
    like_several = ["a cat, a dog", "a cat -a collar", "a|b", "a AND b"]
    for text in ("a red thing - a star", "a & b", "!a", '"a star"', "(a star)", *like_several):
        with pytest.warns(UserWarning, match="one text here; Segmenter.combine reads operators"):
            segmenter(image, ["red", text])


def test_the_prompts_are_each_named_once_in_order():
    assert parse("b - (a + b) & !c").prompts == ("b", "a", "c")


def test_above_one_half_they_are_set_operations():
    rng = np.random.default_rng(0)
    maps = {name: rng.random((9, 7)).astype(np.float32) for name in "abc"}
    a, b, c = (maps[name] > 0.5 for name in "abc")
    for text, expected in {
        "a + b": a | b,
        "a & b": a & b,
        "a - b": a & ~b,
        "!a": ~a,
        "(a + b) & !c - b": ((a | b) & ~c) & ~b,
    }.items():
        value = parse(text).value(maps)
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value > 0.5, expected, text)
