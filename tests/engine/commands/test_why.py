"""`caiflow why`: what changed, in words rather than in the digests that stand for them."""

from __future__ import annotations

from caiflow.engine.commands.why import _in_words
from caiflow.engine.identity import digest

OLD = {"id": "kind", "critique": "Is it kind?", "revision": "Be kind."}
NEW = {**OLD, "revision": "Be kind, and short."}
TEXTS = {digest(text): text for text in (OLD, NEW)}


def changed(*found: tuple[str, object, object]) -> list[tuple[str, object, object]]:
    return [(change.path, change.old, change.new) for change in _in_words(found, TEXTS)]


def test_a_principle_is_named_by_the_text_that_changed() -> None:
    assert changed(("principles.kind", digest(OLD), digest(NEW))) == [
        ("principles.kind.revision", "Be kind.", "Be kind, and short.")
    ]


def test_a_principle_that_is_new_is_shown_whole() -> None:
    ((path, old, new),) = changed(("principles.kind", None, digest(NEW)))
    assert (path, old, new) == ("principles.kind", "(absent)", NEW)


def test_what_a_digest_stands_for_elsewhere_is_described() -> None:
    assert changed(("inputs.red", "a" * 64, "b" * 64)) == [("inputs.red", "as it was", "red changed")]
    assert changed(("models.m", "a" * 64, "b" * 64)) == [("models.m", "as it was", "m: another model")]


def test_settings_keep_their_values() -> None:
    assert changed(("params.few_shot", 2, 3), ("seed", None, 5)) == [("params.few_shot", 2, 3), ("seed", None, 5)]
