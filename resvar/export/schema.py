"""Strict models for JSON in untrusted files. No torch."""

from __future__ import annotations

from typing import Annotated, Self

import pydantic
from pydantic import Field

from resvar.models.ordering import Ordering

Operators = Annotated[list[str], Field(max_length=100)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


class StrictModel(pydantic.BaseModel):
    """Frozen; converts no types and accepts no unknown names."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError with the first problem and its key."""
        try:
            return cls.model_validate_json(text)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise ValueError(f"'{key}': {first['msg']}" if key else first["msg"]) from None


class OrderingModel(StrictModel):
    """An ordering under the names that `Settings` uses."""

    variant: str
    lead: Operators
    between: Operators
    trail: Operators
    after_add: Operators
    unusual: bool

    @property
    def ordering(self) -> Ordering:
        return Ordering.of(self)
