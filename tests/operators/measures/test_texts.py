"""What is seen of texts: cases by hand, bad texts planted, and how often good real ones are flagged."""

from __future__ import annotations

import json
import random
from itertools import pairwise

import polars as pl
import pytest

from caiflow.operators.filtering import rules
from caiflow.operators.measures import texts
from support.real_data import REAL_DATA, needs

_WORDS = """
answer question harm person advice safe legal bottle window careful kitchen friend police report garden
doctor paper reason simple method number story travel minute water measure before without maybe should
could never often the a of to and in that is for with as on be at by this it from they we say her she or
will my one all would there
"""
CHAINS = REAL_DATA / "released_chains_half.jsonl"
VOCABULARY = _WORDS.split()
PLANTED = 100


def sentence(draw: random.Random, count: int) -> str:
    return " ".join(draw.choice(VOCABULARY) for _ in range(count)).capitalize() + "."


def prose(draw: random.Random) -> str:
    return " ".join(sentence(draw, draw.randint(6, 14)) for _ in range(draw.randint(3, 7)))


def worn_copy(draw: random.Random, text: str) -> str:
    """Return a text with a tenth of its words changed, a few more before it, or its end cut off."""
    own = text.split()
    kind = draw.randrange(3)
    if kind == 0:
        return " ".join(draw.choice(VOCABULARY) if draw.random() < 0.05 else word for word in own)
    if kind == 1:
        return f"{sentence(draw, 5)} {text}"
    return " ".join(own[: max(8, int(len(own) * draw.uniform(0.5, 1)))])


def circles(draw: random.Random) -> str:
    kind = draw.randrange(3)
    said = sentence(draw, draw.randint(3, 9))
    if kind == 0:
        return " ".join([said] * draw.randint(3, 8))
    if kind == 1:
        return f"{sentence(draw, 12)} " + " ".join([said] * draw.randint(4, 9))
    return " ".join(f"{number}. {said}" for number in range(1, draw.randint(5, 10)))


def test_copies_by_hand() -> None:
    said = "you should call the police and not go there alone"
    assert texts.copied_share(said, said) == 1
    assert texts.copied_share("You should, call the POLICE; and not go there alone!", said) == 1
    assert texts.copied_share("call the police and then wait", said) == pytest.approx(4 / 6)
    assert texts.copied_share("nothing of the kind was ever said", said) == 0
    assert texts.copied_share("call the police", said) == 0
    assert texts.copied_share("Yes.", "yes") == 1
    assert texts.copied_share("", "") == 0


def test_circles_by_hand() -> None:
    assert texts.repeated_share("a b c d a b c d") == pytest.approx(1 / 5)
    assert texts.repeated_share("no no no no no") == 0.5
    assert texts.repeated_share("too short") == 0
    assert texts.in_circles("I am sorry. I am sorry. I am sorry. I am sorry.")
    assert not texts.in_circles("I am sorry to hear that, and I would like to help you find someone to talk to.")


UNSPACED = (
    ("对不起,我不能帮你做这件事。你可以先问问老师。", "如果你愿意,我们可以一起想一个更好的办法。"),
    ("ごめんなさい、それはできません。先生に聞いてください。", "よければ、もっと良い方法を一緒に考えましょう。"),
    ("ขอโทษนะ ฉันช่วยเรื่องนี้ไม่ได้ ลองถามครูดูก่อน", "ถ้าคุณต้องการ เรามาคิดวิธีที่ดีกว่านี้ด้วยกัน"),
)


@pytest.mark.parametrize(("text", "other"), UNSPACED)
def test_scripts_without_spaces_are_seen_by_characters(text: str, other: str) -> None:
    assert texts.is_copy(other[:4] + text, [text])
    assert not texts.is_copy(text, [other])
    assert not texts.in_circles(text + other)
    assert texts.in_circles(text * 3)
    assert texts.same(f" {text}", text)


def test_english_is_told_from_other_languages_where_it_can_be() -> None:
    assert texts.is_english("The kettle is on the stove, and you can have it as soon as it is hot.") is True
    assert texts.is_english("Der Kessel ist auf dem Herd, und sie sollen ihn nicht mit der Hand nehmen.") is False
    assert [texts.is_english(text) for text, _ in UNSPACED] == [False] * 3
    assert texts.is_english("Ok.") is None


@pytest.mark.parametrize("kind", ["copies", "circles", "preamble", "human_turn", "unchanged"])
def test_planted_bad_texts_are_found(kind: str) -> None:
    draw = random.Random(kind)
    found = 0
    for _ in range(PLANTED):
        good = prose(draw)
        if kind == "copies":
            found += texts.is_copy(worn_copy(draw, good), [prose(draw), good])
        elif kind == "circles":
            found += texts.in_circles(circles(draw))
        elif kind == "preamble":
            opening = draw.choice(
                [
                    "Here is a revised version: ",
                    "Sure! Here's the rewritten answer:\n\n",
                    "Revised response: ",
                    "I've revised it. ",
                ]
            )
            found += texts.announces(opening + good)
        elif kind == "human_turn":
            found += texts.plays_human(good + draw.choice(["\n\nHuman: ", "\nUser: ", "<|im_start|>user\n"]) + prose(draw))
        else:
            found += texts.same(f" {good.upper()}\n", good)
    assert found >= 0.95 * PLANTED


def test_good_prose_is_not_flagged() -> None:
    draw = random.Random(1)
    good = [prose(draw) for _ in range(200)]
    assert not any(texts.in_circles(text) or texts.announces(text) or texts.plays_human(text) for text in good)
    assert not any(texts.is_copy(text, [other]) for text, other in pairwise(good))


@needs(CHAINS)
def test_false_alarms_on_released_chains_are_rare() -> None:
    critiques, revisions = [], []
    for line in CHAINS.read_text(encoding="utf-8").splitlines():
        chain = json.loads(line)
        answer = chain["initial_response"]
        for step in chain["rounds"]:
            critique, revision = step["critique"], step["revision"]
            requests = [step["critique_request"], step["revision_request"]]
            critiques.append(texts.in_circles(critique) or texts.is_copy(critique, [answer, *requests]))
            copied = texts.is_copy(revision, [critique, *requests]) or texts.same(revision, answer)
            revisions.append(texts.in_circles(revision) or copied or texts.announces(revision))
            answer = revision
    assert len(critiques) >= 80
    assert sum(critiques) <= 0.02 * len(critiques)
    assert sum(revisions) <= 0.02 * len(revisions)


def test_circles_are_those_of_the_filter() -> None:
    draw = random.Random(2)
    given = (
        [prose(draw) for _ in range(50)]
        + [circles(draw) for _ in range(50)]
        + ["", "one", "a b c d", "it's it's it's it's it's"]
    )
    rule = rules.repetition("repetition", "text", texts.RUN, texts.CIRCLES)
    frame = pl.DataFrame({"text": given}).with_columns(rule.flag.alias("flag"))
    assert rule.decide is not None
    theirs = rule.decide(frame, frame["flag"], pl.repeat(True, len(given), eager=True).to_numpy())
    assert theirs.tolist() == [texts.in_circles(text) for text in given]


ENGLISH = "What is the best way to ask your neighbour for help with the garden?"
GERMAN = "Es ist nicht leicht, aber das ist der beste Weg: gehen Sie zu dem Nachbarn und fragen Sie mit einem Lächeln."
RUSSIAN = "Лучше всего просто поговорить с соседом и попросить его о помощи в саду."
CHINESE = "最好的办法是直接和你的邻居谈谈，请他在花园里帮忙，然后请他喝一杯茶，并且感谢他。"


def test_other_languages_are_told_where_they_can_be() -> None:
    assert texts.other_language(GERMAN, ENGLISH) is True
    assert texts.other_language(RUSSIAN, ENGLISH) is True
    assert texts.other_language(CHINESE, RUSSIAN) is True
    assert texts.other_language("You can ask him with a smile, and that is the best way to do it.", ENGLISH) is False
    assert texts.other_language(GERMAN, GERMAN) is False


def test_what_cant_be_told_is_none() -> None:
    assert texts.other_language("Nein.", ENGLISH) is None  # too short
    assert texts.other_language(RUSSIAN, RUSSIAN) is None  # one script, languages unknown
    assert texts.other_language("print(sum(range(10))) # total of numbers", ENGLISH) is None  # code
    assert texts.other_language("", "") is None
