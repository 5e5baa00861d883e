"""Being written by the functional-tests helper."""
