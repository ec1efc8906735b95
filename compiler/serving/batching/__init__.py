"""Batching: requests that wait at the same time run together, on as many runners as the cores hold."""
