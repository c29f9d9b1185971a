"""The board test: a real arm64 system under emulation, from Debian's archive to a rolled back upgrade.

Run: ``make board-test``. The parts: ``vendor`` builds a vendor-like image, ``card`` makes a card of it with our own
commands, ``machine`` is the emulated board, ``edge`` the edge servers on this machine, ``scenario`` what must hold.
"""
