"""What TAMP costs and what it keeps: the measurements behind docs/benchmarks.md.

`quality`, `calibration` and `scale` need llm-compressor, `serving` and `kernels` run in the serving
environment too. `smolav` is a model that sees and hears, made for `quality`.
"""
