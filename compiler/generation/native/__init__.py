"""Tokenizers and chat templates as the C++ runtime reads them (compiler/device/cpp/text), for static executables."""
