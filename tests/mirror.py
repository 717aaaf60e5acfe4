"""A copy of some memory that is kept true by copying what a tracker reports, and nothing else."""

import os

from witness import PAGE

ZEROS = bytes(PAGE)


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
        """Where it differs from the memory in some (start, end), in words. A page never reported is zeros."""
        wrong = []
        for start, end in areas:
            for page in range(start, end, PAGE):
                kept, is_now = self.pages.get(page, ZEROS), self.copy(page, page + PAGE)
                if kept != is_now:
                    where = f"page {(page - start) // PAGE} of {(end - start) // PAGE} at {start:#x}"
                    wrong.append(f"{where}: kept {_in_words(kept)}, is {_in_words(is_now)}")
        return wrong


def _in_words(content):
    if content is None:
        return "not there"
    return f"{PAGE - content.count(0)} bytes other than 0"


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
