"""Constitutional AI from one YAML file; this is what `import caiflow` gives.

The folder is the package `caiflow` itself, beside which setuptools lays engine, operators and the others (pyproject.toml); its
modules are never imported as `caiflow.engine.door`. Nothing heavy is imported here: every command and every worker passes by.
"""

from caiflow.engine.version import VERSION

__all__ = ["__version__"]

__version__ = VERSION
