"""The data plane: predictions and feature reads over HTTP, in JSON and msgpack."""
