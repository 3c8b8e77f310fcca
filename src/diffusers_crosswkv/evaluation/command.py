"""How the commands that measure for a long time end."""

import sys
from collections.abc import Callable


def run_command(work: Callable[[], object]) -> int:
    """Do `work`, which prints what it found; returns the exit status of a command.

    Ctrl-C gives 130 and says how to go on; bad input ends the process with one line.
    """
    try:
        work()
    except KeyboardInterrupt as stopped:
        print(f"{str(stopped) or 'Stopped.'} Run the same command to go on.")
        return 130
    except (OSError, ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    return 0
