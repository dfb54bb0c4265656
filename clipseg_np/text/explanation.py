"""The result of `CLIPTokenizer.explain`: each step from a text to its ids."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ExplainedPiece:
    """One piece of a text: its byte symbols, the merges in order, the tokens and their ids."""

    piece: str
    symbols: list[str]
    merges: list[tuple[str, str]]
    tokens: list[str]
    ids: list[int]


@dataclass(frozen=True)
class Explanation:
    """Each step from a text to its ids. Printed, it shows them in order."""

    text: str
    normalized: str
    pieces: list[ExplainedPiece]
    tokens: list[str]
    ids: list[int]

    normalised = property(lambda self: self.normalized)  # its name in 0.1

    def __str__(self) -> str:
        lines = [f"text        {self.text!r}", f"normalized  {self.normalized!r}"]
        for part in self.pieces:
            lines.append(f"piece       {part.piece!r} = {' '.join(part.symbols)}")
            lines += [f"  merge     {left} + {right}" for left, right in part.merges]
            lines.append(f"  tokens    {' '.join(part.tokens)}")
        lines.append(f"tokens      {' '.join(self.tokens)}")
        lines.append(f"ids         {' '.join(map(str, self.ids))}")
        return "\n".join(lines)
