"""FastAPI as its documentation shows it: Pydantic models in and out, uvicorn with uvloop and httptools, no access log.

    python serve_fastapi.py PORT DIRECTORY

The handler is `async def`: it never waits, and a thread pool would only add latency.
"""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from scorer import Scorer


class Entities(BaseModel):
    user_id: int


class Query(BaseModel):
    entities: Entities


class Answer(BaseModel):
    score: float


app = FastAPI(openapi_url=None)
scorer = Scorer(sys.argv[2])


@app.post("/predict")
async def predict(query: Query) -> Answer:
    return Answer(score=scorer.score(query.entities.user_id))


if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        lifespan="off",
    )
