"""Adds the optional native kernels of tamp_modifier.sparse; all else stands in pyproject.toml."""

from setuptools import Extension, setup

FOLDER = "tamp_modifier/sparse/csrc"
SOURCES = (
    "dispatch.c",
    "pack.c",
    "gemv_portable.c",
    "gemv_avx2.c",
    "gemv_avx512.c",
    "compressed_avx512bf16.c",
    "multiply_avx512bf16.c",
)

setup(
    ext_modules=[
        Extension(
            "tamp_modifier.sparse._native",  # a plain C library, loaded with ctypes
            [f"{FOLDER}/{source}" for source in SOURCES],
            depends=[f"{FOLDER}/tamp_sparse.h", f"{FOLDER}/avx512bf16.h"],
            extra_compile_args=["-O3", "-g0", "-fvisibility=hidden"],
            optional=True,  # without a compiler the package works through torch
        )
    ]
)
