"""Loading features.py."""

from __future__ import annotations

import re
import sys

import pytest

from tiercel.errors import DefinitionError
from tiercel.features.project_file import load_definitions

HEADER = "from tiercel.features.definitions import *\n"


def write(tmp_path, text):
    (tmp_path / "features.py").write_text(HEADER + text)
    return tmp_path


def test_collects_what_services_refer_to(tmp_path):
    """Definitions count whether they have a module-level name or are only referred to."""
    text = """
service = FeatureService("s", [FeatureView("v", [Entity("u")], [Field("a", Int64)], source=CSVSource("c", "c.csv"))[["a"]]])
"""
    found = load_definitions(write(tmp_path, text))
    assert (list(found.entities), list(found.sources), list(found.views), list(found.services)) == (
        ["u"], ["c"], ["v"], ["s"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("x = 1\nField('1', Int64)\n", "features.py:3: Field name '1'", id="definition"),
        pytest.param("def f(:\n", "features.py:2: SyntaxError", id="syntax"),
        pytest.param("\nimport no_such_module_here\n", "features.py:3: ModuleNotFoundError", id="import"),
        pytest.param("a = Entity('u')\nb = Entity('u', value_type=Int64)\n", "features.py:3: Entity 'u' is already", id="same name"),
        pytest.param("a = Entity('u')\nb = Entity('U')\n", "differs only by case", id="same name but for case"),
    ],
)  # fmt: skip
def test_errors_name_the_line(tmp_path, text, expected):
    """Whatever goes wrong in features.py is a DefinitionError with file and line."""
    with pytest.raises(DefinitionError) as caught:
        load_definitions(write(tmp_path, text))
    assert expected in str(caught.value)


def test_the_line_is_named_once(tmp_path):
    """An error that says where it is gets no second place in front; `*` alone names no input."""
    text = "b = RequestSource('b', schema=[Field('x', Float32)])\n@on_demand_feature_view(sources=[b], schema=[Field('y', Float32)])\n"
    for function, expected in (("def f(z):", "'z' is in none of them"), ("def f(*x):", "got * or ** alone")):
        with pytest.raises(DefinitionError, match=re.escape(expected)) as caught:
            load_definitions(write(tmp_path, f"{text}{function}\n    return 1\n"))
        assert str(caught.value).count("features.py:3: ") == 1


def test_missing_file(tmp_path):
    """A directory without features.py is not a project, and the message says how to make one."""
    with pytest.raises(DefinitionError, match="tiercel init"):
        load_definitions(tmp_path)


def test_leaves_no_trace(tmp_path):
    """Two projects with helper modules of one name do not see each other's, and nothing stays in the process."""
    before, path_before = set(sys.modules), list(sys.path)
    for name in ("one", "two"):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "helper_beside.py").write_text(f"NAME = {name!r}\n")
        found = load_definitions(write(directory, "import helper_beside\nentity = Entity(helper_beside.NAME)\n"))
        assert list(found.entities) == [name]
        assert sorted(path.name for path in directory.iterdir()) == ["features.py", "helper_beside.py"]
    assert sys.path == path_before
    assert not {name for name in set(sys.modules) - before if "helper_beside" in name or "tiercel_project" in name}
