"""Python client of a tiercel server: sync and async, msgpack by default, connections reused.

    with Client("http://127.0.0.1:8000") as client:
        client.predict("late", entities={"tailnum": "N14228"}, features={"distance": 1400}).score

Arguments that no server could accept raise `RequestError` before anything is sent. What goes wrong with the exchange is
a `ClientError`: no connection, a timeout, an answer that is not tiercel's, or the server's own error (`ServerError`). An
answer whose model gave NaN or an infinity is a `NoScoreError`, which has the other rows' scores.

An answer that somebody else gave in the model's place, where its server declares that, says so in its `degraded`.

A model of the batch tier gives no score while one waits: `predict` raises `JobAcceptedError`, which names the job, and
`results` has its scores once it is done.

Only a connection that could not be opened is tried again, because then nothing was sent. Everything else is for the
caller to decide; `OverloadedError` and `UnavailableError` say that sending again later is reasonable.

Timeouts bound each wait (to connect, to send, for the next bytes), as everywhere in httpx, not their sum.
"""

from tiercel.client.client import AsyncClient, Client
from tiercel.client.explanations import Explanation, Reason
from tiercel.client.replies import Degraded, FeatureRows, FeedbackReceipt, Prediction, Predictions

__all__ = [
    "AsyncClient",
    "Client",
    "Degraded",
    "Explanation",
    "FeatureRows",
    "FeedbackReceipt",
    "Prediction",
    "Predictions",
    "Reason",
]
