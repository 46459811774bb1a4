"""`converse`: a model talks with itself, or with another model as the user, from each row's opening.

Owns whose turn it is, what each side sees of the talk, and where the talk ends. Never judges a conversation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from caiflow.engine.constitution.in_view import SystemText, shows_principles, with_principles
from caiflow.engine.errors import EngineError, Finding, suggest
from caiflow.engine.health import Measure, Passed
from caiflow.engine.llm.base import Completion, Message, Sampling
from caiflow.engine.operator import Expected, ModelRef, RowDropped, RowLLM, RowOperator, SamplingParams, Strict
from caiflow.engine.rows.columns import ColumnType, Row
from caiflow.engine.rows.turns import ANOTHER_TEMPLATE, refused_systems
from caiflow.operators.drawing import accepting
from caiflow.operators.drawing.accepting import AcceptParams, Drawn
from caiflow.operators.formats.templates import TemplateText, names_in, rendered
from caiflow.operators.judging.prompts import Format, ask, conversation_text, turns, user, with_system
from caiflow.operators.measures import answers, texts
from caiflow.operators.mixing.draws import fraction

if TYPE_CHECKING:
    from caiflow.engine.llm.tokenizer_files import ModelFiles

Role = Literal["user", "assistant"]
_OTHER: Mapping[str, Role] = {"user": "assistant", "assistant": "user"}
_HEADINGS = {"user": "Human", "assistant": "Assistant"}


class UserParams(Strict):
    """Who says the user's turns."""

    model: ModelRef | None = None
    """The model that says them; by default the step's own, which then talks with itself."""
    system: SystemText = ""
    """System turn under which they are written; `{{ principles }}` in it becomes the constitution's principles."""
    sampling: SamplingParams | None = None
    """How their tokens are drawn; by default as the assistant's."""
    cue: str = Field(default="Begin the conversation.", min_length=1)
    """What this side is told first. To it the roles are the other way round, and chat templates want a user's turn first."""


class ConverseParams(AcceptParams):
    """Parameters of `converse`."""

    turns: int = Field(default=5, ge=1, le=256)
    """Turns that the assistant writes at the most; the user's between them are written too."""
    openings: Annotated[tuple[TemplateText, ...], Field(max_length=1000)] = ()
    """The user's first turn in place of `prompt`: Jinja texts over the row's columns, of which each row draws one."""
    system: SystemText = ""
    """System turn for the assistant; replaces the prompt's own and isn't kept. `{{ principles }}` in it becomes the
    constitution's principles."""
    system_kept: str = ""
    """System turn that the written conversation begins with, in place of the prompt's own."""
    user: UserParams = UserParams()
    """Who says the user's turns, and what they are told."""
    sampling: SamplingParams = SamplingParams()
    """How tokens are drawn."""
    format: Format = "chat"
    """`chat` sends turns under the chat template; `transcript` one plain text with headings, for models not trained to chat."""
    end_at: tuple[str, ...] = ("empty", "circles", "copies_turn")
    """Health measures of the step that end a conversation before a turn which fails them, in the last of its draws."""


class Converse(RowOperator[ConverseParams]):
    """Have a model talk with itself, or with another as the user: whole conversations, from an opening in each row."""

    name = "converse"
    params_type = ConverseParams

    def needs(self) -> Mapping[str, Sequence[str]]:
        """Return the columns of the openings."""
        return {self.params.input: self.reads()}

    def reads(self) -> Sequence[str]:
        """Return the columns of the openings."""
        return (
            sorted({name for text in self.params.openings for name in names_in(text)}) if self.params.openings else ["prompt"]
        )

    def writes(self) -> Mapping[str, ColumnType]:
        """Return the conversation, how many of its turns were written, and why it ended before its time."""
        opening: dict[str, ColumnType] = {"prompt": "messages"} if self.params.openings else {}
        found: dict[str, ColumnType] = {"messages": "messages", "written": "integer", "ended": "text", "truncated": "flag"}
        return {**opening, **found, **accepting.writes(self.params)}

    def outdates(self) -> Collection[str]:
        """Return what was said to the opening before."""
        return accepting.ABOUT_AN_ANSWER | {"response"}

    def check(self) -> Iterator[Finding]:
        """Yield checks that there are none of for turns."""
        yield from accepting.problems(self.params, self.measures(), self._samplings.values())
        known = [measure.name for measure in self.measures() if measure.row is not None]
        for place, name in enumerate(self.params.end_at):
            if name not in known:
                yield Finding(("end_at", place), f"there is no check `{name}` of one turn", suggest(name, known, "checks"))

    def check_models(self, models: Mapping[str, ModelFiles], inputs: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield system turns that a chat template refuses: the openings' own, or those given here."""
        given = self.params
        sides = ((("system",), given.system, given.model), (("user", "system"), given.user.system, self._speakers["user"]))
        for path, text, model in sides if given.format == "chat" else ():
            if text and model in models and models[model].tokenizer.refuses_system:
                yield Finding(path, f"the chat template of `{model}` refuses system turns", ANOTHER_TEMPLATE)
        if given.format == "chat" and not (given.system or given.openings):
            yield from refused_systems(inputs, "prompt", given.model, models)

    def identity(self) -> Mapping[str, Any]:
        """Return what system turns show of the constitution."""
        given = (self.params.system, self.params.user.system)
        return {"shown": [self._shown(text) for text in given if shows_principles(text)]}

    def calls(self) -> int:
        """Return the turns of both sides, each with all its draws; without openings the user may have to begin."""
        return (2 * self.params.turns - bool(self.params.openings)) * self.params.most_draws

    def expects(self, inputs: Mapping[str, Expected]) -> Expected | None:
        """Return a conversation for each opening at the most."""
        given = inputs.get(self.params.input)
        return given and given._replace(exact=False, answers=1)

    async def row(self, row: Row, llm: RowLLM) -> Row:
        """Return the conversation from one opening.

        Raises:
            RowDropped: it ends before the assistant has said anything.
        """
        opening = self._opening(row)
        drawn, ended = await self._talk(opening, llm)
        said = _turns(opening, drawn)
        written = len(drawn) - (_next(said) == "assistant")  # a last turn of the user, which nobody answered, is left out
        if written < 1:
            raise RowDropped(f"ended at once: {ended}")
        return {
            "messages": with_system(said[: len(opening) + written], self.params.system_kept),
            "written": written,
            "ended": ended,
            "truncated": any(one.answer.finish == "length" for one in drawn[:written]),
            **accepting.columns(self.params, drawn),
            **({"prompt": opening} if self.params.openings else {}),
        }

    async def _talk(self, opening: Sequence[Message], llm: RowLLM) -> tuple[list[Drawn], str]:
        """Return the turns that were written, and why they ended before their time."""
        drawn: list[Drawn] = []
        while len(drawn) < self.params.turns * 2 - (_next(opening) == "assistant"):
            talk = _turns(opening, drawn)
            role = _next(talk)
            try:
                one = await self._turn(role, talk, llm, len(drawn))
            except EngineError as error:
                if error.kind != "overflow" or not drawn:
                    raise
                return drawn, "context"
            if ended := accepting.first_failed(self._ending, Passed([_with_turn(talk, role, one.answer)])):
                return drawn, ended
            accepting.columns(self.params, [one])  # leaves the row out where it has to
            drawn.append(one)
        return drawn, ""

    def metrics(self, rows: Iterable[Row], _dropped: Mapping[str, int]) -> Mapping[str, Any]:
        """Return the mean number of turns written, why conversations ended early, and the share with a turn cut."""
        ended: Counter[str] = Counter()
        count = cut = written = draws = 0
        for row in rows:
            count, cut, written = count + 1, cut + bool(row["truncated"]), written + row["written"]
            ended[row["ended"]] += 1
            draws += row.get("draws", 0)
        drawn = {"draws": draws} if self.params.accept else {}
        early = {why: number for why, number in sorted(ended.items()) if why}
        return {"mean_turns": written / count, "ended": early, "truncated": cut / count, **drawn} if count else {}

    def measures(self) -> Sequence[Measure]:
        """Return what may be wrong with turns; the first of them are seen of a single turn as well."""
        early = "raise `sampling.max_tokens` or the temperature, tell the sides what to talk about, or ask for fewer `turns`"
        return [
            *answers.common("turns", "messages", _written),
            Measure(
                "copies_turn", "<= 0.05", "turns that say again what was said before", "the talk goes round in circles",
                "set `repetition_penalty: 1.15` or a temperature, or tell the sides what to talk about", _repeated,
            ),
            answers.truncated("conversations with a turn", "truncated"),
            Measure(
                "ended", "<= 0.2", "conversations that ended before their last turn", "they are shorter than was asked for",
                early, answers.each(lambda _: [""], lambda _, row: bool(row["ended"])),
            ),
        ]  # fmt: skip

    async def _turn(self, role: Role, talk: Sequence[Message], llm: RowLLM, number: int) -> Drawn:
        speaker, sampling = self._speakers[role], self._samplings[role]
        asked, speaks = self._view(role, talk), llm if speaker == self.params.model else llm.other(speaker)

        async def put(sampling: Sampling, further: int) -> Completion:
            return await ask(speaks, asked, sampling, number + further)

        made = partial(_with_turn, talk, role)
        return await accepting.draw(self.params, self._accepted, put, sampling, made)

    def _opening(self, row: Row) -> list[Message]:
        texts = self.params.openings
        if not texts:
            return turns(row["prompt"])
        drawn = texts[int(fraction("opening", self.context.seed, row["uid"]) * len(texts))]
        return [user(rendered(drawn, row, "an opening"))]

    def _view(self, role: Role, talk: Sequence[Message]) -> list[Message] | str:
        """Return the talk as the side sees it that speaks next: as the assistant, with the other as its user."""
        system = self._systems[role]
        if self.params.format == "transcript":
            return f"\n\n{conversation_text(with_system(talk, system))}\n\n{_HEADINGS[role]}:"
        if role == "assistant":
            return with_system(talk, system)
        said: list[Message] = [{**turn, "role": _OTHER[turn["role"]]} for turn in talk if turn["role"] != "system"]
        cue = [] if said and said[0]["role"] == "user" else [user(self.params.user.cue)]
        return with_system([*cue, *said], system)

    def _shown(self, text: str) -> str:
        return with_principles(text, self.context.constitution)

    @cached_property
    def _systems(self) -> Mapping[str, str]:
        return {"assistant": self._shown(self.params.system), "user": self._shown(self.params.user.system)}

    @cached_property
    def _speakers(self) -> Mapping[str, str]:
        return {"assistant": self.params.model, "user": self.params.user.model or self.params.model}

    @cached_property
    def _samplings(self) -> Mapping[str, Sampling]:
        own = self.params.sampling
        return {"assistant": own.sampling(), "user": (self.params.user.sampling or own).sampling()}

    @cached_property
    def _accepted(self) -> list[Measure]:
        return accepting.checks(self.params.accept, self.measures())

    @cached_property
    def _ending(self) -> list[Measure]:
        return accepting.checks(self.params.end_at, self.measures())


def _next(talk: Sequence[Message]) -> Role:
    """Return whose turn it is; the user's where nobody has said anything yet."""
    return "assistant" if talk and talk[-1]["role"] == "user" else "user"


def _turns(opening: Sequence[Message], drawn: Iterable[Drawn]) -> list[Message]:
    """Return the talk so far."""
    talk = list(opening)
    for one in drawn:
        talk.append({"role": _next(talk), "content": one.answer.text.strip()})
    return talk


def _with_turn(talk: Sequence[Message], role: Role, answer: Completion) -> Row:
    """Return the row of a talk in which only this turn, its last, was written."""
    said = [*talk, {"role": role, "content": answer.text.strip()}]
    return {"messages": said, "written": 1, "ended": "", "truncated": answer.finish == "length"}


def _written(row: Row) -> Sequence[str]:
    """Return the turns that were written, of both sides."""
    return [turn["content"] for turn in row["messages"][-row["written"] :]]


def _repeated(passed: Passed) -> float | None:
    """Return the share of the written turns that copy an earlier turn, of either side."""
    found = []
    for row in passed.made:
        said = [turn["content"] for turn in row["messages"] if turn["role"] != "system"]
        written = range(len(said) - row["written"], len(said))
        found += [texts.is_copy(said[place], said[:place]) for place in written if said[place].strip()]
    return sum(found) / len(found) if found else None
