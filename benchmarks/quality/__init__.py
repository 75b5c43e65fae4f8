"""Which pruning method keeps the most? Methods x sparsities x calibration seeds x models.

python -m benchmarks.quality --help
"""
