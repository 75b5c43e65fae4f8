"""Does sparsity pay? Pruning and quantization, alone and together: size, quality and speed.

``python -m benchmarks.pareto`` measures quality, ``--speed`` speed. `formats` are the ways to store
a weight, `points` what is compared, `sizes` bits and bytes, `models` what quality is measured on,
`grid` the search on the quantized grid, `speed` the engines, `table` and `figure` show all.

The evaluation, its items, intervals and result files are those of `benchmarks.quality`.
"""
