"""How sizes in bytes are worded, everywhere."""


def size_text(size_bytes: int) -> str:
    """ "4.20 GB", or "13.70 MB" below one gigabyte; decimal units."""
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.2f} MB"
