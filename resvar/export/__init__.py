"""Networks in files: safetensors (both ways), ONNX and torchvision's state dicts."""
