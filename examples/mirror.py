"""An incremental mirror of a NumPy array: after each step only the pages that changed are copied.

python examples/mirror.py
"""

import numpy as np

import pagemap


class Mirror:
    """A copy of an array that catches up by whole pages."""

    def __init__(self, array):
        self._bytes = array.reshape(-1).view(np.uint8)
        self._base = self._bytes.ctypes.data
        # First track, then copy: what is written in between is copied once more, never missed.
        self._tracker = pagemap.track(array)
        self.copy = array.copy()
        self._target = self.copy.reshape(-1).view(np.uint8)

    def update(self):
        """Copies what was written since the last time; returns how many bytes that were."""
        copied = 0
        for start, end, _ in self._tracker.collect().tolist():
            # The array's first and last page may begin and end outside of it.
            first, last = max(start - self._base, 0), min(end - self._base, self._bytes.size)
            self._target[first:last] = self._bytes[first:last]
            copied += last - first
        return copied

    def close(self):
        self._tracker.close()


def main():
    heights = np.zeros((4096, 4096))
    mirror = Mirror(heights)
    pick = np.random.default_rng(1)
    print(f"an array of {heights.nbytes >> 20} MiB")
    for step, rows in enumerate((0, 1, 16, 256, 4096)):
        heights[pick.choice(4096, rows, replace=False)] += 1
        copied = mirror.update()
        equal = np.array_equal(mirror.copy, heights)
        print(f"step {step}: {rows:4} rows written, {copied / 2**20:7.2f} MiB copied, equal: {equal}")
    mirror.close()


if __name__ == "__main__":
    main()
