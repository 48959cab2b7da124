"""Errors that `tiercel.client` raises about an exchange with a server."""

from __future__ import annotations

from tiercel.errors.base import TiercelError


class ClientError(TiercelError):
    """Base of everything `tiercel.client` raises about an exchange with a server."""

    code = "client_error"


class ClientConnectionError(ClientError):
    """The server could not be reached, or the connection broke before the reply was complete."""

    code = "connection_failed"


class ClientTimeoutError(ClientError, TimeoutError):
    """No complete reply within the client's timeout. The server may still have answered the request."""

    code = "timeout"


class ProtocolError(ClientError):
    """What came back is not a tiercel reply: another server, a proxy's page, a damaged body."""

    code = "protocol_error"


class NoScoreError(ClientError):
    """The server answered, and its model gave NaN or an infinity for some rows: null in JSON, which has no such numbers.

    Args:
        message: which model, which rows.
        prediction: the whole answer (`Prediction` or `Predictions`); what is no finite number in it is NaN or infinite.
        rows: of the answer without a score.
    """

    code = "no_score"

    def __init__(self, message: str, *, prediction: object, rows: tuple[int, ...]) -> None:
        super().__init__(message)
        self.prediction, self.rows = prediction, rows


class JobAcceptedError(ClientError):
    """There is no score yet: the server took the question as a batch job, and will answer it. Asking again makes another job.

    Args:
        message: which job, and where its results will be.
        job_id: as `tiercel jobs` names it.
        status_url: what `GET` says how far it is of, and `DELETE` cancels.
        results_url: where its results are once it is done; before that, 409.
        retry_after_s: when to look, as measured; None: the server does not say.
    """

    code = "job_accepted"

    def __init__(
        self, message: str, *, job_id: str, status_url: str, results_url: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.job_id, self.status_url, self.results_url = job_id, status_url, results_url
        self.retry_after_s = retry_after_s


class ServerError(ClientError):
    """The server answered with an error.

    Args:
        message: the server's text.
        status: HTTP status.
        code: the server's stable name for the error, as the errors of this package have it.
        row: index of the offending row when several were sent.
        retry_after_s: the server's `Retry-After`, in seconds, when it sent one.
    """

    code = "server_error"

    def __init__(
        self, message: str, *, status: int, code: str, row: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.row, self.retry_after_s = status, code, row, retry_after_s

    def __str__(self) -> str:
        where = "" if self.row is None else f", row {self.row}"
        return f"{self.args[0]} (HTTP {self.status}, {self.code}{where})"


class BadRequestError(ServerError):
    """4xx: the request is wrong and will be wrong again."""


class ServerNotFoundError(BadRequestError):
    """404: no such model, version, alias, service or entity; `code` says which."""


class OverloadedError(ServerError):
    """429: refused to protect what is already running; safe to send again later."""


class UnavailableError(ServerError):
    """503: starting, stopping, or without anything to serve; safe to send again later."""


class ServerInternalError(ServerError):
    """Any other 5xx: the server failed."""
