"""PyTorch's archives without PyTorch: their tensors are read, all else is refused unrun."""

import copyreg
import os
import pickle
import re
import tracemalloc
import zipfile

import numpy as np
import pytest

from clipseg_np.convert import torch_archive
from clipseg_np.convert.torch_archive import MAX_PICKLE_BYTES, STAND_INS, read_archive
from clipseg_np.errors import InputError

from ..helpers.archives import (
    DICTIONARY,
    call,
    contents,
    group,
    module,
    number,
    state_dict,
    storage,
    tensor,
    text,
    write_archive,
    write_module,
    write_state_dict,
)

ORDERED_DICT = b"ccollections\nOrderedDict\n"
REBUILD_PARAMETER = b"ctorch._utils\n_rebuild_parameter\n"
ARRAY = np.arange(6, dtype=np.float32)
STORED = storage("FloatStorage", "0", 6)
WHOLE = tensor(STORED, 0, (6,), (1,))
MEMBERS = {"data/0": ARRAY.tobytes()}


def refused(path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_archive(path)
    assert str(path) in str(caught.value)


@pytest.fixture
def refuses(tmp_path):
    """A function: this program, in an archive with six numbers, is refused with this message."""

    def check(program: bytes, message: str, members=MEMBERS) -> None:
        refused(write_archive(tmp_path / "a.pth", program, members), message)

    return check


# What is read


def test_a_state_dict(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a.weight": rng.normal(size=(3, 4)).astype(np.float32),
        "a.bias": rng.normal(size=4).astype(np.float16),
        "double": rng.normal(size=(2, 1, 2)),
        "bfloat16": np.array([0x3F80, 0xC040], np.uint16),
        "scalar": np.array(7.5, np.float32),
        "steps": np.array([3], np.int64),
    }
    found = read_archive(write_state_dict(tmp_path / "a.pth", arrays))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].array.dtype == array.dtype
        np.testing.assert_array_equal(found[name].array, array)
    types = {name: raw.stored_type for name, raw in found.items()}
    assert types["bfloat16"] == "BF16" and types["steps"] == "I64"
    assert found["bfloat16"].floats().tolist() == [1, -3]


def test_views_of_one_storage(tmp_path):
    numbers = np.arange(12, dtype=np.float32)
    stored = storage("FloatStorage", "0", 12)
    parts = {
        "whole": tensor(stored, 0, (3, 4), (4, 1)),
        "turned": tensor(stored, 0, (4, 3), (1, 4)),
        "row": tensor(stored, 4, (4,), (1,)),
        "steps": tensor(stored, 1, (2, 2), (6, 3)),
        "last": tensor(stored, 11, (), ()),
        "one": tensor(stored, 2, (1, 3), (2**62, 1)),  # a stride along one number is never taken
        "parameter": REBUILD_PARAMETER
        + group(tensor(stored, 0, (2,), (1,)), b"\x88", DICTIONARY)
        + b"R",
    }
    path = write_archive(tmp_path / "a.pth", state_dict(parts), {"data/0": numbers.tobytes()})
    found = {name: raw.array.tolist() for name, raw in read_archive(path).items()}
    assert found["whole"] == numbers.reshape(3, 4).tolist()
    assert found["turned"] == numbers.reshape(3, 4).T.tolist()
    assert found["row"] == [4, 5, 6, 7] and found["steps"] == [[1, 4], [7, 10]]
    assert found["last"] == 11 and found["one"] == [[2, 3, 4]] and found["parameter"] == [0, 1]


def test_the_numbers_are_a_view_of_the_file(tmp_path):
    found = read_archive(write_state_dict(tmp_path / "a.pth", {"a": ARRAY}))["a"].array
    assert not found.flags.writeable and not found.flags.owndata


def test_a_torchscript_module(tmp_path):
    arrays = {"visual.proj": ARRAY.reshape(2, 3), "visual.0.bias": ARRAY, "scale": ARRAY[:1]}
    found = read_archive(write_module(tmp_path / "a.pt", arrays))
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].array, array)


def test_what_stands_around_tensors_is_left_out(tmp_path):
    """Lists with their types, settings, and the versions that a state dict keeps of its layers."""
    typed = call("torch.jit._pickle", "build_intlist", b"](K\x01K\x02e")
    tagged = call("torch.jit._pickle", "restore_type_tag", b"]", text("List[int]"))
    parts = {"a": WHOLE, "sizes": typed, "other": tagged, "rate": b"G" + bytes(8), "x": b"N"}
    program = b"\x80\x02" + module(parts) + b"."
    assert list(read_archive(write_archive(tmp_path / "a.pt", program, MEMBERS))) == ["a"]
    versions = DICTIONARY + text("") + b"}" + text("version") + b"K\x01ss"
    program = state_dict({"a": WHOLE})[:-1] + b"}" + text("_metadata") + versions + b"sb."
    assert list(read_archive(write_archive(tmp_path / "b.pth", program, MEMBERS))) == ["a"]


# What is refused: functions, and instructions that reach them


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_calls_a_function(protocol, refuses, tmp_path):
    trap = Trap(tmp_path / "sprung")
    program = pickle.dumps({"a": trap}, protocol)
    refuses(program, r"mkdir|the opcode [A-Z_]+, which no tensor needs")
    assert not trap.path.exists()
    pickle.loads(program)  # it is a trap
    assert trap.path.exists()


@pytest.mark.parametrize(
    "name",
    [
        "os system",
        "posix system",
        "builtins eval",
        "builtins exec",
        "builtins getattr",
        "__builtin__ eval",
        "collections namedtuple",
        "collections OrderedDict.update",
        "torch load",
        "torch.hub load",
        "torch._utils _rebuild_sparse_tensor",
        "torch.storage _load_from_bytes",
        "torch.jit._pickle build_x",
        "clipseg_np.convert.torch_archive _Module",
        "clipseg_np.convert.torch_archive read_archive",
        "copyreg add_extension",
        "__torch__evil x",
        "__torch__x y",
        "models.clipseg CLIPDensePredT",
    ],
)
def test_a_name_that_no_tensor_needs(name, refuses, tmp_path):
    place, function = name.split()
    program = call(place, function, text(f"mkdir {tmp_path / 'sprung'}"))
    refuses(state_dict({"a": program}), re.escape(f"asks for '{place}.{function}'"))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("program", "name"),
    [
        (text("os") + text("system") + b"\x93", "STACK_GLOBAL"),
        (b"(S'x'\nios\nsystem\n", "STRING"),
        (b"(ios\nsystem\n", "INST"),
        (b"(cos\nsystem\no", "OBJ"),
        (b"(" + DICTIONARY + b"o", "OBJ"),
        (b"\x82\x01", "EXT1"),
        (b"\x83\x01\x00", "EXT2"),
        (b"\x84\x01\x00\x00\x00", "EXT4"),
        (b"P1\n", "PERSID"),
        (DICTIONARY + b")}\x92", "NEWOBJ_EX"),
        (b"N2", "DUP"),
        (b"N0", "POP"),
        (b"L" + b"9" * 99 + b"L\n", "LONG"),
    ],
)
def test_an_opcode_that_no_tensor_needs(program, name, refuses):
    refuses(b"\x80\x04" + program + b".", name)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (text("os") + b")R", "'str' object is not callable"),
        (b"K\x01)R", "'int' object is not callable"),
        (WHOLE + b")R", "'_Tensor' object is not callable"),
        (b"ctorch\nFloatStorage\n)R", "'str' object is not callable"),
        (ORDERED_DICT + b"K\x01R", "must be a tuple"),
        (ORDERED_DICT + group(b"]") + b"R", "takes 1 positional argument but 2"),
        (ORDERED_DICT + group(b"](K\x01K\x02\x86e") + b"R", "takes 1 positional argument but 2"),
        (REBUILD_PARAMETER + group(b"K\x01") + b"R", "neither a state dict nor a module"),
        (REBUILD_PARAMETER + b")R", "missing 1 required positional argument"),
        (REBUILD_PARAMETER + b")\x81", "expected a type|must be a type|isn't a type|not a class"),
        (b"c__torch__\nA\n" + group(text("x")) + b"\x81", "takes no arguments"),
        (b"c__torch__\nA\nK\x01\x81", "must be a tuple|expected an arg tuple"),
        (ORDERED_DICT + b"}b", "missing 1 required positional argument"),
        (b"c__torch__\nA\n}b", "missing 1 required positional argument"),
        (b"ctorch\nFloatStorage\n}" + text("a") + b"Nsb", "no attribute '__dict__'"),
        (REBUILD_PARAMETER + b"}" + text("a") + b"Nsb", "no attribute '__dict__'"),
        (WHOLE + b"}b", "changes a tensor"),
        (STORED + b"}b", "changes a tensor"),
        (b"]}" + text("a") + b"Nsb", "no attribute '__dict__'"),
        (b"c__torch__\nA\n)\x81" + b"K\x01b", "changes a module"),
        (b"c__torch__\nA\n)\x81" + group(b"N", b"}") + b"b", "changes a module"),
        (module({"x": b"N"}) + b"}b", "changes a module"),
        (b")K\x01a", "no attribute 'append'"),
        (DICTIONARY + b"K\x01a", "no attribute 'append'"),
        (b"](K\x01K\x02u", "assignment index out of range"),
        (b"}K\x01K\x02s", "1 is not a tensor"),
        (b"}" + number(2**21) + b"K\x02s", "a key of type int"),
        (b"}" + number(-1) + b"K\x02s", "a key of type int"),
        (b"}\x88K\x02s", "a key of type bool"),
        (DICTIONARY + number(2**21) + b"K\x02s", "a key of type int"),
        (b"}]K\x02s", "a key of type list"),
        (b"}(" + text("a") + b"N" + number(2**61 - 1) + b"K\x02u", "a key of type int"),
        (b"}" + text("\ud800") + b"K\x02s", "a key of type str; expected printable text"),
        (b"}" + text("\x1b[2J") + b"K\x02s", "a key of type str; expected printable text"),
        (DICTIONARY + text("a\n") + b"K\x02s", "a key of type str; expected printable text"),
    ],
)
def test_a_known_thing_used_in_an_unknown_way(program, message, refuses):
    refuses(b"\x80\x02" + program + b".", message)


@pytest.mark.parametrize("name", STAND_INS)
@pytest.mark.parametrize("state", [b"}" + text("a") + b"Ns", group(b"N", b"}" + text("a") + b"Ns")])
def test_build_changes_no_stand_in(name, state, refuses):
    """BUILD would set attributes: a state's through __dict__, a pair's second part by setattr."""
    named = "\n".join(name.rsplit(".", 1)).encode()
    refuses(b"\x80\x02c" + named + b"\n" + state + b"b.", "no attribute|missing 1 required")
    assert not hasattr(STAND_INS[name], "a")


@pytest.mark.parametrize("state", [b"}" + text("a") + b"Ns", group(b"N", b"}" + text("a") + b"Ns")])
def test_build_does_not_change_the_modules_class(state, refuses):
    refuses(b"\x80\x02c__torch__\nA\n" + state + b"b.", "missing 1 required")
    assert not hasattr(torch_archive._Module, "a") and torch_archive._Module.attributes is None


def test_a_registered_extension(refuses):
    """The unpickler takes an extension that it has met before from a cache, past find_class."""
    copyreg.add_extension("os", "system", 7)
    try:
        assert pickle.loads(b"\x80\x02\x82\x07.") is os.system
        refuses(b"\x80\x02\x82\x07" + group(text("true")) + b"R.", "the opcode EXT1")
    finally:
        copyreg.remove_extension("os", "system", 7)


@pytest.mark.parametrize("opcode", [b"r\xff\xff\xff\xff", b"r\x00\x10\x00\x00"])
def test_a_large_memo_index(opcode, refuses):
    """The unpickler's memo is a table of as many places; it may be as long as the pickle."""
    program = b"\x80\x02" + DICTIONARY + text("a") + opcode + WHOLE + b"s."
    refuses(program, "the memo index")


def test_memo_indices_with_gaps(tmp_path):
    """As PyTorch of C++ writes them, and a pickle that was optimized."""
    program = b"\x80\x02" + DICTIONARY + text("a") + b"qar\x50\x00\x00\x00" + WHOLE + b"s."
    assert list(read_archive(write_archive(tmp_path / "a.pth", program, MEMBERS))) == ["a"]


@pytest.mark.parametrize("dictionary", [b"}", DICTIONARY])
def test_a_deep_key(dictionary, refuses):
    """Python's hash of such a tuple overflows C's stack and ends the process."""
    deep = b")" + b"\x85" * 500_000
    refuses(b"\x80\x02" + dictionary + deep + b"K\x02s.", "a key of type tuple")
    pairs = group(b"](" + deep + b"K\x02\x86e")
    refuses(b"\x80\x02" + ORDERED_DICT + pairs + b"R.", "takes 1 positional argument but 2")


@pytest.mark.parametrize("wrap", [b"\x85", b"a", b"s", b"b"])
def test_deep_nesting(wrap, refuses):
    """100,000 tuples, lists, dictionaries or modules inside one another."""
    count = 50_000 if wrap == b"b" else 100_000
    opening, around = {
        b"\x85": (b"", b"\x85"),
        b"a": (b"]", b"a"),
        b"s": (b"}" + text("a"), b"s"),
        b"b": (b"c__torch__\nA\n)\x81}" + text("a"), b"sb"),
    }[wrap]
    program = opening * count + b"N" + around * count
    refuses(b"\x80\x02" + program + b".", "neither a state dict|too deep|not a tensor")


@pytest.mark.parametrize("fill", [b"]", b")", b"(", b"N"])
def test_a_pickle_of_two_megabytes_of_one_opcode(fill, refuses):
    program = b"\x80\x02" + fill * (MAX_PICKLE_BYTES - 100) + b"N."
    refuses(program, "neither a state dict nor a module|not a whole archive")


@pytest.mark.parametrize(
    "program",
    [
        b"\x8a\xff" + bytes(9),
        b"\x8b\xff\xff\xff\x7f",
        b"\x8b\xff\xff\xff\xff",
        b"X\xff\xff\xff\xff",
        b"\x8d" + b"\xff" * 7 + b"\x7f",
        b"\x8e" + b"\xff" * 7 + b"\x7f",
        b"\x96" + b"\x00" * 5 + b"\x10\x00\x00",
        b"T\xff\xff\xff\x7f",
        b"B\xff\xff\xff\xff",
    ],
)
def test_a_length_beyond_the_pickle(program, refuses):
    tracemalloc.start()
    refuses(b"\x80\x05" + program + b"a.", "not a whole archive of PyTorch")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 2**20


def test_a_frame_of_any_length(refuses):
    refuses(b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f" + b"N.", "the opcode FRAME")


BROKEN = [b"", b".", b"\x80\x02N", b"R.", b"t.", b"a.", b"h\x05.", b"q\x00.", b"\xff.", b"b."]


@pytest.mark.parametrize("program", [*BROKEN, b"X\xff\xff\xff\x7fa."])
def test_a_pickle_that_breaks_off(program, refuses):
    refuses(program, "not a whole archive of PyTorch")


@pytest.mark.parametrize("program", [b"N.", b"K\x01.", b"].", WHOLE + b".", b"cos\nsystem\n."])
def test_a_pickle_of_something_else(program, refuses):
    refuses(b"\x80\x02" + program, "neither a state dict nor a module|asks for")


def test_the_state_dict_of_a_training(tmp_path):
    """An optimizer's state has small numbers for keys, and lies deeper than the weights."""
    state = DICTIONARY + contents({"a": WHOLE})
    numbered = b"}K\x00" + state + b"s"
    others = {"epoch": b"K\x03", "loss": b"G" + bytes(8), "rng": WHOLE, "best": b"N"}
    others["optimizer"] = b"}" + contents({"state": numbered, "param_groups": b"]"})
    others["scheduler"] = b"}"
    for name in ("model_state_dict", "state_dict", "model", "net"):
        program = state_dict({**others, name: state})
        assert list(read_archive(write_archive(tmp_path / "a.pth", program, MEMBERS))) == ["a"]


def test_several_state_dicts_and_none(refuses):
    state = DICTIONARY + contents({"a": WHOLE})
    message = "it holds several dictionaries of tensors: 'model', 'ema'"
    refuses(state_dict({"model": state, "ema": state}), message)
    refuses(state_dict({"a": WHOLE, "epoch": b"K\x03"}), "'epoch' is not a tensor")
    numbered = b"}K\x00" + WHOLE + b"s"
    refuses(state_dict({"model": numbered}), "'model' is not a tensor")


def test_modules_that_hold_themselves_or_too_many(refuses):
    holder = b"c__torch__\nA\n)\x81q\x00"
    refuses(b"\x80\x02" + holder + b"}" + text("a") + b"h\x00sb.", "a module twice")
    program = b"\x80\x02" + module({}) + b"q\x00"
    for _ in range(60):  # 2**60 names
        program += module({"a": b"h\x00", "b": b"h\x00"}) + b"q\x00"
    refuses(program + b".", "a module twice")
    program = WHOLE
    for _ in range(200):
        program = module({"a": program})
    refuses(b"\x80\x02" + program + b".", "too deep")


# What is refused: tensors that are not where they are said to be


@pytest.mark.parametrize(
    ("offset", "size", "stride", "message"),
    [
        (0, (7,), (1,), "larger than its storage of 6"),
        (1, (6,), (1,), "larger than its storage"),
        (6, (1,), (1,), "larger than its storage"),
        (0, (2, 3), (4, 1), "larger than its storage"),
        (0, (2,), (2**62,), "larger than its storage"),
        (0, (2,), (2**2000,), "larger than its storage"),
        (2**2000, (1,), (1,), "larger than its storage"),
        (0, (2**40,), (0,), "larger than its storage"),
        (0, (2**32, 2**32), (0, 0), "larger than its storage"),
        (0, (0,), (1,), "empty"),
        (0, (-1,), (1,), "empty"),
        (5, (6,), (-1,), "negative"),
        (-1, (1,), (1,), "negative"),
        (0, (2, 3), (1,), "do not fit one another"),
        (0, (1,) * 33, (1,) * 33, "do not fit one another"),
    ],
)
def test_a_tensor_beyond_its_storage(offset, size, stride, message, refuses):
    refuses(state_dict({"a": tensor(STORED, offset, size, stride)}), message)


REBUILD = "torch._utils", "_rebuild_tensor_v2"


@pytest.mark.parametrize(
    "arguments",
    [
        (text("x"), b"K\x00", group(b"K\x01"), group(b"K\x01")),
        (STORED, b"\x88", group(b"K\x01"), group(b"K\x01")),
        (STORED, b"K\x00", b"](K\x01e", group(b"K\x01")),
        (STORED, b"K\x00", group(text("1")), group(b"K\x01")),
        (STORED, b"K\x00", group(b"G" + bytes(8)), group(b"K\x01")),
        (STORED, b"K\x00", group(b"K\x01"), b"N"),
        (STORED, b"K\x00"),
    ],
)
def test_a_tensor_of_other_things(arguments, refuses):
    program = state_dict({"a": call(*REBUILD, *arguments)})
    refuses(program, "describes a tensor in an unknown way|missing 2 required positional")


def described(kind: bytes, key: bytes) -> bytes:
    return group(text("storage"), kind, key, text("cpu"), b"K\x06") + b"Q"


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (storage("FloatStorage", "1", 6), "lacks the member 'name/data/1'"),
        (storage("FloatStorage", "../../../etc/passwd", 6), "lacks the member"),
        (storage("FloatStorage", "/etc/passwd", 6), "lacks the member"),
        (storage("FloatStorage", "0", 7), "storage '0' is not 7 numbers of type F32"),
        (storage("DoubleStorage", "0", 6), "storage '0' is not 6 numbers of type F64"),
        (group(STORED, storage("HalfStorage", "0", 6)), "storage '0' is not 6 numbers of type F16"),
        (text("0") + b"Q", "describes a storage in an unknown way"),
        (b"NQ", "describes a storage in an unknown way"),
        (b"]Q", "describes a storage in an unknown way"),
        (b"G" + bytes(8) + b"Q", "describes a storage in an unknown way"),
        (b")" + b"\x85" * 100_000 + b"Q", "describes a storage in an unknown way"),
        (STORED + b"Q", "describes a storage in an unknown way"),
        (described(text("x"), text("0")), "a storage in"),
        (described(b"ctorch\nFloatStorage\n", b"K\x00"), "a storage in"),
    ],
)
def test_a_storage_that_is_not_there(stored, message, refuses):
    refuses(state_dict({"a": stored}), message)


def test_a_compressed_member(tmp_path):
    """100 MB of zeros in 100 KB: neither the pickle nor the numbers are ever unpacked."""
    for name in ("name/data.pkl", "name/data/0"):
        path = tmp_path / "bomb.pth"
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in {
                "name/data.pkl": state_dict({"a": WHOLE}),
                "name/data/0": ARRAY.tobytes(),
            }.items():
                bomb = member == name
                kind = zipfile.ZIP_DEFLATED if bomb else zipfile.ZIP_STORED
                archive.writestr(member, bytes(10**8) if bomb else content, kind)
        assert path.stat().st_size < 10**6
        refused(path, f"member '{name}' is compressed")


def test_a_pickle_that_is_too_long(refuses):
    refuses(state_dict({"a": text("x" * MAX_PICKLE_BYTES)}), "data.pkl has .* expected at most")


def test_members_inside_one_another(tmp_path):
    """Each is nearly as long as the file: read one by one, they would take as often the time."""
    content, inner = bytes(2000), []
    for key in range(5):
        member = zipfile.ZipInfo(f"name/data/{key}")
        member.file_size = member.compress_size = len(content)
        member.CRC = zipfile.crc32(content)
        content = member.FileHeader() + content
        inner.append((member, len(content)))
    stored = [storage("ByteStorage", str(key), 2000) for key in range(6)]
    parts = {f"a{key}": tensor(one, 0, (1,), (1,)) for key, one in enumerate(stored)}
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("name/data/5", content)
        for member, length in inner:
            member.header_offset = archive.fp.tell() - length
            archive.filelist.append(member)
        archive.writestr("name/data.pkl", state_dict(parts))
    refused(
        path, "more bytes than the file|Overlapped"
    )  # later versions of zipfile see it themselves


# What is no whole archive


@pytest.fixture
def sound(tmp_path):
    return write_state_dict(tmp_path / "sound.pth", {"a": np.arange(2000.0)})


@pytest.mark.parametrize("kept", [0, 1, 30, 1000, 16_000, -200, -22, -1])
def test_a_file_that_is_cut_off(kept, sound):
    sound.write_bytes(sound.read_bytes()[:kept])
    refused(sound, "not a whole archive of PyTorch .*cut off: fetch it again")


def test_numbers_that_were_damaged(sound):
    content = bytearray(sound.read_bytes())
    content[len(content) // 2] ^= 1
    sound.write_bytes(content)
    refused(sound, "not a whole archive of PyTorch .*CRC")


def test_any_byte_that_was_damaged(tmp_path):
    """Either it is refused or it does not matter: nothing but an InputError is raised."""
    path = write_state_dict(tmp_path / "a.pth", {"a": ARRAY})
    whole = path.read_bytes()
    refusals = 0
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 0xFF
        path.write_bytes(content)
        try:
            found = read_archive(path)
        except InputError:
            refusals += 1
        else:
            assert [raw.array.tolist() for raw in found.values()] == [ARRAY.tolist()]
    assert refusals > len(whole) / 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not an archive", "not a whole archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-LFS pointer"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.rest", "the format of PyTorch before 1.6"),
    ],
)
def test_another_file(content, message, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    refused(tmp_path / "a.pth", message)


def test_an_archive_of_something_else(tmp_path):
    path = tmp_path / "a.pth"
    for names in ([], ["data.pkl"], ["a/b/data.pkl"], ["a/data.pkl", "b/data.pkl"]):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, state_dict({}))
        refused(path, f"holds {len(names) if len(names) == 2 else 0} members FOLDER/data.pkl")


def test_numbers_of_the_other_byte_order(refuses):
    refuses(state_dict({"a": WHOLE}), "big-endian", MEMBERS | {"byteorder": b"big"})


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="is missing: expected a file that PyTorch"):
        read_archive(tmp_path / "a.pth")
