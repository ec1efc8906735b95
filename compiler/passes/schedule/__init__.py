"""Phase 6: every kernel gets a schedule for the machine."""
