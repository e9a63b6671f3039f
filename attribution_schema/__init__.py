"""The JSON documents of the HTTP API, as Pydantic models: request, job, problem, estimate, result and view options.

Imports Pydantic and nothing else. `__version__` is the version of the whole project; `pyproject.toml` reads it here.
"""

__version__ = "0.1.0"
