"""A receiver of webhooks on a loopback port, whose answers a test decides."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Receiver:
    """`received` has headers and body of each message. `answers` are the statuses of the next answers, then 204.

    While `free` is cleared, it does not answer. `most_at_once` is the largest number of messages at the same time.
    """

    def __init__(self, port=0):
        self.received = []
        self.answers = []
        self.most_at_once = self._now = 0
        self._counted = threading.Lock()
        self.free = threading.Event()
        self.free.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append((dict(self.headers.items()), body, self.path))
                with receiver.counted():
                    receiver.free.wait(60)
                self.send_response(receiver.answers.pop(0) if receiver.answers else 204)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"

    @contextmanager
    def counted(self):
        """Count a message that is there within the block."""
        with self._counted:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        yield
        with self._counted:
            self._now -= 1

    def start(self):
        self._thread.start()

    def stop(self):
        self.free.set()
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def receiving(port=0):
    receiver = Receiver(port)
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop()
