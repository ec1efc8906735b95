"""Phase 8: lower the remaining operators to calls of TVM's virtual machine."""
