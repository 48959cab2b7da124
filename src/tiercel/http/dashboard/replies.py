"""Replies to browsers: the headers that keep a page to itself, and whose request may change anything."""

from __future__ import annotations

import gzip
import hashlib
import html
import ipaddress
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

from starlette.responses import Response

from tiercel.errors import TiercelError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from starlette.requests import Request

#: Everything comes from the admin port, nothing runs that is written into a page, and nobody else may frame it.
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not no-referrer: then browsers would not say where a form comes from either.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
#: Shorter replies are sent as they are.
_LEAST_PACKED_BYTES: Final = 2048


class CrossOriginError(TiercelError):
    """A request that would change something and does not come from a page of this server."""

    code = "cross_origin"


@dataclass(frozen=True)
class Rendered:
    """A reply's body as it is kept: plain, packed, and with the tag that tells browsers whether it has changed."""

    body: bytes
    packed: bytes
    tag: str

    @classmethod
    def of(cls, body: bytes) -> Self:
        """Pack and tag a body. Takes milliseconds: not on the event loop."""
        packed = gzip.compress(body, 1, mtime=0) if len(body) >= _LEAST_PACKED_BYTES else b""
        return cls(body, packed, f'W/"{hashlib.blake2b(body, digest_size=12).hexdigest()}"')


def respond(
    request: Request, rendered: Rendered, status: int = 200, kind: str = "text/html; charset=utf-8"
) -> Response:
    """A page, or that it has not changed since the browser last got it."""
    headers = {**HEADERS, "cache-control": "private, no-cache", "etag": rendered.tag, "vary": "accept-encoding"}
    if status == 200 and rendered.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if rendered.packed and accepts_gzip(request):
        return Response(rendered.packed, status, {**headers, "content-encoding": "gzip"}, media_type=kind)
    return Response(rendered.body, status, headers, media_type=kind)


def redirect(where: str) -> Response:
    """On to a page, after something was changed."""
    return Response(status_code=303, headers={**HEADERS, "location": where, "cache-control": "no-store"})


def accepts_gzip(request: Request) -> bool:
    """Whether a reply may be packed."""
    for part in request.headers.get("accept-encoding", "").lower().split(","):
        name, _, parameter = part.strip().partition(";")
        if name.strip() == "gzip":
            return parameter.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False


def require_same_origin(headers: Mapping[str, str], own_host: str, allowed: Collection[str] = ()) -> None:
    """Refuse a request that would change something unless a page of this server sent it.

    Browsers say where a form comes from (Origin, Sec-Fetch-Site), and a page elsewhere cannot make them say otherwise. It
    could have its own name resolve to this address, so the name that was asked for must be one that cannot be given away:
    an address, this machine's name, or the configured one. Behind a proxy that has a name of its own pages come from an origin
    that is configured: what stands in Host then is the proxy's matter.

    Args:
        headers: of the request, names in lower case.
        own_host: [control] host.
        allowed: [control] allowed_origins.

    Raises:
        CrossOriginError: with what was expected.
    """
    host, origin, site = headers.get("host", ""), headers.get("origin", ""), headers.get("sec-fetch-site", "")
    what = "Nothing was changed. Use the page itself, or `tiercel alerts` from scripts"
    if site not in {"", "same-origin"}:
        raise CrossOriginError(
            f"Expected a form of this server's own page, got one from elsewhere ({site[:40]}). {what}"
        )
    if not origin and not site:
        raise CrossOriginError(f"Expected a browser that says where the form comes from (Origin), got none. {what}")
    if origin and _plain_origin(origin) in {_plain_origin(each) for each in allowed}:
        return
    behind = "Behind a proxy, name its origin in control.allowed_origins of tiercel.toml"
    if origin and origin.lower().partition("://")[2] != host.lower():
        raise CrossOriginError(f"Expected a form from {host[:80]!r}, got one from {origin[:80]!r}. {what}. {behind}")
    if not _is_own_name(host, own_host):
        raise CrossOriginError(
            f"Expected this server to be asked for by its address, 'localhost' or its own name, got {host[:80]!r}. {what}. "
            f"{behind}"
        )


def _plain_origin(text: str) -> str:
    """An origin as browsers write it: lower case, without a port that goes without saying."""
    text = text.lower()
    scheme, _, _ = text.partition("://")
    return text.removesuffix({"http": ":80", "https": ":443"}.get(scheme, "/"))


def _is_own_name(host: str, own_host: str) -> bool:
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost") or name in {own_host.lower(), platform.node().lower()}:
        return bool(name)
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def missing_page(missing: str) -> Rendered:
    """What is shown where the packages that pages are made with are not installed; made without them."""
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>tiercel: the dashboard is not installed</title></head>
<body><main><h1>The dashboard is not installed</h1>
<p>The server runs. Its pages need {html.escape(missing)}, which is not installed here.</p>
<p>Install the extra and restart the server:</p>
<pre><code>pip install "tiercel[dashboard]"</code></pre>
<p>Without it there are: <a href="/metrics">/metrics</a> for Prometheus, <a href="/readyz">/readyz</a>,
<a href="/api/workers">/api/workers</a>, <a href="/api/jobs">/api/jobs</a>, and on the command line
<code>tiercel drift</code>, <code>tiercel performance</code>, <code>tiercel models</code>.</p>
</main></body></html>
"""
    return Rendered.of(text.encode())
