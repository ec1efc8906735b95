"""Caches of answers: exact (equal inputs), embedding (equal rows), semantic (texts with the same meaning)."""

from __future__ import annotations
