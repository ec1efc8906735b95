from compiler.onnx_backend import *  # noqa: F403
