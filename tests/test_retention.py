"""Retention: what the policies keep, against an oracle of their own words; and what prune does with
it, in real registries.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import blobs_at
from nets import seeded

from registry import (
    Aliased,
    Best,
    Checkpoint,
    CkregError,
    CkregWarning,
    DamagedError,
    Every,
    Last,
    NotFoundError,
    Policy,
    PrunePlan,
    Registry,
    Tagged,
    Younger,
)
from registry.cli import run as ckreg
from registry.retention import Candidate, Setting, judge
from registry.values import CheckpointId, FrozenMap

AT = datetime(2026, 11, 29, tzinfo=UTC)
MODES = ("max", "min")
DAY = timedelta(days=1)


# --- the oracle: the words of the policies, one checkpoint at a time, by counting ----------------


def keeps(one: Candidate, group: list[Candidate], policy: Policy, monitor: Any) -> bool:
    """Say whether a policy keeps a checkpoint, as a slow reader would find out."""
    if isinstance(policy, Best):
        metric = policy.metric or monitor[0]
        mode = policy.mode or monitor[1]
        if metric not in one.metrics:
            return True
        mine = one.metrics[metric]
        ahead = 0
        for other in group:
            if metric in other.metrics:
                theirs = other.metrics[metric]
                better = theirs > mine if mode == "max" else theirs < mine
                ahead += better or (theirs == mine and other.version > one.version)
        return ahead < policy.n
    if isinstance(policy, Last):
        return sum(other.version > one.version for other in group) < policy.n
    if isinstance(policy, Every):
        return one.epoch is None or one.epoch in range(0, 10_000, policy.epochs)
    if isinstance(policy, Tagged):
        return bool(set(one.tags) & set(policy.names)) if policy.names else one.tags != ()
    if isinstance(policy, Aliased):
        return one.aliases != ()
    if isinstance(policy, Younger):
        return one.created_at + policy.than >= AT
    return any(keeps(one, group, part, monitor) for part in policy.parts())


def expected(found: list[Candidate], policy: Policy, monitor: Any) -> set[str]:
    """Return the ids of what goes."""
    gone = set()
    for one in found:
        group = [other for other in found if other.dataset == one.dataset]
        best = keeps(one, group, Best(1), monitor) and monitor[0] in one.metrics
        latest = max(group, key=lambda other: other.version) is one
        if not (best or latest or one.aliases or keeps(one, group, policy, monitor)):
            gone.add(one.id)
    return gone


def a_policy(draw: random.Random) -> Policy:
    """Return a policy at random, often of several."""
    kinds: list[Callable[[], Policy]] = [
        lambda: Best(draw.randint(1, 4)),
        lambda: Best(draw.randint(1, 4), draw.choice(["acc", "loss"]), draw.choice(MODES)),
        lambda: Last(draw.randint(1, 4)),
        lambda: Every(draw.randint(1, 5)),
        lambda: Tagged(*draw.sample(["good", "paper", "odd"], draw.randint(0, 2))),
        Aliased,
        lambda: Younger(DAY * draw.randint(1, 9)),
    ]
    policy = draw.choice(kinds)()
    for _ in range(draw.choice([0, 0, 1, 1, 2, 3])):
        policy |= draw.choice(kinds)()
    return policy


def a_history(draw: random.Random) -> list[Candidate]:
    """Return the checkpoints of a model at random: gaps, ties, missing facts, several datasets."""
    versions = sorted(draw.sample(range(1, 60), draw.randint(0, 24)))
    return [
        Candidate(
            id=CheckpointId(f"{draw.getrandbits(128):032x}"),
            ref=f"net@v{version}",
            version=version,
            dataset=draw.choice([None, "a", "a", "b"]),
            epoch=draw.choice([None, *range(12)]),
            created_at=AT - DAY * draw.randint(0, 10),
            size_bytes=draw.randint(0, 9),
            metrics=FrozenMap({
                name: draw.choice([-1.0, 0.0, 0.25, 0.5, 0.75])
                for name in ("acc", "loss")
                if draw.random() < 0.8
            }),
            tags=tuple(t for t in ("good", "odd", "paper") if draw.random() < 0.15),
            aliases=tuple(a for a in ("prod", "demo") if draw.random() < 0.08),
        )
        for version in versions
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_of_random_histories_what_goes_is_what_the_oracle_lets_go(seed: int) -> None:
    draw = random.Random(seed)
    gone = 0
    for _ in range(100):
        found, policy = a_history(draw), a_policy(draw)
        monitor = (draw.choice(["acc", "loss"]), draw.choice(MODES))
        draw.shuffle(found)
        verdicts = judge(found, policy, Setting(monitor, AT))  # type: ignore[arg-type]
        assert {v.id for v in verdicts if not v.kept} == expected(found, policy, monitor), policy
        assert [v.id for v in verdicts] == [
            c.id for c in sorted(found, key=lambda c: -c.version)
        ]  # the newest first, each once
        assert all(v.why for v in verdicts)
        gone += sum(not v.kept for v in verdicts)
    assert gone > 100  # the histories are no easy ones


# --- the policies' words --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Best(0), "must be 1 or more"),
        (lambda: Last(-1), "between 0 and"),
        (lambda: Every(0), "must be 1 or more"),
        (lambda: Best(True), "must be an integer"),
        (lambda: Best("acc"), "must be an integer"),
        (lambda: Best(1, mode="max"), "name the metric"),
        (lambda: Best(1, "loss", "less"), "mode must be one of|'less'"),
        (lambda: Best(1, " "), "printable"),
        (lambda: Tagged("v1"), "a word that refs use"),
        (lambda: Younger("soon"), "should read like"),
        (lambda: Younger("0"), "more than none"),
        (lambda: Best(1) | 3, "unsupported operand"),
    ],
)  # fmt: skip
def test_what_can_be_no_policy_is_refused_when_it_is_made(
    make: Callable[[], object], says: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        make()


def test_a_policy_is_a_value_that_reads_as_it_is_written() -> None:
    policy = Best(3) | Last() | Best(1, "val/loss", "min") | Every(epochs=10) | Tagged("good")
    policy = policy | Younger("36h") | Aliased() | Last(1)
    assert repr(policy) == (
        "Best(3) | Last(1) | Best(1, 'val/loss', 'min') | Every(epochs=10) | Tagged('good') | "
        "Younger('36h') | Aliased()"
    )
    assert eval(repr(policy)) == policy
    assert Best(3) | Last(2) == Best(3) | Last(2) != Best(3)
    assert len({Best(3) | Last(2), Best(3) | Last(2), Younger("7d"), Younger(DAY * 7)}) == 2


def test_a_verdict_says_why() -> None:
    found = [
        Candidate(
            CheckpointId(f"{i:032x}"), f"net@v{i}", i, None, i, AT, 1,
            FrozenMap({} if i == 2 else {"acc": i / 10}), aliases=("prod",) if i == 1 else (),
        )
        for i in range(1, 7)
    ]  # fmt: skip
    verdicts = judge(found, Best(2) | Every(epochs=5), Setting(("acc", "min"), AT))
    assert [(v.ref, v.kept, v.why) for v in verdicts] == [
        ("net@v6", True, "latest"),
        ("net@v5", True, "epoch 5, of every 5"),
        ("net@v4", False, "no. 3 by acc (0.4000), epoch 4 is between"),
        ("net@v3", True, "no. 2 by acc (0.3000)"),
        ("net@v2", True, "has no acc"),
        ("net@v1", True, "best, alias prod, no. 1 by acc (0.1000)"),
    ]


# --- in a registry --------------------------------------------------------------------------------


def saved(
    reg: Registry, folder: Path, draw: random.Random, amount: int, *, model: str = "net"
) -> list[Checkpoint]:
    """Push checkpoints at random, some of equal bytes, of two datasets and several runs."""
    made = []
    for i in range(amount):
        path = folder / "w.pt"
        torch.save({"state_dict": {"w": torch.full((64,), float(draw.randint(0, 6)))}}, path)
        metrics = {
            m: draw.choice([0.25, 0.5, 0.75]) for m in ("acc", "loss") if draw.random() < 0.8
        }
        dataset = draw.choice(["a", "a", None])
        ckpt = reg.push(
            path, model=model, dataset=dataset, epoch=draw.choice([None, i]), step=i,
            metrics=metrics, run=draw.choice([None, "one", "two"]),
            tags=[t for t in ("good", "odd", "paper") if draw.random() < 0.2],
        )  # fmt: skip
        if draw.random() < 0.15:
            reg.alias(ckpt, draw.choice(["prod", "demo"]))
        made.append(ckpt)
    return made


def leaders(reg: Registry, *, run: str | None = None) -> list[str | None]:
    """Return the best and the latest of each dataset."""

    def ref(ask: Callable[..., Checkpoint], dataset: str) -> str | None:
        try:
            return ask("net", dataset=dataset, run=run).id
        except NotFoundError:
            return None

    return [ref(ask, dataset) for ask in (reg.best, reg.latest) for dataset in ("a", "")]


def live(reg: Registry) -> set[str]:
    return {c.id for c in reg.find()}


def seen(reg: Registry, run: str | None = None) -> list[Candidate]:
    """Return the live checkpoints as the oracle takes them."""
    return [
        Candidate(c.id, c.ref, c.version, c.dataset, c.epoch, AT, c.size_bytes, c.metrics, c.tags,
                  c.aliases)
        for c in reg.find("net")
        if run is None or (c.run is not None and c.run.name == run)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_a_dry_run_names_what_goes_and_the_best_and_latest_stay(
    reg: Registry, tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    saved(reg, tmp_path, draw, 24)
    others = saved(reg, tmp_path, draw, 3, model="other")
    monitor = ("loss", "min") if seed % 2 else ("acc", "max")
    reg.monitor("net", *monitor)  # type: ignore[arg-type]
    while isinstance(policy := a_policy(draw), Younger) or "Younger" in repr(policy):
        pass
    goes = expected(seen(reg), policy, monitor)
    before, all_ = leaders(reg), live(reg)

    plan = reg.prune("net", policy, dry_run=True)
    assert live(reg) == all_
    assert {v.id for v in plan.removed} == goes
    assert (bool(plan), plan.done, plan.spared) == (bool(goes), False, 0)

    done = reg.prune("net", policy, plan=plan) if seed % 3 else reg.prune("net", policy)
    assert done.done
    assert {v.id for v in done.removed} == goes
    assert live(reg) == all_ - goes >= {c.id for c in others}
    assert leaders(reg) == before
    assert done.size_bytes == plan.size_bytes == reg.gc(dry_run=True, grace="0").size_bytes
    assert reg.models()[0].checkpoints == len(all_) - len(goes) - 3
    assert reg.verify().findings == ()  # the records say so too
    assert not reg.prune("net", policy)
    for verdict in done.removed:
        reg.restore(verdict.id)
    assert (live(reg), leaders(reg)) == (all_, before)
    assert reg.verify().findings == ()


@pytest.mark.parametrize("seed", range(3))
def test_a_runs_prune_touches_no_other_run_and_not_the_models_best(
    reg: Registry, tmp_path: Path, seed: int
) -> None:
    draw = random.Random(100 + seed)
    for i in range(20):
        torch.save({"state_dict": {"w": torch.full((8,), float(i))}}, tmp_path / "w.pt")
        reg.push(
            tmp_path / "w.pt", model="net", dataset="a", epoch=i, acc=draw.random(),
            run=draw.choice(["one", "two", None]),
        )  # fmt: skip
    before, mine, all_ = leaders(reg), leaders(reg, run="one"), live(reg)
    others = {c.id for c in reg.find("net") if c.run is None or c.run.name != "one"}
    goes = expected(seen(reg, "one"), Last(2), ("acc", "max"))
    done = reg.prune("net", Last(2), run="one")
    assert {v.id for v in done.removed} == goes - {before[0]}
    assert live(reg) == all_ - {v.id for v in done.removed} >= others
    assert {v.ref for v in done.verdicts} == {
        c.ref for c in reg.find("net", run="one", include_removed=True)
    }
    assert (leaders(reg), leaders(reg, run="one")) == (before, mine)


def test_the_bytes_of_a_blob_that_a_live_checkpoint_needs_are_not_counted(
    reg: Registry, tmp_path: Path
) -> None:
    for epoch, value in enumerate([1, 2, 2, 2, 1]):  # 1 stays needed by the latest
        torch.save({"state_dict": {"w": torch.full((64,), float(value))}}, tmp_path / "w.pt")
        reg.push(tmp_path / "w.pt", model="net", epoch=epoch, acc=[0.5, 0.1, 0.2, 0.3, 0.9][epoch])
    plan = reg.prune("net", Last(1))
    assert [v.ref for v in plan.removed] == ["net@v4", "net@v3", "net@v2", "net@v1"]
    ((_, blob, index),) = reg._parts()[1].blobs_of(plan.removed[0].id)
    assert index is not None
    assert plan.size_bytes == blob.size_bytes + index.size_bytes
    assert reg.gc(grace="0").size_bytes == plan.size_bytes


# --- what changes between the plan and the run ----------------------------------------------------


@pytest.fixture
def five(reg: Registry, tmp_path: Path) -> list[Checkpoint]:
    """Return five checkpoints, of which `Last(1)` lets the first three go: the fourth is best."""
    made = []
    for epoch in range(5):
        torch.save({"state_dict": {"w": torch.full((4,), float(epoch))}}, tmp_path / "w.pt")
        acc = 0.5 if epoch == 3 else 0.1
        made.append(reg.push(tmp_path / "w.pt", model="net", epoch=epoch, acc=acc))
    return made


CHANGES: dict[str, Callable[[Registry], object]] = {
    "alias prod": lambda reg: reg.alias("net@v2", "prod"),
    "tag good": lambda reg: reg.tag("net@v2", "good"),
    "best": lambda reg: reg.monitor("net", "loss", "min") and reg.record("net@v2", {"loss": 0.1}),
    "removed by somebody else": lambda reg: reg.remove("net@v2"),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("late", [False, True])
def test_what_changed_since_the_plan_is_spared(
    reg: Registry, five: list[Checkpoint], what: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Last(1) | Tagged("good")
    plan = reg.prune("net", policy, dry_run=True)
    assert [v.ref for v in plan.removed] == ["net@v3", "net@v2", "net@v1"]
    if late:  # after it was judged again, and before the transaction
        from registry import pruning

        real = pruning.again

        def again(*args: Any) -> PrunePlan:
            found = real(*args)
            CHANGES[what](reg)
            return found

        monkeypatch.setattr(pruning, "again", again)
    else:
        CHANGES[what](reg)
    done = reg.prune("net", policy, plan=plan)
    assert [v.ref for v in done.removed] == ["net@v3", "net@v1"]
    assert done.spared == 1
    (why,) = [v.why for v in done.kept if v.ref == "net@v2"]
    assert what in why
    there = {c.ref for c in reg.find("net")}
    assert ("net@v2" in there) is (what != "removed by somebody else")
    assert {"net@v4", "net@v5"} <= there


def test_a_later_plan_takes_nothing_that_an_earlier_one_didnt_name(
    reg: Registry, five: list[Checkpoint], tmp_path: Path
) -> None:
    plan = reg.prune("net", Last(2), dry_run=True)
    torch.save({"state_dict": {"w": torch.ones(9)}}, tmp_path / "w.pt")
    reg.push(tmp_path / "w.pt", model="net", acc=0.9)  # v4 is neither best nor among the last now
    done = reg.prune("net", Last(2), plan=plan)
    assert [v.ref for v in done.removed] == ["net@v3", "net@v2", "net@v1"]


def test_what_rose_in_rank_since_the_plan_is_spared(reg: Registry, five: list[Checkpoint]) -> None:
    plan = reg.prune("net", Best(2), dry_run=True)
    assert [v.ref for v in plan.removed] == ["net@v3", "net@v2", "net@v1"]
    reg.remove("net@v4")  # the best: v5 and v3 are the best two now
    done = reg.prune("net", Best(2), plan=plan)
    assert [v.ref for v in done.removed] == ["net@v2", "net@v1"]
    (why,) = [v.why for v in done.kept if v.ref == "net@v3"]
    assert why == "since the plan: no. 2 by acc (0.1000)"
    assert plan.verdicts[1].kept  # v4, which is gone by another's hand


def test_a_plan_is_of_its_model_and_its_policy(reg: Registry, five: list[Checkpoint]) -> None:
    plan = reg.prune("net", Last(1), dry_run=True)
    for call in (
        lambda: reg.prune("other", Last(1), plan=plan),
        lambda: reg.prune("net", Last(2), plan=plan),
        lambda: reg.prune("net", Last(1), plan=plan, dataset="a"),
    ):
        with pytest.raises(ValueError, match="the plan is of 'net' with Last"):
            call()
    assert len(live(reg)) == 5


def test_what_cant_be_asked_is_refused(reg: Registry, five: list[Checkpoint]) -> None:
    with pytest.raises(TypeError, match="policy is a policy"):
        reg.prune("net", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="say mode='max' or mode='min'"):
        reg.prune("net", Last(1) | Best(1, "loss"))
    with pytest.raises(NotFoundError, match="no checkpoint matches model='nett'"):
        reg.prune("nett", Last(1))
    with pytest.raises(NotFoundError, match="no run of 'net' is called 'x'"):
        reg.prune("net", Last(1), run="x")
    assert len(live(reg)) == 5


def test_a_metric_that_is_not_what_was_written_stops_a_prune(
    reg: Registry, five: list[Checkpoint]
) -> None:
    from backends import records_at
    from drafts import by_hand

    with by_hand(records_at(reg)) as hand:
        hand.execute("UPDATE metrics SET value = 0.99 WHERE value = 0.5")
    with pytest.raises(DamagedError, match="'acc'"):
        reg.prune("net", Best(1))
    assert reg._parts()[1].count("net") == 5


# --- keep= ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [True, False])
def test_a_run_keeps_its_own_best_and_last(reg: Registry, wait: bool) -> None:
    with reg.run("net", dataset="d", name="before") as other:
        others = {other.save(seeded(9), epoch=e, acc=0.99).id for e in range(3)}
    with reg.run("net", dataset="d", keep=Best(2) | Last(1)) as run:
        for epoch, acc in enumerate([0.1, 0.9, 0.8, 0.85, 0.2, 0.3]):
            done = run.save(seeded(epoch), epoch=epoch, acc=acc, wait=wait)
            if not isinstance(done, Checkpoint):
                done = done.result()
            assert done.id in live(reg)
    assert [c.epoch for c in reg.find("net", run=run, sort="epoch")] == [1, 3, 5]
    assert others <= live(reg)
    assert run.best().epoch == 1
    assert run.latest().parent is not None
    assert reg.verify().findings == ()
    assert {c.epoch for c in reg.find("net", run=run, include_removed=True)} == set(range(6))


def test_what_just_was_saved_stays_though_the_policy_names_others(reg: Registry) -> None:
    run = reg.run("net", keep=Best(1))
    for epoch, acc in enumerate([0.9, 0.8, 0.7]):
        assert run.save(seeded(epoch), epoch=epoch, acc=acc).id in live(reg)
    assert [c.epoch for c in reg.find("net", sort="epoch")] == [0, 2]


def test_what_just_was_saved_stays_though_another_process_saved_to_the_run_since(
    reg: Registry,
) -> None:
    run = reg.run("net", name="shared")
    made = [run.save(seeded(i), epoch=i, acc=acc) for i, acc in enumerate([0.9, 0.1, 0.2, 0.3])]
    reg._keep(Best(1), run.id, made[1])
    assert [c.epoch for c in reg.find("net", sort="epoch")] == [0, 1, 3]


@pytest.mark.parametrize("wait", [True, False])
def test_a_prune_that_fails_is_a_warning_and_the_save_is_there(
    reg: Registry, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    from registry.catalog import Upkeep

    def broken(*_: object, **__: object) -> None:
        raise OSError("the disk is on fire")

    monkeypatch.setattr(Upkeep, "prunable", broken)
    run = reg.run("net", keep=Last(1))

    def save() -> Checkpoint:
        done = run.save(seeded(1), epoch=1, wait=wait)
        return done if isinstance(done, Checkpoint) else done.result()

    with pytest.warns(CkregWarning, match=r"net@v1 is saved, but what keep=Last\(1\) .* on fire"):
        found = save()
    assert reg.latest("net") == found


def test_a_keep_that_cant_be_is_refused_before_the_first_epoch(reg: Registry) -> None:
    with pytest.raises(TypeError, match=r"keep is a policy, e.g. Best\(3\) \| Last\(2\), not 3"):
        reg.run("net", keep=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of 'val/loss' is better isn't known"):
        reg.run("net", keep=Best(3, "val/loss"))
    reg.run("net", monitor="val/loss", mode="min", keep=Best(3, "val/loss"))


# --- where to go on from --------------------------------------------------------------------------


def damage(reg: Registry, ckpt: Checkpoint) -> None:
    (path,) = blobs_at(reg).glob(f"blobs/{ckpt.digest[7:9]}/{ckpt.digest[9:]}.*")
    path.chmod(0o644)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    path.chmod(0o444)


@pytest.mark.filterwarnings("default")
def test_a_job_goes_on_from_the_newest_that_is_whole(reg: Registry, five: list[Checkpoint]) -> None:
    assert reg.resume_point("net") == five[4]
    damage(reg, five[4])
    (path,) = blobs_at(reg).glob(f"blobs/{five[3].digest[7:9]}/{five[3].digest[9:]}.*")
    path.unlink()
    with pytest.warns(CkregWarning, match=r"net@v[45] is damaged, and passed over") as said:
        assert reg.resume_point("net") == five[2]
    assert ["v5" in str(w.message) for w in said] == [True, False]
    for ckpt in five[:3]:
        damage(reg, ckpt)
    warnings.simplefilter("ignore", CkregWarning)
    with pytest.raises(NotFoundError, match="no checkpoint of 'net' is whole: net@v5, net@v4"):
        reg.resume_point("net")
    with pytest.raises(NotFoundError):
        reg.resume_point("other")


def test_a_row_that_is_damaged_is_passed_over_too(reg: Registry, five: list[Checkpoint]) -> None:
    from backends import records_at
    from drafts import by_hand

    with by_hand(records_at(reg)) as hand:
        hand.execute("UPDATE checkpoints SET epoch = 77 WHERE version = 5")
    with pytest.warns(CkregWarning, match="net@v5 is damaged"):
        assert reg.resume_point("net") == five[3]


def test_a_resume_point_is_of_a_run_and_a_dataset(reg: Registry) -> None:
    with reg.run("net", dataset="a", name="one") as run:
        first = run.save(seeded(1), epoch=1)
    second = reg.save(seeded(2), model="net", dataset="b", epoch=2)
    assert reg.resume_point("net", run="one") == first == reg.resume_point("net", run=run)
    assert reg.resume_point("net", dataset="b") == second
    with pytest.raises(CkregError, match="2 datasets"):
        reg.resume_point("net")


# --- on the command line --------------------------------------------------------------------------


def ask(reg: Registry, *words: str, terminal: bool = True) -> int:
    return ckreg([*words, "-r", reg.location], terminal=terminal)


def test_prune_shows_its_plan_and_takes_it_when_told_to(
    reg: Registry, five: list[Checkpoint], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("prune", "net", "--keep-last", "2", "--keep-every", "2")
    assert ask(reg, *words, "--dry-run") == 0
    shown = capsys.readouterr()
    assert [line.split()[:4] for line in shown.out.splitlines()] == [
        ["REF", "DATASET", "EPOCH", "IT"],
        ["net@v5", "-", "4", "stays"],
        ["net@v4", "-", "3", "stays"],
        ["net@v3", "-", "2", "stays"],
        ["net@v2", "-", "1", "goes"],
        ["net@v1", "-", "0", "stays"],
    ]
    assert "not in the last 2, epoch 1 is between" in shown.out
    assert "1 of 5 checkpoints would go" in shown.err
    assert ask(reg, *words) == 2  # no terminal to ask on
    assert "to go ahead, add --yes" in (err := capsys.readouterr().err)
    assert "net@v2" in err  # what it would have asked about
    assert len(live(reg)) == 5
    assert ask(reg, *words, "--yes", "-q") == 0
    done = capsys.readouterr()
    assert done.out == "net@v2\n"
    assert "1 of 5 checkpoints removed" in done.err
    assert f"registry: {reg.location}" in done.err
    assert f"to bring back: ckreg -r {reg.location} restore net@v2\n" in done.err
    assert ask(reg, *words, "--yes") == 0
    assert "nothing goes of 4 checkpoints" in capsys.readouterr().err
    assert ask(reg, "restore", "net@v2") == 0
    assert len(live(reg)) == 5


def test_prune_in_a_pipe_and_as_json(
    reg: Registry, five: list[Checkpoint], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(reg, "prune", "net", "--keep-best", "1", "--dry-run", terminal=False) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["net@v5", "", "4", "stays", "latest", str(five[4].size_bytes)]
    assert [row[3] for row in rows] == ["stays", "stays", "goes", "goes", "goes"]
    assert ask(reg, "prune", "net", "--keep-best", "1", "--yes", "--json") == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["format"], done["done"], done["policy"]) == (1, True, "Best(1)")
    assert [v["ref"] for v in done["removed"]] == ["net@v3", "net@v2", "net@v1"]
    assert [(v["ref"], v["why"]) for v in done["kept"]] == [
        ("net@v5", "latest"), ("net@v4", "best, no. 1 by acc (0.5000)"),
    ]  # fmt: skip
    assert done["size_bytes"] == reg.gc(dry_run=True, grace="0").size_bytes


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("net", 2, "say what to keep"),
        ("net --keep-last 1 --metric loss", 2, "--keep-best"),
        ("net --keep-best 1 --metric loss", 2, "say mode='max' or mode='min'"),
        ("net --keep-best 0", 2, "must be 1 or more"),
        ("net --younger soon", 2, "should read like 14d"),
        ("net --keep-tagged v1", 2, "a word that refs use"),
        ("nett --keep-last 1", 3, "did you mean 'net'"),
        ("net --keep-last 1 --run x", 3, "no run of 'net' is called 'x'"),
    ],
)  # fmt: skip
def test_prune_refuses_what_it_cant_do(
    reg: Registry, five: list[Checkpoint], capsys: pytest.CaptureFixture[str],
    words: str, code: int, says: str,
) -> None:  # fmt: skip
    assert ask(reg, "prune", *words.split(), "--yes") == code
    assert says in capsys.readouterr().err
    assert len(live(reg)) == 5


def test_each_option_is_its_policy(
    reg: Registry, five: list[Checkpoint], capsys: pytest.CaptureFixture[str]
) -> None:
    for words, policy in {
        "--keep-best 2": "Best(2)",
        "--keep-best 2 --metric loss --mode min": "Best(2, 'loss', 'min')",
        "--keep-every 3 --younger 36h": "Every(epochs=3) | Younger('36h')",
        "--keep-tagged": "Tagged()",
        "--keep-tagged good --keep-tagged odd --keep-last 1": "Last(1) | Tagged('good', 'odd')",
    }.items():
        assert ask(reg, "prune", "net", *words.split(), "--dry-run", "--json") == 0
        assert json.loads(capsys.readouterr().out)["policy"] == policy


# --- several ranks --------------------------------------------------------------------------------


@pytest.mark.ranks
def test_of_several_ranks_the_one_that_commits_prunes(reg: Registry) -> None:
    import gloo

    ended = gloo.run("test_retention:_rank", reg.location)
    assert [rank.code for rank in ended] == [0, 0], ended[0].stderr
    assert [rank.answer for rank in ended] == [[1, 3, 4], None]
    assert [c.epoch for c in reg.find("net", sort="epoch")] == ended[0].answer


@pytest.mark.ranks
def test_a_policy_of_a_run_holds_for_a_net_that_ranks_hold_in_parts(reg: Registry) -> None:
    import gloo

    ended = gloo.run("test_retention:_part", reg.location)
    assert [rank.code for rank in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    assert [rank.answer for rank in ended] == [[1, 3, 4]] * 2
    left = list(reg.find("net", sort="epoch"))
    assert {c.topology.strategy for c in left} == {"fsdp2"}
    assert all(reg.verify(c).ok for c in left)


def _part(location: str) -> object:
    """Save under FSDP2 on both ranks, in the background at last."""
    import strategies
    import torch.distributed as dist

    net, optimizer = strategies.trained("FSDP2", 1)
    with Registry.open(location) as reg, reg.run("net", keep=Best(2) | Last(1)) as run:
        for epoch, acc in enumerate([0.1, 0.9, 0.2, 0.5]):
            run.save(net, epoch=epoch, acc=acc, optimizer=optimizer)
        run.save(net, epoch=4, acc=0.3, wait=False).result()
        dist.barrier()
        return [c.epoch for c in reg.find("net", sort="epoch")]


def _rank(location: str) -> object:
    """Save under DDP on every rank; a rank that must not prune fails if it does."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from registry import pruning

    rank = dist.get_rank()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a rank that doesn't commit prunes")

    if rank:
        pruning.plan = pruning.prune = never  # type: ignore[assignment]
        warnings.simplefilter("error")
    net = DistributedDataParallel(seeded(1))
    with Registry.open(location) as reg, reg.run("net", keep=Best(2) | Last(1)) as run:
        for epoch, acc in enumerate([0.1, 0.9, 0.2, 0.5, 0.3]):
            run.save(net, epoch=epoch, acc=acc)
            dist.barrier()
        epochs = [c.epoch for c in reg.find("net", sort="epoch")]
    return None if rank else epochs
