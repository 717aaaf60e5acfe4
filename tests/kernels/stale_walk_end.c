// SPDX-License-Identifier: GPL-2.0
/*
 * PAGEMAP_SCAN: walk_end is stale once a walk has found more than 512 regions.
 *
 * do_pagemap_scan() in fs/proc/task_mmu.c collects the regions in a bounce buffer of 512
 * entries. When the buffer is full, it is copied out, arg.walk_end is set to where the walk
 * stopped, and the walk goes on from there. The last pass, which comes to the end of the range,
 * does not set arg.walk_end, and the 'if (!p.arg.walk_end)' after the loop does not either,
 * because the earlier pass left it non-zero. So walk_end is the position of the last flush,
 * although the whole range was walked and every region was returned. A caller that goes on
 * from walk_end walks the rest again and gets duplicates.
 *
 * The test populates every second page, so that each page is a region of its own, and walks the
 * range once, with room for all regions: with 512 regions (control) and with 513.
 *
 *	gcc -O2 -Wall -Wextra -o stale_walk_end stale_walk_end.c && ./stale_walk_end
 *
 * Exit status, as in kselftest: 0 pass, 1 fail, 4 skip (no PAGEMAP_SCAN).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* As in linux/fs.h since 6.7; own names, so that old headers and new ones do. */
struct region {
	uint64_t start, end, categories;
};

struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

#define SCAN _IOWR('f', 16, struct scan_arg)
#define IS_PRESENT (1 << 3)

#define PAGES 4096
#define VEC_LEN 1024

static struct region vec[VEC_LEN];

/* Walks PAGES pages with the first `regions` even ones populated: 0 pass, 1 fail, -1 no ioctl. */
static int walk(int fd, size_t page, int number, long regions)
{
	struct scan_arg arg = { .size = sizeof(arg),
				.category_mask = IS_PRESENT,
				.return_mask = IS_PRESENT };
	unsigned long walked;
	long found, i;
	char *mem;
	int bad;

	mem = mmap(NULL, PAGES * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED) {
		printf("Bail out! mmap: %s\n", strerror(errno));
		exit(1);
	}
	madvise(mem, PAGES * page, MADV_NOHUGEPAGE);
	for (i = 0; i < regions; i++)
		mem[2 * i * page] = 1;

	arg.start = (uintptr_t)mem;
	arg.end = arg.start + PAGES * page;
	arg.vec = (uintptr_t)vec;
	arg.vec_len = VEC_LEN;
	found = ioctl(fd, SCAN, &arg);
	if (found < 0 && errno == ENOTTY)
		return -1;
	walked = (arg.walk_end - arg.start) / page;

	/* Every region is there, so the walk is complete, whatever walk_end says. */
	bad = found != regions || vec[regions - 1].start != arg.start + 2 * (regions - 1) * page;
	if (bad) {
		printf("# %ld regions found, expected %ld\n", found, regions);
	} else if (arg.walk_end != arg.end) {
		printf("# %ld of %ld regions found, vec_len %d, yet walk_end = page %lu of %d\n",
		       found, regions, VEC_LEN, walked, PAGES);
		bad = 1;
	}
	printf("%s %d walk_end is the end of the range after %ld regions\n", bad ? "not ok" : "ok",
	       number, regions);
	munmap(mem, PAGES * page);
	return bad;
}

int main(void)
{
	size_t page = sysconf(_SC_PAGESIZE);
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	int control, test;

	printf("TAP version 13\n");
	if (fd < 0) {
		printf("Bail out! /proc/self/pagemap: %s\n", strerror(errno));
		return 1;
	}
	control = walk(fd, page, 1, 512);
	if (control < 0) {
		printf("1..0 # SKIP this kernel has no PAGEMAP_SCAN\n");
		return 4;
	}
	test = walk(fd, page, 2, 513);
	printf("1..2\n");
	close(fd);
	return control || test;
}
