"""Keys and sealed bytes: bytes in, bytes out.

Imports no framework, no database, no settings, and boto3 only in `kms`. The format is docs/object-format.md.
"""
