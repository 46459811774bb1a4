"""`induce`: principles that were planted in preferences are found again, and serve later steps as their constitution."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from caiflow.engine.constitution.load import MADE, load_constitution
from caiflow.engine.errors import EngineError, SpecError, StepError
from caiflow.engine.identity import digest
from caiflow.engine.llm.base import Answer, Completion, Request
from caiflow.engine.operator import Expected, Job, StepContext
from caiflow.engine.plan.plan import make_plan
from caiflow.engine.rows.folder import Rows, RowsWriter
from caiflow.engine.spec.load import load_spec
from caiflow.engine.store.artifacts import Store
from caiflow.operators.inducing.clusters import Cluster, beside, gathered
from caiflow.operators.inducing.induce import Induce, InduceParams
from caiflow.operators.inducing.proposals import divided, drawn, statements
from caiflow.operators.inducing.votes import Tested as Voted
from caiflow.operators.inducing.votes import clear
from support.bad_server import bad_server, said
from support.commands import run_here
from support.planted_preferences import SIGHTS, WORDINGS, planted_pairs, reply
from support.row_llm import Asked, RuleLLM, RuleLLMs
from support.runs_without_ray import AskedLink, carried_out

SPEC = """\
caiflow: 1
name: small
models: {m: {source: served, base_url: "http://127.0.0.1:9/v1"}}
steps:
  pairs:    {op: load, source: pairs.jsonl}
  induced:  {op: induce, input: pairs, model: m}
  kept:     {op: judge, input: pairs, candidates: [chosen, rejected], model: m, principles: all, constitution: {step: induced}}
"""


def letters(text: str) -> dict[str, float]:
    """Return the log-probabilities that an answer of one letter amounts to."""
    return {letter: -0.1 if letter == text else -3.0 for letter in "ABC"}


RULES = RuleLLM(lambda asked: reply(asked.last), lambda asked: letters(reply(asked.last)))


def induced(tmp_path: Path, pairs: list[dict[str, Any]], llm: RuleLLM = RULES, **fields: Any) -> tuple[dict[str, Any], Path]:
    with RowsWriter(tmp_path / "pairs") as out:
        out.write_rows([{"uid": str(n), **pair} for n, pair in enumerate(pairs)])
    step = Induce(InduceParams(input="pairs", model="m", **fields), StepContext(seed=3))
    job = Job(tmp_path / "out", {"pairs": Rows(tmp_path / "pairs")})
    job.out_dir.mkdir()
    return dict(asyncio.run(step.measure(job, RuleLLMs({"m": llm})))), job.out_dir


def sights(found: dict[str, Any]) -> list[str]:
    """Return what the principles found are about."""
    told = [one["statement"] for one in found["principles"].values()]
    return [name for statement in told for name, texts in WORDINGS.items() if statement in texts]


def test_planted_principles_are_found_again_in_their_order_and_predict_what_was_held_out(tmp_path: Path) -> None:
    llm = RuleLLM(RULES.say, RULES.choose_by)
    found, out = induced(tmp_path, planted_pairs(240, wrong=0.1, seed=2), llm)
    constitution = load_constitution(MADE, out)
    assert sights(found) == ["source", "example"]
    assert [one.id for one in constitution.principles] == list(found["principles"])
    assert all(one.critique and one.revision and one.judge for one in constitution.principles)
    figure = found["reconstruction"]
    assert figure["low"] <= 0.9 <= figure["high"], "of the pairs 10% are the other way round"
    assert found["without"]["rate"] < figure["low"], "by chance"
    assert found["pairs"]["held_out"] == figure["n"]
    assert sum(found["pairs"].values()) == 240
    shouting = [row for row in Rows(out / "votes").pylist() if row["statement"] == "shouts"]
    assert {row["vote"] for row in shouting} == {"for", "against", "neither"}, "it was tested, and isn't kept"
    held_out = {f"thing {row['uid']}?" for row in Rows(tmp_path / "pairs").pylist()} - {
        f"thing {row['uid']}?" for row in Rows(out / "votes").pylist()
    }
    assert len(held_out) == figure["n"]
    proposing = [asked.last for asked in llm.asked if "reasons" in asked.last or "statement" in asked.last]
    assert not any(thing in asked for asked in proposing for thing in held_out), "no proposal saw what is held out"


def test_what_nothing_speaks_for_is_said_and_calls_are_foretold(tmp_path: Path) -> None:
    pairs = planted_pairs(40)
    aimless = RuleLLM(lambda asked: "is longer\nis of a better kind", lambda asked: letters("C"))
    with pytest.raises(
        StepError, match="none of 2 statements was clearly voted for; the best, 'is longer', had 0 for, 0 against, of 3"
    ):
        induced(tmp_path / "a", pairs, aimless)
    with pytest.raises(StepError, match="statements was clearly voted for"):
        induced(tmp_path / "d", planted_pairs(120, wrong=0.5, seed=3))
    with pytest.raises(StepError, match="no answer of the model has a statement that can be read"):
        induced(tmp_path / "c", pairs, RuleLLM(lambda asked: ""))
    with pytest.raises(StepError, match="too few to hold some out"):
        induced(tmp_path / "b", pairs[:1])
    step = Induce(InduceParams(input="pairs", model="m", candidates=10), StepContext())
    assert step.calls_expected({"pairs": Expected(100, exact=True)}) == (80 * 2 + 2 * 2 * 80 * 10 + 4 * 20, False)
    (told,) = Induce(InduceParams(input="p", model="m", candidates=3, principles=5), StepContext()).check()
    assert told.message == "of 3 statements there can't be 5 principles"
    own = InduceParams(input="p", model="m", statements=("is longer", "is shorter"), proposals=0)
    assert not list(Induce(own, StepContext()).check()), "they are five only where nobody says"
    measure = step.measures()[0]
    assert measure.figure is not None
    assert measure.figure({"reconstruction": {"rate": 0.5}, "without": {"rate": 0.75}}) == 0.25
    assert measure.figure({"reconstruction": {"rate": 0.9}, "without": {"rate": 0.75}}) == 0


def test_a_liking_for_a_letter_decides_no_vote(tmp_path: Path) -> None:
    def biased(asked: Asked) -> dict[str, float]:
        named = reply(asked.last)
        return {letter: -3.0 * (letter != "A") + (letter == named) for letter in "ABC"}

    llm = RuleLLM(RULES.say, biased)
    found, out = induced(tmp_path, planted_pairs(160), llm, principles=2)
    assert {max("ABC", key=biased(asked).__getitem__) for asked in llm.asked if asked.choices} == {"A"}, (
        "its letter tells nothing"
    )
    assert sights(found) == ["source", "example"]
    asked_twice = {(row["uid"], row["statement"]) for row in Rows(out / "votes").pylist()}
    votes = [asked for asked in llm.asked if "(C) Neither" in asked.last and "better one by it" in asked.last]
    assert len(votes) == 2 * len(asked_twice)


def test_a_model_that_votes_alike_whatever_it_is_asked_finds_nothing(tmp_path: Path) -> None:
    def source_first(asked: Asked) -> dict[str, float]:
        first, second = asked.last.split("Options:")[1].split("(B)")
        return {"A": "according" in first, "B": "according" in second, "C": 0.5}

    pairs = [pair for pair in planted_pairs(160) if "according" in pair["chosen"] and "according" not in pair["rejected"]]
    with pytest.raises(
        StepError, match=r"votes alike whatever it is asked: .* is the worse one by it, too, in (\d+) of \1 votes"
    ):
        induced(tmp_path, pairs, RuleLLM(RULES.say, source_first))


def gaining(asked: Asked) -> list[float]:
    """Return what the model thinks of each word: long answers and any note are unlikely, what the note asks for is likely."""
    note, text = asked.last, asked.prefill
    wanted = [sign for name, sign in SIGHTS.items() if "(Write" in note and name in note.split("(Write")[1]]
    return [-2.0 - 0.05 * len(text.split()) - ("(Write" in note) + 0.3 * any(sign in text for sign in wanted)] * len(
        text.split()
    )


def test_what_makes_the_preferred_answer_likelier_is_found_where_a_model_has_no_letter(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"vote": "likelihood", "proposals": 0, "principles": 3}
    statements = ("gives its source", "gives an example", "shouts", "is a response", "is blue", "is red")
    llm = RuleLLM(score_by=gaining)
    found, _ = induced(tmp_path, planted_pairs(200, wrong=0.1), llm, statements=statements, **asked)
    assert [one["statement"] for one in found["principles"].values()] == ["gives its source", "gives an example"]
    assert {one.kind for one in llm.asked} == {"score"}
    voters, held = found["pairs"]["learnt"], found["pairs"]["held_out"]
    step = Induce(InduceParams(input="pairs", model="m", statements=statements, **asked), StepContext())
    assert step.calls_expected({"pairs": Expected(200, exact=True)}) == (2 * 6 * 160 + 2 * 7 * 40, False)
    assert len(llm.asked) == 2 * 6 * voters + 2 * 7 * held
    assert found["reconstruction"]["low"] > found["without"]["rate"]
    (told,) = Induce(
        InduceParams(input="p", model="m", **asked | {"principles": 1}, statements=("is kind",)), StepContext()
    ).check()
    assert told.message == "likelihoods are compared between statements, and there is one"


def test_where_preferences_are_drawn_by_chance_hardly_anything_is_found_however_many_statements_are_tried() -> None:
    draw, found = random.Random(4), 0
    for _ in range(200):
        cast = [tuple((str(n), draw.choice(("for", "against"))) for n in range(60)) for _ in range(24)]
        found += any(clear(Voted(Cluster(str(n), {}), votes), 24) for n, votes in enumerate(cast))
    assert found <= 10, "one statement in forty would be let through in 45% of the draws"


UNRELATED = tuple(f"is {colour}" for colour in ("blue", "red", "green", "grey", "black", "white", "pink", "brown"))


def test_by_likelihood_a_statement_is_kept_only_where_its_opposite_is_voted_against(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"vote": "likelihood", "proposals": 0, "unrelated": UNRELATED}
    pairs = planted_pairs(200, wrong=0.1)

    def opposing(where: str) -> RuleLLM:
        def score(asked: Asked) -> list[float]:
            lowered = 0.4 * ("gives none" in asked.last and where in asked.last and SIGHTS["source"] in asked.prefill)
            return [value - lowered for value in gaining(asked)]

        return RuleLLM(score_by=score)

    for name in "abc":
        (tmp_path / name).mkdir()
    found, _ = induced(tmp_path / "a", pairs, opposing(""), opposites={"gives its source": "gives none"}, **asked)
    assert [one["statement"] for one in found["principles"].values()] == ["gives its source"]
    assert found["turned_down"] == []
    assert (found["unmoved"]["rate"], found["unmoved"]["high"] < 0.1) == (0, True)
    with pytest.raises(StepError, match=r"doesn't tell a statement from its opposite: for 'gives .*' are \d+ of"):
        induced(tmp_path / "b", pairs, opposing("thing 7"), opposites={"gives its source": "gives none"}, **asked)
    deaf = {"gives its source": "gives a named source"}
    with pytest.raises(StepError, match=r"none of 2 .* ahead of all unrelated ones, .*: those do 0.000 to 0.000 .* these 0.\d"):
        induced(tmp_path / "c", pairs, RuleLLM(score_by=gaining), opposites=deaf, **asked)
    few = InduceParams(input="p", model="m", **{**asked, "unrelated": UNRELATED[1:]}, opposites=deaf)
    assert [told.hint[:11] for told in Induce(few, StepContext()).check()] == ["give 1 more"]
    letters = InduceParams(input="p", model="m", unrelated=UNRELATED)
    assert [told.path for told in Induce(letters, StepContext()).check()] == [("unrelated",)]


def test_by_likelihood_a_pair_votes_only_where_a_statement_does_more_or_less_than_each_unrelated_one(tmp_path: Path) -> None:
    opposites = {"gives its source": "hides where it is from", "gives an example": "stays general"}

    def noisy(asked: Asked) -> list[float]:
        moved = int(digest([asked.last, asked.prefill])[:4], 16) / 16**4 * 0.2
        against = zip(opposites.values(), SIGHTS.values(), strict=False)
        lowered = 0.3 * any(text in asked.last and sign in asked.prefill for text, sign in against)
        return [value + moved - lowered for value in gaining(asked)]

    asked: dict[str, Any] = {
        "vote": "likelihood",
        "proposals": 0,
        "unrelated": (*UNRELATED, "is old", "is new", "is far", "is near"),
    }
    pairs = planted_pairs(200, wrong=0.1)
    found, out = induced(tmp_path, pairs, RuleLLM(score_by=noisy), opposites=opposites, **asked)
    assert [one["statement"] for one in found["principles"].values()] == list(opposites), "each in its order"
    for statement, sign in zip(opposites, SIGHTS.values(), strict=False):
        told = [(pairs[int(row["uid"])], row["vote"]) for row in Rows(out / "votes").pylist() if row["statement"] == statement]
        bears = [vote for pair, vote in told if (sign in pair["chosen"]) != (sign in pair["rejected"])]
        moved = [vote for pair, vote in told if (sign in pair["chosen"]) == (sign in pair["rejected"])]
        assert bears.count("neither") < 0.1 * len(bears)
        assert moved.count("neither") > 0.7 * len(moved), "words move it there, as they do unrelated ones"


def test_a_statement_given_is_known_in_whatever_place_it_was_proposed() -> None:
    groups = gathered(["is kind"] * 3 + ["is kind!"] + ["is brief"] * 2 + ["names a source"], 0.5)
    put = beside(groups, 1, ["is brief", "is kind!", "is kind", "is red"])
    assert [(one.statement, one.size) for one in put] == [("is kind", 4), ("is brief", 2), ("is kind!", 1), ("is red", 0)]


def test_a_pair_that_is_too_long_for_the_model_is_left_out(tmp_path: Path) -> None:
    def overflow(asked: Asked) -> None:
        if any(f"thing {number}?" in asked.last for number in range(9)):
            raise EngineError("too long", kind="overflow")

    def choose(asked: Asked) -> dict[str, float]:
        overflow(asked)
        return letters(reply(asked.last))

    def score(asked: Asked) -> list[float]:
        overflow(asked)
        return gaining(asked)

    for voting in ("letters", "likelihood"):
        (tmp_path / voting).mkdir()
        llm = RuleLLM(RULES.say, choose, score)
        given = tuple(texts[0] for texts in WORDINGS.values())
        _, out = induced(tmp_path / voting, planted_pairs(160), llm, vote=voting, statements=given, proposals=0)
        told = {row["vote"] for row in Rows(out / "votes").pylist() if int(row["uid"]) < 9}
        assert told == {"unread"}


def test_statements_are_read_off_lines_and_gathered_whatever_their_order() -> None:
    said = "Here are some:\n1. The better response is kind.\n- *Names its source*\n(b) the good answer is kind\n\n3) Is brief;"
    assert statements(said) == ["is kind", "names its source", "is brief"]
    assert statements("A long one " + "word " * 40) == []
    echo = "(A)\n\n(B) What do you mean?\nB. What?\n(C) The better response asks back.\nA clear one"
    assert statements(echo) == ["asks back", "a clear one"], "small models repeat the options in place of reasons"
    given = [*WORDINGS["source"] * 3, *WORDINGS["example"] * 2, "is brief", WORDINGS["source"][0]]
    clusters = gathered(given, 0.5)
    assert [(one.statement, one.size) for one in clusters] == [
        (WORDINGS["source"][0], 10), (min(WORDINGS["example"]), 6), ("is brief", 1),
    ]  # fmt: skip
    assert gathered(given[::-1], 0.5) == clusters
    assert [one.size for one in gathered(["a b", "c d"], 0.5)] == [1, 1]
    assert gathered([], 0.5) == []


def test_a_pair_is_held_out_by_its_prompt_alone_and_pairs_that_tell_nothing_are_left_out() -> None:
    pairs = [{"uid": str(n), "prompt": f"p{n // 2}", "chosen": "a", "rejected": "b"} for n in range(400)]
    learnt, held = divided(pairs, 0.25, 1)
    assert 60 <= len(held) <= 140
    assert not {pair["prompt"] for pair in learnt} & {pair["prompt"] for pair in held}
    assert divided(pairs[::-1], 0.25, 1)[1] == held[::-1], "whatever rows are beside it"
    assert divided([{**pairs[0], "chosen": "b"}, {**pairs[0], "rejected": None}], 0.25, 1) == ([], [])
    assert len(drawn(learnt, 7, 1)) == 7
    assert drawn(learnt, None, 1) == learnt


def says(request: Request) -> Answer:
    asked = request.prompt if isinstance(request.prompt, str) else str(request.prompt[-1]["content"])
    said = reply(asked)
    return Completion("", logprobs=letters(said)) if request.choices else Completion(said, "stop", 9, 9)


def write(folder: Path, pairs: list[dict[str, Any]]) -> Path:
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "spec.yaml").write_text(SPEC)
    return folder / "spec.yaml"


def test_later_steps_follow_the_constitution_and_a_rerun_asks_nothing(tmp_path: Path) -> None:
    spec, store, link = write(tmp_path, planted_pairs(60)), Store(tmp_path / "home"), AskedLink(says=says)
    before = {step.name: step.state for step in make_plan(load_spec(spec), store).steps}
    assert before == {"pairs": "run", "induced": "run", "kept": "run"}
    resolver, _ = carried_out(spec, store, link)
    judged = Rows(resolver.artifacts["kept"].path).pylist()
    assert {row["principle"] for row in judged} == {"all"}
    assert all(row["chosen"] == pair["chosen"] for row, pair in zip(judged, planted_pairs(60), strict=True))
    asked = len(link.answered)
    own = resolver.components(resolver.spec.steps["kept"])
    principles = load_constitution(MADE, resolver.artifacts["induced"].path).principles
    assert own is not None
    assert {name for name in own if name.startswith("principles.")} == {f"principles.{one.id}" for one in principles}
    assert {step.state for step in make_plan(load_spec(spec), store).steps} == {"cached"}
    spec.write_text(SPEC.replace("model: m}", "model: m, principles: 1}"))
    again, _ = carried_out(spec, store, link)
    assert len(load_constitution(MADE, again.artifacts["induced"].path).principles) == 1
    judge_alone = len(link.answered) - asked
    held = json.loads((again.artifacts["induced"].path / "metrics.json").read_text())["pairs"]["held_out"]
    assert judge_alone == 2 * held + 2 * 60, (
        "proposals and votes are in the ledger; only judgements under one principle are new"
    )


@pytest.mark.parametrize(
    ("written", "message", "hint"),
    [
        ("{step: pairs}", "`pairs` makes no constitution", "did you mean"),
        ("{step: induce}", "unknown step `induce`", "did you mean `induced`?"),
    ],
)
def test_a_step_that_makes_no_constitution_is_refused(tmp_path: Path, written: str, message: str, hint: str) -> None:
    spec = write(tmp_path, planted_pairs(2))
    spec.write_text(SPEC.replace("{step: induced}", written))
    with pytest.raises(SpecError) as refused:
        load_spec(spec)
    (problem,) = refused.value.problems
    assert (problem.message, problem.line) == (message, 7)
    assert hint in problem.hint or problem.hint == "steps that make one: induced"


def test_the_spec_as_a_whole_takes_no_steps_constitution(tmp_path: Path) -> None:
    spec = write(tmp_path, planted_pairs(2))
    spec.write_text(SPEC.replace("name: small", "name: small\nconstitution: {step: induced}"))
    with pytest.raises(SpecError, match="3:16: constitution: only a step takes the constitution that another one makes"):
        load_spec(spec)


@pytest.mark.slow
@pytest.mark.soak
def test_a_run_that_asks_a_server_is_judged_by_what_it_found_and_a_rerun_asks_nothing(tmp_path: Path, ray_address: str) -> None:
    with bad_server() as server:

        def answer(body: dict[str, Any], _number: int) -> Any:
            asked = next(turn["content"] for turn in reversed(body["messages"]) if turn["role"] == "user")
            text = reply(asked) if "(A) " in asked else "fine"
            tops = [{"token": letter, "logprob": value} for letter, value in letters(text).items()]
            told = {"logprobs": {"content": [{**tops[0], "top_logprobs": tops}]}} if body.get("logprobs") else {}
            return said(text, **told)

        server.reply = answer
        spec = write(tmp_path, planted_pairs(80))
        spec.write_text(SPEC.replace("http://127.0.0.1:9/v1", server.url))
        run = run_here(ray_address, spec, tmp_path / "run", tmp_path / "home", "--allow-host", "127.0.0.1")
        asked = len(server.calls)
        figures = json.loads((tmp_path / "run/steps/induced/metrics.json").read_text())
        assert len(figures["principles"]) == 2
        assert figures["reconstruction"]["rate"] == 1
        assert run["steps"]["kept"]["rows_out"] == 80
        again = run_here(ray_address, spec, tmp_path / "again", tmp_path / "home", "--allow-host", "127.0.0.1")
        assert {step["status"] for step in again["steps"].values()} == {"cached"}
        assert len(server.calls) == asked
