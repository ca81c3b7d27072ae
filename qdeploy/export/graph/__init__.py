"""Steps on an ONNX graph that every export takes: entrance, parity, ties, fp16, seal."""
