"""Files made to harm: each is one clear line, soon, and without filling the memory.

Most are made by hand, opcode by opcode, and put where a file's pickle goes: an EDM pickle, the
data.pkl of a zip, the tree of a stream. The rest are good files with a byte or more changed.
"""

import io
import os
import pickle
import struct
import time
import tracemalloc
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffjax.errors import UserError
from diffjax.weights import edm_pickles, opcodes
from diffjax.weights.reading import read_weights

MAGIC = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."
ABOUT = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)


# --- pickles by hand


def text(s: str) -> bytes:
    return b"X" + struct.pack("<I", len(s.encode())) + s.encode()


def number(n: int) -> bytes:
    raw = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def row(*numbers: int) -> bytes:
    return b"(" + b"".join(map(number, numbers)) + b"t"


def storage(key=text("0"), kind=name("torch", "FloatStorage"), count=4, more=b"") -> bytes:
    return b"(" + text("storage") + kind + key + text("cpu") + number(count) + more + b"tQ"


def tensor(offset=0, sizes=(4,), strides=(1,), of=None) -> bytes:
    head = name("torch._utils", "_rebuild_tensor_v2") + b"(" + (storage() if of is None else of)
    return head + number(offset) + row(*sizes) + row(*strides) + b"\x89}tR"


def program(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


def tree(body: bytes) -> bytes:
    """{"w": what `body` makes}."""
    return program(b"}" + text("w") + body + b"s")


CALL = name("os", "system") + text("touch pwned") + b"\x85R"
META = name("torch_utils.persistence", "_reconstruct_persistent_obj")
DOUBLING = b"](K\x01e\x94" + b"".join(
    b"](h" + bytes([i]) + b"h" + bytes([i]) + b"e\x94" for i in range(60)
)
TUPLES = b"K\x01\x94" + b"".join(b"h" + bytes([i]) + b"\x86\x94" for i in range(60))
# what a pickle says -> what the error says, wherever the pickle is
PICKLES = {
    "os.system": (program(CALL), "asks for os.system"),
    "posix.system": (program(CALL.replace(b"os", b"posix")), "asks for posix.system"),
    "in a good tree": (tree(CALL), "asks for os.system"),
    "Popen": (program(name("subprocess", "Popen") + text("ls") + b"\x85R"), "subprocess.Popen"),
    "builtins.eval": (program(name("builtins", "eval") + text("1") + b"\x85R"), "builtins.eval"),
    "STACK_GLOBAL": (program(text("os") + text("system") + b"\x93"), "asks for os.system"),
    "STACK_GLOBAL of odd letters": (
        program(text("osа") + text("s\nystem") + b"\x93"), r"asks for os\\u0430.s\\nystem"
    ),
    "STACK_GLOBAL of bytes": (program(b"C\x02osC\x06system\x93"), "with something that is no text"),
    "STACK_GLOBAL of a list": (program(b"]]\x93"), "with something that is no text"),
    "dotted name": (
        program(text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93"),
        "__globals__, which is not on the list",
    ),
    "module of an allowed one": (program(name("torch", "load")), "asks for torch.load"),
    "torch.load by its file": (program(name("torch.serialization", "load")), "serialization.load"),
    "no allowed call": (
        program(name("torch", "FloatStorage") + b")R"), "calls torch.FloatStorage"
    ),
    "NEWOBJ": (program(name("os", "system") + text("ls") + b"\x85\x81"), "asks for os.system"),
    "NEWOBJ_EX": (program(name("collections", "OrderedDict") + b")}\x92"), "opcode NEWOBJ_EX"),
    "INST": (program(b"(" + text("ls") + b"ios\nsystem\n"), "opcode INST"),
    "OBJ": (program(b"(" + name("collections", "OrderedDict") + b"o"), "opcode OBJ"),
    "EXT1": (program(b"\x82\x01"), "opcode EXT1"),
    "EXT4": (program(b"\x84\x01\x00\x00\x00"), "opcode EXT4"),
    "PERSID": (program(b"Pos.system\n"), "opcode PERSID"),
    "DUP": (program(b"K\x012"), "opcode DUP"),
    "out-of-band buffer": (program(b"\x97"), "opcode NEXT_BUFFER"),
    "unknown opcode": (program(b"\xff"), "opcode 0xff"),
    "protocol 0": (b"\x80\x00N.", "neither|protocol 0"),
    "protocol 200": (b"\x80\xc8N.", "neither|protocol 200"),
    "call of a result": (
        program(name("collections", "OrderedDict") + b")R)R"), "calls a dict"
    ),
    "call with a list": (
        program(name("collections", "OrderedDict") + b"]R"), "a list for arguments"
    ),
    "OrderedDict of pairs": (
        program(name("collections", "OrderedDict") + b"((K\x01K\x02tt\x85R"), "broken collections"
    ),
    "BUILD of a class": (
        program(name("torch", "FloatStorage") + b"}" + text("__class__") + b"Nsb"),
        "gives a state to a Name",
    ),
    "BUILD of a list": (program(b"]}b"), "gives a state to a list"),
    "BUILD of a tensor": (
        tree(tensor() + b"}" + text("__class__") + b"Nsb"),
        "gives a state to a Tensor|data outside itself",
    ),
    "BUILD twice": (program(name("numpy", "dtype") + text("f8") + b"\x85R}b}b"), "state twice"),
    "dtype with fields": (
        program(name("numpy", "dtype") + text("f8,O") + b"\x85R"), "other than a plain number"
    ),
    "dtype of objects": (program(name("numpy", "dtype") + text("O8") + b"\x85R"), "broken numpy"),
    "scalar too long": (
        program(
            name("numpy.core.multiarray", "scalar")
            + name("numpy", "dtype") + text("f8") + b"\x85RC\x09123456789\x86R"
        ),
        "another length",
    ),
    "encode as Python": (
        program(name("_codecs", "encode") + text("x") + text("unicode_escape") + b"\x86R"),
        "an encoding other",
    ),
    "encode a long text": (
        program(name("_codecs", "encode") + text("x" * 65) + text("latin1") + b"\x86R"),
        "an encoding other than of a short text",
    ),
    "endless text": (program(b"X\xff\xff\xff\xff"), "a text of 4294967295 bytes"),
    "endless long text": (program(b"\x8d" + b"\xff" * 8), "a text of 18446744073709551615"),
    "endless bytes": (program(b"\x8e" + b"\xff" * 8), "cut short"),
    "bytes beyond the file": (program(b"B\x00\x00\x00\x40"), "cut short"),
    "frame beyond the file": (program(b"\x95" + b"\xff" * 8), "cut short"),
    "text that is no UTF-8": (program(b"X\x02\x00\x00\x00\xff\xfe"), "cannot be read"),
    "surrogates": (program(b"X\x03\x00\x00\x00\xed\xa0\x80"), "cannot be read"),
    "LONG4": (program(b"\x8b\xff\xff\xff\x7f"), "an integer of 2147483647 bytes"),
    "LONG4 negative": (program(b"\x8b\xff\xff\xff\xff"), "an integer of -1 bytes"),
    "LONG1 of 255": (program(b"\x8a\xff" + b"\x7f" * 255), "an integer of 255 bytes"),
    "billion laughs": (program(DOUBLING), "other than one value|unfolds to more"),
    "billion laughs in one": (program(b"(" + DOUBLING + b"t"), "unfolds to more"),
    "billion laughs of tuples": (program(TUPLES), "unfolds to more"),
    "exponential key": (program(b"}" + TUPLES + b"Ns"), "has a tuple for a key"),
    "tuple for a key": (program(b"})Ns"), "has a tuple for a key"),
    "bytes for a key": (program(b"}C\x01wNs"), "has a memoryview for a key"),
    "colliding key": (program(b"}" + number(1 << 61) + b"Ns"), "has a int for a key"),
    "list in itself": (program(b"]\x94h\x00a"), "holds itself"),
    "dict in itself": (program(b"}\x94" + text("w") + b"h\x00s"), "holds itself"),
    "two in each other": (program(b"]\x94(]\x94h\x00ae"), "holds itself"),
    "itself through a tuple": (program(b"]\x94h\x00\x85a"), "holds itself"),
    "deep lists": (program(b"]" * 5000 + b"a" * 4999), "nests deeper than 100"),
    "deep tuples": (program(b")" + b"\x85" * 20_000), "nests deeper than 100"),
    "deep dicts": (program((b"}" + text("a")) * 200 + b"N" + b"s" * 200), "nests deeper than 100"),
    "no end": (b"\x80\x04" + b"N" * 100, "cut short|one value"),
    "endless program": (program(b"N" * 1_100_000), "more than 1000000 opcodes"),
    "nothing": (b"\x80\x04.", "other than one value"),
    "two values": (program(b"NN"), "other than one value"),
    "a mark": (program(b"("), "other than one value"),
    "no mark": (program(b"K\x01t"), "a mark that it never set"),
    "empty stack": (program(b"\x85"), "from an empty stack"),
    "over a mark": (program(b"K\x01(\x85"), "from an empty stack"),
    "memory never set": (program(b"h\x05"), "recalls value 5"),
    "append to a dict": (program(b"}K\x01a"), "appends to a dict"),
    "items of a list": (program(b"](K\x01K\x02u"), "sets items of a list"),
    "half an item": (program(b"}(K\x01u"), "an item without a value"),
    "name without an end": (program(b"c" + b"a" * 1000), "a name without an end"),
    "something after it": (program(b"}") + b"more", "no EDM|follow|opcode 0x6d"),
}  # fmt: skip


def edm(body: bytes) -> bytes:
    return body


def zipped(body: bytes, files: dict[str, bytes] | None = None, method=zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("a/data.pkl", body)
        for key, data in (files or {"a/data/0": bytes(16)}).items():
            archive.writestr(key, data)
    return out.getvalue()


def streamed(body: bytes, keys=("0",), data=struct.pack("<q", 4) + bytes(16)) -> bytes:
    head = MAGIC + b"\x80\x02M\xe9\x03." + ABOUT
    return head + body + pickle.dumps(list(keys), 2) + data


def refused(path, data: bytes, message: str, cap: int = 48 << 20) -> str:
    """Reads a file that must be refused, with a watch on time and memory."""
    path.write_bytes(data)
    tracemalloc.start()
    begin = time.monotonic()
    try:
        with pytest.raises(UserError, match=message) as caught:
            read_weights(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    said = str(caught.value)
    assert said.startswith(str(path)) and "\n" not in said and len(said) < 600
    assert peak < cap + 2 * len(data) and time.monotonic() - begin < 20
    return said


@pytest.mark.parametrize("pack", [edm, zipped, streamed], ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", PICKLES)
def test_pickles(case, pack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where what a file runs would leave its mark
    body, message = PICKLES[case]
    if pack is streamed:
        message += "|its list of storages"  # some leave a good tree and rubbish for the rest
    if case == "endless program" and pack is not edm:
        pytest.skip("once is enough for a slow one")
    refused(tmp_path / "a.bin", pack(body), message)
    assert not os.path.exists("pwned")


def test_persistent_objects_are_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = text("module_src") + text("import os; os.system('touch pwned')")
    meta = b"}(" + text("type") + text("class") + source + text("class_name") + text("X")
    body = program(b"}" + text("ema") + META + meta + text("state") + b"}u\x85Rs")
    refused(tmp_path / "a.pkl", body, "architecture 'X' is not supported")
    assert not os.path.exists("pwned")
    in_itself = program(b"}" + text("ema") + META + b"}\x94" + text("state") + b"h\x00s\x85Rs")
    refused(tmp_path / "a.pkl", in_itself, "holds itself")


TENSORS = {
    "offset beyond": (tensor(offset=1), "element 4 of a storage of 4"),
    "offset negative": (tensor(offset=-1), "at least 0"),
    "stride negative": (tensor(strides=(-1,)), "at least 0"),
    "stride huge": (tensor(strides=(1 << 40,)), "of a storage of 4"),
    "size negative": (tensor(sizes=(-4,)), "at least 0"),
    "size huge": (tensor(sizes=(1 << 62,)), "at least 0"),
    "sizes that overflow": (
        tensor(sizes=(1 << 33, 1 << 33), strides=(0, 0)), "unfold to far more"
    ),
    "expanded": (tensor(sizes=(1 << 30,), strides=(0,)), "unfold to far more"),
    "a size of text": (
        name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage()
        + b"K\x00" + text("4") + b"\x85" + row(1) + b"\x89}tR",
        "at least 0",
    ),
    "ranks differ": (tensor(strides=(1, 1)), "do not match"),
    "rank of 1000": (tensor(sizes=(1,) * 1000, strides=(1,) * 1000), "1000 dimensions"),
    "no storage": (tensor(of=b"N"), "a tensor without a storage"),
    "storage is text": (tensor(of=text("0")), "a tensor without a storage"),
    "persistent id is text": (text("os.system") + b"Q", "is no storage"),
    "persistent id is short": (text("storage") + b"\x85Q", "is no storage"),
    "unknown storage": (tensor(of=storage(kind=name("torch", "float32"))), "a storage of torch.f"),
    "storage of text": (tensor(of=storage(kind=text("FloatStorage"))), "a storage of no type"),
    "key is a number": (tensor(of=storage(key=number(0))), "without a name"),
    "key is bytes": (tensor(of=storage(key=b"C\x010")), "without a name"),
    "count lies": (tensor(of=storage(count=5)), "says that storage '0' has 5|has 4 numbers, not 5"),
    "count negative": (tensor(of=storage(count=-4)), "impossible length"),
    "count huge": (tensor(of=storage(count=1 << 60)), "impossible length"),
    "part of another": (tensor(of=storage(more=text("v"))), "a part of another"),
    "other key": (tensor(of=storage(key=text("../../etc/passwd"))), "no data for|its list of s"),
    "parameter of nothing": (
        name("torch._utils", "_rebuild_parameter") + b"N\x85R", "parameter without a tensor"
    ),
    "parameter of too few": (name("torch._utils", "_rebuild_parameter") + b")R", "broken torch"),
}  # fmt: skip


def test_the_hand_made_tensor_is_good_when_nothing_is_wrong(tmp_path):
    path = tmp_path / "a.pt"
    for pack in (zipped, streamed):
        path.write_bytes(pack(tree(tensor())))
        assert read_weights(path)["w"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("pack", [zipped, streamed], ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", TENSORS)
def test_tensors(case, pack, tmp_path):
    body, message = TENSORS[case]
    refused(tmp_path / "a.pt", pack(tree(body)), message)


def test_many_large_views_of_one_small_storage(tmp_path):
    body = b"".join(text(str(i)) + tensor(sizes=(1000, 1000), strides=(0, 0)) for i in range(100))
    refused(tmp_path / "a.pt", zipped(program(b"}(" + body + b"u")), "unfold to far more")


# --- zips


def twice() -> bytes:
    with pytest.warns(UserWarning, match="Duplicate"):
        out = io.BytesIO(zipped(tree(tensor())))
        with zipfile.ZipFile(out, "a") as archive:
            archive.writestr("a/data/0", b"other")
    return out.getvalue()


def overlapping() -> bytes:
    """A hundred entries of the directory that share the data of one."""
    data = zipped(tree(tensor()), {"a/data/0": bytes(1 << 16)})
    start = data.rindex(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entry = data[start:end]
    more = b"".join(entry.replace(b"a/data/0", b"a/da%04d" % i) for i in range(100))
    first = data.index(b"PK\x01\x02")
    sizes = struct.pack("<HHII", 102, 102, end - first + len(more), first)
    return data[:end] + more + data[end : end + 8] + sizes + data[end + 20 :]


def flags(data: bytes) -> bytes:
    data = bytearray(data)
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


GOOD = tree(tensor())
ZIPS = {
    "no pickle": (lambda: zipped(b"").replace(b"data.pkl", b"dato.pkl"), "no PyTorch checkpoint"),
    "two pickles": (lambda: zipped(GOOD, {"b/data.pkl": GOOD}), "no PyTorch checkpoint"),
    "out of it": (lambda: zipped(GOOD, {"a/../../x": b""}), "unsafe name"),
    "absolute": (lambda: zipped(GOOD, {"/etc/passwd": b""}), "unsafe name"),
    "backslash": (lambda: zipped(GOOD, {"a\\b": b""}), "unsafe name"),
    "duplicate": (twice, "two files of the name"),
    "overlapping": (overlapping, "larger than it is"),
    "many small bombs": (
        lambda: zipped(
            GOOD, {f"a/data/{i}": bytes(60_000) for i in range(200)}, zipfile.ZIP_DEFLATED
        ),
        "say that they unpack to",
    ),
    "endless name": (
        lambda: zipped(tree(tensor(of=storage(key=text("a" * 9000))))), "no data for storage 'aaa"
    ),
    "bomb": (
        lambda: zipped(
            tree(tensor(of=storage(count=16 << 20))),
            {"a/data/0": bytes(64 << 20)},
            zipfile.ZIP_DEFLATED,
        ),
        "say that they unpack to 671",
    ),
    "pickle bomb": (
        lambda: zipped(program(b"N" * (8 << 20)), None, zipfile.ZIP_DEFLATED),
        "say that they unpack to",
    ),
    "encrypted": (lambda: flags(zipped(GOOD)), "encrypted"),
    "damaged": (
        lambda: zipped(GOOD, {"a/data/0": b"0123456789abcdef"}).replace(b"0123", b"0124"), "damaged"
    ),
    "packed otherwise": (lambda: zipped(GOOD, None, zipfile.ZIP_LZMA), "packed in an unusual way"),
    "byte order": (
        lambda: zipped(GOOD, {"a/data/0": bytes(16), "a/byteorder": b"middle"}), "is 'middle', not"
    ),
    "byte order is long": (
        lambda: zipped(GOOD, {"a/data/0": bytes(16), "a/byteorder": b"l" * 999}), "has 999 bytes"
    ),
    "storage is missing": (lambda: zipped(GOOD, {"a/data/1": bytes(16)}), "no data for storage"),
    "storage is short": (lambda: zipped(GOOD, {"a/data/0": bytes(15)}), "and it has 15 bytes"),
    "nothing but a start": (lambda: b"PK\x03\x04" + bytes(500), "not a zip file"),
    "no weights": (lambda: zipped(program(b"}" + text("a") + b"K\x01s")), "no weights in it"),
    "two of a name": (
        lambda: zipped(
            program(b"}(" + text("a") + b"}" + text("b.c") + tensor() + b"s"
                    + text("a.b") + b"}" + text("c") + tensor() + b"su")
        ),
        "two arrays of the name 'a.b.c'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ZIPS)
def test_zips(case, tmp_path):
    build, message = ZIPS[case]
    refused(tmp_path / "a.pt", build(), message)


STREAMS = {
    "version": (streamed(GOOD).replace(b"M\xe9\x03.", b"M\xea\x03."), "of a known version"),
    "byte order": (
        streamed(GOOD).replace(ABOUT, pickle.dumps({"little_endian": "yes"}, 2)),
        "byte order",
    ),
    "about is a list": (streamed(GOOD).replace(ABOUT, pickle.dumps([], 2)), "byte order"),
    "no keys": (streamed(GOOD, ()), "its list of storages"),
    "other keys": (streamed(GOOD, ("1",)), "its list of storages"),
    "keys of numbers": (streamed(GOOD, (0,)), "its list of storages"),
    "keys of lists": (streamed(GOOD, ([],)), "its list of storages"),
    "a key twice": (streamed(GOOD, ("0", "0")), "twice"),
    "cut": (streamed(GOOD)[:-1], "cut short in storage"),
    "more": (streamed(GOOD) + b"x", "1 bytes follow"),
    "negative": (streamed(GOOD, data=struct.pack("<q", -4) + bytes(16)), "has -4 numbers"),
    "two lengths": (
        streamed(program(b"(" + tensor() + tensor(of=storage(count=3), sizes=(3,)) + b"t")),
        "says two things of storage",
    ),
}


@pytest.mark.parametrize("case", STREAMS)
def test_streams(case, tmp_path):
    refused(tmp_path / "a.pt", *STREAMS[case])


def load_from_bytes(inner: bytes) -> bytes:
    head = name("torch.storage", "_load_from_bytes")
    return head + b"B" + struct.pack("<I", len(inner)) + inner + b"\x85R"


@pytest.mark.parametrize(
    "body, message",
    [
        (load_from_bytes(streamed(program(CALL))), "asks for os.system"),
        (load_from_bytes(streamed(GOOD)), "something else than a storage"),
        (load_from_bytes(b""), "cut short"),
        (load_from_bytes(GOOD), "asks for torch._utils"),
        (name("torch.storage", "_load_from_bytes") + text("x") + b"\x85R", "that is no bytes"),
        # A storage of one's own making inside a storage: not on the inner list.
        (load_from_bytes(streamed(program(load_from_bytes(b"")))), "asks for torch.storage"),
    ],
    ids=["call", "tensor", "empty", "no magic", "text", "nested"],
)
def test_storages_inside_a_pickle(body, message, tmp_path):
    refused(tmp_path / "a.pkl", tree(body), message)


def test_one_storage_recalled_many_times(tmp_path, monkeypatch):
    read, calls = edm_pickles.read_stream, []
    monkeypatch.setattr(edm_pickles, "read_stream", lambda *a: calls.append(1) or read(*a))
    inner = streamed(program(storage()))
    body = b"]\x94" + name("torch.storage", "_load_from_bytes") + b"\x94"
    body += b"B" + struct.pack("<I", len(inner)) + inner + b"\x85\x94"
    body += b"(" + b"h\x01h\x02R" * 20_000 + b"t"
    refused(tmp_path / "a.pkl", program(b"(" + body + b"t"), "no EDM network snapshot")
    assert len(calls) == 1


# --- files that are no weights, and good files made bad


@pytest.mark.parametrize("data", [b"", b"\x80", b"hello", bytes(100), b"GIF89a", b"PK\x03\x04"])
def test_other_files(data, tmp_path):
    refused(tmp_path / "a.pt", data, "neither safetensors nor|not a zip file|cut short")


def test_no_file(tmp_path):
    for path in (tmp_path / "a.pt", tmp_path):
        with pytest.raises(UserError, match="no such weights file"):
            read_weights(path)


@pytest.fixture(params=["torch_zip.pt", "torch_stream.pt", "snapshot"])
def good(request, files, snapshot) -> bytes:
    return (snapshot if request.param == "snapshot" else files / request.param).read_bytes()


def test_cut_short_anywhere(good, tmp_path):
    for part in range(16):
        refused(tmp_path / "a.bin", good[: len(good) * part // 16], "a.bin: ")


@pytest.mark.parametrize(
    "limit, good, bad",
    [
        ({"opcodes": 7}, b"(NNNt", b"(NNNNt"),
        ({"depth": 2}, b")\x85\x85", b")\x85\x85\x85"),
        ({"depth": 2}, b"]\x94h\x00\x86", b"]\x94h\x00\x86\x85\x85"),
        ({"values": 4}, b"(NNNt", b"(NNNNt"),
        ({"text": 2}, text("ab"), text("abc")),
        ({"integer": 1}, b"\x8a\x01\x00", b"\x8a\x02\x00\x01"),
    ],
)
def test_limits_are_limits(limit, good, bad):
    limits = opcodes.Limits(**limit)
    assert opcodes.load(b"x" + program(good), "here", {}, start=1, limits=limits)[1] > 3
    opcodes.load(program(bad), "here", {})
    with pytest.raises(UserError):
        opcodes.load(program(bad), "here", {}, limits=limits)


CHANGES = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=6), st.booleans()),
    min_size=1,
    max_size=4,
)
FUZZ = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


def read_or_refused(good: bytes, path, changes) -> None:
    """Whatever the changes, weights come back or one line does, and nothing else happens."""
    data = bytearray(good)
    for place, new, longer in changes:
        at = int(place * len(data))
        data[at : at + (0 if longer else len(new))] = new
    path.write_bytes(bytes(data))
    tracemalloc.start()
    try:
        arrays = read_weights(path)
        assert sum(a.nbytes for a in arrays.values()) <= 4 * len(data) + (17 << 20)
    except UserError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64 << 20


@settings(max_examples=25, **FUZZ)
@given(changes=CHANGES)
def test_changed_files_are_read_or_refused(good, tmp_path, changes):
    read_or_refused(good, tmp_path / "a.bin", changes)


@pytest.mark.slow
@settings(max_examples=500, **FUZZ)
@given(changes=CHANGES)
def test_many_changed_files_are_read_or_refused(good, tmp_path, changes):
    read_or_refused(good, tmp_path / "a.bin", changes)
