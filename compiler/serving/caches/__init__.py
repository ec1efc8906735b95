"""Caches of answers: exact (equal inputs), embedding (equal rows), semantic (texts of one meaning)."""

from __future__ import annotations
