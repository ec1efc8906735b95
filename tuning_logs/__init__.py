"""Tuned records that ship with the package, one file a target."""
