// SPDX-License-Identifier: GPL-2.0-only
/*
 * Inaccessible memfds as files: what guest_memfd_test checks of a guest_memfd.
 *
 * Nobody reads, writes or maps the file, its size is set once, and fallocate()
 * changes exactly the pages it is asked for, or nothing.  All of that holds
 * whether or not the file is the memory of a VM, so it is checked on a file by
 * itself and on one that is bound to a slot.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "private_memfd.h"

#define NR_PAGES	nr_units(4, 4, 2)

#define expect_errno(ret, error, fmt, ...)					\
do {										\
	int __ret = (ret), __error = (error);					\
										\
	TEST_ASSERT(__ret == -1 && errno == __error,				\
		    fmt ": wanted %s, got %d (%s)", ##__VA_ARGS__,		\
		    strerror(__error), __ret,				\
		    __ret ? strerror(errno) : "no error");			\
} while (0)

/* What fallocate() could have changed. */
struct file_state {
	off_t size;
	blkcnt_t blocks;
	unsigned long private;	/* mask of pages */
};

static struct file_state get_state(int fd, size_t page_size)
{
	struct file_state state = {};
	struct stat sb;
	off_t offset;

	TEST_ASSERT(!fstat(fd, &sb), "fstat() failed: %s", strerror(errno));
	state.size = sb.st_size;
	state.blocks = sb.st_blocks;

	for (offset = 0; offset < sb.st_size; offset += page_size) {
		off_t data = lseek(fd, offset, SEEK_DATA);
		off_t hole = lseek(fd, offset, SEEK_HOLE);

		TEST_ASSERT(data >= 0 || errno == ENXIO, "SEEK_DATA failed: %s",
			    strerror(errno));
		TEST_ASSERT((data == offset) == (hole > offset),
			    "Page at %#lx: data from %#lx on, hole from %#lx on",
			    offset, data, hole);
		if (data == offset)
			state.private |= BIT(offset / page_size);
	}
	return state;
}

static void assert_state(int fd, size_t page_size, const struct file_state *old)
{
	struct file_state new = get_state(fd, page_size);

	TEST_ASSERT(new.size == old->size && new.blocks == old->blocks &&
		    new.private == old->private,
		    "Size %#lx, %lu blocks, pages %#lx became size %#lx, %lu blocks, pages %#lx",
		    old->size, old->blocks, old->private, new.size, new.blocks, new.private);
}

/* Exactly the pages in @private are allocated. */
static void assert_private(int fd, size_t page_size, unsigned long private)
{
	const struct file_state state = {
		.size = NR_PAGES * page_size,
		.blocks = __builtin_popcountl(private) * page_size / 512,
		.private = private,
	};

	assert_state(fd, page_size, &state);
}

static void test_file_read_write(int fd, size_t page_size)
{
	char buf[64] = "clear text";
	struct iovec iov = { .iov_base = buf, .iov_len = sizeof(buf) };
	off_t offset;

	expect_errno(read(fd, buf, sizeof(buf)), EPERM, "read()");
	expect_errno(write(fd, buf, sizeof(buf)), EPERM, "write()");

	for (offset = 0; offset < NR_PAGES * page_size; offset += page_size) {
		expect_errno(pread(fd, buf, sizeof(buf), offset), EPERM, "pread(%#lx)", offset);
		expect_errno(pwrite(fd, buf, sizeof(buf), offset), EPERM, "pwrite(%#lx)", offset);
		expect_errno(preadv(fd, &iov, 1, offset), EPERM, "preadv(%#lx)", offset);
		expect_errno(pwritev(fd, &iov, 1, offset), EPERM, "pwritev(%#lx)", offset);
	}
	TEST_ASSERT(!strcmp(buf, "clear text"), "Something has been read: '%s'", buf);
}

static void test_mmap(int fd, size_t page_size)
{
	static const int prots[] = {
		PROT_NONE, PROT_READ, PROT_WRITE, PROT_READ | PROT_WRITE, PROT_EXEC,
	};
	static const int flags[] = { MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE };
	void *mem;
	int i, j;

	for (i = 0; i < ARRAY_SIZE(prots); i++) {
		for (j = 0; j < ARRAY_SIZE(flags); j++) {
			mem = mmap(NULL, page_size, prots[i], flags[j], fd, 0);
			TEST_ASSERT(mem == MAP_FAILED && errno == EPERM,
				    "mmap() with prot %d, flags %d: wanted EPERM, got %s",
				    prots[i], flags[j],
				    mem == MAP_FAILED ? strerror(errno) : "no error");
		}
	}
}

static void test_file_size(int fd, size_t page_size)
{
	const off_t others[] = { 0, 1, 3, 5, NR_PAGES + 1, NR_PAGES - 1 };
	const size_t total_size = NR_PAGES * page_size;
	struct stat sb;
	int i;

	TEST_ASSERT(!fstat(fd, &sb), "fstat() failed: %s", strerror(errno));
	TEST_ASSERT_EQ(sb.st_size, total_size);
	TEST_ASSERT(sb.st_blksize && !(sb.st_blksize % page_size),
		    "st_blksize %ld is no multiple of %zu", sb.st_blksize, page_size);

	/* It has been set; it stays. */
	for (i = 0; i < ARRAY_SIZE(others); i++)
		expect_errno(ftruncate(fd, others[i] * page_size), EPERM,
			     "ftruncate() to %ld pages", others[i]);
	TEST_ASSERT(!ftruncate(fd, total_size), "ftruncate() to the same size failed: %s",
		    strerror(errno));

	TEST_ASSERT(!fstat(fd, &sb), "fstat() failed: %s", strerror(errno));
	TEST_ASSERT_EQ(sb.st_size, total_size);
}

static void test_fallocate(int fd, size_t page_size)
{
	const size_t total_size = NR_PAGES * page_size;
	/* With and without a size that could grow. */
	static const int modes[] = { FALLOC_FL_KEEP_SIZE, 0 };
	int i, page;

	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		/* Exactly the page asked for, wherever it is... */
		for (page = 0; page < NR_PAGES; page++) {
			TEST_ASSERT(!fallocate(fd, modes[i], page * page_size, page_size),
				    "fallocate() of page %d failed: %s", page, strerror(errno));
			assert_private(fd, page_size, BIT(page));
			memfd_to_shared(fd, page * page_size, page_size);
			assert_private(fd, page_size, 0);
		}

		/* ...or all of them; what is there already is no error. */
		memfd_to_private(fd, page_size, page_size);
		TEST_ASSERT(!fallocate(fd, modes[i], 0, total_size),
			    "fallocate() of the whole file failed: %s", strerror(errno));
		assert_private(fd, page_size, BIT(NR_PAGES) - 1);

		expect_errno(fallocate(fd, modes[i], total_size, page_size), EINVAL,
			     "fallocate() at the size");
		expect_errno(fallocate(fd, modes[i], total_size + page_size, page_size), EINVAL,
			     "fallocate() past the size");
		expect_errno(fallocate(fd, modes[i], total_size - page_size, 2 * page_size), EINVAL,
			     "fallocate() across the size");
		expect_errno(fallocate(fd, modes[i], 0, 0), EINVAL, "fallocate() of nothing");
		assert_private(fd, page_size, BIT(NR_PAGES) - 1);
		memfd_to_shared(fd, 0, total_size);
		assert_private(fd, page_size, 0);
	}

	/* Holes: the middle of it, and back again. */
	memfd_to_private(fd, 0, total_size);
	memfd_to_shared(fd, page_size, page_size);
	assert_private(fd, page_size, (BIT(NR_PAGES) - 1) & ~BIT(1));
	memfd_to_shared(fd, page_size, page_size);
	assert_private(fd, page_size, (BIT(NR_PAGES) - 1) & ~BIT(1));
	memfd_to_private(fd, page_size, page_size);
	assert_private(fd, page_size, BIT(NR_PAGES) - 1);

	/* A guest_memfd takes these two for holes that are there already. */
	expect_errno(fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
			       total_size, page_size), EINVAL, "PUNCH_HOLE at the size");
	expect_errno(fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
			       total_size + page_size, page_size), EINVAL,
		     "PUNCH_HOLE past the size");
	expect_errno(fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
			       total_size - page_size, 2 * page_size), EINVAL,
		     "PUNCH_HOLE across the size");
	assert_private(fd, page_size, BIT(NR_PAGES) - 1);
}

static void test_fallocate_modes(int fd, size_t page_size)
{
	static const int modes[] = {
		FALLOC_FL_PUNCH_HOLE,		/* without KEEP_SIZE */
		FALLOC_FL_COLLAPSE_RANGE,
		FALLOC_FL_ZERO_RANGE,
		FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_INSERT_RANGE,
		FALLOC_FL_UNSHARE_RANGE,
		FALLOC_FL_UNSHARE_RANGE | FALLOC_FL_KEEP_SIZE,
	};
	const struct file_state old = get_state(fd, page_size);
	int i;

	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		expect_errno(fallocate(fd, modes[i], page_size, page_size), EOPNOTSUPP,
			     "fallocate() with mode %#x", modes[i]);
		assert_state(fd, page_size, &old);
	}
}

/* Parts of pages are no ranges, neither to allocate nor to punch. */
static void test_unaligned(int fd, size_t page_size)
{
	const struct {
		off_t offset;
		off_t len;
	} testcases[] = {
		{0, 1},
		{0, page_size - 1},
		{0, page_size + 1},

		{1, 1},
		{1, page_size - 1},
		{1, page_size},
		{1, page_size + 1},

		{page_size, 1},
		{page_size, page_size - 1},
		{page_size, page_size + 1},

		{page_size - 1, 1},
		{page_size - 1, 2},
		{page_size - 1, page_size},

		{NR_PAGES * page_size - 1, 1},
		{NR_PAGES * page_size - 1, page_size},
	};
	static const int modes[] = {
		FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
		FALLOC_FL_KEEP_SIZE,
		0,
	};
	struct file_state old;
	int i, j;

	/* One page that could vanish, and holes that could be filled. */
	memfd_to_shared(fd, 0, NR_PAGES * page_size);
	memfd_to_private(fd, page_size, page_size);
	old = get_state(fd, page_size);

	for (i = 0; i < ARRAY_SIZE(testcases); i++) {
		for (j = 0; j < ARRAY_SIZE(modes); j++) {
			expect_errno(fallocate(fd, modes[j], testcases[i].offset,
					       testcases[i].len), EINVAL,
				     "fallocate() with mode %d, offset %#lx, length %#lx",
				     modes[j], testcases[i].offset, testcases[i].len);
			assert_state(fd, page_size, &old);
		}
	}
}

static void test_create_invalid(unsigned int type, size_t page_size)
{
	/* All sizes that are not, or a few thousands of them. */
	const size_t step = max_t(size_t, page_size / SZ_4K, 2) - 1;
	static const unsigned int valid = MFD_CLOEXEC | MFD_ALLOW_SEALING |
					  MFD_HUGETLB | MFD_NOEXEC_SEAL |
					  MFD_INACCESSIBLE;
	unsigned int flag;
	struct stat sb;
	size_t size;
	int fd;

	/* Unknown flags, MFD_EXEC, and MFD_HUGE_*, which need MFD_HUGETLB. */
	for (flag = 1; flag; flag <<= 1) {
		if (flag & valid)
			continue;
		if (type & MFD_HUGETLB && flag >> MFD_HUGE_SHIFT)
			continue;
		fd = memfd_create("private", type | MFD_INACCESSIBLE | flag);
		expect_errno(fd, EINVAL, "memfd_create() with flag %#x", flag);
	}

	/* A size that is none leaves the file without one. */
	fd = memfd_create("private", type | MFD_INACCESSIBLE);
	TEST_ASSERT(fd >= 0, __KVM_SYSCALL_ERROR("memfd_create()", fd));
	for (size = 1; size < page_size; size += step) {
		expect_errno(ftruncate(fd, size), EINVAL, "ftruncate() to %#lx", size);
		expect_errno(ftruncate(fd, page_size + size), EINVAL, "ftruncate() to %#lx",
			     page_size + size);
	}
	TEST_ASSERT(!fstat(fd, &sb) && !sb.st_size, "The size is %ld", sb.st_size);
	expect_errno(fallocate(fd, 0, 0, page_size), EINVAL, "fallocate() without a size");
	TEST_ASSERT(!ftruncate(fd, page_size), "ftruncate() failed: %s", strerror(errno));
	close(fd);
}

static void test_create_multiple(unsigned int type, size_t page_size)
{
	int fd1, fd2;
	struct stat st1, st2;

	fd1 = private_memfd_sized(page_size, type | MFD_INACCESSIBLE);
	TEST_ASSERT(!fstat(fd1, &st1), "fstat() failed: %s", strerror(errno));
	TEST_ASSERT_EQ(st1.st_size, page_size);

	fd2 = private_memfd_sized(page_size * 2, type | MFD_INACCESSIBLE);
	TEST_ASSERT(!fstat(fd2, &st2), "fstat() failed: %s", strerror(errno));
	TEST_ASSERT_EQ(st2.st_size, page_size * 2);

	memfd_to_private(fd2, 0, page_size);
	TEST_ASSERT(memfd_is_private(fd2, 0), "Allocated, but not private");
	TEST_ASSERT(!memfd_is_private(fd1, 0), "Private because of another file");

	TEST_ASSERT(!fstat(fd1, &st1), "fstat() failed: %s", strerror(errno));
	TEST_ASSERT_EQ(st1.st_size, page_size);
	TEST_ASSERT(st1.st_ino != st2.st_ino, "Two files have inode number %lu", st1.st_ino);

	close(fd2);
	close(fd1);
}

static void test_file(int fd, size_t page_size)
{
	/* Empty, then with something to get at. */
	test_file_read_write(fd, page_size);
	test_mmap(fd, page_size);
	assert_private(fd, page_size, 0);

	memfd_to_private(fd, 0, NR_PAGES * page_size);
	test_file_read_write(fd, page_size);
	test_mmap(fd, page_size);
	assert_private(fd, page_size, BIT(NR_PAGES) - 1);
	memfd_to_shared(fd, 0, NR_PAGES * page_size);

	test_file_size(fd, page_size);
	test_fallocate(fd, page_size);
	test_fallocate_modes(fd, page_size);
	test_unaligned(fd, page_size);
}

static void test_store(unsigned int type, size_t page_size)
{
	const size_t total_size = NR_PAGES * page_size;
	struct kvm_vm *vm;
	int fd;

	test_create_invalid(type, page_size);
	test_create_multiple(type, page_size);

	fd = private_memfd_sized(total_size, type | MFD_INACCESSIBLE);
	vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	vm_add_private(vm, PRIVATE_SLOT, PRIVATE_GPA, total_size,
		       map_shared_half(total_size), fd, 0);
	test_file(fd, page_size);

	/* And when the VM is gone, or there was none; if it doesn't take minutes to clear it. */
	vm_delete_private(vm, PRIVATE_SLOT);
	memfd_to_shared(fd, 0, total_size);
	if (!backing_is_1g())
		test_file(fd, page_size);
	kvm_vm_free(vm);
	memfd_to_shared(fd, 0, total_size);
	if (!backing_is_1g())
		test_file(fd, page_size);
	close(fd);

	if (backing_is_1g())
		return;
	fd = private_memfd_sized(total_size, type | MFD_INACCESSIBLE);
	test_file(fd, page_size);
	close(fd);
}

int main(int argc, char *argv[])
{
	int fd;

	require_private_mem();

	test_store(private_backing()->memfd_flags, UNIT);

	/* What can't be made inaccessible is not made at all. */
	if (!(kvm_check_cap(KVM_CAP_PRIVATE_MEM) & PRIVATE_MEM_HUGETLBFS)) {
		fd = memfd_create("private", MFD_HUGETLB | MFD_INACCESSIBLE);
		expect_errno(fd, EINVAL, "memfd_create() of a store that can't do it");
	}

	return 0;
}
