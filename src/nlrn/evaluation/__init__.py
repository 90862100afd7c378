"""Scores and maps."""
