"""Phase 7: weights leave the code, and every tensor gets its place in memory."""
