"""Windows' GetWriteWatch and ResetWriteWatch, which garbage collectors and emulators are built on.

python examples/write_watch.py
"""

import mmap

import pagemap


class WriteWatch:
    """Memory as of VirtualAlloc(…, MEM_WRITE_WATCH, …)."""

    def __init__(self, size):
        self.memory = mmap.mmap(-1, size)
        self.base, _ = pagemap.span(self.memory)
        self._tracker = pagemap.track(self.memory)

    def get_write_watch(self, *, reset=False, count=None):
        """The addresses of the pages written since the last reset, at most `count` of them."""
        found = self._tracker.collect(max_pages=count) if reset else self._tracker.peek()
        pages = [page for start, end, _ in found.tolist() for page in range(start, end, mmap.PAGESIZE)]
        return pages[:count]

    def reset_write_watch(self):
        self._tracker.reset()

    def close(self):
        self._tracker.close()


def main():
    watch = WriteWatch(1 << 20)

    def show(what, pages):
        print(f"{what:36}", [(page - watch.base) // mmap.PAGESIZE for page in pages])

    show("nothing written yet:", watch.get_write_watch())
    for page in (3, 4, 200):
        watch.memory[page * mmap.PAGESIZE] = 1
    show("GetWriteWatch:", watch.get_write_watch())
    show("GetWriteWatch, reset, at most 2:", watch.get_write_watch(reset=True, count=2))
    show("GetWriteWatch, reset:", watch.get_write_watch(reset=True))
    watch.memory[17 * mmap.PAGESIZE] = 1
    watch.reset_write_watch()
    show("after ResetWriteWatch:", watch.get_write_watch())
    watch.close()


if __name__ == "__main__":
    main()
