"""Modules on machines without Python: the C++ runtime, its programs, and running them here under an emulator."""
