from __future__ import annotations

import pytest

from caiflow.engine.llm.local.serving import Refused, read


@pytest.mark.parametrize(
    "sent", [b"", b"{,}", b"\xff\xfe", b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 50_000 + b"1" + b"}" * 50_000]
)
def test_what_is_no_json_is_refused_in_words(sent: bytes) -> None:
    with pytest.raises(Refused, match="isn't JSON that can be read"):
        read(sent, {"base": None})
