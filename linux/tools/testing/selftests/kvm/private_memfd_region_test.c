// SPDX-License-Identifier: GPL-2.0
/*
 * KVM_MEM_PRIVATE slots by themselves: what set_memory_region_test checks of
 * guest_memfd ones.  Which calls make, change and delete a slot, how the others
 * fail, and that what fails has changed nothing.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/compiler.h>

#include "private_memfd.h"

#define MEM_REGION_SIZE		max_t(uint64_t, SZ_2M, UNIT)
#define MEM_REGION_GPA		PRIVATE_GPA
#define MEM_REGION_SLOT		10

#define SW_PROTECTED_VM		KVM_X86_SW_PROTECTED_VM

/* The slot that the tests below vary. */
static struct kvm_userspace_memory_region2 good_region(int fd)
{
	static void *hva;

	if (!hva)
		hva = map_shared_half(MEM_REGION_SIZE);

	return private_region(MEM_REGION_SLOT, MEM_REGION_GPA, MEM_REGION_SIZE, hva, fd);
}

/* Both ioctls take the same struct and check the same things. */
static const struct {
	unsigned long cmd;
	const char *name;
} ioctls[] = {
	{ KVM_SET_USER_MEMORY_REGION, "KVM_SET_USER_MEMORY_REGION" },
	{ KVM_SET_USER_MEMORY_REGION2, "KVM_SET_USER_MEMORY_REGION2" },
};

/* The kernel takes more of the struct than the command says, see the header. */
static int set_region(struct kvm_vm *vm, unsigned long cmd,
		      const struct kvm_userspace_memory_region2 *region)
{
	return ioctl(vm->fd, cmd, region);
}

static void expect_error(struct kvm_vm *vm, const struct kvm_userspace_memory_region2 *region,
			 int error, const char *what)
{
	int i, r;

	for (i = 0; i < ARRAY_SIZE(ioctls); i++) {
		r = set_region(vm, ioctls[i].cmd, region);
		TEST_ASSERT(r == -1 && errno == error, "%s, %s: wanted %s, got %d (%s)",
			    ioctls[i].name, what, strerror(error), r,
			    r ? strerror(errno) : "no error");
	}
}

static void expect_good(struct kvm_vm *vm, const struct kvm_userspace_memory_region2 *region,
			const char *what)
{
	struct kvm_userspace_memory_region2 delete = {
		.slot = region->slot,
	};
	int i, r;

	for (i = 0; i < ARRAY_SIZE(ioctls); i++) {
		r = set_region(vm, ioctls[i].cmd, region);
		TEST_ASSERT(!r, "%s, %s: %s", ioctls[i].name, what, strerror(errno));
		/* With the flag or without it. */
		delete.flags = i ? KVM_MEM_PRIVATE : 0;
		r = set_region(vm, ioctls[i].cmd, &delete);
		TEST_ASSERT(!r, "%s, deletion after %s: %s", ioctls[i].name, what,
			    strerror(errno));
	}
}

/* KVM_CAP_PRIVATE_MEM tells which type of VM can have such slots. */
static void test_vm_types(void)
{
	static const unsigned long types[] = { KVM_X86_DEFAULT_VM, SW_PROTECTED_VM };
	struct kvm_userspace_memory_region2 region;
	unsigned int stores;
	struct kvm_vm *vm;
	int fd, i;

	pr_info("Testing types of VMs\n");

	fd = private_memfd(MEM_REGION_SIZE);
	region = good_region(fd);

	for (i = 0; i < ARRAY_SIZE(types); i++) {
		vm = vm_create_barebones_type(types[i]);
		stores = vm_check_cap(vm, KVM_CAP_PRIVATE_MEM);
		if (types[i] == SW_PROTECTED_VM) {
			TEST_ASSERT_EQ(stores, kvm_check_cap(KVM_CAP_PRIVATE_MEM));
			expect_good(vm, &region, "software-protected VM");
		} else {
			TEST_ASSERT_EQ(stores, 0);
			expect_error(vm, &region, EINVAL, "VM of the default type");
		}
		kvm_vm_free(vm);
	}

	stores = kvm_check_cap(KVM_CAP_PRIVATE_MEM);
	TEST_ASSERT(stores & private_backing()->store && !(stores & ~PRIVATE_MEM_ALL),
		    "Unknown backing stores in %#x", stores);
	close(fd);
}

static void test_invalid_flags(void)
{
	struct kvm_userspace_memory_region2 region;
	struct kvm_vm *vm;
	int fd, guest_memfd, i;

	pr_info("Testing flags beside KVM_MEM_PRIVATE\n");

	vm = vm_create_barebones_type(SW_PROTECTED_VM);
	fd = private_memfd(MEM_REGION_SIZE);
	region = good_region(fd);

	/* Dirty logging, read-only, another private half, and what is unknown. */
	for (i = 0; i < 32; i++) {
		if (BIT(i) == KVM_MEM_PRIVATE)
			continue;
		region.flags = KVM_MEM_PRIVATE | BIT(i);
		expect_error(vm, &region, EINVAL, "flag that can't be combined");
	}

	guest_memfd = vm_create_guest_memfd(vm, MEM_REGION_SIZE, 0);
	region.flags = KVM_MEM_PRIVATE | KVM_MEM_GUEST_MEMFD;
	region.private_fd = guest_memfd;
	expect_error(vm, &region, EINVAL, "guest_memfd with both flags");
	close(guest_memfd);

	region = good_region(fd);
	expect_good(vm, &region, "no other flag");

	kvm_vm_free(vm);
	close(fd);
}

/* The pads are checked, and before the file is looked at. */
static void test_invalid_pads(void)
{
	struct kvm_userspace_memory_region2 region;
	struct kvm_vm *vm;
	int fd, i;

	pr_info("Testing pads\n");

	vm = vm_create_barebones_type(SW_PROTECTED_VM);
	fd = private_memfd(MEM_REGION_SIZE);

	region = good_region(-1);
	expect_error(vm, &region, EBADF, "no fd");
	region.pad1 = 1;
	expect_error(vm, &region, EINVAL, "pad1");

	for (i = 0; i < ARRAY_SIZE(region.pad2); i++) {
		region = good_region(-1);
		region.pad2[i] = 1ull << 63;
		expect_error(vm, &region, EINVAL, "pad2");
	}

	kvm_vm_free(vm);
	close(fd);
}

/*
 * KVM_SET_USER_MEMORY_REGION is for structs of 32 bytes: it reads on only for a
 * slot that has KVM_MEM_PRIVATE and isn't to be deleted.
 */
static void test_struct_size(void)
{
	const size_t small = sizeof(struct kvm_userspace_memory_region);
	struct kvm_userspace_memory_region2 region, *edge;
	struct kvm_vm *vm;
	void *page;
	int fd, r;

	pr_info("Testing structs at the end of memory\n");

	page = mmap(NULL, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(page != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	TEST_ASSERT(!munmap(page + PAGE_SIZE, PAGE_SIZE), "munmap() failed: %s",
		    strerror(errno));
	edge = page + PAGE_SIZE - small;

	vm = vm_create_barebones_type(SW_PROTECTED_VM);
	fd = private_memfd(MEM_REGION_SIZE);
	region = good_region(fd);

	memcpy(edge, &region, small);
	r = set_region(vm, KVM_SET_USER_MEMORY_REGION, edge);
	TEST_ASSERT(r == -1 && errno == EFAULT, "Struct without an fd: wanted EFAULT, got %d (%s)",
		    r, r ? strerror(errno) : "no error");

	/* An ordinary slot... */
	region.flags = 0;
	memcpy(edge, &region, small);
	r = set_region(vm, KVM_SET_USER_MEMORY_REGION, edge);
	TEST_ASSERT(!r, "Ordinary slot: %s", strerror(errno));
	region.memory_size = 0;
	memcpy(edge, &region, small);
	r = set_region(vm, KVM_SET_USER_MEMORY_REGION, edge);
	TEST_ASSERT(!r, "Deletion of an ordinary slot: %s", strerror(errno));

	/* ...and the deletion of one with the flag. */
	region = good_region(fd);
	r = set_region(vm, KVM_SET_USER_MEMORY_REGION, &region);
	TEST_ASSERT(!r, "Private slot: %s", strerror(errno));
	region.memory_size = 0;
	memcpy(edge, &region, small);
	r = set_region(vm, KVM_SET_USER_MEMORY_REGION, edge);
	TEST_ASSERT(!r, "Deletion of a private slot: %s", strerror(errno));

	munmap(page, PAGE_SIZE);
	kvm_vm_free(vm);
	close(fd);
}

static int reopen(int fd, int flags)
{
	char path[32];
	int r;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	r = open(path, flags | O_CLOEXEC);
	TEST_ASSERT(r >= 0, "open(%s) failed: %s", path, strerror(errno));
	return r;
}

static void test_invalid_fds(void)
{
	struct kvm_userspace_memory_region2 region = good_region(-1);
	struct kvm_vm *vm, *vm2;
	int fd, other;

	pr_info("Testing ADD with file descriptors that won't do\n");

	vm = vm_create_barebones_type(SW_PROTECTED_VM);
	vm2 = vm_create_barebones_type(SW_PROTECTED_VM);

	/* No fd at all. */
	expect_error(vm, &region, EBADF, "fd -1");
	region.private_fd = INT_MAX;
	expect_error(vm, &region, EBADF, "fd INT_MAX");
	fd = private_memfd(MEM_REGION_SIZE);
	close(fd);
	region.private_fd = fd;
	expect_error(vm, &region, EBADF, "closed fd");

	/* An fd of something else. */
	region.private_fd = vm->kvm_fd;
	expect_error(vm, &region, EINVAL, "KVM's fd");
	region.private_fd = vm->fd;
	expect_error(vm, &region, EINVAL, "the VM's fd");

	other = backing_memfd(MEM_REGION_SIZE, 0);
	region.private_fd = other;
	expect_error(vm, &region, EINVAL, "ordinary memfd");
	close(other);

	other = vm_create_guest_memfd(vm, MEM_REGION_SIZE, 0);
	region.private_fd = other;
	expect_error(vm, &region, EINVAL, "guest_memfd");
	close(other);

	/* Not open for reading and writing. */
	fd = private_memfd(MEM_REGION_SIZE);
	other = reopen(fd, O_RDONLY);
	region.private_fd = other;
	expect_error(vm, &region, EBADF, "read-only fd");
	close(other);
	other = reopen(fd, O_WRONLY);
	region.private_fd = other;
	expect_error(vm, &region, EBADF, "write-only fd");
	close(other);
	other = reopen(fd, O_PATH);
	region.private_fd = other;
	expect_error(vm, &region, EBADF, "O_PATH fd");
	close(other);

	/* An inaccessible memfd is no guest_memfd. */
	region.private_fd = fd;
	region.flags = KVM_MEM_GUEST_MEMFD;
	TEST_ASSERT(set_region(vm, KVM_SET_USER_MEMORY_REGION2, &region) == -1 &&
		    errno == EINVAL, "KVM_MEM_GUEST_MEMFD should refuse an inaccessible memfd");
	region.flags = KVM_MEM_PRIVATE;

	/* Reopened, it is the same file. */
	other = reopen(fd, O_RDWR);
	region.private_fd = other;
	expect_good(vm, &region, "reopened fd");
	close(other);

	/* In use by another VM, and its content still the other VM's. */
	region.private_fd = fd;
	vm_add_private(vm2, 0, 0, PAGE_SIZE, map_shared_half(PAGE_SIZE), fd,
		       MEM_REGION_SIZE - PAGE_SIZE);
	expect_error(vm, &region, EBUSY, "memfd of another VM");
	memfd_to_private(fd, 0, UNIT);
	vm_delete_private(vm2, 0);
	expect_error(vm, &region, EBUSY, "content of another VM");
	kvm_vm_free(vm2);
	expect_error(vm, &region, EBUSY, "content of a dead VM");
	memfd_to_shared(fd, 0, UNIT);
	expect_good(vm, &region, "memfd that was another VM's");

	kvm_vm_free(vm);
	close(fd);
}

static void test_invalid_ranges(void)
{
	struct kvm_userspace_memory_region2 region;
	struct kvm_vm *vm;
	uint64_t offset;
	int fd, empty;

	pr_info("Testing ADD with ranges that the memfd doesn't have\n");

	vm = vm_create_barebones_type(SW_PROTECTED_VM);
	fd = private_memfd(2 * MEM_REGION_SIZE);
	region = good_region(fd);

	for (offset = 1; offset < PAGE_SIZE; offset++) {
		region.private_offset = offset;
		expect_error(vm, &region, EINVAL, "unaligned offset");
	}

	region.private_offset = MEM_REGION_SIZE + PAGE_SIZE;
	expect_error(vm, &region, EINVAL, "range across the end of the memfd");
	region.private_offset = 2 * MEM_REGION_SIZE;
	expect_error(vm, &region, EINVAL, "range behind the memfd");
	region.private_offset = 1ull << 63;
	expect_error(vm, &region, EINVAL, "negative offset");
	region.private_offset = -(uint64_t)PAGE_SIZE;
	expect_error(vm, &region, EINVAL, "offset that overflows");
	region.private_offset = -MEM_REGION_SIZE;
	expect_error(vm, &region, EINVAL, "offset that overflows to 0");

	region.private_offset = 0;
	region.memory_size = 2 * MEM_REGION_SIZE + PAGE_SIZE;
	expect_error(vm, &region, EINVAL, "slot larger than the memfd");

	region = good_region(fd);
	empty = memfd_create("private", private_backing()->memfd_flags | MFD_INACCESSIBLE);
	TEST_ASSERT(empty >= 0, __KVM_SYSCALL_ERROR("memfd_create()", empty));
	region.private_fd = empty;
	expect_error(vm, &region, EINVAL, "memfd without a size");
	close(empty);

	region.private_fd = fd;
	expect_good(vm, &region, "front half of the memfd");
	region.private_offset = PAGE_SIZE;
	expect_good(vm, &region, "middle of the memfd");
	region.private_offset = MEM_REGION_SIZE;
	expect_good(vm, &region, "back half of the memfd");

	kvm_vm_free(vm);
	close(fd);
}

static void test_overlapping_regions(void)
{
	struct kvm_userspace_memory_region2 region;
	struct kvm_vm *vm;
	void *hva;
	int fd, i;

	static const struct {
		const char *what;
		uint64_t offset, size;
		int error;
	} tests[] = {
		{ "all of it", 2, 2, EEXIST },
		{ "front half", 2, 1, EEXIST },
		{ "back half", 3, 1, EEXIST },
		{ "across its front", 1, 2, EEXIST },
		{ "across its back", 3, 2, EEXIST },
		{ "around it", 1, 4, EEXIST },
		{ "up to its front", 0, 2 },
		{ "from its back on", 4, 2 },
	};

	pr_info("Testing ADD of overlapping ranges\n");

	vm = vm_create_barebones_type(SW_PROTECTED_VM);
	hva = map_shared_half(MEM_REGION_SIZE * 8);
	fd = private_memfd(MEM_REGION_SIZE * 6);

	vm_add_private(vm, MEM_REGION_SLOT + 1, MEM_REGION_GPA * 2, MEM_REGION_SIZE * 2,
		       hva, fd, MEM_REGION_SIZE * 2);

	/* In the memfd: two slots can't share a page. */
	for (i = 0; i < ARRAY_SIZE(tests); i++) {
		region = good_region(fd);
		region.userspace_addr = (uintptr_t)hva;
		region.private_offset = tests[i].offset * MEM_REGION_SIZE;
		region.memory_size = tests[i].size * MEM_REGION_SIZE;
		if (tests[i].error)
			expect_error(vm, &region, tests[i].error, tests[i].what);
		else
			expect_good(vm, &region, tests[i].what);
	}

	/* In guest memory: that is an error already, and binds nothing. */
	region = good_region(fd);
	region.guest_phys_addr = MEM_REGION_GPA * 2 + MEM_REGION_SIZE;
	expect_error(vm, &region, EEXIST, "guest memory of another slot");

	/* In host memory that is nobody's business. */
	region = good_region(fd);
	region.userspace_addr = (uintptr_t)hva;
	expect_good(vm, &region, "shared half of another slot");

	/* One page is enough to be in the way, and gone when it is deleted. */
	vm_delete_private(vm, MEM_REGION_SLOT + 1);
	vm_add_private(vm, MEM_REGION_SLOT + 1, MEM_REGION_GPA * 2, PAGE_SIZE, hva, fd,
		       MEM_REGION_SIZE - PAGE_SIZE);
	region = good_region(fd);
	expect_error(vm, &region, EEXIST, "a single page");
	vm_delete_private(vm, MEM_REGION_SLOT + 1);
	expect_good(vm, &region, "page whose slot is deleted");

	kvm_vm_free(vm);
	close(fd);
}

/* Nothing of such a slot can change but that it is there. */
static void test_modify_region(void)
{
	struct kvm_userspace_memory_region2 region, good, plain;
	struct kvm_vm *vm;
	int fd, fd2, i;

	pr_info("Testing changes of a region\n");

	vm = vm_create_barebones_type(SW_PROTECTED_VM);
	fd = private_memfd(2 * MEM_REGION_SIZE);
	fd2 = private_memfd(2 * MEM_REGION_SIZE);
	good = good_region(fd);
	plain = good;
	plain.flags = 0;
	plain.private_fd = 0;

	TEST_ASSERT(!set_region(vm, KVM_SET_USER_MEMORY_REGION2, &good), "Adding it failed: %s",
		    strerror(errno));

	expect_error(vm, &good, EINVAL, "the same again");
	region = good;
	region.guest_phys_addr += MEM_REGION_SIZE;
	expect_error(vm, &region, EINVAL, "another gpa");
	region = good;
	region.userspace_addr += PAGE_SIZE;
	expect_error(vm, &region, EINVAL, "another userspace_addr");
	region = good;
	region.memory_size -= PAGE_SIZE;
	expect_error(vm, &region, EINVAL, "another size");
	region = good;
	region.private_offset = MEM_REGION_SIZE;
	expect_error(vm, &region, EINVAL, "another offset");
	region = good;
	region.private_fd = fd2;
	expect_error(vm, &region, EINVAL, "another memfd");

	/* Out of private memory... */
	expect_error(vm, &plain, EINVAL, "flag taken away");
	region = plain;
	region.flags = KVM_MEM_LOG_DIRTY_PAGES;
	expect_error(vm, &region, EINVAL, "dirty logging");
	region.flags = KVM_MEM_READONLY;
	expect_error(vm, &region, EINVAL, "read-only");
	region = plain;
	region.guest_phys_addr += MEM_REGION_SIZE;
	expect_error(vm, &region, EINVAL, "another gpa without the flag");

	/* ...which is still bound after all that... */
	region = good;
	region.slot++;
	region.guest_phys_addr += MEM_REGION_SIZE;
	expect_error(vm, &region, EEXIST, "range that should be bound");
	vm_delete_private(vm, MEM_REGION_SLOT);

	/* ...and into it. */
	for (i = 0; i < 2; i++) {
		plain.flags = i ? KVM_MEM_LOG_DIRTY_PAGES : 0;
		TEST_ASSERT(!set_region(vm, KVM_SET_USER_MEMORY_REGION2, &plain),
			    "Adding an ordinary slot failed: %s", strerror(errno));
		expect_error(vm, &good, EINVAL, "flag given to an ordinary slot");
		vm_delete_private(vm, MEM_REGION_SLOT);
	}
	expect_good(vm, &good, "range that should be free");

	kvm_vm_free(vm);
	close(fd2);
	close(fd);
}

/* Attributes know nothing of such a slot, and must not try. */
static void test_memory_attributes(void)
{
	const uint64_t end = MEM_REGION_GPA + MEM_REGION_SIZE;
	struct kvm_userspace_memory_region2 region;
	struct kvm_vm *vm;
	int fd, i;

	struct {
		uint64_t gpa, size;
		bool refused;
	} tests[] = {
		{ MEM_REGION_GPA, MEM_REGION_SIZE, true },
		{ MEM_REGION_GPA, PAGE_SIZE, true },
		{ end - PAGE_SIZE, PAGE_SIZE, true },
		{ MEM_REGION_GPA - PAGE_SIZE, 2 * PAGE_SIZE, true },
		{ end - PAGE_SIZE, 2 * PAGE_SIZE, true },
		{ MEM_REGION_GPA - PAGE_SIZE, MEM_REGION_SIZE + 2 * PAGE_SIZE, true },
		{ MEM_REGION_GPA - PAGE_SIZE, PAGE_SIZE, false },
		{ end, PAGE_SIZE, false },
	};

	pr_info("Testing memory attributes\n");

	vm = vm_create_barebones_type(SW_PROTECTED_VM);
	fd = private_memfd(MEM_REGION_SIZE);
	region = good_region(fd);
	TEST_ASSERT(!set_region(vm, KVM_SET_USER_MEMORY_REGION2, &region), "Adding it failed: %s",
		    strerror(errno));

	for (i = 0; i < ARRAY_SIZE(tests) * 2; i++) {
		struct kvm_memory_attributes attr = {
			.address = tests[i / 2].gpa,
			.size = tests[i / 2].size,
			.attributes = i & 1 ? 0 : KVM_MEMORY_ATTRIBUTE_PRIVATE,
		};
		int r = __vm_ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &attr);

		if (tests[i / 2].refused)
			TEST_ASSERT(r == -1 && errno == EINVAL,
				    "Attributes %#llx of [%#llx, +%#llx): wanted EINVAL, got %d (%s)",
				    attr.attributes, attr.address, attr.size, r,
				    r ? strerror(errno) : "no error");
		else
			TEST_ASSERT(!r, "Attributes %#llx of [%#llx, +%#llx): %s",
				    attr.attributes, attr.address, attr.size, strerror(errno));
	}
	TEST_ASSERT_EQ(memfd_nr_private(fd), 0);

	kvm_vm_free(vm);
	close(fd);
}

/*
 * Slots up to KVM_CAP_NR_MEMSLOTS, all of them on one memfd, then any attempt
 * to add one more should fail.
 */
static void test_add_max_memory_regions(void)
{
	uint32_t max_mem_slots = kvm_check_cap(KVM_CAP_NR_MEMSLOTS), slot;
	/* Each takes a grace period: once is enough. */
	bool all = !backing_is_huge();
	uint32_t nr_slots = all ? max_mem_slots : 600;
	size_t size = (size_t)(nr_slots + 1) * PAGE_SIZE;
	size_t file_size = align_up(size, UNIT);
	struct kvm_vm *vm;
	void *hva;
	int fd, r;

	TEST_ASSERT(max_mem_slots > 0,
		    "KVM_CAP_NR_MEMSLOTS should be greater than 0");
	pr_info("Adding slots 0..%u, each with a page of one memfd\n", nr_slots - 1);

	vm = vm_create_barebones_type(SW_PROTECTED_VM);
	hva = map_shared_half(size);
	fd = private_memfd(file_size);

	/* In the file they lie the other way round. */
	for (slot = 0; slot < nr_slots; slot++)
		vm_add_private(vm, slot, slot * (uint64_t)PAGE_SIZE, PAGE_SIZE,
			       hva + slot * (uint64_t)PAGE_SIZE, fd,
			       size - (slot + 1) * (uint64_t)PAGE_SIZE);

	/* A change of all of them, or of one. */
	memfd_to_private(fd, backing_is_hugetlb() ? 0 : PAGE_SIZE,
			 align_up(64 * PAGE_SIZE, UNIT));
	memfd_to_shared(fd, 0, file_size);

	r = __vm_add_private(vm, max_mem_slots, nr_slots * (uint64_t)PAGE_SIZE, PAGE_SIZE,
			     hva + size - PAGE_SIZE, fd, 0);
	TEST_ASSERT(r == -1 && errno == EINVAL,
		    "Adding one more memory slot should fail with EINVAL");

	kvm_vm_free(vm);
	munmap(hva, size);
	close(fd);
}

#define MMIO_VAL	0xbeefull
#define PRIVATE_VAL	0x1234ull
#define SHARED_VAL	0x5678ull

static uint64_t guest_spin_on_val(uint64_t spin_val)
{
	uint64_t val;

	do {
		val = READ_ONCE(*((uint64_t *)MEM_REGION_GPA));
	} while (val == spin_val);

	return val;
}

static void guest_code_delete_memory_region(void)
{
	GUEST_ASSERT_EQ(READ_ONCE(*(uint64_t *)MEM_REGION_GPA), 0ul);
	WRITE_ONCE(*((uint64_t *)MEM_REGION_GPA), PRIVATE_VAL);
	GUEST_SYNC(0);

	/* Deleted, and added with the same memfd: the content is still there. */
	GUEST_ASSERT_EQ(guest_spin_on_val(PRIVATE_VAL), MMIO_VAL);
	GUEST_SYNC(1);
	GUEST_ASSERT_EQ(guest_spin_on_val(MMIO_VAL), PRIVATE_VAL);
	GUEST_SYNC(2);

	/* Deleted, and added as an ordinary slot. */
	GUEST_ASSERT_EQ(guest_spin_on_val(PRIVATE_VAL), MMIO_VAL);
	GUEST_SYNC(3);
	GUEST_ASSERT_EQ(guest_spin_on_val(MMIO_VAL), SHARED_VAL);
	GUEST_SYNC(4);

	/* And back again. */
	GUEST_ASSERT_EQ(guest_spin_on_val(SHARED_VAL), MMIO_VAL);
	GUEST_SYNC(5);
	GUEST_ASSERT_EQ(guest_spin_on_val(MMIO_VAL), PRIVATE_VAL);
	GUEST_DONE();
}

/* The number of the last sync, or -1 when the guest is done. */
static int vcpu_stage;

static void *vcpu_worker(void *data)
{
	struct kvm_vcpu *vcpu = data;
	struct kvm_run *run = vcpu->run;
	const uint64_t mmio_val = MMIO_VAL;
	struct ucall uc;

	for (;;) {
		vcpu_run(vcpu);

		if (run->exit_reason == KVM_EXIT_MMIO) {
			TEST_ASSERT(!run->mmio.is_write, "Unexpected exit mmio write");
			TEST_ASSERT_EQ(run->mmio.len, 8);
			TEST_ASSERT_EQ(run->mmio.phys_addr, MEM_REGION_GPA);
			memcpy(run->mmio.data, &mmio_val, 8);
			continue;
		}

		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
		switch (get_ucall(vcpu, &uc)) {
		case UCALL_SYNC:
			WRITE_ONCE(vcpu_stage, uc.args[1] + 1);
			break;
		case UCALL_DONE:
			WRITE_ONCE(vcpu_stage, -1);
			return NULL;
		case UCALL_ABORT:
			REPORT_GUEST_ASSERT(uc);
		default:
			TEST_FAIL("Unexpected ucall %#lx", uc.cmd);
		}
	}
}

static void wait_for_stage(int stage)
{
	int i;

	for (i = 0; READ_ONCE(vcpu_stage) != stage; i++) {
		TEST_ASSERT(i < 10000, "Stage %d instead of %d for 10 seconds",
			    vcpu_stage, stage);
		usleep(1000);
	}
	/* Wait for the vCPU thread to reenter the guest. */
	usleep(20000);
}

/* A slot comes and goes under a running vCPU, with either half in use. */
static void test_delete_memory_region(void)
{
	struct kvm_userspace_memory_region2 region;
	struct kvm_vcpu *vcpu;
	pthread_t thread;
	struct kvm_vm *vm;
	uint64_t *hva;
	int fd;

	pr_info("Testing DELETE of a region in use\n");

	vm = vm_create_private(1, guest_code_delete_memory_region, &vcpu);
	virt_map(vm, MEM_REGION_GPA, MEM_REGION_GPA, 1);
	fd = private_memfd(MEM_REGION_SIZE);
	memfd_to_private(fd, 0, MEM_REGION_SIZE);
	region = good_region(fd);
	hva = (uint64_t *)region.userspace_addr;
	*hva = SHARED_VAL;

	vm_add_private(vm, MEM_REGION_SLOT, MEM_REGION_GPA, MEM_REGION_SIZE, hva, fd, 0);
	vcpu_stage = 0;
	pthread_create(&thread, NULL, vcpu_worker, vcpu);
	wait_for_stage(1);

	vm_delete_private(vm, MEM_REGION_SLOT);
	wait_for_stage(2);
	vm_add_private(vm, MEM_REGION_SLOT, MEM_REGION_GPA, MEM_REGION_SIZE, hva, fd, 0);
	wait_for_stage(3);

	vm_delete_private(vm, MEM_REGION_SLOT);
	wait_for_stage(4);
	vm_set_user_memory_region(vm, MEM_REGION_SLOT, 0, MEM_REGION_GPA, MEM_REGION_SIZE, hva);
	wait_for_stage(5);

	vm_delete_private(vm, MEM_REGION_SLOT);
	wait_for_stage(6);
	vm_add_private(vm, MEM_REGION_SLOT, MEM_REGION_GPA, MEM_REGION_SIZE, hva, fd, 0);
	wait_for_stage(-1);

	pthread_join(thread, NULL);
	TEST_ASSERT_EQ(*hva, SHARED_VAL);
	TEST_ASSERT_EQ(memfd_nr_private(fd), MEM_REGION_SIZE / UNIT);

	kvm_vm_free(vm);
	close(fd);
}

int main(int argc, char *argv[])
{
	int i, loops;

	require_private_mem();

	test_vm_types();
	test_invalid_flags();
	test_invalid_pads();
	test_struct_size();
	test_invalid_fds();
	test_invalid_ranges();
	test_overlapping_regions();
	test_modify_region();
	test_memory_attributes();
	test_add_max_memory_regions();

	loops = argc > 1 ? atoi_positive("Number of iterations", argv[1]) : 5;
	for (i = 0; i < loops; i++)
		test_delete_memory_region();

	return 0;
}
