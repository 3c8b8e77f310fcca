"""What main memory a process has needed."""

from pathlib import Path


def peak_resident() -> int:
    """Bytes that this process has held at most, parts of files that it has mapped and read included."""
    status = Path("/proc/self/status")
    if not status.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    lines = status.read_text(encoding="utf-8").splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return 1024 * int(peak)
