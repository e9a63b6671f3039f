"""How the OpenAPI document describes API keys, for generated clients and the `Authorize` button of `/docs`.

The keys themselves are checked by `api.dependencies`: these only describe them.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.security import HTTPBearer

API_KEY = HTTPBearer(
    scheme_name="ApiKey",
    description="The API key, if the server has keys: the operator makes one with `python main.py keys create NAME`. "
    "`/metrics` takes the key of the metrics instead, if there is one (`INSEQ_API_METRICS_KEY`).",
    auto_error=False,
)


def make_keys_optional(app: FastAPI) -> None:
    """Have the OpenAPI document of the app say that a request may come without a key: the server may have none."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        document = described()
        for operations in document["paths"].values():
            for operation in operations.values():
                if isinstance(operation, dict) and operation.get("security") and {} not in operation["security"]:
                    operation["security"].append({})
        return document

    app.openapi = openapi  # type: ignore[method-assign]
