"""A vendor-like image: Debian arm64 from the archive, with cloud-init, as its makers would publish it.

Nothing of ours is inside, apart from two things that stand for what a test bench has: the board's examples, as if a
sensor had collected them, and a root shell on a virtio port, as if somebody had plugged in a serial adapter. The
kernel has NVMe and ext4 built in, so it boots the root file system without an initial RAM disk.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tools.board_test.cache import cached
from tools.board_test.namespace import run_foreign

SUITE: Final = "trixie"
PYTHON: Final = "3.13"
"""Of that suite."""
MIRROR: Final = "http://deb.debian.org/debian"
PACKAGES: Final = (
    *("systemd", "systemd-sysv", "systemd-resolved", "systemd-timesyncd", "udev", "dbus", "kmod", "iproute2"),
    *("python3", "python3-venv", "cloud-init", "ca-certificates", "netbase", "procps", "e2fsprogs"),
)
IMAGE_MIB: Final = 1280
PARTITION_START: Final = 2**20
SHELL_PORT: Final = "flchain.shell"
"""Name of the virtio port with the root shell."""
DATA_ON_BOARD: Final = "/srv/flchain/data.npz"

BENCH_UNIT: Final = "etc/systemd/system/bench-shell.service"
FILES: Final = {
    "etc/hostname": "debian\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/fstab": "/dev/nvme0n1p1 / ext4 rw,errors=remount-ro 0 1\n",
    "etc/machine-id": "",  # empty: made at first boot
    "etc/apt/sources.list": f"deb http://deb.debian.org/debian {SUITE} main\n",
    # As in Debian's cloud images, apart from host keys: there is no SSH server here.
    "etc/cloud/cloud.cfg.d/90_vendor.cfg": "datasource_list: [NoCloud, None]\nssh_deletekeys: false\n"
    "ssh_genkeytypes: []\ndisable_ec2_metadata: true\n",
    BENCH_UNIT: f"""\
[Unit]
Description=test bench: root shell on a virtio port
DefaultDependencies=no
After=local-fs.target systemd-udevd.service
StartLimitIntervalSec=0

[Service]
# One descriptor for both ways: the port opens once only.
ExecStart=/bin/sh -c 'exec /bin/sh <>/dev/virtio-ports/{SHELL_PORT} >&0 2>&1'
Environment=PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
Restart=always
RestartSec=1
""",
}
ENABLED: Final = ("systemd-networkd", "systemd-resolved", "systemd-timesyncd")
UNWANTED: Final = ("apt-daily", "apt-daily-upgrade", "dpkg-db-backup", "e2scrub_all", "fstrim", "man-db")
"""Timers that would work while the test does."""

# Runs on this machine with the new root as $1: the kernel is unpacked, not configured; no boot loader, no RAM disk.
_KERNEL: Final = """
cd "$1/tmp"
name=$(chroot "$1" apt-cache depends linux-image-cloud-arm64 |
    sed -n 's/ *Depends: \\(linux-image-[0-9][^ ]*\\)$/\\1/p')
chroot "$1" sh -c "cd /tmp && apt-get -q download $name"
dpkg-deb -x linux-image-*.deb "$1/tmp/kernel"
mkdir -p "$1/boot"
mv kernel/boot/vmlinuz-* "$1/boot/vmlinuz"
cp -a kernel/usr/lib/modules "$1/usr/lib/" 2>/dev/null || cp -a kernel/lib/modules "$1/usr/lib/"
rm -rf kernel linux-image-*.deb
depmod -b "$1" "$(ls "$1/usr/lib/modules")"
"""
_FINISH: Final = f"""
for unit in {" ".join(ENABLED)}; do chroot "$1" systemctl enable "$unit"; done
ln -sf ../run/systemd/resolve/stub-resolv.conf "$1/etc/resolv.conf"
rm -rf "$1/var/cache/apt" "$1/var/lib/apt/lists" "$1/var/log/apt"
mkdir -p "$1/var/cache/apt/archives/partial" "$1/var/lib/apt/lists/partial"
"""


def vendor_root(log: Path) -> Path:
    """Folder with ``root.tar`` and ``vmlinuz``, from the cache or built in about ten minutes.

    Raises:
        RuntimeError: the archive cannot be reached, or a program failed; the log says which.
    """
    recipe = repr((SUITE, MIRROR, PACKAGES, _KERNEL, _FINISH))
    return cached("vendor-root", recipe, lambda folder: _build_root(folder, log))


def _build_root(folder: Path, log: Path) -> None:
    excluded = ("man", "doc", "locale", "info", "i18n/locales")
    run_foreign(
        [
            *("nice", "-n", "5", "mmdebstrap", "--mode=root", "--variant=minbase", "--arch=arm64", "--skip=check/qemu"),
            "--aptopt=Acquire::Languages none",
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in excluded),
            f"--include={','.join(PACKAGES)}",
            *(f"--customize-hook={hook}" for hook in (_KERNEL, _FINISH)),
            *(SUITE, str(folder / "root.tar"), f"deb {MIRROR} {SUITE} main"),
        ],
        log,
    )
    run("tar", "-C", str(folder), "--strip-components=2", "-xf", str(folder / "root.tar"), "./boot/vmlinuz")


def vendor_image(root: Path, data: Path, out: Path) -> None:
    """Write a GPT disk image with the root file system of ``vendor_root`` and the board's examples.

    Args:
        root: Folder of ``vendor_root``.
        data: Examples of the board, an .npz.
        out: Image to write; removed first.
    """
    out.unlink(missing_ok=True)
    stage = out.with_suffix(".root")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        run("tar", "-C", str(stage), "--numeric-owner", "--exclude=./dev/*", "-xpf", str(root / "root.tar"))
        _add(stage, FILES | {DATA_ON_BOARD.lstrip("/"): data.read_bytes()})
        with out.open("wb") as file:
            file.truncate(IMAGE_MIB * 2**20)
        table = f"label: gpt\nstart={PARTITION_START // 512}, type=linux, name=root\n"
        run("sfdisk", "-q", str(out), text=table)
        size_kib = IMAGE_MIB * 1024 - 2 * PARTITION_START // 1024
        # Without orphan_file, older e2fsprogs than the image's can check it too.
        options = ("-q", "-F", "-t", "ext4", "-L", "rootfs", "-O", "^orphan_file", "-E", f"offset={PARTITION_START}")
        run("mke2fs", *options, "-d", str(stage), str(out), f"{size_kib}k")
    finally:
        shutil.rmtree(stage)


def _add(stage: Path, files: Mapping[str, str | bytes]) -> None:
    """Put the vendor's settings and the test bench into a root file system."""
    for name, content in files.items():
        path = stage / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(0o644)
    units = stage / "etc/systemd/system"
    links = {units / "sysinit.target.wants" / Path(BENCH_UNIT).name: f"/{BENCH_UNIT}"}
    links |= {units / f"{name}.timer": "/dev/null" for name in UNWANTED}
    for link, target in links.items():
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def run(program: str, *arguments: str, text: str | None = None) -> str:
    """Run a program that must succeed; what it printed.

    Raises:
        RuntimeError: it failed, with its own words.
    """
    path = shutil.which(program, path="/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
    if path is None:
        raise RuntimeError(f"no program {program}: make board-test installs what it needs where it runs as root")
    done = subprocess.run([path, *arguments], input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{program}: exit status {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout
