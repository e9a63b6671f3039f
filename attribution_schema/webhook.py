"""Webhooks: where a job's end is posted, what is posted, its signature, and how far the delivery has come.

Messages and signatures are those of Standard Webhooks (https://www.standardwebhooks.com), version v1: HMAC-SHA256.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import urlsplit

import httpx
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, WrapValidator

from attribution_schema.open_enum import OpenEnum, keep_unknown

SECRET_PREFIX = "whsec_"  # noqa: S105 - no password
ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER = "webhook-id", "webhook-timestamp", "webhook-signature"
_SECRET_BYTES = range(24, 65)  # as the specification asks
_MAX_URL = 2048  # characters
_VERSION = "v1"
_PORTS = {"http": 80, "https": 443}


def _checked_url(url: str) -> str:
    if re.search(r"[\s\x00-\x1f\x7f\\]", url):
        raise ValueError("the URL of a webhook has no spaces, control characters and backslashes")
    parts = urlsplit(url)
    if parts.scheme.lower() not in _PORTS or not parts.hostname:
        raise ValueError("the URL of a webhook begins with https:// or http:// and a host")
    if "@" in parts.netloc:
        raise ValueError("the URL of a webhook has no user name and password: its signature proves the origin")
    if parts.fragment:
        raise ValueError("the URL of a webhook has no part after #")
    _ = parts.port  # raises ValueError
    return url


WebhookUrl = Annotated[str, StringConstraints(max_length=_MAX_URL), AfterValidator(_checked_url)]
WebhookEnd = Annotated[Literal["completed", "failed", "cancelled"], WrapValidator(keep_unknown)]
WEBHOOK_ENDS: tuple[WebhookEnd, ...] = ("completed", "failed", "cancelled")


def address_of(url: str) -> tuple[str, int]:
    """Return the host in lower case, as it is called (IDNA), and the port of a webhook's URL. Raises `ValueError`."""
    # The parser of what sends it, so that the host that is checked and counted is the host that is called.
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from None
    return parsed.raw_host.decode("ascii").lower(), parsed.port or _PORTS[parsed.scheme]


class WebhookStatus(OpenEnum):
    """How far the delivery of a job's webhook has come."""

    WAITING = "waiting"  # the job has not ended
    PENDING = "pending"  # it will be posted, or posted again
    DELIVERED = "delivered"  # the receiver answered 2xx
    FAILED = "failed"  # given up after the last attempt
    SKIPPED = "skipped"  # the job ended in a way that is not in `webhook_events`


class WebhookDelivery(BaseModel):
    """The delivery of a job's webhook; times are UTC, ISO 8601."""

    model_config = ConfigDict(frozen=True)

    status: WebhookStatus
    attempts: int = 0
    last_error: str | None = Field(None, description="Why the last attempt failed.")
    next_attempt_at: datetime | None = Field(None, description="When it is posted again.")
    ended_at: datetime | None = Field(None, description="When it was delivered, or given up.")


def secret_bytes(secret: str) -> bytes:
    """Return the key of a secret `whsec_...`. Raises `ValueError` unless it is base64 of 24 to 64 bytes."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(SECRET_PREFIX) or len(key) not in _SECRET_BYTES:
        raise ValueError(f"a webhook's secret is {SECRET_PREFIX} and 24 to 64 random bytes in base64")
    return key


def signatures(secrets: Sequence[str], message_id: str, timestamp: int, body: bytes) -> str:
    """Return the header `webhook-signature` of a message: one signature for each secret.

    timestamp: seconds since the epoch, of this attempt.
    """
    signed = f"{message_id}.{timestamp}.".encode() + body
    digests = [hmac.digest(secret_bytes(secret), signed, hashlib.sha256) for secret in secrets]
    return " ".join(f"{_VERSION},{base64.b64encode(each).decode()}" for each in digests)


def is_signed(header: str, secrets: Sequence[str], message_id: str, timestamp: int, body: bytes) -> bool:
    """Return whether one signature of a header `webhook-signature` was made with one of the secrets."""
    expected = signatures(secrets, message_id, timestamp, body).split()
    return any([hmac.compare_digest(a.encode(), b.encode()) for a in header.split() for b in expected])  # noqa: C419 - all are compared, in constant time
