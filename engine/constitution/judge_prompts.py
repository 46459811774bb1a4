"""Judge prompts as MT-bench publishes them, and rubrics of scores, turned into judging instructions.

Owns what is kept of such a prompt: what to judge by. How the answers are shown and how the verdict is to be written is left
out, since `judge` has a form of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from caiflow.engine.constitution.others_names import Data, slug

_SENTENCE = re.compile(r"(?<=[.!?:])\s+(?=[A-Z\[\"'])")
_ABOUT_FORM = re.compile(r"\[\[|(?i:verdict|output format|following (?:this|the) format|on a scale of|explanation|rate the)")
_SHOWN = re.compile(r"\n*\[[^\]\n]*\]\s*\n?\s*\{|\{\w+\}|\n+<\|")
"""Where a template begins to show the question and the answers."""
_SCORE = re.compile(r"score_?(-?\d+)(?:_?description)?")
_QUESTION = "Which response is better by this?"


def judge_prompts(data: Any) -> Data | None:
    """Return the instructions of a file of judge prompts; None for something else.

    Those for pairs are taken, or those for single answers where there are no others. One that wants a reference answer is left
    out, and said so in the description.
    """
    items = [data] if isinstance(data, Mapping) and "prompt_template" in data else data
    if not (
        isinstance(items, list) and items and all(isinstance(item, Mapping) and "prompt_template" in item for item in items)
    ):
        return None
    referring = [item for item in items if "{ref_answer" in str(item["prompt_template"])]
    usable = [item for item in items if item not in referring]
    pairs = [item for item in usable if "{answer_b" in str(item["prompt_template"]) or item.get("type") == "pairwise"]
    principles = [_principle(item, number) for number, item in enumerate(pairs or usable, 1)]
    if not principles:
        raise ValueError("each of its prompts wants a reference answer, which `judge` doesn't show")
    left = ", ".join(str(item.get("name", "one")) for item in referring)
    return {"principles": principles, **({"description": f"Without {left}: they want a reference answer."} if left else {})}


def score_rubric(data: Any) -> Data | None:
    """Return the instruction of a rubric that says what each score stands for (Prometheus); None for something else."""
    scores = {key: match[1] for key in data if (match := _SCORE.fullmatch(str(key)))} if isinstance(data, Mapping) else {}
    if not scores or not isinstance(data.get("criteria"), str):
        return None
    levels = "\n".join(f"{number}: {data[key]}" for key, number in scores.items())
    told = f"{data['criteria'].strip()}\n\nWhat a response earns:\n\n{levels}\n\nWhich response earns more by this?"
    return {"principles": [{"id": slug(data["criteria"]) or "rubric", "judge": told}]}


def _principle(item: Mapping[str, Any], number: int) -> Data:
    system, template = str(item.get("system_prompt") or ""), str(item["prompt_template"])
    told = _by_what(system) if len(system.split()) > 12 else ""
    told = told or _by_what(_SHOWN.split(re.sub(r"^\s*\[[^\]\n]*\]\s*", "", template), maxsplit=1)[0])
    if not told:
        raise ValueError(f"the prompt {item.get('name', number)!r} doesn't say what to judge by")
    return {"id": slug(str(item.get("name") or "")) or f"judge{number}", "judge": f"{told} {_QUESTION}"}


def _by_what(text: str) -> str:
    """Return the sentences that say what to judge by."""
    kept = (sentence.strip() for sentence in _SENTENCE.split(text.strip()) if not _ABOUT_FORM.search(sentence))
    return " ".join(sentence for sentence in kept if len(sentence.split()) > 2)
