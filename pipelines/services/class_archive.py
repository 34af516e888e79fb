"""Write a class archive: `python class_archive.py LIST PART ARCHIVE COMMAND...` (see class_data.py)."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 120


def main() -> None:
    recorded, part, archive = (Path(p) for p in sys.argv[1:4])
    os.nice(10)
    try:
        if archive.exists():
            return
        whole, _, _ = recorded.read_text().rpartition("\n")  # the last line of a killed server may be cut
        recorded.write_text(whole + "\n")
        done = subprocess.run(sys.argv[4:], timeout=TIMEOUT_S, check=False)
        if done.returncode == 0:
            part.replace(archive)
            kind = archive.stem.rpartition("-")[0]
            for old in archive.parent.glob(f"{kind}-*.jsa"):  # of other versions; they are large
                if old != archive:
                    old.unlink()
    except (OSError, subprocess.TimeoutExpired):
        return  # only a slower start is lost
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
            recorded.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
