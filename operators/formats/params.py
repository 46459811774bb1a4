"""The fields of `load`. Owns their bounds and what they mean; never looks at the source."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from caiflow.engine.errors import WrongValue
from caiflow.engine.llm.model_files import part_of_repository
from caiflow.engine.operator import ColumnName, Params, Strict
from caiflow.operators.formats import SUITE
from caiflow.operators.formats.named.layout import Take
from caiflow.operators.formats.tables import Csv
from caiflow.operators.formats.templates import compiled

FormatName = Literal[
    "auto", "messages", "prompt", "alpaca", "sharegpt", "hh", "red_team", "cai_conversation", "nemo", "nemo_preference",
    "ultrachat", "preference", "compared", "openai_preference", "kto", "ranked", "orca", "mt_bench", "oasst", "oasst_messages",
    "table",
]  # fmt: skip


class Split(Strict):
    """A division into train and test that can't leak: the side depends on the text of `by` alone."""

    test: float = Field(gt=0, lt=1)
    """Share of the distinct prompts that go to the test side, 0 to 1; met on average, since each prompt decides for itself."""
    part: Literal["train", "test"]
    """The side that this step loads; another step loads the other one."""
    by: ColumnName = "prompt"
    """What decides the side: `prompt` (the whole conversation), `opening` (its first human turn), or another column's text."""
    seed: int = 0
    """Another seed gives another division; both sides must use the same."""

    @property
    def column(self) -> str:
        """The column that `by` needs."""
        return "prompt" if self.by == "opening" else self.by


class LoadParams(Params):
    """Fields of `load`."""

    source: str = Field(min_length=1, json_schema_extra={"x-path": "file-or-hub"})
    """A file relative to the spec (jsonl, json, csv, tsv, parquet, txt with a prompt a line; each also as .gz, .zst or .zip), a
    pattern for several (`shards/*.jsonl`), a hub data set's id, `tiny:NAME` or `plain:NAME` for a bundled file, or a published
    suite: `suite:` and xstest, or_bench, harmbench, strongreject, wildguardtest, pku_saferlhf or alpaca_eval."""
    format: FormatName = "auto"
    """How the records are laid out; `auto` goes by their fields, `table` keeps them as they are, but for a field that has the
    name of a caiflow column and another form (a `prompt` that is text, not messages): it gets `source_` before its name."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set; by default its main branch."""
    subset: str | None = None
    """Configuration of a hub data set."""
    folder: str | None = None
    """Folder within a hub data set, such as `harmless-base`."""
    hub_split: str = "train"
    """Split of a hub data set, in its own words (`train_sft`); files have none."""
    csv: Csv = Csv()
    """How a csv or tsv file is written, where that can't be told from it."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Fields to rename before anything else, from the source's name to the one the format expects."""
    prompt: str | None = Field(default=None, min_length=1)
    """Jinja text that makes the prompt of a record's fields, such as `"{{ context }}\\n\\n{{ question }}"`, after `rename`."""
    turns: Literal["all", "first"] = "all"
    """Which turns the prompt has: all up to the last human turn, or the first one alone, without answers to later ones."""
    take: Take = "best"
    """Of a list of answers the best and the worst, or `all` pairs of which one is better; of a tree of messages the path of the
    best replies, or `all` paths."""
    split: Split | None = None
    """Load one side of a train/test division."""
    sample: int | None = Field(default=None, ge=1)
    """Rows drawn at random by the spec's seed, in the source's order; by default all."""
    limit: int | None = Field(default=None, ge=1)
    """Rows taken from the head, after `split` and `sample`; by default all."""
    uid: str | None = Field(default=None, min_length=1)
    """Field of the source that identifies its rows; by default a digest of its content, whatever the file's name, and of its
    place among equal rows."""
    on_bad_row: Literal["fail", "quarantine"] = "fail"
    """What becomes of a row that can't be read: fail and name its line, or keep it beside with the reason."""

    _parts = field_validator("revision", "folder")(part_of_repository)

    @field_validator("source")
    @classmethod
    def _is_a_suite(cls, value: str) -> str:
        if value.startswith(SUITE):
            from caiflow.operators.formats.hub.suites import suite_sources

            suite_sources(value, None)
        return value

    @model_validator(mode="after")
    def _whole_suite(self) -> LoadParams:
        if self.source.startswith(SUITE):
            named = sorted(self.model_fields_set & {"subset", "folder", "hub_split", "format", "rename", "prompt"})
            if named:
                raise WrongValue(f"{self.source} is read in its own way, got `{named[0]}`", f"remove `{named[0]}`")
        return self

    def may_share_rows(self, other: Params) -> bool:
        """Return whether a row may be in this step's output and in another's: of one source, and not divided by a split."""
        if not isinstance(other, LoadParams) or self._place != other._place:
            return False
        one, two = self.split, other.split
        return one is None or two is None or one.part == two.part or one.model_copy(update={"part": two.part}) != two

    @property
    def _place(self) -> tuple[Path | str | None, ...]:
        return Path(self.source), self.revision, self.subset, self.folder, self.hub_split

    @field_validator("prompt")
    @classmethod
    def _is_a_template(cls, value: str | None) -> str | None:
        if value is not None:
            compiled(value)
        return value
