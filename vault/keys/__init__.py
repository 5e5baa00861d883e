"""Which key wraps what: usage, retiring, rewrapping, reencrypting, verifying."""
