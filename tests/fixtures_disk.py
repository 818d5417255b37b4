"""A disk without room, as the operating system itself makes one."""

import contextlib
import resource


@contextlib.contextmanager
def largest_file(size):
    """Have files of more than `size` bytes refused inside the block."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
