"""Models of families that the catalog lacks, against ONNX Runtime and OpenVINO: `python -m benchmarks.families`."""
