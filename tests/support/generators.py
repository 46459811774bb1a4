"""Models for tests of drift: a generator of words with tastes of its own, and the bundled model with changed weights."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

WORDS = "the a bread oven flour water salt take add mix bake wait hot warm then first next please you can should".split()  # noqa: SIM905


@dataclass(frozen=True)
class Generator:
    """Answers a question with words that it draws anew each time; `preferring` makes every third word so much likelier."""

    preferring: float = 0.0

    def __call__(self, question: int, rng: random.Random) -> str:
        """Return one answer, of 10 to 25 words."""
        taste = random.Random(question)
        weights = [(1 + self.preferring * (place % 3 == 0)) * taste.expovariate(1) for place in range(len(WORDS))]
        return " ".join(rng.choices(WORDS, weights, k=rng.randint(10, 25)))


def drawn_answers(folder: Path, rows: int, draws: int, noise: float) -> list[list[str]]:
    """Return answers of the bundled model at temperature 1, `draws` to each of its red-team prompts.

    `noise` is added to the weights of its head, in their standard deviations.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import caiflow.examples
    from caiflow.engine.llm.base import Completion, ModelSource, Request, Sampling
    from caiflow.engine.llm.load import load_engine
    from support.asking import ask

    tiny = Path(caiflow.examples.__path__[0]) / "tiny" / "model"
    place = folder / f"noise{noise}"
    model = AutoModelForCausalLM.from_pretrained(tiny)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head += noise * head.std() * torch.randn(head.shape, generator=torch.Generator().manual_seed(3))
    model.save_pretrained(place)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(place)
    sampling = Sampling(temperature=1.0, max_tokens=24)
    asked = [
        Request(({"role": "user", "content": f"How do I {verb} {number}?"},), sampling, 1000 * number + draw + int(1e6 * noise))
        for number, verb in zip(range(rows), ["bake bread", "pick a lock", "grow tea", "hurt a neighbour"] * rows, strict=False)
        for draw in range(draws)
    ]  # fmt: skip
    engine = load_engine(ModelSource(str(place), identity=f"noise{noise}"))
    answers = [answer.text for answer in ask(engine, asked) if isinstance(answer, Completion)]
    engine.close()
    assert len(answers) == rows * draws
    return [answers[row * draws : (row + 1) * draws] for row in range(rows)]
