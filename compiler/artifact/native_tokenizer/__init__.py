"""Tokenizers in the form that the C++ runtime reads (compiler/device/cpp/text)."""
