"""Verifies what a server posts to a webhook: its signature and its age (https://www.standardwebhooks.com)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from attribution_client.calls import read_as
from attribution_client.errors import ClientError
from attribution_schema.job import JobEvent
from attribution_schema.webhook import ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, is_signed

TOLERANCE = 300.0  # seconds


class WebhookRejected(ClientError):
    """The message is not one that this server sent just now. Answer it with 400."""


def verify_webhook(
    headers: Mapping[str, str], body: bytes | str, secret: str | Sequence[str], *, tolerance: float = TOLERANCE
) -> JobEvent:
    """Return what was posted: `type` (`job.completed`, ...), `timestamp`, and the job in `data`.

    headers, body: of the request as they came; names of headers in any case. secret: the server's
    `INSEQ_API_WEBHOOK_SECRET`, or several of which one must fit. tolerance: seconds by which the time of the message
    may differ from this machine's. A server may post a message twice: `webhook-id` is then the same.

    Raises `WebhookRejected` if the signature or the time is wrong, and `ValueError` if a secret is none.
    """
    given = {name.lower(): value for name, value in headers.items()}
    content = body.encode() if isinstance(body, str) else bytes(body)
    try:
        message_id, time_of, signed = (given[name] for name in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER))
        timestamp = int(time_of)
    except (KeyError, ValueError) as error:
        raise WebhookRejected("The headers webhook-id, webhook-timestamp and webhook-signature are missing.") from error
    if not is_signed(signed, [secret] if isinstance(secret, str) else secret, message_id, timestamp, content):
        raise WebhookRejected("The signature is not of this secret and body. Was the body changed before the check?")
    if abs(time.time() - timestamp) > tolerance:
        raise WebhookRejected(f"The message is more than {tolerance:g} seconds old, or this machine's clock is wrong.")
    return read_as(JobEvent, content)
