"""Phase 1: everything known is computed, everything unused is gone."""
