"""Photos as phones take them (HEIC), which Pillow reads only with the extra hadaptive[heic]."""

import functools

from hadaptive.packages import obstacle

SUFFIXES = (".heic", ".heif", ".hif")
INSTALL = 'pip install "hadaptive[heic]"'
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")


def is_heif(head: bytes) -> bool:
    """Whether a file that begins with these 12 bytes is such a photo."""
    return head[4:8] == b"ftyp" and head[8:12] in _BRANDS


@functools.cache
def readable() -> bool:
    """Whether pillow-heif can be used; Pillow reads such photos from then on, in this process."""
    if obstacle("pillow_heif") is not None:
        return False
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return True
