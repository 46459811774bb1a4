"""What the processes that compute don't import, and that it is there for whoever asks for it."""

import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from caiflow.engine.llm.local.lean import _Bringers, _lean
from support.models_of_runs import TINY

ALL = """
import gc, importlib.util, sys
from caiflow.engine.run.head_start import ENGINES, TRAINERS
from caiflow.engine.run.on_ray.actors import Worker
from caiflow.engine.training.loop import quiet_libraries
from caiflow.engine.llm.local.lean import UNASKED, import_lean

Worker().warm([*TRAINERS, *ENGINES])
quiet_libraries()
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.utils import is_scipy_available
from trl import DPOTrainer, SFTTrainer

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
print([name for name in UNASKED if name in sys.modules])
there = [name for name in UNASKED if importlib.util.find_spec(name)]
print(is_scipy_available() == ("scipy" in there), gc.isenabled(), gc.get_freeze_count() > 100_000)
sys.path.insert(0, sys.argv[2])
import_lean(["needy"])
print("needy" in sys.modules)
"""


def test_engines_and_trainings_import_nothing_that_they_never_use(tmp_path: Path) -> None:
    (tmp_path / "needy.py").write_text("import scipy\n" if find_spec("scipy") else "")
    done = subprocess.run([sys.executable, "-c", ALL, str(TINY), str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.splitlines()[-3:] == ["[]", "True True True", "True"], done.stderr


LOADED = """
import sys
opened = []
sys.addaudithook(lambda event, given: event == "open" and opened.append(str(given[0])))
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.load import load_engine
from caiflow.engine.llm.local.lean import UNASKED

load_engine(ModelSource(sys.argv[1], "tiny"))
from transformers.utils.import_utils import define_import_structure

print(sum(path.endswith("top_level.txt") for path in opened), define_import_structure.cache_info().currsize > 0)
print([name for name in UNASKED if name in sys.modules])
"""


def test_an_engine_that_nothing_was_imported_for_imports_as_little() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED, str(TINY)], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["0 True", "[]"], done.stderr


def test_who_brings_a_package_is_told_as_the_standard_library_does() -> None:
    told, known = _Bringers(), metadata.packages_distributions()
    assert {name: sorted(set(told[name])) for name in ("torch", "peft", "yaml")} == {
        name: sorted(set(known[name])) for name in ("torch", "peft", "yaml")
    }
    assert told.get("no_such_package") is None
    with _lean():
        assert sorted(set(_Bringers()["yaml"])) == sorted(set(known["yaml"])), "while libraries are imported, too"
    assert metadata.packages_distributions() == known
