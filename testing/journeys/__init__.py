"""Programs that are run with generated clients: none of this is imported."""
