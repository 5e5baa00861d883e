"""tus 1.0 over HTTP."""
