"""The tokenizer's files: each layout, each error message, and saving and loading again."""

import json
import warnings

import pytest

from clipseg_np.errors import InputError
from clipseg_np.text.bpe import BYTE_SYMBOLS
from clipseg_np.text.tokenizer import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = ["t h", "th e</w>"]
SYMBOLS = BYTE_SYMBOLS.values()
TOKENS = [*SYMBOLS, *(symbol + "</w>" for symbol in SYMBOLS), "th", "the</w>", START, END]
VOCAB = {token: number for number, token in enumerate(TOKENS)}
PLAIN = {"vocab.json": VOCAB, "merges.txt": "#version: 0.2\nt h\nth e</w>\n"}


def described(content, **more):
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False, **more}


def whole(added=(), merges=MERGES, **model):
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": VOCAB, "merges": merges, **model}
    return {"version": "1.0", "added_tokens": list(added), "model": model}


def config(**values):
    return {"tokenizer_config.json": values}


def tokens_map(**values):
    return {"special_tokens_map.json": values}


def added(**ids):
    return {"added_tokens.json": ids}


ADDED = [
    described(START, id=514, normalized=True, special=True),
    described(END, id=515, special=True),
]


@pytest.fixture
def load(tmp_path):
    def load_from(files, **overrides):
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / name).write_text(text, encoding="utf-8")
        return CLIPTokenizer.from_pretrained(tmp_path, **overrides)

    return load_from


@pytest.mark.parametrize(
    "files",
    [
        PLAIN,
        {"vocab.json": VOCAB, "merges.txt": "#version: 0.2\r\nt h\r\nth e</w>\r\n\r\n"},
        {"tokenizer.json": whole()},
        {"tokenizer.json": whole(ADDED)},
        {"tokenizer.json": whole(merges=[["t", "h"], ["th", "e</w>"]])},
        {"tokenizer.json": whole(), "vocab.json": {"x": 0}, "merges.txt": "a b"},
    ],
)
def test_layouts(load, files):
    tokenizer = load(files)
    assert tokenizer.encode("The t") == [514, 513, VOCAB["t</w>"], 515]
    assert tokenizer.model_max_length == 77


NAMED = {"bos_token": "th", "pad_token": "!", "model_max_length": 9}


@pytest.mark.parametrize(
    "files",
    [
        config(**NAMED),
        config(**NAMED | {"bos_token": described("th")}),
        config(bos_token="?", model_max_length=9)
        | tokens_map(bos_token=described("th"), pad_token="!"),
        config(**NAMED, added_tokens_decoder={"514": described(START)}) | tokens_map(bos_token="?"),
    ],
)
def test_special_tokens_named_in_files(load, files):
    tokenizer = load(PLAIN | files)
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("th", 512)
    assert (tokenizer.eos_token, tokenizer.pad_token_id, tokenizer.model_max_length) == (END, 0, 9)
    assert tokenizer.tokenize("a!th") == ["a</w>", "!", "th"]


def test_overrides(load):
    tokenizer = load(PLAIN, bos_token="th", model_max_length=5)
    assert tokenizer.bos_token_id == 512 and tokenizer.model_max_length == 5
    with pytest.warns(UserWarning, match="use_fast"):
        load(PLAIN, use_fast=True)


def test_no_longest_text_is_clips(load):
    assert load(PLAIN | config(model_max_length=10**30)).model_max_length == 77


def test_tokens_found_in_the_normalized_text(load):
    """As in the official files, whose start token has "normalized": true."""
    tokenizer = load({"tokenizer.json": whole(ADDED)})
    assert tokenizer.encode("<|STARTOFTEXT|>") == [514, 514, 515]
    assert 515 not in tokenizer.encode("<|ENDOFTEXT|>")[1:-1]


@pytest.mark.parametrize("pad, is_found", [(END, True), (described(END, normalized=False), False)])
def test_the_last_new_description_of_a_token_counts(load, pad, is_found):
    files = config(eos_token=END, unk_token=described(END, normalized=True), pad_token=pad)
    ids = load(PLAIN | files).encode("<|ENDOFTEXT|>")
    assert (ids == [514, 515, 515]) == is_found


def test_tokens_behind_the_vocabulary(load, tmp_path):
    x = described("[X]", id=516, normalized=True, special=False)
    y = described("[y]", id=517, special=True)
    tokenizer = load({"tokenizer.json": whole([*ADDED, x, y])})
    assert (tokenizer.vocab_size, len(tokenizer)) == (516, 518)
    assert tokenizer.encode("[x][Y][y]")[1] == 516 and tokenizer.encode("[y]")[1:] == [517, 515]
    assert tokenizer.decode([516, 517], skip_special_tokens=True) == "[x]"
    tokenizer.save_pretrained(tmp_path / "again")
    again = CLIPTokenizer.from_pretrained(tmp_path / "again")
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.encode("[x][y]<|STARTOFTEXT|>") == tokenizer.encode("[x][y]<|STARTOFTEXT|>")


PLAIN_END = {"514": described(START, special=True), "515": described(END, special=True)}
FURTHER = [
    # files beside vocab.json and merges.txt, the ids that they add, the special ones of these
    (added(**{"<cat-toy>": 516, "[y]": 517}), {"<cat-toy>": 516, "[y]": 517}, []),
    (added(**{"th": 512, "[y]": 516}), {"[y]": 516}, []),
    (added(**{"[y]": 516}) | config(additional_special_tokens=["[y]"]), {"[y]": 516}, ["[y]"]),
    (config(extra_special_tokens=["[y]", "th"]), {"[y]": 516}, ["[y]", "th"]),
    (config(additional_special_tokens=[described("[y]")]), {"[y]": 516}, ["[y]"]),
    (tokens_map(additional_special_tokens=["[y]"]), {"[y]": 516}, ["[y]"]),
    (
        tokens_map(extra_special_tokens=[described("[q]")]) | config(extra_special_tokens=["[y]"]),
        {"[y]": 516, "[q]": 517},
        ["[y]", "[q]"],
    ),
    (config(extra_special_tokens={"image_token": "<img>"}), {"<img>": 516}, ["<img>"]),
    (
        config(image_token="<img>", mask_token="[MASK]"),
        {"[MASK]": 516, "<img>": 517},
        ["[MASK]", "<img>"],
    ),
    (
        added(**{"[q]": 516})
        | config(added_tokens_decoder=PLAIN_END, extra_special_tokens=["[y]"]),
        {"[y]": 516},
        ["[y]"],
    ),
]


@pytest.mark.parametrize("files, ids, special", FURTHER)
def test_further_tokens(load, tmp_path, files, ids, special):
    tokenizer = load(PLAIN | files)
    tokenizer.save_pretrained(tmp_path / "again")
    for each in (tokenizer, CLIPTokenizer.from_pretrained(tmp_path / "again")):
        assert {token: n for token, n in each.get_vocab().items() if n > 515} == ids
        for token, number in ids.items():
            assert each.encode(f"a{token}a") == [514, VOCAB["a</w>"], number, VOCAB["a</w>"], 515]
        assert each.all_special_tokens == [START, END, *special]
        shown = "".join(token for token in ids if token not in special)
        assert each.decode([*ids.values()], skip_special_tokens=True) == shown


def test_further_tokens_by_an_argument(load):
    for name in ("extra_special_tokens", "additional_special_tokens"):
        tokenizer = load(PLAIN, **{name: ["[y]"]})
        assert tokenizer.convert_tokens_to_ids("[y]") == 516 and len(tokenizer) == 517


def test_a_further_token_by_its_name(load):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer = load(PLAIN, image_token="[y]")
    assert tokenizer.extra_special_tokens == ["[y]"] and tokenizer("[y]").input_ids[1] == 516


def test_an_unknown_option_is_ignored(load):
    entry = {"content": "[y]", "special": True}
    with pytest.warns(UserWarning, match="does not know added_tokens_decoder, colour: ignored"):
        tokenizer = load(PLAIN, added_tokens_decoder={"516": entry}, colour="red")
    assert len(tokenizer) == 516


def test_a_token_that_is_no_token_is_refused(load):
    with pytest.raises(InputError, match="extra_special_tokens in .* is a int; expected a list"):
        load(PLAIN | config(extra_special_tokens=5))
    with pytest.raises(InputError, match="'<x>' has id 520; expected 516"):
        load(PLAIN | config() | added(**{"<x>": 520}))


LEFT = {"direction": "Left"}


@pytest.mark.parametrize(
    "files",
    [
        PLAIN | config(truncation_side="left", padding_side="left"),
        {"tokenizer.json": whole(ADDED) | {"truncation": LEFT, "padding": LEFT}},
    ],
)
def test_the_sides_of_a_file_are_obeyed(load, tmp_path, files):
    tokenizer = load(files)
    tokenizer.save_pretrained(tmp_path / "again")
    for each in (tokenizer, CLIPTokenizer.from_pretrained(tmp_path / "again")):
        a, t = VOCAB["a</w>"], VOCAB["t</w>"]
        assert each("the t a", truncation=True, max_length=4).input_ids == [514, t, a, 515]
        padded = each("a", padding="max_length", max_length=4)
        assert padded == {"input_ids": [515, 514, a, 515], "attention_mask": [0, 1, 1, 1]}


def test_the_names_of_inputs_in_a_file_are_obeyed(load):
    tokenizer = load(PLAIN | config(model_input_names=["input_ids"]))
    assert list(tokenizer("a")) == ["input_ids"]
    assert list(tokenizer("a", return_attention_mask=True)) == ["input_ids", "attention_mask"]
    with pytest.raises(InputError, match="model_input_names .* expected a list"):
        load(PLAIN | config(model_input_names=5))


def test_round_trip(load, tmp_path):
    tokenizer = load(PLAIN, pad_token="!", model_max_length=12)
    tokenizer.save_pretrained(tmp_path / "again")
    names = sorted(path.name for path in (tmp_path / "again").iterdir())
    assert names == ["merges.txt", "tokenizer_config.json", "vocab.json"]
    again = CLIPTokenizer.from_pretrained(tmp_path / "again")
    assert again.get_vocab() == VOCAB and again.pad_token == "!" and again.model_max_length == 12
    assert again("the é!", padding="max_length") == tokenizer("the é!", padding="max_length")


def test_a_tokenizer_json_would_hide_what_is_saved(load, tmp_path):
    tokenizer = load({"tokenizer.json": whole()})
    with pytest.raises(InputError, match="read in place of"):
        tokenizer.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def without(*tokens):
    return {token: n for n, token in enumerate(t for t in VOCAB if t not in tokens)}


@pytest.mark.parametrize(
    "files, message",
    [
        ({"tokenizer.json": {"vocab": VOCAB, "merges": MERGES}}, "no model with a type"),
        ({"tokenizer.json": whole(type="WordPiece")}, "'WordPiece'; expected type 'BPE'"),
        ({"tokenizer.json": whole(end_of_word_suffix=None)}, "another kind of model"),
        ({"tokenizer.json": whole(merges=None)}, "lacks model.vocab"),
        ({"tokenizer.json": whole(vocab=TOKENS)}, "lacks model.vocab"),
        ({"tokenizer.json": whole(merges=["t h", "a b c"])}, "Merge 1 .* expected a pair"),
        ({"tokenizer.json": whole(merges=[3])}, "Merge 0 .* expected a pair"),
        ({"tokenizer.json": whole(merges=["t h", "t q"])}, "Merge 1 .* no token 'tq'"),
        ({"tokenizer.json": whole(added=[described("[X]", id=600)])}, "has id 600; expected 516"),
        ({"tokenizer.json": whole(added=[described(END, id=3)])}, "has id 3; expected 515"),
        ({"tokenizer.json": whole(added=[described(END, id="x")])}, "id 'x'; expected a number"),
        ({"tokenizer.json": whole([described(END, id=515) | {"lstrip": True}])}, "lstrip set"),
        ({"tokenizer.json": whole() | {"added_tokens": {}}}, "added_tokens in .* expected a list"),
        ({"tokenizer.json": json.dumps(whole())[:5000]}, "not valid JSON"),
        (PLAIN | {"vocab.json": without(START)}, "bos_token is '<|startoftext|>'"),
        (PLAIN | {"vocab.json": {**VOCAB, "a": 516}}, "no id 64;"),
        (PLAIN | {"vocab.json": {**VOCAB, "a": 5}}, "id 5 twice"),
        (PLAIN | {"vocab.json": {**VOCAB, "a": "1"}}, "whole numbers"),
        (PLAIN | {"vocab.json": {}}, "no mapping of tokens"),
        (PLAIN | {"vocab.json": without("the</w>")}, "no token 'the</w>'"),
        (PLAIN | {"merges.txt": "#version: 0.2\nt h\nth"}, "Merge 1 .* expected a pair"),
        (PLAIN | config(bos_token=3), "special token is given as 3"),
        (PLAIN | config(eos_token="[E]"), "eos_token is .* lack it"),
        (PLAIN | config(model_max_length="long"), "model_max_length is 'long'"),
        (PLAIN | config(model_max_length=1), "model_max_length is 1"),
    ],
)
def test_unusable_files(load, files, message):
    with pytest.raises(InputError, match=message.replace("|", r"\|")):
        load(files)


def test_merges_that_are_no_text(load, tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB))
    (tmp_path / "merges.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        load({})


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_file(load, name):
    with pytest.raises(FileNotFoundError, match=name):
        load({other: content for other, content in PLAIN.items() if other != name})
