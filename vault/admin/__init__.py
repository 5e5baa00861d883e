"""Administration of accounts, files and keys, for administrators only."""
