"""Networks in the formats of others: safetensors, torchvision, ONNX."""
