"""What every config checks of its fields; errors name field, value and what is allowed."""

from __future__ import annotations

from numbers import Real


def positive(value: object, *names: str) -> None:
    for name in names:
        field = getattr(value, name)
        if field is not None and not (isinstance(field, Real) and field > 0):
            raise ValueError(f"{type(value).__name__}.{name}={field!r} must be a positive number")


def one_of(value: object, name: str, allowed: tuple[str | None, ...]) -> None:
    field, kind = getattr(value, name), type(value).__name__
    if field not in allowed:
        raise ValueError(f"{kind}.{name}={field!r} must be one of {', '.join(map(str, allowed))}")
