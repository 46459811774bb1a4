from __future__ import annotations

import pytest

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.load import load_engine


@pytest.mark.parametrize(("asked", "told"), [({"exact": True}, "`exact: true`"), ({"draws": "vllm"}, "`draws: vllm`")])
def test_what_vllm_alone_gives_is_refused_by_name_where_auto_means_another(
    tiny_source: ModelSource, asked: dict[str, object], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(EngineError, match=f"asks for {told}, which vLLM alone gives, and would run on transformers here"):
        load_engine(tiny_source._replace(engine="auto", **asked))
