"""Import paths of 0.1 still work, and say where things are now."""

from __future__ import annotations

import importlib

import pytest

from tamp_modifier.moved import ROOMS


@pytest.mark.parametrize("old", ROOMS)
def test_every_room_that_the_table_names_is_there(old: str) -> None:
    for room in ROOMS[old]:
        importlib.import_module(f"tamp_modifier.{room}")


def test_old_names_are_the_new_ones_and_warn() -> None:
    from tamp_modifier.files import new_folder
    from tamp_modifier.zeros.keep import keep_zeros

    with pytest.warns(DeprecationWarning, match=r"is now in tamp_modifier\.zeros\.keep"):
        from tamp_modifier.guard import keep_zeros as old_keep
    with pytest.warns(DeprecationWarning, match=r"is now in tamp_modifier\.files"):
        from tamp_modifier.folders import new_folder as old_folder
    assert old_keep is keep_zeros and old_folder is new_folder


def test_what_was_never_there_is_an_ordinary_error() -> None:
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from tamp_modifier.guard import nothing  # noqa: F401


@pytest.mark.parametrize(
    ("module", "names"),
    {
        "selection": "AMIASelection AllTokens BalancedTokens TextTokens TILE DriftSelection",
        "allocation": "DAS DASNumel Uniform ATP DLP OWL round_to_budget",
        "scores": "Wanda SparseGPT Magnitude AT_ONCE",
        "report": "write_json check_writable REPORT_FILE SAMPLES_FILE FORMAT FORMAT_VERSION "
        "layer_index pair_name pattern_counts weighted_sparsity",
        "report_page": "read_samples write_page page",
        "report_reading": "read_report",
        "sparse.serialization": "CONFIG_KEY config_marker read_marker mark_dense mark_packed "
        "read_bitmask read_24_bitmask QUANT_METHOD INNER_KEY",
        "sparse.files": "shards read_index some",
        "sparse.inspection": "FUSED inspect_checkpoint find_pattern",
        "sparse.checkpoint": "NEVER_PACKED MIN_SPARSITY pack_checkpoint read_config",
        "drift": "DriftSelection",
        "masks": "freeze",
    }.items(),
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_names_of_the_first_release_are_found(module: str, names: str) -> None:
    found = importlib.import_module(f"tamp_modifier.{module}")
    assert [name for name in names.split() if not hasattr(found, name)] == []


@pytest.mark.parametrize("name", ["CONFIG_KEY", "config_marker", "read_marker", "read_bitmask"])
def test_names_that_left_sparse_warn(name: str) -> None:
    from tamp_modifier import sparse

    with pytest.warns(DeprecationWarning, match="is now in tamp_modifier.checkpoint"):
        getattr(sparse, name)


def test_masks_freeze_warns() -> None:
    from tamp_modifier import masks
    from tamp_modifier.zeros.freeze import freeze

    with pytest.warns(DeprecationWarning, match="is now tamp_modifier.zeros.freeze"):
        assert masks.freeze is freeze
