"""Pages: what they are made of is read, put together and rendered on a thread of the shelf's; the event loop only sends it."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import jinja2
from markupsafe import Markup, escape

from tiercel.errors import ModelNotFoundError, NotFoundError, RequestError, ServiceNotFoundError, TiercelError
from tiercel.http.dashboard import feature_view, links, model_view, overview, words
from tiercel.http.dashboard.alert_source import ACTIONS, SILENCES, AlertSource
from tiercel.http.dashboard.judged import SPANS, judge
from tiercel.http.dashboard.moves import Moves, find_moves
from tiercel.http.dashboard.readings import Live, Readings
from tiercel.http.dashboard.replies import Rendered
from tiercel.monitor.drift import AGAINST
from tiercel.monitor.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request

    from tiercel.http.dashboard.alert_source import AlertRow
    from tiercel.http.dashboard.assets import Assets
    from tiercel.http.dashboard.judged import Judged
    from tiercel.http.dashboard.readings import ModelFacts
    from tiercel.http.dashboard.shelf import Failed, Pending, Shelf
    from tiercel.registry import ModelVersion
    from tiercel.settings import Settings

#: Readings and pages are as old as this at most.
FRESH_S: Final = 2.0
#: Reports of performance and money; see also `Shelf.peek`.
REPORTS_S: Final = 60.0
#: What moves models: attributions of many rows.
MOVES_S: Final = 300.0
_PART_END = re.compile(r"(?<=[^_./:])([_./:]+)(?=[^_./:])")
_WINDOW, _SPAN, _SORT = "1h", "7d", "attention"

T = TypeVar("T")


class Pages:
    """The pages of a project.

    Args:
        settings: the project.
        shelf: where what is read is kept.
        assets: for their addresses.

    Threads: coroutines on the event loop only; what they start runs on the shelf's threads.
    """

    def __init__(self, settings: Settings, shelf: Shelf, assets: Assets) -> None:
        self._settings, self._shelf = settings, shelf
        self._readings, self._alerts = Readings(settings), AlertSource(settings)
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,  # everything, whatever a file is called
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates.filters["wrapped"] = wrapped
        self._templates.globals |= {
            "asset": assets.url, "style_ids": assets.style_ids, "links": links, "words": words, "project": settings.name, "silences": list(SILENCES),
            "model_windows": list(model_view.WINDOWS), "windows": list(overview.WINDOWS), "sorts": overview.SORTS,
            "against": AGAINST, "spans": list(SPANS),
        }  # fmt: skip

    def close(self) -> None:
        """Let go of the registry."""
        self._readings.close()

    def warm(self) -> None:
        """Do what the first page would wait for: read what is there, compile its templates."""
        template, parts = self._overview(_WINDOW, _SORT, {})
        self._render(template, is_part=False, path="/", **parts)

    def warm_others(self) -> None:
        """Compile the templates of the other pages, and find how far apart windows of a model fall by chance.

        That takes longest of a model's page, and serves all features of one shape, of other models too.
        """
        for name in self._templates.list_templates():
            self._templates.get_template(name)
        champion = next((model.champion for model in self._readings.models() if model.champion is not None), None)
        if champion is not None:
            asked = model_view.Asked(champion.version, _WINDOW, AGAINST[0], _SPAN, "")
            model_view.read_served(self._readings, champion, asked, time.time_ns() // 1000)

    async def overview(self, request: Request) -> Rendered:
        """The first page."""
        window = _choice(request, "window", overview.WINDOWS, _WINDOW)
        sort = _choice(request, "sort", overview.SORTS, _SORT)
        models: tuple[ModelFacts, ...] = ()
        with contextlib.suppress(TiercelError, OSError):  # said on the page, which reads them again
            models = await self._shelf.get("models", self._readings.models, FRESH_S)
        judged = {model.name: self._judged(model.champion, _SPAN) for model in models}
        return await self._page(request, ("overview", window, sort), lambda: self._overview(window, sort, judged))

    async def model(self, request: Request) -> Rendered:
        """A model's page.

        Raises:
            NotFoundError: no such model, or no such version of it.
            RequestError: a parameter that is none of its choices.
        """
        models = await self._shelf.get("models", self._readings.models, FRESH_S)
        name = str(request.path_params["name"])
        model = next((each for each in models if each.name == name), None)
        if model is None:
            raise ModelNotFoundError(f"Expected a registered model, got {name[:80]!r}")
        version = await self._shelf.get(("versions", name), lambda: self._readings.versions(name), FRESH_S)
        chosen = _version(request, model, version)
        asked = model_view.Asked(
            version=chosen.version,
            window=_choice(request, "window", model_view.WINDOWS, _WINDOW),
            against=_choice(request, "against", AGAINST, AGAINST[0]),
            span=_choice(request, "span", SPANS, _SPAN),
            feature=request.query_params.get("feature", "")[:200],
        )
        judged = self._judged(chosen, asked.span, with_outlook=True)
        moves = self._shelf.peek(
            ("moves", name, chosen.version, asked.window, asked.against),
            lambda: find_moves(
                self._settings, chosen, length_us=model_view.WINDOWS[asked.window][0], against=asked.against
            ),
            MOVES_S,
        )
        return await self._page(
            request,
            ("model", name, asked, type(judged), type(moves)),
            lambda: self._model(model, chosen, asked, judged, len(version), moves),
        )

    async def services(self, request: Request) -> Rendered:
        """The list of feature services."""
        return await self._page(request, ("services",), self._services)

    async def service(self, request: Request) -> Rendered:
        """A feature service's page.

        Raises:
            NotFoundError: no such service.
        """
        name = str(request.path_params["service"])
        return await self._page(request, ("service", name), lambda: self._service(name))

    async def alerts(self, request: Request) -> Rendered:
        """The alerts."""
        show = _choice(request, "show", ("lasting", "all"), "lasting")
        return await self._page(request, ("alerts", show), lambda: self._alert_page(show))

    async def act(self, alert_id: str, action: str, form: Mapping[str, str]) -> None:
        """Acknowledge, silence or resolve an alert; see `AlertSource.act`."""
        if action not in ACTIONS:
            raise NotFoundError(f"Expected one of {', '.join(ACTIONS)}, got {action[:30]!r}")
        await self._shelf.run(lambda: self._alerts.act(alert_id, action, form))
        for show in ("lasting", "all"):
            for part in (False, True):
                self._shelf.forget(("alerts", show, part))

    async def failure(self, status: int, title: str, text: str) -> Rendered:
        """A page that says what went wrong."""
        return await self._shelf.run(
            lambda: self._render("message.html", False, "", title=title, text=text, status=status)
        )

    # -- put together, off the event loop

    async def _page(
        self, request: Request, key: tuple[Any, ...], make: Callable[[], tuple[str, dict[str, Any]]]
    ) -> Rendered:
        """A rendered page, or the part of it that is looked for anew; kept for a moment."""
        is_part = request.query_params.get("part") == "main"
        path = request.url.path
        # The query is in forms and links of the page, so it is part of what it is kept by.
        full_key = (*key, is_part)

        def render() -> Rendered:
            name, values = make()
            return self._render(name, is_part, path, **values)

        return await self._shelf.get(full_key, render, FRESH_S)

    def _render(self, name: str, is_part: bool, path: str, **values: Any) -> Rendered:
        template = self._templates.get_template(name)
        now_us = time.time_ns() // 1000
        text: str = template.render(is_part=is_part, path=path, now_us=now_us, **values)
        return Rendered.of(text.encode("utf-8", "replace"))

    def _overview(
        self, window: str, sort: str, judged: Mapping[str, Judged | Pending | Failed | None]
    ) -> tuple[str, dict[str, Any]]:
        problems: list[str] = []
        now_us = time.time_ns() // 1000
        length_us = overview.WINDOWS[window]
        sources = overview.Sources(
            settings=self._settings,
            models=_tried(self._readings.models, (), problems),
            traffic=_tried(lambda: self._readings.traffic(now_us - length_us, now_us, overview.N_STEPS), {}, problems),
            live=_tried(self._readings.live, Live(Totals(), None), problems),
            drift=_tried(self._readings.drift, {}, problems),
            judged=judged,
            alerts=_tried(self._alerts.read, None, problems),
            problems=problems,
            watched_us=_tried(lambda: self._alerts.watch().last_turn_us, 0, problems),
        )
        page = overview.build(sources, window=window, sort=sort)
        return "overview.html", {"page": page}

    def _model(
        self,
        model: ModelFacts,
        version: ModelVersion,
        asked: model_view.Asked,
        judged: Judged | Pending | Failed | None,
        n_versions: int,
        moves: Moves | Pending | Failed,
    ) -> tuple[str, dict[str, Any]]:
        now_us = time.time_ns() // 1000
        served = model_view.read_served(self._readings, version, asked, now_us)
        known: list[AlertRow] = _tried(self._alerts.read, [], [])
        alerts = [alert for alert in known if alert.model == model.name]
        page = model_view.build(
            self._settings, model, version, asked, served, self._readings.live(), judged,
            self._readings.history(model.name), alerts, n_versions, moves,
        )  # fmt: skip
        return "model.html", {"page": page}

    def _services(self) -> tuple[str, dict[str, Any]]:
        now_us = time.time_ns() // 1000
        catalog = self._readings.catalog()
        lines = feature_view.service_lines(self._readings.services(), catalog, self._readings.models(), now_us)
        return "services.html", {"lines": lines}

    def _service(self, name: str) -> tuple[str, dict[str, Any]]:
        base = self._readings.service(name)
        if base is None:
            raise ServiceNotFoundError(f"Expected a feature service that is applied or published, got {name[:80]!r}")
        page = feature_view.build(
            base,
            self._readings.catalog(),
            self._readings.models(),
            self._readings.drift(),
            time.time_ns() // 1000,
        )
        return "service.html", {"page": page, "size": feature_view.describe_size}

    def _alert_page(self, show: str) -> tuple[str, dict[str, Any]]:
        watch = self._alerts.watch()
        failing = [(name, step.last_error) for name, step in sorted(watch.steps.items()) if step.last_error]
        return "alerts.html", {
            "alerts": self._alerts.read(with_resolved=show == "all"), "show": show, "watch": watch, "failing": failing,
            "every_s": self._settings.monitor.interval_s,
        }  # fmt: skip

    def _judged(
        self, version: ModelVersion | None, span: str, *, with_outlook: bool = False
    ) -> Judged | Pending | Failed | None:
        if version is None:
            return None
        key = ("judged", version.name, span, with_outlook)  # of all its versions; this one says what they predict
        return self._shelf.peek(
            key, lambda: judge(self._settings, version, span=span, with_outlook=with_outlook), REPORTS_S
        )


def wrapped(name: str) -> Markup:
    """A name that may go on in the next line after each of its parts, as `carrier_delay_2h` has three, and not within one."""
    return Markup(_PART_END.sub(r"\1<wbr>", str(escape(name))))  # noqa: S704 - escaped; what is added is a constant


def _tried(read: Callable[[], T], otherwise: T, problems: list[str]) -> T:
    """What is read, or something else and a problem: a page shows what there is."""
    try:
        return read()
    except (TiercelError, OSError, ValueError) as error:
        problems.append(str(error))
        return otherwise


def _choice(request: Request, name: str, known: Any, default: str) -> str:
    value = request.query_params.get(name, default)
    if value not in known:
        raise RequestError(f"Expected {name} to be one of {', '.join(known)}, got {value[:40]!r}")
    return value


def _version(request: Request, model: ModelFacts, versions: tuple[ModelVersion, ...]) -> ModelVersion:
    """The version that was asked for; the champion, else the newest."""
    asked = request.query_params.get("version", "")
    if not asked:
        return model.champion or versions[-1]
    for version in versions:
        if asked == str(version.version):
            return version
    raise NotFoundError(f"Expected a version of {model.name!r} from 1 to {len(versions)}, got {asked[:30]!r}")
