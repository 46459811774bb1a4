"""The constitution format, and the draw: which row gets which principle, and which rows move when a constitution changes."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import pytest

from caiflow.engine.constitution.load import (
    STAGES,
    Constitution,
    Principle,
    bundled,
    dump,
    findings,
    load_constitution,
    merge,
)
from caiflow.engine.errors import SpecError
from caiflow.engine.yaml.reader import parse_yaml

OWN = """\
caiflow_constitution: 1
name: kind
principles:
  - {id: calm, critique: What is loud?, revision: Say it calmly., judge: Which is calmer?, guards: shouting}
  - {id: honest, rule: be honest}
few_shot:
  critique:
    - {prompt: Hi, response: WHAT, principle: calm, critique: It shouts., revision: Hello.}
  judge:
    - {prompt: Hi, principle: calm, a: WHAT, b: Hello., answer: B, thought: A shouts.}
"""
UIDS = [f"{number:020x}" for number in range(4000)]


def constitution(*ids: str, weights: tuple[float, ...] = ()) -> Constitution:
    given = weights or (1.0,) * len(ids)
    return Constitution("c", tuple(Principle(id=i, critique=f"{i}?", weight=w) for i, w in zip(ids, given, strict=True)))


def drawn(given: Constitution, slot: int = 0) -> list[str]:
    return [given.draw(17, uid, slot)[0].id for uid in UIDS]


def test_the_bundled_constitution_is_complete() -> None:
    harmless = load_constitution("harmless")
    assert "harmless" in bundled()
    assert len(harmless.principles) == 16
    assert all(p.guards and p.text(stage) for p in harmless.principles for stage in STAGES)
    assert (len(harmless.few_shot_critique), len(harmless.few_shot_judge)) == (5, 6)
    assert all(example.principle and example.thought for example in harmless.few_shot_judge)
    assert Counter(example.answer for example in harmless.few_shot_judge) == {"A": 3, "B": 3}
    assert list(findings(harmless)) == []


def test_texts_of_the_bundled_constitution_differ() -> None:
    harmless = load_constitution("harmless")
    for stage in STAGES:
        assert len({p.text(stage) for p in harmless.principles}) == 16


def test_own_format(tmp_path: Path) -> None:
    (tmp_path / "kind.yaml").write_text(OWN)
    kind = load_constitution("kind.yaml", tmp_path)
    assert [p.id for p in kind.principles] == ["calm", "honest"]
    assert "be honest" in kind["honest"].text("judge")
    (critique,) = kind.few_shot_critique
    assert (critique.critique_request, critique.revision_request) == ("What is loud?", "Say it calmly.")
    assert critique.prompt == ({"role": "user", "content": "Hi"},)
    (judged,) = kind.few_shot_judge
    assert (judged.principle, judged.answer) == ("Which is calmer?", "B")


def test_a_constitution_in_the_spec() -> None:
    given = load_constitution([{"id": "calm", "rule": "stay calm"}, {"source": "harmless", "only": ["p02-theft"]}])
    assert [p.id for p in given.principles] == ["calm", "p02-theft"]
    assert len(given.few_shot_critique) == 5


def test_principles_can_be_left_out() -> None:
    given = load_constitution({"source": "harmless", "without": "p01-violence"})
    assert len(given.principles) == 15
    assert "p01-violence" not in {p.id for p in given.principles}


def test_dump_loads_back_equal(tmp_path: Path) -> None:
    for name in ("harmless", "kind.yaml"):
        (tmp_path / "kind.yaml").write_text(OWN)
        original = load_constitution(name, tmp_path)
        (tmp_path / "again.yaml").write_text(dump(original))
        assert load_constitution("again.yaml", tmp_path) == original


def test_it_pickles_and_draws_the_same() -> None:
    harmless = load_constitution("harmless")
    again = pickle.loads(pickle.dumps(harmless))
    assert again == harmless
    assert drawn(again) == drawn(harmless)


def test_draws_are_even_and_slots_independent() -> None:
    harmless = load_constitution("harmless")
    first, second = drawn(harmless), drawn(harmless, slot=1)
    expected = len(UIDS) / 16
    chi2 = sum((count - expected) ** 2 / expected for count in Counter(first).values())
    assert len(set(first)) == 16
    assert chi2 < 44  # 15 degrees of freedom: one in ten thousand
    agree = sum(a == b for a, b in zip(first, second, strict=True)) / len(UIDS)
    assert agree == pytest.approx(1 / 16, abs=0.016)


def test_weights_steer_the_draw() -> None:
    counts = Counter(drawn(constitution("a", "b", weights=(3.0, 1.0))))
    assert counts["a"] / len(UIDS) == pytest.approx(0.75, abs=0.03)


def test_editing_a_text_moves_no_row() -> None:
    before = constitution("a", "b", "c")
    after = Constitution("c", tuple(p.model_copy(update={"critique": "edited"}) for p in before.principles))
    assert drawn(before) == drawn(after)


def test_removing_a_principle_moves_only_its_rows() -> None:
    before, after = drawn(constitution("a", "b", "c", "d")), drawn(constitution("a", "b", "d"))
    assert all(new == old for old, new in zip(before, after, strict=True) if old != "c")
    assert {new for old, new in zip(before, after, strict=True) if old == "c"} == {"a", "b", "d"}


def test_order_in_the_file_does_not_matter() -> None:
    assert drawn(constitution("a", "b", "c")) == drawn(constitution("c", "a", "b"))


def test_several_principles_are_different_and_begin_with_the_single_draw() -> None:
    given = constitution("a", "b", "c", "d")
    for uid in UIDS[:200]:
        three = given.draw(17, uid, 0, k=3)
        assert len({p.id for p in three}) == 3
        assert three[0] == given.draw(17, uid, 0)[0]
    with pytest.raises(ValueError, match="can't draw 5"):
        given.draw(17, "u", 0, k=5)


@pytest.mark.parametrize("given", [load_constitution("harmless"), constitution("a", "b", weights=(3.0, 1.0))])
def test_many_draws_at_once_are_the_single_draws(given: Constitution) -> None:
    for slots in (range(2, 7), [1], ["a", "b"], []):
        found = given.draw_all(17, [(uid, slots) for uid in UIDS[:50]])
        assert found == [[given.draw(17, uid, slot)[0] for slot in slots] for uid in UIDS[:50]]
    mixed = [("u", [1]), ("v", []), ("w", range(3))]
    assert [*map(len, given.draw_all(17, mixed))] == [1, 0, 3]
    with pytest.raises(ValueError, match="can't draw 1"):
        Constitution("none", ()).draw_all(17, [("u", [0])])


def test_a_stage_draws_only_principles_with_that_text() -> None:
    judge_only = Constitution("j", (Principle(id="j", judge="Which?"),))
    both = merge([constitution("a", "b"), judge_only])
    assert {both.draw(17, uid, 0, stage="critique")[0].id for uid in UIDS[:200]} == {"a", "b"}
    assert both.draw(17, "u", 0, stage="judge")[0].id == "j"
    with pytest.raises(ValueError, match="no `revision` text"):
        both["j"].text("revision")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (OWN.replace("guards:", "gards:"), 4, "gards"),
        (OWN.replace("answer: B", "answer: C"), 10, "answer"),
        (OWN.replace("principle: calm, critique", "principle: clam, critique"), 8, "did you mean 'calm'"),
        (OWN.replace("id: honest, rule: be honest", "id: calm, rule: be honest"), 5, "two principles have the id 'calm'"),
        (OWN.replace(", rule: be honest", ""), 5, "'honest' says nothing"),
        (OWN.replace("id: calm", "id: &x calm").replace("be honest", "*x"), 5, "aliases"),
        (OWN.replace("name: kind", "name: [kind"), 3, "not valid YAML"),
        ('{"caiflow_constitution": 1,', 1, "not valid JSON"),
        ('{"neither": 1}', 1, "not a constitution"),
        ("", 1, "not a constitution"),
    ],
)
def test_broken_files_say_where_and_what(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_constitution("broken.yaml", tmp_path)
    problem = caught.value.problems[0]
    assert (problem.file, problem.line) == (str(path), line)
    assert message in str(problem)


@pytest.mark.parametrize(
    ("value", "path", "message"),
    [
        ("harmles", "", "did you mean 'harmless'"),
        ([{"id": "a", "rule": "be kind"}, {"id": "b", "rul": "x"}], "1.rul", "rul"),
        ([{"id": "a", "rule": "be kind"}, {"id": "a", "rule": "be calm"}], "1.id", "two principles"),
        ([{"id": "a", "rule": "be kind"}, {"source": "harmles"}], "1.source", "did you mean 'harmless'"),
        ({"source": "harmless", "without": ["p01"]}, "without", "no principle 'p01'"),
        ({"source": "harmless", "only": 3}, "only", "the ids of principles are expected, got 3"),
        ({"source": "harmless", "without": [["p01-violence"]]}, "without", "the ids of principles are expected"),
        ({"source": "harmless", "only": {"p01-violence": 1}}, "only", "the ids of principles are expected"),
        ({"source": "harmless", "exclude": []}, "exclude", "unknown key"),
        ({"source": "harmless", "only": []}, "only", "no principle is left"),
        ({"source": "harmless", "only": "p01-violence", "without": "p01-violence"}, "only", "no principle is left"),
        ([], "", "expected"),
        (7, "", "expected"),
    ],
)
def test_wrong_values_in_a_spec_say_where_and_what(value: object, path: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_constitution(value)  # type: ignore[arg-type]
    assert caught.value.problems[0].path == path
    assert message in str(caught.value)


LISTED = """\
- {id: calm, critique: What is loud?, revision: Say it calmly., judge: Which is calmer?}
- id: honest
  rule: be honest
"""


def test_a_file_may_be_a_list_of_principles(tmp_path: Path) -> None:
    for name, text in {"list.yaml": LISTED, "list": LISTED, "flow.yaml": "[{id: calm, rule: be calm}, {id: honest}]"}.items():
        (tmp_path / name).write_text(text.replace("{id: honest}", "{id: honest, rule: be honest}"))
        assert [p.id for p in load_constitution(name, tmp_path).principles] == ["calm", "honest"]
    listed, in_spec = load_constitution("list.yaml", tmp_path), load_constitution(parse_yaml(LISTED, "").plain())
    assert (listed.name, listed.principles) == ("list", in_spec.principles)


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (LISTED.replace("  rule", "  ruel"), (3, 3), "principle 'honest': unknown key `ruel`; did you mean `rule`?"),
        (LISTED.replace("id: honest", "id: calm"), (2, 3), "two principles have the id 'calm'; ids must differ"),
        (LISTED.replace("{id: calm, ", "{"), (1, 3), "a principle: `id` is missing; add `id:`"),
        (
            LISTED.replace("rule: be honest", "rule: 3"),
            (3, 3),
            "principle 'honest': rule: a text is expected, got 3; put it in",
        ),
        (LISTED.replace("rule: be honest", "rule: ''"), (3, 3), "principle 'honest': rule: it is empty; write a text"),
        (LISTED.replace("id: calm", "id: be calm"), (1, 4), "principle 'be calm': id: an id has no spaces; write `be-calm`"),
        (LISTED + "- {id: rude, rule: a: b}\n", (4, 21), "not valid YAML"),
        (LISTED + "- harmless\n", (4, 3), "a mapping is expected, got 'harmless'"),
        (LISTED + "- source: harmless\n", (4, 3), "only a spec takes principles from elsewhere"),
        (OWN.replace("few_shot:", "few_shots:"), (6, 1), "unknown key `few_shots`; did you mean `few_shot`?"),
        (OWN.replace("thought:", "thougt:"), (10, 68), "unknown key `thougt`; did you mean `thought`?"),
    ],
)
def test_problems_in_a_file_stand_at_their_key(tmp_path: Path, text: str, place: tuple[int, int], message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SpecError) as caught:
        load_constitution("mine.yaml", tmp_path)
    problem = next(found for found in caught.value.problems if message in str(found))
    assert (problem.file, problem.line, problem.col) == (str(tmp_path / "mine.yaml"), *place)


def test_a_repeated_id_is_reported_where_it_comes_again() -> None:
    with pytest.raises(SpecError) as caught:
        load_constitution(
            [{"id": "p02-theft", "rule": "be fair"}, "harmless", {"id": "a", "rule": "x"}, {"id": "a", "rule": "y"}]
        )
    assert [problem.path for problem in caught.value.problems] == ["1", "3.id"]
