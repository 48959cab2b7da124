"""The two clients. They differ in how they wait; what they send and read is in `requests` and `replies`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

import httpx

from tiercel.client.replies import (
    FeatureRows,
    FeedbackReceipt,
    Prediction,
    Predictions,
    Reply,
    client_error,
    is_healthy,
    read_features,
    read_feedback,
    read_prediction,
    read_recorded,
    read_reply,
    unreachable,
)
from tiercel.client.requests import (
    DEFAULT_URL,
    Codec,
    Explain,
    Format,
    Moment,
    Values,
    certificates,
    check_timeout,
    check_url,
    explain_options,
    explanation_path,
    features_body,
    feedback_body,
    make_headers,
    make_limits,
    model_path,
    predict_body,
    results_path,
    service_path,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from tiercel.client.explanations import Explanation
    from tiercel.errors import JobAcceptedError

DEFAULT_TIMEOUT_S: Final = 5.0


class Client:
    """A connection pool to one server.

    Args:
        base_url: of the data port.
        timeout: seconds for each wait, or an `httpx.Timeout`.
        format: of requests and replies. msgpack is smaller and faster; the answers are the same.
        connect_retries: how often a connection that could not be opened is tried again.
        max_connections: at once; further calls wait for a free one, up to `timeout`.
        headers: sent with every request.
        verify: for https: check certificates, or an SSL context.
        transport: any httpx transport instead of the network, for tests. The three arguments above it do not apply.

    Threads: safe. Processes: make one after a fork, not before.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT_S,
        format: Format = "msgpack",  # noqa: A002 - the word callers know
        connect_retries: int = 1,
        max_connections: int = 100,
        headers: Mapping[str, str] | None = None,
        verify: ssl.SSLContext | bool = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._codec = Codec(format)
        url = check_url(base_url)
        self._http = httpx.Client(
            base_url=url,
            timeout=check_timeout(timeout),
            headers=make_headers(headers),
            transport=transport
            or httpx.HTTPTransport(
                verify=certificates(url, verify), limits=make_limits(max_connections), retries=connect_retries
            ),
        )

    def predict(
        self,
        model: str,
        *,
        entities: Mapping[str, Values] | None = None,
        features: Mapping[str, Values] | None = None,
        version: int | None = None,
        alias: str | None = None,
        now: Moment | None = None,
        explain: Explain | None = None,
        locale: str | None = None,
        k: int | None = None,
    ) -> Prediction | Predictions:
        """Score one row, or as many as the lists among the arguments are long. Single values then hold for all rows.

        Args:
            model: a name (its champion answers), or a reference such as "late@challenger" or "late:3".
            entities: join keys of the stored features.
            features: values that come with the request. None or NaN is a missing value.
            version: only with a plain name, and not together with `alias`.
            alias: likewise.
            now: the moment that ages and ttl are counted from; None: the server's clock.
            explain: have the reply say why: "reasons", or "full" for every feature's contribution too. Where there is no
                time for that its `explanation` is for later.
            locale: of the reasons' texts; None: the model's own.
            k: reasons at most; None: as many as the model's policy says.

        Returns:
            `Prediction` if every value was single, otherwise `Predictions`.

        Raises:
            RequestError: an argument is wrong. JobAcceptedError: the model answers as a batch job; it says where. ClientError:
                see the module.
        """
        path, options = model_path(model, version, alias), explain_options(explain, locale, k)
        return read_prediction(self._post(path, predict_body(entities, features, now, options)))

    def explain(
        self,
        model: str,
        *,
        entities: Mapping[str, Values] | None = None,
        features: Mapping[str, Values] | None = None,
        version: int | None = None,
        alias: str | None = None,
        now: Moment | None = None,
        locale: str | None = None,
        k: int | None = None,
    ) -> Prediction | Predictions:
        """As `predict` with `explain="full"`, but the explanation is waited for where the reply puts it off."""
        wanted: dict[str, Any] = {"locale": locale, "k": k}
        made = self.predict(
            model, entities=entities, features=features, version=version, alias=alias, now=now, explain="full", **wanted
        )
        if made.explanation is not None and made.explanation.method == "later":
            return replace(made, explanation=self.explanation(made, **wanted))
        return made

    def explanation(
        self, prediction: str | Prediction | Predictions, *, locale: str | None = None, k: int | None = None
    ) -> Explanation:
        """Why an earlier prediction came out so, from the server's record of it.

        Args:
            prediction: its id, or what `predict` returned.
            locale: as for `predict`.
            k: as for `predict`.

        Raises:
            RequestError: an argument is wrong. ClientError: see the module; ServerNotFoundError: there is no such record.
        """
        return read_recorded(self._get(explanation_path(prediction, locale, k)))

    def results(self, job: str | JobAcceptedError) -> Prediction | Predictions:
        """What a batch job came to, in the shape of a prediction that was waited for.

        Args:
            job: its id, or what `predict` raised.

        Raises:
            RequestError: the argument is wrong. ClientError: see the module; BadRequestError: with code "job_not_finished" it
                is to be asked again, after `retry_after_s`.
        """
        return read_prediction(self._get(results_path(job)))

    def features(
        self,
        service: str,
        entities: Mapping[str, Values],
        *,
        features: Sequence[str] | None = None,
        now: Moment | None = None,
    ) -> FeatureRows:
        """Read stored features of one entity or many.

        Args:
            service: name of the feature service.
            entities: join keys, as for `predict`.
            features: only these, in this order; None: all.
            now: as for `predict`.

        Raises:
            RequestError: an argument is wrong. ClientError: see the module.
        """
        path = service_path(service)
        return read_features(self._post(path, features_body(entities, features, now)))

    def feedback(
        self,
        prediction: str | Prediction | Predictions | Sequence[str],
        label: Values = None,
        *,
        row: Values = None,
        value: Values = None,
        time: Moment | Sequence[Moment] | None = None,
    ) -> FeedbackReceipt:
        """Say what became of a prediction, or of many: lists among the arguments are one event for each item.

        What was accepted is on the server's disk, and the last that is said of a row counts; so it may be sent again.

        Args:
            prediction: its id, or what `predict` returned; or ids.
            label: a number, a boolean or the name of a class.
            row: place in the prediction, for one of many rows. With one prediction and a list of labels: 0, 1, ...
            value: what the outcome was worth.
            time: when it became so; None: now.

        Raises:
            RequestError: an argument is wrong. ClientError: see the module; BadRequestError when no event was accepted.
        """
        return read_feedback(self._post("/feedback", feedback_body(prediction, label, row, value, time)))

    def ready(self) -> bool:
        """Whether the server answers predictions now. False when it says no, and when it cannot be reached.

        Raises:
            ProtocolError: something else answered.
        """
        return self._probe("/readyz")

    def live(self) -> bool:
        """Whether the server's process responds. False when it says no, and when it cannot be reached.

        Raises:
            ProtocolError: something else answered.
        """
        return self._probe("/livez")

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _post(self, path: str, body: dict[str, Any]) -> Reply:
        return self._send(self._codec.encode(self._http, path, body))

    def _get(self, path: str) -> Reply:
        return self._send(self._http.build_request("GET", path))

    def _send(self, request: httpx.Request) -> Reply:
        try:
            response = self._http.send(request)
        except (httpx.HTTPError, RuntimeError) as error:
            raise client_error(request, error) from error
        return read_reply(response, self._http.base_url)

    def _probe(self, path: str) -> bool:
        request = self._http.build_request("GET", path)
        try:
            return is_healthy(self._http.send(request))
        except (httpx.HTTPError, RuntimeError) as error:
            return unreachable(request, error)


class AsyncClient:
    """`Client` for asyncio and trio: the same arguments, answers and errors."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT_S,
        format: Format = "msgpack",  # noqa: A002 - the word callers know
        connect_retries: int = 1,
        max_connections: int = 100,
        headers: Mapping[str, str] | None = None,
        verify: ssl.SSLContext | bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._codec = Codec(format)
        url = check_url(base_url)
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=check_timeout(timeout),
            headers=make_headers(headers),
            transport=transport
            or httpx.AsyncHTTPTransport(
                verify=certificates(url, verify), limits=make_limits(max_connections), retries=connect_retries
            ),
        )

    async def predict(
        self,
        model: str,
        *,
        entities: Mapping[str, Values] | None = None,
        features: Mapping[str, Values] | None = None,
        version: int | None = None,
        alias: str | None = None,
        now: Moment | None = None,
        explain: Explain | None = None,
        locale: str | None = None,
        k: int | None = None,
    ) -> Prediction | Predictions:
        """See `Client.predict`."""
        path, options = model_path(model, version, alias), explain_options(explain, locale, k)
        return read_prediction(await self._post(path, predict_body(entities, features, now, options)))

    async def explain(
        self,
        model: str,
        *,
        entities: Mapping[str, Values] | None = None,
        features: Mapping[str, Values] | None = None,
        version: int | None = None,
        alias: str | None = None,
        now: Moment | None = None,
        locale: str | None = None,
        k: int | None = None,
    ) -> Prediction | Predictions:
        """See `Client.explain`."""
        wanted: dict[str, Any] = {"locale": locale, "k": k}
        made = await self.predict(
            model, entities=entities, features=features, version=version, alias=alias, now=now, explain="full", **wanted
        )
        if made.explanation is not None and made.explanation.method == "later":
            return replace(made, explanation=await self.explanation(made, **wanted))
        return made

    async def explanation(
        self, prediction: str | Prediction | Predictions, *, locale: str | None = None, k: int | None = None
    ) -> Explanation:
        """See `Client.explanation`."""
        return read_recorded(await self._get(explanation_path(prediction, locale, k)))

    async def results(self, job: str | JobAcceptedError) -> Prediction | Predictions:
        """See `Client.results`."""
        return read_prediction(await self._get(results_path(job)))

    async def features(
        self,
        service: str,
        entities: Mapping[str, Values],
        *,
        features: Sequence[str] | None = None,
        now: Moment | None = None,
    ) -> FeatureRows:
        """See `Client.features`."""
        path = service_path(service)
        return read_features(await self._post(path, features_body(entities, features, now)))

    async def feedback(
        self,
        prediction: str | Prediction | Predictions | Sequence[str],
        label: Values = None,
        *,
        row: Values = None,
        value: Values = None,
        time: Moment | Sequence[Moment] | None = None,
    ) -> FeedbackReceipt:
        """See `Client.feedback`."""
        return read_feedback(await self._post("/feedback", feedback_body(prediction, label, row, value, time)))

    async def ready(self) -> bool:
        """See `Client.ready`."""
        return await self._probe("/readyz")

    async def live(self) -> bool:
        """See `Client.live`."""
        return await self._probe("/livez")

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _post(self, path: str, body: dict[str, Any]) -> Reply:
        return await self._send(self._codec.encode(self._http, path, body))

    async def _get(self, path: str) -> Reply:
        return await self._send(self._http.build_request("GET", path))

    async def _send(self, request: httpx.Request) -> Reply:
        try:
            response = await self._http.send(request)
        except (httpx.HTTPError, RuntimeError) as error:
            raise client_error(request, error) from error
        return read_reply(response, self._http.base_url)

    async def _probe(self, path: str) -> bool:
        request = self._http.build_request("GET", path)
        try:
            return is_healthy(await self._http.send(request))
        except (httpx.HTTPError, RuntimeError) as error:
            return unreachable(request, error)
