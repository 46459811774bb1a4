"""Finished runs whose steps made models: the bundled one and adapters over it. Nothing is trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import caiflow.examples
from caiflow.engine.identity import digest
from caiflow.engine.store.artifacts import Store
from caiflow.engine.store.journal import Journal

TINY = Path(caiflow.examples.__path__[0]) / "tiny" / "model"
Make = Callable[[Path], object]
"""Writes what a step made into a folder."""


def finished_run(run: Path, store: Store, spec: str, made: Mapping[str, tuple[str, Make]]) -> Path:
    """Leave a run of the spec named cai that is done, with the kind and the making of each step's output; return its folder."""
    with Journal(run) as journal:
        journal.emit("run_started", name="cai", steps=[{"name": name, "op": "sft"} for name in made])
        (run / "steps").mkdir()
        for name, (kind, make) in made.items():
            staged = store.stage(digest(name))
            make(staged)
            artifact = store.seal(digest(name), staged, {"kind": kind})
            (run / "steps" / name).symlink_to(artifact.path)
            journal.emit("step_done", step=name, status="done", digest=artifact.digest)
        journal.emit("run_done", status="done")
    (run / "spec.yaml").write_text(spec)
    store.record_run("cai", run)
    return run


def tiny_model(folder: Path) -> None:
    """Write the bundled model."""
    shutil.copytree(TINY, folder, dirs_exist_ok=True)


def tiny_adapter(folder: Path, alpha: int, layers: Sequence[str]) -> None:
    """Write an adapter over the bundled model, of random weights that change it the more the larger `alpha` is."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=alpha, init_lora_weights=False, task_type="CAUSAL_LM", target_modules=list(layers))
    get_peft_model(AutoModelForCausalLM.from_pretrained(TINY), config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
