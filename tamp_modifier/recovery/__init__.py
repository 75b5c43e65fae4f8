"""Recovery: the dense model teaches the pruned one, whose zeros stay.

In the order in which a run uses them: ``settings`` says what is asked for, ``trained`` which
weights move, ``grid`` rounds them as a quantizer would, ``batches`` and ``teacher`` give the
samples and what the dense model says to them, ``losses`` compares the two models, ``probe`` finds
the learning rate, ``budget`` ends the run in time, ``trainer`` is transformers' Trainer with these
parts, ``machine`` tells what this computer has, and ``run`` puts all together. None of it knows
llm-compressor.
"""
