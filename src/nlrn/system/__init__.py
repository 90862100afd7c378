"""Atomic writes, and what this machine is and has."""
