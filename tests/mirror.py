"""A copy of some memory that is kept true by copying what a tracker reports, and nothing else."""

import os

from witness import PAGE


class Mirror:
    """Copies of pages by address. `copy(start, end)` gives the bytes, or None where nothing is mapped."""

    def __init__(self, copy):
        self.copy = copy
        self.pages = {}
        self.copied = 0

    def update(self, regions):
        for start, end, _ in regions.tolist():
            content = self.copy(start, end)
            if content is None and end - start > PAGE:
                for page in range(start, end, PAGE):
                    self._keep(page, self.copy(page, page + PAGE))
            else:
                self._keep(start, content)

    def _keep(self, start, content):
        if content is None:
            self.pages.pop(start, None)
            return
        for offset in range(0, len(content), PAGE):
            self.pages[start + offset] = content[offset : offset + PAGE]
        self.copied += len(content) // PAGE

    def forget_unmapped(self, vmas):
        """What the tracker no longer knows of: memory that is mapped there later starts with zeros."""
        mapped = vmas.ranges(0, 1 << 64 - 1).tolist()
        kept = {}
        ranges = iter(mapped)
        low, high = next(ranges, (1 << 64, 1 << 64))
        for page in sorted(self.pages):
            while page >= high:
                low, high = next(ranges, (1 << 64, 1 << 64))
            if page >= low:
                kept[page] = self.pages[page]
        self.pages = kept

    def wrong_pages(self, areas):
        """The pages of some (start, end) where it differs from the memory. A page never reported is zeros."""
        nothing = bytes(PAGE)
        return [
            page
            for start, end in areas
            for page in range(start, end, PAGE)
            if self.pages.get(page, nothing) != self.copy(page, page + PAGE)
        ]


class MemoryOf:
    """The memory of another process, by /proc/PID/mem."""

    def __init__(self, pid):
        self.fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        os.close(self.fd)

    def __call__(self, start, end):
        try:
            content = os.pread(self.fd, end - start, start)
        except OSError:
            return None
        return content if len(content) == end - start else None
