"""Phase 1: constants are folded, unused code is removed, and the graph is simplified."""
