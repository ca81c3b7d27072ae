"""What is done to a float graph whatever its precision: its entrance, parity, ties, fp16, the seal."""
