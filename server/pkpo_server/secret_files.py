"""Files that are replaced while the server runs, as the volumes of secrets are."""

from __future__ import annotations

from pathlib import Path

# Device, inode, change of content or mode, and size; None where there is no file.
Signature = tuple[int, int, int, int, int] | None


def signature(path: Path) -> Signature:
    """What differs once a file is replaced or rewritten."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
