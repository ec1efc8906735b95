"""Phase 7: weights are moved out of the code, and memory is planned."""
