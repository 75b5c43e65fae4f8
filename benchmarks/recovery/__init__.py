"""How much of what pruning costs does a short training bring back? Minutes x models x formats.

``python -m benchmarks.recovery`` measures. `texts` and `models` are what is read in training and
asked afterwards, `plan` names the cells, `stages` prune, train and quantize, `results` are the
files, `runner` runs what is missing, `table` and `figure` show it.

The evaluation and its intervals are those of `benchmarks.quality`, the formats those of
`benchmarks.pareto`.
"""
