"""Lightning's callback: what it saves is recorded, resumes exactly, and loads anywhere."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path

import digits
import pytest
import torch

from registry import Best, RefusedLoadError, Registry

pytest.importorskip("lightning")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


def test_a_killed_job_goes_on_and_ends_as_if_it_had_not_been_killed(tmp_path):
    digits.check_resume("lightning", tmp_path)
    assert list(tmp_path.rglob(".ckreg-*")) == []


def test_best_has_the_highest_accuracy_and_it_is_that_of_these_weights(tmp_path):
    trained = digits.lightning_module()
    trained.on_validation_start = lambda: digits.spoil(trained.model, trained.current_epoch == 2)
    with Registry.create(tmp_path / "reg") as reg:
        digits.lightning(tmp_path / "reg", tmp_path, net=trained, max_epochs=3)
        by_hand = {}
        for checkpoint in reg.find("digits-mlp"):
            net = digits.lightning_module()
            reg.load(checkpoint, into=net)
            by_hand[checkpoint.version] = digits.accuracy(net.model)
            assert checkpoint.metrics["val_acc"] == checkpoint.acc
            assert checkpoint.acc == pytest.approx(by_hand[checkpoint.version], abs=1e-7)
        best = reg.best("digits-mlp")
        assert by_hand[best.version] == max(by_hand.values())
        assert (best.version, len(by_hand)) == (2, 3)  # the last one was spoilt
        (model,) = reg.models()
        assert (model.metric, model.mode) == ("val_acc", "max")


def test_what_is_recorded_is_what_trained(tmp_path):
    with Registry.create(tmp_path / "reg") as reg:
        last = digits.lightning(tmp_path / "reg", tmp_path, max_epochs=1)["last"]
        assert last == reg.get("digits-mlp")
        assert last.provenance.topology == last.provenance.key_style == "recorded"
        assert (last.topology.strategy, last.topology.device_type) == ("single", "cpu")
        assert last.config == {"lr": 0.01}
        assert last.optimizers == {"optimizer": "torch.optim.adam.Adam"}
        path = reg.pull(last, tmp_path / "f.ckpt")
    with Registry.create(tmp_path / "other") as other:  # the file carries its record
        again = other.push(path)
        assert (again.model, again.epoch, again.metrics) == (last.model, 0, last.metrics)
        assert again.topology == last.topology
        assert again.run == last.run


def test_it_loads_into_the_bare_net_with_the_optimizer(tmp_path):
    with Registry.create(tmp_path / "reg") as reg:
        ended = digits.lightning(tmp_path / "reg", tmp_path)
        net = digits.network()
        optimizer = torch.optim.Adam(net.parameters())
        result = reg.load("digits-mlp", into=net, optimizer=optimizer)
    assert str(result.plan.reading) == "model."
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, ended["net"][f"model.{key}"])
    assert optimizer.state_dict()["state"].keys() == ended["optimizer"]["state"].keys()
    moment = optimizer.state[net[0].weight]["exp_avg"]
    assert torch.equal(moment, ended["optimizer"]["state"][0]["exp_avg"])


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"val_check_interval": 0.5}, [5, 10, 15, 20]),
        ({"check_val_every_n_epoch": 2, "max_epochs": 4}, [20, 40]),
    ],
)
def test_it_saves_after_each_validation(settings, steps, tmp_path):
    with Registry.create(tmp_path / "reg") as reg:
        digits.lightning(tmp_path / "reg", tmp_path, **{"max_epochs": 2, **settings})
        found = list(reg.find("digits-mlp", sort="version"))
        assert [c.step for c in found] == steps
        for checkpoint in found:
            net = digits.lightning_module()
            reg.load(checkpoint, into=net)
            assert checkpoint.acc == pytest.approx(digits.accuracy(net.model), abs=1e-7)


@pytest.mark.parametrize("words", [{"save_top_k": 1}, {"keep": Best(1)}])
def test_it_keeps_the_best_and_the_newest(words, tmp_path):
    trained = digits.lightning_module()
    trained.on_validation_start = lambda: digits.spoil(trained.model, trained.current_epoch == 2)
    with Registry.create(tmp_path / "reg") as reg:
        other = reg.save(digits.network(), model="digits-mlp", dataset="digits", epoch=9)
        digits.lightning(tmp_path / "reg", tmp_path, net=trained, words=words)
        left = list(reg.find("digits-mlp", sort="version"))
        assert [c.epoch for c in left] == [9, 1, 3]
        assert left[0].id == other.id  # another run's
        assert reg.best("digits-mlp").id == left[1].id


def test_words_are_checked_when_the_callback_is_made(tmp_path):
    from registry.integrations.lightning import CheckpointCallback

    for words, why in [
        ({"monitor": "val_loss"}, "say mode='max' or mode='min'"),
        ({"mode": "min"}, "name the metric as well"),
        ({"save_top_k": 0, "acc": "val_acc"}, "save_top_k=0 is neither -1, for all"),
        ({"save_top_k": 1}, "name monitor= or acc="),
        ({"save_top_k": 1, "keep": Best(1)}, "give one of them"),
        ({"every_n_epochs": 0}, "every_n_epochs=0 is less than 1"),
        ({"tags": ["best"]}, "best"),
    ]:
        with pytest.raises(ValueError, match=why):
            CheckpointCallback(tmp_path, "m", **words)
    with pytest.raises(ValueError, match="a run without a name can't be continued"):
        CheckpointCallback(tmp_path, "m").ckpt_path()


def test_the_net_inside_may_be_compiled(tmp_path):
    net = digits.lightning_module()
    net.model = torch.compile(net.model, backend="eager")
    with Registry.create(tmp_path / "reg") as reg:
        last = digits.lightning(tmp_path / "reg", tmp_path, net=net, max_epochs=1)["last"]
        assert str(last.key_style) == str(last.file_keys) == "model._orig_mod."
        plain = digits.lightning_module()
        reg.load(last, into=plain)
        assert last.acc == pytest.approx(digits.accuracy(plain.model), abs=1e-7)
        bare = digits.network()
        reg.load(last, into=bare)
        assert last.acc == pytest.approx(digits.accuracy(bare), abs=1e-7)


def test_a_net_that_it_does_not_hold_is_refused(tmp_path):
    with Registry.create(tmp_path / "reg") as reg:
        last = digits.lightning(tmp_path / "reg", tmp_path, max_epochs=1)["last"]
        with pytest.raises(RefusedLoadError, match="no tensor of digits-mlp@v1 fits the net"):
            reg.load(last, into=torch.nn.Linear(3, 2))


def test_steps_after_the_last_validation_have_none_of_its_metrics(tmp_path):
    with Registry.create(tmp_path / "reg") as reg:
        digits.lightning(tmp_path / "reg", tmp_path, max_epochs=-1, max_steps=15)
        first, last = reg.find("digits-mlp", sort="version")
        assert (first.step, set(first.metrics)) == (10, {"acc", "val_acc", "loss"})
        assert (last.step, set(last.metrics)) == (15, {"loss"})
        assert reg.best("digits-mlp").id == first.id
        digits.lightning(tmp_path / "reg", tmp_path, max_epochs=-1, max_steps=18)
        assert "val_acc" not in reg.get("digits-mlp@v3").metrics  # it resumed, and never validated


@pytest.mark.parametrize("word", ["acc", "monitor"])
def test_a_metric_that_is_not_logged_stops_the_training(word, tmp_path):
    Registry.create(tmp_path / "reg").close()
    with pytest.raises(ValueError, match=f"{word}='nope' names a metric that isn't there: 'loss'"):
        digits.lightning(tmp_path / "reg", tmp_path, words={word: "nope"})


def _trainer(tmp_path, callback, epochs):
    import lightning

    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[callback], logger=False,
        default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def test_a_callback_that_trains_twice_saves_twice(tmp_path):
    from registry.integrations.lightning import CheckpointCallback

    with Registry.create(tmp_path / "reg") as reg:
        callback = CheckpointCallback(reg, "digits-mlp")
        for _ in range(2):
            _trainer(tmp_path, callback, 1).fit(digits.lightning_module(), *digits.loaders())
        assert [c.step for c in reg.find("digits-mlp")] == [10, 10]


def test_the_trainer_finds_the_best(tmp_path):
    from registry.integrations.lightning import CheckpointCallback

    trained = digits.lightning_module()
    trained.on_validation_start = lambda: digits.spoil(trained.model, trained.current_epoch == 1)
    with Registry.create(tmp_path / "reg") as reg:
        reg.save(digits.network(), model="digits-mlp", metrics={"val_acc": 1})  # another run's
        callback = CheckpointCallback(reg, "digits-mlp", monitor="val_acc", mode="max")
        trainer = _trainer(tmp_path, callback, 2)
        with pytest.raises(ValueError, match="is not configured to save the best model"):
            trainer.validate(trained, digits.loaders()[1], ckpt_path="best", verbose=False)
        trainer.fit(trained, *digits.loaders())
        (measured,) = trainer.validate(dataloaders=digits.loaders()[1], verbose=False)
        latest, best, _ = reg.find("digits-mlp")
        assert measured["val_acc"] == best.metrics["val_acc"] > latest.metrics["val_acc"]
        assert reg.get("digits-mlp") == latest  # to measure saves nothing


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_processes_that_are_spawned_have_the_callback_too(tmp_path):
    from registry.integrations.lightning import CheckpointCallback

    Registry.create(tmp_path / "reg").close()
    callback = CheckpointCallback(tmp_path / "reg", "digits-mlp", run="a")
    assert callback.ckpt_path() is None  # opens the registry
    again = pickle.loads(pickle.dumps(callback))
    with Registry.open(tmp_path / "reg") as reg:
        _trainer(tmp_path, again, 1).fit(digits.lightning_module(), *digits.loaders())
        callback.ckpt_path()
        there = pickle.loads(pickle.dumps(callback)).ckpt_path()
        gc.collect()
        assert not Path(there).exists()  # it went with its callback, and nobody is warned
        assert len(list(reg.find("digits-mlp"))) == 1


@pytest.mark.parametrize(
    ("job", "named"), [("lightning_fsdp1", "OnCpu"), ("lightning_deepspeed", "Engined")]
)
def test_a_net_in_parts_that_no_rank_can_describe_is_refused_before_it_trains(job, named, tmp_path):
    if job == "lightning_deepspeed":
        pytest.importorskip("deepspeed")
    Registry.create(tmp_path / "reg").close()
    done = digits.alone(job, tmp_path / "reg", tmp_path, at=0)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"REFUSED RefusedLoadError: {named} spreads the net over its ranks" in done.stdout
    assert "ckreg push FOLDER --model digits-mlp" in done.stdout


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("job", "strategy", "container", "style"),
    [
        ("lightning_ddp", "ddp", "torch-zip", "module."),
        ("lightning_fsdp2", "fsdp2", "lightning-sharded", ""),
    ],
)
def test_two_processes_save_one_checkpoint_and_go_on_after_a_kill(
    job, strategy, container, style, tmp_path
):
    with Registry.create(tmp_path / "reg") as reg:
        digits.killed(job, tmp_path / "reg", tmp_path, at=2)
        assert [c.epoch for c in reg.find("digits-mlp", sort="version")] == [0, 1]
        done = digits.alone(job, tmp_path / "reg", tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        found = list(reg.find("digits-mlp", sort="version"))
        assert [c.epoch for c in found] == [0, 1, 2, 3]
        for checkpoint in found:
            topology = checkpoint.topology
            assert (topology.strategy, topology.world_size) == (strategy, 2)
            assert (str(checkpoint.key_style), str(checkpoint.file_keys)) == (style, "")
            assert checkpoint.container == container
            net = digits.lightning_module()
            optimizer = torch.optim.Adam(net.parameters())
            reg.load(checkpoint, into=net, optimizer=optimizer)
            assert checkpoint.acc == pytest.approx(digits.accuracy(net.model), abs=1e-6)
            assert len(optimizer.state) == 6


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("job", "raised", "why"),
    [
        (
            "lightning_ddp_refused",
            "ValueError",
            "acc='nope' names a metric that isn't there: 'loss', 'val_acc'",
        ),
        ("lightning_ddp_of_another", "ConflictError", "the run 'a' of 'digits-mlp' was begun"),
    ],
)
def test_what_rank_0_refuses_is_told_to_the_others(job, raised, why, tmp_path):
    with Registry.create(tmp_path / "reg") as reg:
        run = reg.run("digits-mlp", dataset="digits", name="a", config={"lr": 0.01})
        reg.remove(run.save(digits.network(), epoch=0))  # nothing to resume from
    done = digits.alone(job, tmp_path / "reg", tmp_path)
    refused = [line for line in done.stdout.splitlines() if line.startswith("REFUSED")]
    assert len(refused) == 2, done.stdout + done.stderr
    told, raising = sorted(refused, key=lambda line: raised in line.split(":")[0])
    assert told.startswith(f"REFUSED RemoteError: rank 0 could not save: {raised}: {why}"), told
    assert raising.startswith(f"REFUSED {raised}: {why}"), done.stdout + done.stderr
