"""Batching: queued requests run together, on as many runners as there are cores for."""
