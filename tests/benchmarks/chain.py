"""The work that every contender does: an answer, its critique, its revision, with lengths that are given beforehand.

The model has random weights, and its EOS can't win: an answer is as long as it may be, so that all contenders draw the same
number of tokens. Owns the model, the prompts and the lengths; runs nothing.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

EXAMPLE = Path(__file__).parents[2] / "examples/tiny"
CALLS = 3
LONGEST = 256
"""Tokens of the longest answer."""
CONTEXT = 4096
CRITIQUE = "Say what in your last answer could do harm, to whom, and how it could be put better."
REVISION = "Write your answer anew, without what could do harm, and as helpful as before."
Lengths = Literal["even", "long_tailed"]
Message = dict[str, str]
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "7b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
"""Shapes of a Llama; the larger ones are those of the published models of that size."""


@dataclass(frozen=True)
class Work:
    """`prompts` [N] and, for each, the tokens of its three answers, `lengths` [N][3]."""

    prompts: Sequence[str]
    lengths: Sequence[tuple[int, int, int]]

    @property
    def tokens(self) -> int:
        """The tokens of all answers."""
        return sum(map(sum, self.lengths))


def make_work(rows: int, lengths: Lengths) -> Work:
    """Return the same work every time: answers of 32 tokens, or long-tailed ones (log-normal, median 20, at most 256)."""
    dice = random.Random(11)
    prompts = _prompts()
    chosen = [prompts[place % len(prompts)] for place in range(rows)]

    def length() -> int:
        return 32 if lengths == "even" else max(2, min(LONGEST, round(dice.lognormvariate(3.0, 1.0))))

    return Work(chosen, [(length(), length(), length()) for _ in range(rows)])


def _prompts() -> list[str]:
    files = ("helpful_train", "red_team_train", "helpful_test", "red_team_test", "frightening_test")
    texts = []
    for name in files:
        for line in (EXAMPLE / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            texts.append(_question(json.loads(line)))
    return texts


def _question(row: dict[str, Any]) -> str:
    given = row.get("prompt") or row.get("messages") or row.get("transcript") or row.get("chosen")
    if isinstance(given, list):
        return str(given[0]["content"])
    return str(given).split("Human:")[-1].split("Assistant:")[0].strip()


def first_turn(prompt: str) -> list[Message]:
    """Return the conversation that asks for an answer."""
    return [{"role": "user", "content": prompt}]


def next_turn(messages: Sequence[Message], answer: str, stage: int) -> list[Message]:
    """Return the conversation after an answer, with the request for its critique (stage 1) or its revision (stage 2)."""
    request = CRITIQUE if stage == 1 else REVISION
    return [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": request}]


def save_model(folder: Path, size: str = "tiny", dtype: str = "float32") -> Path:
    """Write a Llama of random weights, with the bundled model's tokenizer, and return its folder."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(EXAMPLE / "model")
    known = len(tokenizer)
    config = LlamaConfig(
        vocab_size=known, max_position_embeddings=CONTEXT, tie_word_embeddings=False, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, **SIZES[size],
    )  # fmt: skip
    torch.manual_seed(5)
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    with torch.no_grad():
        model.lm_head.weight[tokenizer.all_special_ids] = 0  # never the largest among a thousand random scores
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_real_model(folder: Path) -> Path | None:
    """Write the real model of the package index so that none of its answers ends early; None where its package is absent."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from caiflow.engine.llm.gguf import unpack
    from caiflow.engine.llm.model_files import packaged_file
    from caiflow.engine.plan.model_identity import resolve_model
    from caiflow.engine.spec.grammar import ModelEntry
    from caiflow.engine.store.artifacts import Store

    if packaged_file("smollm2") is None:
        return None
    source = resolve_model("base", ModelEntry(source="smollm2"), Path(), store=Store(folder.parent / "home"))
    unpack(source)
    tokenizer, model = AutoTokenizer.from_pretrained(source.path), AutoModelForCausalLM.from_pretrained(source.path)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # the embedding stays as it is
    model.config.tie_word_embeddings = False
    with torch.no_grad():
        model.lm_head.weight[tokenizer.all_special_ids] = 0  # never the largest: a real model's best score is far above
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
