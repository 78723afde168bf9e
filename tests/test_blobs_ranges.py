"""The laws of a file's index: it covers the file, and no byte of it can change unseen."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.blobs import FileBytes, Index, LocalStore, Range, ranges
from registry.errors import DamagedError
from registry.values import Digest

ZERO = Digest("blake3:" + "0" * 64)


class InMemory(FileBytes):
    """A file's bytes without the file, so that thousands can be tried."""

    def __init__(self, data: bytes) -> None:
        import mmap

        super().__init__(-1, Path("memory"), len(data))
        self._map = mmap.mmap(-1, max(1, len(data)))
        self._map[: len(data)] = data

    def pread(self, offset: int, size: int) -> bytes:
        return self._map[offset : offset + size]

    def hash(self, *place: int, **words: object) -> Digest:
        with self.map() as mapping:
            return super().hash(*place, **{"mapping": mapping, **words})  # type: ignore[arg-type]

    def map(self, parts=None):  # type: ignore[no-untyped-def]
        import mmap

        copy = mmap.mmap(-1, max(1, self.size))
        copy[:] = self._map[:]
        return copy


def index_of(data: bytes, storages: list[tuple[int, int]]) -> Index:
    file = InMemory(data)
    with file.map() as mapping:
        whole = file.hash(mapping=mapping)
    return ranges.build(file, storages, whole)


storages_of_a_file = st.integers(0, 300).flatmap(
    lambda size: st.tuples(
        st.binary(min_size=size, max_size=size),
        st.lists(
            st.integers(0, size).flatmap(
                lambda start: st.tuples(st.just(start), st.integers(0, size - start))
            ),
            max_size=8,
        ),
    )
)


@given(storages_of_a_file)
def test_the_ranges_cover_the_file_and_no_storage_is_cut(
    case: tuple[bytes, list[tuple[int, int]]],
) -> None:
    data, storages = case
    index = index_of(data, storages)
    at = 0
    for part in index.ranges:
        assert part.offset == at
        assert part.size > 0
        at = part.end
    assert at == len(data)
    for offset, size in storages:
        covering = index.covering(offset, size)
        assert len(covering) == (1 if size else 0)
        for part in covering:
            assert part.offset <= offset
            assert offset + size <= part.end


@given(storages_of_a_file)
def test_an_index_comes_back_as_it_was_written(
    case: tuple[bytes, list[tuple[int, int]]],
) -> None:
    index = index_of(*case)
    assert Index.from_bytes(index.to_bytes()) == index


@given(storages_of_a_file, st.randoms(use_true_random=False))
def test_the_order_of_the_storages_changes_nothing(
    case: tuple[bytes, list[tuple[int, int]]], random: random.Random
) -> None:
    data, storages = case
    shuffled = list(storages)
    random.shuffle(shuffled)
    assert index_of(data, shuffled).to_bytes() == index_of(data, storages).to_bytes()


@given(storages_of_a_file, st.data())
def test_a_changed_byte_is_seen_where_it_is_wanted_and_only_there(
    case: tuple[bytes, list[tuple[int, int]]], choices: st.DataObject
) -> None:
    data, storages = case
    index = index_of(data, storages)
    if not data:
        return
    place = choices.draw(st.integers(0, len(data) - 1))
    rotten = bytearray(data)
    rotten[place] ^= 1 << choices.draw(st.integers(0, 7))
    file = InMemory(bytes(rotten))
    with file.map() as mapping:
        for part in index.ranges:
            if part.offset <= place < part.end:
                with pytest.raises(DamagedError, match="is damaged"):
                    ranges.verify(index, file, [(part.offset, part.size)], mapping=mapping)
            else:
                wanted = [(part.offset, part.size)]
                assert ranges.verify(index, file, wanted, mapping=mapping) == part.size


def test_overlapping_storages_share_a_range_and_touching_ones_do_not() -> None:
    index = index_of(b"x" * 100, [(10, 20), (20, 20), (40, 5), (12, 3)])
    assert [(r.offset, r.size) for r in index.ranges] == [(0, 10), (10, 30), (40, 5), (45, 55)]


def test_a_storage_outside_the_file_is_a_wrong_call() -> None:
    for storage in [(90, 11), (-1, 5), (5, -1), (101, 1)]:
        with pytest.raises(ValueError, match="a storage"):
            index_of(b"x" * 100, [storage])
    index = index_of(b"x" * 100, [])
    for wanted in [(90, 11), (-1, 5), (5, -1)]:
        with pytest.raises(ValueError, match="outside"):
            index.covering(*wanted)


def test_a_range_that_serves_several_is_hashed_once() -> None:
    data = bytes(100)
    file = InMemory(data)
    index = index_of(data, [(10, 20), (50, 10)])
    with file.map() as mapping:
        wanted = [(10, 5), (15, 5), (50, 10), (0, 0)]
        assert ranges.verify(index, file, wanted, mapping=mapping) == 30


def test_an_index_of_another_file_is_refused() -> None:
    with pytest.raises(DamagedError, match="its index is of a file of 100"):
        ranges.verify(index_of(bytes(100), []), InMemory(bytes(99)), [])


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (Range(0, 9, ZERO),),
        (Range(0, 11, ZERO),),
        (Range(1, 9, ZERO),),
        (Range(0, 5, ZERO), Range(6, 4, ZERO)),
        (Range(0, 5, ZERO), Range(4, 6, ZERO)),
        (Range(0, 10, ZERO), Range(10, 0, ZERO)),
        (Range(5, 5, ZERO), Range(0, 5, ZERO)),
        (Range(0, 10, Digest("blake3:short")),),
    ],
)
def test_ranges_that_dont_cover_the_file_once_cant_be_made(parts: tuple[Range, ...]) -> None:
    with pytest.raises(ValueError, match=r"range|digest"):
        Index(ZERO, 10, parts)


GOOD = index_of(b"x" * 10, [(2, 3)]).to_bytes()


def edit(change: Callable[[dict[str, object]], object]) -> bytes:
    plain = json.loads(GOOD)
    change(plain)
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        GOOD[:-1],
        GOOD + b"\n",
        GOOD.replace(b":", b": ", 1),
        edit(lambda d: d.update(format=2)),
        edit(lambda d: d.update(size_bytes=11)),
        edit(lambda d: d.update(size_bytes=-1)),
        edit(lambda d: d.update(size_bytes=True)),
        edit(lambda d: d.update(digest="sha256:00")),
        edit(lambda d: d.update(extra=1)),
        edit(lambda d: d.update(ranges={})),
        edit(lambda d: d.update(ranges=[[10, "00", 0]])),
        edit(lambda d: d.update(ranges=[[10, "0" * 64]])),
        edit(lambda d: d.update(ranges=[[10, "0" * 64, 2]])),
        edit(lambda d: d.update(ranges=[[10, "0" * 64, True]])),
        edit(lambda d: d.update(ranges=[[10.0, "0" * 64, 0]])),
        edit(lambda d: d.update(ranges=[[5, "0" * 64, 0], [0, "0" * 64, 0], [5, "0" * 64, 0]])),
        edit(lambda d: d.update(ranges=[[15, "0" * 64, 0], [-5, "0" * 64, 0]])),
    ],
)
def test_bytes_that_are_no_index_are_damage(data: bytes) -> None:
    with pytest.raises(DamagedError, match="index"):
        Index.from_bytes(data)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_no_changed_byte_of_an_index_makes_another_error(place: int, value: int) -> None:
    changed = bytearray(GOOD)
    changed[place] = value
    try:
        found = Index.from_bytes(bytes(changed))
    except DamagedError:
        return
    assert found.to_bytes() == bytes(changed)


def test_an_index_past_the_limit_isnt_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "MAX_INDEX_BYTES", len(GOOD) - 1)
    with pytest.raises(DamagedError, match="the limit"):
        Index.from_bytes(GOOD)


def test_a_staged_files_index_verifies_the_blob_it_becomes(tmp_path: Path) -> None:
    store = LocalStore.create(tmp_path / "registry")
    data = random.Random(1).randbytes(6 << 20)
    storages = [(64, 5 << 20), ((5 << 20) + 128, 1000)]
    with store.stage() as staged:
        staged.write(data)
        index = ranges.build(staged.source(), storages, staged.finish())
        blob = store.publish(staged)
    small = store.put_bytes(index.to_bytes())
    with store.open_blob(small) as file:
        again = Index.from_bytes(file.pread(0, file.size))
    assert again.digest == blob.digest
    with store.open_blob(blob) as file:
        assert ranges.verify(again, file, storages) == (5 << 20) + 1000
        assert ranges.verify(again, file, [(0, len(data))]) == len(data)
    rotten = bytearray(data)
    rotten[3 << 20] ^= 1
    path = store.path_of(blob)
    path.chmod(0o644)
    path.write_bytes(rotten)
    with store.open_blob(blob) as file:
        assert ranges.verify(again, file, storages[1:]) == 1000
        with pytest.raises(DamagedError, match="bytes 64 to"):
            ranges.verify(again, file, storages)


def test_structure_is_verified_without_the_storages_and_these_must_lie_where_they_did() -> None:
    data = bytes(range(100))
    storages = [(10, 30), (45, 5)]
    index = index_of(data, storages)
    in_a_storage = InMemory(data[:20] + b"!" + data[21:])
    ranges.verify_structure(index, in_a_storage, storages)
    with pytest.raises(DamagedError):
        ranges.verify_structure(index, InMemory(data[:42] + b"!" + data[43:]), storages)
    with pytest.raises(DamagedError, match="disagree"):
        ranges.verify_structure(index, InMemory(data), [(10, 30), (45, 6)])


@pytest.mark.parametrize("seed", range(20))
def test_an_index_hashed_while_the_file_was_written_is_that_of_the_file(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    store = LocalStore.create(tmp_path / "registry")
    sizes = [chance.choice((1, 100, 4095, 4096, 70_000, 3 << 20)) for _ in range(12)]
    pieces = [chance.randbytes(size) for size in sizes]
    data = b"".join(pieces)
    storages, at = [], 0
    for piece in pieces:
        if chance.random() < 0.6:
            storages.append((at, len(piece)))
        at += len(piece)
    if chance.random() < 0.5:
        storages.append((chance.randrange(at), 0))
    expected = index_of(data, storages)
    (tmp_path / "source").write_bytes(data)
    with store.stage() as written, store.stage_file(tmp_path / "source", storages=storages) as copy:
        for piece in pieces:
            assert written.write(memoryview(piece)) == len(piece)
        for staged in (written, copy):
            whole = staged.finish()
            assert staged.source().pread(0, len(data)) == data
            assert ranges.build(staged.source(), storages, whole, staged.pieces) == expected
            large = {(o, s) for o, s in storages if s >= 4096}
            assert large <= staged.pieces.keys()


def test_what_is_known_of_a_file_isnt_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(2).randbytes(3 << 20)
    storages = [(64, 2 << 20), ((2 << 20) + 128, 4096)]
    expected = index_of(data, storages)
    known = {(r.offset, r.size): r.digest for r in expected.ranges if r.storage}
    file, read = InMemory(data), []
    inner = file.pread
    monkeypatch.setattr(
        file, "pread", lambda offset, size: read.append(size) or inner(offset, size)
    )
    assert ranges.build(file, storages, expected.digest, known) == expected
    assert sum(read) == len(data) - (2 << 20) - 4096
