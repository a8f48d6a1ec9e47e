"""What samples are: images that are classified, or texts of which the next token is predicted."""

from __future__ import annotations

from omegaconf import DictConfig

from cl_runner.config.checks import import_target
from cl_runner.errors import RequestError
from cl_runner.modalities.modality import Modality

IMAGE, TEXT = "image", "text"
FITTING = {IMAGE: "backbone=small_cnn, resnet20 or clip_vit_b16", TEXT: "backbone=gpt2 or transformers"}


def modality_of(config: DictConfig) -> Modality:
    """The modality of a request: that of its benchmark, which its backbone must share.

    A class says it by its attribute `modality`; one that says nothing is of images.

    Raises:
        RequestError: the two differ.
    """
    kinds = {group: import_target(str(config[group]._target_), group) for group in ("benchmark", "backbone")}
    given, taken = (str(getattr(kinds[group], "modality", IMAGE)) for group in ("benchmark", "backbone"))
    if given != taken:
        name = config.backbone.get("name") or kinds["backbone"].__name__
        raise RequestError(
            f"backbone={name} takes {taken}s, and the benchmark {kinds['benchmark'].__name__} gives {given}s",
            f"choose {FITTING[given]}",
        )
    if given == TEXT:
        from cl_runner.modalities.texts import Texts

        return Texts(config)
    from cl_runner.modalities.images import Images

    return Images(config)
