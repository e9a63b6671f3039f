"""Every setting of the service, with its default, from the environment (`INSEQ_API_...`) or a `.env` file.

Imports no other module of the service. Options on the command line of `main.py` override the environment.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PROJECT_ROOT = Path(__file__).resolve().parent

CommaList = Annotated[tuple[str, ...], NoDecode]
CommaNumbers = Annotated[tuple[Annotated[float, Field(gt=0, le=30 * 86400)], ...], NoDecode]
_HOST_PATTERN = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.*?_-]+)(?::(?:\d{1,5}|\*))?")
_SECRET_BYTES = range(24, 65)  # of a webhook's secret, as Standard Webhooks asks


def _is_webhook_secret(text: str) -> bool:
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        return False
    return text.startswith("whsec_") and len(key) in _SECRET_BYTES


class Settings(BaseSettings):
    """The settings, frozen once read, so that no request can change them for another one."""

    model_config = SettingsConfigDict(
        env_prefix="INSEQ_API_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # some are secrets
    )

    # Address, and who may connect
    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. A public one needs API keys or `INSEQ_API_ALLOW_PUBLIC`.",
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on.")
    allow_public: bool = Field(
        False, description="Serve without API keys even if other machines can reach the address."
    )
    allowed_hosts: CommaList = Field(
        ("localhost", "127.0.0.1", "[::1]"),
        description="Hosts that the `Host` header may name (protects against DNS rebinding); `*` allows any.",
    )
    metrics_key: SecretStr | None = Field(
        None,
        min_length=16,
        description="The key that reads `/metrics` (`Authorization: Bearer`), which then names every loaded model. "
        "Without it, any API key reads them, and models that the server does not list count as `other`.",
    )
    max_body_bytes: int = Field(4 * 1024**2, gt=0, description="Size limit of a request body, in bytes.")
    max_connections: int = Field(
        1000,
        ge=1,
        description="How many connections may be open; fewer where the limit of open files asks for it. The one that "
        "waits longest for a request makes room for a new one; where none waits, the new one is refused with 503.",
    )
    header_timeout_seconds: float = Field(
        10.0, gt=0, description="Seconds that the headers of a request may take to arrive."
    )
    stall_timeout_seconds: float = Field(
        30.0,
        gt=0,
        description="Seconds in which 1 KB of a body must arrive, and some of a response must be read, or else the "
        "connection is closed.",
    )

    # Storage
    data_dir: Path = Field(
        PROJECT_ROOT / "data", description="Directory of the job store and the result files. One server per directory."
    )
    max_attempts: int = Field(
        3,
        ge=1,
        description="How often a job is started before it fails because the server died each time; once more if it "
        "never ran alone.",
    )

    # Models
    model_dirs: CommaList = Field(
        (),
        description="Directories that contain one sub-directory (or GGUF file) for each model or adapter; its name is "
        "the model's name.",
    )
    allowed_models: CommaList = Field(("*",), description="Glob patterns of the model names that requests may use.")
    model_cache_bytes: int = Field(
        8 * 1024**3, gt=0, description="Size limit of the loaded parameters over all devices, in bytes."
    )
    hub_timeout_seconds: float = Field(
        5.0, gt=0, description="Timeout of a query to the Hugging Face Hub about a model, in seconds."
    )
    max_download_bytes: int = Field(
        64 * 1024**3,
        ge=0,
        description="Size limit of what a job downloads from the Hugging Face Hub, in bytes; 0 for nothing at all.",
    )

    cpu_half: Literal["auto", "native", "float32"] = Field(
        "auto",
        description="How the CPU computes with `bfloat16` and `float16` weights: `native` in that dtype, `float32` in "
        "float32 with the same weights, `auto` natively where the processor multiplies such matrices.",
    )

    # Devices and workers
    devices: CommaList = Field(
        ("auto",),
        description="Torch devices to run jobs on. `auto`: every GPU, or the CPU if there is none.",
    )
    workers_per_device: int = Field(1, ge=1, description="How many jobs run at the same time on each device.")
    shutdown_grace_seconds: float = Field(
        10.0, ge=0, description="How long a shutdown waits for running jobs, in seconds; then they return to the queue."
    )

    # Queue and retention
    max_pending_jobs: int = Field(
        10_000, ge=1, description="How many jobs may wait. Further ones are refused with 429 and `Retry-After`."
    )
    max_pending_jobs_per_key: int = Field(2_000, ge=1, description="How many jobs of one API key may wait.")
    max_job_seconds: float = Field(3600.0, gt=0, description="Time limit of one job, in seconds.")
    results_max_days: float = Field(90.0, gt=0, description="Results older than this many days are removed.")
    results_max_count: int = Field(
        100_000, ge=1, description="How many results are stored; the oldest beyond it are removed."
    )
    results_max_bytes: int = Field(
        50 * 1024**3, gt=0, description="Size limit of all stored results, in bytes; the oldest beyond it are removed."
    )
    retention_interval_seconds: float = Field(
        60.0, gt=0, description="Seconds between two checks for results to remove."
    )

    # Limits of one job
    max_inputs: int = Field(64, ge=1, description="Limit of input texts in one job.")
    max_input_tokens: int = Field(4096, ge=1, description="Limit of tokens in one input text.")
    max_new_tokens: int = Field(1024, ge=1, description="Limit of tokens generated for one input text.")
    max_num_beams: int = Field(
        32, ge=1, description="Limit of `num_beams`: each beam takes the time and the memory of a text of its own."
    )
    text_seconds: float = Field(
        10.0,
        gt=0,
        description="Processor time that a model's chat template or tokenizer may take for one text, in seconds.",
    )
    text_memory_bytes: int = Field(
        1024**3,
        ge=64 * 1024**2,
        description="Memory that a model's chat template or tokenizer may take for one text, in bytes.",
    )
    estimate_seconds: float = Field(
        5.0,
        gt=0,
        description="How long an estimate may take to render and tokenize its texts, in seconds; then it is refused.",
    )
    recheck_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Fraction of the single pass's texts that Inseq's loop attributes again, to compare the scores.",
    )
    max_n_steps: int = Field(
        2000, ge=1, description="Limit of interpolation steps, samples or probes per generated token."
    )

    # Sharing
    webhook_hosts: CommaList = Field(
        (),
        description="Glob patterns of the hosts to which webhooks are sent; without one, none are. `host` is its "
        "scheme's own port, `host:8443` that port, `host:*` any. Name no host to which not every user may post.",
    )
    webhook_secret: SecretStr | None = Field(
        None,
        description="The secret that signs webhooks: `whsec_` and 24 to 64 random bytes in base64. Several, separated "
        "by commas, each sign, so that receivers can change from one to the next.",
    )
    webhook_retry_seconds: CommaNumbers = Field(
        (5, 25, 125, 625, 3125, 15625, 78125),
        description="Seconds to wait after each failed attempt to deliver a webhook, with up to 20 % of random jitter. "
        "After one attempt more than there are pauses, it is given up.",
    )
    webhook_timeout_seconds: float = Field(
        10.0, gt=0, le=300, description="How long one attempt to deliver a webhook may take, in seconds."
    )
    share_max_days: float = Field(
        90.0,
        ge=0,
        le=36500,
        description="Longest time for which a link may open a job to readers without a key, in days; 0: no links.",
    )

    @field_validator(
        "allowed_hosts",
        "model_dirs",
        "allowed_models",
        "devices",
        "webhook_hosts",
        "webhook_retry_seconds",
        mode="before",
    )
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("webhook_hosts")
    @classmethod
    def _are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            if not _HOST_PATTERN.fullmatch(each):
                raise ValueError(f"{each!r} is no host, host:port or host:*, each without a scheme and a path")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _are_secrets(cls, value: SecretStr | None) -> SecretStr | None:
        for each in value.get_secret_value().split(",") if value else ():
            if not _is_webhook_secret(each.strip()):
                raise ValueError(
                    "a secret is whsec_ and 24 to 64 random bytes in base64; to make one: "
                    'echo "whsec_$(openssl rand -base64 32)"'
                )
        return value

    @model_validator(mode="after")
    def _signs_what_it_sends(self) -> Settings:
        if self.webhook_hosts and not self.webhook_secrets:
            raise ValueError(
                "INSEQ_API_WEBHOOK_HOSTS allows webhooks, and there is no INSEQ_API_WEBHOOK_SECRET to sign them with"
            )
        return self

    @property
    def webhook_secrets(self) -> tuple[str, ...]:
        """The secrets that sign webhooks."""
        text = self.webhook_secret.get_secret_value() if self.webhook_secret else ""
        return tuple(part.strip() for part in text.split(",") if part.strip())

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach `host`."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")
