"""Has vLLM's CPU build serve on its second model runner, the one of GPUs: on PYTHONPATH of the process, with these variables.

    TRITON_INTERPRET=1             Triton's kernels are interpreted, so no compiler is needed
    VLLM_USE_V2_MODEL_RUNNER=1     vLLM's own switch
    CAIFLOW_TEST_ONE_STEP_AHEAD=1  the scheduler plans the next step while one runs, as on a GPU

vLLM takes Triton to be missing where it has no backend for the machine; the interpreter needs none, so a name is registered.
Its CPU platform switches off the planning ahead; that is switched on again after it has. Both are done once the modules have
been imported, since importing them here would be the first import of torch in every Python process.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace


class _After(importlib.abc.MetaPathFinder):
    """Calls `change` with a module right after its first import."""

    def __init__(self, name: str, change: Callable[[ModuleType], None]) -> None:
        self._name, self._change = name, change

    def find_spec(self, fullname, path, target=None):
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_change(module: ModuleType) -> None:
            run(module)
            self._change(module)

        spec.loader.exec_module = run_and_change
        return spec


def _name_a_backend(module: ModuleType) -> None:
    module.backends["cpu"] = SimpleNamespace(compiler=None, driver=SimpleNamespace(is_active=lambda: True))


def _plan_ahead(module: ModuleType) -> None:
    settle = module.CpuPlatform.check_and_update_config

    def settle_and_plan_ahead(cls, vllm_config):
        settle(vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    module.CpuPlatform.check_and_update_config = classmethod(settle_and_plan_ahead)


if os.environ.get("TRITON_INTERPRET") == "1" and os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1":
    sys.meta_path.insert(0, _After("triton.backends", _name_a_backend))
    if os.environ.get("CAIFLOW_TEST_ONE_STEP_AHEAD") == "1":
        sys.meta_path.insert(0, _After("vllm.platforms.cpu", _plan_ahead))
