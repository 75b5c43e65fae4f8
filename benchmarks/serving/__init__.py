"""Memory and speed of vLLM on CPU, stock dense against the plugin.

``python -m benchmarks.serving`` runs it. `models` writes the models, `process` starts vLLM,
`engine` measures inside of it, `tables` prints.
"""
