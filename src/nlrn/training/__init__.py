"""One visible loop and its parts."""
