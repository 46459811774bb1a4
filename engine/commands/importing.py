"""`caiflow import`: the answers of a batch API into the ledger, so that the next run pays for none of them."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from caiflow.engine.commands.export import in_words, told_waiting
from caiflow.engine.commands.parser import allowed_by, allowing_arguments, named_run, open_store, print_json
from caiflow.engine.display.terminal import say

if TYPE_CHECKING:
    from caiflow.engine.llm.served.batch import Answers
    from caiflow.engine.run.batching import Passage

EXAMPLES = """\
  caiflow export last asked --as batch      # asked/batch/judge.jsonl, to be sent to the provider
  caiflow import last output.jsonl error.jsonl
"""
WORDS = {
    "taken": "taken",
    "failed": "failed",
    "not_carried_out": "expired or cancelled",
    "not_asked": "answer nothing that this run waits for: they were taken before, or are another spec's or model's",
    "doubled": "answer a call once more",
    "unreadable": "can't be read",
}
"""What may become of a line."""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `import`."""
    parser.add_argument("run", metavar="RUN", help="the run that was exported (see caiflow show --help)")
    parser.add_argument("files", metavar="FILE", type=Path, nargs="+", help="files of answers and of errors, JSON Lines")
    allowing_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print what became of the lines as JSON")


def execute(args: Namespace) -> int:
    """Take the answers; say what became of every line."""
    from caiflow.engine.errors import CaiflowError
    from caiflow.engine.llm.served.batch import Answers
    from caiflow.engine.plan.components import Resolver
    from caiflow.engine.run.batching import count_lines, pass_rows
    from caiflow.engine.spec.load import load_spec

    allowed = allowed_by(args)._replace(paths=tuple(args.allowed_paths))
    run_dir, store, answers = named_run(args.run), open_store(), Answers()
    for path in args.files:
        try:
            answers.read(path)
        except OSError as error:
            raise CaiflowError(f"{path}: {error.strerror}", "name the files that the provider's batch gave") from error
    spec = load_spec(run_dir / "spec.yaml", allowed=allowed.paths)
    passage = pass_rows(Resolver(spec, store, allowed=allowed), allowed, answers.replies)
    store.record_run(spec.name, run_dir, ledgers=passage.ledgers)
    lines, taken = count_lines(answers, passage), {step.step: len(step.taken) for step in passage.steps if step.taken}
    trouble = list(_trouble(answers, passage))
    if args.json:
        print_json("import", {"lines": lines, "taken": taken, "trouble": trouble, "waiting": told_waiting(passage)})
        return 0
    for line in (*_told(lines, taken), *trouble, *in_words(passage)):
        say(line)
    again = any(step.calls for step in passage.steps)
    say(f"next: caiflow export {args.run} DIR --as batch, or caiflow run SPEC" if again else "next: caiflow run SPEC")
    return 0


def _told(lines: Mapping[str, int], taken: Mapping[str, int]) -> Iterator[str]:
    by_step = ", ".join(f"{step} {count}" for step, count in taken.items())
    for what, count in lines.items():
        if count or what == "taken":
            yield f"{count} lines {WORDS[what]}" + (f" ({by_step})" if what == "taken" and by_step else "")


def _trouble(answers: Answers, passage: Passage) -> Iterator[str]:
    """Yield the first of each kind of trouble."""
    yield from passage.lessons
    if answers.trouble:
        yield answers.trouble
    for step in passage.steps:
        for key, said in list(step.failed.items())[:1]:
            yield f"{step.step}: {key}: {said}"
    for key, reply in [(key, reply) for key, reply in answers.replies.items() if reply.unput][:1]:
        yield f"{key}: {reply.unput}"
