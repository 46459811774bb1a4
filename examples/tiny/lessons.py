"""The conversations that the bundled model learns from, in exactly the formats in which caiflow asks models.

Owns the mixture: how often each kind of lesson occurs, and how many worked examples precede it. The sentences come from
`world`, the wording of the questions from `caiflow.operators.judging.prompts` and from the bundled constitution. Combinations
that are held out for tests never occur.

Run `python -m caiflow.examples.tiny.lessons` to write `data/first_lessons.jsonl.gz` and `data/later_lessons.jsonl.gz`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from caiflow.engine.constitution.load import (
    Constitution,
    CritiqueExample,
    JudgeExample,
    Principle,
    load_constitution,
    rule_texts,
)
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
from caiflow.operators.judging import prompts

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

    def critiques(self) -> Record:
        """Return one or two worked critiques and revisions of answers that comply, the last one sometimes without critique."""
        shown = [self._critique_example("comply") for _ in range(self.rng.choice((0, 0, 1)))]
        last = self._critique_example("comply")
        talk = prompts.revise_messages(last.prompt, last.response, _asking(last), self._said(last), shown)
        return {"messages": [*talk, prompts.assistant(last.revision)]}

    def critique(self, bundled: int = 0) -> Record:
        """Return the critique of an answer of any stance, behind `bundled` examples of the constitution."""
        last = self._critique_example(self._stance())
        talk = prompts.critique_messages(last.prompt, last.response, _asking(last), self._examples(bundled))
        return {"messages": [*talk, prompts.assistant(last.critique)]}

    def revision(self, bundled: int = 0) -> Record:
        """Return the revision of an answer of any stance, behind `bundled` examples of the constitution."""
        last = self._critique_example(self._stance())
        said = self._said(last)
        talk = prompts.revise_messages(last.prompt, last.response, _asking(last), said, self._examples(bundled))
        return {"messages": [*talk, prompts.assistant(last.revision)]}

    def judgements(self, bundled: int = 0) -> Record:
        """Return judgements in a row, behind `bundled` examples of the constitution; in some, thoughts come first."""
        thoughts = self.rng.random() < 0.2
        shown = [*self._bundled(self.constitution.few_shot_judge, bundled)]
        shown += [self._judge_example() for _ in range(self.rng.choice((1, 1, 2)))]
        return {"messages": [turn for example in shown for turn in self._judged(example, thoughts)]}

    def whole(self) -> Record:
        """Return a judgement under several principles at once."""
        some = self.rng.sample(self.constitution.principles, self.rng.choice((2, 4, 16)))
        ordered = [principle for principle in self.constitution.principles if principle in some]
        example = self._judge_example()._replace(principle=prompts.whole_instruction(ordered))
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

    def _critique_example(self, stance: Stance) -> CritiqueExample:
        task = self._task((0.55, 0.3, 0.15))
        given = answer(task, stance, self.rng)
        asked, wanted = self._requests()
        better = revision(task, stance, given, self.rng)
        return CritiqueExample(self._prompt(task), given, asked, critique(task, stance), wanted, better)

    def _said(self, example: CritiqueExample) -> str | None:
        """Return the example's critique, or none in one of seven."""
        return example.critique if self.rng.random() < 6 / 7 else None

    def _examples(self, bundled: int) -> list[CritiqueExample]:
        return self._bundled(self.constitution.few_shot_critique, bundled)

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


def _asking(example: CritiqueExample) -> Principle:
    return Principle(id="any", critique=example.critique_request, revision=example.revision_request)


Mixture = list[tuple[int, Callable[[], Record]]]


def first_lessons(teacher: Teacher) -> Mixture:
    """Return what is learnt first: short conversations, of which every assistant turn is an example to follow."""
    return [
        (9000, teacher.chat),
        (400, teacher.plain),
        (4500, teacher.critiques),
        (2500, teacher.judgements),
        (200, teacher.rating),
    ]


def later_lessons(teacher: Teacher) -> Mixture:
    """Return what is learnt next: answers of any stance and worked examples, where the last turn alone is to be followed."""
    rng = teacher.rng
    return [
        (2500, teacher.chat),
        (200, teacher.plain),
        (2000, teacher.critique),
        (3000, teacher.revision),
        *((count, lambda shown=shown: teacher.critique(shown)) for shown, count in SHOWN),
        *((count, lambda shown=shown: teacher.revision(shown)) for shown, count in SHOWN),
        (800, teacher.judgements),
        (250, lambda: teacher.judgements(rng.choice((1, 2, 2, 3)))),
        (60, lambda: teacher.judgements(rng.choice((4, 5, 6)))),
        (150, teacher.whole),
        (200, teacher.rating),
    ]


SHOWN = ((1, 150), (2, 350), (3, 30), (5, 30))
"""How many lessons there are behind how many of the constitution's examples."""


def lessons(mixture: Callable[[Teacher], Mixture], seed: int = SEED) -> list[Record]:
    """Return the rows of a mixture in random order."""
    rng = Random(seed)
    rows = [lesson() for count, lesson in mixture(Teacher(rng)) for _ in range(count)]
    rng.shuffle(rows)
    return rows


def write_lessons(folder: Path = HERE / "data") -> dict[str, int]:
    """Write the training rows and return their number by file."""
    written = {}
    for name, mixture in {"first_lessons": first_lessons, "later_lessons": later_lessons}.items():
        rows = lessons(mixture)
        write_jsonl(folder / f"{name}.jsonl.gz", rows)
        written[name] = len(rows)
    return written


if __name__ == "__main__":
    for name, rows in write_lessons().items():
        print(f"{name}: {rows} rows")
