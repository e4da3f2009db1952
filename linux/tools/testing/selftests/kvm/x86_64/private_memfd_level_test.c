// SPDX-License-Identifier: GPL-2.0
/*
 * How large the mappings of KVM_MEM_PRIVATE slots are, wherever gpa, file offset
 * and hva are against each other: each half is mapped by huge pages exactly
 * where it can be, and whatever maps it, the guest finds the content of the page
 * that it asks for.
 *
 * A half can be mapped at a level if the frame around the gpa, that is the
 * naturally aligned range of that size,
 *  - is inside the slot,
 *  - is as far from a boundary in the guest as in what is behind it: the file for
 *    the private half, userspace_addr for the shared one,
 *  - is of one huge page there,
 *  - and, for the shared half, has no private page in it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "private_memfd.h"

#define PAGES_OF(level)	(PG_LEVEL_SIZE(level) / PAGE_SIZE)
#define MAX_TOUCHED	64
#define NR_LEVELS	(PG_LEVEL_1G + 1)

/*
 * The guest writes its number to each page of a range, or reads a word each at
 * the addresses that it is told.
 */
struct reader {
	uint64_t fill_gva;
	uint64_t nr_fill;
	uint64_t nr;
	uint64_t gva[MAX_TOUCHED];
	uint64_t value[MAX_TOUCHED];
};

static uint64_t page_value(uint64_t i)
{
	return 0x9a9e000000000000 | i;
}

static void reader_code(struct reader *reader)
{
	uint64_t i;

	for (;;) {
		GUEST_UCALL_NONE();
		for (i = 0; i < reader->nr_fill; i++)
			WRITE_ONCE(*(uint64_t *)(reader->fill_gva + i * PAGE_SIZE), page_value(i));
		for (i = 0; i < reader->nr; i++)
			reader->value[i] = READ_ONCE(*(uint64_t *)reader->gva[i]);
	}
}

/*
 * One file that is private throughout, and one that is so up to its first
 * frame only.  Both have room for a window at any offset modulo a frame.
 */
enum { FULL, MIXED, NR_FILES };

struct half_file {
	int fd;
	uint64_t nr_private;	/* pages, from the start */
	uint64_t gpa;		/* where windows on it are */
	void *hva;		/* of offset 0, aligned */
};

FIXTURE(level) {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct reader *reader;
	struct half_file file[NR_FILES];
	int max_level;		/* of the private half */
	uint64_t frame;		/* in pages, what is swept */
	uint64_t window;	/* ditto */
	uint64_t base[NR_LEVELS];
};

#define level_data FIXTURE_DATA(level)

static const char * const level_stats[NR_LEVELS] = {
	[PG_LEVEL_4K] = "pages_4k",
	[PG_LEVEL_2M] = "pages_2m",
	[PG_LEVEL_1G] = "pages_1g",
};

static void reader_run(level_data *self)
{
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
	assert_on_unhandled_exception(self->vcpu);
}

/* Private pages of it, with content. */
static void file_create(level_data *self, struct half_file *file, uint64_t size,
			uint64_t nr_private, uint64_t gpa)
{
	file->fd = private_memfd(size);
	file->nr_private = nr_private;
	file->gpa = gpa;

	/* Where nobody has been there is no memory either. */
	file->hva = mmap(NULL, size + SZ_1G, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	TEST_ASSERT(file->hva != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	file->hva = align_ptr_up(file->hva, SZ_1G);
	if (thp_configured())
		madvise(file->hva, size, MADV_HUGEPAGE);

	memfd_to_private(file->fd, 0, nr_private * PAGE_SIZE);
	virt_map_level(self->vm, gpa, gpa, 2 * size, backing_is_1g() ? PG_LEVEL_1G : PG_LEVEL_2M);

	vm_add_private(self->vm, PRIVATE_SLOT, gpa, size, file->hva, file->fd, 0);
	self->reader->fill_gva = gpa;
	self->reader->nr_fill = nr_private;
	reader_run(self);
	self->reader->nr_fill = 0;
	vm_delete_private(self->vm, PRIVATE_SLOT);
}

FIXTURE_SETUP(level)
{
	uint64_t size;
	vm_vaddr_t gva;
	int i;

	self->max_level = private_backing()->level;
	if (backing_is_huge() && !backing_is_hugetlb())
		self->max_level = PG_LEVEL_2M;
	self->frame = PAGES_OF(max_t(int, self->max_level, PG_LEVEL_2M));
	self->window = self->frame * nr_units(2, 2, 1);
	size = (self->window + self->frame) * PAGE_SIZE;

	self->vm = vm_create_private(1, reader_code, &self->vcpu);
	gva = vm_vaddr_alloc(self->vm, sizeof(*self->reader), KVM_UTIL_MIN_VADDR);
	self->reader = addr_gva2hva(self->vm, gva);
	memset(self->reader, 0, sizeof(*self->reader));
	vcpu_args_set(self->vcpu, 1, gva);
	reader_run(self);

	file_create(self, &self->file[FULL], size, size / PAGE_SIZE, PRIVATE_GPA);
	file_create(self, &self->file[MIXED], size, self->frame, 3 * PRIVATE_GPA);

	/* Nothing but the reader is mapped. */
	TEST_ASSERT_EQ(get_vm_stat(self->vm, "private_pages"), 0);
	for (i = PG_LEVEL_4K; i < NR_LEVELS; i++)
		self->base[i] = get_vm_stat(self->vm, level_stats[i]);
}

FIXTURE_TEARDOWN(level)
{
	kvm_vm_free(self->vm);
	close(self->file[FULL].fd);
	close(self->file[MIXED].fd);
}

/* A window: @gpa, @offset and @hva are pages after a boundary. */
struct shifts {
	uint64_t gpa, offset, hva;
};

/* Page @i of the window. */
static bool is_private(const struct half_file *file, const struct shifts *by, uint64_t i)
{
	return by->offset + i < file->nr_private;
}

/* What is said at the top of this file. */
static int level_of(level_data *self, const struct half_file *file, const struct shifts *by,
		    uint64_t i)
{
	bool private = is_private(file, by, i);
	uint64_t other = private ? by->offset : by->hva;
	int level;

	for (level = private ? self->max_level : PG_LEVEL_2M; level > PG_LEVEL_4K; level--) {
		uint64_t nr = PAGES_OF(level), start = (by->gpa + i) & -nr;

		if (start < by->gpa || start + nr > by->gpa + self->window)
			continue;
		if ((by->gpa - other) % nr)
			continue;
		if (!private && is_private(file, by, start - by->gpa))
			continue;
		break;
	}
	return level;
}

/* Pages at, before and behind the boundaries of each of the three, and some. */
static uint64_t add_touched(uint64_t *touched, uint64_t nr, uint64_t i, uint64_t window)
{
	uint64_t j;

	for (j = 0; j < nr && touched[j] != i; j++)
		;
	/* Also if it is before the window. */
	if (j < nr || i >= window)
		return nr;
	TEST_ASSERT(nr < MAX_TOUCHED, "Too many pages");
	touched[nr] = i;
	return nr + 1;
}

static uint64_t choose_touched(level_data *self, const struct shifts *by, uint64_t *touched)
{
	const uint64_t shifts[] = { by->gpa, by->offset, by->hva };
	const uint64_t frames[] = { PAGES_PER_2M, self->frame };
	uint64_t nr = 0, i, j, k, at;

	nr = add_touched(touched, nr, 0, self->window);
	nr = add_touched(touched, nr, self->window - 1, self->window);
	for (i = 0; i < ARRAY_SIZE(shifts); i++) {
		for (j = 0; j < ARRAY_SIZE(frames); j++) {
			at = -shifts[i] & (frames[j] - 1);
			for (k = 0; k < 3 && at + k * frames[j] <= self->window; k++) {
				nr = add_touched(touched, nr, at + k * frames[j] - 1, self->window);
				nr = add_touched(touched, nr, at + k * frames[j], self->window);
			}
		}
	}
	/* Each one faults where none has been before. */
	nr = add_touched(touched, nr, self->window / 2 - 100, self->window);
	nr = add_touched(touched, nr, self->window / 2 + 100, self->window);
	return nr;
}

static void *page_hva(const struct half_file *file, const struct shifts *by, uint64_t i)
{
	return file->hva + (by->hva + i) * PAGE_SIZE;
}

/* Whether the page is mapped by the time that it is touched. */
static bool is_mapped(level_data *self, const struct half_file *file, const struct shifts *by,
		      const uint64_t *touched, uint64_t i)
{
	int level = level_of(self, file, by, touched[i]);
	uint64_t j, nr = PAGES_OF(level);

	for (j = 0; j < i; j++)
		if (level_of(self, file, by, touched[j]) == level &&
		    (by->gpa + touched[j]) / nr == (by->gpa + touched[i]) / nr)
			return true;
	return false;
}

static const char *where(const struct shifts *by)
{
	static char text[80];

	snprintf(text, sizeof(text), "gpa +%lu, offset +%lu, hva +%lu", by->gpa, by->offset,
		 by->hva);
	return text;
}

static void check_window(level_data *self, const struct shifts *by)
{
	uint64_t expect[NR_LEVELS] = {}, touched[MAX_TOUCHED], nr, i;
	uint64_t mapped, private = 0, faults, private_faults = 0;
	int f, level;

	nr = choose_touched(self, by, touched);
	faults = get_vm_stat(self->vm, "private_faults");
	for (f = 0; f < NR_FILES; f++) {
		struct half_file *file = &self->file[f];
		uint64_t gpa = file->gpa + by->gpa * PAGE_SIZE;

		for (i = 0; i < nr; i++) {
			*(uint64_t *)page_hva(file, by, touched[i]) = ~page_value(touched[i]);
			self->reader->gva[i] = gpa + touched[i] * PAGE_SIZE;
			if (is_mapped(self, file, by, touched, i))
				continue;
			level = level_of(self, file, by, touched[i]);
			expect[level]++;
			/* A fault on a shared page asks the file, too, but gets none. */
			if (is_private(file, by, touched[i])) {
				private += PAGES_OF(level);
				private_faults++;
			}
		}

		vm_add_private(self->vm, PRIVATE_SLOT + f, gpa, self->window * PAGE_SIZE,
			       page_hva(file, by, 0), file->fd, by->offset * PAGE_SIZE);
		self->reader->nr = nr;
		reader_run(self);
		for (i = 0; i < nr; i++) {
			bool p = is_private(file, by, touched[i]);
			uint64_t value = p ? page_value(by->offset + touched[i]) :
					     ~page_value(touched[i]);

			TEST_ASSERT(self->reader->value[i] == value,
				    "%s: %s page %lu: %#lx for %#lx", where(by),
				    p ? "private" : "shared", touched[i],
				    self->reader->value[i], value);
		}
	}

	for (level = PG_LEVEL_4K; level < NR_LEVELS; level++) {
		mapped = get_vm_stat(self->vm, level_stats[level]) - self->base[level];
		TEST_ASSERT(mapped == expect[level], "%s: %s: %lu mappings, there should be %lu",
			    where(by), level_stats[level], mapped, expect[level]);
	}
	mapped = get_vm_stat(self->vm, "private_pages");
	TEST_ASSERT(mapped == private, "%s: %lu private pages are mapped, %lu should be",
		    where(by), mapped, private);
	faults = get_vm_stat(self->vm, "private_faults") - faults;
	TEST_ASSERT(faults == private_faults, "%s: %lu private faults, there should be %lu",
		    where(by), faults, private_faults);

	for (f = 0; f < NR_FILES; f++)
		vm_delete_private(self->vm, PRIVATE_SLOT + f);
	TEST_ASSERT_EQ(get_vm_stat(self->vm, "private_pages"), 0);
}

/*
 * All windows would be 512 to the power of three.  What is left out, and why:
 *
 * A fault is one of one half.  If it is of the private one the difference of
 * gpa and offset limits the mapping, if it is of the shared one that of gpa and
 * hva; so each difference takes all of its values, with the other one zero, and
 * equal to it.  That both are something else, and different, is nothing that a
 * fault could see, and therefore left to chance.
 *
 * The gpa itself, apart from the differences, says where the window's edges are
 * among the frames.  It takes all of its values with either difference zero, or
 * not, which is all that can matter of it beside the edges.
 */
TEST_F_TIMEOUT(level, sweep, TIMEOUT)
{
	static const struct shifts lines[] = {
		{ 0, 1, 0 }, { 0, 0, 1 }, { 0, 1, 1 },
		{ 1, 0, 0 }, { 1, 1, 0 }, { 1, 0, 1 }, { 1, 1, 1 },
	};
	uint64_t stride = max(1ul, 100 / max(1ul, scaled(100)));
	unsigned long windows = 0;
	struct shifts by;
	uint64_t k, i;

	if (backing_is_1g())
		SKIP(return, "There are too many pages in 1 GiB");

	for (i = 0; i < ARRAY_SIZE(lines); i++) {
		for (k = i ? 1 : 0; k < PAGES_PER_2M; k += stride, windows++) {
			by.gpa = lines[i].gpa * k;
			by.offset = lines[i].offset * k;
			by.hva = lines[i].hva * k;
			check_window(self, &by);
		}
	}
	for (i = 0; i < scaled(300); i++, windows++) {
		by.gpa = random() % PAGES_PER_2M;
		by.offset = random() % PAGES_PER_2M;
		by.hva = random() % PAGES_PER_2M;
		check_window(self, &by);
	}
	pr_info("# %lu windows\n", windows);
}

/*
 * The same for frames of 1 GiB, at and around what is aligned for which level.
 * Also for the other stores, which have none: nothing changes by being aligned
 * better than for 2 MiB.
 */
TEST_F_TIMEOUT(level, aligned_by_degrees, TIMEOUT)
{
	const uint64_t shifts[] = {
		0, 1, PAGES_PER_2M - 1, PAGES_PER_2M, self->frame / 2, self->frame - PAGES_PER_2M,
		self->frame - 1,
	};
	struct shifts by;
	int i, j, k;

	for (i = 0; i < ARRAY_SIZE(shifts); i++) {
		for (j = 0; j < ARRAY_SIZE(shifts); j++) {
			for (k = 0; k < ARRAY_SIZE(shifts); k++) {
				by.gpa = shifts[i] % self->frame;
				by.offset = shifts[j] % self->frame;
				by.hva = shifts[k] % self->frame;
				check_window(self, &by);
			}
		}
	}
}

int main(int argc, char *argv[])
{
	require_private_mem();
	return test_harness_run(argc, argv);
}
