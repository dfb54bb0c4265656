"""The tokenizer: published ids, each known pitfall, the call's forms, the steps shown."""

import doctest

import numpy as np
import pytest

from clipseg_np.errors import InputError
from clipseg_np.text import normalize as unicode_text
from clipseg_np.text import tokenizer
from clipseg_np.text.bpe import BYTE_SYMBOLS
from clipseg_np.text.tokenizer import CLIPTokenizer

from ..helpers.clip_merges import N_MERGES, clip_merges, excerpt, made_merges
from ..helpers.device_array import DeviceArray

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = [("t", "h"), ("th", "e</w>"), ("a", "t</w>"), ("c", "at</w>")]


def whole_vocabulary(merges):
    symbols = [BYTE_SYMBOLS[byte] for byte in sorted(BYTE_SYMBOLS, key=lambda b: BYTE_SYMBOLS[b])]
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges), START, END]
    return {token: number for number, token in enumerate(tokens)}


@pytest.fixture
def toy():
    return CLIPTokenizer(whole_vocabulary(MERGES), MERGES)


@pytest.fixture(scope="module")
def clip():
    merges = made_merges()
    return CLIPTokenizer(whole_vocabulary(merges), merges)


PUBLISHED = {
    "": "",
    "hello": "3306",
    "a photo of a cat": "320 1125 539 320 2368",
    "a photo of a dog": "320 1125 539 320 1929",
    "Hello, World!": "3306 267 1002 256",
    "123": "272 273 274",
    "version 2.0": "3273 273 269 271",
    "don't won't can't": "847 713 1749 713 753 713",
    "it's a test": "585 568 320 1628",
    "You should've done this": "592 1535 1200 1700 589",
    "test@email.com": "1628 287 4462 269 2464",
    "café résumé naïve": "15304 29106 7054 4166 1097 35689 563",
    "日本語": "39121 44353 34002 508",
    "你好世界": "47466 254 29290 121 19759 244 163 243 490",
    "emoji 🎨": "16327 13461",
    "😀 😃 😄": "7334 8520 7624",
    "a2b3 c4d 12345": "320 273 321 274 322 275 323 272 273 274 275 276",
    "Special characters: !@#$%^&*()": "1689 6564 281 0 31 2 3 4 61 5 9 8475",
    'Café au lait — 1990\'s "quotes"': "15304 2566 572 585 2005 272 280 280 271 568 257 5808 257",
    "a glass": "320 3313",
    "something to fill": "2006 531 6277",
    "wood": "1704",
    "a jar": "320 10837",
    "a cat": "320 2368",
    "a remote": "320 9687",
    "a blanket": "320 12878",
}


@pytest.mark.parametrize("text", PUBLISHED)
def test_published_ids(clip, text):
    assert clip.encode(text) == [49406, *map(int, PUBLISHED[text].split()), 49407]


def test_published_ids_by_the_whole_table():
    merges = clip_merges()
    assert len(merges) == N_MERGES
    assert excerpt().items() <= dict(enumerate(merges)).items()
    whole = CLIPTokenizer(whole_vocabulary(merges), merges)
    for text, ids in PUBLISHED.items():
        assert whole.encode(text)[1:-1] == [*map(int, ids.split())], text


def test_the_size_of_clips_vocabulary(clip):
    assert clip.vocab_size == len(clip) == 49408
    assert clip.eos_token_id == clip.pad_token_id == 49407


def test_P21_accents_stay_and_contractions_are_split(clip):
    """Not as the slow tokenizer without ftfy has it: 15077 for "résumé", 262 563 for "'ve"."""
    assert 15077 not in clip.encode("résumé")
    assert clip.encode("should've")[1:-1] == [1535, 1200]


def test_lower_newer():
    """The toy vocabulary of transformers' own test."""
    tokens = [*"lowerstidn", "lo", "l</w>", "w</w>", "r</w>", "t</w>", "low</w>", "er</w>"]
    tokens += ["lowest</w>", "newer</w>", "wider", "<unk>", START, END]
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = [("l", "o"), ("lo", "w</w>"), ("e", "r</w>")]
    toy = CLIPTokenizer(vocab, merges, unk_token="<unk>")
    assert toy.tokenize("lower newer") == ["lo", "w", "er</w>", "n", "e", "w", "er</w>"]
    ids = toy.convert_tokens_to_ids([*toy.tokenize("lower newer"), "<unk>"])
    assert ids == [10, 2, 16, 9, 3, 2, 16, 20]
    assert toy.tokenize("lö") == ["l", "<unk>", "<unk>"]


def test_a_long_piece_is_not_slow(toy):
    assert toy.tokenize("th" * 50_000) == ["th"] * 49_999 + ["t", "h</w>"]


@pytest.mark.parametrize(
    "one, other",
    [
        ("a\u0303", "\u00e3"),  # decomposed and composed
        ("THE", "the"),
        ("a \t\n\r\x0b\x0c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u3000 b", "a b"),
        ("  the  ", "the"),
        ("ΟΔΟΣ", "οδοσ"),  # no final sigma
        ("\u1e9e", "ß"),
        ("\u2c2f\u1c89\ua7cb\U00010d50", "\u2c5f\u1c8a\u0264\U00010d70"),  # newer than Python 3.10
    ],
)
def test_P21_alike(toy, one, other):
    assert toy.encode(one) == toy.encode(other)


@pytest.mark.parametrize(
    "joint", ["\x00", "\x1c", "\x1f", "\u180e", "\u200b", "\u200e", "\u2060", "\ufeff"]
)
def test_these_are_no_whitespace(toy, joint):
    assert toy.tokenize(f"a{joint}b")[1:-1] == toy.tokenize(joint) != []


def test_contractions():
    parts = unicode_text.pieces("he's don't we're they've i'm she'll you'd x'y")
    assert parts[1::2] == ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'"]


def test_P21_ligatures_stay():
    assert unicode_text.normalize("ﬁĳ２") == "ﬁĳ２"


def test_lower_case_is_not_composed_again():
    assert unicode_text.normalize("İ") == "i\u0307"
    assert unicode_text.pieces("i\u0307x") == ["i", "\u0307", "x"]


def test_tables_of_the_reference():
    """Marks newer than Unicode 9 are not reordered; letters newer than 16 are no letters."""
    assert unicode_text.normalize("e\u08d0\u0301\u0323") == "e\u08d0\u0323\u0301"
    assert unicode_text.normalize("\U00011935\U00011930") == "\U00011935\U00011930"
    assert unicode_text.pieces("a\ua7db\ua7cfb\ua7e2!") == ["a\ua7db", "\ua7cf", "b", "\ua7e2!"]
    assert unicode_text.pieces("Ⅷ²١x") == ["Ⅷ", "²", "١", "x"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a<|endoftext|>b", ["a</w>", END, "b</w>"]),
        (" a <|endoftext|> <|startoftext|>", ["a</w>", END, START]),
        ("<|endoftext|><|endoftext|>", [END, END]),
        ("<|endoftext", ["<", "|</w>", *"endoftex", "t</w>"]),
        ("<|ENDOFTEXT|>!", ["<", "|</w>", *"endoftex", "t</w>", "|", "></w>", "!</w>"]),
        ("!<|ENDOFTEXT|>!", ["!", "<", "|</w>", *"endoftex", "t</w>", "|", ">", "!</w>"]),
    ],
)
def test_P25_special_tokens_inside_a_text(toy, text, expected):
    assert toy.tokenize(text) == expected


def test_the_longest_special_token_wins():
    tokenizer = CLIPTokenizer(whole_vocabulary(MERGES), MERGES, bos_token="th", eos_token="the</w>")
    assert tokenizer.tokenize("athe</w>th") == ["a</w>", "the</w>", "th"]


def test_a_tokenizer_remembers_nothing(toy):
    before = {name: repr(value) for name, value in vars(toy).items()}
    assert toy.tokenize("the cat") == toy.tokenize("the cat") == ["the</w>", "cat</w>"]
    assert before == {name: repr(value) for name, value in vars(toy).items()}


def test_padding(toy):
    s, e, the, cat = (toy.convert_tokens_to_ids(t) for t in (START, END, "the</w>", "cat</w>"))
    features = toy(["the", "the cat"], padding=True)
    assert features["input_ids"] == [[s, the, e, e], [s, the, cat, e]]
    assert features.attention_mask == [[1, 1, 1, 0], [1, 1, 1, 1]]
    arrays = toy(["the", "the cat"], padding="max_length", return_tensors="np")
    assert arrays.input_ids.shape == arrays.attention_mask.shape == (2, 77)
    assert arrays.input_ids.dtype == arrays.attention_mask.dtype == np.int64
    assert arrays.attention_mask.sum(1).tolist() == [3, 4]
    assert toy("the cat", return_tensors="np").input_ids.tolist() == [[s, the, cat, e]]
    assert toy(("the",)) == {"input_ids": [[s, the, e]], "attention_mask": [[1, 1, 1]]}
    assert list(toy("the", return_attention_mask=False)) == ["input_ids"]
    assert toy("the", add_special_tokens=False)["input_ids"] == [the]


def test_padding_with_another_token():
    tokenizer = CLIPTokenizer(whole_vocabulary(MERGES), MERGES, pad_token="!")
    padded = tokenizer(["a", "the cat"], padding=True)
    assert padded.input_ids[0][-1] == 0 != padded.input_ids[1][-1]


def test_P24_truncation_keeps_the_end_token(toy):
    ids = toy("the " * 100, truncation=True)["input_ids"]
    assert len(ids) == 77 and ids[0] == toy.bos_token_id and ids[-1] == toy.eos_token_id
    assert toy("the the the", max_length=4)["input_ids"] == ids[:3] + ids[-1:]
    assert toy("the the the", max_length=2, truncation=True)["input_ids"] == [ids[0], ids[-1]]
    one = toy("the the", max_length=1, truncation=True, add_special_tokens=False)
    assert one["input_ids"] == ids[1:2]
    cut = toy(["the the the", "a"], "max_length", True, 4, return_tensors="np")
    assert cut.input_ids.shape == (2, 4)


def test_warnings(toy):
    with pytest.warns(UserWarning, match="102 tokens, more than the 77"):
        assert len(toy("the " * 100)["input_ids"]) == 102
    with pytest.warns(UserWarning, match="colour, offsets"):
        toy("the", offsets=True, colour=1)
    with pytest.warns(UserWarning, match="max_length has no effect"):
        toy("the the the", padding=True, max_length=3)


@pytest.mark.parametrize(
    "text, options, message",
    [
        (["a", "a b"], {"return_tensors": "np"}, "padding=True"),
        ("a", {"return_tensors": "pt"}, "expected one of None, 'np'"),
        ("a", {"padding": "bogus"}, "'longest'"),
        ("a", {"truncation": "only_second"}, "'longest_first'"),
        ("a", {"truncation": True, "max_length": 1}, "at least 2"),
        ("a", {"max_length": 2.5}, "whole number"),
        ([], {}, "empty"),
        (None, {}, "NoneType"),
        (b"a", {}, "bytes"),
        (["a", 3], {}, "Text 1"),
        (["a", "b\ud800"], {}, r"surrogate pair, '\\ud800', at character 1"),
    ],
)
def test_unusable_calls(toy, text, options, message):
    with pytest.raises(InputError, match=message):
        toy(text, **options)


def test_decode(toy):
    ids = toy.encode("The  cat, naïve 日本")
    assert toy.decode(ids) == "<|startoftext|>the cat , naïve 日本 <|endoftext|>"
    assert toy.decode(ids, skip_special_tokens=True) == "the cat , naïve 日本"
    assert toy.decode(np.array(ids[1:2])) == toy.decode(ids[1]) == "the"
    rows = [ids[1:2], ids[2:3]]
    assert toy.batch_decode(rows) == toy.decode(np.array(rows)) == ["the", "cat"]
    assert toy.batch_decode(ids[1:2]) == ["the"]
    assert toy.decode([]) == ""
    assert toy.decode(toy("the")) == toy.decode(toy("the")["input_ids"])
    broken = [toy.get_vocab()[BYTE_SYMBOLS[byte]] for byte in (0xE6, 0x97, 0x61, 0xFF, 0xC0)]
    assert toy.decode(broken) == "\ufffda\ufffd\ufffd"


@pytest.mark.parametrize("text", [["a", "b"], ["a"], None])
def test_what_takes_one_text_takes_no_other(toy, text):
    for method in (toy.tokenize, toy.explain):
        with pytest.raises(InputError, match=f"Got {type(text).__name__}; expected one text"):
            method(text)
    with pytest.raises(InputError, match="surrogate pair"):
        toy.tokenize("\ud800")


@pytest.mark.parametrize("number", [-1, 518, 1.5, "a"])
def test_an_id_outside_the_vocabulary(toy, number):
    assert len(toy) == 518
    with pytest.raises(InputError, match="0 to 517"):
        toy.decode([0, number])
    with pytest.raises(InputError, match="0 to 517"):
        toy.convert_ids_to_tokens([number])


def test_looking_up(toy):
    assert toy.convert_tokens_to_ids("the</w>") == toy.get_vocab()["the</w>"] == 513
    assert toy.convert_tokens_to_ids(["unheard of"]) == [toy.unk_token_id] == [517]
    assert toy.convert_ids_to_tokens(513) == "the</w>"
    assert toy.convert_ids_to_tokens([513, 517], skip_special_tokens=True) == ["the</w>"]
    assert toy.all_special_ids == [516, 517]


def test_the_keywords_of_transformers(toy):
    ids = toy.encode("the cat", None)
    options = {"clean_up_tokenization_spaces": False, "skip_special_tokens": True}
    assert toy.decode(token_ids=ids, **options) == "the cat"
    assert toy.batch_decode(sequences=[ids], clean_up_tokenization_spaces=None) == [toy.decode(ids)]
    assert toy.encode("the cat", text_pair=None, add_special_tokens=False) == ids[1:-1]
    assert toy.encode("the cat", None, False) == ids[1:-1]
    tokens = toy.tokenize("the cat", add_special_tokens=True, pair=None)
    assert tokens == [START, "the</w>", "cat</w>", END]
    assert toy("the cat", None, stride=0, verbose=False, return_length=False) == toy("the cat")
    for method in (toy, toy.encode, toy.tokenize):
        name = "pair" if method == toy.tokenize else "text_pair"
        with pytest.raises(InputError, match=f"{name}='a' is not possible here: write one text"):
            method("the cat", **{name: "a"})
    for method in (toy.decode, toy.batch_decode):
        with pytest.warns(UserWarning, match="clean_up_tokenization_spaces=True has no effect"):
            method(ids, clean_up_tokenization_spaces=True)


def test_files_are_no_vocabulary():
    with pytest.raises(InputError, match="no mapping of tokens"):
        CLIPTokenizer("vocab.json", "merges.txt")


def test_ids_of_any_library(toy):
    class Tensor:
        """What numpy.asarray takes, as PyTorch's tensors."""

        def __array__(self, dtype=None, copy=None):
            return np.array([[516, 513, 517]])

    assert toy.batch_decode(Tensor()) == toy.batch_decode([[516, 513, 517]])


def test_ids_on_a_gpu(toy):
    for ids in ([516, 513, 517], [[516, 513], [513, 517]]):
        assert toy.decode(DeviceArray(np.array(ids))) == toy.decode(ids)


def test_an_assigned_setting_is_used(toy):
    a, t = toy.encode("a t")[1:-1]
    toy.truncation_side = toy.padding_side = "left"
    assert toy("the a t", truncation=True, max_length=4).input_ids == [516, a, t, 517]
    assert toy("the", truncation=True, max_length=2).input_ids == [516, 517]
    padded = toy(["a t", "a"], padding=True)
    assert padded.input_ids[1] == [517, 516, a, 517] and padded.attention_mask[1] == [0, 1, 1, 1]
    assert toy(["a t", "a"], padding=True, padding_side="right").input_ids[1][-1] == 517
    toy.pad_token_id = 0
    assert (toy.pad_token, toy.pad_token_id) == ("!", 0)
    toy.pad_token = toy.eos_token
    assert toy.pad_token_id == 517
    toy.model_max_length = np.int64(5)
    assert type(toy.model_max_length) is int
    assert toy("a", max_length=np.int64(2)).input_ids == [516, 517]
    assert toy("a", padding="max_length").input_ids == [517, 517, 516, a, 517]


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("truncation_side", "middle", "truncation_side='middle' is not known"),
        ("padding_side", None, "padding_side=None is not known"),
        ("pad_token", "[PAD]", "pad_token is '.PAD.' and the vocabulary's 518 tokens lack it"),
        ("bos_token", None, "bos_token is None"),
        ("eos_token", ["</s>"], "eos_token is"),
        ("pad_token_id", 600, "600 is not an id"),
        ("model_max_length", "long", "model_max_length is 'long'"),
        ("model_max_length", 1, "model_max_length is 1"),
        ("extra_special_tokens", ["x"], r"cannot be assigned: write from_pretrained\(FOLDER"),
        ("additional_special_tokens", ["x"], "additional_special_tokens cannot be assigned"),
    ],
)
def test_an_impossible_setting_is_refused_at_once(toy, name, value, message):
    with pytest.raises(InputError, match=message):
        setattr(toy, name, value)
    assert toy("the cat", padding="max_length", max_length=5).input_ids[-1] == 517


def test_explain(toy):
    shown = toy.explain("The<|endoftext|>CAT")
    assert shown.normalized == shown.normalised == "the<|endoftext|>cat"
    assert [part.piece for part in shown.pieces] == ["the", END, "cat"]
    assert shown.pieces[2].symbols == ["c", "a", "t</w>"]
    assert shown.pieces[2].merges == [("a", "t</w>"), ("c", "at</w>")]
    assert shown.ids == toy.encode("The<|endoftext|>CAT") == [516, 513, 517, 515, 517]
    assert "  merge     c + at</w>\n  tokens    cat</w>" in str(shown)


@pytest.mark.parametrize("module", [unicode_text, tokenizer])
def test_examples_in_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
