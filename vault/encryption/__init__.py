"""Keys and sealed bytes (docs/object-format.md). Imports no framework, database or settings; boto3 only in `kms`."""
