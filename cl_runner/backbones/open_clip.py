"""Every network of open_clip, by name or by a configuration file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.backbones.backbone import Backbone, first_line
from cl_runner.backbones.clip import CLIPClassifier
from cl_runner.backbones.weights import published, read_metadata, read_state
from cl_runner.errors import RequestError, nearest
from cl_runner.optional import library
from cl_runner.view import View

HEAD_WIDTH = 64  # of both towers' attention, as in CLIP
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # numbers in OpenAI's own archives


class OpenCLIP(Backbone):
    """A vision-language network of ``open_clip``, such as ``ViT-B-16``, with a zero-shot head.

    Args:
        name: open_clip's name of the network.
        config: an open_clip model configuration (JSON) of your own, instead of a name.
        pretrained: False (random), True (the published weights that ``weights`` names), or the path of a weights file
            with open_clip's names (.safetensors, .pt, .pth).
        weights: open_clip's tag of published weights; it also says how images are prepared. None: openai where there
            is such a tag, else the first.
        layers: transformer blocks of either tower, instead of the configuration's.
        width: width of either tower and of the embedding, instead of the configuration's; a multiple of 64.
        patch_size: pixels a side, instead of the configuration's.
        quick_gelu: x * sigmoid(1.702 x) in place of GELU, as OpenAI trained; None: as the weights' tag says.
        templates: dataset (the prompts of each domain), simple (7) or openai (80 prompts, averaged).
        frozen: towers that never train: vision, text.
        train_logit_scale: whether the logit scale trains.

    Raises:
        RequestError: the name, the configuration or the weights are not there, or do not fit.
    """

    def __init__(
        self,
        *,
        name: str = "",
        config: str | None = None,
        pretrained: bool | str = False,
        weights: str | None = None,
        layers: int | None = None,
        width: int | None = None,
        patch_size: int | None = None,
        quick_gelu: bool | None = None,
        templates: str = "dataset",
        frozen: Sequence[str] = (),
        train_logit_scale: bool = False,
    ) -> None:
        self.name, self.config, self.pretrained, self.weights = name, config, pretrained, weights
        self.layers, self.width, self.patch_size, self.quick_gelu = layers, width, patch_size, quick_gelu
        self.templates = templates
        self.frozen, self.train_logit_scale = tuple(frozen), train_logit_scale

    def view(self, image_size: int | None = None) -> View:
        """How the network wants to see images; at its own size unless another is asked for."""
        size = image_size or self._settled()["vision_cfg"].get("image_size", 224)
        seen = self._seen()
        return View(
            size=size if isinstance(size, int) else int(size[0]),
            mean=tuple(seen["mean"]),
            std=tuple(seen["std"]),
            interpolation=seen["interpolation"],
            resize=seen["resize"],
            fill=seen["fill"],
        )

    def _seen(self) -> dict[str, Any]:
        """How images are prepared besides their size: as the weights' file says, their tag, or open_clip by default."""
        recorded = self._recorded().get("view")
        if recorded and self.weights is None:
            return json.loads(recorded)  # type: ignore[no-any-return]
        clip = _library()
        found = {} if self.config else clip.get_pretrained_cfg(self.name, self._tag() or "")
        defaults = clip.transform.PreprocessCfg()
        return {
            "mean": list(found.get("mean") or defaults.mean),
            "std": list(found.get("std") or defaults.std),
            "interpolation": found.get("interpolation") or defaults.interpolation,
            "resize": found.get("resize_mode") or defaults.resize_mode,
            "fill": defaults.fill_color,
        }

    def _recorded(self) -> dict[str, str]:
        """What a weights file of our own says of the network besides its weights."""
        file = Path(self.pretrained).expanduser() if isinstance(self.pretrained, str) else None
        return read_metadata(file) if file is not None and file.is_file() else {}

    def build(self, *, in_channels: int, image_size: int, n_classes: int, load_weights: bool = True) -> nn.Module:
        """Builds the network and its head; see `Backbone.build`."""
        if in_channels != 3:
            raise RequestError(
                f"backbone={self._label()} sees colour images, and the benchmark has {in_channels} channel",
                "benchmark=mtil benchmark.domains=[...] gives every image as colour; or choose another backbone",
            )
        settings = self._settled()
        settings["vision_cfg"]["image_size"] = image_size
        network = self._construct(settings)
        if load_weights and self.pretrained:
            path = self._published() if self.pretrained is True else Path(self.pretrained)
            _load(network, path)
        return CLIPClassifier(
            network,
            tokenize=self._tokenizer(),
            n_classes=n_classes,
            width=int(settings["embed_dim"]),
            view=self.view(image_size),
            frozen=self.frozen,
            train_logit_scale=self.train_logit_scale,
            metadata={"quick_gelu": json.dumps(bool(settings.get("quick_gelu"))), "view": json.dumps(self._seen())},
        )

    def prompts(self, class_name: str, dataset: Sequence[str]) -> list[str]:
        """The prompts of a class.

        Args:
            class_name: its name.
            dataset: the templates of its domain.
        """
        if self.templates == "dataset":
            return [template.replace("{}", class_name) for template in dataset]
        clip = _library()
        known = {"simple": clip.SIMPLE_IMAGENET_TEMPLATES, "openai": clip.OPENAI_IMAGENET_TEMPLATES}
        if self.templates not in known:
            raise RequestError(
                f"backbone.templates={self.templates}: there is no such set of prompts", "dataset, simple or openai"
            )
        return [template(class_name) for template in known[self.templates]]

    def _label(self) -> str:
        return self.name or str(self.config)

    def _tag(self) -> str | None:
        """The tag of the published weights, checked."""
        tags = _library().list_pretrained_tags_by_model(self.name) if not self.config else []
        if self.weights is not None and self.weights not in tags:
            raise RequestError(
                f"backbone.weights={self.weights}: open_clip has no such weights of {self._label()}",
                nearest(self.weights, tags) if tags else "set backbone.pretrained to the path of a weights file",
            )
        return self.weights or ("openai" if "openai" in tags else next(iter(tags), None))

    def _settled(self) -> dict[str, Any]:
        """The configuration with what was asked for put in."""
        clip = _library()
        if self.config:
            settings = _read_config(Path(self.config).expanduser())
        else:
            found = clip.get_model_config(self.name) if ":" not in self.name else None
            if found is None:
                raise RequestError(
                    f"backbone.name={self.name}: open_clip has no such network", nearest(self.name, clip.list_models())
                )
            settings = found
        vision, text = settings["vision_cfg"], settings["text_cfg"]
        own = isinstance(vision.get("layers"), int) and isinstance(text.get("layers"), int)
        if (self.layers or self.width or self.patch_size) and not own:
            raise RequestError(
                f"backbone.layers, width and patch_size: {self._label()} is not made of CLIP's own two towers",
                "leave them out, or choose a ViT such as backbone.name=ViT-B-16",
            )
        if self.layers:
            vision["layers"] = text["layers"] = self.layers
        if self.width:
            if self.width % HEAD_WIDTH:
                raise RequestError(
                    f"backbone.width={self.width}: attention heads are {HEAD_WIDTH} wide", "a multiple of 64"
                )
            vision["width"] = text["width"] = settings["embed_dim"] = self.width
            vision["head_width"], text["heads"] = HEAD_WIDTH, self.width // HEAD_WIDTH
        if self.patch_size:
            vision["patch_size"] = self.patch_size
        gelu, recorded = self.quick_gelu, self._recorded().get("quick_gelu")
        if recorded is not None:
            trained = bool(json.loads(recorded))
            if gelu is not None and gelu != trained:
                raise RequestError(
                    f"backbone.quick_gelu={str(gelu).lower()}: {self.pretrained} was trained with {recorded}",
                    "leave backbone.quick_gelu out; the file says it",
                )
            gelu = trained
        if gelu is None and self.pretrained is True and not self.config:
            gelu = bool(clip.get_pretrained_cfg(self.name, self._tag() or "").get("quick_gelu", False))
        if gelu is not None:
            settings["quick_gelu"] = gelu
        return settings

    def _construct(self, settings: dict[str, Any]) -> nn.Module:
        clip = _library()
        size, patch = settings["vision_cfg"]["image_size"], settings["vision_cfg"].get("patch_size")
        if isinstance(size, int) and isinstance(patch, int) and size < patch:
            raise RequestError(
                f"benchmark.image_size={size} is smaller than one patch of {patch} pixels",
                f"at least {patch}, or a smaller backbone.patch_size",
            )
        options = dict(settings)
        custom = bool(options.pop("custom_text", False))
        base = "ViT-B-32" if self.config else self.name
        try:
            with _quiet():
                network: nn.Module = clip.create_model(
                    base, pretrained=None, load_weights=False, pretrained_text=False, force_custom_text=custom,
                    device=torch.get_default_device(), **options,
                )  # fmt: skip
        except Exception as error:  # open_clip's constructors assert and raise in their own ways
            key = f"backbone.config={self.config}" if self.config else f"backbone.name={self.name}"
            raise RequestError(
                f"{key} cannot be built: {first_line(error)}",
                "check layers, width and patch_size against the configuration, and what else has to be installed",
            ) from error
        return network

    def _tokenizer(self) -> Callable[[Sequence[str]], Tensor]:
        clip = _library()
        tokenizer: list[Any] = []
        context = self._settled()["text_cfg"].get("context_length", 77)

        def tokenize(prompts: Sequence[str]) -> Tensor:
            if not tokenizer:  # made when the first prompt comes: a plan has none
                with _quiet():
                    tokenizer.append(clip.get_tokenizer("ViT-B-32" if self.config else self.name))
            ids: Tensor = tokenizer[0](list(prompts), context_length=context)
            return ids

        return tokenize

    def _published(self) -> Path:
        """Returns the file of published weights, downloaded into open_clip's cache where it is not there yet."""
        clip = _library()
        tag = self._tag()
        if tag is None:
            raise RequestError(
                f"backbone.pretrained=true: open_clip has no published weights of {self._label()}",
                "name a weights file you have: backbone.pretrained=PATH",
            )
        try:
            with _quiet():
                found = clip.get_pretrained_cfg(self.name, tag)
                if found.get("url") and not found.get("hf_hub"):
                    return published(str(found["url"]), Path("~/.cache/clip").expanduser())
                return Path(clip.download_pretrained(found))
        except RequestError:
            raise
        except Exception as failure:  # no network, no space, a proxy's page instead of the file
            raise RequestError(
                f"backbone.pretrained=true: the weights '{tag}' of {self.name} cannot be had ({first_line(failure)})",
                "run once where there is a network, or name a weights file you have: backbone.pretrained=PATH",
            ) from failure


def _library() -> Any:
    return library("open_clip", "backbone=open_clip", "clip", package="open_clip_torch")


def _read_config(path: Path) -> dict[str, Any]:
    request = f"backbone.config={path}"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{request} cannot be read: {first_line(error)}", "an open_clip configuration") from error
    found = found.get("model_cfg", found) if isinstance(found, dict) else found
    wanted = ("embed_dim", "vision_cfg", "text_cfg")
    lacking = [key for key in wanted if not isinstance(found, dict) or key not in found]
    if lacking:
        raise RequestError(f"{request} has no {', '.join(lacking)}", "see open_clip's model_configs for the keys")
    settings: dict[str, Any] = found
    return settings


def _load(network: nn.Module, path: Path) -> None:
    """Loads a weights file: open_clip's names, other image sizes and contexts interpolated, nothing unpickled."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

    request = f"backbone.pretrained={path}"
    state = {key: value.float() if value.is_floating_point() else value for key, value in read_state(path).items()}
    state = {key: value for key, value in state.items() if key not in _NOT_WEIGHTS}
    try:
        state = convert_state_dict(network, state)
        if "positional_embedding" in state and not hasattr(network, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        for name in ("logit_scale", "logit_bias"):
            own = getattr(network, name, None)
            if name in state and own is not None:
                state[name] = state[name].reshape(own.shape)
        with _quiet():
            resize_pos_embed(state, network)
            resize_text_pos_embed(state, network)
        network.load_state_dict(state)
    except Exception as error:
        lines = " ".join(str(error).split())
        raise RequestError(
            f"{request}: {lines[:300]}",
            "the file is of another network: check backbone.name, layers, width and patch_size",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps open_clip's remarks on random weights, which were asked for, off the screen."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)
