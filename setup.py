"""Adds the optional native kernels of tamp_modifier.sparse; all else stands in pyproject.toml."""

from glob import glob

from setuptools import Extension, setup

FOLDER = "tamp_modifier/sparse/csrc"

setup(
    ext_modules=[
        Extension(
            "tamp_modifier.sparse._native",  # a plain C library, loaded with ctypes
            sorted(glob(f"{FOLDER}/*.c")),
            depends=sorted(glob(f"{FOLDER}/*.h")),
            extra_compile_args=["-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra"],
            optional=True,  # without a compiler the package works through torch
        )
    ]
)
