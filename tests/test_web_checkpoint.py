"""The page of a checkpoint and the page of two: what is shown, planned and compared; that every
snippet runs; that hostile text stays text and no code of a file runs.
"""

from __future__ import annotations

import html
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from backends import records_at, reopened
from drafts import draft, held
from nets import Net, seeded
from torch import nn

from benchmarks.million import statements
from registry import Registry
from registry.records import Checkpoint, Provenance
from registry.signature import KeyStyle, Signature, TensorSpec
from registry.topology import Device, Mesh, Topology
from registry.values import FrozenMap

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'ckreg[ui]'")
pytest.importorskip("httpx", reason="httpx is not installed")

from starlette.testclient import TestClient

from registry.web import checkpoint as pages
from registry.web import loading, modules
from registry.web.app import application
from registry.web.drawing import MOST_BOXES, MOST_HOSTS, draw

RECORDED = Provenance("recorded", "recorded")

A100S = tuple(Device(i, "cuda", "NVIDIA A100-SXM4-80GB", 85_094_825_984) for i in range(8))


class Page:
    """An answer, as a person sees it.

    Attributes:
        text: what is written, blanks in one.
        tags: every tag, with its attributes.
    """

    def __init__(self, reg: Registry, path: str, **query: object) -> None:
        web = TestClient(application(reg), base_url="http://127.0.0.1:8420")
        answer = web.get(path, params=query or None)  # type: ignore[arg-type]
        self.status = answer.status_code
        self.html = answer.text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        words: list[str] = []

        class Reader(HTMLParser):
            def handle_starttag(_, tag: str, attrs: list[tuple[str, str | None]]) -> None:
                self.tags.append((tag, dict(attrs)))

            def handle_data(_, data: str) -> None:
                words.append(data)

        Reader().feed(self.html)
        self.text = " ".join(" ".join(words).split())

    def snippet(self, id: str) -> str:
        """Return a snippet as the copy button copies it."""
        found = re.search(rf'<pre id="{id}"[^>]*>(.*?)</pre>', self.html, re.S)
        assert found is not None, self.text
        return html.unescape(found[1])

    def links(self) -> list[str]:
        """Return where everything on the page leads, loads from or sends to."""
        names = ("href", "src", "action", "hx-get", "formaction")
        return [str(a[n]) for _, a in self.tags for n in names if a.get(n) is not None]


def add(reg: Registry, model: str = "net", **facts: Any) -> Checkpoint:
    """Add a checkpoint whose file exists in name only."""
    facts.setdefault("provenance", RECORDED)
    return reopened(records_at(reg)).add(draft(model, **facts), held).checkpoint


@pytest.fixture
def saved(reg: Registry) -> Checkpoint:
    net = nn.DataParallel(seeded(1))
    return reg.save(
        net, model="vision/net", dataset="cifar10", epoch=12, step=340, acc=0.9125,
        metrics={"val/loss": 0.25}, config={"lr": 0.001, "opt": {"name": "adamw"}}, batch_size=64,
        optimizer=torch.optim.AdamW(net.parameters(), 1e-3), tags=["good"], aliases=["prod"],
        note="the best so far",
    )  # fmt: skip


# --- the page -------------------------------------------------------------------------------------


def test_the_page_shows_what_is_recorded(reg: Registry, saved: Checkpoint) -> None:
    page = Page(reg, "/checkpoint", ref="vision/net@prod")
    assert page.status == 200
    for words in (
        "vision/net@v1", "@prod", "good", "cifar10", "0.9125", "val/loss 0.2500", "epoch 12",
        "step 340", "batch size 64", "torch.optim.adamw.AdamW", "the best so far", "opt.name adamw",
        "strategy DataParallel", "module.", "recorded at the save", "Plain data.",
        saved.id, saved.digest, saved.signature, "checkpoint.pt", "16 tensors",
    ):  # fmt: skip
        assert words in page.text, words


def test_live_keys_show_their_wrappers(reg: Registry, saved: Checkpoint) -> None:
    page = Page(reg, "/checkpoint", ref=saved.id)
    assert "<mark>module.</mark>features.0.bias" in page.html
    # a real submodule that is called like a wrapper is none
    assert "<mark>module.</mark>module.weight" in page.html


def test_examples_cover_each_wrapper_and_a_key_without() -> None:
    signature = Signature(tuple(TensorSpec(k, "float32", (1,)) for k in
        ("aa.w", "ab.w", "features.0.w", "head.w", "neck.1.w", "zz.w")))  # fmt: skip
    ckpt = draft(key_style=KeyStyle.parse("features.module.,neck._orig_mod.")).checkpoint
    found = pages.examples(ckpt, signature)
    shown = {e.canonical: "".join(f"<{s}>" if t else s for s, t in e.live) for e in found}
    assert shown["features.0.w"] == "features<module>0w"
    assert shown["neck.1.w"] == "neck<_orig_mod>1w"
    assert shown["aa.w"] == "aaw"
    assert len(found) <= pages.EXAMPLES


def test_a_removed_one_has_a_page_that_says_so(reg: Registry) -> None:
    ckpt = reg.save(seeded(1), model="net", epoch=1)
    reg.remove(ckpt)
    page = Page(reg, "/checkpoint", ref=ckpt.id)
    assert (page.status, "Removed " in page.text) == (200, True)
    assert f"ckreg restore {ckpt.ref}" in page.text
    refused = Page(reg, "/checkpoint/plan", ref=ckpt.id)
    assert "was removed" in refused.text
    assert "ckreg restore net@v1" in refused.text


def test_what_was_never_recorded_is_not_claimed(reg: Registry, tmp_path: Path) -> None:
    torch.save(nn.DataParallel(seeded(1)).state_dict(), tmp_path / "f.pt")
    ckpt = reg.push(tmp_path / "f.pt", model="net")
    page = Page(reg, "/checkpoint", ref=ckpt.id)
    assert "unknown : the file doesn't say" in page.text
    assert "recorded at the save" not in page.text
    assert "Inferred from the file's keys, not recorded: module." in page.text
    assert "the devices that its storages are tagged with" in page.text


def test_lineage_is_links_both_ways(reg: Registry) -> None:
    chain = [add(reg, parent="f" * 32)]
    for _ in range(pages.KIN + 3):
        chain.append(add(reg, parent=chain[-1].id, epoch=len(chain)))
    fork = add(reg, "fork", parent=chain[2].id)
    page = Page(reg, "/checkpoint", ref=chain[2].id)
    links = page.links()
    for one in (chain[0], chain[1], chain[3], fork):
        assert f"/checkpoint?ref={one.id}" in links
    assert "ffffffffffff of another registry" in page.text
    assert f"/compare?a={chain[1].id}&b={chain[2].id}" in links
    last = Page(reg, "/checkpoint", ref=chain[-1].id)
    assert "earlier ones" in last.text
    assert "of another registry" not in last.text
    assert f"/checkpoint?ref={chain[-2].id}" in last.links()
    assert "none continues it" in Page(reg, "/checkpoint", ref=add(reg, "lone").id).text


def test_many_files_and_metrics_are_folded_and_counted(reg: Registry) -> None:
    metrics = {f"m{i:04}": float(i) for i in range(700)}
    page = Page(reg, "/checkpoint", ref=add(reg, metrics=metrics).id)
    assert "m0499" in page.text
    assert "m0500" not in page.text
    assert "and 200 more" in page.text


def test_the_page_costs_few_questions(reg: Registry, saved: Checkpoint) -> None:
    app = application(reg)
    web = TestClient(app, base_url="http://127.0.0.1:8420")
    web.get("/checkpoint", params={"ref": saved.id})
    with statements() as asked:
        web.get("/checkpoint", params={"ref": saved.id})
    assert len(asked) <= 26


# --- topology -------------------------------------------------------------------------------------


def test_ranks_are_drawn_on_their_hosts() -> None:
    ranks = tuple(f"node{r // 4} cuda:{r % 4}" for r in range(8))
    drawn = draw(Topology(rank=0, hostname="node0", devices=A100S, ranks=ranks))
    assert [p.name for p in drawn.places] == ["node0", "node1"]
    first, second = drawn.places
    assert [(b.rank, b.name, b.wrote) for b in first.boxes[:2]] == [
        (0, "cuda:0", True), (1, "cuda:1", False),
    ]  # fmt: skip
    assert first.boxes[0].what == "A100 · 85.1 GB"
    assert second.boxes[0].what == ""  # what another host's devices are wasn't seen


def test_a_hundred_thousand_ranks_are_counted_not_drawn(reg: Registry) -> None:
    ranks = tuple(f"n{r // 8} cuda:{r % 8}" for r in range(100_000))
    drawn = draw(Topology(ranks=ranks))
    assert len(drawn.places) == MOST_HOSTS
    assert drawn.more == 12_500 - MOST_HOSTS
    assert draw(Topology(ranks=("n cpu",) * 100_000)).places[0].more == 100_000 - MOST_BOXES
    topology = Topology(strategy="fsdp2", world_size=100_000, ranks=ranks)
    page = Page(reg, "/checkpoint", ref=add(reg, topology=topology).id)
    assert len(page.html) < 60_000
    assert f"{12_500 - MOST_HOSTS:,} more hosts" in page.text


def test_which_rank_was_where_is_not_guessed() -> None:
    topology = Topology(
        strategy="ddp", world_size=16, rank=0, device_type="cuda", device_count=16, devices=A100S,
        hostname="node1",
    )  # fmt: skip
    drawn = draw(topology)
    assert [(p.name, p.certain, len(p.boxes)) for p in drawn.places] == [
        ("node1", True, 8), (None, False, 8),
    ]  # fmt: skip
    assert all(b.rank is None for p in drawn.places for b in p.boxes)
    assert any("which of the 16 ranks" in note for note in drawn.notes)


@pytest.mark.parametrize(
    ("topology", "boxes", "note"),
    [
        (Topology(device_type="cuda", device_count=64), 64, "not which"),
        (Topology(world_size=4), 4, "isn't recorded"),
        (Topology(world_size=1), 0, None),
        (Topology(storage_tags=FrozenMap({"cuda:7": 3, "cpu": 1})), 2, "tagged"),
        (Topology(device_type="cuda", device_count=2, devices=A100S), 8, "2 of these 8 trained"),
        (Topology(), 0, None),
        (Topology(world_size=10**12), 10**12, "isn't recorded"),
    ],
)
def test_counts_are_drawn_where_only_counts_are_known(
    topology: Topology, boxes: int, note: str | None
) -> None:
    drawn = draw(topology)
    assert sum(len(p.boxes) + p.more for p in drawn.places) == boxes
    assert sum(len(p.boxes) for p in drawn.places) <= MOST_BOXES
    assert any(note in text for text in drawn.notes) if note else not drawn.notes


def test_a_sharded_save_shows_its_mesh_and_placements(reg: Registry) -> None:
    topology = Topology(
        strategy="hsdp",
        world_size=16,
        meshes=(Mesh((2, 8), ("replicate", "shard")),),
        placements=FrozenMap({"Replicate, Shard(0)": 30, "whole": 10}),
    )
    page = Page(reg, "/checkpoint", ref=add(reg, topology=topology).id)
    assert "mesh replicate 2 × shard 8" in page.text
    assert "Replicate, Shard(0) 30 tensors" in page.text
    assert 'width="75.0"' in page.html


# --- tensors by module ----------------------------------------------------------------------------


def specs(*keys: str) -> list[TensorSpec]:
    return [TensorSpec(key, "float32", (2, 3)) for key in sorted(keys)]


def test_a_level_has_modules_in_the_order_people_count_then_its_own_tensors() -> None:
    found = modules.level(specs("layer.10.w", "layer.2.w", "layer.2.b", "fc.w", "scale"))
    assert [(m.name, m.tensors, m.elements, m.size_bytes) for m in found.modules] == [
        ("fc", 1, 6, 24), ("layer", 3, 18, 72),
    ]  # fmt: skip
    assert [t.key for t in found.tensors] == ["scale"]
    inside = found.modules[1].inside
    assert inside is not None
    assert [m.path for m in inside.modules] == ["layer.2", "layer.10"]


def test_modules_that_hold_only_the_next_are_one_row() -> None:
    (row,) = modules.level(specs("model.encoder.layer.0.w", "model.encoder.layer.1.w")).modules
    assert (row.name, row.path) == ("model.encoder.layer", "model.encoder.layer")
    # a tensor that is called like a module's path is the module's own
    (row,) = modules.level(specs("a.b", "a.b.c")).modules
    assert (row.name, row.inside and [t.key for t in row.inside.tensors]) == ("a", ["a.b"])


def test_a_large_model_is_shown_level_by_level_and_page_by_page() -> None:
    tensors = specs(*(f"blocks.{i}.{w}" for i in range(1000) for w in ("weight", "bias")))
    top = modules.level(tensors)
    assert [(m.name, m.tensors, m.inside) for m in top.modules] == [("blocks", 2000, None)]
    seen: list[str] = []
    first: int | None = 0
    while first is not None:
        part = modules.level(tensors, "blocks", first)
        assert len(part.modules) <= modules.PAGE
        seen += [m.name for m in part.modules]
        first = part.next
    assert seen == [str(i) for i in range(1000)]


def test_ten_thousand_nested_modules_are_one_row() -> None:
    deep = ".".join(["a"] * 10_000)
    (row,) = modules.level(specs(f"{deep}.w", f"{deep}.b")).modules
    assert row.path == deep
    branching = [".".join(["a"] * n) + ".w" for n in range(1, 2000, 20)]
    assert modules.level(specs(*branching)).modules[0].tensors == len(branching)


def test_an_unknown_width_is_said(reg: Registry) -> None:
    signature = Signature((TensorSpec("w", "mystery", (3,)), TensorSpec("v.x", "bool", (3,))))
    found = modules.level(signature.tensors)
    assert (found.tensors[0].size_bytes, found.modules[0].size_bytes) == (None, 3)
    assert modules.bytes_of(signature.tensors) is None


def test_a_module_opens_by_its_link(reg: Registry) -> None:
    signature = Signature(tuple(specs(*(f"blocks.{i}.w" for i in range(300)), "fc.w")))
    ckpt = add(reg, signature=signature)
    page = Page(reg, "/checkpoint", ref=ckpt.id)
    assert "blocks.1.w" not in page.text
    (inside,) = {link for link in page.links() if "module=blocks" in link}
    below = Page(reg, inside)
    assert "200 more" in below.text
    (more,) = {link for link in below.links() if "first=100" in link}
    assert Page(reg, more).status == 200
    assert Page(reg, "/checkpoint/modules", ref=ckpt.id, module="nowhere").status == 200
    for wrong in ("-1", "x", "9" * 30, "²"):
        assert Page(reg, "/checkpoint/modules", ref=ckpt.id, first=wrong).status == 400


def test_ten_thousand_tensors_make_a_small_page(reg: Registry) -> None:
    signature = Signature(tuple(specs(*(f"b{i}.{j}.w" for i in range(1000) for j in range(10)))))
    page = Page(reg, "/checkpoint", ref=add(reg, signature=signature).id)
    assert "10,000 tensors" in page.text
    assert len(page.html) < 150_000


# --- the plan -------------------------------------------------------------------------------------


def test_the_plan_is_for_the_device_and_wrapper_that_were_chosen(
    reg: Registry, saved: Checkpoint
) -> None:
    page = Page(reg, "/checkpoint/plan", ref=saved.id, device="cuda:0", wrapper="_orig_mod.")
    assert page.status == 200
    assert "map_location 'cuda:0': device='cuda:0'" in page.text
    assert "16 renamed, 'scale' -> '_orig_mod.scale'" in page.text
    assert "optimizer: there is no target to restore it to" in page.text
    assert "net = torch.compile(net.to('cuda:0'))" in page.snippet("python")
    assert "'_orig_mod.' + k" in page.snippet("by-hand")
    # without scripts the form is there again, as it was filled in
    assert re.search(r'value="cuda:0" selected', page.html)
    assert re.search(r'value="_orig_mod." selected', page.html)


def test_any_device_can_be_named(reg: Registry, saved: Checkpoint) -> None:
    page = Page(reg, "/checkpoint/plan", ref=saved.id, device="other", other="xpu:3")
    assert "map_location 'xpu:3'" in page.text
    assert 'value="xpu:3"' in page.html
    tagged = Page(reg, "/checkpoint/plan", ref=saved.id, device="recorded")
    assert "map_location 'recorded': device='recorded': cpu" in tagged.text
    for wrong, said in (
        ("tpu", "is no type of device"), ("", "Name the device"), ("a b", "is none"),
    ):  # fmt: skip
        page = Page(reg, "/checkpoint/plan", ref=saved.id, device="other", other=wrong)
        assert (page.status, said in page.text) == (200, True)
        assert 'id="python"' not in page.html
    page = Page(reg, "/checkpoint/plan", ref=saved.id, wrapper="ddp")
    assert "no key style" in page.text


def test_a_refusal_shows_its_reason_and_its_cure_in_place(reg: Registry, tmp_path: Path) -> None:
    keys = {"module.fc.weight": torch.zeros(2), "module.fc.bias": torch.zeros(2)}
    torch.save(keys, tmp_path / "f.pt")
    ckpt = reg.push(tmp_path / "f.pt", model="net")
    refused = Page(reg, "/checkpoint/plan", ref=ckpt.id, wrapper="module._orig_mod.")
    assert refused.status == 200
    assert "is not recorded: they look like 'module.'" in refused.text
    assert "hint" in refused.text
    assert 'id="python"' not in refused.html
    stated = Page(reg, "/checkpoint/plan", ref=ckpt.id, wrapper="module._orig_mod.", keys="module.")
    assert "2 renamed" in stated.text
    assert "keys='module.'" in stated.snippet("python")
    assert 'id="pull"' not in stated.html  # which can't be told


def test_of_live_and_averaged_weights_one_is_chosen(reg: Registry, tmp_path: Path) -> None:
    state = {"fc.weight": torch.zeros(2)}
    torch.save({"state_dict": state, "ema": dict(state), "epoch": 1}, tmp_path / "f.pt")
    ckpt = reg.push(tmp_path / "f.pt", model="net")
    assert ckpt.weights == "both"
    assert 'name="weights"' in Page(reg, "/checkpoint", ref=ckpt.id).html
    page = Page(reg, "/checkpoint/plan", ref=ckpt.id, weights="ema")
    assert "these are averaged weights" in page.text
    assert "weights='ema'" in page.snippet("python")
    assert "--weights ema" in page.snippet("pull")
    assert "and nothing says which" in Page(reg, "/checkpoint/plan", ref=ckpt.id).text
    assert "is neither" in Page(reg, "/checkpoint/plan", ref=ckpt.id, weights="x").text


def test_the_wrapper_of_the_save_can_be_chosen_where_it_is_like_no_other(reg: Registry) -> None:
    net = seeded(1)
    net.features = nn.DataParallel(net.features)  # type: ignore[assignment]
    ckpt = reg.save(net, model="net", epoch=1)
    page = Page(reg, "/checkpoint/plan", ref=ckpt.id, wrapper="recorded")
    assert "'features.0.weight' -> 'features.module.0.weight'" in page.text or (
        "features.module." in page.text
    )
    assert "--keys recorded" in page.snippet("pull")


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A process group of this process alone, so that DistributedDataParallel can be made."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("device", ["cpu", "recorded"])
@pytest.mark.parametrize("wrapper", [*loading.WRAPPERS, "recorded"])
def test_the_python_that_is_shown_runs(
    reg: Registry, one_rank: None, wrapper: str, device: str
) -> None:
    net = seeded(1)
    net.features = nn.DataParallel(net.features)  # type: ignore[assignment]
    ckpt = reg.save(net, model="net", epoch=1)
    code = Page(reg, "/checkpoint/plan", ref=ckpt.id, wrapper=wrapper, device=device).snippet(
        "python"
    )
    names: dict[str, Any] = {"net": (target := seeded(2))}
    exec(code, names)
    expected = seeded(1).state_dict()
    got = names["state"] if "state" in names else target.state_dict()
    assert set(got) == set(expected)
    assert all(torch.equal(got[key], value) for key, value in expected.items())
    if wrapper not in (loading.PLAIN, "recorded"):
        assert all(key.startswith(wrapper) for key in names["net"].state_dict())
    names["reg"].close()


@pytest.mark.parametrize("wrapper", ["plain", "module.", "module._orig_mod."])
def test_the_commands_that_are_shown_run(
    reg: Registry, saved: Checkpoint, tmp_path: Path, wrapper: str
) -> None:
    page = Page(reg, "/checkpoint/plan", ref=saved.id, device="cpu", wrapper=wrapper)
    style = "" if wrapper == "plain" else wrapper
    for id in ("pull", "plan-command"):
        words = shlex.split(page.snippet(id))
        assert words[0] == "ckreg"
        done = subprocess.run(
            [sys.executable, "-m", "registry", *words[1:]],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / "vision-net-v1.pt", weights_only=True)["state_dict"]
    assert set(state) == {f"{style}{key}" for key in seeded(1).state_dict()}


def test_a_plan_by_hand_of_very_many_renames_is_cut(reg: Registry, tmp_path: Path) -> None:
    odd = {f"m{i}.module.w": torch.zeros(1) for i in range(3000)}
    torch.save(odd, tmp_path / "f.pt")
    style = ",".join(f"m{i}.module." for i in range(3000))
    ckpt = reg.push(tmp_path / "f.pt", model="net", keys=style)
    page = Page(reg, "/checkpoint/plan", ref=ckpt.id)
    assert "the whole of it is plan.python" in page.snippet("by-hand")
    assert len(page.html) < 100_000


# --- two ------------------------------------------------------------------------------------------


def test_two_are_compared_by_their_records_at_once(reg: Registry, saved: Checkpoint) -> None:
    other = reg.save(seeded(2), model="vision/net", dataset="cifar10", epoch=13, acc=0.93)
    page = Page(reg, "/compare", a="vision/net@prod", b=other.id)
    assert "The same 16 tensors : keys, shapes and dtypes, though the one was wrapped" in page.text
    assert "metrics.acc 0.9125 0.93" in page.text
    assert "metrics.val/loss 0.25 –" in page.text
    assert "‖Δ‖" not in page.text
    by_marks = Page(reg, f"/compare?ref={saved.id}&ref={other.id}")
    assert "metrics.acc 0.9125 0.93" in by_marks.text


def test_the_values_are_compared_when_asked(reg: Registry, saved: Checkpoint) -> None:
    net = seeded(1)
    with torch.no_grad():
        net.model[0].weight += 0.5  # type: ignore[operator]
    other = reg.save(net, model="vision/net", dataset="cifar10", epoch=13)
    page = Page(reg, "/compare/numbers", a=saved.id, b=other.id)
    assert "1 of 16 tensors that both have differ" in page.text
    assert "model.0 1 of 2" in page.text
    assert "modules are equal" in page.text
    same = Page(reg, "/compare/numbers", a=saved.id, b=saved.id)
    assert "Equal , value for value: 16 tensors" in same.text


def test_keys_and_shapes_that_differ_are_listed(reg: Registry) -> None:
    one = Signature(tuple(specs("fc.weight", "old.weight")))
    two = Signature((*specs("new.weight"), TensorSpec("fc.weight", "float16", (2, 4))))
    a, b = add(reg, "a", signature=one), add(reg, "b", signature=two)
    page = Page(reg, "/compare", a=a.id, b=b.id)
    assert "1 key in common , 1 only in a, 1 only in b, 1 of another shape or dtype" in page.text
    assert "only in a 1 old.weight" in page.text
    assert "fc.weight float32 2 × 3 float16 2 × 4" in page.text


def test_a_comparison_says_what_it_lacks(reg: Registry, saved: Checkpoint) -> None:
    assert "Name two checkpoints" in Page(reg, "/compare").text
    half = Page(reg, "/compare", a=saved.ref)
    assert (half.status, 'value="vision/net@v1"' in half.html) == (200, True)
    wrong = Page(reg, "/compare", a=saved.ref, b="vision/nat")
    assert (wrong.status, "did you mean" in wrong.text) == (404, True)
    assert "did you mean" in Page(reg, "/compare/numbers", a=saved.ref, b="vision/nat").text
    assert Page(reg, "/compare/numbers").status == 200


# --- hostile --------------------------------------------------------------------------------------

MARKUP = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}"
LINK = "javascript:alert(1)"
BIDI = "\u202egpj.exe\u202c\u2066\x1b[31m\x07"


class Evil:
    """What runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


@pytest.fixture
def evil(reg: Registry, tmp_path: Path) -> Checkpoint:
    state = {f"{MARKUP}.weight": torch.zeros(2), f"{LINK}.w": torch.ones(1), BIDI: torch.ones(1)}
    state |= {"..": torch.ones(1), 'a." onmouseover="alert(1)': torch.ones(1)}
    tree = {"state_dict": state, "epoch": 1, "evil": Evil(tmp_path / "ran"), "note": MARKUP}
    torch.save(tree, tmp_path / "evil.pt")
    ckpt = reg.push(
        tmp_path / "evil.pt", model="evil", dataset=MARKUP, run=LINK, note=f"{BIDI}\n{MARKUP}",
        metrics={MARKUP: 1.0, LINK: 2.0},
    )  # fmt: skip
    assert ckpt.unsafe_globals
    return ckpt


def test_hostile_text_is_text_on_every_page(
    reg: Registry, evil: Checkpoint, tmp_path: Path
) -> None:
    other = add(
        reg, "other", note=MARKUP, dataset=LINK, author=MARKUP, command=f"{BIDI} {MARKUP}",
        config={MARKUP: {LINK: BIDI}}, parent=evil.id, scheduler=MARKUP,
        optimizers=FrozenMap({MARKUP: LINK}),
        topology=Topology(
            hostname=MARKUP, device_type="cuda", device_count=1, visible_devices=BIDI,
            devices=(Device(0, "cuda", MARKUP),), ranks=(f"{MARKUP} {LINK}",),
            meshes=(Mesh((2,), (MARKUP,)),), placements=FrozenMap({MARKUP: 1}),
            storage_tags=FrozenMap({MARKUP: 1}),
        ),
    )  # fmt: skip
    asked: list[tuple[str, dict[str, str]]] = [
        *(("/checkpoint", {"ref": c.id}) for c in (evil, other)),
        *(("/checkpoint/plan", {"ref": evil.id, "device": "other", "other": t, "wrapper": t,
                                "keys": t, "weights": t}) for t in (MARKUP, LINK, BIDI)),
        ("/checkpoint/plan", {"ref": evil.id}),
        ("/checkpoint/modules", {"ref": evil.id, "module": MARKUP}),
        ("/checkpoint/modules", {"ref": evil.id, "module": BIDI}),
        ("/checkpoint/modules", {"ref": evil.id, "first": MARKUP}),
        ("/compare", {"a": evil.id, "b": other.id}),
        ("/compare", {"a": MARKUP, "b": LINK}),
        ("/compare/numbers", {"a": evil.id, "b": evil.id}),
        ("/compare/numbers", {"a": MARKUP, "b": BIDI}),
    ]  # fmt: skip
    for path, query in asked:
        page = Page(reg, path, **query)
        assert page.status in (200, 400, 404), (path, query)
        for tag, attributes in page.tags:
            assert tag not in ("iframe", "object", "embed", "base", "style"), path
            assert not [a for a in attributes if a.startswith("on") or a == "style"], path
            if tag == "script":
                assert str(attributes["src"]).startswith("/static/")
            if tag == "img":
                assert str(attributes["src"]).startswith("/static/")
        for link in page.links():
            assert link[:1] in "/#", link
            assert not link.startswith("//")
            assert not urlsplit(link).scheme
        assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f\x7f]", page.html), path
        assert "{{" not in page.html.replace("{{7*7}}", "")
        assert "49" not in re.findall(r"onerror=alert\(1\)&gt;(\d+)", page.html)
    assert not (tmp_path / "ran").exists()


def test_pages_import_no_torch_until_values_are_compared(
    reg: Registry, saved: Checkpoint, tmp_path: Path
) -> None:
    code = f"""
import sys
from starlette.testclient import TestClient
from registry.web.app import application
web = TestClient(application({reg.location!r}), base_url="http://127.0.0.1:8420")
for path in ("/checkpoint", "/checkpoint/plan", "/checkpoint/modules", "/compare"):
    answer = web.get(path, params={{"ref": {saved.id!r}, "a": {saved.id!r}, "b": {saved.id!r}}})
    assert answer.status_code == 200, answer.text
print("torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.stdout.strip(), done.returncode) == ("False", 0), done.stderr


def test_the_net_of_these_tests_is_what_they_say() -> None:
    assert len(Net().state_dict()) == 16
