"""The servers that bench_http measures, each run as `python -m benchmarks.http_contenders NAME PORT DIRECTORY`.

constant    raw ASGI on uvicorn, a constant reply: what the general stack costs without any work
starlette   Starlette, the JSON body parsed, a constant reply
handwritten raw ASGI + orjson + py-lmdb + onnxruntime: the best server one would write by hand in Python
tiercel     `tiercel serve`
"""

from __future__ import annotations

import sys
from pathlib import Path

NAMES = ("constant", "starlette", "handwritten", "tiercel")


def constant():
    reply = b'{"score":0.5}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(reply)).encode())]

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": reply})

    return app


def starlette():
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def predict(request):
        await request.json()
        return JSONResponse({"score": 0.5})

    return Starlette(routes=[Route("/predict/bench", predict, methods=["POST"])])


def handwritten(directory: Path):
    import lmdb
    import numpy as np
    import onnxruntime
    import orjson

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"])
    output = session.get_outputs()[1].name
    env = lmdb.open(str(directory / "rows.mdb"), subdir=False, readonly=True, lock=False)
    txn = env.begin(buffers=True)

    async def app(scope, receive, send):
        message = await receive()
        body = orjson.loads(message["body"])
        key = body["entities"]["user_id"].to_bytes(8, "big")
        row = np.frombuffer(txn.get(key), dtype=np.float32).reshape(1, -1)
        score = float(session.run([output], {"rows": row})[0][0, 1])
        reply = orjson.dumps({"score": score})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(reply)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": reply})

    return app


def main() -> None:
    name, port, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    if name == "tiercel":
        from tiercel.cli import main as tiercel

        tiercel(["serve", "--project", str(directory / "project"), "--port", str(port)])
        return
    import uvicorn

    app = handwritten(directory) if name == "handwritten" else {"constant": constant, "starlette": starlette}[name]()
    uvicorn.run(app, port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning", lifespan="off")


if __name__ == "__main__":
    main()
