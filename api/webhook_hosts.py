"""To which hosts the operator lets webhooks be sent (`INSEQ_API_WEBHOOK_HOSTS`). Sends nothing itself.

Without such a list a user could have the server post to machines that only the server reaches (SSRF).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

import httpx

from attribution_schema.webhook import address_of
from models import AttributionRequest
from problems import InvalidRequest

_PATTERN = re.compile(r"(?P<host>\[[^\]]*\]|[^:]*)(?::(?P<port>\d{1,5}|\*))?")
_NO_URL = "The URL of the webhook cannot be called. Write https://HOST/PATH."
_PORTS = {"http": 80, "https": 443}


class WebhookHosts:
    """The allowed hosts. patterns: `host`, `host:port` or `host:*`, where the host is a glob, as the settings check."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._allowed: list[tuple[str, str | None]] = []
        for pattern in patterns:
            found = _PATTERN.fullmatch(pattern.lower())
            assert found is not None, pattern
            self._allowed.append((found["host"].strip("[]"), found["port"]))

    def check(self, request: AttributionRequest) -> None:
        """Raise `InvalidRequest` if the request has a webhook to a host that is not allowed."""
        if request.webhook is not None and (refusal := self.refusal(request.webhook)):
            raise InvalidRequest.at("/webhook", refusal)

    def refusal(self, url: str) -> str | None:
        """Return why nothing is sent to this URL, or None if it is allowed."""
        if not self._allowed:
            return (
                "This server sends no webhooks: its operator allows no host (INSEQ_API_WEBHOOK_HOSTS). Leave webhook "
                "out, and wait for the job or poll it."
            )
        try:
            host, port = address_of(url)
            parsed = httpx.URL(url)
        except (KeyError, ValueError):
            return _NO_URL
        if parsed.userinfo:
            return _NO_URL
        if any(
            fnmatchcase(host, pattern) and allowed in {"*", str(port)}
            for pattern, given in self._allowed
            for allowed in (given or str(_PORTS[parsed.scheme]),)
        ):
            return None
        return (
            f"This server sends no webhooks to {host}:{port}. Its operator lists the allowed hosts in "
            "INSEQ_API_WEBHOOK_HOSTS."
        )
