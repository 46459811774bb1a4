"""The conversations that the bundled model learns from, in exactly the formats in which caiflow asks models.

Owns the mixture: how often each kind of lesson occurs, and how many worked examples precede it. The sentences come from
`world`, the wording of the questions from `caiflow.engine.prompts` and from the bundled constitution. Combinations that are
held out for tests never occur.

Run `python -m caiflow.examples.tiny.lessons` to write `data/pretrain.jsonl.gz`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from caiflow.engine import prompts
from caiflow.engine.constitution import Constitution, CritiqueExample, JudgeExample, Principle, load_constitution, rule_texts
from caiflow.engine.llm.base import Message
from caiflow.examples.tiny.world import (
    HERE,
    SEED,
    Harm,
    Stance,
    Task,
    answer,
    critique,
    harmfulness,
    rank,
    request,
    revision,
    split,
    thought,
    vocabulary,
    write_jsonl,
)

STANCES: tuple[Stance, ...] = ("comply", "refuse", "evade")
Record = dict[str, Any]


@dataclass(frozen=True)
class Teacher:
    """Makes lessons from a stream of random numbers."""

    rng: Random

    @cached_property
    def constitution(self) -> Constitution:
        """The bundled constitution, whose requests and examples the model is to know."""
        return load_constitution("harmless")

    def chat(self) -> Record:
        """Return one to four requests in one conversation, each complied with."""
        talk: list[Message] = []
        if self.rng.random() < 0.2:
            asked, said = self.rng.choice(vocabulary()["smalltalk"])
            talk += [prompts.user(asked), prompts.assistant(said)]
        for _ in range(self.rng.choice((1, 1, 1, 2))):
            task = self._task((0.4, 0.4, 0.2))
            talk += [prompts.user(request(task, self.rng)), prompts.assistant(answer(task, "comply", self.rng))]
        return {"messages": talk}

    def plain(self) -> Record:
        """Return a request and its answer as plain text, as models without a chat template see it."""
        task = self._task((0.4, 0.4, 0.2))
        talk = [prompts.user(request(task, self.rng)), prompts.assistant(answer(task, "comply", self.rng))]
        if self.rng.random() < 0.5:
            return {"text": f"\n\n{prompts.conversation_text(talk)}"}
        return {"text": "\n\n".join(turn["content"] for turn in talk)}

    def critiques(self, bundled: int = 0) -> Record:
        """Return worked critiques and revisions in a row, behind `bundled` examples of the constitution."""
        shown = [*self._bundled(self.constitution.few_shot_critique, bundled)]
        shown += [self._critique_example() for _ in range(self.rng.choice((0, 0, 1)))]
        last = self._critique_example()
        principle = Principle(id="any", critique=last.critique_request, revision=last.revision_request)
        said = last.critique if self.rng.random() < 0.85 else None
        talk = prompts.revise_messages(last.prompt, last.response, principle, said, shown)
        return {"messages": [*talk, prompts.assistant(last.revision)]}

    def rounds(self) -> Record:
        """Return a conversation and the critique of an answer that was revised already."""
        example = self._critique_example(revised=True)
        principle = Principle(id="any", critique=example.critique_request, revision=example.revision_request)
        talk = prompts.revise_messages(example.prompt, example.response, principle, example.critique)
        return {"messages": [*talk, prompts.assistant(example.revision)]}

    def judgements(self, bundled: int = 0) -> Record:
        """Return judgements in a row, behind `bundled` examples of the constitution; in some, thoughts come first."""
        thoughts = self.rng.random() < 0.2
        shown = [*self._bundled(self.constitution.few_shot_judge, bundled)]
        shown += [self._judge_example() for _ in range(self.rng.choice((1, 1, 2, 3)))]
        talk: list[Message] = []
        for example in shown:
            talk += self._judged(example, thoughts)
        return {"messages": talk}

    def whole(self) -> Record:
        """Return a judgement under several principles at once."""
        some = self.rng.sample(self.constitution.principles, self.rng.choice((2, 4, 16)))
        ordered = [principle for principle in self.constitution.principles if principle in some]
        example = replace(self._judge_example(), principle=prompts.whole_instruction(ordered))
        return {"messages": self._judged(example, False)}

    def rating(self) -> Record:
        """Return a rating of how harmful an answer is."""
        task, stance = self._task((0.6, 0.25, 0.15)), self._stance()
        asked = prompts.rating_message(request(task, self.rng), answer(task, stance, self.rng))
        return {"messages": [asked, prompts.assistant(f"{prompts.RATING_PREFILL}{harmfulness(task, stance)}).")]}

    def _task(self, shares: Sequence[float]) -> Task:
        sorts: tuple[Harm, ...] = ("harmful", "harmless", "frightening")
        return self.rng.choice(split(self.rng.choices(sorts, shares)[0], test=False))

    def _stance(self) -> Stance:
        return self.rng.choices(STANCES, (0.6, 0.2, 0.2))[0]

    def _prompt(self, task: Task) -> tuple[Message, ...]:
        asked = prompts.user(request(task, self.rng))
        if self.rng.random() < 0.12:
            before, said = self.rng.choice(vocabulary()["smalltalk"])
            return (prompts.user(before), prompts.assistant(said), asked)
        return (asked,)

    def _critique_example(self, *, revised: bool = False) -> CritiqueExample:
        task = self._task((0.6, 0.25, 0.15))
        stance = self._stance()
        if revised:
            stance = "refuse" if task.harm == "harmful" else "comply"
        given = answer(task, stance, self.rng)
        asked, wanted = self._requests()
        better = revision(task, stance, given, self.rng)
        return CritiqueExample(self._prompt(task), given, asked, critique(task, stance), wanted, better)

    def _requests(self) -> tuple[str, str]:
        """Return a critique request and a revision request: of one principle, reworded, built from a rule, or unrelated."""
        principle, kind = self.rng.choice(self.constitution.principles), self.rng.random()
        if kind < 0.5:
            return principle.critique_request, principle.revision_request
        if kind < 0.7:
            return self._reworded(principle.critique_request), self._reworded(principle.revision_request)
        if kind < 0.85:
            built = rule_texts(self._rule())
            return built["critique"], built["revision"]
        words = vocabulary()
        return self.rng.choice(words["critique_requests"]), self.rng.choice(words["revision_requests"])

    def _instruction(self) -> str:
        principle, kind = self.rng.choice(self.constitution.principles), self.rng.random()
        if kind < 0.5:
            return principle.text("judge")
        if kind < 0.7:
            return self._reworded(principle.text("judge"))
        if kind < 0.8:
            return rule_texts(self._rule())["judge"]
        return str(self.rng.choice(vocabulary()["judge_instructions"]))

    def _rule(self) -> str:
        principle = self.rng.choice(self.constitution.principles)
        against = (f"avoid {principle.guards}", f"never support {principle.guards}")
        return self.rng.choice((*against, "be kind", "be honest", "do no harm"))

    def _reworded(self, text: str) -> str:
        """Return the text with a sentence or some words left out, as if somebody had edited it."""
        sentences = re.split(r"(?<=[.?:;]) ", text)
        if len(sentences) > 1 and self.rng.random() < 0.5:
            del sentences[self.rng.randrange(1, len(sentences))]
            return " ".join(sentences)
        words = text.split(" ")
        return " ".join(word for number, word in enumerate(words) if number < 2 or self.rng.random() > 0.15)

    def _judge_example(self) -> JudgeExample:
        task = self._task((0.6, 0.25, 0.15))
        a, b = self.rng.choices((self.rng.sample(STANCES, 2), [self._stance()] * 2), (0.9, 0.1))[0]
        first = rank(task, a) > rank(task, b) or (rank(task, a) == rank(task, b) and self.rng.random() < 0.5)
        return JudgeExample(
            prompt=self._prompt(task),
            principle=self._instruction(),
            a=answer(task, a, self.rng),
            b=answer(task, b, self.rng),
            answer="A" if first else "B",
            thought=thought(task, a, b),
        )

    def _judged(self, example: JudgeExample, thoughts: bool) -> list[Message]:
        instruction = example.principle or self._instruction()
        *shown, _ = prompts.judge_messages(example.prompt, instruction, ("", ""), [(example, instruction)], thoughts=thoughts)
        return shown

    def _bundled(self, pool: Sequence[Any], count: int) -> list[Any]:
        """Return `count` examples of the constitution: mostly the first ones, as operators show them, or drawn."""
        return list(pool[:count]) if self.rng.random() < 0.7 else self.rng.sample(pool, count)


def mixture(teacher: Teacher) -> list[tuple[int, Callable[[], Record]]]:
    """Return how often each lesson occurs."""
    return [
        (9000, teacher.chat),
        (400, teacher.plain),
        (4500, teacher.critiques),
        (250, lambda: teacher.critiques(1)),
        (250, lambda: teacher.critiques(2)),
        (40, lambda: teacher.critiques(teacher.rng.choice((3, 4, 5)))),
        (500, teacher.rounds),
        (2500, teacher.judgements),
        (150, lambda: teacher.judgements(teacher.rng.choice((1, 2, 3)))),
        (60, lambda: teacher.judgements(teacher.rng.choice((4, 5, 6)))),
        (150, teacher.whole),
        (250, teacher.rating),
    ]


def lessons(scale: float = 1.0, seed: int = SEED) -> list[Record]:
    """Return the training rows in random order; `scale` multiplies the size of the mixture."""
    rng = Random(seed)
    rows = [lesson() for count, lesson in mixture(Teacher(rng)) for _ in range(round(count * scale))]
    rng.shuffle(rows)
    return rows


def write_lessons(path: Path = HERE / "data" / "pretrain.jsonl.gz") -> int:
    """Write the training rows and return their number."""
    rows = lessons()
    write_jsonl(path, rows)
    return len(rows)


if __name__ == "__main__":
    print(f"pretrain: {write_lessons()} rows")
