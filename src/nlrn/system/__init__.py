"""Files that appear whole; what this machine is and has."""
