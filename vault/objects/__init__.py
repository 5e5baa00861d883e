"""Sealed objects: their rows, reading and writing them, leases, shredding, quota, reaping, integrity."""
