"""Services for models that read or write text."""
