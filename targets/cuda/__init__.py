"""NVIDIA graphics processors: nvcc, device images, CUDA graphs, and a simulator."""
