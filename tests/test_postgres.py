"""PostgreSQL: what a server can do to a registry, and what a registry never does to a server."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
import traceback
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import clusters
import pytest
import torch
from backends import postgres_folder
from conftest import left_behind
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from drafts import by_hand, draft, held
from nets import equal, seeded
from proxies import Proxy, Where

from registry import (
    BusyError,
    CkregError,
    CkregWarning,
    ConflictError,
    NotFoundError,
    NotWritableError,
    Registry,
    RemoteError,
    SchemaVersionError,
    UntrustedError,
    server,
    urls,
)
from registry.catalog import Catalog
from registry.cli import run
from registry.postgres import Lost, Unreachable
from registry.server import ServerDatabase

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(clusters.why_not() is not None, reason=str(clusters.why_not()))


@pytest.fixture
def reg(tmp_path: Path) -> Iterator[Registry]:
    with postgres_folder(tmp_path) as registry:
        yield registry


@pytest.fixture
def empty() -> Iterator[str]:
    """Return the URL of a database that holds nothing."""
    url = clusters.cluster().database()
    yield url
    clusters.cluster().drop(url)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "w.pt"
    torch.save({"model": "net", "state_dict": seeded(1).state_dict()}, path)
    return path


def of(url: str, **how: float) -> ServerDatabase:
    return ServerDatabase(urls.parse(url), **how)


# --- the whole way --------------------------------------------------------------------------------


def test_a_registry_is_made_used_and_found_again_by_the_command_line(
    empty: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    blobs = tmp_path / "blobs"
    assert run(["init", empty, "--blobs", str(blobs)]) == 0
    assert run(["init", empty]) == 0  # again: it is there
    monkeypatch.setenv("CKREG_REGISTRY", empty.replace("postgresql+psycopg", "postgres"))
    assert run(["push", str(file), "-q"]) == 0
    assert run(["pull", "net", str(tmp_path / "out.pt")]) == 0
    assert (tmp_path / "out.pt").read_bytes() == file.read_bytes()
    assert run(["verify"]) == 0
    assert str(blobs) in _info(capsys)


def _info(capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run(["info", "--json"]) == 0
    return capsys.readouterr().out


def test_blobs_are_found_where_the_variable_says_and_only_the_right_ones(
    reg: Registry, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reg.push(file)
    moved = Path(reg._parts()[0].location).rename(tmp_path / "elsewhere")
    with pytest.raises(NotFoundError, match="no blob store") as caught:
        Registry.open(reg.location)
    assert "CKREG_BLOBS=" in str(caught.value.hint)
    monkeypatch.setenv("CKREG_BLOBS", str(moved))
    with Registry.open(reg.location) as again:
        assert again.verify().findings == ()
    monkeypatch.delenv("CKREG_BLOBS")
    with Registry.create(tmp_path / "other") as other:
        monkeypatch.setenv("CKREG_BLOBS", other.location)
    with pytest.raises(ConflictError, match="store"):
        Registry.open(reg.location)


def test_a_folders_registry_may_have_its_blobs_elsewhere(tmp_path: Path, file: Path) -> None:
    with Registry.create(tmp_path / "reg", blobs=tmp_path / "bytes") as reg:
        reg.push(file)
    with Registry.open(tmp_path / "reg") as reg:
        reg.load("net", into=(into := seeded(2)))
    assert equal(into, seeded(1))
    assert list((tmp_path / "bytes" / "blobs").glob("*/*"))
    with pytest.raises(ConflictError, match="its blobs are at"):
        Registry.create(tmp_path / "reg", blobs=tmp_path / "other")


def test_what_an_import_saw_is_kept_in_the_cache_for_its_user_alone(
    reg: Registry, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKREG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tree").mkdir()
    file.rename(tmp_path / "tree" / "w.pt")
    reg.import_(tmp_path / "tree")
    assert len(list((tmp_path / "cache" / "imports").glob("*/*.json"))) == 1
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


# --- what is refused before anything is made ------------------------------------------------------


def test_a_database_of_something_else_is_refused_and_stays_as_it_was(
    empty: str, tmp_path: Path
) -> None:
    clusters.cluster().sql("CREATE TABLE invoices (id int)", empty)
    with pytest.raises(ConflictError, match=r"something else.*invoices"):
        Registry.create(empty, blobs=tmp_path / "blobs")
    assert not (tmp_path / "blobs").exists()
    tables = clusters.cluster().sql(
        "SELECT tablename FROM pg_tables WHERE schemaname='public'", empty
    )
    assert tables == [("invoices",)]


def test_blobs_of_another_registry_are_refused_and_nothing_is_made(
    reg: Registry, empty: str
) -> None:
    with pytest.raises(ConflictError, match="store of another registry"):
        Registry.create(empty, blobs=reg._parts()[0].location)
    assert of(empty).revision() is None


def test_an_empty_database_is_no_registry_and_a_new_one_needs_a_place_for_blobs(empty: str) -> None:
    with pytest.raises(NotFoundError, match="empty") as caught:
        Registry.open(empty)
    assert "--blobs" in str(caught.value.hint)
    with pytest.raises(ValueError, match="where shall the blobs be"):
        Registry.create(empty)


def test_a_newer_schema_is_refused_and_an_older_one_is_left_until_migrate(
    reg: Registry, file: Path
) -> None:
    with by_hand(reg.location) as database:
        database.execute("UPDATE ckreg_version SET version_num = '9999'")
    with pytest.raises(SchemaVersionError, match="a newer one made it") as caught:
        Registry.open(reg.location)
    assert caught.value.hint == "pip install -U ckreg"
    with by_hand(reg.location) as database:
        database.execute("UPDATE ckreg_version SET version_num = '0000'")
    for ask in (lambda: reg.models(), lambda: reg.push(file)):
        with pytest.raises(SchemaVersionError, match="0000") as caught:
            ask()
        assert f"ckreg -r {reg.location} migrate" in str(caught.value.hint)
    assert left_behind(reg) == []


def test_a_trigger_on_our_tables_is_refused(reg: Registry) -> None:
    clusters.cluster().sql("CREATE RULE r AS ON INSERT TO tags DO NOTHING", reg.location)
    with pytest.raises(UntrustedError, match="'tags'"), Registry.open(reg.location) as again:
        again.models()


def test_processes_that_create_at_once_make_one_registry(empty: str, tmp_path: Path) -> None:
    code = (
        "import sys; from registry import Registry; sys.stdin.read()\n"
        f"Registry.create({empty!r}, blobs={str(tmp_path / 'blobs')!r})"
    )
    crowd = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=ROOT)
        for _ in range(4)
    ]
    for process in crowd:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(timeout=120) for process in crowd] == [0] * 4
    assert Registry.open(empty).info()["checkpoints"] == 0


# --- refused by the server ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (lambda u: u.replace("postgres@", "nobody_here@"), RemoteError, "user or the password"),
        (lambda u: u.rpartition("/")[0] + "/not_there", NotFoundError, "no such database"),
        (lambda u: u.replace("127.0.0.1", "no-such-host.invalid"), RemoteError, "no connection"),
        (lambda u: u + "?sslmode=require", RemoteError, "SSL"),
        (lambda u: u + "?sslmode=verify-full&sslrootcert=/no.crt", RemoteError, "support SSL"),
        (lambda u: "postgresql+psycopg://postgres@127.0.0.1:1/x", RemoteError, "refused"),
        (lambda u: u + "?no_such_word=1", CkregError, "can't read the URL"),
    ],
    ids=["role", "database", "host", "no TLS", "verified", "down", "word"],
)
def test_a_server_that_refuses_is_one_clear_error(reg: Registry, change, kind, says) -> None:
    with pytest.raises(kind, match=says) as caught:
        Registry.open(change(reg.location))
    assert caught.value.hint
    assert "Traceback" not in str(caught.value)


@contextmanager
def tls_server(folder: Path) -> Iterator[tuple[int, Path]]:
    """Lend the port of what takes TLS as PostgreSQL does, and its certificate, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "db.lab")])
    day = timedelta(days=1)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - day)
        .not_valid_after(datetime.now(UTC) + day)
        .sign(key, hashes.SHA256())
    )
    certificate, secret = folder / "server.crt", folder / "server.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, secret)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, suppress(OSError):
                client.recv(8)  # SSLRequest
                client.sendall(b"S")
                with context.wrap_socket(client, server_side=True) as tls:
                    tls.recv(1)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1], certificate
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_a_certificate_that_is_not_trusted_or_another_host_s_is_said(tmp_path: Path) -> None:
    with tls_server(tmp_path) as (port, certificate):
        url = f"postgresql+psycopg://ckreg:secret@127.0.0.1:{port}/ckreg?sslmode=verify-full"
        with pytest.raises(RemoteError, match="certificate") as caught:
            Registry.open(url + "&sslrootcert=system")
        assert "sslrootcert=FILE" in str(caught.value.hint)
        with pytest.raises(
            RemoteError, match=r"certificate for .db\.lab. does not match"
        ) as caught:
            Registry.open(f"{url}&sslrootcert={certificate}")
        assert "secret" not in f"{caught.value} {caught.value.hint}"


def test_a_server_without_tls_is_said_with_both_ways_out(reg: Registry) -> None:
    with pytest.raises(RemoteError, match="does not support SSL") as caught:
        Registry.open(reg.location + "?sslmode=require")
    assert "ssl = on" in str(caught.value.hint)
    assert "without sslmode=" in str(caught.value.hint)


def test_a_password_is_in_no_message_record_or_traceback(
    reg: Registry, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server_, secret = clusters.cluster(), "s3cr3t%2Fw0rd"
    if server_.process is None:
        pytest.skip("the server is not ours to make a user on")
    if not server_.sql("SELECT 1 FROM pg_roles WHERE rolname = 'guarded'"):
        server_.sql("CREATE ROLE guarded LOGIN PASSWORD 's3cr3t/w0rd' SUPERUSER")
    right = reg.location.replace("postgres@", f"guarded:{secret}@")
    wrong = reg.location.replace("postgres@", "guarded:s3cr3t-wrong@")
    odd = reg.location.replace("postgres@", "guarded:s3cr3t%zz@")
    with Registry.open(right) as mine:
        ckpt = mine.push(file)
        shown = [repr(mine), mine.location, str(mine.info()), repr(mine._database())]
    for url in (wrong, odd, "postgres://guarded:s3cr3t/w0rd@host/x", "postgres://u:s3cr3t@h/x#y"):
        with pytest.raises((CkregError, ValueError)) as caught:
            Registry.open(url)
        shown += [str(caught.value), "".join(traceback.format_exception(caught.value))]
        assert run(["models", "-r", url]) != 0
    shown += [*capsys.readouterr(), *(p.read_text() for p in tmp_path.rglob("records/*/*.json"))]
    with by_hand(reg.location) as database:
        shown += map(str, database.execute("SELECT name, value FROM settings").fetchall())
    ours = [text.split("File ")[0] for text in shown]
    assert not [text for text in ours if "s3cr3t" in text or "w0rd" in text]
    assert not [text for text in shown[3:] if "w0rd" in text and "Registry.open" not in text]
    assert ckpt.ref == "net@v1"


def test_a_user_who_may_only_read_reads(reg: Registry, file: Path) -> None:
    reg.push(file)
    server_ = clusters.cluster()
    if not server_.sql("SELECT 1 FROM pg_roles WHERE rolname = 'ckreg_reader'"):
        server_.sql("CREATE ROLE ckreg_reader LOGIN")
    server_.sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO ckreg_reader", reg.location)
    with Registry.open(reg.location.replace("postgres@", "ckreg_reader@")) as mine:
        mine.load("net", into=(into := seeded(2)))
        assert equal(into, seeded(1))
        with pytest.raises(NotWritableError, match="may only read") as caught:
            mine.push(file, epoch=2)
        assert "GRANT" in str(caught.value.hint)
        with pytest.raises(NotWritableError):
            mine._parts()[1].add(draft(), held)
    assert reg.info()["checkpoints"] == 1


@pytest.fixture
def stranger(reg: Registry, empty: str) -> Iterator[str]:
    """Return a user whom nothing was granted."""
    server_, name = clusters.cluster(), f"ckreg_{uuid.uuid4().hex[:8]}"
    server_.sql(f"CREATE ROLE {name} LOGIN")
    yield name
    for url in (reg.location, empty):
        server_.sql(f"DROP OWNED BY {name} CASCADE", url)
    server_.sql(f"DROP ROLE {name}")


def test_the_grants_that_a_hint_names_let_a_user_read_and_then_write(
    reg: Registry, file: Path, stranger: str
) -> None:
    def follow(sql: str) -> None:
        clusters.cluster().sql(sql, reg.location)

    reg.push(file, epoch=1)
    where = reg.location.replace("postgres@", f"{stranger}@")
    with pytest.raises(NotWritableError, match="permission denied") as caught:
        Registry.open(where)
    follow(str(caught.value.hint).partition("as its owner: ")[2])
    with Registry.open(where) as mine:
        assert mine.get("net@v1")
        for part in (0, 1):  # the tables without their sequences don't do, and that is said at once
            with pytest.raises(NotWritableError, match="may only read") as caught:
                mine.push(file, epoch=2)
            writing = str(caught.value.hint).partition("to write: ")[2].split("; ")
            follow(writing[part])
        saved = mine.push(file, epoch=2, tags=["seen"])
        mine.alias(saved.ref, "prod")
        mine.unalias("net", "prod")
        mine.remove(saved.ref)
        mine.gc(grace=0)


def test_the_grant_that_a_hint_names_lets_a_user_make_a_registry(
    empty: str, tmp_path: Path, stranger: str
) -> None:
    mine = empty.replace("postgres@", f"{stranger}@")
    with pytest.raises(NotWritableError, match="permission denied for schema") as caught:
        Registry.create(mine, blobs=tmp_path / "mine")
    clusters.cluster().sql(str(caught.value.hint).partition("as its owner: ")[2], empty)
    with Registry.create(mine, blobs=tmp_path / "mine") as made:
        assert made.count() == 0


def test_a_schema_that_may_not_be_used_is_said_with_its_grant(reg: Registry, stranger: str) -> None:
    clusters.cluster().sql("REVOKE ALL ON SCHEMA public FROM public", reg.location)
    where = reg.location.replace("postgres@", f"{stranger}@")
    with pytest.raises(ConflictError, match="no schema") as caught:
        Registry.open(where)
    assert f'GRANT USAGE ON SCHEMA public TO "{stranger}"' in str(caught.value.hint)


def test_a_database_that_is_set_to_only_read_is_said_with_what_set_it(
    reg: Registry, file: Path
) -> None:
    where, name = reg.location, clusters.name_of(reg.location)
    clusters.cluster().sql(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    with Registry.open(where) as again, pytest.raises(NotWritableError, match="only read") as said:
        again.push(file)
    assert "GRANT" not in str(said.value.hint)
    assert f'ALTER DATABASE "{name}" RESET default_transaction_read_only' in str(said.value.hint)


def test_a_clock_that_differs_from_the_servers_is_said(
    reg: Registry, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SKEW_S", -1.0)
    with pytest.warns(CkregWarning, match="clock is"):
        assert reg.push(file).ref == "net@v1"


# --- lost connections -----------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["before", "during", "after"])
@pytest.mark.parametrize("cuts", [1, 3])
def test_a_connection_lost_around_a_commit_neither_duplicates_nor_loses(
    reg: Registry, tmp_path: Path, where: Where, cuts: int
) -> None:
    proxy = Proxy(clusters.cluster().port or 5432, where, cuts=cuts)
    if proxy.url(reg.location) == reg.location:
        pytest.skip("the server isn't on this machine")
    try:
        with Registry.open(proxy.url(reg.location)) as mine:
            for n in range(1, 3):
                ckpt = mine.save(seeded(n), model="net", epoch=n, aliases=["prod"], tags=["t"])
                assert ckpt.version == n
                proxy.left = cuts
            mine.remove(mine.get("net@v1"))
            proxy.left = cuts
            mine.untag("net@v2", "t")
        assert proxy.cut >= 4
    finally:
        proxy.close()
    assert [c.version for c in reg.find("net", include_removed=True)] == [2, 1]
    assert reg.get("net@prod").version == 2
    assert reg.verify().findings == ()
    assert len(left_behind(reg)) == 4  # two files and their indexes, nothing besides


def test_where_nobody_knows_whether_a_commit_happened_no_byte_is_dropped(
    reg: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Catalog.add

    def lost(self: Catalog, *words: object, **more: object) -> object:
        add(self, *words, **more)
        monkeypatch.setattr(Catalog, "by_id", gone)
        raise Lost("the connection was lost")

    def gone(self: Catalog, *words: object, **more: object) -> object:
        raise Unreachable("the server is gone")

    with monkeypatch.context() as patched:
        patched.setattr(Catalog, "add", lost)
        with pytest.raises(Lost) as caught:
            reg.save(seeded(1), model="net")
    monkeypatch.undo()
    assert "is safe" in str(caught.value.hint)
    assert [f.kind for f in reg.verify().findings] == ["record"]  # the one that gc keeps all for
    reg.load("net", into=(into := seeded(2)))
    assert equal(into, seeded(1))


def test_a_server_that_restarts_in_the_middle_of_a_push_costs_nothing(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = clusters.own()
    assert isinstance(mine, clusters.Cluster), mine
    with Registry.create(mine.database(), blobs=tmp_path / "blobs") as reg:
        add = Catalog.add

        def restarted(self: Catalog, *words: object, **more: object) -> object:
            monkeypatch.undo()
            mine.stop()
            threading.Timer(1.0, mine.start).start()
            return add(self, *words, **more)

        monkeypatch.setattr(Catalog, "add", restarted)
        assert reg.push(file).ref == "net@v1"
        monkeypatch.setattr(server, "GONE_S", 0.0)
        mine.stop()
        with pytest.raises(RemoteError, match="no connection"):
            reg.push(file, epoch=1)
        with pytest.raises(RemoteError, match="no connection"):
            reg.models()
        assert len(left_behind(reg)) == 2
        mine.start()
        assert reg.push(file, epoch=1).ref == "net@v2"
    mine.stop()


def test_a_save_whose_server_stays_away_is_kept_and_its_hint_finishes_it(
    reg: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: Catalog, *words: object, **more: object) -> object:
        raise Unreachable("the server is gone")

    with monkeypatch.context() as patched:
        patched.setattr(Catalog, "add", gone)
        with pytest.raises(RemoteError) as caught:
            reg.save(seeded(1), model="net", epoch=3)
    words = str(caught.value.hint).partition("finish with: ")[2].split()
    assert words[:3] == ["ckreg", "-r", reg.location]
    assert run(words[1:]) == 0
    assert reg.get("net").epoch == 3


# --- others ---------------------------------------------------------------------------------------


def test_a_write_waits_for_others_for_a_bounded_time(reg: Registry) -> None:
    slow = of(reg.location, lock_timeout_s=0.3)
    catalog = Catalog(slow)
    held_, let_go = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        held_.set()
        let_go.wait(20)

    holder = threading.Thread(target=lambda: of(reg.location).writing(hold))
    holder.start()
    try:
        assert held_.wait(20)
        with pytest.raises(BusyError, match="busy"):
            catalog.add(draft(), held)
    finally:
        let_go.set()
        holder.join()
    assert catalog.add(draft(), held).checkpoint.version == 1


def test_who_stops_inside_a_transaction_is_put_out_and_does_it_again(reg: Registry) -> None:
    tried: list[int] = []

    def sleep(connection: object) -> int:
        tried.append(1)
        if len(tried) == 1:
            threading.Event().wait(1.0)
        return len(tried)

    assert of(reg.location, lock_timeout_s=0.4).writing(sleep) == 2


def test_a_crowd_gets_versions_without_gap_or_duplicate(reg: Registry) -> None:
    """64 writers x 5: as many connections at once, the same model, and one blob of all."""
    failed: list[BaseException] = []

    def push() -> None:
        catalog = Catalog(of(reg.location))
        try:
            for _ in range(5):
                catalog.add(draft(content="the same bytes", acc=0.5), held)
        except BaseException as error:
            failed.append(error)

    crowd = [threading.Thread(target=push) for _ in range(64)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    assert failed == []
    assert sorted(c.version for c in reg.find("net")) == list(range(1, 321))
    with by_hand(reg.location) as database:
        assert database.execute("SELECT count(*) FROM blobs").fetchone() == (2,)


def test_text_sorts_by_bytes_and_numbers_that_are_none_are_refused(reg: Registry) -> None:
    catalog = reg._parts()[1]
    names = ["B", "a", "É", "b", "Z"]
    for name in names:
        catalog.add(draft(name), held)
    assert [m.name for m in reg.models()] == sorted(names)


def test_no_warning_is_given_on_a_server_whose_clock_is_ours(reg: Registry, file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reg.push(file)
