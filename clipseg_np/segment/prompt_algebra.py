"""Prompts combined: "a cat - a collar", "(a cat + a dog) & !a black thing".

| written | means | of probabilities |
|---|---|---|
| `a + b` | what is one or the other | the larger |
| `a & b` | what is both | the smaller |
| `a - b` | what is a and not b | the smaller of a and 1 - b |
| `!a` | what is not a | 1 - a |

Above 0.5 these are the set operations on the masks. `!` binds most, then `&`, then `+` and `-` from left to right;
parentheses group. An operator between two prompts stands between spaces, so that "a half-open door" is one prompt; what is
in double quotes is one prompt whatever it holds.
"""

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..nn.ops import Array

# Quoted text; a sign that stands for itself; or a prompt: all up to the next of them.
MOST_SIGNS = 100  # in one expression: it is read and computed by recursion
SHOWN = 80  # characters of a prompt in an error's message
_TOKEN = re.compile(r'\s*(?:"([^"]*)"|([()!])|(?<=\s)([-+&])(?=\s)|((?:(?!\s[-+&]\s)[^()!"])+))')


@dataclass(frozen=True)
class Expression:
    """A prompt, or an operator and what it joins."""

    operator: str  # "" for a prompt, or one of + & - !
    prompt: Hashable = ""  # a text; or what else the maps are called by
    parts: tuple["Expression", ...] = ()

    @property
    def prompts(self) -> tuple[Hashable, ...]:
        """What to look for, each once, in the order in which they are named."""
        found = () if self.operator else (self.prompt,)
        for part in self.parts:
            found += part.prompts
        return tuple(dict.fromkeys(found))

    def value(self, probabilities: Mapping[Hashable, Array]) -> Array:
        """The map of the whole from the maps of its prompts, 0 to 1."""
        if not self.operator:
            return probabilities[self.prompt]
        values = [part.value(probabilities) for part in self.parts]
        if self.operator == "!":
            return 1 - values[0]
        first, second = values
        if self.operator == "+":
            return np.maximum(first, second)
        return np.minimum(first, 1 - second if self.operator == "-" else second)


def parse(text: str) -> Expression:
    """Read an expression; a text without operators is a prompt. Raises InputError where it cannot be read."""
    return _Parser(text).whole()


class _Parser:
    def __init__(self, text: str):
        self.text = text
        self.tokens: list[tuple[str, str]] = []  # ("sign", "+") or ("prompt", "a cat")
        padded, place = f" {text.strip()} ", 0
        while padded[place:].strip():
            match = _TOKEN.match(padded, place)
            if match is None:
                raise self.error(
                    f"what begins at {padded[place : place + 12].strip()!r} is no prompt"
                )
            quoted, sign, between, prompt = match.groups()
            if sign or between:
                self.tokens.append(("sign", sign or between))
            elif prompt is None or prompt.strip():
                self.tokens.append(("prompt", (quoted if prompt is None else prompt).strip()))
            place = match.end()
        if sum(kind == "sign" for kind, _ in self.tokens) > MOST_SIGNS:
            raise self.error(f"it holds more than {MOST_SIGNS} operators and parentheses")

    def error(self, what: str) -> InputError:
        shown = self.text if len(self.text) <= SHOWN else self.text[:SHOWN] + "..."
        return InputError(
            f"the prompt {shown!r} cannot be read: {what}. Operators are +, -, & (between spaces), ! and "
            f"parentheses; put a prompt that holds such signs in double quotes, as in '\"rock & roll\"'"
        )

    def next_is(self, *signs: str) -> bool:
        return bool(self.tokens) and self.tokens[0][0] == "sign" and self.tokens[0][1] in signs

    def whole(self) -> Expression:
        found = self.sum()
        if self.tokens:
            raise self.error(f"{self.tokens[0][1]!r} is not expected there")
        return found

    def sum(self) -> Expression:
        found = self.product()
        while self.next_is("+", "-"):
            _, operator = self.tokens.pop(0)
            found = Expression(operator, parts=(found, self.product()))
        return found

    def product(self) -> Expression:
        found = self.single()
        while self.next_is("&"):
            self.tokens.pop(0)
            found = Expression("&", parts=(found, self.single()))
        return found

    def single(self) -> Expression:
        if self.next_is("!"):
            self.tokens.pop(0)
            return Expression("!", parts=(self.single(),))
        if self.next_is("("):
            self.tokens.pop(0)
            found = self.sum()
            if not self.next_is(")"):
                raise self.error("a parenthesis is not closed")
            self.tokens.pop(0)
            return found
        if not self.tokens or self.tokens[0][0] == "sign":
            after = f"instead of {self.tokens[0][1]!r}" if self.tokens else "at the end"
            raise self.error(f"a prompt is expected {after}")
        prompt = self.tokens.pop(0)[1]
        if not prompt:
            raise self.error("a prompt is empty")
        return Expression("", prompt)
