"""Whether the package still prunes as it did: the same bits before a change and after it.

    python -m benchmarks.same_results --output before.json    # on the tree before the change
    python -m benchmarks.same_results --against before.json   # on the tree after it

Every recipe of `recipes` prunes a fresh copy of its model through ``oneshot``, with one thread and
fixed seeds. What comes out is kept as digests, some for every Linear, together with what the
report says about that Linear. ``--against`` prints one row a recipe, names the first Linear that
differs and what of it differs, and exits with status 1 if any recipe differs or fails.

The modules use public names of the package only, so that they also run on a tree whose inner
modules lie elsewhere. Floating-point sums depend on the processor and on the libraries, so results
of another processor or of other versions are refused.
"""
