"""Deliberately broken specs: each problem is found at its place, says what is wrong, and suggests what to do.

A `»` in a spec stands before the key or value at which a problem must be reported; it is taken out before the spec is written.
The problems must be exactly these, in this order.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import NamedTuple

import pytest

from caiflow.engine import registry
from caiflow.engine.errors import Problem, SpecError
from caiflow.engine.spec.load import check_spec, load_spec
from support import small_operators

DATA = "steps:\n  data: {op: read, source: data.jsonl}\n"
HEAD = "caiflow: 1\nmodels:\n  base: {source: tiny}\n" + DATA
ASK = "  ask: {op: ask, input: data, model: base}\n"
IMPROVE = "  i: {op: improve, input: ask, model: base}\n"


class Broken(NamedTuple):
    """A spec, and a part of each problem's message and of its hint."""

    name: str
    text: str
    problems: list[tuple[str, str]]
    sets: tuple[str, ...] = ()


def steps(text: str) -> str:
    """Return a spec with these steps after `data`."""
    return HEAD + text


BROKEN = [
    # YAML itself
    Broken("empty", "»", [("the file is empty", "start with `caiflow: 1`")]),
    Broken("not_a_mapping", "»- a\n- b\n", [("a spec must be a mapping", "start with `caiflow: 1`")]),
    Broken("syntax", "caiflow: 1\nsteps: {a: [1, 2»}\n", [("not valid YAML", "brackets")]),
    Broken("tab", "caiflow: 1\nsteps:\n»\tdata: {}\n", [("not valid YAML", "replace tabs")]),
    Broken("colon_in_text", "caiflow: 1\ndescription: a loop»: really\n", [("mapping values are not allowed", "quote a text")]),
    Broken("indent", HEAD + "   »ask: {}\n", [("begins in column 4, and its level, from line 5 on, in column 3", "alike")]),
    Broken("no_indent", HEAD + "ask: {}\n  »more: {}\n", [("its level, from line 1 on, in column 1", "or line 6 before it")]),
    Broken("list_among_keys", HEAD + "  »- ask: {}\n", [("an entry of a list stands among keys", "remove the `- `")]),
    Broken("open_quote", 'name: »"a\n' + HEAD, [("the quote that begins here doesn't end", "close it")]),
    Broken("no_space", "caiflow 1\nsteps»: {}\n", [("mapping values are not allowed", "quote a text")]),
    Broken("open_bracket", HEAD + "  ask: {op: [a, b»}\n", [("the `[` of line 6, column 13, isn't closed", "with `]`")]),
    Broken("duplicate_key", "caiflow: 1\nseed: 1\n»seed: 2\n", [("duplicate key `seed`", "already set on line 2")]),
    Broken(
        "duplicate_keys_both_reported",
        HEAD + "  »data: {op: read}\n  ask: {op: ask, input: data, »op: ask}\n",
        [("duplicate key `data`", "line 5"), ("duplicate key `op`", "line 7")],
    ),
    Broken(
        "python_tag", "caiflow: 1\nseed: »!!python/object/apply:os.system [id]\n", [("tags are not allowed", "remove the tag")]
    ),
    Broken("own_tag", "caiflow: 1\nseed: »!secret x\n", [("tags are not allowed, got `!secret`", "remove the tag")]),
    Broken("unknown_alias", "caiflow: 1\nseed: »*lost\n", [("unknown alias `*lost`", "&lost")]),
    Broken("alias_in_itself", "caiflow: 1\nsteps: &all {a: »*all}\n", [("inside its own anchor", "can't contain itself")]),
    Broken(
        "alias_bomb",
        "a: &a [x,x,x,x,x,x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
        "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,*c,»*c,*c,*c]\n",
        [("more than 50000 values", "fewer aliases")],
    ),
    Broken("too_deep", "a: " + "[" * 59 + "»[[[1]]]", [("nested deeper than 60", "")]),
    Broken("second_document", "caiflow: 1\n»---\ncaiflow: 1\n", [("a second document", "remove the `---`")]),
    Broken("list_as_key", "caiflow: 1\n? »[a, b]\n: 1\n", [("a key must be a plain word", "quote it")]),
    Broken(
        "two_merges",
        "caiflow: 1\na: &a {b: 1}\nc:\n  <<: *a\n  »<<: *a\n",
        [("a second `<<` beside that on line 4", "[*one, *other]")],
    ),
    Broken("merge_of_text", "caiflow: 1\n<<: »text\n", [("`<<` takes a mapping", "*name")]),
    # the top level
    Broken("no_version", "»steps:\n  data: {op: read, source: data.jsonl}\n", [("`caiflow` is missing", "add `caiflow: 1`")]),
    Broken("later_version", HEAD.replace("1", "»2", 1), [("version 2 of the language", "bring caiflow up to date")]),
    Broken("no_steps", "»caiflow: 1\n", [("`steps` is missing", "add `steps:`")]),
    Broken("empty_steps", "caiflow: 1\nsteps: »{}\n", [("`steps` needs at least 1 entry", "")]),
    Broken(
        "unknown_top_key", HEAD + "»constituton: harmless\n", [("unknown key `constituton`", "did you mean `constitution`?")]
    ),
    Broken("name_with_slash", HEAD + "name: »a/b\n", [("`name` must match", "letters, digits")]),
    Broken("seed_text", HEAD + "seed: »many\n", [('`seed` must be a whole number, got "many"', "write a number")]),
    Broken("seed_negative", HEAD + "seed: »-1\n", [("`seed` must be at least 0, got -1", "at least 0")]),
    Broken("seed_truth", HEAD + "seed: »true\n", [("`seed` must be a whole number, got true", "")]),
    Broken(
        "steps_as_list", "caiflow: 1\nsteps: »[{op: read}]\n", [("`steps` must be a mapping", "write each as `NAME: {...}`")]
    ),
    Broken(
        "step_name", steps("  »my step: {op: ask, input: data, model: base}\n"), [("`my step` isn't a valid name", "letters")]
    ),
    # models
    Broken("model_key", "caiflow: 1\nmodels: {m: {source: tiny, »dtyp: auto}}\n" + DATA, [("unknown key `dtyp`", "`dtype`")]),
    Broken("model_dtype", "caiflow: 1\nmodels: {m: {source: tiny, dtype: »fp32}}\n" + DATA, [("unknown value", "float32")]),
    Broken("model_without_source", "caiflow: 1\nmodels: {»m: {dtype: auto}}\n" + DATA, [("`m` lacks `source`", "`source:`")]),
    Broken("model_as_text", "caiflow: 1\nmodels: {m: »tiny}\n" + DATA, [("`m` must be a mapping", "{source: tiny}")]),
    Broken(
        "key_in_the_open",
        "caiflow: 1\nmodels: {m: {source: x, engine: openai, base_url: 'http://x/v1', api_key_env: »sk-123}}\n" + DATA,
        [("`api_key_env` must match", "never the secret itself")],
    ),
    Broken(
        "engine_argument_misspelt",
        "caiflow: 1\nmodels: {m: {source: tiny, engine_args: {»max_model_length: 64}}}\n" + DATA,
        [("unknown key `max_model_length`", "did you mean `max_model_len`?")],
    ),
    Broken(
        "engine_argument_that_names_code",
        "caiflow: 1\nmodels: {m: {source: tiny, engine_args: {»worker_extension_cls: theirs.Worker}}}\n" + DATA,
        [("unknown key `worker_extension_cls`", "")],
    ),
    Broken(
        "engine_argument_of_code_by_name",
        "caiflow: 1\nmodels: {m: {source: tiny, engine_args: {distributed_executor_backend: »theirs.Executor}}}\n" + DATA,
        [("must be `mp`, `ray` or `uni`", "allowed")],
    ),
    Broken(
        "override_that_names_code",
        "caiflow: 1\nmodels: {m: {source: tiny, engine_args: {hf_overrides: »{text: {attn_implementation: a/b}}}}}\n" + DATA,
        [("`attn_implementation` may name code to run", "other_engine_args")],
    ),
    Broken("no_server", "caiflow: 1\nmodels: {»m: {source: a, engine: openai}}\n" + DATA, [("has no server", "base_url")]),
    Broken(
        "exact_on_transformers",
        "caiflow: 1\nmodels: {m: {source: tiny, engine: transformers, »exact: true}}\n" + DATA,
        [("the transformers engine can't give `exact: true`", "engine: vllm")],
    ),
    Broken(
        "draws_of_a_server",
        "caiflow: 1\nmodels: {m: {source: x, base_url: 'http://x/v1', »exact: true, »draws: vllm}}\n" + DATA,
        [("a server can't give `exact: true`", "leave it out"), ("a server can't give `draws: vllm`", "leave it out")],
    ),
    Broken("missing_folder", "caiflow: 1\nmodels: {m: {source: »./nets/one}}\n" + DATA, [("no such file", "no folder")]),
    Broken("model_and_step", steps("  »base: {op: ask, input: data, model: base}\n"), [("also the name of a model", "rename")]),
    # a step's keys and values
    Broken("no_op", steps("  »ask: {input: data, model: base}\n"), [("`ask` lacks `op`", "add `op:`")]),
    Broken("step_as_text", steps("  ask: »generate\n"), [("`ask` must be a mapping", "{op: generate, ...}")]),
    Broken(
        "unknown_op",
        steps("  ask: {op: »genrate, input: data}\n"),
        [("unknown operator `genrate`", "did you mean `generate`?")],
    ),
    Broken("op_number", steps("  ask: {op: »3}\n"), [("unknown operator `3`", "operators: load")]),
    Broken(
        "unknown_key",
        steps("  ask: {op: ask, »imput: data, input: data, model: base}\n"),
        [("`imput`", "did you mean `input`?")],
    ),
    Broken(
        "nothing_like_it", steps("  ask: {op: ask, input: data, model: base, »zzz: 1}\n"), [("unknown key `zzz`", "keys: ")]
    ),
    Broken(
        "key_of_another_operator",
        steps("  ask: {op: ask, input: data, model: base, »lora: {rank: 8}}\n"),
        [("unknown key `lora`", "`lora` is a field of sft, reward, dpo, rl")],
    ),
    Broken(
        "no_space_behind_a_colon",
        steps("  »ask: {op:ask, input: data}\n"),
        [("`ask` lacks `op`", "write `op: ask`, with a space")],
    ),
    Broken(
        "no_space_behind_another",
        steps("  ask: {op: ask, input: data, model: base, sampling: {»top_k:3}}\n"),
        [("unknown key `top_k:3`", "write `top_k: 3`, with a space")],
    ),
    Broken(
        "decimal_comma",
        steps("  ask: {op: ask, input: data, model: base, sampling: {temperature: 0, »7}}\n"),
        [("unknown key `7`", "`0.7`")],
    ),
    Broken(
        "one_in_brackets", steps("  ask: {op: ask, input: »[data], model: base}\n"), [("`input` must be text", "write `data`")]
    ),
    Broken(
        "two_inputs",
        steps("  ask: {op: ask, input: »[data, data], model: base}\n"),
        [("`input` must be text", "`op: mix` joins several")],
    ),
    Broken(
        "key_of_another_tool",
        steps("  ask: {op: ask, input: data, model: base, »max_new_tokens: 8}\n"),
        [("unknown key `max_new_tokens`", "write `sampling: {max_tokens: 8}`")],
    ),
    Broken(
        "key_one_level_up",
        steps("  ask: {op: ask, input: data, model: base, »temperature: 1}\n"),
        [("unknown key `temperature`", "write `sampling: {temperature: 1}`")],
    ),
    Broken("missing_field", steps("  »ask: {op: ask, input: data}\n"), [("`ask` lacks `model`", "add `model:`")]),
    Broken(
        "two_missing_fields",
        steps("  »ask: {op: ask}\n"),
        [("`ask` lacks `input`", "add `input:`"), ("`ask` lacks `model`", "add `model:`")],
    ),
    Broken(
        "nested_key",
        steps("  ask: {op: ask, input: data, model: base, sampling: {»temprature: 1}}\n"),
        [("unknown key `temprature`", "did you mean `temperature`?")],
    ),
    Broken(
        "number_in_quotes",
        steps("  ask: {op: ask, input: data, model: base, sampling: {max_tokens: »'64'}}\n"),
        [('`max_tokens` must be a whole number, got "64"', "without quotes")],
    ),
    Broken(
        "fraction_of_tokens",
        steps("  ask: {op: ask, input: data, model: base, sampling: {max_tokens: »6.5}}\n"),
        [("`max_tokens` must be a whole number, got 6.5", "")],
    ),
    Broken(
        "yes",
        steps("  ask: {op: ask, input: data, model: base, template: »yes}\n"),
        [("must be true or false", "write `true`")],
    ),
    Broken(
        "out_of_range",
        steps("  ask: {op: ask, input: data, model: base, sampling: {top_p: »1.5}}\n"),
        [("`top_p` must be at most 1, got 1.5", "at most 1")],
    ),
    Broken(
        "second_of_a_list",
        steps("  ask: {op: ask, input: data, model: base, samples: [{temperature: 0}, {temperature: »-1}]}\n"),
        [("`temperature` must be at least 0, got -1", "at least 0")],
    ),
    Broken(
        "list_wanted", steps("  ask: {op: ask, input: data, model: base, samples: »3}\n"), [("`samples` must be a list", "")]
    ),
    Broken(
        "text_for_list",
        steps("  ask: {op: ask, input: data, model: base, sampling: {stop: »END}}\n"),
        [("`stop` must be a list", "write `[END]`")],
    ),
    Broken(
        "choice",
        steps("  more: {op: read, source: data.jsonl, format: »plane}\n"),
        [("unknown value", "did you mean `plain`?")],
    ),
    Broken("pattern", steps("  ask: {op: ask, input: data, model: base, into: »A b}\n"), [("`into` must match", "")]),
    Broken("learning_rate", steps("  t: {op: train, input: data, model: base, learning_rate: »two}\n"), [("a number", "")]),
    Broken("infinite", steps("  t: {op: train, input: data, model: base, learning_rate: ».inf}\n"), [("must be a number", "")]),
    Broken("null_step", steps("  ask:»\n"), [("`ask` must be a mapping", "op:")]),
    # unions
    Broken(
        "rule_name", steps("  s: {op: sift, input: data, drop: [»unchangd]}\n"), [("`drop[0]`", "did you mean `unchanged`?")]
    ),
    Broken("rule_key", steps("  s: {op: sift, input: data, drop: [{»lenght: {max: 3}}]}\n"), [("unknown key", "`length`?")]),
    Broken(
        "key_in_a_rule",
        steps("  s: {op: sift, input: data, drop: [{length: {column: prompt, »maxx: 3, max: 3}}]}\n"),
        [("unknown key `maxx`", "did you mean `max`?")],
    ),
    Broken(
        "too_many_rules",
        steps("  s: {op: sift, input: data, drop: »[{leak: 1}, {leak: 2}, {leak: 3}, {leak: 4}]}\n"),
        [("at most 3", "")],
    ),
    Broken(
        "lora_wrong",
        steps("  t: {op: train, input: data, model: base, lora: »8}\n"),
        [("`lora` must be a mapping", "its keys: rank")],
    ),
    # what only the models and the operators know
    Broken(
        "own_validator", steps("  b: {op: blend, inputs: »{data: 0}}\n"), [("at least one part must be above 0", "raise one")]
    ),
    Broken(
        "own_check",
        steps("  s: {op: sift, input: data, drop: [{length: {column: prompt, max: 3, min: »5}}]}\n"),
        [("min is above max, got 5", "lower it")],
    ),
    # names, kinds and cycles
    Broken(
        "unknown_step", steps("  ask: {op: ask, input: »dat, model: base}\n"), [("unknown step `dat`", "did you mean `data`?")]
    ),
    Broken(
        "unknown_model",
        steps("  ask: {op: ask, input: data, model: »bas}\n"),
        [("unknown model `bas`", "did you mean `base`?")],
    ),
    Broken("unknown_in_keys", steps("  b: {op: blend, inputs: {data: 1, »daat: 2}}\n"), [("unknown step `daat`", "`data`?")]),
    Broken("unknown_in_list", steps("  s: {op: score, models: [base, »bse]}\n"), [("unknown model `bse`", "`base`?")]),
    Broken(
        "rows_for_model",
        steps("  ask: {op: ask, input: data, model: »data}\n"),
        [("`data` is rows, but `model` takes a model", "base")],
    ),
    Broken(
        "model_for_rows",
        steps("  ask: {op: ask, input: »base, model: base}\n"),
        [("`base` is a model, but `input` takes rows", "data")],
    ),
    Broken(
        "figures_for_rows",
        steps("  s: {op: score, models: [base]}\n  ask: {op: ask, input: »s, model: base}\n"),
        [("`s` is figures, but `input` takes rows", "")],
    ),
    Broken(
        "cycle",
        steps(
            "  a: {op: ask, input: »c, model: base}\n  b: {op: ask, input: a, model: base}\n"
            "  c: {op: ask, input: b, model: base}\n"
        ),
        [("the steps need each other: a -> c -> b -> a", "cut one")],
    ),
    Broken("needs_itself", steps("  a: {op: ask, input: »a, model: base}\n"), [("need each other: a -> a", "cut one")]),
    # columns
    Broken(
        "no_column",
        steps("  t: {op: train, input: »data, model: base}\n"),
        [("`data` has no column `response`", "prompt, uid")],
    ),
    Broken(
        "no_column_as_named",
        steps(ASK + "  s: {op: sift, input: ask, drop: [{length: {column: »respons, max: 3}}]}\n"),
        [("`ask` has no column `respons`", "did you mean `response`?")],
    ),
    Broken(
        "no_column_in_an_expression",
        steps(ASK + "  s: {op: filter, input: ask, drop: [{where: »words(respons) < 3}]}\n"),
        [("`ask` has no column `respons`", "did you mean `response`?")],
    ),
    Broken(
        "one_of_two_columns",
        HEAD + "  i: {op: improve, input: »data, model: base}\nconstitution: harmless\n",
        [("`data` has no column `response` or `answer`", "its columns")],
    ),
    Broken(
        "column_lost_in_a_blend",
        steps(ASK + "  b: {op: blend, inputs: {ask: 1, data: 1}}\n  t: {op: train, input: »b, model: base}\n"),
        [("`b` has no column `response`", "")],
    ),
    # files and constitutions
    Broken(
        "template_that_is_none",
        HEAD.replace("{source: tiny}", '{source: tiny, chat_template: »"{% for turn in %}"}'),
        [("the chat template can't be read: line 1: ", "Jinja")],
    ),
    Broken(
        "missing_file", HEAD.replace("data.jsonl", "»dta.jsonl"), [("no such file: dta.jsonl", "did you mean `data.jsonl`?")]
    ),
    Broken("missing_file_below", HEAD.replace("data.jsonl", "»in/dat.jsonl"), [("no such file", "there is no folder")]),
    Broken(
        "no_constitution", steps(ASK + "  »i: {op: improve, input: ask, model: base}\n"), [("needs a constitution", "harmless")]
    ),
    Broken(
        "constitution_name",
        HEAD + ASK + IMPROVE + "constitution: »harmles\n",
        [("harmles", "did you mean 'harmless'?")],
    ),
    Broken(
        "constitution_file",
        HEAD + ASK + IMPROVE + "constitution: »datum.jsonl\n",
        [("no constitution 'datum.jsonl' and no such file", "did you mean 'data.jsonl'?")],
    ),
    Broken(
        "principle_key",
        HEAD + ASK + IMPROVE + "constitution:\n  - {id: a, rule: be kind}\n  - {id: b, »critque: x, revision: y}\n",
        [("principle 'b': unknown key `critque`", "did you mean `critique`?")],
    ),
    Broken(
        "principle_twice",
        HEAD + ASK + IMPROVE + "constitution:\n  - {id: a, rule: be kind}\n  - rule: be calm\n    »id: a\n",
        [("two principles have the id 'a'", "ids must differ")],
    ),
    Broken(
        "principle_key_in_a_mapping",
        HEAD + ASK + IMPROVE + "constitution: {principles: [{id: a, »rul: be kind}]}\n",
        [("principle 'a': unknown key `rul`", "did you mean `rule`?")],
    ),
    # layers
    Broken("extends_nothing", "caiflow: 1\nextends: »basis.yaml\n", [("no such file: basis.yaml", "relative to this file")]),
    Broken("extends_itself", "caiflow: 1\nextends: »spec.yaml\n", [("in a circle", "cut the chain")]),
    Broken("set_step", "»" + HEAD, [("unknown step `dta`", "did you mean `data`?")], ("steps.dta.limit=1",)),
    Broken("set_field", "»" + HEAD, [("unknown key `limits`", "did you mean `limit`?")], ("steps.data.limits=1",)),
    Broken("set_value", "»" + HEAD, [("must be a whole number", "")], ("steps.data.limit=few",)),
    Broken("set_nothing", "»" + HEAD, [("is not an assignment", "steps.NAME.FIELD=VALUE")], ("steps.data.limit",)),
    # matrix
    Broken(
        "arms_of_one_value",
        HEAD + "matrix: {data.limit: [1, »1]}\n",
        [("two arms of `data.limit` come out under the name `1`", "")],
    ),
    Broken(
        "arm_called_as_another_is_numbered",
        HEAD + "matrix: {data.limit: [null, 2, »1]}\n",
        [("come out under the name `1`", "name each")],
    ),
    Broken(
        "arms_of_one_number", HEAD + "matrix: {data.limit: [1, »1.0]}\n", [("arm `1.0` of `data.limit` has the value", "once")]
    ),
    Broken(
        "arms_of_one_mapping",
        HEAD + "matrix: {data.limit: [»{a: 1, b: 2}, »{b: 2.0, a: 1}]}\n",
        [("must be a whole number", ""), ("arm `2` of `data.limit` has the value of arm `1`", "name both")],
    ),
    Broken(
        "arms_of_nothing", HEAD + "matrix: {data.limit: [null, »null]}\n", [("arm `2` of `data.limit` has the value", "once")]
    ),
    Broken("arm_without_name_or_content", HEAD + "matrix: {x: »{'a b': {}}}\n", [("`a b` can't name an arm", "NAME")]),
    Broken("arm_step", HEAD + "matrix: {x: {a: {»dta.limit: 1}}}\n", [("unknown step `dta`", "did you mean `data`?")]),
    Broken("arm_value", HEAD + "matrix: {data.limit: [1, »none]}\n", [("`limit` must be a whole number", "")]),
    Broken("arm_key", HEAD + "matrix: {x: {a: {»data.limits: 1}, b: {}}}\n", [("unknown key `limits`", "`limit`?")]),
    # several at once
    Broken(
        "wrong_in_a_step_that_is_wrong_already",
        HEAD.replace("data.jsonl", "»data.json, format: »csv") + "  a: {op: ask, input: »dat, model: »data, »sample: 3}\n",
        [
            ("no such file", "data.jsonl"),
            ("unknown value", "plain"),
            ("unknown step", ""),
            ("is rows", ""),
            ("unknown key", ""),
        ],
    ),
    Broken(
        "all_at_once",
        "caiflow: 1\n»sede: 3\nmodels:\n  base: {source: tiny}\nsteps:\n  data: {op: read, source: »x.jsonl}\n"
        "  ask: {op: ask, input: »dta, model: base}\n  t: {op: train, input: ask, »modl: base, model: base, epochs: »0}\n",
        [
            ("unknown key `sede`", "seed"),
            ("no such file", ""),
            ("unknown step", "data"),
            ("`modl`", "model"),
            ("at least 1", ""),
        ],
    ),
    # Names that no file can have
    Broken("long_spec", "name: »" + "n" * 201 + "\n" + HEAD, [("too long for the folders of its runs", "at most 200 bytes")]),
    Broken("long_step", steps(ASK.replace("ask:", f"»{'s' * 201}:")), [("too long for a file", "at most 200 bytes")]),
    Broken(
        "long_arms",
        steps(ASK.replace("  ask:", f"  »{'s' * 120}:"))
        + f"matrix:\n  size: {{{'a' * 90}: {{data.limit: 1}}, b: {{data.limit: 2}}}}\n",
        [("too long for a file, with its arm's", "at most 200 bytes")],
    ),
    # What follows from a mistake isn't told beside it, nor once per arm
    Broken(
        "typo_in_a_matrix",
        steps(ASK + IMPROVE) + "matrix:\n  data.limit: [1, 2]\n  »i.nopes: [1, 2]\n",
        [("unknown key `nopes`", "")],
    ),
    Broken(
        "typo_in_a_copied_step",
        steps(ASK + IMPROVE.replace("input:", "»inptu: 3, input:")) + "matrix:\n  data.limit: [1, 2]\n",
        [("unknown key `inptu`", "did you mean `input`?")],
    ),
    Broken(
        "no_such_column_in_any_arm",
        steps("  few: {op: sift, input: data, drop: [{length: {column: »nope, max: 3}}]}\n")
        + "matrix:\n  data.limit: [1, 2]\n",
        [("has no column `nope`", "")],
    ),
]


@pytest.mark.parametrize("broken", BROKEN, ids=[broken.name for broken in BROKEN])
def test_each_problem_is_found_at_its_place(broken: Broken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text('{"prompt": "hi"}\n')
    Path("spec.yaml").write_text(broken.text.replace("»", ""), encoding="utf-8")
    with registry.extra(*small_operators.ALL), pytest.raises(SpecError) as caught:
        load_spec("spec.yaml", sets=broken.sets)
    found = caught.value.problems
    shown = "\n".join(map(str, found))
    assert len(found) == len(broken.problems), shown
    for problem, (message, hint) in zip(found, broken.problems, strict=True):
        assert message in problem.message, shown
        assert hint in problem.hint, shown
    expected = _places(broken)
    assert [(problem.line, problem.col) for problem in found] == expected * (len(found) if len(expected) == 1 else 1), shown
    assert all(problem.file == ("--set" if broken.sets else "spec.yaml") for problem in found)
    assert pickle.loads(pickle.dumps(caught.value)).problems == found


def _places(broken: Broken) -> list[tuple[int, int]]:
    if broken.sets:
        text = broken.sets[0]
        return [(1, text.index("=") + 2 if text.endswith("few") else 1)]
    places = []
    for number, line in enumerate(broken.text.splitlines() or [""], 1):
        while "»" in line:
            places.append((number, line.index("»") + 1))
            line = line.replace("»", "", 1)
    return places


def test_there_are_at_least_forty_with_names_of_their_own() -> None:
    assert len({broken.name for broken in BROKEN}) == len(BROKEN) >= 40


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a: \xff\n", "not UTF-8"), (b"#" * (1 << 20) + b"\n", "larger than"), (b"a: \x01", "not allowed")],
)
def test_a_file_that_is_no_text_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(content)
    (problem,) = check_spec(path)
    assert message in problem.message


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "can't read the file" in check_spec(tmp_path / "none.yaml")[0].message
    assert "this is a folder" in check_spec(tmp_path)[0].message


def test_a_problem_reads_as_editors_expect() -> None:
    assert str(Problem("a.yaml", 3, 7, "steps.x", "wrong", "do right")) == "a.yaml:3:7: wrong; do right"
