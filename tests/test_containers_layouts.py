"""Every layout has a name, what isn't read has a cure, and what is read is read strictly."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from reading import as_torch, bits, contents_of, opened, saved, torch_zip, zip_of
from safetensors.torch import save_file

from registry import CkregError, ContainerError, DamagedError, UntrustedError
from registry.containers import sniff
from registry.containers.sniffing import KINDS, READABLE, refusal


def torch_bytes() -> bytes:
    out = io.BytesIO()
    torch.save({"w": torch.ones(4)}, out)
    return out.getvalue()


def legacy_bytes() -> bytes:
    out = io.BytesIO()
    torch.save({"w": torch.ones(4)}, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def tar_bytes() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("storages"))
    return out.getvalue()


def npz_bytes() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.ones(2))
    return out.getvalue()


def npy_bytes() -> bytes:
    out = io.BytesIO()
    np.save(out, np.ones(2))
    return out.getvalue()


def tensor_file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ONE = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}

LAYOUTS: dict[str, Callable[[], bytes]] = {
    "torch-zip": torch_bytes,
    "torch-legacy": legacy_bytes,
    "safetensors": lambda: tensor_file(ONE, bytes(4)),
    "sharded-safetensors": lambda: b'{"metadata": {}, "weight_map": {"a": "b.safetensors"}}',
    "dcp": lambda: torch_bytes() + torch_bytes(),
    "deepspeed": lambda: torch_zip(
        pickle.dumps({"module": {}, "ds_config": {}, "ds_version": "0.1"}, 2)
    ),
    "torchscript": lambda: zip_of(
        {"m/data.pkl": b"x", "m/constants.pkl": b"x", "m/code/m.py": b"x"}
    ),
    "pt2": lambda: zip_of({"m/archive_format": b"pt2", "m/data/weights/w": b"x"}),
    "tar": tar_bytes,
    "git-lfs-pointer": lambda: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    ),
    "html": lambda: b"\n  <!DOCTYPE html><html><body>Sign in</body></html>",
    "empty": lambda: b"",
    "truncated": lambda: torch_bytes()[:-30],
    "zeros": lambda: bytes(100_000),
    "gguf": lambda: b"GGUF\x03\0\0\0" + bytes(40),
    "onnx": lambda: b"\x08\x08\x12\x07pytorch\x1a\x052.0.0:\x80\x01",
    "gzip": lambda: gzip.compress(torch_bytes()),
    "bzip2": lambda: bz2.compress(b"x"),
    "xz": lambda: lzma.compress(b"x"),
    "zstd": lambda: b"\x28\xb5\x2f\xfd" + bytes(9),
    "7z": lambda: b"7z\xbc\xaf\x27\x1c" + bytes(9),
    "pickle": lambda: pickle.dumps({"w": 1}, 4),
    "npz": npz_bytes,
    "npy": npy_bytes,
    "zip": lambda: zip_of({"a.txt": b"x", "b.txt": b"y"}),
    "hdf5": lambda: b"\x89HDF\r\n\x1a\n" + bytes(90),
    "json": lambda: b'{"a": 1}',
    "text": lambda: "epoch 1 café\n".encode() * 3,
    "unknown": lambda: bytes(range(1, 200)) * 9,
}


def test_every_name_has_a_case_here() -> None:
    assert set(LAYOUTS) == set(KINDS) | READABLE


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(LAYOUTS[kind]())
    with opened(path) as source:
        assert sniff(source) == kind


@pytest.mark.parametrize("kind", sorted(set(LAYOUTS) - READABLE))
def test_what_is_not_read_is_refused_with_a_cure(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "my file.pth"
    path.write_bytes(LAYOUTS[kind]())
    with pytest.raises((ContainerError, DamagedError)) as caught:
        contents_of(path)
    assert "'my file.pth' " in caught.value.message
    assert caught.value.hint
    assert "{" not in caught.value.hint.replace("{}", "")


def test_a_hint_quotes_the_file_for_a_shell() -> None:
    error = refusal("gzip", "a b'; rm -rf x")
    assert error.hint is not None
    assert "gzip -dk 'a b'\"'\"'; rm -rf x'" in error.hint


def test_a_source_gives_exactly_the_bytes_asked_for_or_says_why_not(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    with opened(path) as source:
        assert source.size == 10
        assert (source.pread(3, 4), source.pread(10, 0)) == (b"3456", b"")
        for offset, size in ((8, 3), (11, 0), (-1, 2), (0, -1), (0, 2**62)):
            with pytest.raises(DamagedError, match="cut short"):
                source.pread(offset, size)
        path.write_bytes(b"0123")
        with pytest.raises(DamagedError, match="became shorter"):
            source.pread(2, 6)


def test_real_archives_of_torch_are_told_apart(tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 2)
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(net).save(str(tmp_path / "script.pt"))
    torch.export.save(torch.export.export(net, (torch.ones(1, 2),)), tmp_path / "export.pt2")
    for name, kind in (("script.pt", "torchscript"), ("export.pt2", "pt2")):
        with opened(tmp_path / name) as source:
            assert sniff(source) == kind


def test_parts_of_a_real_dcp_folder_are_named(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    with pytest.warns(UserWarning, match="single process"):
        dcp.save(
            {"a": torch.ones(300), "b": torch.zeros(5)},
            checkpoint_id=tmp_path / "dcp",
            no_dist=True,
        )
    for part in (tmp_path / "dcp").iterdir():
        with opened(part) as source:
            assert sniff(source) == "dcp", part.name


# --- zip ------------------------------------------------------------------------------------------

PICKLE = b"\x80\x02}."


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            zip_of([("a/data.pkl", PICKLE), ("a/x", b"1"), ("a/x", b"2")]),
            UntrustedError,
            "two entries",
        ),
        (zip_of([("a/data.pkl", PICKLE), ("a/../../x", b"1")]), UntrustedError, "leads elsewhere"),
        (zip_of([("a/data.pkl", PICKLE), ("/etc/x", b"1")]), UntrustedError, "leads elsewhere"),
        (zip_of([("a/data.pkl", PICKLE), ("a\\x", b"1")]), UntrustedError, "leads elsewhere"),
        (zip_of([("a/data.pkl", PICKLE), ("a/x\0y", b"1")]), UntrustedError, "leads elsewhere"),
        (
            zip_of([("a/data.pkl", PICKLE), ("a/x", b"1")], header=0),
            DamagedError,
            "another local header",
        ),
        (
            zip_of([("a/data.pkl", PICKLE), ("a/x", b"1")], local_name="a/y"),
            DamagedError,
            "another local header",
        ),
        (zip_of([("a/data.pkl", PICKLE), ("a/x", b"123")], size=2), UntrustedError, "two sizes"),
        (
            zip_of([("a/data.pkl", PICKLE), ("a/x", b"123")], size=99),
            DamagedError,
            "beyond the directory",
        ),
        (zip_of([("a/data.pkl", PICKLE), ("a/x", b"1")], flags=1), UntrustedError, "encrypted"),
        (
            zip_of([("a/data.pkl", PICKLE), ("a/x", b"1")], count=1),
            UntrustedError,
            "more than it counts",
        ),
        (zip_of([("a/data.pkl", PICKLE)], method=8), ContainerError, "compressed"),
        (zip_of([("a/data.pkl", PICKLE)], crc=7), DamagedError, "checksum"),
        (zip_of([("a/data.pkl", PICKLE + b"N.")]), UntrustedError, "ends at byte"),
    ],
)
def test_a_zip_that_could_be_read_in_two_ways_is_refused(
    data: bytes, error: type[CkregError], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "f.pt"
    path.write_bytes(data)
    with pytest.raises(error, match=message) as caught:
        contents_of(path)
    assert "'f.pt'" in caught.value.message


def test_entries_that_overlap_are_refused(tmp_path: Path) -> None:
    """The second entry lies inside the first one's data: a whole local header of its own."""
    inner = zip_of([("a/x", b"1234")])[: 30 + 3 + 4]
    outer = zip_of([("a/data.pkl", PICKLE), ("a/big", b"...." + inner)])
    at = outer.index(inner)
    data = zip_of([("a/data.pkl", PICKLE), ("a/big", b"...." + inner), ("a/x", b"1234")], header=at)
    path = tmp_path / "f.pt"
    path.write_bytes(data)
    with pytest.raises(UntrustedError, match="overlaps"):
        contents_of(path)


def test_other_bytes_before_or_after_a_zip_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.pt"
    for data in (
        b"PK\x03\x04" + torch_bytes(),
        torch_bytes() + b"tail",
        torch_bytes()[:100] + torch_bytes(),
    ):
        path.write_bytes(data)
        with pytest.raises((DamagedError, ContainerError, UntrustedError)):
            contents_of(path)


def test_zips_that_were_joined_are_no_single_file(tmp_path: Path) -> None:
    one = zip_of([("a/data.pkl", PICKLE)])
    path = tmp_path / "f.pt"
    path.write_bytes(one + one)
    with opened(path) as source:
        assert sniff(source) == "dcp"
    at = one.index(b"PK\x05\x06")
    path.write_bytes(one[:at] + b"between" + one[at:])
    with pytest.raises((ContainerError, DamagedError)):
        contents_of(path)


def test_every_cut_of_a_torch_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.pt"
    for whole in (torch_bytes(), legacy_bytes(), LAYOUTS["safetensors"]()):
        for cut in range(0, len(whole), 7):
            path.write_bytes(whole[:cut])
            with pytest.raises((DamagedError, ContainerError)):
                contents_of(path)


def test_flipped_bits_never_do_more_than_fail(tmp_path: Path) -> None:
    import random

    rng = random.Random(3)
    path = tmp_path / "f.pt"
    for whole in (torch_bytes(), legacy_bytes(), LAYOUTS["safetensors"]()):
        for _ in range(300):
            data = bytearray(whole)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
            with contextlib.suppress(CkregError):
                contents_of(path)


def test_zip64_files_are_read(tmp_path: Path) -> None:
    """Python's zipfile writes 64-bit sizes into extra fields, and the end records, when told to."""
    path = tmp_path / "f.pt"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,
        archive.open("a/data.pkl", "w", force_zip64=True) as entry,
    ):
        entry.write(pickle.dumps({"epoch": 3}, 2))
    assert contents_of(path).root == {"epoch": 3}


def test_64_bit_central_fields_are_read(tmp_path: Path) -> None:
    data = bytearray(zip_of([("a/data.pkl", PICKLE)]))
    at = data.index(b"PK\x01\x02")
    extra = struct.pack("<HH3Q", 1, 24, len(PICKLE), len(PICKLE), 0)
    data[at + 20 : at + 28] = b"\xff" * 8
    data[at + 42 : at + 46] = b"\xff" * 4
    struct.pack_into("<H", data, at + 30, len(extra))
    end = data.index(b"PK\x05\x06")
    data[end:end] = extra
    struct.pack_into("<L", data, end + len(extra) + 12, end + len(extra) - at)
    path = tmp_path / "f.pt"
    path.write_bytes(data)
    assert contents_of(path).root == {}
    data[end : end + 4] = struct.pack("<HH", 1, 4)
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="64-bit field"):
        contents_of(path)


def test_missing_checksums_are_noted(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved({"w": torch.ones(2)}, tmp_path / "f")
    finally:
        torch.serialization.set_crc32_options(True)
    assert contents_of(path).warnings == ("the file was written without checksums",)
    assert contents_of(saved({"w": torch.ones(2)}, tmp_path / "g")).warnings == ()


def test_a_damaged_pickle_is_told_by_its_checksum(tmp_path: Path) -> None:
    data = saved({"epoch": 3, "w": torch.ones(2)}, tmp_path / "f").read_bytes()
    (tmp_path / "f").write_bytes(data.replace(b"epoch", b"epocg", 1))
    with pytest.raises(DamagedError, match="checksum"):
        contents_of(tmp_path / "f")


# --- safetensors ----------------------------------------------------------------------------------

SAFE_DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.complex64,
]


def test_safetensors_are_read_bit_for_bit(tmp_path: Path) -> None:
    state = {str(d).removeprefix("torch."): torch.tensor([[1, 0, 1]]).to(d) for d in SAFE_DTYPES}
    state["scalar"], state["none"] = torch.tensor(2.5), torch.empty(0, 4)
    path = tmp_path / "f.safetensors"
    save_file(state, path, metadata={"format": "pt"})
    contents = contents_of(path)
    assert contents.root.keys() == state.keys()
    assert contents.root.attributes == {"__metadata__": {"format": "pt"}}
    for key, expected in state.items():
        assert contents.root[key].dtype == str(expected.dtype).removeprefix("torch.")
        assert bits(as_torch(contents.root[key], path)) == bits(expected)


def two(first: list[int], second: list[int]) -> dict[str, object]:
    return {
        "a": {"dtype": "U8", "shape": [first[1] - first[0]], "data_offsets": first},
        "b": {"dtype": "U8", "shape": [second[1] - second[0]], "data_offsets": second},
    }


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (tensor_file(two([0, 4], [2, 6]), bytes(6)), UntrustedError, "overlaps"),
        (tensor_file(two([0, 2], [3, 6]), bytes(6)), UntrustedError, "hole"),
        (tensor_file(two([1, 2], [2, 6]), bytes(6)), UntrustedError, "hole"),
        (tensor_file(two([0, 4], [4, 6]), bytes(7)), UntrustedError, "belong to no tensor"),
        (tensor_file(two([0, 4], [4, 6]), bytes(5)), DamagedError, "cut short"),
        (tensor_file(b'{"a": {}, "a": {}}'), UntrustedError, "key twice"),
        (tensor_file(b'{"a": {"dtype": "U8", "dtype": "U8"}}'), UntrustedError, "key twice"),
        (tensor_file(b'{"a"   '), DamagedError, "no JSON"),
        (tensor_file(b"{" + b'"a":{' * 90_000), DamagedError, "no JSON"),
        (
            tensor_file({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
            DamagedError,
            "4 bytes, for float32",
        ),
        (
            tensor_file({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
            DamagedError,
            "shape or place",
        ),
        (
            tensor_file(
                {"w": {"dtype": "F32", "shape": [2**63], "data_offsets": [0, 4]}}, bytes(4)
            ),
            DamagedError,
            "shape or place",
        ),
        (
            tensor_file({"w": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, bytes(4)),
            DamagedError,
            "shape or place",
        ),
        (tensor_file({"w": {"dtype": "F32", "shape": [1]}}), DamagedError, "unknown way"),
        (
            tensor_file({"w": {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
            ContainerError,
            "'F3'",
        ),
        (tensor_file({"__metadata__": {"a": 1}}), DamagedError, "__metadata__"),
        (struct.pack("<Q", 1 << 39) + b'{"a":' + bytes(9), UntrustedError, "claims"),
    ],
)
def test_a_safetensors_file_is_read_as_strictly_as_its_format_says(
    data: bytes, error: type[CkregError], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "f.safetensors"
    path.write_bytes(data)
    with pytest.raises(error, match=message):
        contents_of(path)


def test_an_entry_that_is_marked_as_a_folder_has_no_bytes(tmp_path: Path) -> None:
    """torch 2.13 reads none of it, and gives whatever lay in its memory."""
    data = bytearray(saved({"w": torch.ones(3)}, tmp_path / "f").read_bytes())
    at = data.index(b"f/data/0", data.index(b"PK\x01\x02")) - 46
    assert data[at : at + 4] == b"PK\x01\x02"
    data[at + 38] |= 0x10
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(UntrustedError, match="'f/data/0' contradicts itself"):
        contents_of(tmp_path / "f")
