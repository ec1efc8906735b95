"""Reading and validation of ONNX files, including external data."""
