"""Celery: the app, its queues and tasks by name, transports, beat."""
