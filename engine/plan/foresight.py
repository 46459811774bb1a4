"""Looking ahead where not everything can be known: what only the hub could tell, while it is out of reach, stops no plan.

Owns that tolerance and its words. A run has none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from caiflow.engine.errors import UnreachableError
from caiflow.engine.llm.model_files import gguf_file, model_folder
from caiflow.engine.plan.components import Components, Resolver

if TYPE_CHECKING:
    from caiflow.engine.llm.base import ModelSource
    from caiflow.engine.spec.grammar import Spec, Step
    from caiflow.engine.spec.permissions import Permissions
    from caiflow.engine.store.artifacts import Store


class Foresight(Resolver):
    """Takes what only a hub out of reach could tell for not known yet, where a run would fail.

    `unreached` has why, by model and step.
    """

    def __init__(self, spec: Spec, store: Store, *, trust_remote_code: bool, allowed: Permissions) -> None:
        super().__init__(spec, store, trust_remote_code=trust_remote_code, allowed=allowed)
        self.unreached: dict[str, str] = {}

    def model(self, name: str) -> ModelSource | None:
        """Return a model as for a run; None also where the hub can't be asked for it."""
        try:
            return super().model(name)
        except UnreachableError as error:
            self.unreached[name] = str(error)
            return None

    def row_components(self, step: Step) -> Components | None:
        """Return the components as for a run; None also where the hub can't be asked for the step's source."""
        try:
            return super().row_components(step)
        except UnreachableError as error:
            self.unreached[step.name] = f"{step.name}: {error}"
            return None

    def silence(self, step: Step) -> str:
        """Return what isn't known of a step itself and of its models for want of the hub; empty where all is."""
        models = [reference.name for reference in step.references() if reference.kind == "model"]
        unknown = ", ".join(name for name in (*models, step.name) if name in self.unreached)
        return f"not checked: {unknown}, since the hub can't be asked" if unknown else ""

    def without_files(self) -> list[str]:
        """Return the models whose files aren't here, so that layers, positions, tokenizers and templates are unknown."""
        place = self.spec.base_dir
        entries = ((name, entry) for name, entry in self.spec.models.items() if not entry.served)
        absent = ((name, entry) for name, entry in entries if model_folder(entry.source, entry.revision, place) is None)
        return [name for name, entry in absent if gguf_file(entry.source, place) is None]
