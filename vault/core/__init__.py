"""What every package may use: database, clock, errors, text, keys derived from SECRET_KEY, AWS access."""
