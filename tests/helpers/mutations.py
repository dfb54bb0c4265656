"""Ways to damage a file: bytes, JSON, safetensors headers and a tokenizer's merges.

Each takes intact data and a numpy Generator and returns bytes. The same seed makes the same damage.
"""

import copy
import json
import zlib
from typing import Any

import numpy as np


def generator(kind: str, seed: int) -> np.random.Generator:
    """One for each case, so that a case can be replayed alone."""
    return np.random.default_rng([zlib.crc32(kind.encode()), seed])


def pick(rng: np.random.Generator, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


# Bytes

FIELDS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def damaged_bytes(data: bytes, rng: np.random.Generator, other: bytes = b"") -> bytes:
    """One or two of the ways below; `other` is a file of another format."""
    for _ in range(int(rng.integers(1, 3))):
        data = pick(rng, WAYS)(data, rng)
    return pick(rng, (b"", other, other + data)) if rng.random() < 0.05 else data


def place(data: bytes, rng: np.random.Generator) -> int:
    """Half of the time in the first 64 bytes, where headers are."""
    return int(rng.integers(max(1, min(len(data), 64 if rng.random() < 0.5 else len(data)))))


def span(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    start = place(data, rng)
    return start, start + int(rng.integers(1, 65))


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: place(data, rng)]


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(min(len(data), int(2 ** rng.integers(0, 6)))):
        changed[place(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def zeroed(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = span(data, rng)
    return data[:start] + bytes(min(end, len(data)) - start) + data[end:]


def overwritten(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = span(data, rng)
    return data[:start] + rng.bytes(end - start) + data[end:]


def doubled(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = span(data, rng)
    return data[:end] + data[start:]


def removed(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = span(data, rng)
    return data[:start] + data[end:]


def blown_up(data: bytes, rng: np.random.Generator) -> bytes:
    """Two or four bytes (of a length, offset or size) replaced by a critical number."""
    width, order = int(pick(rng, (2, 4))), pick(rng, ("big", "little"))
    field = (pick(rng, FIELDS) % 256**width).to_bytes(width, order)
    start = place(data, rng)
    return data[:start] + field + data[start + width :]


def lengthened(data: bytes, rng: np.random.Generator) -> bytes:
    return data + rng.bytes(int(2 ** rng.integers(0, 12)))


WAYS = (cut, flipped, zeroed, overwritten, doubled, removed, blown_up, blown_up, lengthened)

# JSON

DEEP, LONG, TWICE = "@deep@", "@long@", "@twice@"
VALUES = (
    None, True, False, 0, 1, -1, 3, 0.5, -0.0, 1e-300, 1e300, float("inf"), float("-inf"),
    float("nan"), 2**31, 2**63, 10**9, 10**30, 10**400, int("9" * 4000), "", "x", "red", "\ud800",
    "\0", "a\nb", "x" * 5000, [], {}, [1, 2], [[]], {"a": 1},
    [0] * 300, "../x", "/etc/passwd", "clipseg", DEEP, LONG,
)  # fmt: skip
KEYS = ("self", "", "other", "\ud800", "size", "model_type", "text_config", "content", "x" * 300)


def damaged_json(text: bytes, rng: np.random.Generator) -> bytes:
    """Mostly a change of one or two values or keys; sometimes of the text itself."""
    if rng.random() < 0.2:
        return damaged_text(text, rng)
    value = json.loads(text)
    for _ in range(int(rng.integers(1, 3))):
        value = changed(value, rng)
    return as_text(value)


def as_text(value: Any) -> bytes:
    """With what no value can stand for: lists 10,000 deep, and more digits than Python reads."""
    text = json.dumps(value)
    text = text.replace(json.dumps(DEEP), "[" * 10_000 + "]" * 10_000)
    text = text.replace(json.dumps(LONG), "9" * 5000)
    return text.encode()


def damaged_text(text: bytes, rng: np.random.Generator) -> bytes:
    way = int(rng.integers(7))
    if way == 0:
        return b"\xef\xbb\xbf" + text
    if way == 1:
        return text.decode().encode("utf-16")
    if way == 2:
        start = place(text, rng)
        return text[:start] + b"\xff\xfe\xc0" + text[start:]
    if way == 3:
        return pick(rng, (b"", b"{}", b"[]", b"null", b"1", b'"x"', b"{", b'{"a":' * 10_000))
    if way == 4 and text.startswith(b"{"):  # every key twice
        return text.rstrip().removesuffix(b"}") + b"," + text[1:]
    if way == 5:
        return text + text
    return damaged_bytes(text, rng)


def changed(value: Any, rng: np.random.Generator) -> Any:
    """A copy with a key taken away or renamed, or a value replaced, at any depth."""
    value = copy.deepcopy(value)
    spots = list(places(value))
    if not spots:
        return pick(rng, VALUES)
    holder, key = pick(rng, spots)
    way = rng.random()
    if way < 0.15:
        del holder[key]
    elif way < 0.3 and isinstance(holder, dict):
        holder[pick(rng, (*KEYS, f"{key}x", *map(str, holder)))] = holder.pop(key)
    elif way < 0.4 and isinstance(holder, dict):
        holder[pick(rng, KEYS)] = pick(rng, VALUES)
    elif way < 0.5:
        holder[key] = copy.deepcopy(pick(rng, [within[name] for within, name in spots]))
    else:
        holder[key] = pick(rng, VALUES)
    return value


def places(value: Any) -> Any:
    """Every (container, key) inside."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


# Safetensors

TYPES = ("F64", "F32", "F16", "BF16", "I64", "I8", "BOOL", "F8_E4M3", "F4", "C64", "f32", "", "F99")


def damaged_safetensors(data: bytes, rng: np.random.Generator) -> bytes:
    """A third as bytes, the rest in its header, which says where each tensor lies."""
    if rng.random() < 0.33:
        return damaged_bytes(data, rng)
    length = int.from_bytes(data[:8], "little")
    text, rest = data[8 : 8 + length], data[8 + length :]
    header = json.loads(text)
    name = pick(rng, [name for name in header if name != "__metadata__"])
    entry = header[name]
    stated = None
    way = int(rng.integers(9))
    if way == 0:
        offsets = entry["data_offsets"]
        offsets[int(rng.integers(2))] += int(pick(rng, (-8, -4, -1, 1, 4, 8, 10**6, 2**40, 2**63)))
    elif way == 1:
        shapes = ([], [0], [-1], [2**31, 2**31], [2**62, 8], [1] * 70, entry["shape"][::-1], [1.5])
        entry["shape"] = pick(rng, (*shapes, None))
    elif way == 2:
        entry["dtype"] = pick(rng, TYPES)
    elif way == 3:
        header[pick(rng, ("", "x", "a\nb", "\ud800", "x" * 10_000, name + "x"))] = header.pop(name)
    elif way == 4:
        del header[name]
    elif way == 5:
        return damaged_header(data, damaged_json(text, rng))
    elif way == 6:  # one name twice
        again = json.dumps({name: entry})[1:-1]
        return damaged_header(data, text.rstrip().removesuffix(b"}") + f", {again}}}".encode())
    elif way == 7:
        lengths = (0, 1, length - 1, length + 1, len(data), 10**8, 10**12, 2**63, 2**64 - 1)
        stated = int(pick(rng, lengths))
    else:
        header["__metadata__"] = pick(rng, (1, [], {"a": 1}, {"a": None}, {"": ""}, "x"))
    return damaged_header(data, json.dumps(header).encode(), stated) if rest else data


def damaged_header(data: bytes, header: bytes, stated: int | None = None) -> bytes:
    length = int.from_bytes(data[:8], "little")
    stated = len(header) if stated is None else stated
    return stated.to_bytes(8, "little") + header + data[8 + length :]


# A tokenizer's files


def damaged_vocab(text: bytes, rng: np.random.Generator) -> bytes:
    """Half as any JSON; half in its ids."""
    if rng.random() < 0.5:
        return damaged_json(text, rng)
    vocab = json.loads(text)
    token = pick(rng, list(vocab))
    way = int(rng.integers(6))
    if way == 0:
        del vocab[token]
    elif way == 1:
        vocab[token] = int(pick(rng, (-1, len(vocab), 2**63, 0, 5, len(vocab) - 1)))
    elif way == 2:
        vocab[pick(rng, ("", "\ud800", "new</w>", "x" * 10_000, "\0", "a b"))] = len(vocab)
    elif way == 3:
        vocab[token + "x"] = vocab.pop(token)
    elif way == 4:
        vocab[token] = pick(rng, (1.0, "1", None, True, [1]))
    else:
        kept = sorted(vocab, key=vocab.get)[: int(rng.integers(len(vocab)))]
        vocab = {token: vocab[token] for token in kept}
    return as_text(vocab)


def damaged_merges(text: bytes, rng: np.random.Generator) -> bytes:
    """A third as bytes, the rest in its lines, which are pairs of tokens."""
    if rng.random() < 0.33:
        return damaged_bytes(text, rng)
    lines = text.decode().splitlines()
    line = int(rng.integers(len(lines)))
    way = int(rng.integers(6))
    if way == 0:
        del lines[line]
    elif way == 1:
        lines[line] = pick(
            rng, ("x", "x y z", "nope nope", " ", "r  e", "r\te", "x" * 10_000, "\0 \0", "r e ")
        )
    elif way == 2:
        lines.insert(line, lines[int(rng.integers(len(lines)))])
    elif way == 3:
        lines = lines[::-1]
    elif way == 4:
        lines = []
    else:
        lines = lines * 1000
    return ("\n".join(lines) + "\n").encode()
