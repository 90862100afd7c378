"""Scores of models, and maps of their attention."""
