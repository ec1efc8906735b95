"""NVIDIA GPUs: nvcc, device images, CUDA graphs, and a simulator."""
