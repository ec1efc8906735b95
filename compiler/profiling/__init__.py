"""Measuring: latency and memory (`bench`), time per kernel (`profile`), costs of operators (`inspect`), and reports."""
