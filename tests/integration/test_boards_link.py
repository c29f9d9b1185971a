"""``flchain boards measure`` over a real link: two private network namespaces with a cable between them."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.board_trees import FAMILIES, write_tree
from tests.support.vendor_images import program

ROOT = Path(__file__).resolve().parents[2]
# Everything vanishes with the two namespaces. $1 is the interpreter, the rest are the options of measure.
LAB = """
set -eu
python=$1; shift
unshare -n sleep 120 &
other=$!
trap 'kill $other $peer 2>/dev/null' EXIT
peer=
while [ "$(readlink /proc/$other/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link add lan0 type veth peer name lan1
ip link set lan1 netns $other
ip addr add 10.77.0.1/24 dev lan0
ip link set lan0 up
nsenter -t $other -n sh -c 'ip addr add 10.77.0.2/24 dev lan1; ip link set lan1 up'
echo laid
nsenter -t $other -n "$python" -m edge_sdk.entry boards peer --listen 10.77.0.2:5201 > peer.json &
peer=$!
while [ ! -s peer.json ]; do sleep 0.05; done
"$python" -m edge_sdk.entry boards measure "$@" --peer 10.77.0.2:5201
"""


def test_rate_and_transmit_power_of_a_link(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("not root: no network of one's own")
    program("ip")
    root = write_tree(tmp_path / "root", FAMILIES["jetson-orin-nano"])
    words = ["--root", str(root), "--seconds", "0.5", "-o", "own.toml"]
    done = subprocess.run(
        [program("unshare"), "-n", "sh", "-c", LAB, "sh", sys.executable, *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    if "laid" not in done.stdout:
        pytest.skip(f"no network namespaces here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    document = tomllib.loads((tmp_path / "own.toml").read_text())
    assert set(document["link"]) == {"ethernet_mbps", "ethernet_down_mbps"}
    for figure in document["link"].values():
        assert figure["value"] > 1
        assert "lan0" in figure["condition"]
    assert document["power"]["transmit_w"]["value"] == pytest.approx(5.04 * 0.96, rel=1e-4)
    assert not any("link" in line for line in document["measurement"]["missing"])
