"""GGUF files, as llama.cpp, Ollama and LM Studio keep models: looked over in milliseconds, dequantised once.

Owns what is refused before anything is loaded (a cut or damaged file, an architecture that can't be read) and the copy of the
weights in the Hugging Face layout, an artifact of the store. Weights and tokenizer are read by transformers; quantises nothing.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import DamagedError, EngineError
from caiflow.engine.identity import digest
from caiflow.engine.store.artifacts import Store
from caiflow.engine.store.file_digests import file_digest

if TYPE_CHECKING:
    from caiflow.engine.llm.base import ModelSource

READABLE = (
    "bloom", "falcon", "gemma2", "gemma3", "gemma4", "gpt-oss", "gpt2", "lfm2", "llama", "mamba", "minimax-m2", "nemotron",
    "phi3", "qwen2", "qwen2moe", "qwen3", "qwen35", "qwen35moe", "qwen3moe", "stablelm", "starcoder2",
)  # fmt: skip
"""The architectures, as GGUF files name them, whose causal LMs transformers reads."""
UNPACK_S = 3600.0
"""Longest wait for another process that is dequantising the same file."""
_LAYOUT = 1
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_WANTED = ("general.architecture", "general.alignment", "split.count", "tokenizer.ggml.pre")
_DIGIT_BY_DIGIT = ("smollm", "starcoder")
"""Rules, as GGUF files name them, by which each digit stands alone and texts are divided as GPT-2 does otherwise."""


def inspect(file: Path) -> str:
    """Return the architecture of a GGUF file, having gone through all of it but the weights' values.

    Raises:
        EngineError: kind `load`: it is cut, damaged, one part of several, or of an architecture that can't be read.
    """
    entries = _entries(file)
    architecture = str(entries.get("general.architecture", ""))
    if entries.get("split.count", 1) not in (0, 1):
        raise EngineError(
            f"{file}: one of {entries['split.count']} parts of a model",
            "join them first: llama-gguf-split --merge FIRST_PART WHOLE.gguf",
            kind="load",
        )
    if architecture not in READABLE:
        known = ", ".join(READABLE)
        raise EngineError(f"{file}: can't read the architecture {architecture!r}", f"those that can be: {known}", kind="load")
    return architecture


def _entries(file: Path) -> Mapping[str, Any]:
    """Return what is told of a file as it is now; gone through once, however often it is asked."""
    now = file.stat()
    return _gone_through(file, now.st_size, now.st_mtime_ns)


@lru_cache(maxsize=8)
def _gone_through(file: Path, _size: int, _changed_ns: int) -> Mapping[str, Any]:
    with open(file, "rb") as opened:
        if not (size := opened.seek(0, 2)):
            raise EngineError(f"{file}: an empty file", "fetch it again", kind="load")
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(file, data, size).whole()


@dataclass(slots=True)
class _Walk:
    """The way through a GGUF file; every byte that is stepped over is known to be there."""

    file: Path
    data: mmap.mmap
    size: int
    at: int = 0

    def whole(self) -> dict[str, Any]:
        """Return the entries wanted, once the tensors' places are found to lie within the file."""
        if self._bytes(4, "its first four bytes") != b"GGUF":
            raise self._wrong(0, f"not a GGUF file, it begins with {self.data[:4]!r}")
        if (version := self._number("<I", "the version")) not in _VERSIONS:
            known = " and ".join(map(str, _VERSIONS))
            raise self._wrong(4, f"version {version} of the format, where {known} little-endian are known")
        tensors, count = self._number("<Q", "the count of tensors"), self._number("<Q", "the count of entries")
        entries = dict(self._entries(count))
        end = max(self._tensors(tensors), default=0)
        step = entries.get("general.alignment", _ALIGNMENT)
        if not isinstance(step, int) or step < 1:
            raise self._wrong(self.at, f"general.alignment is {step!r}")
        start = math.ceil(self.at / step) * step
        if start + end > self.size:
            raise self._wrong(self.size, f"the weights should go on to byte {start + end}, but the file ends")
        return entries

    def _entries(self, count: int) -> Iterator[tuple[str, Any]]:
        for number in range(count):
            name = self._text(f"the name of entry {number}")
            value = self._value(self._number("<I", f"the type of {name}"), name)
            if name in _WANTED:
                yield name, value

    def _value(self, kind: int, name: str) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind], name)
        if kind == _STRING:
            return self._text(name)
        if kind != _ARRAY:
            raise self._wrong(self.at - 4, f"{name} has the unknown type {kind}")
        return self._array(name)

    def _array(self, name: str) -> None:
        """Step over an array; none of those wanted is one."""
        kind, length = self._number("<I", f"the type of {name}"), self._number("<Q", f"the length of {name}")
        if kind in _NUMBERS:
            self._skip(struct.calcsize(_NUMBERS[kind]) * length, name)
            return
        if kind != _STRING:
            raise self._wrong(self.at - 12, f"the items of {name} have the unknown type {kind}")
        for number in range(length):
            self._text(f"{name}[{number}]")

    def _tensors(self, count: int) -> Iterator[int]:
        """Yield where each tensor ends, in bytes from the first one's begin."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        for number in range(count):
            name = self._text(f"the name of tensor {number}")
            if (dims := self._number("<I", f"the dimensions of {name}")) > 4:
                raise self._wrong(self.at - 4, f"{name} has {dims} dimensions")
            items = math.prod(self._number("<Q", f"the shape of {name}") for _ in range(dims))
            kind = self._number("<I", f"the type of {name}")
            if kind not in set(GGMLQuantizationType):
                raise self._wrong(self.at - 4, f"{name} has the unknown type {kind}")
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            yield self._number("<Q", f"the place of {name}") + math.ceil(items / block) * size

    def _number(self, form: str, what: str) -> Any:
        return struct.unpack(form, self._bytes(struct.calcsize(form), what))[0]

    def _text(self, what: str) -> str:
        raw = self._bytes(self._number("<Q", what), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._wrong(self.at - len(raw), f"{what} isn't UTF-8 text") from error

    def _bytes(self, size: int, what: str) -> bytes:
        start = self.at
        self._skip(size, what)
        return self.data[start : self.at]

    def _skip(self, size: int, what: str) -> None:
        if self.at + size > self.size:
            raise self._wrong(self.at, f"{what} would take {size} bytes, but the file ends at {self.size}")
        self.at += size

    def _wrong(self, at: int, what: str) -> EngineError:
        return EngineError(f"{self.file}: cut or damaged at byte {at}: {what}", "fetch the file again", kind="load")


def read_as(file: Path, sha256: str) -> str:
    """Return what identifies the model that a GGUF file with this content is read as.

    Raises:
        EngineError: as `inspect`.
    """
    by_digit = _entries(file).get("tokenizer.ggml.pre") in _DIGIT_BY_DIGIT
    return f"gguf:{sha256}{'+digits' if by_digit else ''}"


def unpacked_name(model: str) -> str:
    """Return the digest of the artifact that holds the weights of a GGUF file, given what identifies its model."""
    return digest({"gguf": model.removeprefix("gguf:"), "layout": _LAYOUT})


def unpack(source: ModelSource) -> None:
    """Have the weights of a source's GGUF file where its `path` says; once on a machine, whoever asks at the same time.

    Raises:
        EngineError: kind `load`: the file can't be read, isn't the one that was planned with, or lacks weights.
    """
    if source.gguf is None:
        return
    folder, file = Path(source.path), Path(source.gguf)
    store = Store(folder.parents[2])
    if _is_there(store, folder.name):
        return
    with store.claim(folder.name, UNPACK_S) as claimed:
        if not claimed:
            raise EngineError(f"{file}: another process has been unpacking it for an hour", "end that one", kind="load")
        if not _is_there(store, folder.name):
            _make(store, folder.name, file)


def _is_there(store: Store, name: str) -> bool:
    try:
        return store.artifact(name) is not None
    except DamagedError:
        return False  # `seal` sets it aside


def _make(store: Store, name: str, file: Path) -> None:
    if not file.is_file():
        raise EngineError(f"{file}: no such file", "put it back, or name another", kind="load")
    if unpacked_name(read_as(file, sha256 := file_digest(file))) != name:
        raise EngineError(f"{file}: has changed since the run was planned", "run again", kind="load")
    inspect(file)
    staged = store.stage(name)
    dequantise(file, staged)
    store.seal(name, staged, {"kind": "model", "components": {"gguf": sha256}})


def dequantise(file: Path, folder: Path) -> None:
    """Write a GGUF file's model, in float32, with its tokenizer and chat template into `folder`.

    Raises:
        EngineError: kind `load`: transformers can't read it, or weights are missing or no numbers.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from caiflow.engine.llm.files import load_error

    where, name = str(file.parent), file.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
        read = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype="float32", output_loading_info=True)
    except Exception as error:
        raise load_error(str(file), error) from error
    model, info = read
    if missing := sorted(info["missing_keys"]):
        told = f"{file}: lacks {len(missing)} weights that its architecture has, {missing[0]} among them"
        raise EngineError(told, "fetch or convert it again", kind="load")
    _plain(model, file).save_pretrained(folder)
    _divide(tokenizer, str(_entries(file).get("tokenizer.ggml.pre", "")))
    tokenizer.save_pretrained(folder)


def _divide(tokenizer: Any, rule: str) -> None:
    """Have texts divided as the file says before they are spelt.

    Transformers passes over its rule: white space before a number came out in other tokens than the model learnt and samples.
    """
    if rule in _DIGIT_BY_DIGIT:
        from tokenizers import pre_tokenizers as divided

        by_digit = divided.Digits(individual_digits=True)
        tokenizer.backend_tokenizer.pre_tokenizer = divided.Sequence([by_digit, divided.ByteLevel(add_prefix_space=False)])


def _plain(model: Any, file: Path) -> Any:
    """Return the same model without the mark of having been quantised, with which it couldn't be saved."""
    import torch

    weights = model.state_dict()
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise EngineError(f"{file}: damaged: {name} holds values that aren't numbers", "fetch the file again", kind="load")
    del model.config.quantization_config
    with torch.device("meta"):
        fresh = type(model)(model.config)
    fresh.load_state_dict(weights, assign=True)
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    return fresh
