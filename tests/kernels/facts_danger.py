"""What may stop the machine: hugetlb write protection, and a scan without output. For guests only."""

from __future__ import annotations

from facts_drop import dropped, repaired
from kernel_api import DIRECTORY, MADV_DONTNEED, PAGE, WP_MATCHING, WPALLOWED, WRITTEN, Area
from known_memory import DANGEROUS, EXACT, fact, huge, tracked


def hugetlb(shared: bool, mask: int, populated: bool) -> dict[str, object]:
    # A directory without page tables: only there the walk takes its path for holes.
    area = Area(512, shared=shared, hugetlb=True, align=DIRECTORY)
    if populated:
        area.write(0, 1)
    scanner = tracked(area)
    found = {"reported": scanner.count(area, mask=mask, returned=mask, flags=WP_MATCHING)}
    area.write(0, 1)
    return found | {
        "written": scanner.count(area, flags=WP_MATCHING),
        "idle": scanner.count(area, flags=WP_MATCHING),
    }


for populated in (True, False):
    for shared in (False, True):
        for name, mask in (("written", WRITTEN), ("wpallowed", WPALLOWED), ("none", 0)):
            label = f"{'shared' if shared else 'private'}.{'populated' if populated else 'hole'}.{name}"
            DANGEROUS[f"hugetlb.{label}"] = lambda a=(shared, mask, populated): hugetlb(*a)


@fact("hugetlb.dropped", DANGEROUS)
def hugetlb_dropped():
    def make():
        area = Area(1536, hugetlb=True)
        area.write()
        return area

    return dropped(make, 512, 512, MADV_DONTNEED, EXACT)


DANGEROUS["hugetlb.repaired"] = lambda: repaired(
    lambda: Area(1536, hugetlb=True, align=DIRECTORY), 512, 512, True
)


@fact("thp.partial.without_vec", DANGEROUS)
def without_vec():
    """The NULL dereference of 6.7 to 6.17-rc; last, because the kernel does not survive it."""
    area = huge()
    scanner = tracked(area)
    count, _ = scanner.raw(area.start + PAGE, area.start + 9 * PAGE, 0, WRITTEN, WRITTEN, WP_MATCHING)
    return {"returned": count}
