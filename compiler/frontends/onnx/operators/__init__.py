"""Converters, one file an operator family; every module here is discovered by the registry."""
