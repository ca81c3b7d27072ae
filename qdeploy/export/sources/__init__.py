"""Where an export's float graph comes from: a run, a module, an ONNX file."""
