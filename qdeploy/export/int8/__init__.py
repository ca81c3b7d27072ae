"""From a float graph to INT8: calibration, ranges, encodings, and the layers that stay in float."""
