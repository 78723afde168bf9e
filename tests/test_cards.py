"""The model card of an export; the oracle is huggingface_hub's own reader."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from nets import seeded
from torch import nn

from registry import Checkpoint, ConflictError, Registry
from registry.cards import Weight, Written, card, escaped, is_untouched, scalar

HOSTILE = (
    'a: "b" # c', "--- \n...\n", "[x](javascript:alert(1))", "<script>alert(1)</script>",
    "| a | b |",
    "{{ x }} ${y} %z", "\x1b[31mred", "模型 é 🚀", "yes", "1e-05", "~", "*a* _b_ `c`", "&lt;", "\\",
    "- x", "? y", "! !!python/object", "\u202eevil", "https://evil.example/",
)  # fmt: skip


def hub() -> Any:
    """Return huggingface_hub, or skip, naming it."""
    return pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")


def saved(reg: Registry, **words: Any) -> Checkpoint:
    return reg.save(nn.DataParallel(seeded(1)), model="lab/net_1", **words)


def body(text: str) -> str:
    return text.split("\n---\n", 1)[1]


def test_the_hub_reads_the_card_as_it_was_recorded(reg: Registry, tmp_path: Path) -> None:
    metrics = {"val/loss": 1e-07, "big": 3e20, "n": 2.0}
    ckpt = saved(reg, dataset="cifar 10", acc=0.5, metrics=metrics, tags=["good"])
    out = reg.export(ckpt, tmp_path / "out")

    read = hub().ModelCard.load(out / "README.md")

    assert read.data.library_name == "pytorch"
    assert read.data.tags == ["ckreg", "pytorch", "safetensors", "good"]
    assert read.data.model_name == "lab/net_1"
    results = read.data.eval_results
    assert {r.metric_type: r.metric_value for r in results} == {**metrics, "acc": 0.5}
    assert {(r.dataset_name, r.dataset_type) for r in results} == {("cifar 10", "cifar-10")}
    assert re.fullmatch(r"(?:[\w-]+/)?[\w.-]+", results[0].dataset_type)  # the Hub's own rule


def test_without_a_dataset_or_metrics_there_are_no_results(reg: Registry, tmp_path: Path) -> None:
    for name, words in (("a", {"acc": 0.5}), ("b", {"dataset": "d"})):
        out = reg.export(saved(reg, **words), tmp_path / name)
        assert hub().ModelCard.load(out / "README.md").data.eval_results is None


@pytest.mark.parametrize("text", HOSTILE)
def test_foreign_text_breaks_neither_yaml_nor_markdown(
    reg: Registry, tmp_path: Path, text: str
) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    assert yaml.safe_load(f"a: {scalar(text)}") == {"a": text}
    plain = re.sub(r"[^ -~]", "", text).strip() or "x"
    ckpt = saved(reg, dataset=plain, note=text, acc=0.5, metrics={plain: 1.0}, config={plain: text})
    out = reg.export(ckpt, tmp_path / "out")

    written = (out / "README.md").read_text()
    read = hub().ModelCard(written)

    assert {r.dataset_name for r in read.data.eval_results} == {plain}
    assert {r.metric_type for r in read.data.eval_results} == {plain, "acc"}
    prose = re.sub(r"```.*?```", "", body(written), flags=re.DOTALL)
    prose = re.sub(r"<!-- ckreg-card \S+ -->", "", prose)
    assert not re.search(r"(?<!\\)[<>]", prose)
    assert not re.search(r"(?<!\\)\]\(", prose)
    assert all(c.isprintable() or c == "\n" for c in written)
    rows = [line for line in prose.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} <= {3, 5}


def test_markdown_shows_foreign_text_as_it_is() -> None:
    markdown = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    for text in HOSTILE:
        shown = markdown.MarkdownIt("commonmark").render(f"x {escaped(text)}")
        assert re.findall(r"</?(\w+)", shown) == ["p", "p"], shown


def test_equal_exports_have_equal_cards(reg: Registry, tmp_path: Path) -> None:
    ckpt = saved(reg, dataset="d", acc=0.5, config={"b": 1, "a": {"c": 2}})
    one, two = (reg.export(ckpt, tmp_path / name) for name in ("a", "b"))
    assert (one / "README.md").read_bytes() == (two / "README.md").read_bytes()
    assert is_untouched((one / "README.md").read_text())


def test_it_says_facts_topology_metrics_and_tensors(reg: Registry, tmp_path: Path) -> None:
    with reg.run("net", dataset="d", name="try", config={"lr": 0.1}) as run:
        ckpt = run.save(nn.DataParallel(seeded(1)), epoch=3, acc=0.5, metrics={"loss": 2.0})
    out = reg.export(ckpt, tmp_path / "out")
    text = (out / "README.md").read_text()
    for row in (
        "| epoch | 3 |", "| run | try |", "| acc | 0.5 |", "| loss | 2.0 |", "| strategy | dp |",
        "| lr | 0.1 |", f"| checkpoint id | {ckpt.id} |", f"| {ckpt.digest} |",
    ):  # fmt: skip
        assert row.removeprefix("| ") in text, row
    assert "It trained as 'module.' (recorded)" in text
    numbers = sum(p.numel() for p in seeded(1).parameters())
    assert int(re.search(r"\| float32 \| \d+ \| ([\d,]+) \|", text)[1].replace(",", "")) >= numbers  # type: ignore[index]


@pytest.mark.parametrize("format", ["safetensors", "pt"])
@pytest.mark.parametrize("shard_size", [None, 200])
def test_what_it_says_of_loading_is_so(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Any, shard_size: Any
) -> None:
    import torch

    def net(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))

    out = reg.export(
        reg.save(net(1), model="net"), tmp_path / "out", format=format, shard_size=shard_size
    )
    monkeypatch.chdir(out)
    monkeypatch.setenv("CKREG_REGISTRY", str(tmp_path / "other"))
    Registry.create(tmp_path / "other").push(".")
    blocks = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        into = net(2)
        exec(block, {"net": into})
        assert all(
            torch.equal(a, b) for a, b in zip(into.parameters(), net(1).parameters(), strict=True)
        )


def test_an_exported_folder_pushed_twice_is_one_checkpoint(reg: Registry, tmp_path: Path) -> None:
    out = reg.export(saved(reg, dataset="d", epoch=1), tmp_path / "out")
    first = reg.push(out)
    assert reg.push(out).id == first.id
    assert [f.name for f in first.files] == ["README.md", "ckreg.json", "model.safetensors"]
    again = reg.export(first, tmp_path / "again")
    told = json.loads((again / "ckreg.json").read_text())
    assert (told["dataset"], told["epoch"], told["key_style"]) == ("d", 1, "module.")


def test_force_replaces_our_card_and_never_one_that_was_edited(
    reg: Registry, tmp_path: Path
) -> None:
    ckpt = saved(reg)
    out = reg.export(ckpt, tmp_path / "out")
    reg.export(ckpt, out, force=True)
    mine = (out / "README.md").read_text().replace("## Facts", "My own words.\n\n## Facts")
    (out / "README.md").write_text(mine)
    with pytest.raises(ConflictError, match=r"README\.md"):
        reg.export(ckpt, out, force=True)
    assert (out / "README.md").read_text() == mine


def test_a_net_of_thousands_of_parts_has_a_short_card(reg: Registry) -> None:
    weights = tuple(Weight(f"m{i}.w", "float32", (2,), 8) for i in range(5000))
    written = Written(format="pt", files=("pytorch_model.bin",), tensors=weights, keys="")
    text = card(saved(reg), None, written)
    assert len(text.splitlines()) < 200
    assert "| and 4,960 more |" in text
