"""caiflow's own constitution format: checking a file's data, and writing a constitution out again.

Owns the format's keys and the place of each problem in a file. `constitution` documents the format. Never opens a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from caiflow.engine.errors import Problem, SpecError
from caiflow.engine.llm.base import Message
from caiflow.engine.principles import (
    STAGES,
    Constitution,
    CritiqueExample,
    FileModel,
    JudgeExample,
    Principle,
    Stage,
    checked,
    known,
)


def rule_texts(rule: str) -> dict[Stage, str]:
    """Return the text of each stage for a rule such as `be honest`."""
    rule = rule.rstrip(". ")
    return {
        "critique": f"Read the assistant's last response and say in detail where it breaks this rule: {rule}. "
        "If it keeps the rule, say so.",
        "revision": f"Rewrite the assistant's last response so that it keeps this rule: {rule}. Keep what is helpful in it.",
        "judge": f"Compare the two responses by this rule: {rule}. Which response keeps it better?",
    }


def dump(constitution: Constitution) -> str:
    """Return the constitution as a YAML text in caiflow's own format; loading it gives back an equal one."""
    import yaml

    few_shot = {
        "critique": [_plain(example) for example in constitution.few_shot_critique],
        "judge": [_plain(example) for example in constitution.few_shot_judge],
    }
    data = {
        "caiflow_constitution": 1,
        "name": constitution.name,
        "description": constitution.description,
        "principles": [principle.model_dump(exclude_defaults=True) for principle in constitution.principles],
        "few_shot": {stage: examples for stage, examples in few_shot.items() if examples},
    }
    kept = {key: value for key, value in data.items() if value or key == "principles"}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=120)


def parse(data: Mapping[str, Any], file: str = "", text: str = "") -> Constitution:
    """Return the constitution in `data`, which is in caiflow's own format; `text` is where it was decoded from, if a file.

    Raises:
        SpecError: every problem found, at its place.
    """
    try:
        return _File.model_validate(dict(data)).constitution()
    except ValidationError as error:
        raise SpecError(tuple(_problem(finding["loc"], finding["msg"], file, text) for finding in error.errors())) from None
    except ValueError as error:
        raise SpecError((_problem((), str(error), file, text),)) from None


def parse_principle(data: Mapping[str, Any]) -> Principle:
    """Return one principle written in a spec.

    Raises:
        SpecError: every problem found, by its path below the principle.
    """
    try:
        return _PrincipleEntry.model_validate(dict(data)).principle()
    except ValidationError as error:
        raise SpecError(tuple(_problem(finding["loc"], finding["msg"], "", "") for finding in error.errors())) from None
    except ValueError as error:
        raise SpecError((_problem((), str(error), "", ""),)) from None


class _PrincipleEntry(Principle):
    """A principle as a file has it: `rule` builds the texts that are left out."""

    rule: str | None = Field(default=None, min_length=1)

    def principle(self) -> Principle:
        texts = {stage: getattr(self, stage) for stage in STAGES}
        if self.rule is not None:
            texts = {stage: texts[stage] or built for stage, built in rule_texts(self.rule).items()}
        if not any(texts.values()):
            raise ValueError(f"principle {self.id!r} says nothing; give it a critique, revision or judge text, or a rule")
        return Principle(id=self.id, guards=self.guards, weight=self.weight, **texts)


class _Turn(FileModel):
    role: Literal["system", "user", "assistant"]
    content: str


class _Prompted(FileModel):
    prompt: tuple[_Turn, ...] = Field(min_length=1)
    principle: str | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_turn(cls, value: Any) -> Any:
        return ({"role": "user", "content": value},) if isinstance(value, str) else value

    def messages(self) -> tuple[Message, ...]:
        return tuple(Message(role=turn.role, content=turn.content) for turn in self.prompt)


class _CritiqueEntry(_Prompted):
    response: str
    critique: str
    revision: str
    critique_request: str | None = None
    revision_request: str | None = None

    def example(self, principles: Mapping[str, Principle]) -> CritiqueExample:
        asked, wanted = self.critique_request, self.revision_request
        if self.principle is not None:
            principle = known(self.principle, principles)
            asked, wanted = asked or principle.critique_request, wanted or principle.revision_request
        if not (asked and wanted):
            raise ValueError("a critique example needs a `principle`, or both `critique_request` and `revision_request`")
        return CritiqueExample(self.messages(), self.response, asked, self.critique, wanted, self.revision)


class _JudgeEntry(_Prompted):
    """`principle` is an id or a judging instruction."""

    a: str
    b: str
    answer: Literal["A", "B"]
    thought: str = ""

    def example(self, principles: Mapping[str, Principle]) -> JudgeExample:
        text = self.principle or ""
        if text and " " not in text:
            text = known(text, principles).text("judge")
        return JudgeExample(self.messages(), text, self.a, self.b, self.answer, self.thought)


class _FewShot(FileModel):
    critique: tuple[_CritiqueEntry, ...] = ()
    judge: tuple[_JudgeEntry, ...] = ()


class _File(FileModel):
    caiflow_constitution: Literal[1]
    name: str = Field(min_length=1)
    description: str = ""
    principles: tuple[_PrincipleEntry, ...]
    few_shot: _FewShot = _FewShot()

    def constitution(self) -> Constitution:
        principles = tuple(entry.principle() for entry in self.principles)
        by_id = {principle.id: principle for principle in principles}
        return checked(
            Constitution(
                name=self.name,
                description=self.description,
                principles=principles,
                few_shot_critique=tuple(entry.example(by_id) for entry in self.few_shot.critique),
                few_shot_judge=tuple(entry.example(by_id) for entry in self.few_shot.judge),
            )
        )


def _problem(loc: Sequence[str | int], message: str, file: str, text: str) -> Problem:
    line, col = _place(text, loc) if text else (1, 1)
    path = ".".join(str(part) for part in loc)
    said = message.removeprefix("Value error, ")
    return Problem(file, line, col, path, f"{path}: {said[:1].lower()}{said[1:]}" if path else said)


def _place(text: str, loc: Sequence[str | int]) -> tuple[int, int]:
    """Return line and column (from 1) of the value at `loc`, or of the innermost one around it that exists."""
    import yaml

    node = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if node is None:
        return 1, 1
    mark = node.start_mark
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
        else:
            is_item = isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value)
            found = (node.value[part], node.value[part]) if is_item else None
        if found is None:
            break
        mark, node = found[0].start_mark, found[1]
    return mark.line + 1, mark.column + 1


def _plain(example: CritiqueExample | JudgeExample) -> dict[str, Any]:
    return {key: value for key, value in asdict(example).items() if value} | {"prompt": [dict(turn) for turn in example.prompt]}
