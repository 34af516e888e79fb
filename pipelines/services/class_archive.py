"""Write a class archive: `python class_archive.py LIST PART ARCHIVE COMMAND...` (see class_data.py).

LIST.* are what processes have listed; COMMAND reads LIST, all of them as one, and writes PART.
"""

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
        lists = sorted(recorded.parent.glob(f"{recorded.name}.*"))
        if not lists:
            return
        recorded.write_text(merged([one.read_text() for one in lists]))
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
            for file in (part, recorded, *recorded.parent.glob(f"{recorded.name}.*")):
                file.unlink(missing_ok=True)


def merged(lists: list[str]) -> str:
    """Class lists as one. The last line of a killed server may be cut; classes of loaders other than the JVM's have numbers
    that hold in one list only, and are left out."""
    lines = (line for text in lists for line in text.split("\n")[:-1] if " source: " not in line)
    return "\n".join(dict.fromkeys(lines)) + "\n"


if __name__ == "__main__":
    main()
