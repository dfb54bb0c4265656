"""The language of the generated scenes: the meaning of phrases, their parsing and generation.

A phrase names up to four attributes, as "the large striped red circle", and leaves the others open.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SURFACES = ("solid", "striped", "dotted")
SIZES = ("small", "large")
ATTRIBUTES = {"size": SIZES, "surface": SURFACES, "color": COLORS, "shape": SHAPES}

# Color-shape pairs that no training scene holds and no training phrase names: the zero-shot test.
HELD_OUT = (
    ("green", "triangle"),
    ("purple", "star"),
    ("yellow", "ring"),
    ("red", "cross"),
    ("blue", "circle"),
)

NOUNS = ("shape", "thing", "object")  # nouns that fit every shape
SYNONYMS = {"big": "large", "little": "small"}
DETERMINERS = ("a", "the", "any", "every", "all", "all the", "each")
WRAPPERS = ("a photo of {}", "an image of {}", "an image of {}", "{}.", "a photo of {}.")


def plural(noun: str) -> str:
    """The plural of a noun of this language."""
    return noun + ("es" if noun.endswith("ss") else "s")


_WORDS = {word: (name, word) for name, words in ATTRIBUTES.items() for word in words}
_WORDS |= {plural(word): ("shape", word) for word in SHAPES}
_WORDS |= {word: ("size", meaning) for word, meaning in SYNONYMS.items()}


@dataclass(frozen=True)
class Phrase:
    """The attributes that a phrase names. None leaves an attribute open."""

    size: str | None = None
    surface: str | None = None
    color: str | None = None
    shape: str | None = None

    @classmethod
    def parse(cls, text: str) -> Phrase:
        """Read a phrase; words that name no attribute ("a", "photo", "thing") are passed over.

        Raises ValueError where the text names one attribute twice, as in "a red blue star".
        """
        found = {}
        for word in re.findall("[a-z]+", text.lower()):
            if word in _WORDS:
                name, meaning = _WORDS[word]
                if found.setdefault(name, meaning) != meaning:
                    raise ValueError(f"{text!r} names two of {name}: {found[name]} and {meaning}")
        return cls(**found)

    def fits(self, thing) -> bool:
        """Whether `thing` (any object with the four attributes) has all that the phrase names."""
        return all(
            wanted is None or wanted == getattr(thing, name) for name, wanted in vars(self).items()
        )

    @property
    def named(self) -> tuple[str, ...]:
        """The names of the attributes that the phrase settles."""
        return tuple(name for name, value in vars(self).items() if value is not None)

    @property
    def held_out(self) -> bool:
        """Whether the phrase names a color-shape pair that training never sees."""
        return (self.color, self.shape) in HELD_OUT

    def words(self, rng) -> str:
        """A wording of the phrase, drawn from `rng`."""
        adjectives = [word for word in (self.size, self.surface, self.color) if word]
        if len(adjectives) > 1 and rng.random() < 0.15:
            adjectives = [adjectives[i] for i in rng.permutation(len(adjectives))]
        if rng.random() < 0.1:
            back = {meaning: word for word, meaning in SYNONYMS.items()}
            adjectives = [back.get(word, word) for word in adjectives]
        noun = self.shape or NOUNS[rng.integers(len(NOUNS))]
        if not self.shape and adjectives and rng.random() < 0.25:
            return " ".join(adjectives)  # "red", "large striped"
        draw = rng.random()
        if draw < 0.5:
            determiner, many = "a", False
        elif draw < 0.7:
            determiner, many = "", rng.random() < 0.4
        elif draw < 0.85:
            determiner, many = "the", rng.random() < 0.2
        else:
            determiner = DETERMINERS[2 + rng.integers(len(DETERMINERS) - 2)]
            many = determiner.startswith("all")
        words = [*adjectives, plural(noun) if many else noun]
        if determiner == "a" and words[0][0] in "aeiou":
            determiner = "an"
        text = " ".join([determiner, *words]).strip()
        if rng.random() < 0.12:
            text = WRAPPERS[rng.integers(len(WRAPPERS))].format(text)
        return text


def phrase_of(thing, rng) -> Phrase:
    """A phrase that fits `thing`, of some of its attributes: most often of color and shape."""
    while True:
        keep = {"size": 0.3, "surface": 0.35, "color": 0.6, "shape": 0.65}
        phrase = Phrase(
            **{name: getattr(thing, name) for name, p in keep.items() if rng.random() < p}
        )
        if phrase.named or rng.random() < 0.1:  # "a shape" now and then
            return phrase


def absent_phrase(things, rng, held_out: bool = False) -> Phrase:
    """A phrase that fits none of `things`, most often one that misses by a single attribute."""
    for _ in range(50):
        if rng.random() < 0.75:
            phrase = phrase_of(things[rng.integers(len(things))], rng)
            if not phrase.named:
                continue
            name = phrase.named[rng.integers(len(phrase.named))]
            choices = ATTRIBUTES[name]
            phrase = replace(phrase, **{name: choices[rng.integers(len(choices))]})
        else:
            keep = {"size": 0.2, "surface": 0.25, "color": 0.75, "shape": 0.75}
            phrase = Phrase(
                **{
                    name: ATTRIBUTES[name][rng.integers(len(ATTRIBUTES[name]))]
                    for name, p in keep.items()
                    if rng.random() < p
                }
            )
        if phrase.held_out and not held_out:
            continue
        if not any(phrase.fits(thing) for thing in things):
            return phrase
    return Phrase("small", "dotted", "orange", "star")


def vocabulary_words() -> list[str]:
    """Every word that a phrase can hold, and the full stop: what the tokenizer must know."""
    words = set(_WORDS) | set(NOUNS) | {plural(noun) for noun in NOUNS} | {"an"}
    words |= set(" ".join(DETERMINERS).split())
    words |= set(re.findall("[a-z]+", " ".join(WRAPPERS)))
    return sorted(words)
