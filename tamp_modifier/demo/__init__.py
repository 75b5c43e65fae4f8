"""The demo model, a small LLaVA, the pictures and questions it was made for, and its evaluation.

``pictures`` draws scenes, ``questions`` asks about them, ``processing`` builds the processor,
``evaluation`` scores a model and makes calibration samples. ``methods``, ``run`` and ``results``
are ``tamp demo``. The weights are in ``model/``.
"""
