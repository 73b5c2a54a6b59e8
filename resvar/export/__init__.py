"""Export networks: safetensors (which can be loaded again), ONNX and torchvision's state dicts."""
