"""Policies that choose the module for each request or row: variants, cascades, routers; and drift monitoring."""
