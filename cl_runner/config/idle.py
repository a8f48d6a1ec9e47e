"""Keys that another choice puts out of use: typing one of them is refused, inheriting it is not."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from cl_runner.config.adapters import KEEPS_LAST, PLACED_NOWHERE
from cl_runner.config.held_out import holds_out, one_of_each
from cl_runner.config.idle_cache import of_cache
from cl_runner.config.idle_evaluation import WATCHED, Idle, of_evaluation

TEXT, ANSWER = "text", "answer"
TEXTS = "cl_runner.benchmarks.text."
OWN_TEXTS = f"{TEXTS}streams.TextDomains"


def idle_keys(config: DictConfig) -> list[Idle]:
    """Keys that another choice can put out of use: (key, whether it is, why, what would work)."""
    groups = (
        _of_adapter,
        _of_training,
        of_evaluation,
        of_cache,
        _of_checkpoints,
        _of_files,
        _of_backbone,
        _of_domains,
        _of_texts,
        _of_untrained,
    )
    return [item for group in groups for item in group(config)]


def _of_adapter(config: DictConfig) -> list[Idle]:
    adapter = config.adapter
    target = str(adapter._target_)
    return [
        (
            "placement",
            target in PLACED_NOWHERE,
            f"adapter={PLACED_NOWHERE.get(target)} places nothing",
            "drop it, or choose another adapter",
        ),
        (
            "adapter.linear_rank",
            "linear" not in config.placement.kinds,
            "no linear layer is placed",
            "choose placement=all or linears",
        ),
        (
            "adapter.lambda_order",
            adapter.get("training") == "random_rank",
            "the ordering penalty belongs to adapter.training=ordering",
            "set adapter.training=ordering",
        ),
        (
            "adapter.update",
            adapter.get("training") == "ordering",
            "only the random-rank training draws a component",
            "set adapter.training=random_rank",
        ),
        (
            "adapter.schedule_from",
            "rank_schedule" in adapter and not adapter.rank_schedule,
            "there is no adapter.rank_schedule",
            "set adapter.rank_schedule, for example [8,4,2]",
        ),
        (
            "adapter.eval_ranks_at",
            "eval_ranks" in adapter and not adapter.eval_ranks,
            "there are no adapter.eval_ranks",
            "set adapter.eval_ranks, for example [8,4,2]",
        ),
        (
            "adapter.task_inference",
            adapter.get("sharing") == "shared",
            "one shared set has no task to infer",
            "set adapter.sharing=per_task",
        ),
    ]


def _of_training(config: DictConfig) -> list[Idle]:
    benchmark, trainer = config.benchmark, config.trainer
    by_split = bool(benchmark.get("validation_split"))
    validated = holds_out(benchmark)
    alone = one_of_each(benchmark)
    validate = "set benchmark.validation_fraction=0.1"
    return [
        ("export", config.mode == "plan", "mode=plan trains no weights", "drop it"),
        ("export_adapter", config.mode == "plan", "mode=plan trains no weights", "drop it"),
        *((key, config.mode == "plan", "mode=plan trains nothing", "drop it") for key in WATCHED),
        ("trainer.epochs", trainer.iterations is not None, "trainer.iterations is set", "give one of the two"),
        ("trainer.epochs", trainer.task_epochs is not None, "trainer.task_epochs is set", "give one of the two"),
        (
            "trainer.restore_best",
            str(config.adapter._target_) in KEEPS_LAST,
            f"adapter={KEEPS_LAST.get(str(config.adapter._target_))} keeps the weights of the last epoch",
            "drop it",
        ),
        ("trainer.restore_best", not validated, "without a validation split no epoch is the best", validate),
        (
            "benchmark.validation_fraction",
            bool(alone) and not by_split and bool(benchmark.get("validation_fraction")),
            f"{alone} leaves nothing to hold out",
            "at least 2",
        ),
        (
            "benchmark.validation_fraction",
            by_split,
            "benchmark.validation_split=true validates on a part that the files give",
            "give one of the two",
        ),
        (
            "benchmark.split_seed",
            "per_class" in benchmark and not validated and not benchmark.per_class,
            "nothing is drawn from the training data",
            f"{validate}, or benchmark.per_class",
        ),
        (
            "benchmark.root",
            str(benchmark._target_).endswith(".SplitDigits"),
            "the digits come with scikit-learn",
            "drop it",
        ),
        (
            "trainer.label_smoothing",
            str(config.strategy._target_).endswith(".ICaRL"),
            "iCaRL brings a loss of its own",
            "drop it",
        ),
        (
            "strategy.decay_factor",
            config.strategy.get("variant") == "separate",
            "only EWC's online variant decays",
            "set strategy.variant=online",
        ),
    ]


def _of_checkpoints(config: DictConfig) -> list[Idle]:
    """Keys of checkpoints, and of the tracker that is told of them."""
    trainer, wandb = config.trainer, config.tracking.get("wandb")
    longest = max(trainer.task_epochs or [trainer.epochs])
    disabled = wandb is not None and wandb.mode == "disabled"
    counted = trainer.checkpoint_epochs is not None
    found = [
        (
            "checkpoint",
            config.mode != "eval",
            f"mode={config.mode} evaluates no run folder again",
            "add mode=eval, or resume=FOLDER to go on with a run",
        ),
        (
            "trainer.checkpoint_epochs",
            counted and trainer.iterations is not None,
            f"trainer.iterations={trainer.iterations} counts no epochs",
            "set trainer.checkpoint_minutes; after every task there is a checkpoint anyway",
        ),
        (
            "trainer.checkpoint_epochs",
            counted and trainer.iterations is None and trainer.checkpoint_epochs > longest,
            f"no task is trained for more than {longest} epoch{'s' * (longest > 1)}",
            f"at most {longest}; after every task there is a checkpoint anyway",
        ),
    ]
    keys = wandb if disabled else ()
    return found + [
        (f"tracking.wandb.{key}", key != "mode", "tracking.wandb.mode=disabled tells nobody", "drop one of the two")
        for key in keys
    ]


def _of_files(config: DictConfig) -> list[Idle]:
    """What only images in files of their own can need."""
    target = str(config.benchmark._target_)
    in_one = target.rpartition(".")[2] in ("SplitDigits", "SplitMNIST", "SplitCIFAR10", "SplitCIFAR100")
    what = "texts" if target.startswith(TEXTS) else "this benchmark's images"
    return [
        (
            "on_bad_sample",
            target.startswith(TEXTS) or in_one,
            f"{what} do not lie in a file each",
            "drop it; a damaged file of data is always refused by name",
        )
    ]


def _of_domains(config: DictConfig) -> list[Idle]:
    benchmark, backbone = config.benchmark, config.backbone
    if "probe_domains" not in benchmark:
        return []
    prompted = "templates" in backbone
    return [
        (
            "benchmark.order",
            benchmark.domains is not None,
            "benchmark.domains gives the order",
            "drop one of the two",
        ),
        (
            "benchmark.prompts",
            not prompted or backbone.templates != "dataset",
            f"backbone.templates={backbone.templates} says the prompts"
            if prompted
            else "this backbone reads no prompts",
            "drop it, or use backbone=clip_vit_b16 with backbone.templates=dataset",
        ),
        (
            "benchmark.cache",
            not benchmark.cache_gb,
            "benchmark.cache_gb=0 keeps decoded images in memory",
            "set benchmark.cache_gb, in GB",
        ),
    ]


def _of_backbone(config: DictConfig) -> list[Idle]:
    backbone = config.backbone
    return [
        (
            "backbone.name",
            bool(backbone.get("config")) and "templates" in backbone,
            "backbone.config says the network",
            "give one of the two",
        )
    ]


def _of_texts(config: DictConfig) -> list[Idle]:
    benchmark = config.benchmark
    held = _held(benchmark)
    no_answers, no_texts = held == {TEXT}, held == {ANSWER}
    return [
        (
            "trainer.channels_last",
            "tokenizer" in config.backbone,
            "a language model has no images whose channels could come last",
            "drop it",
        ),
        (
            "benchmark.split_seed",
            str(benchmark._target_).startswith(TEXTS) and not _draws(benchmark),
            "all texts of every file are used, and nothing is drawn",
            "drop it, or set benchmark.n_train, n_test or validation_fraction",
        ),
        ("benchmark.prompt_length", no_answers, "every domain holds texts", "use benchmark.length"),
        ("benchmark.answer_length", no_answers, "every domain holds texts", "use benchmark.length"),
        (
            "benchmark.length",
            no_texts,
            "every domain holds prompts with answers",
            "use benchmark.prompt_length and answer_length",
        ),
    ]


def _held(benchmark: DictConfig) -> set[str | None]:
    """What the domains of `text_domains` hold, None where only the file says it; of other benchmarks nothing."""
    if benchmark._target_ != OWN_TEXTS:
        return set()
    return {_kind(domain) for domain in benchmark.domains}


def _kind(domain: Any) -> str | None:
    """What a domain holds, as far as its file's name or its score says it."""
    if not isinstance(domain, DictConfig):  # refused by the benchmark, which says what a domain is
        return None
    if str(domain.get("train")).lower().removesuffix(".gz").endswith(".txt"):
        return TEXT
    return ANSWER if domain.get("metric") not in (None, "token_accuracy") else None


def _draws(benchmark: DictConfig) -> bool:
    """Whether some text is drawn from a file: for a part that takes a few, for validation, or for a test."""
    if benchmark.n_train is not None or benchmark.n_test is not None:
        return True
    if benchmark.validation_fraction and not benchmark.get("validation_split"):
        return True
    own = benchmark.domains if benchmark._target_ == OWN_TEXTS else ()
    return any(not isinstance(domain, DictConfig) or domain.get("test") is None for domain in own)


def _of_untrained(config: DictConfig) -> list[Idle]:
    """What gradient descent takes and these strategies do not use."""
    strategy = str(config.strategy._target_).rpartition(".")[2]
    descends = strategy not in ("ZeroShot", "RAIL")
    keys = [
        "trainer.epochs",
        "trainer.iterations",
        "trainer.task_epochs",
        "trainer.label_smoothing",
        "trainer.patience",
        "trainer.restore_best",
    ]
    keys += [
        "backbone.train_logit_scale",
        "trainer.reset_optimizer",
        "trainer.checkpoint_epochs",
        "trainer.checkpoint_minutes",
        "trainer.log_every",
        "trainer.trace_steps",
        "on_nan",
        "optimizer",
        "scheduler",
        "benchmark.augmentation",
    ]
    if strategy == "ZeroShot":
        keys += ["benchmark.shots", "benchmark.validation_fraction", "benchmark.validation_split"]
    label = {"ZeroShot": "zero_shot", "RAIL": "rail"}.get(strategy, strategy)
    says = f"strategy={label} trains nothing by gradient descent"
    return [(key, not descends, says, "drop it, or choose strategy=naive") for key in keys]
