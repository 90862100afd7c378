"""The network, its weights files, and forms of it for inference and for measurements."""
