"""Freed memory stays with the process: the second block touches no new page."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from coordinator.heap import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    pieces = [bytearray(1_000_000) for _ in range(10)]
work()
start = faults()
work()
print(faults() - start)
"""
PAGES_OF_THE_WORK = 10_000_000 // 4_096


def page_faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc hands pages back so eagerly")
def test_a_second_block_touches_no_new_page() -> None:
    assert page_faults("kept") < PAGES_OF_THE_WORK / 20
    assert page_faults("plain") > PAGES_OF_THE_WORK / 2
