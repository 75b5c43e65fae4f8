"""Sparse or dense: what the table says, what is forced, and what is unmeasured."""

from __future__ import annotations

import pytest

from tamp_modifier.sparse import choice, native
from tamp_modifier.sparse.choice import Choice, Sizes, choose

RATIOS = {
    0.5: {1: 2.0, 4: 1.2, 16: 0.96, 32: 0.94, 256: 0.89},
    0.7: {1: 3.0, 4: 1.5, 16: 1.1, 32: 0.95, 256: 0.91},
}


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of one path, and nothing forced."""
    monkeypatch.delenv(choice.SERVE_VARIABLE, raising=False)
    monkeypatch.setattr(choice, "table", lambda: {("portable", "int8"): RATIOS})


def test_a_kernel_that_is_fast_enough_at_every_size_is_chosen() -> None:
    assert choose("int8", 0.7, Sizes(32, 2048), "portable") == Choice(True, "sparse kernel")
    assert choose("int8", 0.9, Sizes(300, 1), "portable").sparse


@pytest.mark.parametrize(
    ("sparsity", "sizes", "rows"),
    [
        (0.5, Sizes(16, 256), 256),  # a prompt loses more than a tenth
        (0.69, Sizes(16, 256), 256),  # judged like 50 %
        (0.3, Sizes(16, 256), 256),
        (0.5, Sizes(40, 1), 32),
        (0.5, Sizes(16, 40), 32),
    ],
)
def test_a_kernel_that_is_slower_at_one_size_is_not_chosen(
    sparsity: float, sizes: Sizes, rows: int
) -> None:
    found = choose("int8", sparsity, sizes, "portable")
    assert not found.sparse
    ratio = RATIOS[0.5][rows]
    assert f"{ratio:.2f}x the speed of the dense kernel at {rows} rows, 50% zeros" in found.why


def test_what_nobody_measured_stays_sparse_and_says_so() -> None:
    found = choose("int8", 0.5, Sizes(1, 1), "avx512")
    assert found == Choice(True, "sparse kernel; int8 with avx512 is unmeasured")
    assert choose("bfloat16", 0.5, Sizes(1, 1)).why.endswith(
        f"bfloat16 with {native.backend()} is unmeasured"
    )


def test_nothing_is_sparse_without_the_native_library() -> None:
    found = choose("bfloat16", 0.9, Sizes(1, 1), native.TORCH)
    assert not found.sparse and "no native library" in found.why


def test_fp8_stays_dense_for_want_of_a_kernel() -> None:
    found = choose("float8_e4m3fn", 0.5, Sizes(1, 1))
    assert not found.sparse and "TAMP_SERVE=sparse" in found.why


@pytest.mark.parametrize("kind", ["int8", "float8_e4m3fn", "bfloat16"])
def test_the_environment_forces_either(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("sparse", "dense"):
        monkeypatch.setenv("TAMP_SERVE", mode)
        expected = Choice(mode == "sparse", f"TAMP_SERVE={mode}")
        assert choose(kind, 0.5, Sizes(64, 256), "portable") == expected
        assert choose(kind, 0.5, None) == expected
    monkeypatch.setenv("TAMP_SERVE", "auto")
    assert choose("bfloat16", 0.5, None) == Choice(True, "sparse kernel")


def test_a_wrong_environment_value_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMP_SERVE", "fast")
    with pytest.raises(ValueError, match="^TAMP_SERVE is 'fast', allowed are auto, sparse, dense$"):
        choose("int8", 0.5, Sizes(1, 1))
