"""The sink: one form a stream, aligned for people, whole for programs, nothing raw."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from registry import pages
from registry.formatting import visible
from registry.output import Form, Output
from registry.records import Checkpoint, File, Model, Provenance
from registry.signature import KeyStyle, Signature, TensorSpec
from registry.topology import Device, Mesh, Topology
from registry.values import CheckpointId, Digest, FrozenMap, now


def checkpoint(version: int = 1, **changes: Any) -> Checkpoint:
    digest = Digest("blake3:" + f"{version:064x}")
    return replace(
        Checkpoint(
            id=CheckpointId(f"{version:032x}"),
            model="resnet50",
            version=version,
            dataset="cifar10",
            epoch=version,
            metrics=FrozenMap({"acc": 0.9 + version / 1000}),
            key_style=KeyStyle.parse("module."),
            provenance=Provenance("recorded", "recorded"),
            topology=Topology(
                strategy="ddp",
                world_size=4,
                device_type="cuda",
                device_count=4,
                devices=(Device(0, "cuda", "NVIDIA A100-SXM4-80GB", 85_000_000_000),),
            ),
            container="torch-zip",
            signature=digest,
            tensors=161,
            files=(File("checkpoint.pt", digest, 97_800_000),),
            created_at=now() - timedelta(hours=3),
            facts_digest=digest,
        ),
        **changes,
    )


class Sink:
    """An Output whose two streams can be read."""

    def __init__(self, form: Form, columns: int = 120) -> None:
        self._out, self._err = io.StringIO(), io.StringIO()
        self.output = Output(self._out, self._err, form=form, columns=columns)

    @property
    def out(self) -> str:
        return self._out.getvalue()

    @property
    def err(self) -> str:
        return self._err.getvalue()

    def list(self, *found: Checkpoint, total: int = -1, **words: Any) -> Sink:
        def count() -> int:
            assert total >= 0, "the total was counted though nothing was cut"
            return total

        self.output.checkpoints(found, total=count, **words)
        return self


# --- lists ----------------------------------------------------------------------------------------


def test_a_terminal_gets_an_aligned_table() -> None:
    sink = Sink("table").list(checkpoint(12), checkpoint(3, dataset=None, epoch=None))
    assert sink.out.splitlines() == [
        "REF           DATASET  EPOCH     ACC  WRAPPED  TOPOLOGY         SIZE  AGE",
        "resnet50@v12  cifar10     12  0.9120  module.  4 x A100 ddp  97.8 MB   3h",
        "resnet50@v3   -            -  0.9030  module.  4 x A100 ddp  97.8 MB   3h",
    ]
    assert sink.err == ""


def test_a_pipe_gets_whole_values_between_tabs_and_no_header() -> None:
    ckpt = checkpoint(7, metrics=FrozenMap({"acc": 1 / 3}), epoch=None)
    (line,) = Sink("tabs").list(ckpt).out.splitlines()
    ref, dataset, epoch, acc, style, topology, size_bytes, created = line.split("\t")
    assert (ref, dataset, epoch) == ("resnet50@v7", "cifar10", "")
    assert float(acc) == 1 / 3
    assert (style, topology, size_bytes) == ("module.", "4 x A100 ddp", "97800000")
    assert created.endswith("Z")


def test_quiet_gives_refs_alone() -> None:
    assert Sink("refs").list(checkpoint(2), checkpoint(1)).out == "resnet50@v2\nresnet50@v1\n"


@pytest.mark.parametrize("amount", [0, 1, 3])
def test_json_is_one_document_with_every_field(amount: int) -> None:
    found = [checkpoint(v + 1) for v in range(amount)]
    document = json.loads(Sink("json").list(*found).out)
    assert document == {
        "format": 1,
        "checkpoints": [c.to_dict() for c in found],
        "next": None,
    }


@pytest.mark.parametrize("form", ["table", "tabs", "json", "refs"])
def test_a_cut_list_says_its_total_on_stderr(form: Form) -> None:
    sink = Sink(form).list(checkpoint(3), checkpoint(2), next="place", total=1234)
    assert sink.err == "2 of 1,234 shown; all of them: --limit 0\n"
    assert "resnet50@v2" in sink.out


def test_a_cut_json_list_names_where_the_next_page_begins() -> None:
    sink = Sink("json").list(checkpoint(3), checkpoint(2), next='[false,"x"]', total=3)
    document = json.loads(sink.out)
    assert [c["version"] for c in document["checkpoints"]] == [3, 2]
    assert document["next"] == '[false,"x"]'


def test_a_long_list_is_printed_as_rows_come() -> None:
    sink = Sink("tabs")
    seen = []

    def found() -> Any:
        for version in range(1, 400):
            seen.append(len(sink.out.splitlines()))
            yield checkpoint(version)

    sink.output.checkpoints(found(), total=lambda: 0)
    assert seen[-1] == 398
    assert sink.err == ""


def test_an_empty_list_prints_nothing_and_says_so() -> None:
    sink = Sink("table").list()
    assert (sink.out, sink.err) == ("", "no checkpoints\n")


def test_a_narrow_terminal_shortens_other_cells_and_never_the_ref() -> None:
    ckpt = checkpoint(1, model="team/some-long-model-name", dataset="d" * 60)
    for line in Sink("table", columns=90).list(ckpt).out.splitlines()[1:]:
        assert len(line) <= 90
        assert line.startswith("team/some-long-model-name@v1 ")
        assert "ddd…" in line


def test_wide_letters_keep_the_columns_aligned() -> None:
    out = Sink("table").list(checkpoint(1, model="模型"), checkpoint(2, model="ab")).out
    wide, narrow = out.splitlines()[1:]
    assert wide.index("cifar10") + 2 == narrow.index("cifar10")


def test_an_inferred_style_is_marked_and_an_unknown_one_is_no_claim() -> None:
    inferred = checkpoint(1, provenance=Provenance("unknown", "inferred"))
    unknown = checkpoint(2, provenance=Provenance(), key_style=KeyStyle())
    plain = checkpoint(3, key_style=KeyStyle())
    rows = Sink("table").list(inferred, unknown, plain).out.splitlines()[1:]
    assert [row.split()[4] for row in rows] == ["module.?", "?", "-"]


@pytest.mark.parametrize("sort", ["-val/loss", "val/loss", '-metrics."val/loss"'])
def test_a_list_sorted_by_a_metric_shows_it(sort: str) -> None:
    ckpt = checkpoint(1, metrics=FrozenMap({"acc": 0.5, "val/loss": 0.25}))
    head, row = Sink("table").list(ckpt, sort=sort).out.splitlines()
    assert head.split()[4] == "VAL/LOSS"
    assert row.split()[4] == "0.2500"


@pytest.mark.parametrize("sort", ["-created_at", "acc", "-epoch", "world_size"])
def test_a_list_sorted_by_a_column_shows_the_usual_ones(sort: str) -> None:
    assert len(Sink("tabs").list(checkpoint(1), sort=sort).out.split("\t")) == 8


def test_removed_ones_say_when() -> None:
    gone = checkpoint(1, removed_at=now() - timedelta(days=2))
    head, row = Sink("table").list(gone, removed=True).out.splitlines()
    assert head.split()[-1] == "REMOVED"
    assert row.split()[-1] == "2d"


# --- foreign text ---------------------------------------------------------------------------------

NASTY = "a\x1b]0;owned\x07\x9b31m\x7f\u202eb\r\n\tc\ud800"


@pytest.mark.parametrize("form", ["table", "tabs", "json"])
def test_no_control_character_reaches_a_stream(form: Form) -> None:
    ckpt = checkpoint(1, dataset=NASTY, note=NASTY, command=NASTY)
    sink = Sink(form).list(ckpt)
    sink.output.page(pages.checkpoint(ckpt), ckpt.to_dict())
    sink.output.text(NASTY, {"text": NASTY}, "ref")
    sink.output.note(NASTY)
    sink.output.path(f"/tmp/{NASTY}")
    for text in (sink.out, sink.err):
        allowed = "\n\t" if form == "tabs" else "\n"
        assert [c for c in text if not c.isprintable() and c not in allowed] == []


def test_a_tab_in_a_value_makes_no_column() -> None:
    (line,) = Sink("tabs").list(checkpoint(1, dataset=NASTY)).out.splitlines()
    assert len(line.split("\t")) == 8


def test_visible_keeps_letters_of_every_script() -> None:
    assert visible("naïve 模型 данные 🙂") == "naïve 模型 данные 🙂"


# --- one thing ------------------------------------------------------------------------------------


def test_a_page_shows_devices_keys_and_where_each_fact_is_from() -> None:
    ckpt = checkpoint(12)
    signature = Signature((TensorSpec("conv1.weight", "float32", (8, 3, 3, 3)),))
    page = pages.checkpoint(ckpt, signature, parent="resnet50@v11").render()
    for words in (
        "resnet50@v12  cifar10 · epoch 12 · acc 0.9120",
        "source          recorded\n",
        "cuda:0          NVIDIA A100-SXM4-80GB, 85.0 GB",
        "'module.'",
        "for example     module.conv1.weight, conv1.weight in the file",
        "continues       resnet50@v11",
        ckpt.digest,
        "plain data: nothing in it asks for code",
    ):
        assert words in page


def test_a_page_of_a_sharded_net_shows_its_mesh_its_placements_and_its_ranks() -> None:
    topology = Topology(
        strategy="hsdp",
        world_size=10,
        meshes=(Mesh((2, 5), ("replicate", "shard")),),
        placements=FrozenMap({"whole": 3, "Replicate, Shard(0)": 12}),
        ranks=tuple(f"node{r // 5} cuda:{r % 5}" for r in range(10)),
    )
    page = pages.checkpoint(checkpoint(1, topology=topology)).render()
    for words in (
        "mesh            2 x 5 (replicate, shard)",
        "placed          12 tensors Replicate, Shard(0), 3 tensors whole",
        "node1           rank 5 cuda:0, rank 6 cuda:1,",
    ):
        assert words in page


def test_a_page_of_very_many_ranks_stays_a_page() -> None:
    ranks = tuple(f"node{r // 8} cuda:{r % 8}" for r in range(10_000))
    page = pages.checkpoint(checkpoint(1, topology=Topology(ranks=ranks))).render()
    assert "and 1,238 hosts more" in page
    assert len(page) < 5_000


def test_a_page_shows_what_continues_it() -> None:
    page = pages.checkpoint(checkpoint(1), children=[f"net@v{n}" for n in range(2, 16)]).render()
    assert "continued by    net@v2, net@v3," in page
    assert "and 2 more" in page


def test_a_page_of_an_unknown_topology_claims_nothing() -> None:
    ckpt = checkpoint(
        1,
        topology=Topology(storage_tags=FrozenMap({"cuda:7": 161})),
        provenance=Provenance("unknown", "inferred"),
        unsafe_globals=("numpy.core.multiarray.scalar",),
    )
    page = pages.checkpoint(ckpt).render()
    assert "source          unknown: the file doesn't say" in page
    assert "161 storages tagged cuda:7" in page
    assert "(inferred from the file's keys)" in page
    assert "numpy.core.multiarray.scalar" in page
    assert "processes" not in page


def test_a_page_in_a_pipe_is_every_field_a_line() -> None:
    ckpt = checkpoint(1)
    sink = Sink("tabs")
    sink.output.page(pages.checkpoint(ckpt), ckpt.to_dict())
    fields = dict(line.split("\t") for line in sink.out.splitlines())
    assert fields["ref"] == "resnet50@v1"
    assert fields["metrics.acc"] == "0.901"
    assert fields["topology.devices.0.name"] == "NVIDIA A100-SXM4-80GB"
    assert fields["parent"] == ""


def test_models_show_what_best_means() -> None:
    model = Model("resnet50", 3, 2, ("cifar10", None), "val/loss", "min", now())
    row = Sink("table")
    row.output.models([model])
    assert row.out.splitlines()[1].split() == [
        "resnet50",
        "3",
        "2",
        "cifar10,",
        "-",
        "val/loss",
        "min",
    ]
    document = Sink("json")
    document.output.models([model])
    assert json.loads(document.out)["models"][0]["datasets"] == ["cifar10", None]
