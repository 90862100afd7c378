"""Limits that several parts share. It imports nothing, so that the command line can check before torch is loaded."""

MAX_SIGMA = 75.0  # the strongest noise that the denoisers are trained on, 0-255 units
