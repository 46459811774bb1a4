"""The trainers are imported as a step imports them: without vLLM, which TRL would import and nothing here asks for."""

from __future__ import annotations

from caiflow.engine.training.loop import quiet_libraries

quiet_libraries()
