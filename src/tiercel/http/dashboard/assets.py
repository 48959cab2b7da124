"""Styles, scripts and the chart library, from this package and from plotly's wheel: nothing is fetched from elsewhere."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from tiercel.http.dashboard.replies import HEADERS, accepts_gzip

if TYPE_CHECKING:
    from starlette.requests import Request

_STATIC: Final = Path(__file__).parent / "static"
_KINDS: Final = {
    ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
}  # fmt: skip
_PLOTLY: Final = "plotly.min.js"
#: The chart library writes styles of its maps into the page unless an element of this id is there.
_STYLE_ID: Final = re.compile(rb'getElementById\("([0-9a-f]{64})"\)')


def missing_packages() -> str:
    """What pages need and is not installed, in words; empty: nothing."""
    return " and ".join(name for name in ("jinja2", "plotly") if importlib.util.find_spec(name) is None)


@dataclass(frozen=True)
class Asset:
    """A file as it is sent. Its address has its digest, so that browsers keep it for good."""

    name: str
    path: Path

    @cached_property
    def body(self) -> bytes:
        """Its bytes."""
        return self.path.read_bytes()

    @cached_property
    def packed(self) -> bytes:
        """The same, gzipped once."""
        return gzip.compress(self.body, 6, mtime=0)

    @cached_property
    def url(self) -> str:
        """Where it is."""
        return f"/assets/{hashlib.blake2b(self.body, digest_size=8).hexdigest()}/{self.name}"

    def respond(self, request: Request) -> Response:
        """The reply to a request for it. Reads files and packs them the first time: not on the event loop."""
        is_current = request.path_params.get("digest") == self.url.split("/")[2]
        headers = {
            **HEADERS,
            "cache-control": "public, max-age=31536000, immutable" if is_current else "no-cache",
            "vary": "accept-encoding",
        }
        body = self.body
        if accepts_gzip(request):
            headers["content-encoding"] = "gzip"
            body = self.packed
        return Response(body, 200, headers, media_type=_KINDS[Path(self.name).suffix])


class Assets:
    """All files that pages ask for, by name."""

    def __init__(self) -> None:
        self._assets = {path.name: Asset(path.name, path) for path in _STATIC.iterdir() if path.suffix in _KINDS}
        found = importlib.util.find_spec("plotly")
        if found is not None and found.origin is not None:
            self._assets[_PLOTLY] = Asset(_PLOTLY, Path(found.origin).parent / "package_data" / _PLOTLY)

    def find(self, name: str) -> Asset | None:
        """An asset; None where there is none of the name."""
        return self._assets.get(name)

    def url(self, name: str) -> str:
        """An asset's address."""
        return self._assets[name].url

    @cached_property
    def style_ids(self) -> str:
        """Ids that the page must have so that the chart library writes no styles into it, which the policy would block."""
        found = self._assets.get(_PLOTLY)
        ids = () if found is None else dict.fromkeys(_STYLE_ID.findall(found.body))
        return " ".join(each.decode() for each in ids)

    def warm(self) -> None:
        """Read and pack all of them."""
        for asset in self._assets.values():
            asset.url, asset.packed  # noqa: B018 - made when asked for
