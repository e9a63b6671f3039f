"""The messages of a conversation, as chat templates know them, with the checks that need no template.

A union is decided by its value's type, so that a wrong value has one error and not one for each member.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationInfo,
    WrapValidator,
    field_validator,
    model_validator,
)

from attribution_schema.open_enum import TOLERANT, keep_unknown


class TextPart(BaseModel):
    """A part of a message's content: a text. Parts of other types (images, audio) are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(kind := data.get("type"), str) and kind != "text":
            raise ValueError(f"only text is attributed: leave out this part of type {kind!r}")
        return data


class ToolFunction(BaseModel):
    """The function that a tool call names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    arguments: dict[str, Any] | str = Field(
        {}, description="Given to the chat template as it is; most templates expect an object and no JSON text."
    )


class ToolCall(BaseModel):
    """A call of a tool in an assistant's message."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, StringConstraints(max_length=200)] | None = None
    type: Annotated[Literal["function"], WrapValidator(keep_unknown)] = "function"
    function: ToolFunction


def _kind_of_content(value: Any) -> str:
    return "list[TextPart]" if isinstance(value, list) else "str"


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Annotated[str, StringConstraints(min_length=1, max_length=50)] = Field(
        description="The role in the model's chat template: `system`, `user`, `assistant`, `tool`."
    )
    name: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = Field(
        None, description="The speaker's or the tool's name, where the chat template writes it."
    )
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = Field(
        None, description="Calls in an assistant's message, where the chat template writes them."
    )
    tool_call_id: Annotated[str, StringConstraints(max_length=200)] | None = Field(
        None, description="The call that a message of role `tool` answers."
    )
    content: (
        Annotated[
            Annotated[str, Tag("str")] | Annotated[list[TextPart], Field(min_length=1), Tag("list[TextPart]")],
            Discriminator(_kind_of_content),
        ]
        | None
    ) = Field(
        None,
        validate_default=True,
        description="A text, or its parts, which are joined; null only beside `tool_calls`.",
    )

    @field_validator("content", mode="before")
    @classmethod
    def _only_texts_of_a_newer_server(cls, value: Any, info: ValidationInfo) -> Any:
        if info.context is TOLERANT and isinstance(value, list):
            return [each for each in value if isinstance(each, dict) and each.get("type") == "text"] or ""
        return value

    @field_validator("content")
    @classmethod
    def _is_there(cls, value: str | list[TextPart] | None, info: ValidationInfo) -> str | list[TextPart] | None:
        is_alone = "tool_calls" in info.data and info.data["tool_calls"] is None
        if value is None and is_alone and info.context is not TOLERANT:
            raise ValueError("content is required: a text, or parts of type text (null only beside tool_calls)")
        return value

    @property
    def text(self) -> str | None:
        """The content as one text; None beside tool calls."""
        return "".join(each.text for each in self.content) if isinstance(self.content, list) else self.content

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates expect it, its content as one text."""
        return self.model_dump(exclude_none=True) | {"content": self.text}


def _can_be_continued(messages: list[ChatMessage], info: ValidationInfo) -> list[ChatMessage]:
    if messages[-1].tool_calls is not None and info.context is not TOLERANT:
        raise ValueError(
            "a conversation cannot end with tool calls: add the tool's answer (role tool), or leave them out"
        )
    return messages


Conversation = Annotated[list[ChatMessage], Field(min_length=1), AfterValidator(_can_be_continued)]


def _kind_of_messages(value: Any) -> str:
    is_several = isinstance(value, list) and bool(value) and isinstance(value[0], list)
    return "list[Conversation]" if is_several else "list[ChatMessage]"


Messages = Annotated[
    Annotated[Conversation, Tag("list[ChatMessage]")]
    | Annotated[list[Conversation], Field(min_length=1), Tag("list[Conversation]")],
    Discriminator(_kind_of_messages),
]
