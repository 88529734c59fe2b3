"""The base of all sections of a recipe, and of the site file: values, and checks of values that must fit together."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from recipes.suggestions import nearest

_PARTIAL = "partial"  # the context of a validation that keeps what is right
_WRONG = object()  # takes the place of a value that is wrong or missing


class WrongValueError(Exception):
    """A check reads a value that is itself wrong or missing, so the check has nothing to say."""


class Spec(BaseModel):
    """Base of all sections: unknown keys are refused, values cannot change after loading.

    What one value may be is in its annotation. What several must be together is in `checks`, so that `misfits` can run
    those that read no wrong value. A field validator of a recipe's section must therefore not raise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def checks(self) -> Iterable[Iterator[str]]:
        """The checks of this section: generators of sentences, one for each mistake."""
        return ()

    @model_validator(mode="before")
    @classmethod
    def _keep_what_is_right(cls, values: Any, info: ValidationInfo) -> Any:
        """In a partial validation: mark what is missing and what a wrong key may have meant, and drop wrong keys."""
        if info.context != _PARTIAL:
            return values
        if not isinstance(values, dict):
            return dict.fromkeys(cls.model_fields, _WRONG)
        kept = {}
        for name, field in cls.model_fields.items():
            names = field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else [name]
            given = [values[key] for key in names if key in values]
            if given or field.is_required():
                kept[name] = given[0] if given else _WRONG
        meant = [nearest(str(key), cls.model_fields) for key in values.keys() - cls.model_fields.keys()]
        return {name: _WRONG for name in meant if name is not None} | kept

    @field_validator("*", mode="wrap")
    @classmethod
    def _mark_if_wrong(cls, value: Any, validated: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        try:
            return _WRONG if value is _WRONG else validated(value)
        except ValidationError:
            if info.context != _PARTIAL:
                raise
            return _WRONG

    @model_validator(mode="after")
    def _run_checks(self, info: ValidationInfo) -> Self:
        if info.context == _PARTIAL:
            for name in [name for name, value in self.__dict__.items() if value is _WRONG]:
                del self.__dict__[name]
        elif sentences := [sentence for check in self.checks() for sentence in check]:
            raise ValueError("\n".join(sentences))
        return self

    if not TYPE_CHECKING:  # mypy would allow every name

        def __getattr__(self, name: str) -> Any:
            """Called for what is not there. Raises WrongValueError for a field, which `_run_checks` took away."""
            if name in type(self).model_fields:
                raise WrongValueError(name)
            return super().__getattr__(name)


def misfits(values: Any, model: type[Spec]) -> list[tuple[str, str]]:
    """Key and sentence of every check that fails, at any depth, also where other values are wrong by themselves."""
    return list(_failed(model.model_validate(values, context=_PARTIAL), ()))


def _failed(value: Any, steps: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Spec):
        for check in value.checks():
            with suppress(WrongValueError):
                for sentence in check:
                    yield ".".join(steps), sentence
        inner = value.__dict__.items()
    elif isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, tuple):
        inner = enumerate(value)
    for step, item in inner:
        yield from _failed(item, (*steps, str(step)))
