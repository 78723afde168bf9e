"""What a file says of itself: its record is checked, its contents are taken as far as they go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drafts import draft, held
from nets import equal, seeded
from reading import described
from torch.optim.swa_utils import AveragedModel

from registry import CkregWarning, Registry
from registry.drafting import check, dropped, keyed, merge, recorded
from registry.records import JSON_LIMIT, TEXT_LIMIT, CarriedRun, Git, RunRecord
from registry.values import FrozenMap, now


def carried(reg: Registry, tmp_path: Path, **changes: Any) -> Path:
    """Return a file that ckreg saved, its record changed by hand."""
    path = reg.pull(reg.save(seeded(1), model="net", epoch=1), tmp_path / "carried.pt")
    tree = torch.load(path, weights_only=True)
    tree["ckreg"].update(changes)
    torch.save(tree, path)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"git": {"commit": "a\x1b[31m", "dirty": False}},
        {"git": {"commit": "", "dirty": False}},
        {"git": {"commit": "a" * 300, "dirty": False}},
        {"command": "x" * 5_000_000},
        {"config": {"x": "y" * 5_000_000}},
        {"author": ["a"]},
        {"run": {"id": "../../x"}},
        {"topology": {"strategy": "magic"}},
        {"key_style": "sideways."},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_hostile_record_is_refused_and_the_registry_stays_listable(
    reg: Registry, tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = carried(reg, tmp_path, **changes)
    with Registry.create(tmp_path / "other") as other:
        with pytest.warns(CkregWarning, match="malformed"):
            checkpoint = other.push(path)
        assert [c.id for c in other.find()] == [checkpoint.id]
        assert checkpoint.provenance.topology == "unknown"
        other.load(checkpoint, into=(into := seeded(2)))
        assert equal(into, seeded(1))


def test_a_carried_run_whose_name_is_taken_comes_in_under_its_id(
    reg: Registry, tmp_path: Path
) -> None:
    saved = reg.run("net", dataset="d", name="baseline").save(seeded(1))
    path = reg.pull(saved, tmp_path / "c.pt")
    with Registry.create(tmp_path / "other") as other:
        theirs = other.run("net", dataset="d", name="baseline").save(seeded(2))
        with pytest.warns(CkregWarning, match="baseline"):
            ours = other.push(path)
        assert ours.run is not None
        assert theirs.run is not None
        assert (ours.run.id, ours.run.name) == (saved.run.id if saved.run else None, None)
        assert ours.run.id != theirs.run.id


def test_a_carried_run_keeps_what_was_recorded_of_it(reg: Registry, tmp_path: Path) -> None:
    saved = reg.run("net", name="r", config={"lr": 0.5}, batch_size=4).save(seeded(1))
    path = reg.pull(saved, tmp_path / "c.pt")
    with Registry.create(tmp_path / "other") as other:
        other.push(path)
        run = saved.run
        assert run is not None
        assert other._parts()[1].run(run.id) == reg._parts()[1].run(run.id)


def test_a_foreign_averaged_model_is_recorded_as_such(reg: Registry, tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(seeded(1))
    torch.save(averaged.state_dict(), tmp_path / "w.pt")
    checkpoint = reg.push(tmp_path / "w.pt", model="net", keys="module.")
    assert (checkpoint.weights, checkpoint.tensors) == ("ema", len(seeded(1).state_dict()))
    assert [c.id for c in reg.fits(seeded(2))] == [checkpoint.id]


def test_a_stated_style_that_fits_no_key_is_refused(reg: Registry, tmp_path: Path) -> None:
    torch.save(seeded(1).state_dict(), tmp_path / "w.pt")
    with pytest.raises(Exception, match="featurez"):
        reg.push(tmp_path / "w.pt", model="net", keys="featurez.module.")
    assert reg.models() == []


def test_a_style_stated_of_our_own_file_keeps_the_live_style(reg: Registry, tmp_path: Path) -> None:
    path = reg.pull(reg.save(torch.nn.DataParallel(seeded(1)), model="net"), tmp_path / "c.pt")
    with Registry.create(tmp_path / "other") as other:
        checkpoint = other.push(path, keys="")
    assert str(checkpoint.key_style) == "module."


def test_another_format_under_our_key_is_a_foreign_file(reg: Registry, tmp_path: Path) -> None:
    torch.save({"model": seeded(1).state_dict(), "ckreg": {"format": 3}}, tmp_path / "w.pt")
    with pytest.warns(CkregWarning):
        checkpoint = reg.push(tmp_path / "w.pt", model="net")
    reg.load(checkpoint, into=(into := seeded(2)))
    assert equal(into, seeded(1))


def test_a_name_that_can_not_be_one_is_said(reg: Registry, tmp_path: Path) -> None:
    torch.save({"model": "Res Net", "state_dict": seeded(1).state_dict()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="Res Net"):
        reg.push(tmp_path / "w.pt")
    torch.save({"acc": float("nan"), "state_dict": seeded(1).state_dict()}, tmp_path / "w.pt")
    with pytest.warns(CkregWarning, match="nan"):
        assert reg.push(tmp_path / "w.pt", model="net").acc is None


def test_a_nested_state_dict_never_loses_tensors(reg: Registry, tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": {"b": torch.ones(1)}, "c": torch.ones(2)}}, tmp_path / "w.pt")
    with pytest.raises(Exception, match="nested"):
        reg.push(tmp_path / "w.pt", model="net")


def test_a_safetensors_header_may_have_any_length(reg: Registry, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for extra in range(0, 4096, 8):  # some lengths read like the first opcode of a pickle
        metadata = {"x": "y" * (500 + extra)}
        save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors", metadata=metadata)
        head = (tmp_path / "w.safetensors").read_bytes()[:2]
        if head[:1] == b"\x80" and 2 <= head[1] <= 5:
            break
    else:
        pytest.fail("no header was of that length")
    assert reg.push(tmp_path / "w.safetensors", model="net").container == "safetensors"


# --- the record, field by field -------------------------------------------------------------------

OWN: dict[str, Any] = {"format": 1, "model": "net", "key_style": "", "weights": "live"}
RUN = RunRecord(
    id="a" * 32, model="net", name="try", config=FrozenMap({"lr": 0.1}), batch_size=8,
    hostname="node", command="train.py", git=Git("abc", True), author="ann", created_at=now(),
)  # fmt: skip

Write = Callable[[Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(value: Any) -> Path:
        torch.save(value, tmp_path / "written.pt")
        return tmp_path / "written.pt"

    return written


@pytest.mark.parametrize(
    "more",
    [
        {"git": {"commit": "abc", "dirty": 1}},
        {"git": ["abc", True]},
        {"run": {**RUN.to_dict(), "git": {"commit": "", "dirty": False}}},
        {"run": {**RUN.to_dict(), "command": 7}},
        {"run": {**RUN.to_dict(), "command": "x" * (TEXT_LIMIT + 1)}},
        {"run": {**RUN.to_dict(), "hostname": "x" * (TEXT_LIMIT + 1)}},
        {"run": {**RUN.to_dict(), "config": {"x": "y" * JSON_LIMIT}}},
        {"run": ["a" * 32]},
        {"command": 7},
        {"author": "x" * (TEXT_LIMIT + 1)},
        {"config": "x"},
        {"topology": {"visible_devices": "y" * JSON_LIMIT}},
        {"metrics": {f"m{i}": 0.5 for i in range(100_000)}},
        {"model": None},
    ],
    ids=lambda more: next(iter(more)),
)
def test_a_record_that_breaks_a_rule_is_malformed(more: dict[str, Any]) -> None:
    assert recorded(OWN) is not None
    with pytest.raises(ValueError, match="malformed"):
        recorded({**OWN, **more})


def test_a_record_tells_of_its_run_whole() -> None:
    found = recorded({**OWN, "run": RUN.to_dict()})
    assert found is not None
    assert isinstance(found.run, CarriedRun)
    assert found.run.to_dict() == RUN.to_dict()


def test_of_a_run_of_which_little_is_told_the_rest_is_the_checkpoint_s() -> None:
    little = {"id": RUN.id, "name": "try", "config": {"lr": 0.1}, "batch_size": 8}
    found = recorded({**OWN, "dataset": "digits", "run": little})
    assert found is not None
    assert found.run is not None
    run = found.run
    assert (run.id, run.model, run.dataset, run.name) == (RUN.id, "net", "digits", "try")
    assert (run.config, run.batch_size, run.hostname) == ({"lr": 0.1}, 8, None)


def test_as_much_as_a_save_may_hold_is_no_malformed_record() -> None:
    config = {"x": "y" * (JSON_LIMIT - 100)}
    buffers = [f"layer.{i}" * 10 for i in range(20_000)]
    much = {"config": config, "run": {**RUN.to_dict(), "config": config}, "buffers": buffers}
    assert recorded({**OWN, **much}) is not None


# --- what a caller says ---------------------------------------------------------------------------


def test_what_is_too_long_is_refused_by_its_name(reg: Registry) -> None:
    with pytest.raises(ValueError, match="note has 4097 characters"):
        check(note="x" * (TEXT_LIMIT + 1))
    with pytest.raises(ValueError, match=r"config has \d+ bytes"):
        check(config={"x": "y" * JSON_LIMIT})
    with pytest.raises(ValueError, match=r"config has \d+ bytes"):
        reg.run("net", config={"x": "y" * JSON_LIMIT})
    with pytest.raises(ValueError, match="metrics and config hold together"):
        check(metrics={f"m{i}": 0.5 for i in range(100_000)})
    with pytest.raises(TypeError, match="note"):
        check(note=7)
    assert check(note="x" * TEXT_LIMIT, config={"x": "y" * 1000}).note == "x" * TEXT_LIMIT


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("git", Git("", False)),
        ("git", Git("a\nb", False)),
        ("container", "x" * 300),
        ("tensors", -1),
        ("config", FrozenMap({"x": "y" * (3 << 20)})),
        ("unsafe_globals", ("x" * (3 << 20),)),
    ],
    ids=["empty", "control", "long", "negative", "large", "globals"],
)
def test_no_row_is_inserted_that_cannot_be_read_back(
    reg: Registry, field: str, value: object
) -> None:
    with pytest.raises(ValueError, match=r"commit|container|tensors|record"):
        reg._parts()[1].add(draft(**{field: value}), held)
    assert list(reg.find()) == []


# --- keys -----------------------------------------------------------------------------------------


def test_an_average_s_counter_is_no_weight_and_is_restored(reg: Registry, write: Write) -> None:
    average = AveragedModel(seeded(1))
    average.n_averaged.fill_(3)
    pushed = reg.push(write(average.state_dict()), model="net")
    plain = reg.save(seeded(1), model="net")
    assert (pushed.weights, pushed.tensors) == ("ema", plain.tensors)
    assert pushed.signature == plain.signature
    reg.load(pushed, into=(into := AveragedModel(seeded(2))))
    assert equal(into, average)
    assert int(into.n_averaged) == 3


def test_an_average_inside_the_net_makes_no_averaged_weights(reg: Registry, write: Write) -> None:
    net = torch.nn.Sequential(AveragedModel(torch.nn.Linear(2, 2)), torch.nn.Linear(2, 2))
    pushed = reg.push(write(net.state_dict()), model="net")
    assert (pushed.weights, pushed.tensors) == ("live", 4)


@pytest.mark.parametrize("keys", [["a..module.weight"], ["n_averaged", "module.n_averaged"]])
def test_a_guess_that_cannot_be_written_or_applied_is_none(write: Write, keys: list[str]) -> None:
    found = keyed(described(write({key: torch.ones(2) for key in keys})), check(), None)
    assert (str(found.file_keys), found.provenance) == ("", "inferred")
    assert [t.key for t in found.signature.tensors] == sorted(keys)


# --- what a foreign file says ---------------------------------------------------------------------


def test_a_foreign_config_is_recorded(reg: Registry, write: Write) -> None:
    config = {"lr": 0.1, "layers": [1, 2], "name": None}
    path = write({"model": "net", "state_dict": seeded(1).state_dict(), "config": config})
    assert reg.push(path).config.to_dict() == config


def test_what_a_foreign_file_says_in_vain_is_told(write: Write) -> None:
    found = described(
        write(
            {
                "model": "Res Net", "dataset": " x", "state_dict": seeded(1).state_dict(),
                "acc": float("nan"), "best_loss": float("inf"), "val_loss": 0.5,
                "config": {"x": "y" * JSON_LIMIT},
            }
        )
    )  # fmt: skip
    assert dropped(found) == (
        "the file names its model 'Res Net', which can't be a name here: give --model",
        "the file's dataset ' x' can't be recorded as one",
        "the file's config is too large to record, or no plain data",
        "the file's metric 'acc' is nan, and is not recorded",
        "the file's metric 'best_loss' is 'inf', and is not recorded",
    )
    said = check(model="net", dataset="x", config={"a": 1}, metrics={"acc": 1, "best_loss": 2})
    assert dropped(found, said) == ()
    known = merge(check(model="net"), found, None)
    assert (known.dataset, known.config, known.metrics) == (None, {}, {"val_loss": 0.5})


def test_metrics_beyond_measure_are_left_out_and_told(write: Write) -> None:
    many = {f"loss{i}": 0.5 for i in range(100_000)}
    found = described(write({"state_dict": seeded(1).state_dict(), "metrics": many}))
    assert merge(check(model="net"), found, None).metrics == {}
    assert dropped(found) == ("the file's 100000 metrics are too many to record",)
    none = {f"loss{i}": float("inf") for i in range(20)}
    found = described(write({"state_dict": seeded(1).state_dict(), "metrics": none}))
    assert (len(dropped(found)), dropped(found)[-1]) == (13, "and 8 more such")


def test_of_a_file_with_a_record_nothing_is_missed(write: Write) -> None:
    state = seeded(1).state_dict()
    value = {"state_dict": state, "model": "Res Net", "acc": float("nan"), "ckreg": OWN}
    assert dropped(described(write(value))) == ()


@pytest.mark.parametrize("other", [{"format": 3}, {"format": 1, "x": torch.ones(1)}], ids=repr)
def test_a_key_of_our_name_in_another_layout_is_the_file_s_own(write: Write, other: Any) -> None:
    value = {"net": seeded(1).state_dict(), "dataset": "digits", "ckreg": other}
    found = described(write(value))
    assert (found.where, found.dataset, found.record) == ("net", "digits", None)
    assert list(found.extra) == ["ckreg"]
    assert any("'ckreg'" in note for note in found.notes)
