"""TensorRT engine files from exported graphs."""
