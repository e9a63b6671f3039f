"""Posts the ends of jobs to their webhooks: signed as Standard Webhooks asks, repeated until a receiver answers 2xx.

Runs on an event loop and a thread of its own: a slow receiver holds neither a worker nor the server's event loop. What
is to be sent is in the store, so a crash loses none. One that was sent and not noted before a crash is sent again, with
the same `webhook-id`.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx
import structlog

from api.documents import job_document_of
from api.webhook_hosts import WebhookHosts
from attribution_schema import __version__
from attribution_schema.webhook import ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, signatures
from jobs.listeners import JobListener
from jobs.store.records import JobRecord
from jobs.store.webhook_deliveries import DELIVERED, FAILED, SKIPPED, Delivery, WebhookDeliveries
from models import JobEvent
from problems import StorageFailed
from settings import Settings

log = structlog.get_logger(__name__)

_PER_HOST = 4  # attempts at once to one host and port
_AT_ONCE = 32  # attempts at once
_LOOK_INTERVAL = 5.0  # seconds after which the store is asked even if no job changed
_PAUSE = 0.1  # seconds between two looks: a running job changes often
_STOP_PATIENCE = 2.0  # seconds for which attempts may end when the server stops
_JITTER = 0.2  # of a pause
_SUCCESS = range(200, 300)
_GONE = 410  # the receiver asks for no more
_random = random.SystemRandom()


class WebhookSender(JobListener):
    """Sends the webhooks of one store between `start` and `stop`.

    attempted: is called with the outcome of each attempt (`delivered`, `postponed` or `given_up`), for metrics.
    """

    def __init__(
        self,
        deliveries: WebhookDeliveries,
        hosts: WebhookHosts,
        settings: Settings,
        attempted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._deliveries = deliveries
        self._hosts = hosts
        self._secrets = settings.webhook_secrets
        self._pauses = settings.webhook_retry_seconds
        self._longest_pause = max(self._pauses, default=0.0) * (1 + _JITTER) + _LOOK_INTERVAL
        self._timeout = settings.webhook_timeout_seconds
        self._attempted = attempted
        self._sending: dict[asyncio.Future[None], Delivery] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._stopping = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send_all()), name="webhooks", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Start no more attempts, and give those that run two seconds; the others are made after the next start."""
        self._stopping = True
        self._look()
        self._thread.join(2 * _STOP_PATIENCE)

    def job_changed(self, job_id: str) -> None:  # noqa: ARG002
        """Look whether a webhook is due. May be called from any thread."""
        self._look()

    def _look(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._wake.set)

    async def _send_all(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            client: httpx.AsyncClient | None = None  # made when needed: it reads the authorities' certificates
            while not self._stopping:
                self._wake.clear()
                due, seconds = await asyncio.to_thread(self._due)
                for delivery in due:
                    if client is None:
                        client = await stack.enter_async_context(_new_client())
                    self._start(self._send(client, delivery), delivery)
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(max(seconds, _PAUSE), _LOOK_INTERVAL)):
                        await self._wake.wait()
                if not self._stopping:
                    await asyncio.sleep(_PAUSE)
            if self._sending:
                await asyncio.wait(list(self._sending), timeout=_STOP_PATIENCE)
            for task in self._sending:
                task.cancel()
            await asyncio.gather(*self._sending, return_exceptions=True)

    def _due(self) -> tuple[list[Delivery], float]:
        """Return what to send now, within the limits of attempts at once, and the seconds until the next is due."""
        sending = list(self._sending.values())
        busy = Counter(each.host for each in sending)
        chosen: list[Delivery] = []
        try:
            found = self._deliveries.due(
                except_for=[each.job.seq for each in sending], per_host=_PER_HOST, longest_pause=self._longest_pause
            )
            seconds = self._deliveries.seconds_until_due(self._longest_pause)
        except Exception:  # the store may fail for a while; the thread must be there when it recovers
            log.exception("webhooks_not_read")
            return [], _LOOK_INTERVAL
        for delivery in found:
            if len(sending) + len(chosen) < _AT_ONCE and busy[delivery.host] < _PER_HOST:
                busy[delivery.host] += 1
                chosen.append(delivery)
        return chosen, seconds

    def _start(self, sending: Coroutine[None, None, None], delivery: Delivery) -> None:
        task = asyncio.ensure_future(sending)
        self._sending[task] = delivery

        def ended(done: asyncio.Future[None]) -> None:
            del self._sending[task]
            self._wake.set()  # there is room for another
            if not done.cancelled() and (error := done.exception()):
                log.error("webhook_failed", job_id=delivery.job.job_id, exc_info=error)

        task.add_done_callback(ended)

    async def _send(self, client: httpx.AsyncClient, delivery: Delivery) -> None:
        """Make one attempt and note its outcome."""
        if delivery.job.status.value not in delivery.events:
            await self._note(lambda: self._deliveries.end(delivery, SKIPPED, attempts=delivery.attempts))
            return
        error, is_final = await self._attempt(client, delivery)
        attempts = delivery.attempts + 1
        known = {"job_id": delivery.job.job_id, "host": delivery.host, "attempt": attempts}
        if error is None:
            self._attempted("delivered")
            log.info("webhook_delivered", **known)
            await self._note(lambda: self._deliveries.end(delivery, DELIVERED, attempts=attempts))
        elif is_final or attempts > len(self._pauses):
            self._attempted("given_up")
            log.warning("webhook_given_up", **known, error=error)
            await self._note(lambda: self._deliveries.end(delivery, FAILED, attempts=attempts, error=error))
        else:
            pause = self._pauses[delivery.attempts] * _random.uniform(1, 1 + _JITTER)
            self._attempted("postponed")
            log.warning("webhook_postponed", **known, error=error, seconds=round(pause, 1))
            await self._note(lambda: self._deliveries.postpone(delivery, pause, attempts=attempts, error=error))

    async def _attempt(self, client: httpx.AsyncClient, delivery: Delivery) -> tuple[str | None, bool]:
        """Post the job. Returns why that failed, or None, and whether to try no more."""
        # Again: the operator may have changed the list since the job was accepted.
        if refusal := self._hosts.refusal(delivery.url):
            return refusal, False
        body = await asyncio.to_thread(_event, delivery.job)
        message_id, now = f"msg_{delivery.job.job_id}", int(time.time())
        headers = {
            "Content-Type": "application/json",
            ID_HEADER: message_id,
            TIMESTAMP_HEADER: str(now),
            SIGNATURE_HEADER: signatures(self._secrets, message_id, now, body),
        }
        try:
            async with (
                asyncio.timeout(self._timeout),  # of httpx's own timeouts, each begins anew with every byte
                client.stream("POST", delivery.url, content=body, headers=headers) as response,
            ):
                status = response.status_code  # its body is not read
        except TimeoutError:
            return f"No answer within {self._timeout:g} seconds.", False
        except (httpx.HTTPError, OSError) as error:
            return f"{type(error).__name__}: {error}".removesuffix(": "), False
        except Exception:  # it must count as an attempt, or it would be made again at once
            log.exception("webhook_failed", job_id=delivery.job.job_id)
            return "The server failed to send it.", False
        return (None if status in _SUCCESS else f"The receiver answered {status}."), status == _GONE

    async def _note(self, write: Callable[[], None]) -> None:
        """Store the outcome of an attempt. While the disk fails, it is not attempted again."""
        while True:
            try:
                await asyncio.to_thread(write)
            except StorageFailed as error:
                log.warning("webhook_not_noted", error=error.detail)
                if self._stopping:
                    return
                await asyncio.sleep(1)
            else:
                return


def _new_client() -> httpx.AsyncClient:
    """Return a client that follows no redirects and keeps no cookies. It uses the proxy of the environment."""
    return httpx.AsyncClient(
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        follow_redirects=False,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=_AT_ONCE),
        timeout=None,  # noqa: S113 - each attempt has one
        headers={"User-Agent": f"attribution-as-a-service/{__version__}"},
    )


def _event(job: JobRecord) -> bytes:
    document = job_document_of(job)  # without the state of this delivery, which the receiver knows
    ended = document.finished_at or document.created_at
    return JobEvent(type=f"job.{job.status}", timestamp=ended, data=document).model_dump_json().encode()
