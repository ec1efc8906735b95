"""Nets of families that the catalog lacks, timed against ONNX Runtime and OpenVINO: `python -m benchmarks.families`."""
