"""Logs, metrics, readiness, and what tells of them."""
