"""tiercel: feature store, model registry and low-latency server for tabular models."""

__version__ = "0.1.0.dev0"
