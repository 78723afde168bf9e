"""The laws of a bucket: what a server, a network and a cache can do to a store."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import torch
from stores import HeldBucket
from sweeps import s3_server, s3faults
from sweeps.s3_proxy import FAULTS, Proxy
from sweeps.s3_server import Server

from registry import Registry
from registry.blobs import SHARDS, ObjectStore, remote
from registry.errors import (
    ConflictError,
    DamagedError,
    NotFoundError,
    RemoteError,
)

MIB = 1 << 20


@pytest.fixture
def bucket(prefix: str) -> HeldBucket:
    return HeldBucket(prefix)


@pytest.fixture
def proxy(s3: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(s3.endpoint) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        yield between


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing wait long for a server that doesn't answer."""
    monkeypatch.setattr(remote, "_RETRIES", 2)
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(remote, "_GIVE_UP_S", 5)


# --- which store it is ----------------------------------------------------------------------------


def test_a_url_that_is_no_store_or_holds_a_password_is_a_wrong_call() -> None:
    for url in ("ftp://x/y", "s3://", "/tmp/x", "s3://key:secret@bucket/x", "s3://bucket/x?y=1"):
        with pytest.raises(ValueError, match="://") as caught:
            ObjectStore.open(url)
        assert "secret" not in str(caught.value) or "key" not in url


def test_a_scheme_in_capitals_is_the_same_store(prefix: str) -> None:
    made = ObjectStore.create(prefix.replace("s3://", "S3://"))
    assert made.url == prefix
    assert made.id == ObjectStore.open(prefix).id


def test_a_prefix_without_a_marker_is_no_store(prefix: str) -> None:
    with pytest.raises(NotFoundError, match=r"marker store\.json is missing"):
        ObjectStore.open(prefix)


def test_a_bucket_that_is_not_there_is_said_with_the_command_that_makes_it(s3: Server) -> None:
    for call in (ObjectStore.open, ObjectStore.create):
        with pytest.raises(NotFoundError, match="no such bucket") as caught:
            call("s3://not-there/x")
        assert "s3://not-there" in (caught.value.hint or "")


def test_a_prefix_that_holds_something_else_is_left_alone(bucket: HeldBucket, prefix: str) -> None:
    bucket.put("other/notes.txt", b"mine")
    with pytest.raises(ConflictError, match=r"holds something else: 'notes\.txt'"):
        ObjectStore.create(f"{prefix}/other")
    assert bucket.keys("other") == ["other/notes.txt"]


def test_a_marker_that_is_missing_from_a_used_store_is_never_made_anew(
    bucket: HeldBucket, prefix: str
) -> None:
    bucket.put("lost/blobs/ab/x", b"")
    with pytest.raises(DamagedError, match=r"store\.json is missing"):
        ObjectStore.create(f"{prefix}/lost")
    assert bucket.keys("lost") == ["lost/blobs/ab/x"]


def test_two_registries_on_one_prefix_are_refused(prefix: str, tmp_path: Path) -> None:
    with Registry.create(tmp_path / "one", blobs=prefix) as one:
        with pytest.raises(ConflictError, match="another registry"):
            Registry.create(tmp_path / "two", blobs=prefix)
        assert not (tmp_path / "two").exists()
        assert Registry.create(tmp_path / "one", blobs=prefix).location == one.location
        with pytest.raises(ConflictError, match="its blobs are at"):
            Registry.create(tmp_path / "one", blobs=f"{prefix}-2")


@pytest.mark.parametrize("made", ["now", "before the folder said where its bytes are"])
def test_a_folder_whose_database_is_lost_is_not_made_anew_over_its_bytes(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    place = tmp_path / "reg"
    with Registry.create(place, blobs=prefix) as reg:
        saved = reg.push(_other(tmp_path), model="m", epoch=1)
    (place / "registry.db").unlink()
    if made == "now":
        for blobs in (None, prefix):
            with pytest.raises(
                DamagedError, match=r"its database registry\.db is missing"
            ) as caught:
                Registry.create(place, blobs=blobs)
            assert f"ckreg -r {place} verify --rebuild" in str(caught.value.hint)
    else:
        (place / "blobs.at").unlink()
        with pytest.raises(DamagedError, match=r"its database registry\.db is lost") as caught:
            Registry.create(place, blobs=prefix)
        assert f"CKREG_BLOBS={prefix}" in str(caught.value.hint)
        with pytest.raises(NotFoundError, match="no records"):
            Registry.rebuild(place, replace=True)
        monkeypatch.setenv("CKREG_BLOBS", prefix)
    Registry.rebuild(place, replace=True)
    monkeypatch.delenv("CKREG_BLOBS", raising=False)
    with Registry.open(place) as reg:
        assert reg.get("m").id == saved.id
        assert reg.verify().findings == ()
    assert (place / "blobs.at").read_text() == f"{prefix}\n"


def test_many_creators_at_once_agree_on_one_store(prefix: str) -> None:
    ids: list[str] = []
    start = threading.Barrier(8)

    def create() -> None:
        start.wait()
        ids.append(ObjectStore.create(prefix).id)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert set(ids) == {ObjectStore.open(prefix).id}


# --- servers that refuse or fail ------------------------------------------------------------------


def test_wrong_credentials_are_said(
    bucket: HeldBucket, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(RemoteError, match="secret key is wrong") as caught:
        ObjectStore.open(prefix)
    assert "AWS_SECRET_ACCESS_KEY" in (caught.value.hint or "")


def test_a_server_that_is_down_is_said(
    prefix: str, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(RemoteError, match="can't read") as caught:
            ObjectStore.open(prefix)
    assert f"curl -i {endpoint}" in (caught.value.hint or "")


def test_questions_are_answered_without_the_server(
    prefix: str, tmp_path: Path, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Registry.create(tmp_path / "reg", blobs=prefix) as reg:
        saved = reg.push(_other(tmp_path), model="m", epoch=1, acc=0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with Registry.open(tmp_path / "reg") as reg:
        assert reg.best("m") == reg.get("m@v1") == saved
        assert [c.id for c in reg.find("m")] == [saved.id]
        with pytest.raises(RemoteError):
            reg.pull("m", tmp_path / "out.pt")


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize(
    "text", ["", "127.0.0.1:9000", "s3.lab:9000", "http://", "http://h:x", "h"]
)
def test_an_endpoint_that_is_no_url_is_said_and_how_one_looks(
    prefix: str, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv(name, text)
    with pytest.raises(RemoteError, match=f"{name} is {text!r}") as caught:
        ObjectStore.open(prefix)
    assert f"export {name}=https://" in (caught.value.hint or "")
    assert f"unset {name}" in (caught.value.hint or "")


def test_without_an_endpoint_it_is_said_who_was_asked(
    prefix: str, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")  # so that nothing goes out
    with pytest.raises(RemoteError, match="can't read") as caught:
        ObjectStore.open(prefix)
    assert "AWS_ENDPOINT_URL isn't set" in (caught.value.hint or "")


def test_a_wrong_region_is_said_with_the_right_one(
    s3: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-9")
    with pytest.raises(
        RemoteError, match=r"can't read '.*/store\.json': the region is wrong"
    ) as caught:
        ObjectStore.open(prefix)
    assert caught.value.hint == f"export AWS_REGION={s3_server.REGION}"


def test_a_server_without_tls_is_said(
    s3: Server, prefix: str, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint.replace("http:", "https:"))
    with pytest.raises(RemoteError, match=r"certificate|TLS"):
        ObjectStore.open(prefix)


def test_a_clock_too_far_off_is_said(bucket: HeldBucket, proxy: Proxy, prefix: str) -> None:
    proxy.choose = lambda method, path: "skew"
    with pytest.raises(RemoteError, match="clock") as caught:
        ObjectStore.open(prefix)
    assert "timedatectl" in (caught.value.hint or "")


def test_a_server_that_goes_down_in_a_push_leaves_no_row_and_no_file(
    proxy: Proxy, prefix: str, tmp_path: Path, hasty: None
) -> None:
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(10)}, path)
    with Registry.create(tmp_path / "reg", blobs=prefix) as reg:
        reg.push(path, model="m", epoch=1)
        proxy.choose = lambda method, path: "503" if method == "PUT" else None
        with pytest.raises(RemoteError):
            reg.push(_other(tmp_path), model="m", epoch=2)
        proxy.choose = lambda *_: None
        assert [c.epoch for c in reg.find("m")] == [1]
    assert os.listdir(tmp_path / "cache" / "tmp") == []


def _other(folder: Path) -> Path:
    path = folder / "other.pt"
    torch.save({"w": torch.ones(10)}, path)
    return path


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_twice_and_then_works_is_done_and_right(
    proxy: Proxy, prefix: str, hasty: None, fault: str
) -> None:
    store = ObjectStore.create(prefix)
    data = os.urandom(9 * MIB)
    left = 2

    def choose(method: str, path: str) -> str | None:
        nonlocal left
        left -= 1
        return fault if left >= 0 else None

    proxy.choose = choose
    blob = store.put_bytes(data)
    left = 2
    with store.open_blob(blob) as file:
        assert file.pread(0, len(data)) == data


def test_an_upload_in_parts_that_fails_leaves_no_part(
    s3: Server, proxy: Proxy, prefix: str, hasty: None
) -> None:
    store, before = ObjectStore.create(prefix), s3.uploads("tests")
    proxy.choose = lambda method, path: "503" if "partNumber=2" in path else None
    with pytest.raises(RemoteError):
        store.put_bytes(os.urandom(20 * MIB))
    assert s3.uploads("tests") == before


@pytest.mark.parametrize("at", ["uploadId=", "partNumber=2"])
def test_an_upload_that_the_server_says_is_none_is_looked_for_and_done_again(
    s3: Server, proxy: Proxy, prefix: str, hasty: None, at: str
) -> None:
    """An answer to the joining that is lost makes the client ask again: it is told 404."""
    store, before = ObjectStore.create(prefix), s3.uploads("tests")
    method, faults = ("POST", ["reset after", "no such upload"]) if at == "uploadId=" else (
        "PUT", ["no such upload"]
    )  # fmt: skip

    def choose(asked: str, path: str) -> str | None:
        return faults.pop(0) if faults and asked == method and at in path else None

    proxy.choose = choose
    data = os.urandom(20 * MIB)
    blob = store.put_bytes(data)
    assert faults == []
    with store.open_blob(blob) as file:
        assert file.pread(0, len(data)) == data
    assert s3.uploads("tests") == before


def test_pushes_and_pulls_through_faults_are_right_or_cleanly_failed(
    s3: Server, prefix: str, tmp_path: Path, hasty: None
) -> None:
    found = s3faults.trial(s3.endpoint, prefix, tmp_path, count=60, seed=1, share=0.08)
    assert found.wrong == []
    assert found.right > 20
    assert sum(found.faults.values()) > 20


# --- listing --------------------------------------------------------------------------------------


def test_a_walk_lists_what_each_folder_holds_whatever_lies_between(
    bucket: HeldBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = [bucket.store.put_bytes(str(n).encode()) for n in range(7)]
    for stray in ("ab.txt", "ab/notes.txt", "notes.txt", "0", "zz/x"):
        bucket.put(f"blobs/{stray}", b"mine")
    named = sorted([*(blob.name for blob in blobs), "ab/notes.txt"])
    for page in (1000, 3, 1):
        monkeypatch.setattr(remote, "_PAGE", page)
        found = dict(bucket.store.walk())
        assert list(found) == list(SHARDS)
        assert [file.name for files in found.values() for file in files] == named
    assert [file.name for file in bucket.store.strays()] == ["0", "ab.txt", "notes.txt", "zz/x"]


# --- what is transferred --------------------------------------------------------------------------


def test_a_load_of_weights_transfers_these_and_little_more(
    proxy: Proxy, prefix: str, tmp_path: Path
) -> None:
    net = torch.nn.Sequential(*[torch.nn.Linear(700, 700) for _ in range(6)])
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 700)).sum().backward()
    optimizer.step()
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    with Registry.create(tmp_path / "reg", blobs=prefix) as reg:
        saved = reg.save(net, model="m", epoch=1, optimizer=optimizer)
        assert saved.size_bytes > 3 * weights
        proxy.sent = 0
        reg.plan("m")
        assert proxy.sent < weights / 20
        found = reg.load("m", device="cpu").state_dict
        assert found is not None
        assert all(torch.equal(v, net.state_dict()[k]) for k, v in found.items())
        assert weights <= proxy.sent <= weights * 1.05
        reg.load("m", device="cpu")
        assert proxy.sent <= weights * 1.05  # the second one found them in the cache
        proxy.sent = 0
        reg.load("m", device="cpu", verify=False)
        reg.load("m", into=net, optimizer=optimizer)
        assert proxy.sent <= saved.size_bytes - weights * 0.95


def test_a_push_of_bytes_that_the_store_has_transfers_none_of_them(
    proxy: Proxy, prefix: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(3 * MIB)}, path)
    with Registry.create(tmp_path / "reg", blobs=prefix) as reg:
        first = reg.push(path, model="m", epoch=1)
        proxy.sent = 0
        assert reg.push(path, model="m", epoch=1).id == first.id
    assert proxy.sent < MIB


# --- the cache ------------------------------------------------------------------------------------


def test_the_cache_is_its_users_alone_and_lies_where_it_is_told(
    bucket: HeldBucket, tmp_path: Path
) -> None:
    with bucket.store.open_blob(bucket.store.put_bytes(b"x" * 100)) as file:
        file.verify()
    place = tmp_path / "cache"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    files = [p for p in place.rglob("*") if p.is_file()]
    assert len(files) == 2
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in files)


def test_of_many_readers_one_downloads(bucket: HeldBucket, proxy: Proxy, prefix: str) -> None:
    data = os.urandom(2 * MIB)
    blob = bucket.store.put_bytes(data)
    proxy.sent = 0
    got: list[bytes] = []
    with ExitStack() as stack:
        files = [
            stack.enter_context(ObjectStore.open(prefix).open_blob(blob)) for _ in range(6)
        ]  # before any of them has brought a byte
        threads = [
            threading.Thread(target=lambda file=file: got.append(file.pread(0, len(data))))
            for file in files
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert got == [data] * 6
    assert len(data) <= proxy.sent < len(data) * 1.1


def test_what_was_used_longest_ago_makes_room_and_who_reads_it_keeps_it(
    bucket: HeldBucket,
) -> None:
    store = bucket.store
    blobs = [store.put_bytes(os.urandom(MIB)) for _ in range(3)]
    with store.open_blob(blobs[0]) as first:
        mapping = first.map()
        cached = first.path
    os.utime(cached, (1, 1))
    with store.open_blob(blobs[1]) as second:
        second.verify()
    store._cache.limit = lambda: int(2.5 * MIB)  # type: ignore[method-assign]
    with store.open_blob(blobs[2]) as third:
        third.verify()
        assert third.path.exists()
    assert not cached.exists()
    assert second.path.exists()
    assert len(mapping[:]) == MIB
    mapping.close()
    with store.open_blob(blobs[0]) as again:
        again.verify()


def test_cached_bytes_that_went_bad_are_said_once_and_then_fetched_anew(
    bucket: HeldBucket,
) -> None:
    blob = bucket.store.put_bytes(b"x" * 1000)
    with bucket.store.open_blob(blob) as file:
        file.verify()
        path = file.path
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    with bucket.store.open_blob(blob) as file, pytest.raises(DamagedError):
        file.verify()
    with bucket.store.open_blob(blob) as file:
        file.verify()


def test_an_answer_with_other_bytes_is_asked_for_again_and_then_damage(
    bucket: HeldBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(1000)
    blob = bucket.store.put_bytes(data)
    real, lies = remote.Client.read, [b"y" * 1000]
    monkeypatch.setattr(
        remote.Client,
        "read",
        lambda *words: memoryview(lies.pop()) if lies else real(*words),
    )
    with bucket.store.open_blob(blob) as file:
        assert file.pread(0, 1000) == data
    file._entry.forget()  # type: ignore[attr-defined]
    lies += [b"y" * 1000] * 2
    with bucket.store.open_blob(blob) as file, pytest.raises(DamagedError, match="were stored"):
        file.pread(0, 1000)
    with bucket.store.open_blob(blob) as file:
        assert file.pread(0, 1000) == data


def test_gc_and_verify_work_on_a_bucket(prefix: str, tmp_path: Path) -> None:
    path = _other(tmp_path)
    place = f"{prefix}/reg"
    with Registry.create(tmp_path / "reg", blobs=place) as reg:
        saved = reg.push(path, model="m", epoch=1)
        held = HeldBucket(place)
        (key,) = [k for k in held.keys("blobs") if len(held.read(k)) == saved.size_bytes]
        good = held.read(key)
        held.put(key, good[:-1] + b"!")
        assert [f.kind for f in reg.verify().findings] == ["damaged"]
        with pytest.raises(DamagedError):
            reg.pull("m", tmp_path / "out.pt")
        held.put(key, good)
        assert reg.pull("m", tmp_path / "out.pt").read_bytes() == path.read_bytes()
        reg.remove("m@v1")
        assert key.removeprefix("blobs/") in {b.name for b in reg.gc(grace="0").blobs}
        assert held.keys("blobs") == []


# --- another server -------------------------------------------------------------------------------


def test_of_creators_at_once_on_a_server_with_atomic_creates_one_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("moto.server", reason="moto is not installed: pip install moto[server]")
    code = (
        "from moto.server import ThreadedMotoServer as S; import sys; "
        "s = S('127.0.0.1', 0, False); s.start(); print(s.get_host_and_port()[1], flush=True); "
        "sys.stdin.read()"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        assert s3_server.request(endpoint, "PUT", "/moto")[0] == 200
        environment = {"AWS_ENDPOINT_URL": endpoint, "CKREG_CACHE": str(tmp_path / "cache")}
        environment |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
        for name, value in {**environment, "AWS_REGION": s3_server.REGION}.items():
            monkeypatch.setenv(name, value)
        for turn in range(5):
            url = f"s3://moto/{turn}"
            start = threading.Barrier(8)
            won: list[str] = []

            def create(url: str, start: threading.Barrier, won: list[str]) -> None:
                start.wait()
                id = uuid.uuid4().hex
                with suppress(ConflictError):
                    won.append(ObjectStore.create(url, id=id).id)

            words = (url, start, won)
            threads = [threading.Thread(target=create, args=words) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert won == [ObjectStore.open(url).id]
        store = ObjectStore.open("s3://moto/0")
        data = os.urandom(20 * MIB)
        blob = store.put_bytes(data)
        with store.open_blob(blob) as file:
            assert file.pread(0, len(data)) == data
    finally:
        server.communicate("", timeout=30)
