"""Models that read or write text, as services."""
