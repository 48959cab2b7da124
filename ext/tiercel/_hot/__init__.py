"""The compiled core. Private: each module has exactly one Python owner (see ext/README.md)."""
