"""Tokenizers as the C++ runtime reads them (compiler/device/cpp/text)."""
