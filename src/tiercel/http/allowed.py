"""Which methods a path has: what a 405 has to say (RFC 9110, 15.5.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Match, Route

if TYPE_CHECKING:
    from starlette.requests import Request


def allow_header(request: Request, status: int) -> dict[str, str]:
    """`Allow` where the status is 405, no header otherwise.

    Of all routes of the path: the exception that Starlette raises knows only the first one's.
    """
    if status != 405:
        return {}
    methods: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    return {"allow": ", ".join(sorted(methods))}
