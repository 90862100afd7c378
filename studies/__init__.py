"""The paper's questions, and those behind our recipes. Run from the checkout: ``python -m studies``."""
