"""Numbers of bytes in words: one form for disk and memory, in powers of 1000."""


def size(count: float) -> str:
    """Return a number of bytes as people read it: `512 B`, `93.6 MB`, `2.49 GB`."""
    if abs(count) < 999.5:
        return f"{count:.0f} B"
    units = iter(("kB", "MB", "GB", "TB", "PB"))
    unit = next(units)
    count /= 1000
    while abs(count) >= 999.5 and (larger := next(units, None)):
        unit, count = larger, count / 1000
    digits = 2 if abs(count) < 9.995 else 1 if abs(count) < 99.95 else 0
    return f"{count:.{digits}f} {unit}"
