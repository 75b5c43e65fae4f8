"""What a GPU does: the Triton kernels, torch's 2:4 and pruning, in ten minutes on one card.

``benchmarks/gpu_check.sh`` prepares Python and starts it; docs/benchmarks.md says how.
"""
