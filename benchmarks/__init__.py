"""Speed and memory of the operator and of the network, beside what else computes the same and the machine's limit.

Run from the checkout: ``python -m benchmarks.operator``, ``python -m benchmarks.model``. ``measure`` holds the clocks
and one measurement in a process of its own, ``contestants`` who computes the operator, ``operator`` and ``model`` what
is measured, ``suite`` runs all of it, ``report`` makes tables and plots, ``command`` reads the arguments.
"""
