"""Constitutions: the principles a spec follows, their few-shot examples, and which row draws which principle.

Owns the documented YAML format below and the draw; formats of other systems are turned into it by `constitution_formats`.
Never asks a model and never writes a prompt: operators do.

    caiflow_constitution: 1          # version of this format
    name: kind
    description: What it is for.     # optional
    principles:
      - id: no-insults               # stable: the draw goes by it, so texts may be edited without moving a row
        critique: Say where ...      # what the model is asked about its own answer
        revision: Rewrite ...        # what it is asked next
        judge: ... Which is kinder?  # how two answers (A) and (B) are compared
        guards: insults              # what it guards against, for the reader
        weight: 1                    # how often it is drawn, against the others
      - id: honest
        rule: be honest              # short form: texts that are left out are built from this phrase
    few_shot:
      critique:                      # shown before `critique` and `revise`; a `principle` stands for its two requests
        - {prompt: ..., response: ..., principle: no-insults, critique: ..., revision: ...}
      judge:                         # shown before `judge`; without `principle`, one is drawn
        - {prompt: ..., principle: no-insults, a: ..., b: ..., answer: B, thought: ...}

A prompt is a text (one user turn) or a list of {role, content}. A spec names a constitution as a bundled name, a path, a
mapping in this format, `{source: NAME, without: [ids]}` or `{source: NAME, only: [ids]}`, or a list of principles and sources.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from caiflow.engine.constitution_formats import FormatError, read_data
from caiflow.engine.errors import Problem, SpecError
from caiflow.engine.llm.base import Message

Stage = Literal["critique", "revision", "judge"]
STAGES: tuple[Stage, ...] = ("critique", "revision", "judge")
MAX_BYTES = 8_000_000
"""Largest constitution file that is read, in bytes."""
_BUNDLED = Path(__file__).parent.parent / "constitutions"
_MASK = (1 << 64) - 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Principle(_Strict):
    """One rule. A text that is None means that the principle isn't drawn at that stage."""

    id: str = Field(min_length=1, pattern=r"^\S+$")
    critique: str | None = Field(default=None, min_length=1)
    revision: str | None = Field(default=None, min_length=1)
    judge: str | None = Field(default=None, min_length=1)
    guards: str = ""
    weight: float = Field(default=1.0, gt=0, le=1e6)

    @property
    def critique_request(self) -> str:
        """The user turn that asks for a critique; raises ValueError where there is none."""
        return self.text("critique")

    @property
    def revision_request(self) -> str:
        """The user turn that asks for a revision; raises ValueError where there is none."""
        return self.text("revision")

    def text(self, stage: Stage) -> str:
        """Return this principle's text for `stage`.

        Raises:
            ValueError: it has none.
        """
        text: str | None = getattr(self, stage)
        if text is None:
            raise ValueError(f"principle {self.id}: no `{stage}` text; add one, or a `rule`")
        return text


@dataclass(frozen=True, slots=True)
class CritiqueExample:
    """One worked critique and revision, shown before the real one."""

    prompt: tuple[Message, ...]
    response: str
    critique_request: str
    critique: str
    revision_request: str
    revision: str


@dataclass(frozen=True, slots=True)
class JudgeExample:
    """One worked judgement. An empty `principle` means that one is drawn; an empty `thought` that none is shown."""

    prompt: tuple[Message, ...]
    principle: str
    a: str
    b: str
    answer: Literal["A", "B"]
    thought: str = ""


@dataclass(frozen=True)
class Constitution:
    """Principles and few-shot examples, ready to draw from."""

    name: str
    principles: tuple[Principle, ...]
    few_shot_critique: tuple[CritiqueExample, ...] = ()
    few_shot_judge: tuple[JudgeExample, ...] = ()
    description: str = ""
    _pools: dict[Stage | None, _Pool] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pools: dict[Stage | None, _Pool] = {stage: _Pool(self.having(stage)) for stage in STAGES}
        object.__setattr__(self, "_pools", {None: _Pool(self.principles), **pools})

    def __getitem__(self, principle_id: str) -> Principle:
        """Return the principle with this id; raises KeyError."""
        for principle in self.principles:
            if principle.id == principle_id:
                return principle
        raise KeyError(principle_id)

    def having(self, *stages: Stage) -> tuple[Principle, ...]:
        """Return the principles that have a text for each of `stages`, in the file's order."""
        return tuple(p for p in self.principles if all(getattr(p, stage) is not None for stage in stages))

    def draw(self, seed: int, uid: str, slot: str | int, k: int = 1, stage: Stage | None = None) -> tuple[Principle, ...]:
        """Return `k` different principles for one row, the likeliest first.

        Rendezvous hashing over the ids, by weight: editing a text moves no row, and adding or removing a principle moves only
        the rows that must move. `slot` (a round's number, say) makes draws independent. With `stage`, only the principles that
        have that text take part.

        Raises:
            ValueError: there are fewer than `k` principles.
        """
        pool = self._pools[stage]
        if not 0 < k <= len(pool.principles):
            known = f"{len(pool.principles)} principles{f' with a {stage} text' if stage else ''}"
            raise ValueError(f"constitution {self.name} has {known}, can't draw {k}")
        return pool.draw(_hash64(f"{seed}\0{uid}\0{slot}"), k)


class _Pool:
    """Principles with what a draw needs of them, computed once: a draw takes about 3 us."""

    __slots__ = ("even", "principles", "salts", "weights")

    def __init__(self, principles: Sequence[Principle]) -> None:
        self.principles = tuple(principles)
        self.salts = [_hash64(principle.id) | 1 for principle in principles]
        self.weights = [principle.weight for principle in principles]
        self.even = len(set(self.weights)) <= 1

    def draw(self, point: int, k: int) -> tuple[Principle, ...]:
        scores = [((point ^ salt) * salt) & _MASK for salt in self.salts]
        if self.even and k == 1:
            return (self.principles[scores.index(max(scores))],)
        ranks: list[float] = scores if self.even else list(map(_weighted, scores, self.weights))  # type: ignore[assignment]
        order = sorted(range(len(ranks)), key=ranks.__getitem__, reverse=True)
        return tuple(self.principles[index] for index in order[:k])


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


class _Turn(_Strict):
    role: Literal["system", "user", "assistant"]
    content: str


class _Prompted(_Strict):
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
            principle = _known(self.principle, principles)
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
            text = _known(text, principles).text("judge")
        return JudgeExample(self.messages(), text, self.a, self.b, self.answer, self.thought)


class _FewShot(_Strict):
    critique: tuple[_CritiqueEntry, ...] = ()
    judge: tuple[_JudgeEntry, ...] = ()


class _File(_Strict):
    caiflow_constitution: Literal[1]
    name: str = Field(min_length=1)
    description: str = ""
    principles: tuple[_PrincipleEntry, ...]
    few_shot: _FewShot = _FewShot()

    def constitution(self) -> Constitution:
        principles = tuple(entry.principle() for entry in self.principles)
        by_id = {principle.id: principle for principle in principles}
        return _checked(
            Constitution(
                name=self.name,
                description=self.description,
                principles=principles,
                few_shot_critique=tuple(entry.example(by_id) for entry in self.few_shot.critique),
                few_shot_judge=tuple(entry.example(by_id) for entry in self.few_shot.judge),
            )
        )


def load_constitution(value: str | Sequence[Any] | Mapping[str, Any], base_dir: Path = Path()) -> Constitution:
    """Return the constitution that a spec's `constitution:` names; relative paths start at `base_dir`.

    Raises:
        SpecError: a file is missing, has an unknown format, or breaks the format. Problems in a file have their place there;
            problems of a value in the spec have an empty file and their path below `constitution`.
    """
    if isinstance(value, str):
        path = source_path(value, base_dir).resolve()
        stat = path.stat()
        return _read(path, stat.st_mtime_ns, stat.st_size)
    if isinstance(value, Mapping):
        return _from_mapping(value, base_dir)
    if isinstance(value, Sequence) and value:
        return _from_list(value, base_dir)
    raise _wrong("", f"a name, a path, a mapping or a list of principles is expected, got {value!r}"[:200])


def bundled() -> tuple[str, ...]:
    """Return the names of the constitutions that come with caiflow."""
    return tuple(sorted(path.stem for path in _BUNDLED.glob("*.yaml")))


def source_path(value: str, base_dir: Path = Path()) -> Path:
    """Return the file that a name or path means; a bundled name counts only where `base_dir` has no such file.

    Raises:
        SpecError: there is none.
    """
    path = base_dir / value
    if path.is_file():
        return path
    if value in bundled():
        return _BUNDLED / f"{value}.yaml"
    near = difflib.get_close_matches(value, bundled(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"bundled are {', '.join(bundled())}; a path is relative to the spec"
    raise _wrong("", f"no constitution {value!r} and no such file", hint)


def rule_texts(rule: str) -> dict[Stage, str]:
    """Return the text of each stage for a rule such as `be honest`."""
    rule = rule.rstrip(". ")
    return {
        "critique": f"Read the assistant's last response and say in detail where it breaks this rule: {rule}. "
        "If it keeps the rule, say so.",
        "revision": f"Rewrite the assistant's last response so that it keeps this rule: {rule}. Keep what is helpful in it.",
        "judge": f"Compare the two responses by this rule: {rule}. Which response keeps it better?",
    }


def merge(parts: Iterable[Constitution], name: str = "") -> Constitution:
    """Return one constitution with everything of `parts`, in order.

    Raises:
        ValueError: two parts have a principle of the same id.
    """
    parts = tuple(parts)
    return _checked(
        Constitution(
            name=name or "+".join(dict.fromkeys(part.name for part in parts)),
            description=" ".join(part.description for part in parts if part.description),
            principles=tuple(principle for part in parts for principle in part.principles),
            few_shot_critique=tuple(example for part in parts for example in part.few_shot_critique),
            few_shot_judge=tuple(example for part in parts for example in part.few_shot_judge),
        )
    )


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


def findings(constitution: Constitution) -> Iterator[str]:
    """Yield what a reader should know though nothing is broken: missing texts and missing examples."""
    for stage in STAGES:
        lacking = [p.id for p in constitution.principles if getattr(p, stage) is None]
        if lacking:
            yield f"{len(lacking)} of {len(constitution.principles)} principles have no {stage} text: {', '.join(lacking[:8])}"
    if not constitution.few_shot_critique:
        yield "no few-shot examples for critique and revision"
    if not constitution.few_shot_judge:
        yield "no few-shot examples for judging"


@lru_cache(maxsize=32)
def _read(path: Path, _mtime_ns: int, size: int) -> Constitution:
    if size > MAX_BYTES:
        raise SpecError((Problem(str(path), 1, 1, "", f"{size} bytes are too many for a constitution, at most {MAX_BYTES}"),))
    try:
        text = path.read_text(encoding="utf-8-sig")
        data = read_data(text, path.stem)
    except UnicodeDecodeError as error:
        raise SpecError((Problem(str(path), 1, 1, "", f"not UTF-8 text: {error.reason} at byte {error.start}"),)) from None
    except FormatError as error:
        raise SpecError((Problem(str(path), error.line, error.col, "", str(error), error.hint),)) from None
    return _parse(data, str(path), text)


def _parse(data: Mapping[str, Any], file: str = "", text: str = "") -> Constitution:
    try:
        return _File.model_validate(dict(data)).constitution()
    except ValidationError as error:
        raise SpecError(tuple(_problem(finding["loc"], finding["msg"], file, text) for finding in error.errors())) from None
    except ValueError as error:
        raise SpecError((_problem((), str(error), file, text),)) from None


def _from_mapping(value: Mapping[str, Any], base_dir: Path) -> Constitution:
    if "source" not in value:
        return _parse({"caiflow_constitution": 1, "name": "in the spec", **value})
    unknown = sorted(set(map(str, value)) - {"source", "only", "without"})
    if unknown:
        raise _wrong(unknown[0], f"unknown key {unknown[0]!r}", "beside `source` there may be `only` or `without`")
    whole = load_constitution(value["source"], base_dir)
    only, without = (_ids(value, key, whole) for key in ("only", "without"))
    kept = tuple(p for p in whole.principles if (not only or p.id in only) and p.id not in without)
    if not kept:
        raise _wrong("without", "no principle is left")
    return replace(whole, principles=kept)


def _ids(value: Mapping[str, Any], key: str, whole: Constitution) -> frozenset[str]:
    given = value.get(key) or []
    names = [given] if isinstance(given, str) else list(given)
    known = {principle.id: principle for principle in whole.principles}
    for name in names:
        try:
            _known(str(name), known)
        except ValueError as error:
            raise _wrong(key, f"{whole.name}: {error}") from None
    return frozenset(names)


def _from_list(value: Sequence[Any], base_dir: Path) -> Constitution:
    parts, problems = [], []
    for index, item in enumerate(value):
        try:
            parts.append(_from_item(item, base_dir))
        except SpecError as error:
            problems += [p if p.file else replace(p, path=f"{index}.{p.path}".rstrip(".")) for p in error.problems]
    if problems:
        raise SpecError(tuple(problems))
    try:
        return merge(parts)
    except ValueError as error:
        raise _wrong("", str(error)) from None


def _from_item(item: Any, base_dir: Path) -> Constitution:
    if isinstance(item, Mapping) and not item.keys() & {"source", "principles"}:
        try:
            principle = _PrincipleEntry.model_validate(dict(item)).principle()
        except ValidationError as error:
            raise SpecError(tuple(_problem(finding["loc"], finding["msg"], "", "") for finding in error.errors())) from None
        except ValueError as error:
            raise _wrong("", str(error)) from None
        return Constitution("in the spec", (principle,))
    if isinstance(item, str | Mapping):
        return load_constitution(item, base_dir)
    raise _wrong("", f"a principle or a source is expected, got {item!r}"[:200])


def _checked(constitution: Constitution) -> Constitution:
    seen: set[str] = set()
    for principle in constitution.principles:
        if principle.id in seen:
            raise ValueError(f"two principles have the id {principle.id!r}; ids must differ, since the draw goes by them")
        seen.add(principle.id)
    return constitution


def _known(name: str, principles: Mapping[str, Principle]) -> Principle:
    if name in principles:
        return principles[name]
    near = difflib.get_close_matches(name, principles, n=1)
    raise ValueError(f"no principle {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _wrong(path: str, message: str, hint: str = "") -> SpecError:
    return SpecError((Problem("", 1, 1, path, f"constitution: {message}", hint),))


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


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _weighted(score: int, weight: float) -> float:
    """Return a rank by which a principle wins in proportion to its weight (weighted rendezvous hashing)."""
    return -weight / math.log((score + 0.5) / 2.0**64) if score < _MASK - 4096 else math.inf
