"""The words of the spec language: the top-level keys, the entries of `models:`, and the frozen objects a spec becomes.

Declares; reads no file and checks nothing that needs more than one value. `load.py` turns a file into these.

A matrix compares variants within one run::

    matrix:
      labels:                            # an axis
        hard: {preference.labels: hard}  # an arm: what it sets, as STEP.FIELD (or constitution, or models.NAME.FIELD)
        soft: {preference.labels: soft}
      critique.few_shot: [0, 2]          # a short axis: one field, one arm per value

Each changed step, and each step that needs one, is copied once per arm as `preference@hard`, `rl_cai@hard+2`; the others stay
shared. `models: [base, rl_cai@*]` gathers every arm of a step in one place, so that step isn't copied for it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from caiflow.engine.constitution.in_view import shows_principles
from caiflow.engine.constitution.principles import STAGES
from caiflow.engine.errors import Problem, WrongValue
from caiflow.engine.field_marks import Mark, marks
from caiflow.engine.llm.base import Draws
from caiflow.engine.llm.chat_template import template_variables
from caiflow.engine.llm.model_files import part_of_repository
from caiflow.engine.operator import SPEED, NodeLabels, Operator, Params, Reference, Strict
from caiflow.engine.spec.engine_args import EngineArgs
from caiflow.engine.yaml.tree import Node

NAME = r"^[A-Za-z_][A-Za-z0-9_-]*$"
STEP_NAME = r"^[A-Za-z_][A-Za-z0-9_-]*(@[A-Za-z0-9_.+-]+)?$"

Name = Annotated[str, Field(pattern=STEP_NAME)]
_ADDRESS = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?(/[^\s\\]*)?\Z")
_WITH_A_SECRET = re.compile(r"https?://[^/?#\\]*@")
ConstitutionValue = str | list[str | dict[str, Any]] | dict[str, Any]


class TokenPrices(Strict):
    """What a million tokens cost, in any currency."""

    prompt: float = Field(ge=0, json_schema_extra=SPEED)
    """Price of a million tokens asked."""
    completion: float = Field(ge=0, json_schema_extra=SPEED)
    """Price of a million tokens answered."""


class ModelEntry(Strict):
    """A model that steps may name: weights to load, or a server to ask."""

    source: str = Field(min_length=1, json_schema_extra={"x-path": "model"})
    """`tiny` (bundled), `smollm2` (a package's), a hub id, a folder, a GGUF file, or a server's address; with `base_url`, the
    model's name on that server."""
    revision: str | None = None
    """Commit, tag or branch of the hub id; by default the newest."""
    tokenizer: str | None = Field(default=None, json_schema_extra={"x-path": "file-or-hub"})
    """Hub id or folder of another tokenizer; by default the model's own."""
    chat_template: str | None = None
    """Jinja chat template in place of the tokenizer's: its text, or a file ending in .jinja."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables that the chat template reads, such as `{enable_thinking: false}`, when asked and in training; servers are sent
    them."""
    adapter: str | None = Field(default=None, json_schema_extra={"x-path": "file-or-hub"})
    """Hub id or folder of a PEFT adapter laid over the model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; auto takes the checkpoint's."""
    quantization: str | None = None
    """How the engine quantises the weights, by the engine's own name (`fp8`, `awq`, `bitsandbytes`)."""
    engine: Literal["auto", "transformers", "vllm", "openai"] = "auto"
    """What runs the model; auto takes openai for a server, else vLLM where it suits the machine, else transformers."""
    exact: bool = False
    """Whether answers depend on nothing else in the batch, to the bit (vLLM's batch-invariant mode; slower, on newer GPUs)."""
    draws: Draws = "caiflow"
    """Who draws tokens by a row's seed: caiflow, alike on every engine, or vLLM's sampler, where its second runner serves."""
    engine_args: EngineArgs = EngineArgs()
    """Settings of the engine under vLLM's own names (`max_model_len`, `gpu_memory_utilization`, ...)."""
    other_engine_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments for vLLM, unchecked, which may name code to run: they need `--trust-remote-code`."""
    num_gpus: float | None = Field(default=None, ge=0, json_schema_extra=SPEED)
    """GPUs per replica; by default 1 where there is one."""
    num_cpus: int | None = Field(default=None, ge=1, json_schema_extra=SPEED)
    """Threads of an engine that computes on a CPU; by default half the cores, or all but one where it is alone."""
    replicas: int = Field(default=1, ge=1, le=1024, json_schema_extra=SPEED)
    """Engines started for this model."""
    node_labels: NodeLabels = Field(default_factory=dict, json_schema_extra=SPEED)
    """Labels of the cluster's nodes that may have its engines, such as `ray.io/accelerator-type: H100`."""
    base_url: str | None = Field(default=None, pattern=r"^https?://", json_schema_extra=SPEED)
    """Address of an OpenAI-compatible server, up to and with `/v1`."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Z_][A-Z0-9_]*$", json_schema_extra=SPEED)
    """Name of the environment variable that holds the server's key; the key itself never stands in a spec."""
    max_calls: int | None = Field(default=None, ge=1, json_schema_extra=SPEED)
    """Calls to the server, by all runs of this spec together, after which rows fail rather than cost more."""
    max_tokens_total: int | None = Field(default=None, ge=1, json_schema_extra=SPEED)
    """The same in tokens, prompts and answers together."""
    max_cost: float | None = Field(default=None, gt=0, json_schema_extra=SPEED)
    """The same in money, by `prices`."""
    prices: TokenPrices | None = Field(default=None, json_schema_extra=SPEED)
    """What the server charges, for `max_cost`."""
    answers_as: str | None = Field(default=None, json_schema_extra=SPEED)
    """The name under which the server answers, where it isn't the one asked for; answers under any other are refused."""
    timeout_s: float = Field(default=120.0, gt=0, json_schema_extra=SPEED)
    """Seconds until a call to the server counts as lost."""
    concurrency: int = Field(default=0, ge=0, json_schema_extra=SPEED)
    """Most calls to the server at once; 0 finds it by trying."""

    @field_validator("base_url", "source")
    @classmethod
    def _is_a_plain_address(cls, value: str | None) -> str | None:
        if value is not None and _WITH_A_SECRET.match(value):  # the run's folder keeps the spec, and errors show addresses
            raise WrongValue(
                "names and passwords don't belong into the address of a server",
                "put its key into an environment variable, and name that as `api_key_env`",
            )
        if value is not None and value.startswith(("http://", "https://")) and not _ADDRESS.match(value):
            raise WrongValue(
                f"{value!r} can be read as the address of more than one server",
                "write http://HOST:PORT/v1, the host in plain letters (xn--... for others), digits, dots, dashes or as [IPv6]",
            )
        return value

    _revision = field_validator("revision")(part_of_repository)
    _variables = field_validator("chat_template_kwargs")(template_variables)

    @property
    def address(self) -> str:
        """The server's address, given as `base_url` or as the source; empty where there is none."""
        return self.base_url or (self.source if self.source.startswith(("http://", "https://")) else "")

    @property
    def served(self) -> bool:
        """Whether a server is asked, rather than weights loaded."""
        return self.engine == "openai" or bool(self.address)


class SpecFile(Strict):
    """A caiflow spec: one YAML file that says a whole Constitutional AI run."""

    caiflow: Literal[1]
    """Version of the spec language."""
    name: str | None = Field(default=None, pattern=NAME)
    """Name of the recipe, used for the folder of its runs; by default the file's name."""
    description: str = ""
    """What the recipe does, in a line or two; no effect."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of everything random in the run."""
    constitution: ConstitutionValue | None = None
    """A bundled name, a path, or the principles in place; a step may name another, or a step that makes one: `{step: NAME}`."""
    models: dict[Name, ModelEntry] = Field(default_factory=dict)
    """Models by the name that steps use."""
    steps: dict[Name, dict[str, Any]] = Field(min_length=1)
    """Steps by name; each is `{op: OPERATOR, ...its parameters}`."""
    profiles: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Partial specs by name; `--profile NAME` lays one over this spec, `a,b` several. A null takes a key away."""
    extends: str | None = None
    """Another spec, relative to this one, or a bundled recipe's name, over which this spec is laid."""
    matrix: dict[str, dict[str, dict[str, Any] | None] | list[Any]] = Field(default_factory=dict)
    """Variants to compare within one run: axis -> arm -> what it sets, or STEP.FIELD -> list of values."""


@dataclass(frozen=True)
class Step:
    """One named use of an operator, its parameters validated."""

    name: str
    op: str
    params: Params
    constitution: Any = None
    """The step's own constitution as written (`{step: NAME}` is what that step makes), or None where the spec's holds."""

    @property
    def base(self) -> str:
        """The step's name in the file, without the arm."""
        return self.name.partition("@")[0]

    @property
    def arm(self) -> str:
        """The arm of the matrix this copy belongs to; empty for a step that no arm changes."""
        return self.name.partition("@")[2]

    @property
    def input(self) -> str:
        """The step whose rows this one reads in order; empty where there is no such one."""
        return getattr(self.params, "input", None) or ""

    def references(self) -> tuple[Reference, ...]:
        """Return the edges into this step: each parameter that names a step or a model, in field order."""
        return self._references

    def marks(self, *kinds: str) -> tuple[Mark, ...]:
        """Return the marked texts of the parameters, of the given kinds."""
        return tuple(mark for mark in self._marks if mark.kind in kinds)

    @cached_property
    def _marks(self) -> tuple[Mark, ...]:
        return tuple(marks(self.params))

    @cached_property
    def _references(self) -> tuple[Reference, ...]:
        named = [Reference(mark.path, mark.value, mark.meaning, mark.key) for mark in self.marks("x-ref")]
        if made := self.principles_from:
            named.append(Reference(("constitution", "step"), made, "constitution"))
        return tuple(named)

    @property
    def principles_from(self) -> str:
        """The step whose output is this one's constitution (`constitution: {step: NAME}`); empty where none is."""
        given = self.constitution
        made = given.get("step") if isinstance(given, Mapping) and given.keys() == {"step"} else None
        return made if isinstance(made, str) else ""

    @property
    def goes_by_principles(self) -> bool:
        """Whether its constitution decides what it makes: that of an operator that uses one, or what a system turn shows."""
        return bool(self.stages)

    @property
    def stages(self) -> Collection[str]:
        """The stages whose texts of its constitution decide what it makes."""
        shown = any(shows_principles(mark.value) for mark in self.marks("x-principles"))
        return STAGES if shown or self.operator_type().uses_constitution else self.params.by_principles

    def operator_type(self) -> type[Operator[Any]]:
        """Return the class behind `op`."""
        from caiflow.engine import registry

        return registry.operator(self.op)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A validated spec. `raw` is the resolved file as plain dicts: extends, profile, overrides and matrix carried out."""

    name: str
    description: str
    seed: int
    path: Path
    base_dir: Path
    constitution: Any
    models: Mapping[str, ModelEntry]
    steps: Mapping[str, Step]
    operators: Mapping[str, Operator[Any]] = field(repr=False, compare=False)
    """What each step does, made when the spec was checked; its constitution is read."""
    raw: Mapping[str, Any]
    source: Node = field(repr=False, compare=False)
    """The resolved file with the place of each value, for messages."""
    led_up_to: Mapping[str, tuple[str, ...]] = field(default_factory=dict, compare=False)
    """By each step that wants so many rows and no more: the row steps that end where it has them, the first one first."""
    profiles: tuple[str, ...] = ()
    """The names of the profiles that could be chosen."""
    remarks: tuple[Problem, ...] = ()
    """What is worth knowing, though nothing is wrong."""
    variant: tuple[str, ...] = field(default=(), compare=False)
    """What was asked beside the file, in the words of the command: `--sample 8`, `--set seed=3`."""

    def dump(self) -> str:
        """Return the resolved spec as YAML, which loads to the same steps."""
        import yaml

        return yaml.safe_dump(dict(self.raw), sort_keys=False, allow_unicode=True, width=120)
