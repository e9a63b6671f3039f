"""The fake engine with the real engine's checks and catalogue, to fuzz requests without running models.

`python -m tests.checking_engine --data-dir DIR` serves it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from api.uvicorn_server import configure_logging, serve
from attribution.engine import AttributionEngine
from main import create_app
from settings import Settings
from tests.fake_engine import FakeEngine


class CheckingEngine(FakeEngine):
    """Accepts the same requests as the real engine, and completes every job immediately."""

    def __init__(self):
        super().__init__()
        real = AttributionEngine(Settings(allowed_models=("lookup-gpt2",)))
        for name in (
            "check",
            "result_identity",
            "estimate",
            "methods",
            "step_functions",
            "aggregators",
            "corrections",
            "models",
        ):
            setattr(self, name, getattr(real, name))

    def run(self, request, **more):
        return super().run(request.model_copy(update={"input_text": "hello", "messages": None}), **more)


def main():
    configure_logging()
    settings = Settings(data_dir=Path(sys.argv[sys.argv.index("--data-dir") + 1]), port=0)
    serve(create_app(settings, CheckingEngine()), settings)


if __name__ == "__main__":
    main()
