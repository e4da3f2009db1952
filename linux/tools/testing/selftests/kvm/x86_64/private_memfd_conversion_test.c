// SPDX-License-Identifier: GPL-2.0
/*
 * Conversions of KVM_MEM_PRIVATE slots: at every alignment, seen from the guest
 * and from the host, and against running vCPUs.
 *
 * Each test keeps a model of the memory: which pages are private, and what
 * either half of each page holds.  The guest must see the half that the model
 * says, the host always sees the shared half, and lseek() and st_blocks tell
 * which pages are private.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <linux/kvm_para.h>

#include "private_memfd.h"

#define WINDOW_PAGES		nr_units(SZ_4M / PAGE_SIZE, 64, 2)
#define WINDOW_SIZE		(WINDOW_PAGES * UNIT)

/* A slot, or several that follow each other, and what they should hold. */
struct window {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct agent *agent;
	int fd;
	uint64_t gpa;
	uint64_t nr_pages;
	uint64_t nr_private;
	uint64_t counter;
	struct {
		void *hva;
		off_t offset;
		bool private;
		uint64_t private_value;
		uint64_t shared_value;
	} page[AGENT_MAX_PAGES];
};

static void window_init(struct window *w, uint64_t gpa, size_t file_size)
{
	memset(w, 0, sizeof(*w));
	w->vm = vm_create_private(1, agent_code, &w->vcpu);
	w->agent = agent_create(w->vcpu);
	w->fd = private_memfd(file_size);
	w->gpa = gpa;
}

/* The next slot of the window. */
static void window_add(struct window *w, uint64_t nr_pages, void *hva, off_t offset)
{
	uint64_t gpa = w->gpa + w->nr_pages * UNIT;
	uint64_t i;

	TEST_ASSERT(w->nr_pages + nr_pages <= AGENT_MAX_PAGES, "The window is too large");
	vm_add_private(w->vm, PRIVATE_SLOT + w->nr_pages, gpa, nr_pages * UNIT,
		       hva, w->fd, offset);
	virt_map_private(w->vm, gpa, nr_pages * UNIT);
	for (i = 0; i < nr_pages; i++) {
		w->page[w->nr_pages + i].hva = hva + i * UNIT;
		w->page[w->nr_pages + i].offset = offset + i * UNIT;
	}
	w->nr_pages += nr_pages;
}

static void window_free(struct window *w)
{
	kvm_vm_free(w->vm);
	close(w->fd);
}

static uint64_t new_value(struct window *w, uint64_t i)
{
	return ++w->counter << 16 | i;
}

/* The guest looks at pages, and writes something else to them if @write. */
static void walk(struct window *w, uint64_t first, uint64_t nr, bool write)
{
	uint64_t i;

	agent_order(w->agent, w->gpa + first * UNIT, nr, 0, AGENT_NOTHING);
	for (i = 0; i < nr; i++) {
		uint64_t *value = w->page[first + i].private ? &w->page[first + i].private_value :
							       &w->page[first + i].shared_value;

		w->agent->page[i].expect = *value;
		if (write) {
			*value = new_value(w, first + i);
			w->agent->page[i].write = *value;
		}
	}
	agent_run(w->vcpu, w->agent);
}

static void walk_all(struct window *w, bool write)
{
	walk(w, 0, w->nr_pages, write);
}

/* The host writes to the shared half, used at the moment or not. */
static void host_write(struct window *w, uint64_t first, uint64_t nr)
{
	uint64_t i, j;

	for (i = first; i < first + nr; i++) {
		w->page[i].shared_value = new_value(w, i);
		for (j = 0; j < NR_PROBES; j++)
			probe_write(w->page[i].hva, j, w->page[i].shared_value);
	}
}

/* The shared half holds what it should, and the file says what it should. */
static void check_host(struct window *w)
{
	uint64_t i, j;

	for (i = 0; i < w->nr_pages; i++) {
		for (j = 0; j < NR_PROBES; j++)
			TEST_ASSERT(probe_read(w->page[i].hva, j) == w->page[i].shared_value,
				    "Shared half of %s page %lu: %#lx for %#lx",
				    w->page[i].private ? "private" : "shared", i,
				    probe_read(w->page[i].hva, j), w->page[i].shared_value);
		TEST_ASSERT(memfd_is_private(w->fd, w->page[i].offset) == w->page[i].private,
			    "Page %lu should be %s", i, w->page[i].private ? "private" : "shared");
	}
}

static void check_nr_private(struct window *w)
{
	uint64_t nr = memfd_nr_private(w->fd);

	TEST_ASSERT(nr == w->nr_private, "%lu pages are allocated, %lu should be",
		    nr, w->nr_private);
}

/* All there is, from both sides. */
static void check_all(struct window *w)
{
	uint64_t mapped;

	walk_all(w, false);
	check_host(w);
	check_nr_private(w);

	mapped = nr_private_mapped(w->vm);
	TEST_ASSERT(mapped == w->nr_private, "%lu private pages are mapped, %lu should be",
		    mapped, w->nr_private);
}

static void convert_file(struct window *w, off_t offset, off_t len, bool private)
{
	uint64_t i;

	if (private)
		memfd_to_private(w->fd, offset, len);
	else
		memfd_to_shared(w->fd, offset, len);

	for (i = 0; i < w->nr_pages; i++) {
		if (w->page[i].offset < offset || w->page[i].offset >= offset + len ||
		    w->page[i].private == private)
			continue;
		w->page[i].private = private;
		w->page[i].private_value = 0;
		w->nr_private += private ? 1 : -1;
	}
}

/* Pages that follow each other in the file, too. */
static void convert(struct window *w, uint64_t first, uint64_t nr, bool private)
{
	convert_file(w, w->page[first].offset, nr * UNIT, private);
}

static void convert_all(struct window *w, bool private)
{
	convert(w, 0, w->nr_pages, private);
}

/* A page with its neighbours. */
static void walk_around(struct window *w, uint64_t i, bool write)
{
	uint64_t first = i ? i - 1 : 0;
	uint64_t end = min(i + 2, w->nr_pages);

	walk(w, first, end - first, write);
}

/*
 * Everything about alignment, with and without huge pages in the file.  Where
 * shmem_enabled is "advise" the file counts as advised: nobody else could.  It
 * is nothing to other stores.
 */
FIXTURE(alignment) {
	bool huge;
};

FIXTURE_VARIANT(alignment) {
	const char *shmem_enabled;
	bool huge;
};

FIXTURE_VARIANT_ADD(alignment, never) {
	.shmem_enabled = "never",
};

FIXTURE_VARIANT_ADD(alignment, advise) {
	.shmem_enabled = "advise",
	.huge = true,
};

FIXTURE_VARIANT_ADD(alignment, always) {
	.shmem_enabled = "always",
	.huge = true,
};

FIXTURE_VARIANT_ADD(alignment, force) {
	.shmem_enabled = "force",
	.huge = true,
};

FIXTURE_SETUP(alignment)
{
	self->huge = variant->huge || backing_is_hugetlb();
	if (backing_is_hugetlb() && variant->huge)
		SKIP(return, "shmem_enabled says nothing about hugetlbfs");
	if (!thp_available())
		SKIP(return, "There is no " THP_DIR "shmem_enabled");
	thp_set(variant->shmem_enabled);
}

FIXTURE_TEARDOWN(alignment)
{
	thp_set_backing();
}

static struct window window;

static void assert_pages(struct window *w, const char *stat, uint64_t expect)
{
	uint64_t nr = get_vm_stat(w->vm, stat);

	TEST_ASSERT(nr == expect, "%s: %lu mappings, there should be %lu", stat, nr, expect);
}

/*
 * All of an aligned window is mapped that is one half, or the other, throughout.
 * The shared half is of 2 MiB pages, those of which that have a probe in them.
 */
static void assert_mapped(struct window *w, bool private, bool huge)
{
	uint64_t nr_2m = w->nr_pages;

	if (!backing_is_hugetlb())
		nr_2m = w->nr_pages * UNIT / SZ_2M;

	if (!private && backing_is_1g())
		nr_2m *= NR_PROBES;
	assert_pages(w, "pages_2m", huge && !(private && backing_is_1g()) ? nr_2m : 0);
	assert_pages(w, "pages_1g", private && backing_is_1g() ? w->nr_pages : 0);
}

/* Each page of a window to the other half and back, and nothing but it. */
TEST_F_TIMEOUT(alignment, every_page, TIMEOUT)
{
	uint64_t stride = max(1ul, 100 / max(1ul, scaled(100)));
	struct window *w = &window;
	uint64_t i;

	window_init(w, PRIVATE_GPA, WINDOW_SIZE);
	window_add(w, WINDOW_PAGES, map_shared_half(WINDOW_SIZE), 0);

	/* Out of huge pages of the shared half. */
	host_write(w, 0, w->nr_pages);
	walk_all(w, true);
	assert_mapped(w, false, true);
	for (i = 0; i < w->nr_pages; i += stride) {
		convert(w, i, 1, true);
		walk_around(w, i, true);
		check_nr_private(w);
		if (i % 2)
			host_write(w, i, 1);
		convert(w, i, 1, false);
		walk_around(w, i, false);
		if (i % 128 < stride)
			check_all(w);
	}
	check_all(w);

	/* Out of those of the private half. */
	convert_all(w, true);
	walk_all(w, true);
	assert_mapped(w, true, self->huge);
	for (i = 0; i < w->nr_pages; i += stride) {
		convert(w, i, 1, false);
		walk_around(w, i, true);
		check_nr_private(w);
		if (i % 2)
			host_write(w, i, 1);
		convert(w, i, 1, true);
		walk_around(w, i, true);
		if (i % 128 < stride)
			check_all(w);
	}
	check_all(w);
	window_free(w);
}

/* Ranges that start and end at, before and behind boundaries of huge pages. */
TEST_F_TIMEOUT(alignment, ranges, TIMEOUT)
{
	static const uint64_t firsts[] = { 0, 1, 17, 511, 512, 513 };
	static const uint64_t sizes[] = { 1, 2, 17, 64, 511, 512, 513, 1024 };
	struct window *w = &window;
	uint64_t first, nr;
	int i, j;

	window_init(w, PRIVATE_GPA, WINDOW_SIZE);
	window_add(w, WINDOW_PAGES, map_shared_half(WINDOW_SIZE), 0);
	host_write(w, 0, w->nr_pages);

	for (i = 0; i < ARRAY_SIZE(firsts); i++) {
		for (j = 0; j < ARRAY_SIZE(sizes); j++) {
			first = firsts[i];
			nr = sizes[j];
			if (first + nr > w->nr_pages)
				continue;

			/* All is mapped, and as large as can be, each time. */
			walk_all(w, true);
			convert(w, first, nr, true);
			check_all(w);
			convert_all(w, true);
			convert_all(w, false);
			convert_all(w, true);
			walk_all(w, true);
			convert(w, first, nr, false);
			check_all(w);
			convert_all(w, false);
		}
	}
	check_all(w);
	window_free(w);
}

/* Every other run of 1, 2, 4... pages, then the other ones. */
TEST_F_TIMEOUT(alignment, checkerboard, TIMEOUT)
{
	struct window *w = &window;
	uint64_t i, nr;

	window_init(w, PRIVATE_GPA, WINDOW_SIZE);
	window_add(w, WINDOW_PAGES, map_shared_half(WINDOW_SIZE), 0);
	host_write(w, 0, w->nr_pages);

	for (nr = 1; nr < w->nr_pages; nr = nr == 4 ? 7 : nr == 7 ? 8 : nr * 2) {
		walk_all(w, true);
		for (i = 0; i + nr <= w->nr_pages; i += 2 * nr)
			convert(w, i, nr, true);
		check_all(w);
		walk_all(w, true);
		host_write(w, 0, w->nr_pages);

		/* Invert. */
		for (i = 0; i + nr <= w->nr_pages; i += nr)
			convert(w, i, nr, !w->page[i].private);
		check_all(w);
		walk_all(w, true);

		/* The same out of huge pages of the file. */
		convert_all(w, false);
		convert_all(w, true);
		walk_all(w, true);
		for (i = 0; i + nr <= w->nr_pages; i += 2 * nr)
			convert(w, i, nr, false);
		check_all(w);
		convert_all(w, false);
	}
	window_free(w);
}

FIXTURE(conversion) {
};

FIXTURE_SETUP(conversion)
{
}

FIXTURE_TEARDOWN(conversion)
{
}

/* Private memory is zero at first, and keeps its content after that. */
TEST_F_TIMEOUT(conversion, zero_and_keep, TIMEOUT)
{
	struct window *w = &window;
	uint64_t first = WINDOW_PAGES / 10;
	uint64_t nr = max(1ul, WINDOW_PAGES * 7 / 10);
	uint64_t faults, mapped, i;

	window_init(w, PRIVATE_GPA, WINDOW_SIZE);
	window_add(w, WINDOW_PAGES, map_shared_half(WINDOW_SIZE), 0);
	host_write(w, 0, w->nr_pages);
	check_all(w);

	/* Pages that were private before and full, too. */
	for (i = 0; i < 3; i++) {
		convert_all(w, true);
		walk_all(w, true);
		check_all(w);
		convert_all(w, false);
		check_all(w);
	}

	/* Some pages are private already: these are left alone, and mapped. */
	convert(w, first, nr, true);
	walk_all(w, true);
	faults = get_vm_stat(w->vm, "private_faults");
	mapped = get_vm_stat(w->vm, "private_pages");
	TEST_ASSERT(faults, "Nothing was private");

	convert(w, first, nr, true);
	convert(w, first + nr / 3, 1, true);
	walk_all(w, true);
	TEST_ASSERT_EQ(get_vm_stat(w->vm, "private_faults"), faults);
	TEST_ASSERT_EQ(get_vm_stat(w->vm, "private_pages"), mapped);

	convert_all(w, true);
	check_all(w);
	window_free(w);
}

static void zero_code(uint64_t nr_words, uint64_t step)
{
	uint64_t *p = (void *)PRIVATE_GPA;
	uint64_t i, value;

	for (;;) {
		for (i = 0; i < nr_words; i += step) {
			value = READ_ONCE(p[i]);
			__GUEST_ASSERT(!value, "Word %lu: %#lx", i, value);
			WRITE_ONCE(p[i], ~i);
		}
		GUEST_SYNC(0);
	}
}

/*
 * Not only the words that the other tests look at.  Of 1 GiB, these are words
 * in each of its pages, never the same twice.
 */
TEST_F_TIMEOUT(conversion, every_word, TIMEOUT)
{
	const uint64_t size = nr_units(16, 1, 1) * UNIT, nr_words = size / sizeof(uint64_t);
	const uint64_t step = nr_units(1, 1, PAGE_SIZE / sizeof(uint64_t) - 1);
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = vm_create_private(1, zero_code, &vcpu);
	uint64_t *hva = map_shared_half(size);
	int fd = private_memfd(size);
	uint64_t i;
	int round;

	vcpu_args_set(vcpu, 2, nr_words, step);
	vm_add_private(vm, PRIVATE_SLOT, PRIVATE_GPA, size, hva, fd, 0);
	virt_map_private(vm, PRIVATE_GPA, size);
	for (i = 0; i < nr_words; i += step)
		hva[i] = 0xa5a5a5a5a5a5a5a5;

	for (round = 0; round < 4; round++) {
		struct ucall uc;

		memfd_to_private(fd, 0, size);
		vcpu_run(vcpu);
		if (get_ucall(vcpu, &uc) == UCALL_ABORT)
			REPORT_GUEST_ASSERT(uc);
		TEST_ASSERT_EQ(uc.cmd, UCALL_SYNC);
		for (i = 0; i < nr_words; i += step)
			TEST_ASSERT(hva[i] == 0xa5a5a5a5a5a5a5a5,
				    "Word %lu of the shared half: %#lx", i, hva[i]);
		memfd_to_shared(fd, 0, size);
	}
	kvm_vm_free(vm);
}

/*
 * gpa, file offset and hva against each other: each half may use huge mappings
 * exactly if it is aligned like the gpa, and no mapping is ever shifted.
 */
TEST_F_TIMEOUT(conversion, misaligned, TIMEOUT)
{
	static const unsigned int shifts[] = { 0, 1, 17, 511 };
	struct window *w = &window;
	uint64_t nr_2m, i;
	int gpa, offset, hva;

	if (backing_is_hugetlb())
		SKIP(return, "A unit has one alignment only");

	for (gpa = 0; gpa < ARRAY_SIZE(shifts); gpa += 2) {
		for (offset = 0; offset < ARRAY_SIZE(shifts); offset++) {
			for (hva = 0; hva < ARRAY_SIZE(shifts); hva++) {
				window_init(w, PRIVATE_GPA + shifts[gpa] * PAGE_SIZE,
					    WINDOW_SIZE + SZ_2M);
				window_add(w, WINDOW_PAGES,
					   map_half(WINDOW_SIZE, shifts[hva],
						    PROT_READ | PROT_WRITE),
					   shifts[offset] * PAGE_SIZE);
				/* Whole frames of 2 MiB that are inside the slot. */
				nr_2m = shifts[gpa] ? 1 : 2;

				host_write(w, 0, w->nr_pages);
				walk_all(w, true);
				assert_pages(w, "pages_2m", gpa == hva ? nr_2m : 0);

				/* The whole file, so that its folios are huge. */
				memfd_to_private(w->fd, 0, WINDOW_SIZE + SZ_2M);
				convert_all(w, true);
				walk_all(w, true);
				assert_pages(w, "pages_2m",
					     gpa == offset && backing_is_huge() ? nr_2m : 0);
				check_host(w);

				for (i = 1; i < w->nr_pages; i = i * 2 + 1) {
					convert(w, i, 1, false);
					walk_around(w, i, true);
					convert(w, w->nr_pages - i, 1, false);
					walk_around(w, w->nr_pages - i, true);
				}
				walk_all(w, true);
				check_host(w);

				/* Outside of the slot nothing has changed. */
				TEST_ASSERT(memfd_nr_private(w->fd) ==
					    w->nr_private + PAGES_PER_2M,
					    "Pages outside of the slot were converted");
				window_free(w);
			}
		}
	}
}

/* So many frames of 2 MiB of an aligned window, if each is of one half. */
#define WINDOW_FRAMES	(WINDOW_SIZE / SZ_2M)

/*
 * Private pages in a frame of the shared half, which go one after the other: its
 * huge mapping is back with the last of them, and not before.
 */
TEST_F_TIMEOUT(conversion, shared_half_regains, TIMEOUT)
{
	static const uint64_t pages[] = { 17, 0, 511, 256 };
	uint64_t whole = backing_is_1g() ? WINDOW_PAGES * NR_PROBES : WINDOW_FRAMES;
	/* With larger units the frame is one page, and comes back with it. */
	int nr = nr_units(ARRAY_SIZE(pages), 1, 1), backwards, i;
	struct window *w = &window;

	window_init(w, PRIVATE_GPA, WINDOW_SIZE);
	window_add(w, WINDOW_PAGES, map_shared_half(WINDOW_SIZE), 0);
	host_write(w, 0, w->nr_pages);
	walk_all(w, true);
	assert_mapped(w, false, true);

	for (backwards = 0; backwards < 2; backwards++) {
		for (i = 0; i < nr; i++) {
			convert(w, pages[i] % w->nr_pages, 1, true);
			walk_all(w, true);
			if (!backing_is_hugetlb())
				assert_pages(w, "pages_2m", whole - 1);
		}
		for (i = 0; i < nr; i++) {
			int last = backwards ? nr - 1 - i : i;

			convert(w, pages[last] % w->nr_pages, 1, false);
			walk_all(w, true);
			if (!backing_is_hugetlb())
				assert_pages(w, "pages_2m", i == nr - 1 ? whole : whole - 1);
		}
		assert_mapped(w, false, true);
		check_all(w);
	}

	/* The guest doesn't need to look in between, nor anybody at more than one page. */
	for (i = 0; i < nr; i++)
		convert(w, pages[i] % w->nr_pages, 1, true);
	walk_all(w, true);
	for (i = 0; i < nr; i++)
		convert(w, pages[i] % w->nr_pages, 1, false);
	walk(w, pages[0] % w->nr_pages, 1, true);
	assert_mapped(w, false, true);
	check_all(w);
	window_free(w);
}

/*
 * A hole in a huge page of the private half costs its huge mapping, not that of
 * others, nor any content.  Filled again, it isn't what it was; with the whole
 * frame made anew it is.
 */
TEST_F_TIMEOUT(conversion, private_half_anew, TIMEOUT)
{
	struct window *w = &window;
	uint64_t i;

	if (backing_is_hugetlb())
		SKIP(return, "A unit is one huge page, and has no holes");

	window_init(w, PRIVATE_GPA, WINDOW_SIZE);
	window_add(w, WINDOW_PAGES, map_shared_half(WINDOW_SIZE), 0);
	host_write(w, 0, w->nr_pages);

	for (i = 0; i < 3; i++) {
		convert_all(w, true);
		walk_all(w, true);
		assert_mapped(w, true, backing_is_huge());

		/* At the start, in the middle, at the end. */
		convert(w, i * 511 / 2, 1, false);
		walk_all(w, true);
		assert_pages(w, "pages_2m", backing_is_huge() ? WINDOW_FRAMES - 1 : 0);
		check_all(w);
		convert(w, i * 511 / 2, 1, true);
		walk_all(w, true);
		assert_pages(w, "pages_2m", backing_is_huge() ? WINDOW_FRAMES - 1 : 0);
		check_all(w);

		/* In one go, or piece by piece. */
		if (i == 1) {
			convert(w, 0, PAGES_PER_2M, false);
		} else {
			convert(w, 0, 1, false);
			convert(w, 100, 412, false);
			convert(w, 1, 99, false);
		}
		/* Up to the last piece it is no frame. */
		convert(w, 300, 1, true);
		convert(w, 0, PAGES_PER_2M, true);
		walk_all(w, true);
		assert_pages(w, "pages_2m", backing_is_huge() ? WINDOW_FRAMES - 1 : 0);
		convert(w, 0, PAGES_PER_2M, false);
		convert(w, 0, PAGES_PER_2M, true);
		walk_all(w, true);
		assert_mapped(w, true, backing_is_huge());
		check_all(w);
		convert_all(w, false);
	}
	window_free(w);
}

/* What the kernel counts of huge pages that it could not get. */
#define FALLBACKS	THP_DIR "hugepages-2048kB/stats/shmem_fallback"

static uint64_t read_fallbacks(void)
{
	uint64_t value = 0;
	FILE *f = fopen(FALLBACKS, "r");

	TEST_ASSERT(f && fscanf(f, "%lu", &value) == 1, "Can't read " FALLBACKS);
	fclose(f);
	return value;
}

static uint64_t read_meminfo(const char *format)
{
	FILE *f = fopen("/proc/meminfo", "r");
	uint64_t kb = 0;
	char line[128];

	TEST_ASSERT(f, "Can't read /proc/meminfo: %s", strerror(errno));
	while (fgets(line, sizeof(line), f))
		sscanf(line, format, &kb);
	fclose(f);
	return kb * SZ_1K;
}

/*
 * Take all memory there is, in small pages that stay where they are, and give
 * every other page of it back: there are pages now, but no huge ones.
 */
static int fragment_memory(struct kvm_vm *vm, uint64_t size)
{
	uint64_t at;
	int fd;

	thp_set("never");
	fd = private_memfd(size);
	/* Somebody's memory isn't moved. */
	vm_add_private(vm, PRIVATE_SLOT - 1, 4 * PRIVATE_GPA, size, map_no_shared_half(size),
		       fd, 0);
	TEST_ASSERT(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, size) == -1 && errno == ENOMEM,
		    "All memory, and more, could be had");
	for (at = 0; at < size; at += 2 * PAGE_SIZE)
		memfd_to_shared(fd, at, PAGE_SIZE);
	thp_set_backing();
	return fd;
}

/*
 * What the kernel keeps back from everybody who takes all is still in one piece:
 * take it by huge pages, until there are none for quite some time.
 */
static int take_huge_pages(uint64_t size)
{
	int fd = private_memfd(size), failed = 0;
	uint64_t at, before;

	for (at = 0; failed < 8; at += SZ_2M) {
		TEST_ASSERT(at < size, "There is no end of huge pages");
		before = read_fallbacks();
		memfd_to_private(fd, at, SZ_2M);
		failed = read_fallbacks() == before ? 0 : failed + 1;
	}
	return fd;
}

/* No huge page to be had: small ones are as good, and it is counted. */
TEST_F_TIMEOUT(conversion, fallback, TIMEOUT)
{
	const uint64_t size = align_up(read_meminfo("MemTotal: %lu"), SZ_2M);
	struct window *w = &window;
	uint64_t before;
	int pages, huge_pages;

	if (backing_is_hugetlb() || !backing_is_huge())
		SKIP(return, "Nothing to fall back to, or from");

	window_init(w, PRIVATE_GPA, WINDOW_SIZE);
	window_add(w, WINDOW_PAGES, map_shared_half(WINDOW_SIZE), 0);
	host_write(w, 0, w->nr_pages);
	convert_all(w, true);
	walk_all(w, true);
	assert_mapped(w, true, true);
	convert_all(w, false);
	walk_all(w, true);

	pages = fragment_memory(w->vm, size);
	huge_pages = take_huge_pages(size);
	before = read_fallbacks();
	convert_all(w, true);
	TEST_ASSERT(read_fallbacks() - before == WINDOW_FRAMES, "%lu times of %lu counted",
		    read_fallbacks() - before, WINDOW_FRAMES);
	check_all(w);
	assert_mapped(w, true, false);
	walk_all(w, true);
	convert(w, 100, 700, false);
	check_all(w);
	convert(w, 100, 700, true);
	check_all(w);
	convert_all(w, false);
	check_all(w);

	/* With memory to choose from again... */
	memfd_to_shared(pages, 0, size);
	close(pages);
	close(huge_pages);
	before = read_fallbacks();
	convert_all(w, true);
	TEST_ASSERT_EQ(read_fallbacks(), before);
	walk_all(w, true);
	assert_mapped(w, true, true);
	check_all(w);
	window_free(w);
}

/* One file behind several slots: in order, reversed, not at its start. */
TEST_F_TIMEOUT(conversion, slots_of_one_file, TIMEOUT)
{
	const uint64_t sizes[] = {
		nr_units(512, 32, 1),
		1,
		nr_units(511, 31, 1),
		nr_units(513, 33, 0),
		nr_units(100, 6, 0),
	};
	const uint64_t nr_file = nr_units(2048, 120, 4), step = nr_units(97, 13, 1);
	void *hva = map_shared_half(nr_file * UNIT);
	struct window *w = &window;
	uint64_t nr, i, begin;
	int reversed, s;

	for (reversed = 0; reversed < 2; reversed++) {
		window_init(w, PRIVATE_GPA, nr_file * UNIT);
		for (nr = 0, s = 0; s < ARRAY_SIZE(sizes); s++)
			nr += sizes[s];
		begin = nr_units(7, 7, 1);
		for (i = 0, s = 0; s < ARRAY_SIZE(sizes) && sizes[s]; s++) {
			off_t at = reversed ? begin + nr - i - sizes[s] : begin + i;

			window_add(w, sizes[s], hva + i * UNIT, at * UNIT);
			i += sizes[s];
		}
		host_write(w, 0, w->nr_pages);
		walk_all(w, true);

		/* Over the edges of slots, and of the file. */
		for (i = 0; i + step < nr_file && i < begin + nr + 10; i += step) {
			convert_file(w, i * UNIT, (step + 1) * UNIT, true);
			walk_all(w, true);
			if (i % 2) {
				host_write(w, 0, w->nr_pages);
				convert_file(w, (i + (step + 1) / 2) * UNIT,
					     max(1ul, step * 2 / 5) * UNIT, false);
			}
			check_host(w);
		}
		convert_file(w, 0, nr_file * UNIT, true);
		walk_all(w, true);
		check_host(w);

		/* A slot goes, the others stay, the content of all does. */
		vm_delete_private(w->vm, PRIVATE_SLOT + sizes[0]);
		vm_add_private(w->vm, PRIVATE_SLOT + sizes[0],
			       w->gpa + sizes[0] * UNIT, sizes[1] * UNIT,
			       w->page[sizes[0]].hva, w->fd, w->page[sizes[0]].offset);
		walk_all(w, true);

		convert_file(w, 0, nr_file * UNIT, false);
		check_all(w);
		window_free(w);
	}
}

/* Filled while accessible, then sealed: the guest finds what was written. */
TEST_F(conversion, fill_then_seal)
{
	int fd = backing_memfd(WINDOW_SIZE, MFD_ALLOW_SEALING);
	struct window *w = &window;
	uint64_t i, j;
	void *p;

	p = mmap(NULL, WINDOW_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	TEST_ASSERT(p != MAP_FAILED, "mmap() failed: %s", strerror(errno));

	window_init(w, PRIVATE_GPA, WINDOW_SIZE);
	close(w->fd);
	w->fd = fd;

	/* With holes: every third page is not filled. */
	for (i = 0; i < WINDOW_PAGES; i++) {
		if (i % 3 == 2)
			continue;
		w->page[i].private = true;
		w->page[i].private_value = new_value(w, i);
		for (j = 0; j < NR_PROBES; j++)
			probe_write(p + i * UNIT, j, w->page[i].private_value);
		w->nr_private++;
	}
	/* What huge pages have brought along. */
	for (i = 2; i < WINDOW_PAGES; i += 3)
		memfd_to_shared(fd, i * UNIT, UNIT);
	TEST_ASSERT(!munmap(p, WINDOW_SIZE), "munmap() failed: %s", strerror(errno));

	if (fcntl(fd, F_ADD_SEALS, F_SEAL_INACCESSIBLE)) {
		TEST_ASSERT(errno == EINVAL, "F_ADD_SEALS failed: %s", strerror(errno));
		SKIP(return, "This kernel can't seal a file that has content");
	}

	window_add(w, WINDOW_PAGES, map_shared_half(WINDOW_SIZE), 0);
	host_write(w, 0, w->nr_pages);
	check_all(w);
	walk_all(w, true);
	convert_all(w, true);
	check_all(w);
	convert_all(w, false);
	check_all(w);
	window_free(w);
}

/* Giving the shared half back is nothing to the private mappings. */
TEST_F_TIMEOUT(conversion, discard_shared, TIMEOUT)
{
	struct window *w = &window;
	uint64_t faults, mapped, taken, nr, i;

	window_init(w, PRIVATE_GPA, WINDOW_SIZE);
	window_add(w, WINDOW_PAGES, map_shared_half(WINDOW_SIZE), 0);
	host_write(w, 0, w->nr_pages);
	convert_all(w, true);
	walk_all(w, true);
	/* Until no page of the agent itself is faulted in any more. */
	walk_all(w, true);

	faults = get_vm_stat(w->vm, "private_faults");
	mapped = get_vm_stat(w->vm, "private_pages");
	taken = get_vcpu_stat(w->vcpu, "pf_taken");
	TEST_ASSERT(faults, "Nothing was private");
	TEST_ASSERT_EQ(mapped, w->nr_pages * UNIT / PAGE_SIZE);

	TEST_ASSERT(!madvise(w->page[0].hva, WINDOW_SIZE, MADV_DONTNEED),
		    "madvise() failed: %s", strerror(errno));
	TEST_ASSERT_EQ(get_vm_stat(w->vm, "private_pages"), mapped);
	for (i = 0; i < w->nr_pages; i++)
		w->page[i].shared_value = 0;

	walk_all(w, true);
	TEST_ASSERT_EQ(get_vm_stat(w->vm, "private_faults"), faults);
	TEST_ASSERT_EQ(get_vcpu_stat(w->vcpu, "pf_taken"), taken);

	/* Nor are other events: protection, moving the pages, collapsing them. */
	TEST_ASSERT(!mprotect(w->page[0].hva, WINDOW_SIZE, PROT_NONE), "mprotect() failed");
	TEST_ASSERT(!mprotect(w->page[0].hva, WINDOW_SIZE, PROT_READ | PROT_WRITE),
		    "mprotect() failed");
	host_write(w, 0, w->nr_pages);
	madvise(w->page[0].hva, WINDOW_SIZE, MADV_PAGEOUT);
	walk_all(w, true);
	TEST_ASSERT_EQ(get_vm_stat(w->vm, "private_faults"), faults);
	TEST_ASSERT_EQ(get_vcpu_stat(w->vcpu, "pf_taken"), taken);
	check_all(w);

	/* To those of the shared half it is, of course. */
	nr = nr_units(600, 40, 1);
	convert(w, 1, nr, false);
	walk_all(w, true);
	TEST_ASSERT(!madvise(w->page[1].hva, nr * UNIT, MADV_DONTNEED),
		    "madvise() failed: %s", strerror(errno));
	for (i = 1; i < 1 + nr; i++)
		w->page[i].shared_value = 0;
	check_all(w);
	window_free(w);
}

/* Orders for a guest that acts at once, without an exit. */
struct race {
	uint64_t go;		/* changes when there is an order */
	uint64_t done;		/* becomes equal to go */
	uint64_t delay;
	uint64_t gva;
	uint64_t value;
	uint64_t old;
};

static void race_code(struct race *race)
{
	uint64_t go = 0;

	for (;;) {
		uint64_t i, *p, value;

		while (READ_ONCE(race->go) == go)
			;
		go = READ_ONCE(race->go);
		if (go == AGENT_NOTHING)
			break;

		for (i = READ_ONCE(race->delay); i; i--)
			asm volatile("" ::: "memory");
		p = (uint64_t *)READ_ONCE(race->gva);
		value = READ_ONCE(race->value);
		asm volatile("xchg %0, %1" : "+r"(value), "+m"(*p) : : "memory");
		WRITE_ONCE(race->old, value);
		/* x86 doesn't reorder stores. */
		WRITE_ONCE(race->done, go);
	}
	GUEST_DONE();
}

static void *race_thread(void *arg)
{
	struct kvm_vcpu *vcpu = arg;

	vcpu_run(vcpu);
	assert_on_unhandled_exception(vcpu);
	TEST_ASSERT(get_ucall(vcpu, NULL) == UCALL_DONE, "The guest ended with exit %s",
		    exit_reason_str(vcpu->run->exit_reason));
	return NULL;
}

static void race_start(struct race *race, uint64_t gpa, uint64_t value, uint64_t delay)
{
	race->gva = gpa;
	race->value = value;
	race->delay = delay;
	WRITE_ONCE(race->go, race->go + 1);
}

/* Returns what was at the address before. */
static uint64_t race_end(struct race *race)
{
	while (READ_ONCE(race->done) != race->go)
		;
	return READ_ONCE(race->old);
}

static uint64_t race_exchange(struct race *race, uint64_t gpa, uint64_t value)
{
	race_start(race, gpa, value, 0);
	return race_end(race);
}

/* Short ones are likelier. */
static uint64_t random_delay(void)
{
	return random() % (1ul << random() % 16);
}

/*
 * Page @p of 2 MiB, or of a few units, is converted while a vCPU faults on page @g of it.  The
 * fault may come at any moment, also when the old half of @p is zapped already
 * and the new one not there yet: a huge mapping made then must not cover @p.
 */
TEST_F_TIMEOUT(conversion, neighbour_faults, TIMEOUT)
{
	const uint64_t nr = nr_units(PAGES_PER_2M, 8, 2), size = nr * UNIT;
	const uint64_t enough = nr_units(50, 50, 4);
	uint64_t end, rounds[2] = {}, faults, huge = 0;
	struct kvm_vcpu *vcpu;
	struct race *race;
	struct kvm_vm *vm;
	pthread_t thread;
	vm_vaddr_t gva;
	int fd, to_private;
	uint64_t p;
	void *hva;

	vm = vm_create_private(1, race_code, &vcpu);
	gva = vm_vaddr_alloc_page(vm);
	vcpu_args_set(vcpu, 1, gva);
	race = addr_gva2hva(vm, gva);
	memset(race, 0, sizeof(*race));

	hva = map_shared_half(size);
	for (p = 0; p < size; p += UNIT)
		WRITE_ONCE(*(uint64_t *)(hva + p), 0);
	fd = private_memfd(size);
	vm_add_private(vm, PRIVATE_SLOT, PRIVATE_GPA, size, hva, fd, 0);
	virt_map_private(vm, PRIVATE_GPA, size);
	pthread_create(&thread, NULL, race_thread, vcpu);

	for (to_private = 0; to_private < 2; to_private++) {
		end = now_ms() + scaled(3000);
		for ( ; now_ms() < end || rounds[to_private] < enough; rounds[to_private]++) {
			uint64_t g, value = random() | 1ull << 40, old;
			uint64_t *shared_p, *shared_g;

			p = random() % nr * UNIT;
			g = (p + (1 + random() % (nr - 1)) * UNIT) % size;
			shared_p = hva + p;
			shared_g = hva + g;

			if (to_private) {
				/* Zap all, but keep the huge page behind it. */
				mprotect(hva, size, PROT_NONE);
				mprotect(hva, size, PROT_READ | PROT_WRITE);
				WRITE_ONCE(*shared_p, value + 1);
				WRITE_ONCE(*shared_g, value + 2);

				race_start(race, PRIVATE_GPA + g, value, random_delay());
				memfd_to_private(fd, p, UNIT);
				old = race_end(race);
				TEST_ASSERT(old == value + 2 && READ_ONCE(*shared_g) == value,
					    "Shared neighbour: %#lx for %#lx, then %#lx for %#lx",
					    old, value + 2, *shared_g, value);

				old = race_exchange(race, PRIVATE_GPA + p, value + 3);
				TEST_ASSERT(!old, "New private page: %#lx", old);
				TEST_ASSERT(READ_ONCE(*shared_p) == value + 1,
					    "Written to the shared half of a private page: %#lx",
					    READ_ONCE(*shared_p));

				memfd_to_shared(fd, p, UNIT);
				old = race_exchange(race, PRIVATE_GPA + p, 0);
				TEST_ASSERT(old == value + 1 && !READ_ONCE(*shared_p),
					    "Shared again: %#lx for %#lx, then %#lx for 0",
					    old, value + 1, *shared_p);
				if (rounds[to_private] % 16 == 0)
					huge += get_vm_stat(vm, "pages_2m");
			} else {
				memfd_to_private(fd, 0, size);
				WRITE_ONCE(*shared_p, value + 1);
				WRITE_ONCE(*shared_g, value + 2);

				race_start(race, PRIVATE_GPA + g, value, random_delay());
				memfd_to_shared(fd, p, UNIT);
				old = race_end(race);
				TEST_ASSERT(!old && READ_ONCE(*shared_g) == value + 2,
					    "Private neighbour: %#lx for 0, shared half %#lx for %#lx",
					    old, READ_ONCE(*shared_g), value + 2);

				old = race_exchange(race, PRIVATE_GPA + p, value + 3);
				TEST_ASSERT(old == value + 1 && READ_ONCE(*shared_p) == value + 3,
					    "Page that is shared now: %#lx for %#lx, then %#lx for %#lx",
					    old, value + 1, *shared_p, value + 3);
				old = race_exchange(race, PRIVATE_GPA + g, 0);
				TEST_ASSERT(old == value, "Private neighbour: %#lx for %#lx",
					    old, value);
				memfd_to_shared(fd, 0, size);
			}
		}
	}
	faults = get_vm_stat(vm, "private_faults");
	TEST_ASSERT(faults >= rounds[0] + rounds[1], "%lu private faults in %lu rounds",
		    faults, rounds[0] + rounds[1]);
	TEST_ASSERT(huge || !thp_configured(), "Nothing was ever mapped huge");
	pr_info("# %lu conversions to shared, %lu to private\n", rounds[0], rounds[1]);

	WRITE_ONCE(race->go, AGENT_NOTHING);
	pthread_join(thread, NULL);
	kvm_vm_free(vm);
}

/*
 * The same with a long time between start and end: the 2 MiB that become private
 * are in many slots, all of which have to be told.  The first of them ends in
 * the middle of a huge page of the shared half, whose first half stays shared.
 */
TEST_F_TIMEOUT(conversion, neighbour_faults_many_slots, TIMEOUT)
{
	const uint64_t end = now_ms() + scaled(3000);
	uint64_t i, rounds, huge = 0;
	struct kvm_vcpu *vcpu;
	struct race *race;
	struct kvm_vm *vm;
	pthread_t thread;
	vm_vaddr_t gva;
	void *hva;
	int fd;

	if (backing_is_hugetlb())
		SKIP(return, "A unit is one huge page, and has one slot");

	vm = vm_create_private(1, race_code, &vcpu);
	gva = vm_vaddr_alloc_page(vm);
	vcpu_args_set(vcpu, 1, gva);
	race = addr_gva2hva(vm, gva);
	memset(race, 0, sizeof(*race));

	hva = map_shared_half(2 * SZ_2M);
	fd = private_memfd(2 * SZ_2M);
	vm_add_private(vm, PRIVATE_SLOT, PRIVATE_GPA, SZ_2M, hva, fd, SZ_1M);
	virt_map_private(vm, PRIVATE_GPA, SZ_2M);
	for (i = 0; i < PAGES_PER_2M / 2; i++)
		vm_add_private(vm, PRIVATE_SLOT + 1 + i, PRIVATE_GPA + 2 * SZ_2M + i * PAGE_SIZE,
			       PAGE_SIZE, hva + SZ_2M + i * PAGE_SIZE, fd,
			       SZ_2M + SZ_1M + i * PAGE_SIZE);
	pthread_create(&thread, NULL, race_thread, vcpu);

	for (rounds = 0; now_ms() < end || rounds < 50; rounds++) {
		uint64_t value = random() | 1ull << 40, old;
		uint64_t g = random() % (PAGES_PER_2M / 2) * PAGE_SIZE;
		uint64_t p = SZ_1M + random() % (PAGES_PER_2M / 2) * PAGE_SIZE;
		uint64_t *shared_p = hva + p, *shared_g = hva + g;

		mprotect(hva, SZ_2M, PROT_NONE);
		mprotect(hva, SZ_2M, PROT_READ | PROT_WRITE);
		WRITE_ONCE(*shared_p, value + 1);
		WRITE_ONCE(*shared_g, value + 2);

		race_start(race, PRIVATE_GPA + g, value, random_delay());
		memfd_to_private(fd, SZ_2M, SZ_2M);
		old = race_end(race);
		TEST_ASSERT(old == value + 2 && READ_ONCE(*shared_g) == value,
			    "Shared neighbour: %#lx for %#lx, then %#lx for %#lx",
			    old, value + 2, *shared_g, value);

		old = race_exchange(race, PRIVATE_GPA + p, value + 3);
		TEST_ASSERT(!old && READ_ONCE(*shared_p) == value + 1,
			    "New private page: %#lx for 0, shared half %#lx for %#lx",
			    old, READ_ONCE(*shared_p), value + 1);
		memfd_to_shared(fd, SZ_2M, SZ_2M);
		if (rounds % 16 == 0) {
			race_exchange(race, PRIVATE_GPA + p, 0);
			huge += get_vm_stat(vm, "pages_2m");
		}
	}
	TEST_ASSERT(huge || !thp_configured(), "Nothing was ever mapped huge");
	pr_info("# %lu conversions in %llu slots\n", rounds, PAGES_PER_2M / 2 + 1ull);

	WRITE_ONCE(race->go, AGENT_NOTHING);
	pthread_join(thread, NULL);
	kvm_vm_free(vm);
	close(fd);
}

/*
 * Two vCPUs exchange a word in each of their pages, over and over, while pages
 * are converted at random under them.  A guest doesn't know which half it is
 * on, but it knows what may be there:
 *  - what it has written there last;
 *  - zero, as the page has become private since;
 *  - what it had written before the page became private, as it is shared again.
 *    That is what @frozen says: the host has read it from the shared half after
 *    the conversion, and nothing can have changed it since.  If the page becomes
 *    private once more before the guest has compared, @was_frozen says it, as
 *    there is no third value before the guest writes again.
 * And the host knows that the shared half of a private page does not change,
 * and that of a shared one does.
 */
#define CHURN_VCPUS	2
#define CHURN_PAGES	(2 * PAGES_PER_2M)	/* at most */

struct churn {
	uint64_t unit;
	uint64_t nr_pages;
	uint64_t stop;
	uint64_t round[CHURN_VCPUS];
	uint64_t frozen[CHURN_PAGES];
	uint64_t was_frozen[CHURN_PAGES];
	uint64_t last[CHURN_PAGES];
};

static uint64_t *churn_word(struct churn *churn, void *base, uint64_t i)
{
	return base + i * churn->unit + i * 8 % PAGE_SIZE;
}

static void churn_code(struct churn *churn, uint64_t id)
{
	uint64_t i, old, round, frozen;

	for (round = 1; !READ_ONCE(churn->stop); round++) {
		for (i = id; i < churn->nr_pages; i += CHURN_VCPUS) {
			uint64_t *p = churn_word(churn, (void *)PRIVATE_GPA, i);

			frozen = READ_ONCE(churn->frozen[i]);
			old = round << 16 | i;
			asm volatile("xchg %0, %1" : "+r"(old), "+m"(*p) : : "memory");
			__GUEST_ASSERT(!old || old == churn->last[i] ||
				       old == READ_ONCE(churn->frozen[i]) ||
				       (frozen != READ_ONCE(churn->frozen[i]) &&
					old == READ_ONCE(churn->was_frozen[i])),
				       "Page %lu: %#lx, last %#lx, frozen %#lx, before that %#lx",
				       i, old, churn->last[i], churn->frozen[i],
				       churn->was_frozen[i]);
			churn->last[i] = round << 16 | i;
		}
		WRITE_ONCE(churn->round[id], round);
	}
	GUEST_DONE();
}

/* The guest looks at them in the other order. */
static void churn_freeze(struct churn *churn, uint64_t i, uint64_t value)
{
	if (value == churn->frozen[i])
		return;
	WRITE_ONCE(churn->was_frozen[i], churn->frozen[i]);
	WRITE_ONCE(churn->frozen[i], value);
}

/* Until a vCPU has been at all of its pages. */
static void wait_for_round(struct churn *churn, uint64_t id)
{
	uint64_t start = READ_ONCE(churn->round[id]), tries = 0;

	while (READ_ONCE(churn->round[id]) < start + 2) {
		/* Over a minute: a busy host with a slow kernel has needed ten seconds. */
		TEST_ASSERT(tries++ < 600000, "vCPU %lu makes no progress", id);
		usleep(100);
	}
}

#define SPLIT		"/sys/kernel/debug/split_huge_pages"

struct splitter {
	pthread_t thread;
	char text[64];
	unsigned long splits;
	bool stop;
};

static long huge_kb(void)
{
	return read_key("/proc/meminfo", "ShmemHugePages:");
}

/* Somebody else splits what has become a huge page: it is as private as before. */
static void *split_thread(void *arg)
{
	struct splitter *splitter = arg;
	long before;

	while (!READ_ONCE(splitter->stop)) {
		before = huge_kb();
		write_text(SPLIT, splitter->text);
		splitter->splits += huge_kb() < before;
		usleep(2000);
	}
	return NULL;
}

/* Only shmem has pages that can be split. */
static void splitter_start(struct splitter *splitter, int fd, uint64_t nr_pages)
{
	memset(splitter, 0, sizeof(*splitter));
	splitter->stop = backing_is_hugetlb() || access(SPLIT, W_OK);
	snprintf(splitter->text, sizeof(splitter->text), "/proc/self/fd/%d,0x0,0x%lx", fd,
		 nr_pages);
	pthread_create(&splitter->thread, NULL, split_thread, splitter);
}

static void splitter_stop(struct splitter *splitter)
{
	bool was_there = !splitter->stop;

	WRITE_ONCE(splitter->stop, true);
	pthread_join(splitter->thread, NULL);
	pr_info("# %lu times something was split\n", splitter->splits);
	if (was_there && backing_is_huge())
		TEST_ASSERT(splitter->splits, "No huge page was split by others");
}

TEST_F_TIMEOUT(conversion, churn, TIMEOUT)
{
	static const uint64_t sizes[] = { 1, 1, 1, 2, 7, 64, 512, 1024 };
	const uint64_t nr_pages = nr_units(CHURN_PAGES, 64, 3), size = nr_pages * UNIT;
	const uint64_t enough = nr_units(20, 20, 3);
	uint64_t i, end, conversions = 0, looked = 0;
	struct kvm_vcpu *vcpus[CHURN_VCPUS];
	pthread_t threads[CHURN_VCPUS];
	static bool private[CHURN_PAGES];
	struct splitter splitter;
	struct churn *churn;
	struct kvm_vm *vm;
	vm_vaddr_t gva;
	void *hva;
	int fd;

	vm = vm_create_private(CHURN_VCPUS, churn_code, vcpus);
	gva = vm_vaddr_alloc(vm, sizeof(*churn), KVM_UTIL_MIN_VADDR);
	churn = addr_gva2hva(vm, gva);
	memset(churn, 0, sizeof(*churn));
	churn->unit = UNIT;
	churn->nr_pages = nr_pages;

	hva = map_shared_half(size);
	fd = private_memfd(size);
	vm_add_private(vm, PRIVATE_SLOT, PRIVATE_GPA, size, hva, fd, 0);
	virt_map_private(vm, PRIVATE_GPA, size);

	splitter_start(&splitter, fd, nr_pages);
	for (i = 0; i < CHURN_VCPUS; i++) {
		vcpu_args_set(vcpus[i], 2, gva, i);
		pthread_create(&threads[i], NULL, race_thread, vcpus[i]);
	}

	for (end = now_ms() + scaled(5000); now_ms() < end || looked < enough; conversions++) {
		uint64_t nr = min(sizes[random() % ARRAY_SIZE(sizes)], nr_pages);
		uint64_t first = random() % (nr_pages - nr + 1);
		bool to_private = random() % 2;

		/* Huge pages come where there was nothing. */
		if (backing_is_huge() && conversions % 16 >= 14) {
			first = 0;
			nr = nr_pages;
			to_private = conversions % 2;
		}

		/* What is private has been for some time: nobody has touched the other half. */
		for (i = first; i < first + nr; i++)
			TEST_ASSERT(!private[i] ||
				    READ_ONCE(*churn_word(churn, hva, i)) == churn->frozen[i],
				    "Shared half of private page %lu: %#lx became %#lx", i,
				    churn->frozen[i], READ_ONCE(*churn_word(churn, hva, i)));

		if (to_private) {
			memfd_to_private(fd, first * UNIT, nr * UNIT);
			for (i = first; i < first + nr; i++) {
				churn_freeze(churn, i, READ_ONCE(*churn_word(churn, hva, i)));
				private[i] = true;
			}
		} else {
			memfd_to_shared(fd, first * UNIT, nr * UNIT);
			memset(&private[first], 0, nr);
		}
		if (conversions % nr_units(8, 8, 2))
			continue;

		/* The guest goes on, and writes only to what is shared. */
		for (i = 0; i < CHURN_VCPUS; i++)
			wait_for_round(churn, i);
		for (i = first; i < first + nr; i++) {
			uint64_t value = READ_ONCE(*churn_word(churn, hva, i));

			TEST_ASSERT(to_private == (value == churn->frozen[i]),
				    "Shared half of %s page %lu: %#lx, frozen %#lx",
				    to_private ? "private" : "shared", i, value, churn->frozen[i]);
		}
		looked++;
	}
	pr_info("# %lu conversions\n", conversions);

	splitter_stop(&splitter);
	WRITE_ONCE(churn->stop, 1);
	for (i = 0; i < CHURN_VCPUS; i++)
		pthread_join(threads[i], NULL);
	kvm_vm_free(vm);
}

/*
 * The guest asks for conversions.  KVM doesn't care about the bits that say to
 * what, only about those that are defined.
 */
static void hypercall_code(uint64_t unit, uint64_t half)
{
	const struct {
		uint64_t offset, size;
	} ranges[] = {
		{ 0, unit },
		{ 0, half },
		{ unit, unit },
		{ unit, half },
		{ half, unit },
		{ half - unit, half > unit ? 3 * unit : 2 * unit },
		{ 0, 2 * half },
	};
	uint64_t i, at;

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		uint64_t gpa = PRIVATE_GPA + ranges[i].offset;
		uint64_t size = ranges[i].size;

		for (at = gpa; at < gpa + size; at += unit)
			WRITE_ONCE(*(uint64_t *)at, 0x5a5a0000 + i);
		kvm_hypercall_map_gpa_range(gpa, size, KVM_MAP_GPA_RANGE_ENCRYPTED);
		for (at = gpa; at < gpa + size; at += unit) {
			GUEST_ASSERT_EQ(READ_ONCE(*(uint64_t *)at), 0ul);
			WRITE_ONCE(*(uint64_t *)at, 0xdeadull << 32 | i);
		}
		/* The host looks at the shared half. */
		GUEST_SYNC3(gpa, size, 0x5a5a0000 + i);
		for (at = gpa; at < gpa + size; at += unit)
			GUEST_ASSERT_EQ(READ_ONCE(*(uint64_t *)at), 0xdeadull << 32 | i);

		kvm_hypercall_map_gpa_range(gpa, size, KVM_MAP_GPA_RANGE_DECRYPTED);
		for (at = gpa; at < gpa + size; at += unit)
			GUEST_ASSERT_EQ(READ_ONCE(*(uint64_t *)at), 0x5a5a0000 + i);
	}
	GUEST_DONE();
}

TEST_F_TIMEOUT(conversion, map_gpa_range, TIMEOUT)
{
	const uint64_t size = nr_units(WINDOW_PAGES, 8, 2) * UNIT;
	int fd = private_memfd(size), converted = 0;
	void *hva = map_shared_half(size);
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct ucall uc;
	uint64_t at;

	if (!(kvm_check_cap(KVM_CAP_EXIT_HYPERCALL) & BIT(KVM_HC_MAP_GPA_RANGE)))
		SKIP(return, "No exits for hypercalls");

	vm = vm_create_private(1, hypercall_code, &vcpu);
	vm_enable_cap(vm, KVM_CAP_EXIT_HYPERCALL, BIT(KVM_HC_MAP_GPA_RANGE));
	vm_add_private(vm, PRIVATE_SLOT, PRIVATE_GPA, size, hva, fd, 0);
	virt_map_private(vm, PRIVATE_GPA, size);
	vcpu_args_set(vcpu, 2, UNIT, size / 2);

	for (;;) {
		struct kvm_run *run = vcpu->run;

		vcpu_run(vcpu);
		if (run->exit_reason == KVM_EXIT_HYPERCALL) {
			off_t offset = run->hypercall.args[0] - PRIVATE_GPA;
			off_t len = run->hypercall.args[1] * PAGE_SIZE;

			TEST_ASSERT_EQ(run->hypercall.nr, KVM_HC_MAP_GPA_RANGE);
			if (run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED)
				memfd_to_private(fd, offset, len);
			else
				memfd_to_shared(fd, offset, len);
			run->hypercall.ret = 0;
			converted++;
			continue;
		}

		switch (get_ucall(vcpu, &uc)) {
		case UCALL_SYNC:
			for (at = uc.args[0]; at < uc.args[0] + uc.args[1]; at += UNIT)
				TEST_ASSERT_EQ(*(uint64_t *)(hva + at - PRIVATE_GPA), uc.args[2]);
			continue;
		case UCALL_ABORT:
			REPORT_GUEST_ASSERT(uc);
		case UCALL_DONE:
			break;
		default:
			TEST_FAIL("Unexpected exit %s", exit_reason_str(run->exit_reason));
		}
		break;
	}
	TEST_ASSERT(converted >= 14, "Only %d hypercalls", converted);
	TEST_ASSERT_EQ(memfd_nr_private(fd), 0);
	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	require_private_mem();
	return test_harness_run(argc, argv);
}
