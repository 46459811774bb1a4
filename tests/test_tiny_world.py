"""The tiny world: its files follow from the seed, training and test never share a combination, lessons use the real formats."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest

from caiflow.engine.constitution.load import load_constitution
from caiflow.examples.tiny import lessons, world
from caiflow.examples.tiny.world import HERE, Harm
from caiflow.operators.evaluation.checks import STANDARD, compiled
from caiflow.operators.judging import prompts

SORTS: tuple[Harm, ...] = ("harmful", "harmless", "frightening")


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return [*lessons.lessons(lessons.first_lessons)[:3000], *lessons.lessons(lessons.later_lessons)[:3000]]


def test_the_data_files_are_those_the_seed_gives(tmp_path: Path) -> None:
    world.write_data(tmp_path)
    lessons.write_lessons(tmp_path)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {path.name for path in (HERE / "data").iterdir()}
    for name in made:
        given, wanted = (path.read_bytes() for path in (tmp_path / name, HERE / "data" / name))
        if name.endswith(".gz"):
            given, wanted = gzip.decompress(given), gzip.decompress(wanted)
        assert given == wanted, name


def test_training_and_test_combinations_are_disjoint() -> None:
    for harm in SORTS:
        train, test = ({task.text for task in world.split(harm, test=side)} for side in (False, True))
        assert not train & test
        assert len(test) / len(train | test) == pytest.approx(world.TEST_SHARE, abs=0.02)


def test_no_lesson_contains_a_held_out_combination(records: list[dict[str, Any]]) -> None:
    held_out = {task.text for harm in SORTS for task in world.split(harm, test=True)}
    asked = re.compile("|".join(re.escape(form).replace(r"\{task\}", "(.+)") for form in world.vocabulary()["requests"]))
    seen = set()
    for record in records:
        for turn in record.get("messages") or [{"content": record["text"]}]:
            seen |= {next(filter(None, found)) for found in asked.findall(turn["content"])}
    assert len(seen) > 1000
    assert not seen & held_out


def test_test_files_have_only_held_out_combinations() -> None:
    held_out = {task.text for harm in SORTS for task in world.split(harm, test=True)}
    for name, expected in {
        "red_team_test": True,
        "helpful_test": True,
        "frightening_test": True,
        "red_team_train": False,
    }.items():
        for line in (HERE / "data" / f"{name}.jsonl").read_text().splitlines():
            assert any(f" {task}" in line for task in held_out) == expected


@pytest.mark.parametrize("harm", SORTS)
def test_the_standard_checks_tell_the_stances_apart(harm: Harm) -> None:
    checks, rng = compiled(STANDARD), Random(1)
    expected = {"comply": "no_refusal_phrase", "refuse": "explained_refusal", "evade": "evasive_refusal"}
    for task in world.tasks(harm)[::7]:
        for stance in lessons.STANCES:
            row = {"response": world.answer(task, stance, rng)}
            met = {name for name in expected.values() if checks[name](row)}
            assert met == {expected[stance]}, row


def test_a_harmful_task_is_answered_best_by_an_explained_refusal() -> None:
    harmful, harmless = world.tasks("harmful")[0], world.tasks("harmless")[0]
    assert world.rank(harmful, "refuse") > world.rank(harmful, "evade") > world.rank(harmful, "comply")
    assert world.rank(harmless, "comply") > world.rank(harmless, "evade") > world.rank(harmless, "refuse")


def test_a_faultless_answer_stays_as_it_is() -> None:
    rng = Random(2)
    for harm in SORTS:
        task = world.tasks(harm)[3]
        given = world.answer(task, "refuse" if harm == "harmful" else "comply", rng)
        assert world.revision(task, "refuse" if harm == "harmful" else "comply", given, rng) == given


def test_lessons_never_teach_to_refuse_a_plain_request(records: list[dict[str, Any]]) -> None:
    first = lessons.lessons(lessons.first_lessons)[:4000]
    refusing = compiled(STANDARD)["refusal_phrase"]
    for record in first:
        talk = record.get("messages") or []
        for asked, said in zip(talk[::2], talk[1::2], strict=True):
            if any(asked["content"].startswith(form.split("{")[0]) for form in world.vocabulary()["requests"]):
                assert not refusing({"response": said["content"]})


def test_lessons_use_the_formats_that_operators_use(records: list[dict[str, Any]]) -> None:
    harmless = load_constitution("harmless")
    turns = [turn["content"] for record in records for turn in record.get("messages") or []]
    everything = set(turns)
    assert all(principle.critique_request in everything for principle in harmless.principles)
    assert all(principle.revision_request in everything for principle in harmless.principles)
    judged = [text for text in turns if text.startswith("Conversation:\n\nHuman: ") and "\n\nOptions:\n(A) " in text]
    assert all(any(principle.text("judge") in text for text in judged) for principle in harmless.principles)
    assert any(text.startswith(prompts.JUDGE_PREFILL) for text in turns)
    assert any(text.startswith(prompts.THOUGHT_PREFILL) and prompts.THOUGHT_END in text for text in turns)
    assert any(text.startswith(prompts.RATING_PREFILL) for text in turns)


def test_every_file_is_json_lines() -> None:
    for path in (HERE / "data").glob("*.jsonl"):
        assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
