"""gunicorn: its worker, the pace of clients, its logger, the allocator, early answers."""
