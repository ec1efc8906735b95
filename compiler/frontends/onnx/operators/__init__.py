"""Converters, one file per operator family; the registry discovers every module here."""
