"""Commands that measure coverage: `python -m tests.coverage onnx`, `python -m tests.coverage models`."""
