"""Where pages are."""

from __future__ import annotations

from urllib.parse import quote, urlencode


def model(name: str, **query: object) -> str:
    """A model's page; parameters that are None or empty are left out."""
    return _with(f"/models/{quote(name, safe='')}", query)


def service(name: str) -> str:
    """A feature service's page."""
    return f"/features/{quote(name, safe='')}"


def overview(**query: object) -> str:
    """The first page."""
    return _with("/", query)


def alerts(**query: object) -> str:
    """The alerts."""
    return _with("/alerts", query)


def _with(path: str, query: dict[str, object]) -> str:
    given = {name: str(value) for name, value in query.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path
