"""transformers' callback: the Trainer's folders are recorded, resume exactly, and load anywhere."""

from __future__ import annotations

import digits
import pytest
import torch

from registry import Registry

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
