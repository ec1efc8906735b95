"""Deploys modules to machines without Python: the C++ runtime, its programs, and emulation of other targets."""
