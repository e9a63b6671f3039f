"""The host and the port that a webhook's URL leads to."""

from __future__ import annotations

import httpx

PORTS = {"http": 80, "https": 443}


def address_of(url: str) -> tuple[str, int]:
    """Return the host, as it is written in ASCII, and the port.

    By the parser of what sends it, so that the host that is checked, limited and logged is the host that is called,
    however it is written: `http://127。0。0。1/` is 127.0.0.1. Raises `ValueError` for a URL that cannot be called.
    """
    try:
        parsed = httpx.URL(url)
        return parsed.raw_host.decode("ascii").lower(), parsed.port or PORTS[parsed.scheme]
    except (httpx.InvalidURL, KeyError) as error:
        raise ValueError(f"{url!r} cannot be called.") from error
