"""The script of `caiflow completion`, in a real bash: what it offers after what was typed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from caiflow.engine.cli import COMMANDS
from caiflow.engine.commands import completion
from support.commands import command_here

ASK = """\
source "$1"
shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
"$(complete -p caiflow | sed 's/.* -F \\([^ ]*\\) .*/\\1/')" caiflow "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    done = command_here(folder, "completion", "bash")
    assert done.returncode == 0, done.stderr
    (folder / "caiflow.bash").write_text(done.stdout)
    return folder / "caiflow.bash"


def offered(script: Path, *words: str) -> set[str]:
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", str(script), "caiflow", *words],
        cwd=script.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return {word.strip() for word in done.stdout.splitlines() if word.strip()}


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash here")
def test_bash_offers_commands_options_choices_and_files(script: Path) -> None:
    assert offered(script, "") >= set(COMMANDS)
    assert offered(script, "re") == {"replay", "report"}
    assert {"--sample", "--profile", "--set"} <= offered(script, "run", "--")
    assert offered(script, "serve", "--engine", "") == {"auto", "vllm", "transformers"}
    (script.parent / "mine.yaml").touch()
    assert "mine.yaml" in offered(script, "run", "mi")


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_shell_has_a_script_with_every_command(tmp_path: Path, shell: str) -> None:
    done = command_here(tmp_path, "completion", shell)
    assert done.returncode == 0
    assert [name for name in COMMANDS if name not in done.stdout] == []


def test_without_its_library_the_way_to_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "find_spec", lambda name: None)  # it is there, in the test's own environment
    done = command_here(tmp_path, "completion", "bash")
    assert done.returncode == 1
    assert "shtab, which writes the script, isn't installed; pip install " in done.stderr
