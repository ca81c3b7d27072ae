"""What is true of a file, of two files, and of a machine: evaluate, verify, diff, doctor."""
