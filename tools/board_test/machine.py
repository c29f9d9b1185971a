"""The emulated board: one qemu process, its console log, and a root shell on a virtio port.

``kill`` is a power cut: qemu dies by SIGKILL, and with it whatever the guest had not written yet.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tools.board_test.shell import COMMAND_S, BoardError, Shell
from tools.board_test.vendor import SHELL_PORT

BOOT_S: Final = 600.0
"""Emulation on a busy machine; boards take a tenth."""
_POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What is emulated."""

    kernel: Path
    disk: Path
    memory_mib: int = 512
    cpu: str = "cortex-a72"
    cores: int = 2
    clock: str = "utc"
    """As qemu's ``-rtc base=``: ``utc``, or the date that a board without a clock battery wakes up in; no time server
    corrects that one."""


class Machine:
    """A running board. Leaving the context cuts its power."""

    def __init__(self, hardware: Hardware, folder: Path) -> None:
        """Switch it on.

        Args:
            hardware: What to emulate.
            folder: For the console log and the socket of the shell.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.console = folder / "console.log"
        socket_file = folder / "shell.sock"
        socket_file.unlink(missing_ok=True)
        with self.console.open("ab") as log:
            self._process = subprocess.Popen(
                _command(hardware, socket_file), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._started_s = time.monotonic()
        self.shell = Shell(socket_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def seconds_on(self) -> float:
        """Since it was switched on."""
        return time.monotonic() - self._started_s

    def wait_for_shell(self) -> None:
        """Wait until the board answers.

        Raises:
            BoardError: it does not, in BOOT_S.
        """
        while not self.shell.is_there():
            if self._process.poll() is not None:
                raise BoardError(f"qemu ended with {self._process.returncode}; see {self.console}")
            time.sleep(_POLL_S)
        # What is sent now waits in the socket until the board opens its port; hanging up would end its shell.
        self.shell.run("true", timeout_s=BOOT_S)

    def kill(self) -> None:
        """Cut the power."""
        self.shell.close()
        self._process.kill()
        self._process.wait()

    def power_off(self) -> None:
        """Shut the system down in order and wait for the end.

        Raises:
            BoardError: it does not end.
        """
        self.shell.send("systemctl poweroff\n")
        try:
            self._process.wait(COMMAND_S)
        except subprocess.TimeoutExpired as error:
            raise BoardError(f"still on {COMMAND_S:g} s after poweroff; see {self.console}") from error
        self.shell.close()


def _command(hardware: Hardware, socket_file: Path) -> list[str]:
    # Emulation pays for every change of page tables, and isolation of the kernel's makes two of them per system call;
    # boards with this core run without it, unless their boot loader brings a seed for KASLR.
    kernel_line = "root=/dev/nvme0n1p1 rootfstype=ext4 rw console=ttyAMA0 kpti=0"
    if hardware.clock != "utc":
        kernel_line += " systemd.mask=systemd-timesyncd.service"
    return [
        *("/usr/bin/qemu-system-aarch64", "-machine", "virt", "-cpu", hardware.cpu, "-accel", "tcg,thread=multi"),
        *("-smp", str(hardware.cores), "-m", str(hardware.memory_mib), "-nographic", "-no-reboot"),
        *("-monitor", "none", "-serial", "stdio", "-rtc", f"base={hardware.clock},clock=host"),
        *("-kernel", str(hardware.kernel), "-append", kernel_line),
        *("-drive", f"if=none,id=card,format=raw,file={hardware.disk}", "-device", "nvme,drive=card,serial=card"),
        *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="),
        *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=shell,path={socket_file},server=on,wait=off"),
        *("-device", f"virtserialport,chardev=shell,name={SHELL_PORT}"),
    ]
