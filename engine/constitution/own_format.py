"""caiflow's own constitution format: checking a file's data, and writing a constitution out again.

Owns the format's keys and the place of each problem in a file. `load` documents the format. Never opens a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from caiflow.engine.constitution.principles import (
    STAGES,
    Constitution,
    CritiqueExample,
    FileModel,
    JudgeExample,
    Principle,
    Stage,
    known,
    same_id,
)
from caiflow.engine.errors import Finding, Problem, SpecError, WrongValue, finding, refusal, suggest
from caiflow.engine.llm.base import Message
from caiflow.engine.yaml.tree import Location, Node

_Loc = tuple[str | int, ...]
_Example = TypeVar("_Example", CritiqueExample, JudgeExample)


def rule_texts(rule: str) -> dict[Stage, str]:
    """Return the text of each stage for a rule such as `be honest`."""
    rule = rule.rstrip(". ")
    return {
        "critique": f"Read the assistant's last response and say in detail where it breaks this rule: {rule}. "
        "If it keeps the rule, say so.",
        "revision": f"Rewrite the assistant's last response so that it keeps this rule: {rule}. Keep what is helpful in it.",
        "judge": f"Compare the two responses by this rule: {rule}. Which response keeps it better?",
    }


def dump(constitution: Constitution, *, ascii_only: bool = False) -> str:
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
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=not ascii_only, width=120)


def parse(data: Mapping[str, Any], file: str = "", text: str = "") -> Constitution:
    """Return the constitution in `data`, which is in caiflow's own format; `text` is where it was decoded from, if a file.

    Raises:
        SpecError: every problem found, at its place.
    """
    wrong: list[Finding] = []
    try:
        found = ConstitutionFile.model_validate(dict(data)).constitution(wrong)
    except ValidationError as error:
        wrong += [_finding(detail, data) for detail in error.errors()]
    if wrong:
        raise SpecError(_problems(wrong, file, text))
    return found


def parse_principle(data: Mapping[str, Any]) -> Principle:
    """Return one principle written in a spec.

    Raises:
        SpecError: every problem found, by its path below the principle.
    """
    try:
        return parse({"caiflow_constitution": 1, "name": "in the spec", "principles": [data]}).principles[0]
    except SpecError as error:
        below = (problem._replace(path=problem.path.removeprefix("principles.0").lstrip(".")) for problem in error.problems)
        raise SpecError(tuple(below)) from None


class _PrincipleEntry(Principle):
    """A principle as a file has it: `rule` builds the texts that are left out."""

    def principle(self) -> Principle:
        texts: dict[str, Any] = {stage: getattr(self, stage) for stage in STAGES}
        if self.rule is not None:
            texts = {stage: texts[stage] or built for stage, built in rule_texts(self.rule).items()}
        if not any(texts.values()):
            raise WrongValue(f"principle {self.id!r} says nothing", "give it a critique, revision or judge text, or a rule")
        return Principle.model_construct(**{**dict(self), **texts})


class _Turn(FileModel):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: str
    """What is said."""


class _Prompted(FileModel):
    """A worked example."""

    prompt: tuple[_Turn, ...] = Field(min_length=1)
    """The question, as a text or as turns."""
    principle: str | None = None
    """The id of the principle that the example is of."""

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_turn(cls, value: Any) -> Any:
        return ({"role": "user", "content": value},) if isinstance(value, str) else value

    def messages(self) -> tuple[Message, ...]:
        return tuple(Message(role=turn.role, content=turn.content) for turn in self.prompt)


class _CritiqueEntry(_Prompted):
    """A worked critique and revision, shown before the real one."""

    response: str
    """The answer to criticise."""
    critique: str
    """What a good critique of it says."""
    revision: str
    """The answer made better."""
    critique_request: str | None = None
    """What asks for the critique; by default the principle's own text."""
    revision_request: str | None = None
    """What asks for the revision; by default the principle's own text."""

    def example(self, principles: Mapping[str, Principle]) -> CritiqueExample:
        asked, wanted = self.critique_request, self.revision_request
        if self.principle is not None:
            principle = known(self.principle, principles)
            asked, wanted = asked or principle.critique_request, wanted or principle.revision_request
        if not (asked and wanted):
            raise ValueError("a critique example needs a `principle`, or both `critique_request` and `revision_request`")
        return CritiqueExample(self.messages(), self.response, asked, self.critique, wanted, self.revision)


class _JudgeEntry(_Prompted):
    """A worked judgement; `principle` is an id or a judging instruction."""

    a: str
    """The first answer."""
    b: str
    """The second."""
    answer: Literal["A", "B"]
    """The better one."""
    thought: str = ""
    """What is said before the choice, for judges that think first."""

    def example(self, principles: Mapping[str, Principle]) -> JudgeExample:
        text = self.principle or ""
        if text and " " not in text:
            text = known(text, principles).text("judge")
        return JudgeExample(self.messages(), text, self.a, self.b, self.answer, self.thought)


class _FewShot(FileModel):
    """Worked examples by stage."""

    critique: tuple[_CritiqueEntry, ...] = ()
    """For critiques and revisions."""
    judge: tuple[_JudgeEntry, ...] = ()
    """For judgements."""


class ConstitutionFile(FileModel):
    """A constitution in caiflow's own format."""

    caiflow_constitution: Literal[1]
    """The format's version."""
    name: str = Field(min_length=1)
    """What specs and figures call it."""
    description: str = ""
    """What it is for; no model sees it."""
    principles: tuple[_PrincipleEntry, ...]
    """The rules, of which each row draws one."""
    few_shot: _FewShot = Field(default_factory=_FewShot)
    """Worked examples, shown before the real task where a step asks for some."""

    def constitution(self, wrong: list[Finding]) -> Constitution:
        """Return the constitution without what can't be built, which goes to `wrong` with its place."""
        principles: dict[str, Principle] = {}
        for index, entry in enumerate(self.principles):
            if entry.id in principles:
                wrong.append(Finding(("principles", index, "id"), *same_id(entry.id)))
                continue
            try:
                principles[entry.id] = entry.principle()
            except ValueError as error:
                wrong.append(finding(error, ("principles", index)))
        if wrong:
            return Constitution(self.name, tuple(principles.values()))
        return Constitution(
            name=self.name,
            description=self.description,
            principles=tuple(principles.values()),
            few_shot_critique=_examples("critique", (entry.example for entry in self.few_shot.critique), principles, wrong),
            few_shot_judge=_examples("judge", (entry.example for entry in self.few_shot.judge), principles, wrong),
        )


def _examples(
    stage: str,
    builders: Iterable[Callable[[Mapping[str, Principle]], _Example]],
    by_id: Mapping[str, Principle],
    wrong: list[Finding],
) -> tuple[_Example, ...]:
    found = []
    for index, build in enumerate(builders):
        try:
            found.append(build(by_id))
        except ValueError as error:
            path, message, hint = finding(error, ("few_shot", stage, index, "principle"))
            wrong.append(Finding(path, f"few_shot.{stage}.{index}: {message}", hint))
    return tuple(found)


_KEYS: Mapping[_Loc, type[FileModel]] = {
    (): ConstitutionFile,
    ("principles",): _PrincipleEntry,
    ("few_shot",): _FewShot,
    ("few_shot", "critique"): _CritiqueEntry,
    ("few_shot", "judge"): _JudgeEntry,
}
"""What stands where in a file, list positions left out."""


def _finding(detail: ErrorDetails, data: Mapping[str, Any]) -> Finding:
    """Return one of pydantic's errors in this project's words."""
    path = detail["loc"]
    *above, last = path or ("",)
    where = _where(path, data)
    if detail["type"] == "extra_forbidden":
        model = _KEYS.get(tuple(part for part in above if isinstance(part, str)))
        hint = suggest(str(last), model.model_fields, "keys") if model else ""
        if last == "source":
            hint = "only a spec takes principles from elsewhere: list both under its `constitution:`"
        return Finding(path, f"{_where(above, data)}unknown key `{last}`", hint)
    if detail["type"] == "model_type":
        return Finding(path, f"{where}a mapping is expected, got {detail['input']!r}"[:200])
    if detail["type"] == "string_type":
        message = f"{where}a text is expected, got {detail['input']!r}"[:200]
        return Finding(path, message, "put it in quotes, or write one text")
    if detail["type"] == "string_too_short":
        return Finding(path, f"{where}it is empty", "write a text, or leave the key out")
    if detail["type"] == "missing":
        return Finding(path, f"{_where(above, data)}`{last}` is missing", f"add `{last}:`")
    message, hint = refusal(detail)
    return Finding(path, f"{where}{message[:1].lower()}{message[1:]}", hint)


def _where(loc: Sequence[str | int], data: Mapping[str, Any]) -> str:
    """Return the beginning of a message: the principle by its id, then the path below it."""
    names = []
    if len(loc) > 1 and loc[0] == "principles" and isinstance(loc[1], int):
        entry = data["principles"][loc[1]]
        name = entry.get("id") if isinstance(entry, Mapping) else None
        names = [f"principle {name!r}" if isinstance(name, str) else "a principle"]
        loc = loc[2:]
    path = ".".join(map(str, loc))
    return "".join(f"{part}: " for part in (*names, path) if part)


def _problems(wrong: list[Finding], file: str, text: str) -> tuple[Problem, ...]:
    tree = _tree(text, file)
    places = ((finding, tree.nearest(finding.path).key) for finding in wrong)
    return tuple(Problem(file, at.line, at.col, ".".join(map(str, path)), *rest) for (path, *rest), at in places)


def _tree(text: str, file: str) -> Node:
    """Return the text as a tree of values at their places, or one value at the start where it is none."""
    from caiflow.engine.yaml.reader import parse_yaml

    try:
        return parse_yaml(text, file)
    except SpecError:
        return Node(None, Location(file, 1, 1), Location(file, 1, 1))


def _plain(example: CritiqueExample | JudgeExample) -> dict[str, Any]:
    return {key: value for key, value in example._asdict().items() if value} | {
        "prompt": [dict(turn) for turn in example.prompt]
    }
