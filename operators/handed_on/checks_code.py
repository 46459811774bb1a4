"""The checks of an evaluation as Python that needs nothing of caiflow, for files that other tools import."""

from __future__ import annotations

import json
from collections.abc import Mapping

from caiflow.operators.evaluation.checks import CuedCheck, PatternCheck

_CODE = '''\
CHECKS = json.loads(r"""{checks}""")


def met(text, name):
    """Say whether an answer meets a check."""
    check = CHECKS[name]
    text = text.replace("\\u2019", "'")
    part = text[: check["within"]] if check["within"] else text
    found = any(re.search(pattern, part, re.IGNORECASE | re.DOTALL) for pattern in check["patterns"])
    if "points" in check and not found:
        held = " ".join((" ^", *re.findall(r"[a-z]+(?:'[a-z]+)?", part.lower()), ""))
        found = sum(points for phrase, points in check["points"].items() if f" {{phrase}} " in held) >= check["least"]
    return found != check["negate"] and (not check["of"] or met(text, check["of"]))
'''


def checks_code(checks: Mapping[str, PatternCheck]) -> str:
    """Return `CHECKS` and `met`, of the checks that look at answers; the file imports json and re."""
    searched = {name: check for name, check in checks.items() if check.column == "response"}
    written = {
        name: {
            "patterns": check.texts,
            "negate": check.negate,
            "of": check.of,
            "within": check.within,
            **({"points": dict(check.points), "least": check.least} if isinstance(check, CuedCheck) else {}),
        }
        for name, check in searched.items()
        if not check.of or check.of in searched
    }
    return _CODE.format(checks=json.dumps(written, indent=1, ensure_ascii=False))
