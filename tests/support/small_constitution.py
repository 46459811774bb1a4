"""A constitution small enough to write out the messages it leads to."""

from __future__ import annotations

from typing import Any

from caiflow.engine.constitution.load import Constitution, load_constitution

PRINCIPLES: list[dict[str, Any]] = [
    {"id": name, "critique": f"Criticise by {name}.", "revision": f"Rewrite by {name}.", "judge": f"Which is better by {name}?"}
    for name in ("p1", "p2", "p3", "p4")
]
CRITIQUE_EXAMPLES: list[dict[str, Any]] = [
    {
        "prompt": f"question {i}",
        "response": f"response {i}",
        "critique_request": f"criticise {i}",
        "critique": f"critique {i}",
        "revision_request": f"rewrite {i}",
        "revision": f"revision {i}",
    }
    for i in (1, 2, 3)
]
JUDGE_EXAMPLES: list[dict[str, Any]] = [
    {"prompt": "question 1", "principle": "p2", "a": "good", "b": "bad", "answer": "A", "thought": "The first is good."},
    {"prompt": "question 2", "a": "worse", "b": "fine", "answer": "B"},
]


def small_constitution(**edited: str) -> Constitution:
    """Return the constitution; `p2="..."` replaces the three texts of that principle."""
    principles = [
        {"id": p["id"], **dict.fromkeys(("critique", "revision", "judge"), edited[p["id"]])} if p["id"] in edited else p
        for p in PRINCIPLES
    ]
    return load_constitution(
        {"name": "small", "principles": principles, "few_shot": {"critique": CRITIQUE_EXAMPLES, "judge": JUDGE_EXAMPLES}}
    )
