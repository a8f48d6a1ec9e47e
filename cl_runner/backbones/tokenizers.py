"""How texts become token ids: transformers' tokenizers by folder or name, and one of bytes that needs no file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from cl_runner.backbones.backbone import first_line
from cl_runner.backbones.configurations import PATH_STARTS, from_hub, library, quiet
from cl_runner.errors import RequestError, shown
from cl_runner.tokens import Tokenizer

BYTES = "bytes"
ENDS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>")  # where a folder does not say which it is
TOKENIZER, FINGERPRINT, SOURCE = "tokenizer", "tokenizer_fingerprint", "tokenizer_source"  # of a file's metadata
FOLDER = "folder"  # the source of a tokenizer that is known by no name
_PROBE = "a"


class ByteTokenizer:
    """A token a byte of UTF-8, numbered as ByT5 does (Xue et al., 2022): 0 pad, 1 end, 2 unknown, then byte + 3."""

    name = BYTES
    vocabulary = 259
    start: tuple[int, ...] = ()
    eos = 1
    pad = 0
    fingerprint = "utf8-bytes+3"
    _first = 3

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; half of a surrogate pair, which has no UTF-8, becomes a question mark."""
        return [[byte + self._first for byte in text.encode("utf-8", errors="replace")] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        found = [int(item) - self._first for item in ids]
        return bytes(item for item in found if 0 <= item < 256).decode("utf-8", errors="replace")


class LibraryTokenizer:
    """A tokenizer of transformers.

    Special tokens that stand in a text as such (``<|endoftext|>``) become the special token, as everywhere in
    transformers; none is added.

    Args:
        tokenizer: transformers' object.
        name: as `backbone.tokenizer` says it.
        request: the key and its value, for messages.

    Raises:
        RequestError: it has no token that ends a text.
    """

    def __init__(self, tokenizer: Any, name: str, request: str) -> None:
        self.name = name
        self._tokenizer = tokenizer
        ids = tokenizer.get_vocab()
        self.vocabulary = max(len(tokenizer), 1 + max(ids.values(), default=0))
        eos = tokenizer.eos_token_id
        if eos is None:
            eos = next((ids[word] for word in ENDS if word in ids), None)
        if eos is None:
            raise RequestError(f"{request} has no token that ends a text", "set eos_token in tokenizer_config.json")
        self.eos = int(eos)
        self.pad = self.eos if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self.start = self._start()
        self.fingerprint = self._fingerprint(ids)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens around it."""
        if not texts:
            return []
        with quiet():  # a text longer than the model is cut or packed later
            found: list[list[int]] = self._tokenizer(
                list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
            )["input_ids"]
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens, no space changed."""
        special = {self.eos, self.pad, *self.start}
        kept = [int(item) for item in ids if int(item) not in special]
        return str(self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _start(self) -> tuple[int, ...]:
        """What the tokenizer itself puts in front of a text."""
        with quiet():
            whole = list(self._tokenizer(_PROBE)["input_ids"])
        bare = self.encode([_PROBE])[0]
        for place in range(len(whole) - len(bare) + 1):
            if whole[place : place + len(bare)] == bare:
                return tuple(whole[:place])
        return ()

    def _fingerprint(self, ids: dict[str, int]) -> str:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is not None:
            content = json.loads(backend.to_str())  # without padding and truncation, which every call sets
        else:
            rules = [type(self._tokenizer).__name__, getattr(self._tokenizer, "bpe_ranks", None)]
            content = {"vocabulary": ids, "rules": str(rules)}
        content = {"tokenizer": content, "start": self.start, "eos": self.eos, "pad": self.pad}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_tokenizer(choice: str, key: str = "backbone.tokenizer") -> Tokenizer:
    """The tokenizer that a key names.

    Args:
        choice: bytes, a folder with a tokenizer's files, or a name known to the hub.
        key: for messages.

    Raises:
        RequestError: it is not there, or cannot be read.
    """
    if choice == BYTES:
        return ByteTokenizer()
    request, folder = f"{key}={choice}", Path(choice).expanduser()
    if folder.is_dir() or choice.startswith(PATH_STARTS):
        return LibraryTokenizer(_from_folder(folder, request), choice, request)

    def read(local: bool) -> Any:
        with quiet():
            return library().AutoTokenizer.from_pretrained(choice, local_files_only=local, trust_remote_code=False)

    hint = f"a folder you have: {key}=FOLDER, or {key}=bytes, which needs no file"
    return LibraryTokenizer(from_hub(read, choice, request, hint), choice, request)


def _from_folder(folder: Path, request: str) -> Any:
    hint = "a folder with tokenizer.json, or with vocab.json and merges.txt"
    if not folder.is_dir():
        raise RequestError(f"{request}: no such folder", hint)
    whole, apart = folder / "tokenizer.json", (folder / "vocab.json", folder / "merges.txt")
    try:
        with quiet():
            return library().AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a folder without a configuration, or with a damaged file
        reason = error
    try:
        with quiet():
            if whole.is_file():
                return library().PreTrainedTokenizerFast(tokenizer_file=str(whole))
            if all(file.is_file() for file in apart):
                return library().GPT2Tokenizer(vocab=str(apart[0]), merges=str(apart[1]))
    except Exception as error:  # damaged
        reason = error
    raise RequestError(f"{request}: cannot be read as a tokenizer: {shown(first_line(reason), 160)}", hint) from reason


def record_tokenizer(model: nn.Module, tokenizer: Tokenizer) -> None:
    """Notes in a language model's ``metadata``, which `export` writes, what its texts are read with.

    Of a folder only its last name is noted: where it lies is this machine's affair, and the fingerprint tells whether
    another folder holds the same tokenizer.
    """
    folder = Path(tokenizer.name).expanduser()
    local = tokenizer.name != BYTES and (folder.is_dir() or tokenizer.name.startswith(PATH_STARTS))
    noted = {
        TOKENIZER: folder.resolve().name if local else tokenizer.name,
        SOURCE: FOLDER if local else "name",
        FINGERPRINT: tokenizer.fingerprint,
    }
    model.metadata = {**getattr(model, "metadata", {}), **noted}  # type: ignore[assignment,dict-item]


def recorded_tokenizer(metadata: Mapping[str, str], place: Path) -> Tokenizer | None:
    """The tokenizer that weights were trained with; None where they do not say.

    Args:
        metadata: of the weights.
        place: their file or folder, for messages.

    Raises:
        RequestError: it is to be had from its folder alone, or cannot be read.
    """
    if TOKENIZER not in metadata:
        return None
    name = metadata[TOKENIZER]
    if metadata.get(SOURCE) == FOLDER:
        raise RequestError(
            f"backbone.tokenizer=null: {place} was trained with the tokenizer of a folder '{name}' "
            f"(fingerprint {metadata.get(FINGERPRINT, '')[:12]}), and does not bring it",
            f"say where it is: backbone.tokenizer=PATH/{name}",
        )
    return load_tokenizer(name, f"backbone.tokenizer (as {place} says)")
