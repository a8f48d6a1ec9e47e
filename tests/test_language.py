"""Language streams: the network's logits, the objective, whole runs on IMDb/Yelp and TRACE trees, and their figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from runs_helpers import as_array, epochs_of, small_run, table, watch_assembly
from text_trees import TRACE_TASKS, write_lines, write_reviews, write_trace
from torch.nn import functional

from cl_runner.adapters import DyLoRA, LoRA
from cl_runner.adapters.placement import Placement
from cl_runner.backbones.language import LanguageNetwork
from cl_runner.cli import execute
from cl_runner.config.checks import settle
from cl_runner.config.compose import compose
from cl_runner.errors import RequestError
from cl_runner.runner import run
from cl_runner.tokens import IGNORED
from cl_runner.training.task_aware import TaskAwareLanguageNetwork
from cl_runner.training.token_measures import TokenCrossEntropy, amount, token_totals

transformers = pytest.importorskip("transformers")

TINY = (
    "backbone=gpt2",
    "backbone.tokenizer=bytes",
    "backbone.layers=1",
    "backbone.width=32",
    "backbone.options={resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0, n_head: 2, n_positions: 512}",
    "placement=match",
    "placement.pattern=c_attn",
    "optimizer=adamw",
    "trainer.epochs=1",
    "trainer.batch_size=8",
    "trainer.threads=1",
    "trainer.device=cpu",
    "quiet=true",
    "report=false",
)
PLACED_NOWHERE = ("placement=all", "~placement.pattern")


def tiny(**options):
    config = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 40, "n_positions": 32}
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**(config | options))).eval()


def marked(batch=3, length=9, vocabulary=40, seed=0):
    """Ids and marks (B, 2, L) with targets (B, L), drawn."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (batch, length), generator=draw)
    marks = torch.rand(batch, length, generator=draw) < 0.6
    marks[:, 0], marks[:, -1] = True, False
    targets = torch.where(marks, ids.roll(-1, 1), IGNORED)
    return torch.stack([ids, marks.long()], 1), targets


def language(model, **options):
    given = {"n_tasks": 3, "task_labels": True, "pretrained": True, "precision": "float32"} | options
    return LanguageNetwork(model, **given).eval()


def typed(folder: Path, *overrides: str, stream: str = "imdb_yelp") -> list[str]:
    """The tiny settings with some of them replaced."""
    keys = {item.split("=")[0].lstrip("+~") for item in overrides}
    keys |= {"trainer.epochs"} if {"trainer.task_epochs", "trainer.iterations"} & keys else set()
    settings = [item for item in TINY if item.split("=")[0] not in keys]
    if "adapter=none" in overrides or "placement" in keys:
        settings = [item for item in settings if not item.startswith("placement")]
    return [f"benchmark={stream}", *settings, f"data_root={folder}", *overrides]


def text_run(folder: Path, *overrides: str, stream: str = "imdb_yelp"):
    given = [*typed(folder, *overrides, stream=stream), f"output_root={folder / 'runs'}"]
    return run(compose(given), experiment="test", overrides=given)


def losses_of(result) -> dict[tuple[int, int], float]:
    """Loss by (after task, task); after task 0 is before training."""
    rows = table(result.folder / "losses.csv")
    return {(int(row["after_task"]), int(row["task"])): float(row["loss"]) for row in rows}


def quick(folder: Path, *overrides: str):
    """A run on a miniature of IMDb and Yelp."""
    if not (folder / "text").is_dir():
        write_reviews(folder)
    sizes = ["benchmark.n_train=24", "benchmark.n_test=8", "benchmark.length=48"]
    return text_run(folder, *sizes, *overrides)


# ------------------------------------------------------------------------------------------------ the network


FAMILIES = {
    "gpt2": lambda: tiny(),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=40
        )
    ),
    "granite, which divides its logits": lambda: transformers.GraniteForCausalLM(
        transformers.GraniteConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=40,
            logits_scaling=7.0,
        )
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_the_models_own_at_the_marked_positions(family):
    model = FAMILIES[family]().eval()
    network = language(model)
    x, _ = marked()
    found = network(x)
    wanted = model(input_ids=x[:, 0]).logits[x[:, 1].bool()]
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    assert network._short is (not family.startswith("granite"))


def test_padding_changes_nothing_and_counts_nowhere():
    network, (x, y) = language(tiny()), marked()
    longer = torch.cat([x, torch.zeros(3, 2, 4, dtype=torch.long)], 2)
    longer[:, 0, 9:] = 17  # whatever stands there
    ignored = torch.cat([y, torch.full((3, 4), IGNORED)], 1)
    torch.testing.assert_close(network(longer), network(x), atol=1e-6, rtol=1e-5)
    assert torch.equal(token_totals(network(longer), ignored)[1:], token_totals(network(x), y)[1:])


def test_the_objective_against_one_text_at_a_time():
    model, (x, y) = tiny(), marked()
    loss = right = tokens = 0
    for ids, targets in zip(x[:, 0], y, strict=True):
        log_probabilities = model(input_ids=ids[None]).logits[0].log_softmax(1)
        for place, target in enumerate(targets.tolist()):
            if target != IGNORED:
                loss -= float(log_probabilities[place, target])
                right += int(log_probabilities[place].argmax()) == target
                tokens += 1
    logits = language(model)(x)
    assert token_totals(logits, y).tolist() == pytest.approx([loss, right, tokens], rel=1e-5)
    assert float(TokenCrossEntropy()(logits, y)) == pytest.approx(loss / tokens, rel=1e-5)
    assert int(amount(y)) == tokens


def test_smoothing_is_torchs():
    logits, (_, y) = torch.randn(40, 40), marked(3, 20)
    logits = logits[: int(amount(y))]
    wanted = functional.cross_entropy(logits, y[y != IGNORED], label_smoothing=0.2)
    assert float(TokenCrossEntropy(0.2)(logits, y)) == pytest.approx(float(wanted))


def per_task_network(kind=LanguageNetwork):
    torch.manual_seed(0)
    network = kind(tiny(), n_tasks=3, task_labels=True, pretrained=True, precision="float32")
    network.adapter = LoRA(rank=2, sharing="per_task")
    network.adapter.attach(network, Placement(pattern="c_attn"))
    for task in range(3):
        network.begin_task([task])
        for factors in network.adapter.open_factors():
            torch.nn.init.normal_(factors.B)
        network.end_task()
    return network.eval()


def test_a_batch_of_several_tasks_goes_through_each_ones_own_set():
    network = per_task_network()
    x, _ = marked(6, 7)
    tasks = torch.tensor([2, 0, 1, 0, 2, 2])
    rows = [network.for_task(x[i : i + 1], int(task)) for i, task in enumerate(tasks)]
    torch.testing.assert_close(network(x, tasks), torch.cat(rows), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(network(x, tasks), network(x, torch.zeros(6, dtype=torch.long)))
    every = network(x, None)
    assert set(every) == {0, 1, 2}
    assert torch.equal(every[1], network.for_task(x, 1))


def test_avalanche_hands_the_labels_to_a_network_that_takes_them():
    from avalanche.models import avalanche_forward

    network = per_task_network(TaskAwareLanguageNetwork)
    x, _ = marked(4, 7)
    tasks = torch.tensor([1, 1, 2, 0])
    assert torch.equal(avalanche_forward(network, x, tasks), network(x, tasks))


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32():
    x, _ = marked()
    model = tiny()
    exact, rounded = language(model)(x), language(model, precision="bfloat16")(x)
    assert rounded.dtype == torch.float32
    difference = (exact - rounded).abs().max()
    assert 0 < difference < 0.05


# -------------------------------------------------------------------------------------------- runs on two domains


def reread(result, folder: Path, stem: str, length=48):
    """(loss, token accuracy) of a trained network on a file, text by text, without padding and without a store."""
    from cl_runner.backbones.tokenizers import load_tokenizer

    tokenizer = load_tokenizer("bytes")
    lines = (folder / "text" / f"{stem}.jsonl").read_text().splitlines()
    loss = right = tokens = 0
    model = result.network.backbone.eval()
    for line in lines:
        ids = [*tokenizer.start, *tokenizer.encode([json.loads(line)["text"]])[0]][:length]
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        targets = torch.tensor(ids[1:])
        loss += float(functional.cross_entropy(logits, targets, reduction="sum"))
        right += int((logits.argmax(1) == targets).sum())
        tokens += len(targets)
    return loss / tokens, right / tokens


@pytest.mark.parametrize("adapter", ["none", "lora", "hybrid"])
def test_the_figures_of_a_run_are_those_of_its_network(adapter, tmp_path):
    result = quick(tmp_path, f"adapter={adapter}", "trainer.epochs=2", "optimizer.lr=0.01")
    with torch.no_grad():
        imdb, yelp = (reread(result, tmp_path, stem) for stem in ("imdb_test", "yelp_polarity_test"))
    rows = {(row["after_task"], row["task"]): row for row in table(result.folder / "losses.csv")}
    summary = result.summary
    for row, found in ((rows["2", "1"], imdb), (rows["2", "2"], yelp)):
        assert float(row["loss"]) == pytest.approx(found[0], rel=1e-5)
        assert float(row["perplexity"]) == pytest.approx(math.exp(found[0]), rel=1e-4)
        assert float(row["token_accuracy"]) == pytest.approx(found[1])
    matrix = as_array(result.matrix)
    assert matrix[1].tolist() == pytest.approx([imdb[1], yelp[1]])
    assert summary["loss"] == pytest.approx((imdb[0] + yelp[0]) / 2, rel=1e-5)
    assert summary["last_task_loss"] == pytest.approx(yelp[0], rel=1e-5)
    assert summary["delta_loss"] == pytest.approx(imdb[0] - float(rows["1", "1"]["loss"]), rel=1e-4)
    assert summary["retention"] == pytest.approx(matrix[1, 0] / matrix[0, 0])
    assert float(rows["1", "1"]["loss"]) < float(rows["0", "1"]["loss"])  # something was learned
    assert summary["train_images_per_second"] > 0


def test_the_training_loss_is_the_mean_over_tokens(tmp_path):
    result = quick(tmp_path, "adapter=none", "optimizer.lr=1e-12", "trainer.batch_size=5")
    with torch.no_grad():
        wanted = reread(result, tmp_path, "imdb_train")[0]
    assert epochs_of(result.folder)[0]["train_loss"] == pytest.approx(wanted, rel=1e-5)


STRATEGIES = {
    "naive": (),
    "replay": ("strategy.mem_size=8",),
    "ewc": (),
    "si": (),
    "lwf": (),
    "gem": ("strategy.mem_size=4",),
    "agem": ("strategy.mem_size=4", "strategy.sample_size=4"),
    "cumulative": (),
    "joint": (),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_every_strategy_of_tokens_runs(adapter, strategy, tmp_path):
    small = ("benchmark.n_train=8", "benchmark.n_test=4", "trainer.batch_size=4", "benchmark.length=24")
    ways = ("optimizer.lr=0.02", *STRATEGIES[strategy])
    result = quick(tmp_path, f"adapter={adapter}", f"strategy={strategy}", *ways, *small)
    assert result.summary["status"] == "done"
    losses = losses_of(result)
    for task in (1, 2):
        before, after = (0, 2) if strategy == "joint" else (task - 1, task)
        assert losses[after, task] < losses[before, task] - 0.01  # it was learned
    assert np.isfinite(as_array(result.matrix)[-1]).all()


@pytest.mark.parametrize("strategy", ["der", "icarl", "zero_shot", "rail", "zscl"])
def test_methods_of_classes_are_refused(strategy, tmp_path):
    given = [item for item in typed(tmp_path, "adapter=none") if not item.startswith("optimizer")]
    given = [item for item in given if not item.startswith("trainer.epochs")]
    with pytest.raises(RequestError, match="language model has none"):
        run(compose([*given, f"strategy={strategy}"]), experiment="test")


ALL_OF_IT = ("strategy.mem_size=40",)  # both domains' texts
KEPT = {  # settings, and at most this share of naive training's loss on the first domain, once the second is learned
    "replay": (ALL_OF_IT, 0.1),
    "gem": (ALL_OF_IT, 0.1),
    "cumulative": ((), 0.1),
    "joint": ((), 0.1),
    "ewc": (("strategy.ewc_lambda=1e7",), 0.6),
    "si": (("strategy.si_lambda=100",), 0.6),
    "lwf": (("strategy.alpha=2",), 0.6),
    "wise_ft": (("strategy.alpha=0.6",), 0.8),
    "agem": ((*ALL_OF_IT, "strategy.sample_size=20"), 0.85),
}


def contradiction(folder: Path, *overrides: str) -> dict[tuple[int, int], float]:
    """Losses of a run on two domains that say the opposite of the same things, so that gradients conflict."""
    domains = []
    for name, said in (("yes", "yes, of course"), ("no", "no, not at all")):
        texts = [{"text": f"{first}{second} is {said}"} for first in "cdefg" for second in "cdefg"]
        train, test = folder / f"{name}.jsonl", folder / f"{name}_test.jsonl"
        write_lines(train, texts[:20])
        write_lines(test, texts[20:])
        domains.append(f"{{name: {name}, train: {train}, test: {test}}}")
    settings = (
        "adapter=none",
        "benchmark.length=24",
        "trainer.epochs=20",
        "trainer.batch_size=10",
        "optimizer.lr=0.01",
    )
    given = [f"benchmark.domains=[{','.join(domains)}]", *settings, *overrides]
    return losses_of(text_run(folder, *given, stream="text_domains"))


@pytest.fixture(scope="module")
def forgotten(tmp_path_factory) -> float:
    """The loss on the first domain after naive training on the second."""
    losses = contradiction(tmp_path_factory.mktemp("naive"), "strategy=naive")
    assert losses[1, 1] < 0.2 and losses[2, 2] < 0.2
    assert losses[2, 1] > 2
    return losses[2, 1]


@pytest.mark.parametrize("strategy", KEPT)
def test_a_strategy_keeps_what_naive_training_forgets(strategy, forgotten, tmp_path):
    settings, share = KEPT[strategy]
    losses = contradiction(tmp_path, f"strategy={strategy}", *settings)
    assert losses[2, 1] < share * forgotten
    assert losses[2, 2] < 0.5  # of 5.5: the second domain was learned all the same


def test_distillation_against_its_formula():
    from types import SimpleNamespace

    from cl_runner.strategies.token_distillation import TokenDistillation

    old, new = language(tiny()), language(tiny(n_layer=1))
    (x, _), alpha, temperature = marked(), 3.0, 2.0
    plugin = TokenDistillation(alpha=alpha, temperature=temperature)
    clock = SimpleNamespace(train_exp_counter=0)
    strategy = SimpleNamespace(model=old, mb_x=x, mb_task_id=None, mb_output=new(x), loss=torch.zeros(()), clock=clock)
    plugin.before_training(strategy)
    plugin.before_backward(strategy)
    assert float(strategy.loss) == 0  # there is no teacher before the first task ends
    plugin.after_training_exp(strategy)
    clock.train_exp_counter = 1
    plugin.before_training(strategy)
    plugin.before_backward(strategy)
    p, q = (np.exp(net(x).detach().numpy().astype(float) / temperature) for net in (old, new))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    assert float(strategy.loss) == pytest.approx(alpha * (p * np.log(p / q)).sum(1).mean(), rel=1e-4)
    assert strategy.loss.requires_grad


def test_a_set_per_task_forgets_nothing_and_needs_to_know_the_domain(tmp_path):
    settings = (
        "adapter=lora",
        "adapter.sharing=per_task",
        "adapter.base=frozen",
        "trainer.epochs=3",
        "optimizer.lr=0.02",
    )
    result = quick(tmp_path, *settings)
    losses = {(row["after_task"], row["task"]): row["loss"] for row in table(result.folder / "losses.csv")}
    assert losses["2", "1"] == losses["1", "1"]
    with pytest.raises(RequestError, match=r"task_labels=false with adapter=lora"):
        quick(tmp_path, *settings, "benchmark.task_labels=false")


# -------------------------------------------------------------------------------------- ranks, schedules, penalties


def test_the_schedule_and_the_curve_after_every_task(tmp_path):
    result = quick(
        tmp_path,
        "adapter=hybrid",
        "adapter.base=frozen",
        "adapter.rank=8",
        "adapter.rank_schedule=[8,4,2]",
        "adapter.eval_ranks=[8,4,2,1]",
        "adapter.eval_ranks_at=every_task",
        "trainer.epochs=3",
        "optimizer.lr=0.02",
    )
    curve = {(row["after_task"], row["rank"], row["task"]): row for row in table(result.folder / "rank_curve.csv")}
    assert {key[:2] for key in curve} == {("1", "8"), ("1", "4"), ("1", "2"), ("1", "1"), ("2", "2"), ("2", "1")}
    losses = {(row["after_task"], row["task"]): float(row["loss"]) for row in table(result.folder / "losses.csv")}
    for after, rank in (("1", "8"), ("2", "2")):  # at the full rank of the moment the curve is the evaluation
        for task in "12":
            assert float(curve[after, rank, task]["loss"]) == pytest.approx(losses[after, task], rel=1e-6)
    assert float(curve["1", "1", "1"]["loss"]) != pytest.approx(losses["1", "1"], rel=1e-6)
    rows = table(result.folder / "parameters.csv")
    assert [int(row["adapter"]) for row in rows] == [8 * (32 + 96), 2 * (32 + 96)]
    assert result.summary["adapter_parameters"] == 2 * (32 + 96)


def test_a_schedule_that_drops_a_rank_of_the_last_curve_is_refused():
    with pytest.raises(RequestError, match="eval_ranks_at=every_task"):
        DyLoRA(rank=8, rank_schedule=[8, 2], eval_ranks=[4])
    DyLoRA(rank=8, rank_schedule=[8, 2], eval_ranks=[4], eval_ranks_at="every_task")


def test_both_penalties_on_a_language_model_against_numpy():
    """L_order and L_DC on c_attn of GPT-2, written again; no penalty at rank 1, none where nothing has moved."""
    from cl_runner.adapters import Hybrid

    for rank in (1, 4):
        network = language(tiny())
        network.adapter = adapter = Hybrid(rank=rank, lambda_order=0.3, lambda_dc=0.7)
        adapter.attach(network, Placement(pattern="c_attn"))
        network.begin_task([0])
        torch.manual_seed(1)
        for item in adapter.open_factors():
            torch.nn.init.normal_(item.B)
        before = direction(adapter)
        network.end_task()
        network.begin_task([1])
        if rank == 1:
            assert float(adapter.penalty()) == pytest.approx(0, abs=1e-6)  # one component, and w = w_prev
        with torch.no_grad():
            for item in adapter.open_factors():
                item.A += 0.3 * torch.randn_like(item.A)
        now = direction(adapter)
        order = sum(
            i / (rank - 1) * np.linalg.norm(f.A.detach().numpy()[i]) * np.linalg.norm(f.B.detach().numpy()[:, i])
            for f in sets(adapter)
            for i in range(rank)
            if rank > 1
        )
        turned = 1 - before @ now / np.linalg.norm(before) / np.linalg.norm(now)
        penalty = adapter.penalty()
        assert float(penalty) == pytest.approx(0.3 * order + 0.7 * turned, abs=1e-6, rel=1e-6)
        penalty.backward()
        for item in sets(adapter):
            assert float(item.A.grad.norm()) > 1e-6 and float(item.B.grad.norm()) > 1e-6


def sets(adapter):
    return list(adapter.open_factors())


def direction(adapter):
    return np.concatenate([item.detach().numpy().ravel() for f in sets(adapter) for item in (f.A, f.B)])


def test_epochs_of_each_task(tmp_path):
    result = quick(tmp_path, "adapter=lora", "trainer.task_epochs=[2,1]")
    assert [row["epochs"] for row in table(result.folder / "parameters.csv")] == ["2", "1"]
    steps = [event for event in events(result.folder) if event["event"] == "task_started"]
    assert [event["epochs"] for event in steps] == [2, 1]
    images = small_run(tmp_path, "trainer.task_epochs=[1,3]")
    assert [row["epochs"] for row in table(images.folder / "parameters.csv")] == ["1", "3"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("trainer.task_epochs=[2]",), r"trainer.task_epochs=\[2\] has 1 entries for 2 tasks"),
        (("trainer.task_epochs=[2,2]", "strategy=joint"), "one phase for all tasks"),
        (("trainer.task_epochs=[2,2]", "trainer.iterations=3"), "both say how long"),
        (("trainer.task_epochs=[0,2]",), "takes a list of whole numbers at least 1"),
    ],
)
def test_wrong_epochs_of_tasks(override, message, tmp_path):
    with pytest.raises(RequestError, match=message):
        quick(tmp_path, "adapter=lora", *override)


def test_typed_epochs_beside_those_of_the_tasks_are_refused():
    given = ["trainer.task_epochs=[1,1,1,1,1]", "trainer.epochs=3"]
    with pytest.raises(RequestError, match="trainer.epochs has no use here: trainer.task_epochs is set"):
        settle(compose(given), given)


# --------------------------------------------------------------------------------------------------- the stream


def events(folder: Path):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_the_events_hold_loss_and_score(tmp_path):
    result = quick(tmp_path, "adapter=lora")
    found = [event for event in events(result.folder) if event["event"] == "evaluated"]
    assert len(found) == 6
    for event in found:
        assert event["loss"] > 0 and event["perplexity"] == pytest.approx(math.exp(event["loss"]))
        assert event["accuracy"] == event["token_accuracy"] and event["metric"] == "token_accuracy"


def test_the_same_seed_gives_the_same_run_and_another_another(tmp_path):
    first, again = (quick(tmp_path, "adapter=lora", "seed=3") for _ in range(2))
    other = quick(tmp_path, "adapter=lora", "seed=4")
    assert table(first.folder / "losses.csv") == table(again.folder / "losses.csv")
    assert table(first.folder / "losses.csv") != table(other.folder / "losses.csv")


def test_validation_stops_early_and_test_data_decides_nothing(tmp_path):
    settings = ("adapter=none", "benchmark.validation_fraction=0.25", "trainer.patience=1", "trainer.epochs=30")
    result = quick(tmp_path, *settings, "optimizer.lr=0.05")
    for row in table(result.folder / "parameters.csv"):
        assert int(row["epochs"]) < 30 and int(row["best_epoch"]) <= int(row["epochs"])
    epochs = epochs_of(result.folder)
    assert all(event["validation_loss"] > 0 for event in epochs)


def test_the_evaluated_batch_is_bounded_by_its_logits(tmp_path, monkeypatch):
    made = watch_assembly(monkeypatch)
    quick(tmp_path, "adapter=lora")
    monkeypatch.setattr("cl_runner.modalities.texts.LOGIT_BYTES", 3 * 48 * 259 * 4)
    quick(tmp_path, "adapter=lora")
    assert [strategy.eval_mb_size for strategy in made] == [64, 3]


# --------------------------------------------------------------------------------------------------------- TRACE


SCORED = {
    "C-STANCE": "exact_match",
    "FOMC": "exact_match",
    "MeetingBank": "rouge_l",
    "Py150": "edit_similarity",
    "ScienceQA": "first_character",
    "NumGLUE-cm": "exact_match",
    "NumGLUE-ds": "exact_match",
    "20Minuten": "sari",
}


def test_trace_from_end_to_end(tmp_path, capsys, monkeypatch):
    """All eight tasks through the command line: answers alone are learned, answers are generated and scored."""
    monkeypatch.chdir(tmp_path)
    write_trace(tmp_path / "trace", n_train=4, n_test=2)
    given = [item for item in TINY if not item.startswith(("quiet", "placement", "report", "trainer.epochs"))]
    sizes = ["benchmark.prompt_length=96", "benchmark.answer_length=12", "evaluate=seen", "trainer.eval_batch_size=4"]
    code = execute(["benchmark=trace", *given, *sizes, "adapter=lora", "placement=qkvo_mlp", "adapter.base=frozen",
                    f"data_root={tmp_path}", "trainer.task_epochs=[1,1,1,2,1,1,1,1]"])  # fmt: skip
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert "score" in shown.out
    folder = next((tmp_path / "outputs" / "quickstart").iterdir())
    rows = table(folder / "losses.csv")
    assert {row["name"]: row["metric"] for row in rows} == SCORED
    assert [row["name"] for row in rows if row["after_task"] == "8"] == list(TRACE_TASKS)
    matrix = table(folder / "accuracy_matrix.csv")
    last = matrix[-1]
    for row in rows:
        assert 0 <= float(row["score"]) <= 1 and float(row["loss"]) > 0
        if row["after_task"] == "8":
            assert float(last[row["name"]]) == pytest.approx(float(row["score"]))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["acc"] == pytest.approx(np.mean([float(last[name]) for name in TRACE_TASKS]))
    assert (folder / "report.html").is_file()


QUESTIONS = (("a", "yes"), ("b", "no"))


def test_an_answer_that_is_learned_is_generated(tmp_path):
    """A model that has learned which letter asks for which answer scores full marks, and none before."""
    pairs = [(first + second + key, answer) for first in "cdef" for second in "cdef" for key, answer in QUESTIONS]
    examples = [{"prompt": f"{question}?", "answer": answer} for question, answer in pairs]
    write_lines(tmp_path / "train.jsonl", examples[4:])
    write_lines(tmp_path / "test.jsonl", examples[:4])
    result = text_run(
        tmp_path,
        f"benchmark.domains=[{{name: questions, train: {tmp_path}/train.jsonl, test: {tmp_path}/test.jsonl}}]",
        "benchmark.prompt_length=16",
        "benchmark.answer_length=6",
        "adapter=none",
        "trainer.epochs=30",
        "optimizer.lr=0.01",
        stream="text_domains",
    )
    assert as_array([result.initial]).tolist() == [[0.0]]
    assert as_array(result.matrix).tolist() == [[1.0]]


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("backbone=small_cnn",), "small_cnn takes images, and the benchmark ImdbYelp gives texts"),
        (("benchmark.length=513",), "sequences of 513 tokens, and backbone=gpt2 has 512 positions"),
        (("adapter=dylora", "adapter.task_inference=entropy"), "task_inference"),
    ],
)
def test_parts_that_do_not_fit(overrides, message, tmp_path):
    write_reviews(tmp_path)
    given = typed(tmp_path, *overrides)
    if "backbone=small_cnn" in overrides:
        given = [item for item in given if not item.startswith(("backbone.", "placement"))]
    with pytest.raises(RequestError, match=message):
        run(compose(given), experiment="test", overrides=given)


def test_images_do_not_go_to_a_language_model():
    with pytest.raises(RequestError, match="gpt2 takes texts, and the benchmark SplitDigits gives images"):
        run(compose(["backbone=gpt2", "quiet=true"]), experiment="test")


NO_USE = {
    "nothing to protect with a set per task": (
        ("adapter=lora", "adapter.sharing=per_task", "adapter.base=frozen", "strategy=lwf"),
        "every task has a set of its own",
    ),
    "nothing to remember of weights that are new": (("adapter=codyra", "strategy=ewc"), "trains new ones every task"),
    "a schedule after the last task": (
        ("adapter=dylora", "adapter.base=frozen", "adapter.rank_schedule=[4]", "adapter.schedule_from=3"),
        "begins with task 3, and there are 2 tasks",
    ),
    "a schedule longer than the tasks that follow it": (
        ("adapter=hybrid", "adapter.base=frozen", "adapter.rank_schedule=[8,4,2]", "trainer.task_epochs=[3,1]"),
        "no task from task 2 on more than 1",
    ),
    "a schedule from the second task on, where there is one phase": (
        ("adapter=hybrid", "adapter.base=frozen", "adapter.rank_schedule=[8]", "strategy=joint"),
        "one phase for all tasks",
    ),
    "steps below bfloat16's spacing": (("adapter=none", "backbone.dtype=bfloat16"), "for a base that stands still"),
    "the same for a base that learns the first task": (
        ("adapter=lora", "backbone.dtype=bfloat16"),
        "for a base that stands still",
    ),
    "an output layer that is the embedding too": (
        ("adapter=lora", "adapter.base=frozen", "adapter.full=[lm_head]"),
        "'lm_head' shares its weight with 'transformer.wte'",
    ),
    "factors over a base that has changed": (
        ("adapter=lora", "export_adapter=factors"),
        "adapter.base=first_task trains the base itself",
    ),
    "factors of slices": (
        ("adapter=lora", "adapter.base=frozen", "placement=qkv", "export_adapter=factors"),
        "'transformer.h.0.attn.c_attn.q' is a slice of a packed layer",
    ),
    "factors beside a layer that trains in full": (
        ("adapter=lora", "adapter.base=frozen", "adapter.full=[transformer.ln_f]", "export_adapter=factors"),
        r"full=\['transformer.ln_f'\] trains in full",
    ),
}


@pytest.mark.parametrize("case", NO_USE)
def test_what_would_do_nothing_is_refused(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides, words = NO_USE[case]
    with pytest.raises(RequestError, match=words):
        quick(tmp_path, *overrides)


def test_a_direction_with_nothing_before_it_is_said(tmp_path):
    result = quick(tmp_path, "adapter=dclora")  # the base learns the first of two domains
    said = [event["text"] for event in events(result.folder) if event["event"] == "warning"]
    assert any("holds on to the set of the task before" in text for text in said)
    result = quick(tmp_path, "adapter=dclora", "adapter.base=frozen")
    assert not any("holds on" in str(event.get("text")) for event in events(result.folder))


def test_the_validation_file_of_trace_can_stop_a_task(tmp_path):
    write_trace(tmp_path / "trace", n_train=4, n_eval=3, n_test=2, tasks=["FOMC"])
    result = text_run(
        tmp_path,
        "benchmark.domains=[FOMC]",
        "benchmark.validation_split=true",
        "benchmark.prompt_length=64",
        "benchmark.answer_length=4",
        "trainer.patience=1",
        "trainer.epochs=30",
        "optimizer.lr=0.1",
        "evaluate=last",
        "adapter=none",
        stream="trace",
    )
    assert int(table(result.folder / "parameters.csv")[0]["epochs"]) < 30


def test_a_folder_says_itself_what_network_it_is_of(tmp_path):
    tiny(vocab_size=259, n_positions=64).save_pretrained(tmp_path / "base")
    given = [item for item in typed(tmp_path) if not item.startswith("backbone")]
    write_reviews(tmp_path)
    small = [
        "benchmark.length=16",
        "benchmark.n_train=8",
        "benchmark.n_test=4",
        "adapter=lora",
        "backbone.tokenizer=bytes",
    ]
    given += ["backbone=transformers", f"backbone.pretrained={tmp_path}/base", *small, f"output_root={tmp_path}/runs"]
    result = run(compose(given), experiment="test", overrides=given)
    assert result.network.backbone.config.n_layer == 2
    with pytest.raises(RequestError, match="backbone.name is empty\nname a network, for example backbone.name=gpt2"):
        settle(compose([item for item in given if "pretrained" not in item]))


def test_a_plan_of_a_study_that_runs_in_silence_is_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [
        "+experiment=hybrid_imdb_yelp_study",
        "mode=plan",
        "backbone.layers=1",
        "backbone.width=64",
        "backbone.pretrained=false",
    ]
    assert execute(given) == 0
    assert "parameters after each task" in capsys.readouterr().out
    assert execute([*given, "quiet=true"]) == 0
    assert capsys.readouterr().out == ""


def test_a_plan_says_where_operations_are_not_known(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["benchmark=imdb_yelp", "backbone=transformers", "backbone.name=rwkv", "backbone.layers=1", "adapter=none"]
    assert execute([*given, "mode=plan", "backbone.options={hidden_size: 32, attention_hidden_size: 32}"]) == 0
    assert "operations of this network cannot be counted" in capsys.readouterr().out


BAD_FILES = {
    "empty": (b"", "empty|no text"),
    "not json": (b'{"text": "a good film"}\nnot json\n', "line 2"),
    "a missing field": (b'{"text": "a good film"}\n{"txt": "another"}\n', "line 2.*text"),
    "another kind": (b'["text"]\n', "line 1"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_exit_2_naming_file_and_line(case, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, words = BAD_FILES[case]
    bad = tmp_path / "mine.jsonl"
    bad.write_bytes(content)
    given = [item for item in typed(tmp_path, stream="text_domains") if not item.startswith("quiet")]
    code = execute([*given, "adapter=lora", f"benchmark.domains=[{{name: mine, train: {bad}}}]"])
    said = capsys.readouterr().err
    assert code == 2
    assert "mine.jsonl" in said and "Traceback" not in said
    import re

    assert re.search(words, said), said
    assert len(said.strip().splitlines()) <= 2


def test_a_tokenizer_of_another_model_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_reviews(tmp_path)
    given = [item for item in typed(tmp_path, "backbone.vocab_size=100") if not item.startswith("quiet")]
    assert execute([*given, "adapter=lora"]) == 2
    said = capsys.readouterr().err
    assert "backbone.tokenizer=bytes" in said and "100" in said


# --------------------------------------------------------------------------------------------------- what is left


@pytest.mark.parametrize("adapter", ["lora", "dylora", "dclora", "hybrid"])
def test_a_run_leaves_an_adapter_that_peft_generates_the_same_text_with(adapter, tmp_path):
    peft = pytest.importorskip("peft")
    ways = (f"export_adapter={tmp_path}/factors", f"export={tmp_path}/whole")
    settings = (f"adapter={adapter}", "adapter.base=frozen", "adapter.rank=4", "optimizer.lr=0.05", "trainer.epochs=3")
    torch.manual_seed(0)
    base = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=1,
            n_embd=32,
            n_head=2,
            vocab_size=259,
            n_positions=512,
            bos_token_id=1,
            eos_token_id=1,
            initializer_range=0.3,  # wide enough to say more than one thing
        )
    )
    base.save_pretrained(tmp_path / "base")
    given = [item for item in typed(tmp_path) if not item.startswith(("backbone", "benchmark=", "data_root"))]
    write_reviews(tmp_path, 24, 8)
    given += [
        "backbone=transformers",
        f"backbone.name={tmp_path}/base",
        "backbone.pretrained=true",
        "backbone.tokenizer=bytes",
    ]
    given = [item for item in given if item.split("=")[0] not in {"trainer.epochs"}]
    overrides = [
        "benchmark=imdb_yelp",
        *given,
        *settings,
        *ways,
        f"data_root={tmp_path}",
        f"output_root={tmp_path}/runs",
    ]
    result = run(compose(overrides), experiment="test", overrides=overrides)
    prompts = [torch.tensor([40, 50, 60]), torch.tensor([101, 35])]
    ours = [result.network.generate([prompt], most=12, eos=1, pad=0)[0] for prompt in prompts]
    assert all(len(set(answer)) > 2 for answer in ours) and ours[0] != ours[1], ours  # they say something
    load = transformers.AutoModelForCausalLM.from_pretrained
    for model in (
        peft.PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "factors"),
        load(tmp_path / "whole"),
    ):
        for prompt, wanted in zip(prompts, ours, strict=True):
            found = model.generate(
                input_ids=prompt[None], max_new_tokens=12, do_sample=False, eos_token_id=1, pad_token_id=0
            )
            assert [token for token in found[0, len(prompt) :].tolist() if token != 1] == wanted
    plain = load(tmp_path / "base").generate(
        input_ids=prompts[0][None], max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert plain[0, 3:].tolist() != ours[0]  # the adapter has changed what is said


@pytest.mark.parametrize(
    ("adapter", "words"),
    [("none", "has no LoRA factors"), ("codyra", "merges its factors"), ("convlora", "has no LoRA factors")],
)
def test_an_adapter_that_cannot_be_taken_away_is_refused_before_any_work(adapter, words, tmp_path):
    with pytest.raises(RequestError, match=words):
        small_run(tmp_path, f"adapter={adapter}", f"export_adapter={tmp_path}/mine")
    with pytest.raises(RequestError, match="keeps a set of factors for every task"):
        small_run(tmp_path, "adapter=lora", "adapter.sharing=per_task", f"export_adapter={tmp_path}/mine")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("placement", ["device", "host"])
def test_a_run_on_a_gpu_gives_the_figures_of_the_cpu(placement, tmp_path):
    settings = ("adapter=hybrid", "adapter.rank=4", "optimizer.lr=0.01", f"trainer.data_placement={placement}")
    here, there = (quick(tmp_path, *settings, f"trainer.device={device}") for device in ("cpu", "cuda"))
    rows = [table(result.folder / "losses.csv") for result in (here, there)]
    for one, other in zip(*rows, strict=True):
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), abs=2e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_generation_on_a_gpu():
    network = language(tiny()).cuda()
    prompts = [torch.tensor([3, 4, 5]), torch.tensor([7])]
    found = network.generate(prompts, most=5, eos=1, pad=0)
    assert found == language(tiny()).generate(prompts, most=5, eos=1, pad=0)
