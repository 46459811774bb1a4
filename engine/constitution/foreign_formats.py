"""Constitution files of other systems, told apart by their content and turned into caiflow's own format.

Owns the decoding of a file's text and the knowledge of each released format. Returns plain data in the format that
`load` documents. Never looks at a file's name, never checks the result and never draws.

A text that is YAML by chance (`Rules: be kind.`) stays a text, unless its file's name says YAML.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from caiflow.engine.constitution import prose
from caiflow.engine.constitution.judge_prompts import judge_prompts, score_rubric
from caiflow.engine.constitution.others_names import clean, first, renamed, slug, table_rows, without_others_keys
from caiflow.engine.errors import SpecError, WrongValue
from caiflow.engine.yaml.reader import parse_yaml

Data = dict[str, Any]
_ROLES = {"human": "user", "user": "user", "h": "user", "assistant": "assistant", "gpt": "assistant", "a": "assistant"}
_TURN = r"(?:^|\n)\s*(Human|Assistant|CritiqueRequest|Critique|RevisionRequest|Revision)\s*:[ \t]*"
_SHORT_TURN = r"(?:^|\n)\s*(Human|Assistant|H|A)\s*:[ \t]*"
_PREAMBLE = r"(?i)^\s*(?:Human:\s*)?Consider the following conversation[^\n]*\n"
_THOUGHT = r"(?i)(?:Assistant:\s*)?Let['’]s think step[- ]by[- ]step\s*[:.]?"
_ANSWER = r"(?i)(?:Human:\s*)?So,? the answer is\s*:?\s*\(?([AB])\)?"
_PRINCIPLE_KEYS = {"id", "critique", "revision", "judge", "rule", "source"}
_SPEC_KEYS = {"caiflow", "steps"}
_OWN_KEYS = {"caiflow", "caiflow_constitution", "principles", "steps", "few_shot", "constitutions", "samples"}
_FILE_KEYS = ("caiflow_constitution", "name", "description", "principles", "few_shot")
_BEGUN = r"(?m)^(?:(?:caiflow|caiflow_constitution|principles)|-\s+\{?\s*(?:id|critique|judge|rule))\s*:"
"""The beginning of a constitution, so that broken YAML isn't taken for prose."""
_OPTION = r"(?s)\(([AB])\)\s*\[\[\[(.*?)\]\]\]"


_SPEAKS = (
    r"(?mi)^\W*(?:Human|Assistant|User|AI|System|Bot|GPT|Q|A)\W*:"
    r"|<\|(?:im_start|start_header_id|user|assistant|system)\|>|\[INST\]"
)
_PLACE = r"\{+\s*(?:question|answer|prompt|response|instruction|input|output|conversation)(?:_\w+)?\s*\}+"
_MARKUP = r"(?i)\s*(?:<!doctype|<html|<\?xml)"


class FormatError(WrongValue):
    """A file can't be read as any constitution; `line` and `col` count from 1."""

    def __init__(self, message: str, hint: str = "", *, line: int = 1, col: int = 1) -> None:
        super().__init__(message, hint)
        self.line, self.col = line, col


def read_data(text: str, name: str, structured: bool = False) -> Data:
    """Return what a file says, in caiflow's own format; `name` serves where the file's format has none.

    `structured` says that the file's name promises YAML or JSON.

    Raises:
        FormatError: the text is broken, or of no known format.
    """
    data = _decode(text, structured)
    if isinstance(data, Mapping) and "caiflow_constitution" in data:
        return _own(data, name)
    if isinstance(data, Mapping) and data.keys() & _SPEC_KEYS:
        raise _refusal(data)
    for what, convert in FORMATS.items():
        try:
            found = convert(data)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            why = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
            raise FormatError(f"this looks like {what}, but {why}") from None
        if found is not None:
            return {"caiflow_constitution": 1, "name": name, "principles": [], **found}
    raise _refusal(data)


def convert_data(text: str, name: str, structured: bool = False) -> Data:
    """Return what a file says that `read_data` refuses for its form alone: a table, others' keys, no line that says what it is.

    Raises:
        FormatError: there is no form in which it says anything.
    """
    data = _decode(text, structured)
    if isinstance(data, str) and (rows := table_rows(data)) is not None and (found := renamed(rows)):
        return {"caiflow_constitution": 1, "name": name, **found}
    if isinstance(data, Mapping) and "principles" in data and not data.keys() & _SPEC_KEYS:
        own = without_others_keys(data, _FILE_KEYS)
        return {"name": name, **own, "caiflow_constitution": 1}
    if _has_principles(data):
        return {"name": name, **without_others_keys({"principles": data}, _FILE_KEYS), "caiflow_constitution": 1}
    raise _refusal(data)


def _own(data: Mapping[str, Any], name: str) -> Data:
    """Return data in caiflow's own format; where principles in it have their texts under others' names, in caiflow's names.

    Such a file was written for something else, so what only describes it (a version, categories) is left out.
    """
    try:
        found = renamed(data)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise FormatError(f"its principles have others' names, but {error}") from None
    kept = {key: value for key, value in data.items() if key in _FILE_KEYS and key != "principles"}
    return {"name": name, **kept, **found} if found else dict(data)


def _refusal(data: Any) -> FormatError:
    if isinstance(data, Mapping) and data.keys() & _SPEC_KEYS:
        return FormatError(
            "this is a caiflow spec, not a constitution", "`caiflow validate` checks a spec and its constitution"
        )
    if isinstance(data, Mapping) and "principles" in data:
        said = "this has `principles`, but doesn't say that it is a constitution"
        return FormatError(said, "add the line `caiflow_constitution: 1`")
    known = "; ".join(FORMATS)
    shown = f": a mapping of {', '.join(list(map(str, data))[:5])}" if isinstance(data, Mapping) and data else ""
    return FormatError(f"not a constitution{shown}", f"begin it with `caiflow_constitution: 1`, or give one of: {known}")


def _decode(text: str, structured: bool) -> Any:
    """Return what a JSON or YAML text holds, or the text itself where it is prose."""
    if text.lstrip()[:1] == '"' and (texts := _json_lines(text, str)) is not None:
        return texts
    if text.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            refused = FormatError(f"not valid JSON: {error.msg}", line=error.lineno, col=error.colno)
        except RecursionError:
            raise FormatError("nested too deep") from None
        if (lines := _json_lines(text, dict)) is not None:
            return lines
        try:
            return _yaml(text)
        except FormatError:
            raise refused from None
    try:
        data = _yaml(text)
    except FormatError:
        if structured or re.search(_BEGUN, text):
            raise
        return text
    if isinstance(data, Mapping):
        return data if structured or data.keys() & _OWN_KEYS else text
    if isinstance(data, list):
        listed = structured and (_strings(data) or any(isinstance(item, Mapping) for item in data))
        return data if listed or _has_principles(data) or _has_requests(data) or _has_options(data) else text
    return data if data is None and structured else text


def _json_lines(text: str, kind: type) -> list[Any] | None:
    """Return what JSON lines hold; None where some line is something else."""
    try:
        found = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (json.JSONDecodeError, RecursionError):
        return None
    return found if all(isinstance(item, kind) for item in found) else None


def _yaml(text: str) -> Any:
    try:
        return parse_yaml(text, "", aliases=False).plain()
    except SpecError as error:
        first = error.problems[0]
        raise FormatError(first.message, first.hint, line=first.line, col=first.col) from None


def _requests(data: Any) -> Data | None:
    if not (isinstance(data, Mapping) and data and all(isinstance(v, Mapping) and "edit_request" in v for v in data.values())):
        return None
    pairs = ((key, clean(first(value["prompt"])), clean(first(value["edit_request"]))) for key, value in data.items())
    return {"principles": [{"id": "-".join(str(key).split()), "critique": c, "revision": r} for key, c, r in pairs]}


def _critique_texts(data: Any) -> Data | None:
    if not _has_requests(data):
        return None
    return {"few_shot": {"critique": [_critique_text(text) for text in data]}}


def _instructions(data: Any) -> Data | None:
    if not _has_options(data):
        return None
    return {"principles": [{"id": f"judge{number}", "judge": clean(text)} for number, text in enumerate(data)]}


def _comparisons(data: Any) -> Data | None:
    if not _records(data, "prompt", "corrects", "incorrects"):
        return None
    return {"few_shot": {"judge": [_comparison(record) for record in data]}}


def _thoughts(data: Any) -> Data | None:
    if not (_records(data, "prompt") and all(re.search(_ANSWER, str(record["prompt"])) for record in data)):
        return None
    return {"few_shot": {"judge": [_thought(record["prompt"]) for record in data]}}


def _swarm(data: Any) -> Data | None:
    if not (isinstance(data, Mapping) and "constitutions" in data):
        return None
    pairs = [(clean(entry["critic"]), clean(entry["revision"])) for entry in data["constitutions"]]
    principles = [{"id": f"principle{number}", "critique": c, "revision": r} for number, (c, r) in enumerate(pairs)]
    return {"principles": principles, "few_shot": {"critique": [_chat(chat) for chat in data.get("system_chat", ())]}}


def _nemo(data: Any) -> Data | None:
    if not (isinstance(data, Mapping) and "samples" in data):
        return None
    return {"few_shot": {"critique": [_chat(chat) for chat in data["samples"]]}}


def _listed(data: Any) -> Data | None:
    return {"principles": data} if _has_principles(data) else None


def _rules(data: Any) -> Data | None:
    if not _strings(data):
        return None
    names: list[str] = []
    for rule in data:
        name = slug(rule) or "rule"
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return {"principles": [{"id": name, "rule": rule} for name, rule in zip(names, data, strict=True)]}


def _plain_text(data: Any) -> Data | None:
    if not (isinstance(data, str) and data.strip()) or "\0" in data:
        return None
    if len(re.findall(_SPEAKS, data)) > 1:
        raise ValueError("it is a dialogue, whose turns aren't principles")
    if re.search(_PLACE, data):
        raise ValueError("it is a template, with places for a question or an answer")
    if re.match(_MARKUP, data):
        raise ValueError("it is a page of a website")
    if table_rows(data) is not None:
        raise ValueError("it is a table of comma-separated values: write its rows as JSON lines, {principle: ...} each")
    if found := prose.principles(data):
        return {"principles": found}
    texts = {stage: f"{data.strip()}\n\n{asked}" for stage, asked in _ALL_RULES.items()}
    return {"principles": [{"id": "rules", **texts}]}


_ALL_RULES = {
    "critique": "These are rules. Say in detail where the assistant's last response goes against any of them. If it keeps them "
    "all, say so.",
    "revision": "These are rules. Rewrite the assistant's last response so that it keeps them all. Keep what is helpful in it.",
    "judge": "Weigh the two responses by all of these rules. Which response keeps them better?",
}
"""What is asked under a text of rules at each stage."""


FORMATS: Mapping[str, Callable[[Any], Data | None]] = {
    "Anthropic's critique and revision requests ({name: {prompt, edit_request}})": _requests,
    "Anthropic's critique and revision few-shots (a list of Human/Assistant/CritiqueRequest/... texts)": _critique_texts,
    "Anthropic's judging instructions (a list of texts that end `Options:`)": _instructions,
    "Anthropic's judging few-shots (a list of {prompt, corrects, incorrects})": _comparisons,
    "Anthropic's judging few-shots with a chain of thought (a list of {prompt})": _thoughts,
    "llm-swarm's constitution ({constitutions: [{critic, revision}], system_chat})": _swarm,
    "NeMo-Aligner's few-shots ({samples: [six {role, content} each]})": _nemo,
    "judge prompts of MT-bench's shape ({system_prompt, prompt_template} each)": judge_prompts,
    "a rubric of scores ({criteria, score1_description, ...})": score_rubric,
    "principles in others' names ({name, text|principle|trait, critique_request, ...} each, or {name: text})": renamed,
    "a list of caiflow's principles ([{id, critique, revision, judge}])": _listed,
    "a list of rules ([be kind, be honest])": _rules,
    "a plain text of rules (numbered or under several headings, else it is one principle)": _plain_text,
}
"""The readers by what they read, in the order in which they are tried; each returns None for what is something else."""


def _critique_text(text: str) -> Data:
    turns = _turns(text)
    labels = [label for label, _ in turns]
    if "CritiqueRequest" not in labels or labels[labels.index("CritiqueRequest") - 1] != "Assistant":
        raise ValueError("an example has no assistant turn and critique request after it")
    start = labels.index("CritiqueRequest")
    parts = dict(turns[start : start + 4])
    return {
        "prompt": _messages(turns[: start - 1]),
        "response": turns[start - 1][1],
        "critique_request": parts["CritiqueRequest"],
        "critique": parts["Critique"],
        "revision_request": parts["RevisionRequest"],
        "revision": parts["Revision"],
    }


def _comparison(record: Mapping[str, Any]) -> Data:
    """Return the example with the correct answer under a letter that its text decides (the published reader tosses a coin)."""
    good, bad = first(record["corrects"]).strip(), first(record["incorrects"]).strip()
    good_first = hashlib.blake2b(f"{record['prompt']}\0{good}\0{bad}".encode(), digest_size=1).digest()[0] % 2
    options = {"a": good, "b": bad, "answer": "A"} if good_first else {"a": bad, "b": good, "answer": "B"}
    return {"prompt": _messages(_turns(record["prompt"])), **options}


def _thought(text: str) -> Data:
    pieces = re.split(_THOUGHT, text, maxsplit=1)
    options = dict(re.findall(_OPTION, pieces[0]))
    if len(pieces) != 2 or set(options) != {"A", "B"}:
        raise ValueError("an example lacks its chain of thought or the options (A) and (B)")
    end = next(re.finditer(_ANSWER, pieces[1]))
    conversation = re.sub(_PREAMBLE, "", re.split(r"\{\}|\n\s*\(A\)", pieces[0], maxsplit=1)[0])
    return {
        "prompt": _messages(_turns(conversation, _SHORT_TURN)),
        "a": options["A"].strip(),
        "b": options["B"].strip(),
        "answer": end[1].upper(),
        "thought": pieces[1][: end.start()].strip(),
    }


def _chat(messages: Sequence[Mapping[str, str]]) -> Data:
    turns = [(_ROLES.get(turn["role"].lower(), turn["role"]), turn["content"].strip()) for turn in messages]
    if [role for role, _ in turns[-6:]] != ["user", "assistant"] * 3:
        raise ValueError(f"an example needs six turns of user and assistant, got {[role for role, _ in turns]}")
    response, critique_request, critique, revision_request, revision = (content for _, content in turns[-5:])
    return {
        "prompt": [{"role": role, "content": content} for role, content in turns[:-5]],
        "response": response,
        "critique_request": clean(critique_request),
        "critique": critique,
        "revision_request": clean(revision_request),
        "revision": revision,
    }


def _turns(text: str, pattern: str = _TURN) -> list[tuple[str, str]]:
    """Return (label, text) of each turn of a transcript that isn't empty."""
    pieces = re.split(pattern, text)[1:]
    pairs = ((label, piece.strip()) for label, piece in zip(pieces[::2], pieces[1::2], strict=True))
    return [(label, piece) for label, piece in pairs if piece]


def _messages(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    if not turns:
        raise ValueError("an example has no conversation")
    return [{"role": _ROLES[label.lower()], "content": text} for label, text in turns]


def _has_principles(data: Any) -> bool:
    return isinstance(data, list) and any(isinstance(item, Mapping) and item.keys() & _PRINCIPLE_KEYS for item in data)


def _has_requests(data: Any) -> bool:
    return _strings(data) and any("RevisionRequest:" in text for text in data)


def _has_options(data: Any) -> bool:
    return _strings(data) and all(text.rstrip().endswith("Options:") for text in data)


def _strings(data: Any) -> bool:
    return isinstance(data, list) and bool(data) and all(isinstance(item, str) for item in data)


def _records(data: Any, *keys: str) -> bool:
    wanted = set(keys)
    return isinstance(data, list) and bool(data) and all(isinstance(item, Mapping) and wanted <= item.keys() for item in data)
