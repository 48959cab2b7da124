"""Scoring that nobody waits for."""
