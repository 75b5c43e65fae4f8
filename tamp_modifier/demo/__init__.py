"""A small LLaVA in the box, the pictures and questions it was made for, and its evaluation.

``pictures`` draws scenes, ``questions`` asks about them, ``processing`` builds the processor,
``evaluation`` scores a model and makes calibration samples. The weights are in ``model/``.
"""
