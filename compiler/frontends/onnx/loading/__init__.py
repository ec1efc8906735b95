"""ONNX files: read, checked, external data included."""
