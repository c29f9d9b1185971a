"""``flchain boards``, ``flchain image`` and ``flchain flash``: errors become one line and a status.

Exit status: 0 done, 1 something else failed, 2 usage, 3 target refused, 4 image refused, 5 verify failed, 130 stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from firmware_profiles.errors import FirmwareError

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130


def main(argv: Sequence[str]) -> int:
    """Run one command.

    Args:
        argv: Name of the command and its arguments.

    Returns:
        Exit status.
    """
    name, arguments = argv[0], list(argv[1:])
    try:
        match name:
            case "boards":
                from firmware_profiles.cli_boards import main as run
            case "image":
                from firmware_profiles.cli_image import main as run
            case _:
                from firmware_profiles.cli_flash import main as run
        return run(arguments)
    except FirmwareError as error:
        print(f"flchain {name}: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"flchain {name}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"flchain {name}: stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
