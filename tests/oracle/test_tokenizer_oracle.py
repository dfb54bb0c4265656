"""The tokenizer against transformers' CLIPTokenizer: ids, tokens, text, all of Unicode."""

import json
import random

import numpy as np
import pytest

transformers = pytest.importorskip("transformers", reason="needs the extra 'oracle'")

from clipseg_np.text.bpe import BYTE_SYMBOLS
from clipseg_np.text.normalize import normalize, pieces
from clipseg_np.text.tokenizer import CLIPTokenizer

from ..helpers.clip_merges import clip_merges

pytestmark = pytest.mark.oracle

Reference = transformers.CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
SYMBOLS = sorted(BYTE_SYMBOLS.values())
N_STRINGS = {"clip": 12_000, "shuffled": 4_000, "gappy": 2_000}


def shuffled_merges(draw):
    """A table no training would make: a merge may stand before the merges that its parts need."""
    tokens = [BYTE_SYMBOLS[b] for b in b"etaoinshrdlu'!<|>" + "éσ🎨".encode()]
    tokens += [token + "</w>" for token in tokens]
    merges = {}
    while len(merges) < 900:
        left, right = draw.choice(tokens[:300]), draw.choice(tokens[:300])
        if not left.endswith("</w>") and left + right not in tokens:
            merges[left, right] = None
            tokens.append(left + right)
    merges = list(merges)
    draw.shuffle(merges)
    return merges


@pytest.fixture(scope="module", params=["clip", "shuffled", "gappy"])
def both(request, tmp_path_factory):
    """(the vocabulary's name, ours, the reference), read from the same folder."""
    draw = random.Random(1)
    name, symbols = request.param, SYMBOLS
    merges = []
    if name == "clip":
        merges = clip_merges()
    elif name == "shuffled":
        merges = shuffled_merges(draw)
    else:  # a vocabulary that lacks most bytes
        symbols = [*"etaoinshrdlu0!", *(BYTE_SYMBOLS[b] for b in "é".encode())]
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges), START, END]
    folder = tmp_path_factory.mktemp(name)
    (folder / "vocab.json").write_text(
        json.dumps({t: n for n, t in enumerate(dict.fromkeys(tokens))})
    )
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))
    return name, CLIPTokenizer.from_pretrained(folder), Reference.from_pretrained(folder)


RANGES = [
    (0, 0x80), (0x80, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x900), (0x900, 0x1200),
    (0x1AB0, 0x1B00), (0x1C80, 0x1E00), (0x1E00, 0x2000), (0x2000, 0x2070), (0x20D0, 0x2200),
    (0x3040, 0x3100), (0x4E00, 0x5000), (0xA640, 0xA800), (0xAC00, 0xAD00), (0x1100, 0x1200),
    (0xF900, 0xFB50), (0xFE00, 0x10000), (0x10400, 0x10600), (0x10D00, 0x11D00), (0x16000, 0x17000),
    (0x1D100, 0x1D800), (0x1E000, 0x1E960), (0x1F300, 0x1FA00), (0x20000, 0x20100),
    (0x30000, 0x34000), (0xE0000, 0xE0200), (0, 0x110000),
]  # fmt: skip
WORDS = [
    "the",
    "A",
    "photo",
    "of",
    "cat",
    "don't",
    "I'LL",
    "we've",
    "İstanbul",
    "ΟΔΟΣ",
    "naïve",
    "e\u0323\u0301",
]
WORDS += [
    "1990's",
    "<|endoftext|>",
    "<|startoftext|>",
    "<|ENDOFTEXT|>",
    "<|Startoftext|>",
    "<|endoftext",
    "|>",
    "''s",
]
WORDS += [
    "👩🏽‍🚀",
    "🇩🇪",
    "!!!",
    "...",
    "--",
    "日本語",
    "https://x.org/?a=1&b=2",
    "</w>",
    "ünïcödé",
    "ﬁ",
    "ſ",
    "K",
]
SPACES = [
    " ",
    "  ",
    "\t",
    "\r\n",
    "\n",
    "\x0b",
    "\x1c",
    "\x85",
    "\xa0",
    "\u1680",
    "\u180e",
    "\u2003",
    "\u200b",
]
SPACES += ["\u2028", "\u202f", "\u3000", "\ufeff", "\x00", ""]


def character(draw):
    while True:
        number = draw.randrange(*draw.choice(RANGES))
        if not 0xD800 <= number < 0xE000:
            return chr(number)


def drawn_text(draw):
    length = draw.choice([1, 2, 3, 5, 8, 13, 30, 150 if draw.random() < 0.1 else 20])
    parts = []
    for _ in range(length):
        kind = draw.random()
        if kind < 0.35:
            parts.append(draw.choice(WORDS))
        elif kind < 0.5:
            parts.append("".join(draw.choices("etaoinshrdlu", k=draw.randrange(1, 12))))
        else:
            low, high = draw.choice(RANGES[:-1])  # a run in one script
            run = [chr(draw.randrange(low, high)) for _ in range(draw.randrange(1, 5))]
            parts += run if draw.random() < 0.6 else [character(draw) for _ in run]
        parts.append(draw.choice(SPACES) if draw.random() < 0.6 else "")
    return "".join(parts)


def test_drawn_texts(both, agreement):
    name, ours, reference = both
    draw = random.Random(2)
    texts = [drawn_text(draw) for _ in range(N_STRINGS[name])]
    for first in range(0, len(texts), 1000):
        batch = texts[first : first + 1000]
        expected = reference(batch)["input_ids"]
        found = ours(batch, max_length=10**6, padding="do_not_pad")["input_ids"]
        for text, theirs, mine in zip(batch, expected, found):
            assert mine == theirs, ascii(text)
            for skip in (False, True):
                assert ours.decode(mine, skip) == reference.decode(
                    theirs, skip_special_tokens=skip
                ), ascii(text)
    agreement("token ids and decoded text of drawn strings", 0, len(texts))


def test_drawn_ids(both):
    _, ours, reference = both
    draw = random.Random(3)
    for _ in range(2_000):
        ids = [draw.randrange(len(ours)) for _ in range(draw.randrange(20))]
        ids += [
            draw.randrange(min(512, len(ours))) for _ in range(draw.randrange(20))
        ]  # loose bytes
        for skip in (False, True):
            assert ours.decode(ids, skip) == reference.decode(ids, skip_special_tokens=skip), ids
        assert ours.convert_ids_to_tokens(ids) == reference.convert_ids_to_tokens(ids)
    assert ours.batch_decode([ids, ids[:3]]) == reference.batch_decode([ids, ids[:3]])


def test_every_code_point():
    """Each of the 1,112,064 characters, in a neighbourhood where composition and classes show."""
    form = "e{0}\u0323\u0301b \u0345{0}1"
    backend = Reference().backend_tokenizer
    numbers = [n for n in range(0x110000) if not 0xD800 <= n < 0xE000]
    for first in range(0, len(numbers), 1024):
        text = " ".join(form.format(chr(n)) for n in numbers[first : first + 1024])
        normalized = normalize(text)
        assert normalized == backend.normalizer.normalize_str(text), hex(numbers[first])
        expected = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(normalized)]
        found = ["".join(BYTE_SYMBOLS[b] for b in piece.encode()) for piece in pieces(normalized)]
        assert found == expected, hex(numbers[first])


@pytest.mark.parametrize("padding", [False, True, "longest", "max_length", "do_not_pad"])
@pytest.mark.parametrize(
    "truncation", [None, False, True, "longest_first", "only_first", "do_not_truncate"]
)
@pytest.mark.parametrize("max_length", [None, 2, 7, 90])
@pytest.mark.filterwarnings("ignore")
def test_forms_of_a_call(both, padding, truncation, max_length):
    _, ours, reference = both
    texts = ["", "the cat", "a photo of 5 cats", "the " * 80]
    for special in (True, False):
        options = {"padding": padding, "truncation": truncation, "add_special_tokens": special}
        options |= {"max_length": max_length}
        assert dict(ours(texts, **options)) == dict(reference(texts, **options))
        assert dict(ours(texts[1], **options)) == dict(reference(texts[1], **options))
        arrays = ours(texts[2], **options, return_tensors="np")
        expected = reference(texts[2], **options, return_tensors="np")
        assert list(arrays) == list(expected)
        for key, value in expected.items():
            assert np.array_equal(arrays[key], value) and arrays[key].dtype == value.dtype


def described(content, normalized):
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": normalized}
    return {"__type": "AddedToken", "content": content, **flags}


def added(content, number, normalized, special=True):
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": normalized}
    return {"id": number, "content": content, "special": special, **flags}


LAYOUTS = {
    "official": {
        "tokenizer_config.json": {
            "bos_token": described(START, True),
            "eos_token": described(END, True),
            "unk_token": described(END, True),
            "pad_token": END,
        }
    },
    "padded with !": {"tokenizer_config.json": {"pad_token": "!"}},
    "other map": {
        "special_tokens_map.json": {"bos_token": "th", "eos_token": described(END, True)}
    },
    "tokenizer.json": {"added": [added(START, 514, True), added(END, 515, False)]},
    "tokenizer.json, both normalized": {"added": [added(START, 514, True), added(END, 515, True)]},
    "more tokens": {
        "added": [
            added(START, 514, False),
            added(END, 515, False),
            added("[X]", 516, True, False),
            added("[Yy]", 517, False),
        ]
    },
    "several descriptions": {
        "tokenizer_config.json": {
            "unk_token": described(END, True),
            "pad_token": END,
            "eos_token": END,
        }
    },
    "a last description": {
        "tokenizer_config.json": {
            "unk_token": described(END, True),
            "pad_token": described(END, False),
        }
    },
    "decoder": {
        "tokenizer_config.json": {
            "pad_token": "?",
            "added_tokens_decoder": {"514": added(START, 0, True), "515": added(END, 0, False)},
        },
        "special_tokens_map.json": {"pad_token": "!"},
    },
    "added_tokens.json": {"added_tokens.json": {"[X]": 516, "[Yy]": 517}},
    "added_tokens.json, one in the vocabulary": {"added_tokens.json": {"th": 512, "[X]": 516}},
    "added_tokens.json, one special": {
        "added_tokens.json": {"[Yy]": 516, "[X]": 517},
        "tokenizer_config.json": {"additional_special_tokens": ["[X]"]},
    },
    "added_tokens.json, listed in the map": {
        "added_tokens.json": {"[Yy]": 516, "[X]": 517},
        "special_tokens_map.json": {"additional_special_tokens": ["[X]"]},
    },
    "added_tokens.json beside tokenizer.json": {
        "added": [added(START, 514, True), added(END, 515, False)],
        "added_tokens.json": {"[X]": 516},
    },
    "added_tokens.json beside a decoder": {
        "added_tokens.json": {"[X]": 516},
        "tokenizer_config.json": {
            "added_tokens_decoder": {"514": added(START, 0, False), "515": added(END, 0, False)},
            "extra_special_tokens": ["[Yy]"],
        },
    },
    "extra tokens": {"tokenizer_config.json": {"extra_special_tokens": ["[X]", "th"]}},
    "extra tokens beside tokenizer.json": {
        "added": [added(START, 514, True), added(END, 515, False)],
        "tokenizer_config.json": {"extra_special_tokens": ["[Yy]"]},
    },
    "extra tokens in the map": {
        "tokenizer_config.json": {"extra_special_tokens": ["[X]"]},
        "special_tokens_map.json": {"extra_special_tokens": ["[Yy]"]},
    },
    "additional tokens": {"tokenizer_config.json": {"additional_special_tokens": ["[X]", "[Yy]"]}},
    "additional tokens in the map": {
        "special_tokens_map.json": {"additional_special_tokens": ["[Yy]"]}
    },
    "additional tokens in both": {
        "tokenizer_config.json": {"additional_special_tokens": ["[X]"]},
        "special_tokens_map.json": {"additional_special_tokens": ["[Yy]"]},
    },
    "named tokens": {"tokenizer_config.json": {"image_token": "[X]", "mask_token": "[Yy]"}},
    "named extra tokens": {"tokenizer_config.json": {"extra_special_tokens": {"x_token": "[X]"}}},
    "sides": {"tokenizer_config.json": {"truncation_side": "left", "padding_side": "left"}},
}
for _layout in ("decoder", "added_tokens.json beside a decoder"):
    for _entry in LAYOUTS[_layout]["tokenizer_config.json"]["added_tokens_decoder"].values():
        del _entry["id"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_files(layout, tmp_path):
    files = dict(LAYOUTS[layout])
    tokens = [*SYMBOLS, *(s + "</w>" for s in SYMBOLS), "th", "the</w>", START, END]
    vocab = {token: number for number, token in enumerate(tokens)}
    extra = files.pop("added", None)
    if extra is None:
        files |= {"vocab.json": vocab}
        (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n")
    else:
        model = {
            "type": "BPE",
            "end_of_word_suffix": "</w>",
            "vocab": vocab,
            "merges": ["t h", "th e</w>"],
        }
        files |= {"tokenizer.json": {"version": "1.0", "added_tokens": extra, "model": model}}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    ours, reference = CLIPTokenizer.from_pretrained(tmp_path), Reference.from_pretrained(tmp_path)
    ours.save_pretrained(tmp_path / "saved")
    reference.save_pretrained(tmp_path / "theirs")
    same = [ours, Reference.from_pretrained(tmp_path / "saved")]
    same += [CLIPTokenizer.from_pretrained(tmp_path / folder) for folder in ("saved", "theirs")]
    texts = [
        "The<|ENDOFTEXT|>!'s",
        "<|STARTOFTEXT|>th!",
        "<|startoftext|><|endoftext|>",
        "a[X][x] [Yy][yy] ?!?",
    ]
    for text in texts:
        ids = reference(text)["input_ids"]
        for one in same:
            assert one(text)["input_ids"] == ids
            assert one.tokenize(text) == reference.tokenize(text)
            for skip in (False, True):
                expected = reference.decode(ids, skip_special_tokens=skip)
                assert one.decode(ids, skip_special_tokens=skip) == expected
    padded = reference(texts, padding=True)["input_ids"]
    cut = reference(texts, truncation=True, max_length=4)["input_ids"]
    for one in same:
        assert one(texts, padding=True)["input_ids"] == padded
        assert one(texts, truncation=True, max_length=4)["input_ids"] == cut
        assert one.get_vocab() == reference.get_vocab() and len(one) == len(reference)
        assert one.all_special_ids == reference.all_special_ids
        assert one.pad_token_id == reference.pad_token_id and one.vocab_size == reference.vocab_size
