"""What every error of tiercel is, and the one that any part may raise."""

from __future__ import annotations

from typing import Any


class TiercelError(Exception):
    """Base of everything tiercel raises on purpose. `code` is stable; the text may improve."""

    code: str = "internal_error"

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross process boundaries (workers, job runners) with their attributes intact."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[TiercelError], args: tuple[Any, ...], state: dict[str, Any]) -> TiercelError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class MissingExtraError(TiercelError):
    """An optional dependency is needed and not installed; the message has the install command."""

    code = "missing_extra"

    def __init__(self, *, package: str, extra: str, purpose: str) -> None:
        super().__init__(f'{purpose} needs {package}, which is not installed. Run: pip install "tiercel[{extra}]"')
        self.package, self.extra = package, extra
