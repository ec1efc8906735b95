"""Converters, one file per operator family; every module here is discovered by the registry."""
