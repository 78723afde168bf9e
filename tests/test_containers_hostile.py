"""A hostile pickle does nothing: a clear error or a record, at a bounded cost."""

from __future__ import annotations

import copyreg
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from reading import contents_of, torch_zip

from registry import CkregError, DamagedError, UntrustedError
from registry.containers import Global, Opaque, TaggedDict, walk
from registry.containers.opcodes import OutOfBytesError
from registry.containers.pickles import read_pickle
from registry.containers.recording import Recorder


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """Return a file that code in a pickle would make."""
    return tmp_path / "ran"


def loaded(data: bytes) -> object:
    """Read one pickle."""
    return read_pickle(data, Recorder())[0]


def in_file(data: bytes, tmp_path: Path) -> object:
    """Read a pickle as the tree of a torch zip, every check of `read` included."""
    path = tmp_path / "hostile.pt"
    path.write_bytes(torch_zip(data))
    return contents_of(path).root


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text.encode())]) + text.encode()


def command(canary: Path) -> bytes:
    """Return the opcode that pushes a shell command which makes the canary."""
    text = f"touch {canary}".encode()
    return b"X" + struct.pack("<I", len(text)) + text


SHAPES = {
    "reduce": lambda c: b"\x80\x02cposix\nsystem\n" + command(c) + b"\x85R.",
    "stack_global": lambda c: (
        b"\x80\x04" + short("posix") + short("system") + b"\x93" + command(c) + b"\x85R."
    ),
    "stack_global from the memo": lambda c: (
        b"\x80\x04"
        + short("posix")
        + b"\x940"
        + short("system")
        + b"\x940h\x00h\x01\x93"
        + command(c)
        + b"\x85R."
    ),
    "inst": lambda c: b"(" + command(c) + b"iposix\nsystem\n.",
    "obj": lambda c: b"(cposix\nsystem\n" + command(c) + b"o.",
    "newobj": lambda c: b"\x80\x02csubprocess\nPopen\n" + command(c) + b"\x85\x81.",
    "newobj_ex": lambda c: (
        b"\x80\x04"
        + short("subprocess")
        + short("Popen")
        + b"\x93"
        + command(c)
        + b"\x85}"
        + short("shell")
        + b"\x88s\x92."
    ),
    "python 2 name": lambda c: b"c__builtin__\neval\n" + command(c) + b"\x85R.",
    "dotted name": lambda c: (
        b"\x80\x04" + short("os") + short("path.os.system") + b"\x93" + command(c) + b"\x85R."
    ),
    "copyreg": lambda c: b"\x80\x02ccopyreg\n__newobj__\ncposix\nsystem\n" + command(c) + b"\x86R.",
    "getattr chain": lambda c: (
        b"\x80\x02cbuiltins\ngetattr\ncbuiltins\n__import__\nX\x02\x00\x00\x00os\x85RX\x06\x00\x00\x00system"
        b"\x86R" + command(c) + b"\x85R."
    ),
    "a storage's loader": lambda c: (
        b"\x80\x02ctorch.storage\n_load_from_bytes\n" + command(c) + b"\x85R."
    ),
    "a nested pickle": lambda c: b"\x80\x02c_pickle\nloads\n" + command(c) + b"\x85R.",
    "a rebuild function's function": lambda c: (
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\nctorch\nTensor\n"
        + command(c)
        + b"\x85NtR."
    ),
    "default factory": lambda c: (
        b"\x80\x02ccollections\ndefaultdict\ncposix\nsystem\n" + command(c) + b"\x85R\x85R."
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_call_is_recorded_and_not_made(shape: str, canary: Path, tmp_path: Path) -> None:
    root = in_file(SHAPES[shape](canary), tmp_path)
    nodes = list(walk(root))
    assert isinstance(root, Opaque)
    assert any(isinstance(n, str) and n.startswith("touch") for n in nodes)
    assert not canary.exists()


def test_the_canary_sings_under_pickle(canary: Path) -> None:
    pickle.loads(SHAPES["reduce"](canary))
    assert canary.exists()


def test_what_was_asked_for_is_listed(canary: Path, tmp_path: Path) -> None:
    path = tmp_path / "hostile.pt"
    path.write_bytes(torch_zip(SHAPES["reduce"](canary)))
    assert contents_of(path).unsafe_globals == ("posix.system",)


@pytest.mark.parametrize("opcode", [b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00"])
def test_ext_opcodes_are_refused(opcode: bytes, canary: Path, tmp_path: Path) -> None:
    # pickle resolves the code and would give the function, with no find_class in between.
    copyreg.add_extension("posix", "system", 1)
    try:
        with pytest.raises(UntrustedError, match="registered extension"):
            in_file(b"\x80\x02" + opcode + command(canary) + b"\x85R.", tmp_path)
    finally:
        copyreg.remove_extension("posix", "system", 1)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x05\x97.", "buffer outside"),
        (b"\x80\x05N\x98.", "buffer outside"),
        (b"\x80\x02\xff.", "unknown opcode 0xff"),
        (b"\x80\x02\x00.", "unknown opcode 0x00"),
        (b"P0\n.", "by text"),
        (b"\x80\x06N.", "protocol 6"),
    ],
)
def test_other_opcodes_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UntrustedError, match=message):
        in_file(data, tmp_path)


class Target:
    """A class that BUILD would write into."""

    level = "safe"


@pytest.mark.parametrize(
    "state", [b"}X\x05\x00\x00\x00levelX\x04\x00\x00\x00evils", b"N}X\x01\x00\x00\x00aNs\x86"]
)
def test_build_on_a_class_is_refused(state: bytes, tmp_path: Path) -> None:
    name = f"c{__name__}\nTarget\n".encode()
    with pytest.raises(UntrustedError, match="sets attributes of"):
        in_file(b"\x80\x02" + name + state + b"b.", tmp_path)
    assert Target.level == "safe"


def test_build_on_an_object_is_recorded(tmp_path: Path) -> None:
    name = f"c{__name__}\nTarget\n".encode()
    root = in_file(
        b"\x80\x02" + name + b")\x81}X\x05\x00\x00\x00levelX\x04\x00\x00\x00evilsb.", tmp_path
    )
    assert isinstance(root, Opaque)
    assert root.state == {"level": "evil"}
    assert Target.level == "safe"


@pytest.mark.parametrize("target", [b"]", b"}", b"K\x01", b"X\x01\x00\x00\x00a", b"N", b")"])
def test_build_on_plain_values_is_refused(target: bytes, tmp_path: Path) -> None:
    with pytest.raises(UntrustedError, match="sets attributes of"):
        in_file(b"\x80\x02" + target + b"}X\x01\x00\x00\x00aNsb.", tmp_path)


@pytest.mark.parametrize(
    "callee", [b"K\x01", b"X\x02\x00\x00\x00os", b"]", b"N", b"ctorch\nFloatStorage\n"]
)
def test_only_names_and_records_can_be_called(callee: bytes, tmp_path: Path) -> None:
    with pytest.raises(UntrustedError, match="is no function"):
        in_file(b"\x80\x02" + callee + b")R.", tmp_path)


def test_names_computed_from_other_values_are_refused() -> None:
    for parts in (
        b"K\x01" + short("x"),
        short("os") + b"N",
        short("os") + b"](" + short("a") + b"e",
    ):
        with pytest.raises(UntrustedError, match="computes a name"):
            loaded(b"\x80\x04" + parts + b"\x93.")


def test_names_are_values_of_one_file() -> None:
    data = b"\x80\x02(cposix\nsystem\ncposix\nsystem\nt."
    first, second = loaded(data), loaded(data)
    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    assert type(first[0]) is Global
    assert first[0] is first[1]
    assert first[0] is not second[0]
    with pytest.raises(AttributeError):
        first[0].name = "other"


# --- resources ------------------------------------------------------------------------------------

BOMBS = {
    "LONG4": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "LONG4 negative": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "BINUNICODE": b"\x80\x02X\xff\xff\xff\xff.",
    "BINUNICODE8": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b".",
    "BINBYTES": b"\x80\x03B\xff\xff\xff\xff.",
    "BINBYTES8": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
    "BYTEARRAY8": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "BINSTRING": b"\x80\x02T\xff\xff\xff\x7f.",
    "BINSTRING negative": b"\x80\x02T\xff\xff\xff\xff.",
    "a number of many digits": b"\x80\x02I" + b"9" * 10_000 + b"\n.",
    "PUT of many digits": b"\x80\x02Np" + b"9" * 4_000 + b"\n.",
    "bytearray(n)": b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "bytes(n)": b"\x80\x02cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R.",
    "range": b"\x80\x02cbuiltins\nlist\ncbuiltins\nrange\nJ\xff\xff\xff\x7f\x85R\x85R.",
    "str * n": b"\x80\x02c_operator\nmul\nX\x01\x00\x00\x00aJ\xff\xff\xff\x7f\x86R.",
}


@contextmanager
def little_memory() -> Iterator[None]:
    """Fail when more than 16 MiB are allocated at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_claimed_length_allocates_nothing(bomb: str, tmp_path: Path) -> None:
    with little_memory():
        try:
            root = in_file(BOMBS[bomb], tmp_path)
            assert isinstance(root, Opaque)
        except (DamagedError, UntrustedError):
            pass


def test_a_memo_index_is_a_key_and_no_size(tmp_path: Path) -> None:
    """LONG_BINPUT of a huge index makes pickle's own C memo allocate gigabytes."""
    with little_memory():
        assert in_file(b"\x80\x02Nr\xff\xff\xff\xff0j\xff\xff\xff\xff.", tmp_path) is None


def doubled(times: int) -> bytes:
    """Return a pickle of a list whose two elements are one list, and so on down."""
    return (
        b"\x80\x02]"
        + b"".join(
            b"r"
            + struct.pack("<I", i)
            + b"0](j"
            + struct.pack("<I", i)
            + b"j"
            + struct.pack("<I", i)
            + b"e"
            for i in range(times)
        )
        + b"."
    )


def test_a_list_doubled_sixty_times_is_sixty_lists(tmp_path: Path) -> None:
    started = time.perf_counter()
    root = in_file(doubled(60), tmp_path)
    assert sum(isinstance(node, list) for node in walk(root)) == 61
    assert root[0] is root[1]  # type: ignore[index]
    assert time.perf_counter() - started < 5


def test_a_doubled_list_is_no_record_and_no_weights(tmp_path: Path) -> None:
    from reading import described

    path = tmp_path / "f"
    tree = doubled(60)[2:-1]
    path.write_bytes(
        torch_zip(
            b"\x80\x02}(X\x05\x00\x00\x00ckreg}(X\x06\x00\x00\x00formatK\x01X\x01\x00\x00\x00a"
            + tree
            + b"uu."
        )
    )
    started = time.perf_counter()
    with pytest.raises(CkregError):
        described(path)
    assert time.perf_counter() - started < 30


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02N" + b"\x85" * 100_000 + b".",
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
        b"\x80\x02" + b"}" + b"K\x01}" * 100_000 + b"s" * 100_000 + b".",
        b"\x80\x02N" + b"ca\nB\n)\x81" * 20_000 + b"b" * 20_000 + b".",
    ],
    ids=["tuples", "lists", "marks", "dicts", "states"],
)
def test_deep_nesting_is_an_error_and_no_crash(data: bytes, tmp_path: Path) -> None:
    with pytest.raises((UntrustedError, DamagedError)):
        in_file(data, tmp_path)


def test_depth_by_sharing_is_seen(tmp_path: Path) -> None:
    """Each tuple holds the one before it, and a list holds them all: no walk goes deep."""
    links = b"".join(b"h\x00\x85q\x000h\x00" for _ in range(5_000))
    data = b"\x80\x02](Nq\x00" + links + b"e."
    with pytest.raises(UntrustedError, match="deep"):
        in_file(data, tmp_path)


def test_a_deep_key_never_reaches_hash() -> None:
    """hash() of a deeply nested tuple overflows the C stack: seen in a process of its own."""
    code = (
        "from registry.containers.pickles import read_pickle\n"
        "from registry.containers.recording import Recorder\n"
        "from registry import UntrustedError\n"
        "for data in (b'\\x80\\x02}N' + b'\\x85' * 1_000_000 + b'Ns.',\n"
        "             b'\\x80\\x04\\x8f(N' + b'\\x85' * 1_000_000 + b'\\x90.'):\n"
        "    try:\n"
        "        read_pickle(data, Recorder())\n"
        "    except UntrustedError as error:\n"
        "        print('refused')\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout == "refused\nrefused\n", done.stderr[-500:]


def test_values_that_hold_themselves_are_read_and_walked(tmp_path: Path) -> None:
    root = in_file(b"\x80\x02]q\x00h\x00a.", tmp_path)
    assert root[0] is root  # type: ignore[index]
    assert sum(1 for _ in walk(root)) == 1


def test_opcodes_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.containers.pickles.MAX_OPCODES", 1_000)
    assert loaded(b"\x80\x02" + b"N0" * 400 + b"N.") is None
    with pytest.raises(UntrustedError, match="more than 1000 opcodes"):
        loaded(b"\x80\x02" + b"N0" * 600 + b"N.")


def test_long_numbers_are_capped() -> None:
    assert loaded(b"\x80\x02\x8b\x00\x04\x00\x00" + bytes(1_024) + b".") == 0
    with pytest.raises(UntrustedError, match="claims 1025 bytes"):
        loaded(b"\x80\x02\x8b\x01\x04\x00\x00" + bytes(1_025) + b".")


def test_state_is_set_once() -> None:
    with pytest.raises(DamagedError, match=r"state of a a\.B twice"):
        loaded(b"\x80\x02ca\nB\n)\x81}b}b.")


def test_names_are_capped() -> None:
    names = b"".join(f"ca\nB{i}\n0".encode() for i in range(10_001))
    with pytest.raises(UntrustedError, match="more than 10000 classes"):
        loaded(b"\x80\x02" + names + b"N.")
    with pytest.raises(DamagedError, match="longer than 4096 bytes"):
        loaded(b"\x80\x02c" + b"a" * 9_000 + b"\nB\n.")


# --- keys -----------------------------------------------------------------------------------------

A = b"X\x01\x00\x00\x00a"


@pytest.mark.parametrize(
    "data",
    [
        b"}(" + A + b"K\x01" + A + b"K\x02u.",
        b"}" + A + b"K\x01s" + A + b"K\x02s.",
        b"(" + A + b"K\x01" + A + b"K\x02d.",
        b"}(K\x01N\x88Nu.",
        b"}(K\x01NG\x3f\xf0\x00\x00\x00\x00\x00\x00Nu.",
        b"}(\x89NK\x00Nu.",
        b"ccollections\nOrderedDict\n]((" + A + b"K\x01t(" + A + b"K\x02te\x85R.",
        b"ccollections\nOrderedDict\n)R(" + A + b"K\x01" + A + b"K\x02u.",
        b"ca\nEasyDict\n)R(" + A + b"K\x01" + A + b"K\x02u.",
        b"\x8f(K\x01\x88\x90.",
        b"(K\x01K\x01\x91.",
        b"cbuiltins\nset\n](K\x01\x88e\x85R.",
    ],
)
def test_a_key_set_twice_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(UntrustedError, match="twice"):
        in_file(b"\x80\x04" + data, tmp_path)


@pytest.mark.parametrize(
    "key",
    [
        b"]",
        b"}",
        b"\x8f",
        b"(\x91",
        b"\x8a\x09" + b"\xff" * 8 + b"\x00",
        b"\x8a\x09" + bytes(8) + b"\x80",
        b"]\x85",
        b"\x8a\x09" + bytes(8) + b"\x7f\x85",
        b"(" + b"K\x01" * 9 + b"t",
        b"N\x85\x85",
        b"ccollections\nOrderedDict\n)R",
    ],
)
def test_a_key_that_is_unfit_is_refused(key: bytes, tmp_path: Path) -> None:
    with pytest.raises(UntrustedError, match="dict key"):
        in_file(b"\x80\x04}" + key + b"Ns.", tmp_path)


def test_ints_of_64_bits_are_keys(tmp_path: Path) -> None:
    root = in_file(pickle.dumps({2**63 - 1: 1, -(2**63): 2}, 2), tmp_path)
    assert root == {2**63 - 1: 1, -(2**63): 2}


# --- streams that are no pickles ------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02R.",
        b"\x80\x02NR.",
        b"\x80\x02t.",
        b"\x80\x02(.",
        b"\x80\x02.",
        b"\x80\x02NN.",
        b"\x80\x02h\x07.",
        b"\x80\x02q\x00.",
        b"\x80\x02g9\n.",
        b"\x80\x02a.",
        b"\x80\x02]a.",
        b"\x80\x02N(K\x01e.",
        b"\x80\x02](K\x01u.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02Iabc\n.",
        b"\x80\x02Fx\n.",
        b"\x80\x02Sabc\n.",
        b"\x80\x02S'\\x'\n.",
        b"\x80\x02X\x01\x00\x00\x00\xff.",
        b"\x80\x02\x86.",
        b"\x80\x02\x81.",
        b"\x80\x02N\x92.",
        b"\x80\x02b.",
        b"\x80\x02(o.",
        b"\x80\x02ca\nB\nN\x81.",
        b"\x80\x02ca\nB\n)R}bca\nB\n)R}b}b.",
        b"\x80\x02N\x90.",
        b"\x80\x02(0R.",
        b"\x80\x02]Q.",
        b"\x80\x02N1.",
        b"\x80\x02ca\nB\n)NN\x92.",
        b"\x80\x02c_codecs\nencode\nX\x03\x00\x00\x00\xe2\x82\xacX\x06\x00\x00\x00latin1\x86R.",
    ],
)
def test_a_broken_stream_is_damage(data: bytes, tmp_path: Path) -> None:
    with pytest.raises((DamagedError, UntrustedError)) as caught:
        in_file(data, tmp_path)
    assert "hostile.pt" in str(caught.value)


def test_every_cut_of_a_pickle_is_said_to_be_cut() -> None:
    value = {
        "a": [1, 2.5, "x" * 300, b"y" * 300, 2**70],
        "b": (1, (2,), {3}),
        "c": complex(1, 2),
        "d": Target,
    }
    for protocol in range(2, 6):
        data = pickle.dumps(value, protocol)
        for cut in range(len(data)):
            with pytest.raises((OutOfBytesError, DamagedError, UntrustedError)):
                loaded(data[:cut])


def test_protocols_0_and_1_are_read_as_pickle_reads_them() -> None:
    value = {
        "t": (True, False, 1, -5, 2**40, 1.5, None),
        "s": ["é\n", "", "a'b"],
        "b": b"\x00",
        "n": {},
    }
    for protocol in (0, 1):
        assert loaded(pickle.dumps(value, protocol)) == value
    assert loaded(b"S'a\\x41'\n.") == "aA"
    assert loaded(b"U\x02\xff\xfe.") == b"\xff\xfe"


def test_random_bytes_never_do_more_than_fail() -> None:
    import random

    rng = random.Random(7)
    seed = pickle.dumps([{"a": (1, 2.0, "x")}, {1, 2}, Target, complex(1, 2), b"z", 2**70], 4)
    for _ in range(5_000):
        data = bytearray(seed)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        with suppress(OutOfBytesError, DamagedError, UntrustedError):
            loaded(bytes(data))


def test_known_types_with_odd_arguments_are_records_or_damage() -> None:
    odd = [
        b"ccollections\nOrderedDict\nK\x01\x85R.",
        b"ccollections\nOrderedDict\n](K\x01e\x85R.",
        b"ccollections\nCounter\nK\x01\x85R.",
        b"ccollections\ndefaultdict\nK\x01\x85R.",
        b"cargparse\nNamespace\nK\x01\x85R.",
        b"cdatetime\ndatetime\nC\x02ab\x85R.",
        b"cdatetime\ndatetime\nC\x0a" + b"\xff" * 10 + b"\x85R.",
        b"cdatetime\ndate\nC\x04\xff\xff\xff\xff\x85R.",
        b"cdatetime\ntimedelta\n\x8a\x09" + bytes(8) + b"\x01\x85R.",
        b"cpathlib\nPosixPath\nN\x85R.",
        b"ctorch\nSize\nK\x01\x85R.",
        b"ctorch\ndevice\nN\x85R.",
        b"ctorch.serialization\n_get_layout\nN\x85R.",
        b"cbuiltins\ncomplex\nK\x01K\x02\x86R.",
        b"cbuiltins\nset\nK\x01\x85R.",
        b"cnumpy\ndtype\nX\x02\x00\x00\x00zz\x85R.",
        b"cnumpy.core.multiarray\nscalar\nNN\x86R.",
        b"ccopyreg\n_reconstructor\nNNN\x87R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"ctorch._utils\n_rebuild_parameter\nNNN\x87R.",
    ]
    for data in odd:
        try:
            value = loaded(b"\x80\x03" + data)
        except (DamagedError, UntrustedError):
            continue
        assert isinstance(value, Opaque), data


def test_a_numpy_array_has_exactly_its_bytes() -> None:
    head = (
        b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01%s"
        b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89%stb."
    )
    assert loaded(head % (b"K\x01\x85", b"C\x04abcd")).shape == (1,)  # type: ignore[attr-defined]
    for shape, data in (
        (b"K\x02\x85", b"C\x04abcd"),
        (b"K\x01\x85", b"C\x03abc"),
        (b"K\x01\x85", b"]"),
        (b"J\xff\xff\xff\xff\x85", b"C\x04abcd"),
        (b"K\x01", b"C\x04abcd"),
        (b"\x8a\x09" + bytes(8) + b"\x01\x85", b"C\x00"),
    ):
        with pytest.raises(DamagedError):
            loaded(head % (shape, data))


def test_shared_nodes_stay_shared(tmp_path: Path) -> None:
    shared = [1]
    root = in_file(pickle.dumps({"a": shared, "b": (shared,), "c": {"d": shared}}, 2), tmp_path)
    assert root["a"] is root["b"][0] is root["c"]["d"]  # type: ignore[index]


def test_python_2_names_are_those_of_python_3() -> None:
    root = loaded(
        b"\x80\x02(ccopy_reg\n_reconstructor\nc__builtin__\nobject\nccollections\nOrderedDict\nt."
    )
    assert [(g.module, g.name) for g in root] == [  # type: ignore[attr-defined]
        ("copyreg", "_reconstructor"),
        ("builtins", "object"),
        ("collections", "OrderedDict"),
    ]
    proto3 = loaded(b"\x80\x03c__builtin__\nobject\n.")
    assert isinstance(proto3, Global)
    assert proto3.module == "__builtin__"
    made = loaded(
        b"\x80\x02ccopy_reg\n_reconstructor\n(cargparse\nNamespace\nc__builtin__\nobject\nNtR}"
        + A
        + b"K\x01sb."
    )
    assert isinstance(made, TaggedDict)
    assert made == {"a": 1}
