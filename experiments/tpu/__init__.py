"""What experiments/compile_tpu.py is made of: programs, the reader of what came out, the sums."""
