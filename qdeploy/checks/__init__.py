"""Checks of a model file, of two files, and of a machine: evaluate, verify, diff, doctor."""
