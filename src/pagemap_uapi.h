/*
 * The kernel's structures and constants, so that the project builds on any
 * header. Each is guarded on its own: a newer <linux/fs.h> wins where it has one.
 *
 * Sources: include/uapi/linux/fs.h (PAGEMAP_SCAN, PROCMAP_QUERY),
 * include/uapi/linux/userfaultfd.h, Documentation/admin-guide/mm/pagemap.rst.
 */
#ifndef PAGEMAP_UAPI_H
#define PAGEMAP_UAPI_H

#include <stdint.h>
#include <sys/ioctl.h>

/* PAGEMAP_SCAN, Linux 6.7. Own names for the structures: a header that has them cannot clash. */

struct pmu_page_region {
    uint64_t start;
    uint64_t end;
    uint64_t categories;
};
_Static_assert(sizeof(struct pmu_page_region) == 24, "struct page_region is 24 bytes");

struct pmu_scan_arg {
    uint64_t size;
    uint64_t flags;
    uint64_t start;
    uint64_t end;
    uint64_t walk_end;
    uint64_t vec;
    uint64_t vec_len;
    uint64_t max_pages;
    uint64_t category_inverted;
    uint64_t category_mask;
    uint64_t category_anyof_mask;
    uint64_t return_mask;
};
_Static_assert(sizeof(struct pmu_scan_arg) == 96, "struct pm_scan_arg is 96 bytes");

#ifndef PAGEMAP_SCAN
#define PAGEMAP_SCAN _IOWR('f', 16, struct pmu_scan_arg)
#endif

#ifndef PM_SCAN_WP_MATCHING
#define PM_SCAN_WP_MATCHING (1 << 0)
#endif
#ifndef PM_SCAN_CHECK_WPASYNC
#define PM_SCAN_CHECK_WPASYNC (1 << 1)
#endif

#ifndef PAGE_IS_WPALLOWED
#define PAGE_IS_WPALLOWED (1 << 0)
#endif
#ifndef PAGE_IS_WRITTEN
#define PAGE_IS_WRITTEN (1 << 1)
#endif
#ifndef PAGE_IS_FILE
#define PAGE_IS_FILE (1 << 2)
#endif
#ifndef PAGE_IS_PRESENT
#define PAGE_IS_PRESENT (1 << 3)
#endif
#ifndef PAGE_IS_SWAPPED
#define PAGE_IS_SWAPPED (1 << 4)
#endif
#ifndef PAGE_IS_PFNZERO
#define PAGE_IS_PFNZERO (1 << 5)
#endif
#ifndef PAGE_IS_HUGE
#define PAGE_IS_HUGE (1 << 6)
#endif
#ifndef PAGE_IS_SOFT_DIRTY
#define PAGE_IS_SOFT_DIRTY (1 << 7)
#endif
#ifndef PAGE_IS_GUARD
#define PAGE_IS_GUARD (1 << 8)
#endif
#ifndef PAGE_IS_ACCESSED
#define PAGE_IS_ACCESSED (1 << 9)
#endif

/* An entry of /proc/PID/pagemap, Linux 2.6.25. */

#define PME_SOFT_DIRTY (UINT64_C(1) << 55)
#define PME_GUARD (UINT64_C(1) << 58)
#define PME_FILE (UINT64_C(1) << 61)
#define PME_SWAPPED (UINT64_C(1) << 62)
#define PME_PRESENT (UINT64_C(1) << 63)

/* PROCMAP_QUERY, Linux 6.11. */

struct pmu_procmap_query {
    uint64_t size;
    uint64_t query_flags;
    uint64_t query_addr;
    uint64_t vma_start;
    uint64_t vma_end;
    uint64_t vma_flags;
    uint64_t vma_page_size;
    uint64_t vma_offset;
    uint64_t inode;
    uint32_t dev_major;
    uint32_t dev_minor;
    uint32_t vma_name_size;
    uint32_t build_id_size;
    uint64_t vma_name_addr;
    uint64_t build_id_addr;
};
_Static_assert(sizeof(struct pmu_procmap_query) == 104, "struct procmap_query is 104 bytes");

#ifndef PROCMAP_QUERY
#define PROCMAP_QUERY _IOWR('f', 17, struct pmu_procmap_query)
#endif

#define PMU_QUERY_COVERING_OR_NEXT 0x10

/* userfaultfd, with asynchronous write protection since Linux 6.7 and access tracking since 7.3. */

struct pmu_uffdio_api {
    uint64_t api;
    uint64_t features;
    uint64_t ioctls;
};
_Static_assert(sizeof(struct pmu_uffdio_api) == 24, "struct uffdio_api is 24 bytes");

struct pmu_uffdio_range {
    uint64_t start;
    uint64_t len;
};

struct pmu_uffdio_register {
    struct pmu_uffdio_range range;
    uint64_t mode;
    uint64_t ioctls;
};
_Static_assert(sizeof(struct pmu_uffdio_register) == 32, "struct uffdio_register is 32 bytes");

struct pmu_uffdio_writeprotect {
    struct pmu_uffdio_range range;
    uint64_t mode;
};
_Static_assert(sizeof(struct pmu_uffdio_writeprotect) == 24, "struct uffdio_writeprotect is 24 bytes");

#define PMU_UFFD_API UINT64_C(0xAA)
#define PMU_UFFDIO_API _IOWR(0xAA, 0x3F, struct pmu_uffdio_api)
#define PMU_UFFDIO_REGISTER _IOWR(0xAA, 0x00, struct pmu_uffdio_register)
#define PMU_UFFDIO_UNREGISTER _IOR(0xAA, 0x01, struct pmu_uffdio_range)
#define PMU_UFFDIO_WRITEPROTECT _IOWR(0xAA, 0x06, struct pmu_uffdio_writeprotect)
#define PMU_UFFDIO_RWPROTECT _IOWR(0xAA, 0x09, struct pmu_uffdio_writeprotect)

#define PMU_UFFD_USER_MODE_ONLY 1
#define PMU_UFFD_FEATURE_WP_HUGETLBFS_SHMEM (UINT64_C(1) << 12)
#define PMU_UFFD_FEATURE_WP_UNPOPULATED (UINT64_C(1) << 13)
#define PMU_UFFD_FEATURE_WP_ASYNC (UINT64_C(1) << 15)
#define PMU_UFFD_FEATURE_RWP (UINT64_C(1) << 17)
#define PMU_UFFD_FEATURE_RWP_ASYNC (UINT64_C(1) << 18)
#define PMU_UFFDIO_REGISTER_MODE_WP (UINT64_C(1) << 1)
#define PMU_UFFDIO_REGISTER_MODE_RWP (UINT64_C(1) << 3)

#endif
