"""The libraries are silent for a while, and the user's own log is as it was."""

from __future__ import annotations

import subprocess
import sys

import pytest
from loguru import logger

from tamp_modifier.quiet import library_silence, quiet


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.mark.parametrize("silence", [quiet, library_silence])
def test_sinks_of_the_user_get_nothing_meanwhile_and_all_afterwards(
    silence: object, lines: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    sinks = [logger.add(lines.append, level=level) for level in ("DEBUG", "ERROR")]
    try:
        before = repr(logger)
        for _ in range(2):
            with silence():  # type: ignore[operator]
                logger.error("meanwhile")
                print("printed meanwhile")
        assert repr(logger) == before and lines == []
        logger.debug("debug")
        logger.error("error")
        assert [line.split(" - ")[1] for line in lines] == ["debug\n", "error\n", "error\n"]
    finally:
        for sink in sinks:
            logger.remove(sink)
    assert "meanwhile" not in "".join(capfd.readouterr())


def test_sinks_are_back_after_an_error() -> None:
    before = repr(logger)
    with pytest.raises(KeyError), library_silence():
        raise KeyError
    assert repr(logger) == before


def test_names_that_the_user_disabled_stay_disabled(lines: list[str]) -> None:
    sink = logger.add(lines.append)
    logger.disable(__name__)
    try:
        with quiet():
            pass
        logger.error("disabled")
        assert lines == []
    finally:
        logger.enable(__name__)
        logger.remove(sink)


def test_a_sink_that_is_added_meanwhile_stays(lines: list[str]) -> None:
    with quiet():
        sink = logger.add(lines.append)
        logger.error("meanwhile")
    logger.error("afterwards")
    logger.remove(sink)
    assert len(lines) == 2


def test_our_warnings_are_collected_and_no_others() -> None:
    with library_silence() as warnings:
        logger.patch(lambda record: record.update(name="tamp_modifier.pruning.run")).warning("ours")
        logger.warning("not ours")
    assert warnings == ["ours"]


STREAMS = """
from tamp_modifier.quiet import library_silence
with library_silence():
    print("meanwhile")
from loguru import logger
logger.patch(lambda record: record.update(name="llmcompressor")).warning("afterwards")
with library_silence():
    logger.patch(lambda record: record.update(name="llmcompressor")).warning("again")
"""


@pytest.mark.slow
def test_the_log_that_llm_compressor_sets_up_meanwhile_works_afterwards() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STREAMS], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0 and done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert line.endswith("WARNING - afterwards")
