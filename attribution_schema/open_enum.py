"""Enumerations that a newer server may extend, and how an older client reads values that it does not know."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Self

from pydantic import GetCoreSchemaHandler, ValidationError, ValidationInfo, ValidatorFunctionWrapHandler
from pydantic_core import core_schema

# The context in which a client reads a server's documents: `model_validate_json(..., context=TOLERANT)`.
TOLERANT: dict[str, Any] = {"reads": "the documents of a newer server"}


def keep_unknown(value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Keep a string that this version does not know if the context is `TOLERANT`; raise `ValidationError` otherwise."""
    try:
        return check(value)
    except ValidationError:
        if info.context is not TOLERANT or not isinstance(value, str):
            raise
        return value


class OpenEnum(StrEnum):
    """Names that a later version may add to: where `TOLERANT` is the context, one that is not known yet is kept as a
    member without a place in the list.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def kept(value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> OpenEnum:
            found = keep_unknown(value, check, info)
            return found if isinstance(found, cls) else cls._unknown(found)

        return core_schema.with_info_wrap_validator_function(kept, handler(source))

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return self._restored, (self._value_,)

    @classmethod
    def _restored(cls, value: str) -> Self:
        """Restore a pickled or copied member, which may be unknown to this version."""
        return cls(value) if value in cls._value2member_map_ else cls._unknown(value)

    @classmethod
    def _unknown(cls, value: str) -> Self:
        member = str.__new__(cls, value)
        member._name_ = member._value_ = value
        return member
