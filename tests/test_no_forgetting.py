"""With a set per task and task labels, what was learned stays as it is, bit for bit, whatever the strategy does."""

from __future__ import annotations

import pytest
import torch
from avalanche.training.plugins import EWCPlugin
from runs_helpers import Watch, settled, small_run, watch_assembly
from safetensors.torch import load_file, save_file

from cl_runner.benchmarks.classes import SplitDigits
from cl_runner.modalities.images import build_network
from cl_runner.training.task_aware import TaskAwareNetwork

WHOLE = (
    "trainer.eval_batch_size=512",
    "trainer.channels_last=false",
)  # a task in one batch, in the fresh network's format


@pytest.mark.parametrize("base", ["first_task", "frozen"])
@pytest.mark.parametrize("strategy", ["naive", "ewc", "replay", "lwf", "si", "gem", "agem", "cumulative"])
def test_later_tasks_leave_the_logits_of_earlier_ones_bit_identical(strategy, base, tmp_path, monkeypatch):
    logits: dict[tuple[int, int], torch.Tensor] = {}
    watch = Watch(
        after_eval_iteration=lambda s: logits.update(
            {(s.clock.train_exp_counter, s.experience.current_experience): s.mb_output.clone()}
        )
    )
    made = watch_assembly(monkeypatch, lambda s: s.plugins.append(watch))
    extra = ["strategy.ewc_lambda=1000"] if strategy == "ewc" else []
    typed = ["adapter=convlora", "adapter.rank=2", f"adapter.base={base}", f"strategy={strategy}", *WHOLE]
    typed += ["benchmark.n_tasks=5", "trainer.epochs=2", *extra]
    result = small_run(tmp_path, *typed)
    for task in range(5):
        for later in range(task + 1, 6):
            assert torch.equal(logits[later, task], logits[task + 1, task])
        assert task == 0 or not torch.equal(logits[task, task], logits[task + 1, task]), "the task learned nothing"
    assert not any(item.requires_grad for item in result.network.parameters()), "a finished task is still open"
    assert result.summary["forgetting"] == 0.0 and result.summary["bwt"] == 0.0

    save_file(result.network.state_dict(), tmp_path / "network.safetensors")
    config = settled(*typed)
    torch.manual_seed(99)
    outline = SplitDigits(n_tasks=5).outline(tmp_path)
    fresh = build_network(config, outline, network_class=TaskAwareNetwork)
    for task in range(5):
        fresh.begin_task([task])
        fresh.adapter.end_task()
    fresh.load_state_dict(load_file(tmp_path / "network.safetensors"))
    fresh.eval()
    stream = SplitDigits(n_tasks=5).stream(tmp_path)
    with torch.no_grad():
        for task in stream.tasks:
            ((x, _, tasks),) = made[0].lane.evaluation(task.test.ids, 512)
            assert torch.equal(fresh(x, tasks), logits[task.index + 1, task.index])


def test_importances_are_taken_while_the_task_is_open(tmp_path, monkeypatch):
    made = watch_assembly(monkeypatch)
    small_run(tmp_path, "adapter=convlora", "strategy=ewc", "benchmark.n_tasks=5", "trainer.epochs=2")
    ewc = next(plugin for plugin in made[0].plugins if isinstance(plugin, EWCPlugin))
    for task in range(1, 5):
        weight = {name: float(item.data.sum()) for name, item in ewc.importances[task].items()}
        own = [name for name in weight if f".deltas.{task}." in name]
        assert own and all(weight[name] > 0 for name in own), "the adapter closed the task before EWC looked at it"
        earlier = [name for name in weight if any(f".deltas.{other}." in name for other in range(task))]
        assert not any(weight[name] for name in earlier), "gradients of an earlier task were still lying around"
