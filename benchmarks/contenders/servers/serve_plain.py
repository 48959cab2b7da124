"""The servers that need nothing but tiercel's own dependencies, one process each.

    python -m benchmarks.contenders.servers.serve_plain NAME PORT DIRECTORY [CACHE]

floor          a compiled protocol's constant reply on a bare uvloop
floor_uvicorn  the same class, given to uvicorn as `http=`
constant       raw ASGI on uvicorn, a constant reply
starlette      Starlette on uvicorn, the JSON body parsed, a constant reply
handwritten    raw ASGI on uvicorn + orjson + py-lmdb + onnxruntime: the best server one would write by hand in Python
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from pathlib import Path

import uvicorn

HERE = Path(__file__).parent


def floor_protocol(cache: str):
    from benchmarks import compiled

    return compiled.load(HERE / "floor.pyx", Path(cache)).FloorProtocol


def serve_bare(protocol, port: int) -> None:
    import uvloop

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        server = await loop.create_server(protocol, "127.0.0.1", port)
        freeze()
        await stop.wait()
        server.close()

    uvloop.run(serve())


def freeze() -> None:
    """The same as tiercel does: what start-up allocated is not walked again by the collector."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


async def constant(scope, receive, send):
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": REPLY})


REPLY = b'{"score":0.5}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(REPLY)).encode())]


def starlette():
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def predict(request):
        await request.json()
        return JSONResponse({"score": 0.5})

    return Starlette(routes=[Route("/predict", predict, methods=["POST"])])


def handwritten(directory: str):
    import orjson

    sys.path.insert(0, str(HERE))
    from scorer import Scorer

    scorer = Scorer(directory)

    async def app(scope, receive, send):
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        score = scorer.score(orjson.loads(body)["entities"]["user_id"])
        reply = orjson.dumps({"score": score})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(reply)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": reply})

    return app


def main() -> None:
    name, port, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    cache = sys.argv[4] if len(sys.argv) > 4 else ""
    if name == "floor":
        serve_bare(floor_protocol(cache), port)
        return
    app, http = constant, "httptools"
    if name == "floor_uvicorn":
        http = floor_protocol(cache)
    elif name == "starlette":
        app = starlette()
    elif name == "handwritten":
        app = handwritten(directory)
    freeze()
    uvicorn.run(app, port=port, loop="uvloop", http=http, access_log=False, log_level="warning", lifespan="off")


if __name__ == "__main__":
    main()
