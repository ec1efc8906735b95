"""Phase 8: what is left becomes calls of TVM's virtual machine."""
