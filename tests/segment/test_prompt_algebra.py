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
    ],
)
def test_what_is_read(text, read):
    assert shown(parse(text)) == read


@pytest.mark.parametrize(
    "text",
    ["", " ", "a -", "- a", "a + & b", "(a", "a)", "a + (b - c", "!", '""', 'a "b', "a (b)", "()"],
)
def test_what_cannot_be_read_says_so(text):
    with pytest.raises(InputError, match="cannot be read: .*Operators are"):
        parse(text)


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
