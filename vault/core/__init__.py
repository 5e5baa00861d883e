"""Shared by every package: database, clock, errors, text, keys derived from SECRET_KEY, AWS access."""
