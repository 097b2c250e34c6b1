"""What measures us against peers: ratios from interleaved rounds in one run, never times on their own.

Machines are shared and noisy; a figure means something only beside its peer's from the same seconds. Nothing here is a test.
"""
