"""transformers' callback: the Trainer's folders are recorded, resume exactly, and load anywhere."""

from __future__ import annotations

import digits
import gloo
import pytest
import torch

from registry import RefusedLoadError, Registry

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


def test_a_killed_job_goes_on_and_ends_as_if_it_had_not_been_killed(tmp_path):
    digits.check_resume("transformers", tmp_path, first=1)


def test_best_has_the_highest_accuracy_and_it_is_that_of_these_weights(tmp_path):
    class Spoilt(digits.Labelled):
        evaluated = 0

        def train(self, mode=True):
            self.evaluated += not mode
            digits.spoil(self.net, not mode and self.evaluated == 4)
            return super().train(mode)

    net = Spoilt()
    with Registry.create(tmp_path / "reg") as reg:
        digits.transformers(tmp_path / "reg", tmp_path, net=net)
        by_hand = {}
        for checkpoint in reg.find("digits-mlp"):
            net = digits.Labelled()
            reg.load(checkpoint, into=net)
            by_hand[checkpoint.version] = digits.accuracy(net.net)
            assert checkpoint.metrics["eval_accuracy"] == checkpoint.acc
            assert checkpoint.acc == pytest.approx(by_hand[checkpoint.version], abs=1e-7)
        best = reg.best("digits-mlp")
        assert by_hand[best.version] == max(by_hand.values())
        assert best.version < len(by_hand)  # the last one was spoilt
        (model,) = reg.models()
        assert (model.metric, model.mode) == ("eval_accuracy", "max")


def test_what_is_recorded_is_what_trained(tmp_path):
    with Registry.create(tmp_path / "reg") as reg:
        ended = digits.transformers(tmp_path / "reg", tmp_path, num_train_epochs=1)
        last = ended["last"]
        assert last == reg.get("digits-mlp")
        assert (last.container, last.epoch, last.step) == ("hf-trainer", 1, 10)
        assert last.provenance.topology == last.provenance.key_style == "recorded"
        assert (last.topology.strategy, last.topology.world_size) == ("single", 1)
        assert last.config["learning_rate"] == 0.01
        assert "output_dir" not in last.config
        assert {k for k in last.metrics if k.endswith(("runtime", "per_second"))} == set()
        net = digits.Labelled()
        groups = [
            [p for name, p in net.named_parameters() if name.endswith(kind)]
            for kind in ("weight", "bias")
        ]  # the Trainer decays no bias
        optimizer = torch.optim.AdamW([{"params": group} for group in groups])
        reg.load(last, into=net, optimizer=optimizer)
        moment = optimizer.state[net.net[0].weight]["exp_avg"]
        assert torch.equal(moment, ended["optimizer"]["state"][0]["exp_avg"])
        folder = reg.pull(last, tmp_path / "pulled")
    with Registry.create(tmp_path / "other") as other:  # the folder carries its record
        again = other.push(folder)
        assert (again.model, again.metrics, again.run) == (last.model, last.metrics, last.run)
        assert (again.topology, again.config) == (last.topology, last.config)


def test_a_step_without_an_evaluation_has_no_metric_of_one(tmp_path):
    with Registry.create(tmp_path / "reg") as reg:
        digits.transformers(
            tmp_path / "reg", tmp_path, num_train_epochs=2, save_strategy="steps", save_steps=5,
        )  # fmt: skip
        found = list(reg.find("digits-mlp", sort="version"))
        assert [(c.step, c.epoch) for c in found] == [(5, None), (10, 1), (15, None), (20, 2)]
        assert not any("eval_accuracy" in c.metrics for c in (found[0], found[2]))
        assert found[1].acc == found[1].metrics["eval_accuracy"]  # evaluated after it was saved


def test_a_failed_save_stops_the_training(tmp_path):
    Registry.create(tmp_path / "reg").close()
    with pytest.raises(ValueError, match="acc='nope' names a metric that isn't there"):
        digits.transformers(tmp_path / "reg", tmp_path, words={"acc": "nope"})


class Forgetful(digits.Labelled):
    """A net that forgets what it learned before it is evaluated for the second time."""

    evaluated = 0

    def train(self, mode=True):
        self.evaluated += not mode
        digits.spoil(self.net, not mode and self.evaluated == 2)
        return super().train(mode)


def test_what_is_measured_on_the_best_weights_is_not_recorded_of_the_last(tmp_path):
    with Registry.create(tmp_path / "reg") as reg:
        digits.transformers(
            tmp_path / "reg", tmp_path, net=Forgetful(), num_train_epochs=2,
            load_best_model_at_end=True, save_total_limit=None,
            after=lambda trainer: trainer.evaluate(metric_key_prefix="eval_test"),
        )  # fmt: skip
        best, last = reg.find("digits-mlp", sort="version")
        assert best.acc > last.acc == 0.1
        assert not any("test" in name for name in last.metrics)


def test_what_is_measured_after_training_is_recorded_of_the_last(tmp_path):
    with Registry.create(tmp_path / "reg") as reg:
        digits.transformers(
            tmp_path / "reg", tmp_path, num_train_epochs=1, eval_strategy="no",
            metric_for_best_model=None, after=lambda trainer: (
                trainer.evaluate(metric_key_prefix="test"), trainer.evaluate(),
            ),
        )  # fmt: skip
        last = reg.get("digits-mlp")
        assert last.acc == last.metrics["eval_accuracy"]
        assert not any(name.startswith("test") for name in last.metrics)


def test_the_accuracy_may_be_of_one_of_several_sets(tmp_path):
    sets = {"a": digits.Rows(600, 700), "b": digits.Rows(600, 800)}
    with Registry.create(tmp_path / "reg") as reg:
        digits.transformers(
            tmp_path / "reg", tmp_path, words={"acc": "eval_b_accuracy"}, num_train_epochs=1,
            save_strategy="steps", save_steps=10, eval_sets=sets,
            metric_for_best_model="b_accuracy",
        )  # fmt: skip
        last = reg.get("digits-mlp")
        net = digits.Labelled()
        reg.load(last, into=net)
        assert last.acc == pytest.approx(digits.accuracy(net.net), abs=1e-7)
        assert "eval_a_accuracy" in last.metrics


@pytest.mark.parametrize("said_by", ["fsdp", "deepspeed", "accelerate launch"])
def test_a_net_in_parts_is_refused_before_it_trains(said_by, tmp_path, monkeypatch):
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from registry.integrations.transformers import CheckpointCallback

    args = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True)
    if said_by == "accelerate launch":
        kind = DistributedType.FSDP
        monkeypatch.setitem(PartialState._shared_state, "distributed_type", kind)
    else:
        monkeypatch.setattr(args, said_by, True)
    callback = CheckpointCallback(tmp_path / "none", "m")
    with pytest.raises(RefusedLoadError, match="spreads the net over its ranks") as caught:
        callback.on_train_begin(args, TrainerState(), TrainerControl(), model=digits.Labelled())
    assert caught.value.hint.endswith("out/checkpoint-N --model m")


@pytest.mark.ranks
def test_two_processes_save_one_checkpoint_and_go_on_after_a_kill(tmp_path):
    words = [str(tmp_path / "reg"), str(tmp_path)]
    with Registry.create(tmp_path / "reg") as reg:
        ended = gloo.run("digits:gloo_transformers", *words, "2")
        assert {rank.code for rank in ended} & {-9}, [rank.stderr for rank in ended]
        assert [c.epoch for c in reg.find("digits-mlp", sort="version")] == [1, 2]
        ended = gloo.run("digits:gloo_transformers", *words, "-1")
        assert [rank.code for rank in ended] == [0, 0], [rank.stderr for rank in ended]
        found = list(reg.find("digits-mlp", sort="version"))
        assert [c.epoch for c in found] == [1, 2, 3, 4]
        assert [rank.answer for rank in ended] == [found[-1].id] * 2
        assert [c.parent for c in found] == [None, *(c.id for c in found[:-1])]
        for checkpoint in found:
            topology = checkpoint.topology
            assert (topology.strategy, topology.world_size) == ("ddp", 2)
            assert {f.name for f in checkpoint.files} >= {"rng_state_0.pth", "rng_state_1.pth"}
            net = digits.Labelled()
            reg.load(checkpoint, into=net)
            assert checkpoint.acc == pytest.approx(digits.accuracy(net.net), abs=1e-6)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("what", "raised"),
    [
        ("acc", "ValueError: acc='nope' names a metric that isn't there"),
        ("config", "ConflictError: the run 'a' of 'digits-mlp' was begun with"),
    ],
)
def test_what_rank_0_refuses_is_told_to_the_others(what, raised, tmp_path):
    with Registry.create(tmp_path / "reg") as reg:
        run = reg.run("digits-mlp", dataset="digits", name="a", config={"lr": 0.01})
        reg.remove(run.save(digits.network(), epoch=0))  # nothing to resume from
    ended = gloo.run("digits:gloo_transformers_refused", str(tmp_path / "reg"), str(tmp_path), what)
    assert [rank.code for rank in ended] == [0, 0], [rank.stderr for rank in ended]
    assert ended[0].answer.startswith(raised)
    assert ended[1].answer.startswith(f"RemoteError: rank 0 could not save: {raised}")
