"""One heap per device process: what one thread frees, another can use."""

import platform
import subprocess
import sys

import pytest

# Each of eight threads allocates; the C library then tells how many heaps it has made.
PROGRAM = """
import ctypes, os, tempfile, threading
from edge_sdk.adapters.heap import share_one_heap
assert share_one_heap()
held = []
threads = [threading.Thread(target=lambda: held.append(bytearray(100_000))) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as file:
    stream = libc.fopen(file.name.encode(), b"w")
    libc.malloc_info(0, ctypes.c_void_p(stream))
    libc.fclose(ctypes.c_void_p(stream))
    print(file.read().count(b"<heap nr="))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="skipped: no glibc")
def test_threads_share_one_heap() -> None:
    finished = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    assert finished.stdout.split() == ["1"]
