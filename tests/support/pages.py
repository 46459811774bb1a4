"""The fenced blocks of the documentation's pages, and a page's commands as one shell session.

A comment in the line above a block says what it is, where its language doesn't:

- `<!-- file: NAME -->`: the reader saves it as NAME; the commands below it find it there;
- `<!-- over: RECIPE -->`: part of a spec, which is validated laid over that bundled recipe;
- `<!-- fails -->`: its last command ends with an error;
- `<!-- not run: REASON -->`: commands that no test can run; those of caiflow are still parsed.

A YAML block without such a comment is a whole spec or constitution. `<!-- soak -->` in a page's first line leaves its commands
to `make test-all`. In a console block lines that begin with `$ ` are commands and the others what they print, `...` being
anything.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.ports import free_port

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^( *)(?:<!-- ([^\n]*?) -->\n\1)?```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_PORT = "8000"


@dataclass(frozen=True)
class Block:
    """One fenced block; `note` is the comment above it."""

    page: Path
    line: int
    language: str
    note: str
    text: str

    def noted(self, kind: str) -> str:
        """Return what the note says after `kind:`; empty where it is of another kind."""
        return self.note.removeprefix(f"{kind}:").strip() if self.note.startswith(f"{kind}:") else ""

    def steps(self) -> Iterator[tuple[str, str]]:
        """Yield the commands of a console block, each with what it prints as the page shows it."""
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            end = next(i for i, line in enumerate(lines) if not line.endswith("\\"))
            yield "\n".join(lines[: end + 1]), "\n".join(lines[end + 1 :]).strip()


def pages() -> list[Path]:
    """Return README and the written pages of the site."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """Return a page's blocks in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        indent, note, language, body = match.groups()
        plain = re.sub(f"^{indent}", "", body, flags=re.MULTILINE)
        found.append(Block(page, text.count("\n", 0, match.start()) + 1, language, note or "", plain))
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the words of each call of caiflow in a console block."""
    for command, _ in block.steps():
        lexer = shlex.shlex(command.replace("\\\n", " "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not re.fullmatch(r"[;&|<>()]+", word):
                words.append(word)
                continue
            if "caiflow" in words:
                yield words[words.index("caiflow") + 1 :]
            words = []


def save_files(page: Path, folder: Path) -> None:
    """Write the files that a page has its reader save."""
    for block in blocks(page):
        if name := block.noted("file"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(block.text, encoding="utf-8")


def run_page(page: Path, folder: Path) -> Sequence[str]:
    """Carry a page out as one shell session in an empty folder, with a store of its own; return what it printed otherwise.

    Port 8000, which pages show, becomes one that is free here.

    Raises:
        AssertionError: a command failed, or one that should have didn't.
    """
    work, outputs = folder / "work", folder / "outputs"
    work.mkdir()
    outputs.mkdir()
    script, expected = _script(blocks(page), outputs)
    path = folder / "page.sh"
    path.write_text(script.replace(_PORT, str(free_port())), encoding="utf-8")
    bin_ = Path(sys.executable).parent
    env = {**os.environ, "CAIFLOW_HOME": str(folder / "store"), "COLUMNS": "110", "PATH": f"{bin_}:{os.environ['PATH']}"}
    with (folder / "log").open("wb") as log:
        shell = subprocess.Popen(["bash", path], cwd=work, env=env, stdout=log, stderr=log, start_new_session=True)
        code = shell.wait()
        _end(shell.pid)
    printed = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in sorted(outputs.iterdir()))
    assert code == 0, f"{page}: exit {code}\n{(folder / 'log').read_text(errors='replace')[-2000:]}\n{printed[-6000:]}"
    return [miss for name, shown in expected.items() if (miss := _missed(outputs / name, shown))]


def _script(found: Sequence[Block], outputs: Path) -> tuple[str, dict[str, str]]:
    lines, expected = ["set -eu -o pipefail"], {}
    for block in found:
        if name := block.noted("file"):
            lines.append(f"mkdir -p $(dirname {name}) && cat > {name} <<'END OF FILE'\n{block.text}END OF FILE")
        elif block.language == "console" and not block.noted("not run"):
            steps = list(block.steps())
            for number, (command, shown) in enumerate(steps, 1):
                output = f"{block.line:04}-{number:02}"
                expected[output] = shown
                said = f"{{ {command}\n}} > {outputs / output} 2>&1"
                fails = block.note == "fails" and number == len(steps)
                lines.append(f"if {said}; then echo 'no error: {output}'; exit 9; fi" if fails else said)
    return "\n".join(lines) + "\n", expected


def _missed(output: Path, shown: str) -> str:
    """Return what differs, or nothing where the output is as shown."""
    if not shown:
        return ""
    said = re.sub(r"[ \t]+", " ", output.read_text(encoding="utf-8")).strip()
    pattern = ".*?".join(map(re.escape, re.sub(r"[ \t]+", " ", shown).split("...")))
    return "" if re.fullmatch(pattern, said.replace(" \n", "\n"), re.DOTALL) else f"shown:\n{shown}\nprinted:\n{said}"


def _end(group: int) -> None:
    """End what a page's session left in the background."""
    try:
        os.killpg(group, signal.SIGTERM)
    except ProcessLookupError:
        return
