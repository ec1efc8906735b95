"""Policies: which of several modules answers, row by row: variants, cascades, routers, and checks of their drift."""
