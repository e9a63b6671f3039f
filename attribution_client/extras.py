"""Optional libraries: a missing one raises an ImportError that names the extra to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

DISTRIBUTION = "inseq-attribution-api"


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Import libraries of the extra `name` inside this block. Raises `ImportError` with the install command."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            f'{error.name} is not installed. Install it with: pip install "{DISTRIBUTION}[{name}]"', name=error.name
        ) from error
