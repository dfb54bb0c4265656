"""Prompts combined: "a cat - a collar", "(a cat + a dog) & !a black thing".

| written | means | probability |
|---|---|---|
| `a + b` | a or b | the larger |
| `a & b` | a and b | the smaller |
| `a - b` | a and not b | the smaller of a and 1 - b |
| `!a` | not a | 1 - a |

Above 0.5 these are the set operations on the masks. `!` binds most, then `&`, then `+` and `-` from
left to right; parentheses group. An operator between two prompts stands between spaces, so that "a
half-open door" is one prompt. Text in double quotes is one prompt, whatever it holds; a quote
inside a prompt is part of it, as in '12" ring'. "@heart" is the learned prompt of this name.
"""

import re
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..nn.ops import Array

MAX_SIGNS = 100  # in one expression: parsing and evaluation are recursive
MAX_SHOWN = 80  # characters of a prompt in an error's message

OPERATORS: dict[str, Callable[..., Array]] = {
    "!": lambda a: 1 - a,
    "&": np.minimum,
    "+": np.maximum,
    "-": lambda a, b: np.minimum(a, 1 - b),
}
RANKS = ("+-", "&")  # operators between operands; the last binds most

# Quoted text, up to a quote at which a prompt may end; a sign; or a prompt, up to the next sign.
_TOKEN = re.compile(
    r'\s*(?:"(.*?)"(?=\s*\)|\s*$|\s+[-+&]\s)|([()!]|(?<=\s)[-+&](?=\s))'
    r"|((?:(?!\s[-+&]\s)[^()!])+))",
    re.DOTALL,
)
# Signs in a text that are meant as operators: in combined prompts, and in one text.
_LIKE_OPERATORS = re.compile(
    r"[|,;，、；｜“”„«»]|&&|\s[–—−]\s|\b(AND|OR|NOT)\b"  # other signs, other dashes, words
    r"|\s[-+&](?=\w)|(?<=[^\W\d_]{2})([-+&]\s|[+&](?=[^\W\d_]))"  # a space is missing
)
_OPERATORS_IN_TEXT = re.compile(r'\s[-+&]\s|^\s*[!("]')


@dataclass(frozen=True)
class Expression:
    """An operator, a key of OPERATORS, and its operands; or "" and a prompt: a map's name."""

    operator: str
    prompt: Hashable = ""
    parts: tuple["Expression", ...] = ()

    @property
    def prompts(self) -> tuple[Hashable, ...]:
        """The prompts, each once, in the order in which they first appear."""
        if not self.operator:
            return (self.prompt,)
        return tuple(dict.fromkeys(prompt for part in self.parts for prompt in part.prompts))

    def value(self, probabilities: Mapping[Hashable, Array]) -> Array:
        """The expression's map from its prompts' maps, 0 to 1."""
        if not self.operator:
            return probabilities[self.prompt]
        return OPERATORS[self.operator](*(part.value(probabilities) for part in self.parts))


def parse(text: str, learned: Mapping[str, Hashable] | None = None) -> Expression:
    """Read an expression; a text without operators is a prompt. Raises InputError if it cannot.

    `learned` has the prompts that texts mention by "@name". Warns of a prompt that holds something
    like an operator, unless it is in quotes.
    """
    parser = _Parser(text, learned or {})
    expression = parser.joined()
    if parser.tokens:
        raise parser.error(f"{parser.tokens[0][1]!r} is not expected there")
    return expression


def one_prompt(text: str, name: Hashable) -> Expression:
    """The expression of a text that is one prompt. Warns if `parse` would read or warn of more."""
    if _OPERATORS_IN_TEXT.search(text) or _LIKE_OPERATORS.search(text):
        warnings.warn(
            f"the prompt {_shortened(text)!r} is one text here; Segmenter.combine reads operators "
            f"and quotes, and several prompts are a list",
            stacklevel=2,
        )
    return Expression("", name)


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


class _Parser:
    """A recursive descent parser; each method takes its part off the front of `tokens`."""

    def __init__(self, text: str, learned: Mapping[str, Hashable]):
        self.text = text
        self.learned = learned
        self.tokens: list[tuple[str, Any]] = []  # ("sign", "+") or ("prompt", "a cat")
        padded, start = f" {text.strip()} ", 0
        while padded[start:].strip():
            match = _TOKEN.match(padded, start)
            if match is None:
                raise self.error(f"{padded[start : start + 12].strip()!r} does not begin a prompt")
            quoted, sign, prompt = match.groups()
            if sign:
                self.tokens.append(("sign", sign))
            elif prompt is None or prompt.strip():
                meant = quoted.strip() if prompt is None else self.meant(prompt.strip())
                self.tokens.append(("prompt", meant))
            start = match.end()
        if sum(kind == "sign" for kind, _ in self.tokens) > MAX_SIGNS:
            raise self.error(f"it holds more than {MAX_SIGNS} operators and parentheses")

    def meant(self, prompt: str) -> Hashable:
        """The text, or the learned prompt of an @name. Warns of what may be meant as an operator.

        Raises InputError for an open quote and an unknown @name.
        """
        if prompt in self.learned:
            return self.learned[prompt]
        if prompt.startswith("@"):
            known = ", ".join(self.learned) or "none (--prompt-file; in Python, learned=)"
            raise self.error(f"{_shortened(prompt)!r} is no learned prompt's name; given: {known}")
        if prompt.startswith('"') and prompt.count('"') % 2:
            raise self.error("a quote is not closed")
        if _LIKE_OPERATORS.search(prompt):
            warnings.warn(
                f"the prompt {_shortened(prompt)!r} is read as one text. Operators are +, -, & "
                f"(between spaces) and !; several prompts are given one by one. Double quotes "
                f"say that it is one: '\"{_shortened(prompt)}\"'",
                stacklevel=2,
            )
        return prompt

    def error(self, reason: str) -> InputError:
        return InputError(
            f"the prompt {_shortened(self.text)!r} cannot be read: {reason}. Operators are +, -, & "
            f"(between spaces), ! and parentheses; put a prompt that holds such signs in double "
            f"quotes, as in '\"rock & roll\"'"
        )

    def take(self, signs: str) -> str:
        """The next sign if it is one of these, or ""."""
        if self.tokens and self.tokens[0][0] == "sign" and self.tokens[0][1] in signs:
            return self.tokens.pop(0)[1]
        return ""

    def joined(self, rank: int = 0) -> Expression:
        """Operands joined by operators of this rank, from left to right."""
        if rank == len(RANKS):
            return self.single()
        expression = self.joined(rank + 1)
        while operator := self.take(RANKS[rank]):
            expression = Expression(operator, parts=(expression, self.joined(rank + 1)))
        return expression

    def single(self) -> Expression:
        if self.take("!"):
            return Expression("!", parts=(self.single(),))
        if self.take("("):
            expression = self.joined()
            if not self.take(")"):
                raise self.error("a parenthesis is not closed")
            return expression
        if not self.tokens or self.tokens[0][0] == "sign":
            position = f"instead of {self.tokens[0][1]!r}" if self.tokens else "at the end"
            raise self.error(f"a prompt is expected {position}")
        prompt = self.tokens.pop(0)[1]
        if not prompt:
            raise self.error("a prompt is empty")
        return Expression("", prompt)
