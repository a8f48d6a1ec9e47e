"""Every causal language model of transformers: by name, from a local folder, or fresh from a configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from cl_runner.backbones.configurations import (
    NAMES,
    folder_configuration,
    from_hub,
    model_types,
    named_configuration,
    read_settings,
    resized,
)
from cl_runner.backbones.language_weights import (
    check_causal,
    check_folder,
    checkpoint_blocks,
    fresh,
    loaded,
    longest_sequence,
    vocabulary_of,
)
from cl_runner.backbones.tokenizers import (
    BYTES,
    FINGERPRINT,
    SOURCE,
    TOKENIZER,
    ByteTokenizer,
    load_tokenizer,
    recorded_tokenizer,
)
from cl_runner.backbones.weights import SUFFIXES, read_metadata, read_state
from cl_runner.errors import RequestError
from cl_runner.tokens import Tokenizer

NOTHING: Mapping[str, Any] = MappingProxyType({})
CONFIGURATION = "configuration"  # of a file's metadata: transformers' configuration (JSON)
FULL_VOCABULARY = 0.9  # published models round their vocabulary up; none leaves a tenth of it without a token


class Transformers:
    """A causal language model of ``transformers``, the object of that library itself, under its own module names.

    Its configuration is that of the weights where they bring one, else that of the name: a folder with config.json,
    one shipped with this package (GPT-2 in all sizes, Llama-2-7b), a model type (its default configuration), or the
    hub. No code that comes with a model is ever run; weights are read as safetensors, or unpickled as tensors only.

    Args:
        name: see above.
        pretrained: False (random), True (the weights of that name from the hub), or a path: a folder of
            ``save_pretrained``, or a weights file such as ``export=FILE.safetensors`` writes.
        layers: transformer blocks, instead of the configuration's.
        width: of the hidden states, instead of the configuration's; the size of a head is kept where it divides, the
            MLP stays in proportion.
        tokenizer: a folder, a name, or bytes (no file needed); None: the model's own.
        options: further keys of the configuration, such as ``{resid_pdrop: 0.0}``.
        vocab_size: token ids that the model knows; None: the configuration's, or as many as there are bytes and special
            tokens where the tokenizer is bytes and the weights are random.
        gradient_checkpointing: keeps only the inputs of the blocks and computes the rest again on the way back.
        dtype: float32 or bfloat16, in which the base's weights are kept; adapters' factors are float32 in both.

    Raises:
        RequestError: name, weights or tokenizer cannot be had, or do not fit.
    """

    modality = "text"

    def __init__(
        self,
        *,
        name: str = "",
        pretrained: bool | str = False,
        layers: int | None = None,
        width: int | None = None,
        tokenizer: str | None = None,
        options: Mapping[str, Any] = NOTHING,
        vocab_size: int | None = None,
        gradient_checkpointing: bool = False,
        dtype: str = "float32",
    ) -> None:
        self.name, self.pretrained, self.layers, self.width = name, pretrained, layers, width
        self.tokenizer, self.options, self.vocab_size = tokenizer, dict(options), vocab_size
        self.gradient_checkpointing, self.dtype = gradient_checkpointing, dtype

    # ------------------------------------------------------------------------------------------ questions

    def configuration(self) -> Any:
        """transformers' configuration of the network, in the size that was asked for.

        Raises:
            RequestError: there is none, or weights of another size were asked for.
        """
        recorded = self._recorded()
        if recorded is None and not self.name and self._place() is not None:
            raise RequestError(
                f"backbone.pretrained={self._place()} does not say what network it is of, and backbone.name is empty",
                "a folder of save_pretrained, a file that export= wrote, or backbone.name=NAME besides",
            )
        base = named_configuration(self.name) if recorded is None else recorded
        options = dict(self.options)
        vocabulary = self.vocab_size
        if vocabulary is None and self.tokenizer == BYTES and not self.pretrained:
            vocabulary = ByteTokenizer.vocabulary
        if vocabulary is not None:
            if "vocab_size" in options:
                raise RequestError("backbone.vocab_size and backbone.options.vocab_size are one key", "leave one out")
            options["vocab_size"] = vocabulary
        if self.pretrained and (recorded is not None or self.pretrained is True):
            self._same_size(base)
        return resized(base, self._request(), layers=self.layers, width=self.width, options=options)

    def positions(self) -> int | None:
        """Tokens of the longest sequence; None where the configuration sets no limit."""
        return longest_sequence(self.configuration())

    def read_tokenizer(self) -> Tokenizer:
        """The tokenizer: as asked for, else the one that the weights name, else the model's own."""
        if self.tokenizer is not None:
            return load_tokenizer(self.tokenizer)
        place = self._place()
        if place is not None and place.is_dir() and any(place.glob("tokenizer*")):
            return load_tokenizer(str(place))
        recorded = None if place is None else recorded_tokenizer(self._metadata(), place)
        if recorded is not None:
            return recorded
        if self.name not in NAMES and (not self.name or self.name in model_types()):
            raise RequestError(
                f"backbone.tokenizer=null: {self._label() or 'the model'} brings no tokenizer of its own",
                "name one: backbone.tokenizer=FOLDER, a name, or bytes (needs no file)",
            )
        return load_tokenizer(self.name)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuses a tokenizer whose ids mean nothing, or something else, to the model.

        Raises:
            RequestError: its ids go beyond the model's vocabulary, or the pretrained weights know another tokenizer.
        """
        known = vocabulary_of(self.configuration())
        message = f"backbone.tokenizer={tokenizer.name}: a tokenizer that does not match the model: "
        if tokenizer.vocabulary > known:
            raise RequestError(
                f"{message}its ids are 0 to {tokenizer.vocabulary - 1}, and {self._label()} knows {known} tokens",
                "use the model's own tokenizer"
                if self.pretrained
                else f"set backbone.vocab_size={tokenizer.vocabulary}, or use the model's own tokenizer",
            )
        if not self.pretrained:
            return
        recorded = self._metadata()
        if FINGERPRINT in recorded:
            if recorded[FINGERPRINT] != tokenizer.fingerprint:
                raise RequestError(
                    f"{message}{self._label()} was trained with another one, '{recorded.get(TOKENIZER, 'unnamed')}' "
                    f"(fingerprint {recorded[FINGERPRINT][:12]}, and this one's is {tokenizer.fingerprint[:12]})",
                    "use that tokenizer, the very same files",
                )
        elif tokenizer.vocabulary < FULL_VOCABULARY * known:
            raise RequestError(
                f"{message}it has {tokenizer.vocabulary} tokens, and the weights of {self._label()} were trained with "
                f"{known}",
                "use the model's own tokenizer, or random weights: backbone.pretrained=false",
            )

    # ------------------------------------------------------------------------------------------- building

    def build_language_model(self, *, load_weights: bool = True) -> nn.Module:
        """Builds the network; its random weights come from torch's global generator alone.

        It gets an attribute ``metadata``, what an exported file says besides its weights: the configuration, and
        the tokenizer once `record_tokenizer` has been told.

        Args:
            load_weights: False never reads or downloads weights (``mode=plan``).

        Raises:
            RequestError: see the class.
        """
        loads = bool(load_weights and self.pretrained)
        place = self._place() if loads else None
        if place is not None and not place.is_dir():
            state = read_state(place)  # first of all, it refuses a path where nothing is
        elif place is not None:
            check_folder(place)
        config = self.configuration()
        source = f"backbone.pretrained={place or self.name}"
        if not loads:
            model = fresh(config, self.dtype, self._request())
        elif place is not None and not place.is_dir():
            model = loaded(None, config, self.dtype, source, state=state)
        elif place is not None:
            model = loaded(str(place), config, self.dtype, source, local_files_only=True)
        else:
            model = from_hub(
                lambda local: loaded(self.name, config, self.dtype, source, local_files_only=local), self.name,
                f"backbone.pretrained=true: {self.name}", "name a folder or file you have: backbone.pretrained=PATH",
            )  # fmt: skip
        exported = json.loads(config.to_json_string(use_diff=False)) | {"architectures": [type(model).__name__]}
        model.config.use_cache = False  # keys and values are kept where text is generated, and nowhere else
        if self.gradient_checkpointing:
            checkpoint_blocks(model)
        planned = any(item.is_meta for item in model.parameters())
        if not planned or self.layers or self.width or self.options:  # it takes a plan seconds, for little
            check_causal(model, self._request())
        kept = (TOKENIZER, FINGERPRINT, SOURCE) if loads else ()
        recorded = {key: value for key, value in self._metadata().items() if key in kept}
        model.metadata = {"format": "pt", CONFIGURATION: json.dumps(exported), **recorded}
        return model.train()  # type: ignore[no-any-return]

    # --------------------------------------------------------------------------------------------- inside

    def _request(self) -> str:
        place = self._place()
        return f"backbone.pretrained={place}" if place is not None and not self.name else f"backbone.name={self.name}"

    def _label(self) -> str:
        return str(self._place() or self.name)

    def _place(self) -> Path | None:
        """Where the weights are on this machine; None for those of the hub, and for random ones."""
        if isinstance(self.pretrained, str):
            return Path(self.pretrained).expanduser()
        folder = Path(self.name).expanduser()
        return folder if self.pretrained and (folder / "config.json").is_file() else None

    def _metadata(self) -> dict[str, str]:
        place = self._place()
        if place is None:
            return {}
        file = place / "model.safetensors" if place.is_dir() else place
        return read_metadata(file) if file.is_file() else {}

    def _recorded(self) -> Any:
        """The configuration that the weights bring; None where they bring none."""
        place = self._place()
        request = f"backbone.pretrained={place}"
        if place is None or not place.exists():
            return None
        if place.is_dir():
            found = folder_configuration(place, request) if (place / "config.json").is_file() else None
        else:
            if place.suffix not in SUFFIXES:
                return None  # reading it will say so
            content = self._metadata().get(CONFIGURATION)
            found = None if content is None else read_settings(_parsed(content, request), request)
        if found is None:
            return None
        named = named_configuration(self.name, online=False) if self.name else None
        if named is not None and named.model_type != found.model_type:
            raise RequestError(
                f"{request} holds a {found.model_type}, and backbone.name={self.name} is a {named.model_type}",
                f"choose a name of that kind, such as backbone.name={found.model_type}",
            )
        return found

    def _same_size(self, config: Any) -> None:
        """Refuses a size that pretrained weights do not have."""
        sizes = {"layers": "num_hidden_layers", "width": "hidden_size", "vocab_size": "vocab_size"}
        for key, name in sizes.items():
            wanted, found = getattr(self, key), getattr(config.get_text_config(), name, None)
            if wanted is not None and found is not None and wanted != found:
                source = self.name if self.pretrained is True else self.pretrained
                raise RequestError(
                    f"backbone.{key}={wanted}: the weights of {source} have {key}={found}",
                    f"leave backbone.{key} out, or take random weights: backbone.pretrained=false",
                )


def _parsed(content: str, request: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise RequestError(f"{request}: its configuration is damaged", "write the file again") from error
