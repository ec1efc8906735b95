"""Phase 6: schedule every kernel for the machine."""
