"""Phase 7: move weights out of the code and plan memory."""
