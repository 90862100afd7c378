"""The network, and what stands beside it."""
