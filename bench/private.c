// SPDX-License-Identifier: GPL-2.0
/*
 * Private memory side by side: the peer, KVM_MEM_PRIVATE on its stores, and
 * ordinary slots, in turn, in one boot.
 *
 *   private [quick]
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store.h"

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED	24
#endif

#define STANDARD	SZ_256M
#define PAGE		"page"		/* instructions per 4 KiB */
#define CALL		"conversion"	/* instructions for there and back */

static bool quick;

static __u64 size_of(const struct store *store, __u64 size)
{
	return size < store->min_size ? store->min_size : size;
}

static double per_page(__s64 nr, __u64 size)
{
	return (double)nr / (size / SZ_4K);
}

/* --- the life of memory: start, first touch, touch again; prefault --- */

/* Touches @len bytes, the last ones, so that large memory doesn't take hours. */
static void life(const struct store *store, __u64 size, __u64 len, const char *suffix)
{
	__u64 t0, t1, t2, t3, faults;
	struct vm vm;
	struct mem mem;

	vm_create(&vm, 1);
	mem_create(&mem, store, &vm, size, 1, 1);
	faults = vcpu_stat(&vm.vcpus[0], "pf_taken");
	t0 = begin();
	mem_to_private(&mem, 0, size);
	t1 = ticks();
	mem_touch(&mem, size - len, len);
	t2 = ticks();
	faults = vcpu_stat(&vm.vcpus[0], "pf_taken") - faults;
	t3 = begin();
	mem_touch(&mem, size - len, len);
	sample(text("again%s", suffix), store->name, PAGE, per_page(ticks() - t3, len));
	sample(text("start%s", suffix), store->name, PAGE, per_page(t1 - t0, size));
	sample(text("touch%s", suffix), store->name, PAGE, per_page(t2 - t1, len));
	sample(text("start+touch%s", suffix), store->name, PAGE,
	       per_page(t1 - t0, size) + per_page(t2 - t1, len));
	sample(text("faults%s", suffix), store->name, "fault/GiB", per_page(faults, len) * (SZ_1G / SZ_4K));
	mem_destroy(&mem);
	vm_destroy(&vm);
}

static void prefault(const struct store *store, __u64 size)
{
	struct mem mem;
	struct vm vm;
	__u64 start;

	vm_create(&vm, 1);
	mem_create(&mem, store, &vm, size, 1, 1);
	mem_to_private(&mem, 0, size);
	start = begin();
	vcpu_prefault(&vm.vcpus[0], MEM_GPA, size);
	sample("prefault", store->name, PAGE, per_page(ticks() - start, size));
	mem_destroy(&mem);
	vm_destroy(&vm);
}

/* --- conversions --- */

/* Every second page of the range, and of the 2 MiB before and after it, is shared. */
static void checkerboard(struct mem *mem, __u64 offset, __u64 len)
{
	__u64 end = offset + len + SZ_2M;

	mem_to_private(mem, offset - SZ_2M, end - offset + SZ_2M);
	for (offset -= SZ_2M; offset < end; offset += 2 * SZ_4K)
		mem_to_shared(mem, offset + SZ_4K, SZ_4K);
}

/*
 * @len bytes at @offset to shared and back, and touched then. Before each turn
 * the guest has everything mapped.
 */
static void convert(struct mem *mem, __u64 offset, __u64 len, bool mixed, int turns,
		    const char *name)
{
	__u64 t0, t1, t2, t3;

	for (int i = 0; i < turns; i++) {
		if (mixed && (i == 0 || len > SZ_4K))
			checkerboard(mem, offset, len);
		mem_touch(mem, offset, len);
		t0 = begin();
		mem_to_shared(mem, offset, len);
		t1 = ticks();
		mem_to_private(mem, offset, len);
		t2 = ticks();
		mem_touch(mem, offset, len);
		t3 = ticks();
		sample(name, mem->store->name, CALL, t2 - t0);
		sample(text("%s+touch", name), mem->store->name, CALL, t3 - t0);
		sample(text("%s.to-shared", name), mem->store->name, CALL, t1 - t0);
		sample(text("%s.to-private", name), mem->store->name, CALL, t2 - t1);
	}
}

static void no_convert(const struct store *store, const char *name)
{
	no_sample(name, store->name, CALL);
	no_sample(text("%s+touch", name), store->name, CALL);
	no_sample(text("%s.to-shared", name), store->name, CALL);
	no_sample(text("%s.to-private", name), store->name, CALL);
}

/* Pages that still are in one piece with their neighbours, where there are huge pages. */
static void convert_first(struct mem *mem, __u64 offset, __u64 len, int turns,
			  const char *name)
{
	for (int i = 0; i < turns; i++)
		convert(mem, offset + i * SZ_2M, len, false, 1, name);
}

static void conversions(const struct store *store, __u64 size)
{
	static const struct {
		__u64 len;
		int turns;
		bool not_quick;
	} ranges[] = {
		{ SZ_4K, 32 }, { SZ_64K, 16 }, { SZ_2M, 4 }, { SZ_64M, 1, true },
	};
	struct mem mem;
	struct vm vm;

	if (store->kind == SHARED)
		return;

	size = size_of(store, size);
	vm_create(&vm, 1);
	mem_create(&mem, store, &vm, size, 1, 1);
	mem_to_private(&mem, 0, size);
	mem_touch(&mem, 0, size);
	for (size_t i = 0; i < ARRAY_SIZE(ranges); i++) {
		__u64 len = ranges[i].len, offset = SZ_64M;
		const char *all = text("convert-%s", size_text(len));
		const char *first = text("first-%s", size_text(len));
		const char *mixed = text("mixed-%s", size_text(len));

		if (ranges[i].not_quick && quick)
			continue;
		if (len < store->granule) {
			no_convert(store, all);
			if (len < SZ_2M)
				no_convert(store, first);
			no_convert(store, mixed);
			continue;
		}
		if (len < SZ_2M) {
			/* 4K and 64K each in a row of huge pages nobody has split yet. */
			convert_first(&mem, offset + i * 8 * SZ_2M, len, 8, first);
			convert(&mem, offset + i * 8 * SZ_2M, len, false, ranges[i].turns, all);
		} else {
			convert(&mem, 2 * SZ_64M, len, false, ranges[i].turns, all);
		}
		/* What is smaller than its granule can't be mixed inside. */
		if (store->granule == SZ_4K)
			convert(&mem, 2 * SZ_64M, len, true, ranges[i].turns, mixed);
		else
			no_convert(store, mixed);
	}
	mem_destroy(&mem);
	vm_destroy(&vm);
}

/* Not touched afterwards: it takes long enough. */
static void convert_1g(const struct store *store)
{
	struct mem mem;
	struct vm vm;
	__u64 start;

	if (store->kind == SHARED)
		return;
	vm_create(&vm, 1);
	mem_create(&mem, store, &vm, SZ_1G, 1, 1);
	mem_to_private(&mem, 0, SZ_1G);
	mem_touch(&mem, 0, SZ_1G);
	start = begin();
	mem_to_shared(&mem, 0, SZ_1G);
	mem_to_private(&mem, 0, SZ_1G);
	sample("convert-1G", store->name, CALL, ticks() - start);
	mem_destroy(&mem);
	vm_destroy(&vm);
}

/* --- many slots, many files --- */

static void many(const struct store *store, int nr_files, int nr_slots, const char *name)
{
	__u64 size = STANDARD, start, slot_size;
	struct mem mem;
	struct vm vm;

	/* Slots of a whole number of 64 KiB. */
	slot_size = size / nr_slots / SZ_64K * SZ_64K;
	size = slot_size * nr_slots;
	vm_create(&vm, 1);
	mem_create(&mem, store, &vm, size, nr_files, nr_slots);
	start = begin();
	mem_to_private(&mem, 0, size);
	sample(text("%s-start", name), store->name, PAGE, per_page(ticks() - start, size));
	start = begin();
	mem_touch(&mem, size - size / 8, size / 8);
	sample(text("%s-touch", name), store->name, PAGE, per_page(ticks() - start, size / 8));
	for (int i = 0; i < 8; i++) {
		/* As everywhere, the guest has it mapped before it is converted. */
		mem_touch(&mem, size / 2, SZ_4K);
		start = begin();
		mem_to_shared(&mem, size / 2, SZ_4K);
		mem_to_private(&mem, size / 2, SZ_4K);
		sample(text("%s-convert-4K", name), store->name, CALL, ticks() - start);
	}
	mem_destroy(&mem);
	vm_destroy(&vm);
}

/* --- memory for bookkeeping --- */

#define CGROUP	"/sys/fs/cgroup/bench"

#define OTHER	CGROUP "-other"

struct usage {
	__s64 slab;
	__s64 tables;
};

/*
 * The kernel counts objects in batches of a CPU and a cgroup: an allocation for
 * another cgroup makes it settle them. memory.stat leaves out what is not worth
 * the while; cpu.stat doesn't, and adds up for all controllers.
 */
static void settle(void)
{
	int fds[2];

	write_text(OTHER "/cgroup.procs", "0");
	if (pipe(fds))
		die("pipe");
	close(fds[0]);
	close(fds[1]);
	write_text(CGROUP "/cgroup.procs", "0");
	read_field(CGROUP "/cpu.stat", "usage_usec");
}

static struct usage usage(void)
{
	static const char stat[] = CGROUP "/memory.stat";

	settle();
	return (struct usage){
		.slab = read_field(stat, "slab"),
		.tables = read_field(stat, "sec_pagetables"),
	};
}

/*
 * What the page cache needs for its own tree is not bookkeeping of private
 * memory: the same pages in an ordinary memfd tell how much that is.
 */
static __s64 plain_tree(const struct store *store, __u64 size)
{
	__s64 before, after;
	int fd;

	write_text("/sys/kernel/mm/transparent_hugepage/shmem_enabled",
		   store->huge ? "force" : "never");
	fd = memfd_create("plain", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, size))
		die("memfd_create, ftruncate");
	before = usage().slab;
	if (posix_fallocate(fd, 0, size))
		die("posix_fallocate");
	after = usage().slab;
	close(fd);
	return after - before;
}

static void bookkeeping(const struct store *store, __u64 size)
{
	struct usage before, started, touched;
	__s64 tree = 0;
	struct mem mem;
	struct vm vm;

	if ((mkdir(CGROUP, 0755) || mkdir(OTHER, 0755)) && errno != EEXIST)
		die("%s", CGROUP);
	write_text(CGROUP "/cgroup.procs", "0");
	if (!store->hugetlb && store->kind != SHARED)
		tree = plain_tree(store, size);
	vm_create(&vm, 1);
	mem_create(&mem, store, &vm, size, 1, 1);
	before = usage();
	mem_to_private(&mem, 0, size);
	started = usage();
	mem_touch(&mem, 0, size);
	touched = usage();
	if (store->kind != SHARED) {
		/* The peer's page cache has no page before the touch. */
		sample("memory-start", store->name, "byte/page",
		       per_page(started.slab - before.slab -
				(store->kind == PRIVATE_MEMFD ? tree : 0), size));
		sample("memory-touched", store->name, "byte/page",
		       per_page(touched.slab - before.slab - tree, size));
	}
	sample("memory-tree", store->name, "byte/page", per_page(tree, size));
	sample("memory-tables", store->name, "byte/page",
	       per_page(touched.tables - before.tables, size));
	mem_destroy(&mem);
	vm_destroy(&vm);
	write_text("/sys/fs/cgroup/cgroup.procs", "0");
}

/* --- no huge page to be had --- */

#define POOL	"/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
#define LEAVE	(SZ_256M * 3)	/* free memory to be fragmented */
#define RESERVE	(SZ_64M * 2)	/* and to be left alone */

/*
 * Put most memory away into the hugetlb pool, fill the rest with pages that
 * can't be moved, free every second, and let the pool have what is still in one
 * piece elsewhere.
 */
static __u8 *fragment(__u64 *size)
{
	__u64 free_kb = read_field("/proc/meminfo", "MemFree");
	__u8 *mem;

	write_text("/proc/sys/vm/compact_unevictable_allowed", "0");
	write_text(POOL, text("%llu", (free_kb * 1024 - LEAVE) / SZ_2M));
	*size = read_field("/proc/meminfo", "MemFree") * 1024 / SZ_2M * SZ_2M - RESERVE;
	mem = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED || madvise(mem, *size, MADV_NOHUGEPAGE) || mlock(mem, *size))
		die("mlock of %llu", *size);
	for (__u64 i = 0; i < *size; i += 2 * SZ_4K)
		if (madvise(mem + i, SZ_4K, MADV_DONTNEED_LOCKED))
			die("madvise");
	write_text(POOL, text("%llu", free_kb * 1024 / SZ_2M));
	return mem;
}

/* How often the store wanted 2 MiB and got less. */
static __u64 fallbacks(void)
{
	static const char path[] =
		"/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/stats/shmem_fallback";
	unsigned long long nr;
	FILE *f = fopen(path, "re");

	if (!f || fscanf(f, "%llu", &nr) != 1)
		die("%s", path);
	fclose(f);
	return nr;
}

static void fragmentation(void)
{
	__u64 size, before;
	__u8 *mem = fragment(&size);

	/* What there is in one piece differs from time to time. */
	for (size_t i = 0; i < 4 * 3; i++) {
		const struct store *store = &stores[i % 3];

		before = fallbacks();
		life(store, SZ_64M, SZ_64M, "-fragmented");
		sample("fallbacks-fragmented", store->name, "fallback/GiB",
		       (double)(fallbacks() - before) * (SZ_1G / SZ_64M));
	}
	munmap(mem, size);
	write_text(POOL, "0");
	write_text("/proc/sys/vm/compact_unevictable_allowed", "1");
}

int main(int argc, char *argv[])
{
	static const __u64 sizes[] = { SZ_64M, SZ_256M, SZ_1G, SZ_4G };
	static const int counts[] = { 1, 8, 64, 509 };
	bool there[16];
	size_t i;

	quick = argc > 1 && !strcmp(argv[1], "quick");
	check_ticks();
	for (i = 0; i < nr_stores; i++) {
		there[i] = store_there(&stores[i]);
		if (!there[i])
			no_sample("start+touch", stores[i].name, PAGE);
	}

#define for_each_store(i) for (i = 0; i < nr_stores; i++) if (there[i])

	for (int turn = 0; turn < 2; turn++) {
		for_each_store(i)
			life(&stores[i], size_of(&stores[i], STANDARD),
			     size_of(&stores[i], STANDARD), "");
		print_figures();
	}
	for (int turn = 0; turn < 2; turn++)
		for_each_store(i)
			prefault(&stores[i], size_of(&stores[i], STANDARD));
	for_each_store(i)
		conversions(&stores[i], STANDARD);
	print_figures();
	for_each_store(i)
		bookkeeping(&stores[i], size_of(&stores[i], SZ_64M));
	if (!quick) {
		for_each_store(i)
			convert_1g(&stores[i]);
		print_figures();
		/* Twice, as everything that could be disturbed. */
		for (size_t n = 0; n < 2 * ARRAY_SIZE(sizes); n++)
			for_each_store(i)
				if (sizes[n / 2] >= stores[i].min_size)
					life(&stores[i], sizes[n / 2], size_of(&stores[i], SZ_64M),
					     text("@%s", size_text(sizes[n / 2])));
		print_figures();
		for (size_t n = 0; n < ARRAY_SIZE(counts); n++)
			for (i = 0; i < 3; i++) {
				many(&stores[i], 1, counts[n], text("slots@%d", counts[n]));
				many(&stores[i], counts[n], counts[n],
				     text("files@%d", counts[n]));
			}
		print_figures();
		fragmentation();
	}
	print_figures();
	return 0;
}
