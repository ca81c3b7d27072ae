"""Which runtimes take an ONNX graph, and why not."""
