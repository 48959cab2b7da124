"""Serving: models and stores wired into plans, kept current while requests are answered."""
