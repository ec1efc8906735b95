"""Phase 8: the remaining operators become calls of TVM's virtual machine."""
