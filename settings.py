"""Every knob of the service, its default and its environment variable (`INSEQ_API_...`, or a `.env` file).

Knows nothing of the other modules. Values on the command line of `main.py` win over the environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PROJECT_ROOT = Path(__file__).resolve().parent

CommaList = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """Immutable once read, so that no request can change what another one runs under."""

    model_config = SettingsConfigDict(
        env_prefix="INSEQ_API_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    # Where it listens, and to whom it answers
    host: str = Field(
        "127.0.0.1", description="Address to listen on; one that others can reach needs API keys, or `ALLOW_PUBLIC`."
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
    allow_public: bool = Field(False, description="Allow an address that other machines can reach without API keys.")
    allowed_hosts: CommaList = Field(
        ("localhost", "127.0.0.1", "[::1]"),
        description="Names the `Host` header may carry (against DNS rebinding); `*` for any.",
    )
    max_body_bytes: int = Field(4 * 1024**2, gt=0, description="Largest request body, in bytes.")

    # What it stores, and where
    data_dir: Path = Field(PROJECT_ROOT / "data", description="Job store and result files; one server per directory.")
    max_attempts: int = Field(3, ge=1, description="Starts of one job before a job that kills the process is given up.")

    # Which models it serves
    model_dirs: CommaList = Field((), description="Directories whose sub-directories are models, by their name.")
    allowed_models: CommaList = Field(("*",), description="Glob patterns of the model names that may be asked for.")
    model_cache_bytes: int = Field(8 * 1024**3, gt=0, description="Parameter bytes kept loaded, over all devices.")
    hub_timeout_seconds: float = Field(
        5.0, gt=0, description="Patience with the Hugging Face Hub for a model's record."
    )

    # What runs where
    devices: CommaList = Field(
        ("auto",),
        description="Torch devices, one worker pool each; `auto` is every GPU, or the CPU where there is none.",
    )
    workers_per_device: int = Field(1, ge=1, description="Jobs that run at once on each device.")
    shutdown_grace_seconds: float = Field(10.0, ge=0, description="Time running jobs get to finish on shutdown.")

    # How much it takes and keeps
    max_pending_jobs: int = Field(10_000, ge=1, description="Jobs that may wait; more are told to come back (429).")
    max_pending_jobs_per_key: int = Field(2_000, ge=1, description="Jobs of one API key that may wait.")
    max_job_seconds: float = Field(3600.0, gt=0, description="Longest time a job may run.")
    results_max_days: float = Field(90.0, gt=0, description="Days a result is kept.")
    results_max_count: int = Field(100_000, ge=1, description="Results that are kept, the newest.")
    results_max_bytes: int = Field(50 * 1024**3, gt=0, description="Bytes of results that are kept, the newest.")
    retention_interval_seconds: float = Field(60.0, gt=0, description="Seconds between two looks at what to remove.")

    # Limits of one job
    max_inputs: int = Field(64, ge=1, description="Input texts in one job.")
    max_input_tokens: int = Field(4096, ge=1, description="Tokens in one input text.")
    max_new_tokens: int = Field(1024, ge=1, description="Tokens one input may generate.")
    recheck_share: float = Field(
        0.0, ge=0, le=1, description="Share of the texts of the single pass that Inseq's loop does again, to compare."
    )
    max_n_steps: int = Field(2000, ge=1, description="Interpolation steps, samples or probes per generated token.")

    @field_validator("allowed_hosts", "model_dirs", "allowed_models", "devices", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")
