"""`/invocations`, `/ping` and Vertex AI's routes on the wire: every form of body, which model answers, every refusal."""

from __future__ import annotations

import json

import pytest
from starlette.applications import Starlette
from tests.support.protocols import ENTITIES, FEATURES, SETTINGS, FixedEngine, Wire
from tiercel._hot.reply import ReplyIds

from tiercel.errors import DefinitionError
from tiercel.http.inputs import list_inputs
from tiercel.http.invocations import VertexRoutes, vertex_routes
from tiercel.http.protocols import protocol_routes
from tiercel.http.rows import columns_of_csv
from tiercel.monitor.counting import WorkerCounters
from tiercel.serving.router import Router
from tiercel.types import Signature, Task

COLUMNS = {**ENTITIES, **FEATURES}
ROWS = [{name: column[row] for name, column in COLUMNS.items()} for row in range(3)]
SPLIT = {"columns": list(COLUMNS), "data": [list(row.values()) for row in ROWS], "index": [0, 1, 2]}
CSV = (
    "tailnum,origin,gate,rain,hour,night,cabin\r\n"
    "N1,EWR,3,0.25,7,True,coach\r\n"
    'N2,EWR,-4,,8,0,"coach"\r\n'
    "N9,EWR,3.0,1.5e0,9,true,coach\r\n"
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def wire(directory):
    return Wire(FixedEngine(directory))


def invoke(wire, body, model="late", **headers):
    return wire.post("/invocations", body, x_tiercel_model=model, **headers)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"dataframe_split": SPLIT}, id="split"),
        pytest.param({"dataframe_records": ROWS}, id="records"),
        pytest.param({"instances": ROWS}, id="instances"),
        pytest.param({"inputs": COLUMNS, "params": None}, id="inputs"),
        pytest.param({"inputs": COLUMNS, "params": {"deadline_ms": 1000}}, id="params"),
    ],
)
def test_every_form_scores_as_predict_does(wire, body):
    """The four forms of JSON give exactly the scores of the server's own protocol."""
    reply = invoke(wire, body)
    assert reply.status_code == 200
    assert reply.json() == {"predictions": wire.scores("late", ENTITIES, FEATURES)}


@pytest.mark.parametrize("kind", ["text/csv", "text/csv; charset=utf-8", "text/csv;header=present", "TEXT/CSV"])
@pytest.mark.parametrize("text", [CSV, CSV.replace("\r\n", "\n"), "\ufeff" + CSV, CSV + "\n\n"])
def test_csv_scores_as_predict_does(wire, kind, text):
    """CSV with a header line, cells read by the dtype of their column: numbers, truths, text, and empty ones."""
    reply = invoke(wire, text.encode(), content_type=kind)
    assert reply.status_code == 200
    assert reply.json() == {"predictions": wire.scores("late", ENTITIES, FEATURES)}


@pytest.mark.parametrize("columns", [None, [0, 1, 2], ["a", "b", "c"]])
def test_a_frame_made_of_an_array(wire, columns):
    """A split frame without names, or with numbers for names, is in the signature's order."""
    split = {"data": [[1, 2, 3], [4, None, 6]], **({} if columns is None else {"columns": columns})}
    expected = wire.scores("plain", features={"a": [1, 4], "b": [2, None], "c": [3, 6]})
    assert invoke(wire, {"dataframe_split": split}, "plain").json() == {"predictions": expected}
    assert invoke(wire, {"inputs": split["data"]}, "plain").json() == {"predictions": expected}


def test_missing_cells_of_numbers(wire):
    """What data frames write for a number that is not there is missing, and so is the token NaN in JSON."""
    expected = {"predictions": wire.scores("plain", features={"a": [1], "b": [None], "c": [3]})}
    for cell in ("", "nan", "NaN", "null", "None", "NA"):
        assert invoke(wire, f"a,b,c\n1,{cell},3".encode(), "plain", content_type="text/csv").json() == expected
    assert invoke(wire, b'{"dataframe_split": {"data": [[1, NaN, 3]]}}', "plain").json() == expected


def test_csv_of_one_column():
    """An empty line is no row, a quoted nothing is a missing value: what pandas writes for one, and how it reads both."""
    signature = Signature(("a",), Task.REGRESSION)
    text = b'a\n1\n\n2\n""\n\n'
    columns = columns_of_csv(text, list_inputs(signature, None), None, 10)
    assert columns == {"a": [1.0, 2.0, None]}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_empty_lines_are_no_rows(wire, end):
    """Before the header, between rows and at the end; a row at fault is counted without them."""
    lines = ["", "a,b,c", "", "1,2,3", "", "", "4,5,6", "", ""]
    reply = invoke(wire, end.join(lines).encode(), "plain", content_type="text/csv")
    assert reply.json() == invoke(wire, b"a,b,c\n1,2,3\n4,5,6", "plain", content_type="text/csv").json()
    assert len(reply.json()["predictions"]) == 2
    refused = invoke(wire, end.join([*lines, "7,8"]).encode(), "plain", content_type="text/csv")
    assert (refused.status_code, refused.json()["code"], refused.json()["row"]) == (400, "wrong_length", 2)


REFUSALS = [
    pytest.param({}, 400, "invalid_request", id="no form"),
    pytest.param({"instances": ROWS, "inputs": COLUMNS}, 400, "invalid_request", id="two forms"),
    pytest.param({"instances": ROWS, "parameters": {}}, 400, "unknown_field", id="unknown field"),
    pytest.param({"instances": ROWS, "params": {"temperature": 1}}, 400, "unknown_field", id="unknown parameter"),
    pytest.param({"instances": ROWS, "params": []}, 400, "invalid_request", id="params not an object"),
    pytest.param({"instances": ROWS, "params": {"deadline_ms": 0}}, 400, "invalid_deadline", id="no time at all"),
    pytest.param({"dataframe_split": []}, 400, "invalid_request", id="split not an object"),
    pytest.param({"dataframe_split": {"columns": ["a"]}}, 400, "wrong_type", id="split without data"),
    pytest.param({"dataframe_split": {**SPLIT, "rows": []}}, 400, "unknown_field", id="split with more"),
    pytest.param({"dataframe_split": {**SPLIT, "columns": [1, 2]}}, 400, "wrong_type", id="names that are numbers"),
    pytest.param({"dataframe_split": {**SPLIT, "columns": []}}, 400, "wrong_type", id="no names"),
    pytest.param({"dataframe_split": {**SPLIT, "columns": ["rain"] * 7}}, 400, "duplicate_key", id="one name often"),
    pytest.param({"dataframe_split": {**SPLIT, "data": [[1]]}}, 400, "wrong_length", id="row too short"),
    pytest.param({"dataframe_split": {**SPLIT, "data": [{}]}}, 400, "wrong_type", id="row not a list"),
    pytest.param({"dataframe_split": {**SPLIT, "data": []}}, 400, "invalid_request", id="no rows"),
    pytest.param({"dataframe_records": [[1]]}, 400, "wrong_type", id="records not objects"),
    pytest.param({"dataframe_records": [ROWS[0], {}]}, 400, "invalid_request", id="records of other names"),
    pytest.param({"dataframe_records": ROWS * 34}, 413, "too_many_rows", id="too many records"),
    pytest.param(b"{", 400, "malformed_json", id="malformed JSON"),
    pytest.param(b'{"inputs": {"rain": [Infinity]}}', 400, "malformed_json", id="Infinity"),
]


@pytest.mark.parametrize(("body", "status", "code"), REFUSALS)
def test_refusals(wire, body, status, code):
    """Each kind of bad request has its status, its stable code and a text that says what was expected."""
    reply = invoke(wire, body)
    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert len(reply.json()["error"]) > 20


CSV_REFUSALS = [
    pytest.param(b"", "invalid_request", None, id="empty"),
    pytest.param(b"rain,hour\n", "invalid_request", None, id="no row"),
    pytest.param(b"1,2,3\n1,2,3\n", "unknown_feature", None, id="no header"),
    pytest.param(b"rain,rain\n1,2\n", "duplicate_key", None, id="a column twice"),
    pytest.param(b"rain,speed\n1,2\n", "unknown_feature", None, id="unknown column"),
    pytest.param(b"rain,hour\n1,2\n1\n", "wrong_length", 1, id="row too short"),
    pytest.param(b"rain,hour\n1,2\n \n1,2\n", "wrong_length", 1, id="a line of a space between"),
    pytest.param(b"\n\n", "invalid_request", None, id="empty lines alone"),
    pytest.param(b"rain,hour\n1,2\nx,2\n", "wrong_type", 1, id="text for a float"),
    pytest.param(b"rain,hour\n1,2\n1,x\n", "wrong_type", 1, id="text for an integer"),
    pytest.param(b"rain,hour\n1_0,2\n", "wrong_type", 0, id="underscore in a number"),
    pytest.param(b"rain,hour\ninf,2\n", "wrong_type", 0, id="infinity"),
    pytest.param(b"rain,hour\n0x1,2\n", "wrong_type", 0, id="hexadecimal"),
    pytest.param("rain,hour\n\u0661,2\n".encode(), "wrong_type", 0, id="other digits"),
    pytest.param(b"night\nyes\n", "wrong_type", 0, id="no truth"),
    pytest.param(b'rain\n"1\n', "malformed_csv", None, id="open quote"),
    pytest.param(b'rain\n"1"x\n', "malformed_csv", None, id="text after a quote"),
    pytest.param(b"rain\n\xff\n", "malformed_csv", None, id="not UTF-8"),
]


@pytest.mark.parametrize(("body", "code", "row"), CSV_REFUSALS)
def test_csv_refusals(wire, body, code, row):
    """CSV that does not fit is refused with its stable code, and with the row where it is one's fault."""
    reply = invoke(wire, body, content_type="text/csv")
    assert (reply.status_code, reply.json()["code"], reply.json().get("row")) == (400, code, row)


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-parquet", "application/json; charset=latin-1", "application/json; format=pandas-split",
     "text/csv; header=absent", "application/octet-stream"],
)  # fmt: skip
def test_other_types(wire, kind):
    """Types, charsets and formats that are not read are refused with 415."""
    reply = invoke(wire, {"instances": ROWS}, content_type=kind)
    assert (reply.status_code, reply.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("header", ["x_tiercel_model", "x_amzn_sagemaker_target_model"])
@pytest.mark.parametrize("reference", ["plain", "plain@champion", "plain:2"])
def test_a_header_names_the_model(wire, header, reference):
    """Our header or SageMaker's names the model, with an alias or a version."""
    reply = wire.post("/invocations", {"inputs": [[1, 2, 3]]}, **{header: reference})
    assert reply.json() == {"predictions": [6.0]}


def test_the_only_champion_answers(wire, tmp_path):
    """Without a header the only model with a champion answers; with several, none does and they are listed."""
    alone = Wire(FixedEngine(tmp_path, only=("plain",)))
    assert alone.post("/invocations", {"inputs": [[1, 2, 3]]}).json() == {"predictions": [6.0]}
    reply = wire.post("/invocations", {"inputs": [[1, 2, 3]]})
    assert (reply.status_code, reply.json()["code"]) == (400, "invalid_request")
    assert "kind, late, plain" in reply.json()["error"]
    assert invoke(wire, {"inputs": [[1, 2, 3]]}, "none").status_code == 404


def test_ping_and_version(wire, tmp_path):
    """/ping is 200 and empty when something can be served, 503 otherwise; /version is plain text."""
    for path in ("/ping", "/health"):
        reply = wire.get(path)
        assert (reply.status_code, reply.content) == (200, b"")
    assert wire.get("/version").text.startswith("0.")
    empty = FixedEngine(tmp_path)
    empty.routes = type(empty.routes)()
    assert Wire(empty).get("/ping").status_code == 503


def vertex(wire, environ):
    engine, counters = wire.engine, WorkerCounters()
    other = Wire(engine)
    other.app = Starlette(routes=protocol_routes(engine, Router(engine, ReplyIds(100)), SETTINGS, counters, environ))
    return other


@pytest.mark.parametrize("route", ["/v1/endpoints/1/deployedModels/2:predict", "/predict", "/invocations"])
def test_vertex_routes(wire, route):
    """Vertex AI's paths answer its body and its health check, whatever they are."""
    other = vertex(wire, {"AIP_PREDICT_ROUTE": route, "AIP_HEALTH_ROUTE": route, "AIP_HTTP_PORT": "8080"})
    body = {"instances": [[1, 2, 3], [4, None, 6]], "parameters": {"deadline_ms": 500}}
    reply = other.post(route, body, x_tiercel_model="plain")
    assert (reply.status_code, reply.json()) == (200, {"predictions": [6.0, 10.0]})
    assert other.get(route).status_code == 200
    for wrong in ({"instances": [[1, 2, 3]], "inputs": 1}, {}, {"instances": [[1, 2, 3]], "parameters": {"x": 1}}):
        assert other.post(route, wrong, x_tiercel_model="plain").status_code == 400


def test_vertex_routes_only_where_they_are_named(wire):
    """Without the variables there are no such routes."""
    assert vertex_routes({}) == vertex_routes({"AIP_HTTP_PORT": "", "AIP_PREDICT_ROUTE": ""}) == VertexRoutes()
    assert vertex_routes({"AIP_HTTP_PORT": "8080"}).port == 8080
    assert vertex(wire, {}).post("/predict", {}).status_code == 404


@pytest.mark.parametrize(
    "environ",
    [
        {"AIP_HTTP_PORT": "eighty"},
        {"AIP_HTTP_PORT": "0"},
        {"AIP_HTTP_PORT": "65536"},
        {"AIP_HEALTH_ROUTE": "health"},
        {"AIP_PREDICT_ROUTE": "/x/{y}"},
        {"AIP_PREDICT_ROUTE": "/x?y"},
        {"AIP_PREDICT_ROUTE": "/predict/late"},
    ],
)
def test_vertex_variables_that_make_no_sense(environ):
    """A variable that cannot be meant stops the start, and its name is in the message."""
    with pytest.raises(DefinitionError, match=next(iter(environ))):
        vertex_routes(environ)


def test_mlflow_reads_no_more_than_predictions(wire):
    """The reply has the one field that MLflow's client looks for."""
    assert list(json.loads(invoke(wire, {"instances": ROWS}).content)) == ["predictions"]
