"""liblmdb comes out of the installed wheel, or the reason it cannot is said."""

from __future__ import annotations

import _ctypes
import _sqlite3

import lmdb.cpython
import pytest
from tiercel._hot import liblmdb

from tiercel.errors import UnsupportedLmdbError

WHEEL = lmdb.cpython.__file__


def test_the_installed_wheel_fits():
    """The wheel's own library is found and its version is the one py-lmdb reports."""
    assert liblmdb.load() == ".".join(map(str, lmdb.version()))


def test_a_file_that_is_no_library(tmp_path):
    """A path that cannot be opened is named, with the wheel's version and what to run."""
    fake = tmp_path / "cpython.so"
    fake.write_bytes(b"not a library")
    for path in (fake, tmp_path / "absent.so"):
        with pytest.raises(UnsupportedLmdbError, match=r"lmdb \d.*" + path.name + r".*pip install"):
            liblmdb.load(str(path))


def test_a_library_without_lmdb():
    """A library that exports no LMDB is refused by its first missing function."""
    with pytest.raises(UnsupportedLmdbError, match="does not export mdb09_version"):
        liblmdb.load(_ctypes.__file__)


def test_an_unknown_prefix():
    """A wheel that renames its functions again is refused, naming the function."""
    assert liblmdb.missing_symbol(WHEEL, "mdb77_") == "mdb77_version"
    with pytest.raises(UnsupportedLmdbError, match="mdb77_version"):
        liblmdb.load(WHEEL, ["mdb77_"])


def test_another_lmdb_series():
    """LMDB 1.0, which the same wheel carries, is refused: its file format and structures differ."""
    if liblmdb.missing_symbol(WHEEL, "mdb10_") is not None:
        pytest.skip("this wheel carries LMDB 0.9 only")
    with pytest.raises(UnsupportedLmdbError, match=r"needs the 0\.9 series"):
        liblmdb.load(WHEEL, ["mdb10_"])


def test_a_failed_load_keeps_the_working_library():
    """Failing to load another library leaves the resolved functions in place."""
    with pytest.raises(UnsupportedLmdbError):
        liblmdb.load(_sqlite3.__file__)
    assert liblmdb.missing_symbol(WHEEL, "mdb09_") is None or liblmdb.missing_symbol(WHEEL, "mdb_") is None
    assert liblmdb.load()
