"""Commands that answer requests: `serve`, and `predict` to send one."""

from __future__ import annotations

from dataclasses import asdict, replace

import click

from tiercel.cli.console import console, json_option, print_json, project_option


@click.command()
@click.option("--host", help="Default: tiercel.toml, else 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Default: tiercel.toml, else 8000. 0 picks a free one.")
@project_option
def serve(host: str | None, port: int | None, project_dir: str) -> None:
    """Serve the project's models and features until interrupted."""
    from pathlib import Path

    from tiercel.http.server import bind
    from tiercel.http.server import serve as run
    from tiercel.settings import load_settings

    settings = load_settings(Path(project_dir))
    server = replace(
        settings.server,
        host=settings.server.host if host is None else host,
        port=settings.server.port if port is None else port,
    )
    settings = replace(settings, server=server)
    try:
        listener = bind(server.host, server.port)
    except OSError as error:
        raise click.ClickException(f"Cannot listen on {server.host}:{server.port}: {error.strerror}") from None
    actual_port = listener.getsockname()[1]

    def ready() -> None:
        host = f"[{server.host}]" if ":" in server.host else server.host
        console.print(f"Serving {settings.name} on http://{host}:{actual_port} (Ctrl-C stops)", markup=False)

    run(settings, listener, on_ready=ready)


@click.command()
@click.argument("model")
@click.option("--entity", "entities", multiple=True, metavar="KEY=VALUE", help="A join key; repeatable.")
@click.option("--feature", "features", multiple=True, metavar="NAME=VALUE", help="A request-time feature; repeatable.")
@click.option("--now", help="Read features as of this time (ISO 8601).")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The server.")
@json_option
def predict(
    model: str, entities: tuple[str, ...], features: tuple[str, ...], now: str | None, url: str, as_json: bool
) -> None:
    """Ask a running server for a prediction of MODEL ("name", "name@alias" or "name:version").

    A VALUE that reads as a JSON number, true, false or null is sent as one; for a text that looks like a number write
    the quotes: --entity 'id="17"'.
    """
    from tiercel.cli.registry import literal, pairs
    from tiercel.client import Client, Prediction

    with Client(url) as client:
        prediction = client.predict(
            model,
            entities={key: literal(text) for key, text in pairs("--entity", entities)} or None,
            features={key: literal(text) for key, text in pairs("--feature", features)} or None,
            now=now,
        )
    if as_json:
        print_json(asdict(prediction))
        return
    score = prediction.score if isinstance(prediction, Prediction) else prediction.scores
    console.print(f"{prediction.model} version {prediction.version}: [bold]{score}[/]")
    if prediction.missing:
        console.print(f"  no value for: {', '.join(prediction.missing)}")
