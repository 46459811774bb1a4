"""Requests that the engines' tests share, and the loop that has them answered."""

from __future__ import annotations

import random

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import Answer, Cancelling, Completion, Engine, Request, Sampling

WORDS = "bake bread harm answer water kind oven hour wait rewrite unkind small salt flour nothing".split()  # noqa: SIM905


def ask(engine: Engine, requests: list[Request]) -> list[Answer]:
    """Return the answers in the requests' order."""
    engine.submit(list(enumerate(requests)))
    answers: dict[int, Answer] = {}
    for _ in range(10_000):
        answers.update(engine.step())
        if len(answers) == len(requests):
            return [answers[index] for index in range(len(requests))]
    raise AssertionError(f"{len(requests) - len(answers)} requests never finished")


def text(engine: Engine, request: Request) -> Completion:
    (answer,) = ask(engine, [request])
    assert isinstance(answer, Completion), answer
    return answer


def scored_requests() -> list[Request]:
    """Texts and conversations whose own likelihood is asked, of many lengths."""
    rng = random.Random(5)
    texts = [" ".join(rng.choice(WORDS) for _ in range(length)) for length in (1, 2, 3, 8, 21, 60, 61, 150)]
    says = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "Mix flour, then wait."}]
    again = [*says, {"role": "user", "content": "And then?"}, {"role": "assistant", "content": "Bake it."}]
    whole = [Request(prompt, score=True) for prompt in (*texts, tuple(says), tuple(again))]
    parts = [Request(prompt, score=True, prefill="Mix flour, then") for prompt in ("How do I bake?", tuple(says[:1]))]
    return whole + parts


def mixed_requests(n: int = 40) -> list[Request]:
    rng = random.Random(3)
    shared = " ".join(rng.choice(WORDS) for _ in range(60))
    requests = []
    for seed in range(n):
        content = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 40)))
        prompt = ({"role": "user", "content": shared + content if seed % 3 else content},)
        sampling = Sampling(
            temperature=seed % 4 / 2, top_p=0.9 if seed % 5 == 0 else 1, max_tokens=rng.randint(1, 30),
            repetition_penalty=1.2 if seed % 7 == 0 else 1,
        )  # fmt: skip
        choices = ("A", "B") if seed % 6 == 5 else ()
        requests.append(Request(prompt, sampling, seed, prefill=" (" if choices else "", choices=choices))
    return requests


def drops_one(engine: Engine) -> None:
    """Have an engine drop a long call that it computes; assert that it ends at once, and another's answer stays the same."""
    other, wild = Request("word", Sampling(max_tokens=8)), Sampling(temperature=2.0, max_tokens=200)
    tried = [Request("story", wild, seed=seed) for seed in range(12)]
    alone, *answers = ask(engine, [other, *tried])
    lengths = [answer.completion_tokens for answer in answers if isinstance(answer, Completion)]
    assert max(lengths) > 50
    long = tried[lengths.index(max(lengths))]
    assert isinstance(engine, Cancelling)
    engine.submit([(0, long), (1, other)])
    came = dict(engine.step(0.0))
    engine.cancel(0)
    while len(came) < 2:
        came |= dict(engine.step())
    assert came[1] == alone
    assert isinstance(came[0], EngineError) or came[0].completion_tokens < 10
    assert ask(engine, [other]) == [alone]
