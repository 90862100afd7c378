"""Files <-> arrays."""
