"""The feature store: definitions, catalog, offline compute, training sets, materialization and the online read."""
