// SPDX-License-Identifier: GPL-2.0
/*
 * KVM_PRE_FAULT_MEMORY on KVM_MEM_PRIVATE slots: what pre_fault_memory_test
 * checks of other slots, for each way in which the halves can be mixed.
 *
 * Prefaulting maps the half that the file says, and never converts anything.
 */
#include <linux/sizes.h>

#include "private_memfd.h"

/* A huge page and a page that has no huge one to be in, or a few units. */
#define TEST_NPAGES		nr_units(PAGES_PER_2M + 1, 9, 3)
#define TEST_SIZE		(TEST_NPAGES * UNIT)

#define SHARED_VALUE(page)	(0x5a5a0000ul + (page))
#define PRIVATE_VALUE(page)	(0xdead0000ul + (page))

static bool page_is_private(const char *pattern, int page)
{
	return pattern[page % strlen(pattern)] == 'p';
}

/* What it finds is checked by the host, page by page. */
static void guest_code(uint64_t base_gpa, uint64_t *found, uint64_t nr, uint64_t unit)
{
	uint64_t i;

	for (i = 0; i < nr; i++) {
		uint64_t *p = (uint64_t *)(base_gpa + i * unit);

		WRITE_ONCE(found[i], READ_ONCE(*p));
		WRITE_ONCE(*p, PRIVATE_VALUE(i));
	}

	GUEST_DONE();
}

/* Prefault until it is done or fails; @error is 0 or how it should fail. */
static void pre_fault(struct kvm_vcpu *vcpu, uint64_t gpa, uint64_t size,
		      uint64_t left, int error)
{
	struct kvm_pre_fault_memory range = {
		.gpa = gpa,
		.size = size,
	};
	int ret, save_errno;
	uint64_t prev;

	do {
		prev = range.size;
		ret = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
		save_errno = errno;
		TEST_ASSERT((range.size < prev) ^ (ret < 0),
			    "%sexpecting range.size to change on %s",
			    ret < 0 ? "not " : "",
			    ret < 0 ? "failure" : "success");
	} while (ret >= 0 ? range.size : save_errno == EINTR || save_errno == EAGAIN);

	TEST_ASSERT(range.size == left && range.gpa == gpa + size - left,
		    "Completed at %#llx with %#llx bytes left, expected %#lx",
		    range.gpa, range.size, left);
	errno = save_errno;
	TEST_ASSERT(error ? ret == -1 && errno == error : !ret,
		    "KVM_PRE_FAULT_MEMORY: wanted %s, got %d (%s)",
		    error ? strerror(error) : "0", ret, ret ? strerror(errno) : "no error");
}

/*
 * Pages are private (p) or shared (s) as the string says, which repeats itself.
 * The halves are @hva_pages and @file_pages off from their huge page alignment.
 */
static void test_pre_fault(const char *pattern, int hva_pages, int file_pages)
{
	const off_t offset = file_pages * UNIT;
	uint64_t nr_private = 0, mapped;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	uint64_t *found;
	vm_vaddr_t gva;
	void *hva;
	int fd, i;

	pr_info("Testing pages '%s', userspace_addr %d and offset %d pages off\n",
		pattern, hva_pages, file_pages);

	vm = vm_create_private(1, guest_code, &vcpu);
	gva = vm_vaddr_alloc(vm, TEST_NPAGES * sizeof(*found), KVM_UTIL_MIN_VADDR);
	found = addr_gva2hva(vm, gva);

	hva = map_half(TEST_SIZE, hva_pages, PROT_READ | PROT_WRITE);
	fd = private_memfd(offset + TEST_SIZE);
	vm_add_private(vm, PRIVATE_SLOT, PRIVATE_GPA, TEST_SIZE, hva, fd, offset);
	virt_map_private(vm, PRIVATE_GPA, TEST_SIZE);

	for (i = 0; i < TEST_NPAGES; i++) {
		*(uint64_t *)(hva + i * UNIT) = SHARED_VALUE(i);
		if (page_is_private(pattern, i))
			nr_private++;
	}
	if (nr_private == TEST_NPAGES)
		memfd_to_private(fd, offset, TEST_SIZE);
	else
		for (i = 0; i < TEST_NPAGES; i++)
			if (page_is_private(pattern, i))
				memfd_to_private(fd, offset + i * UNIT, UNIT);
	TEST_ASSERT_EQ(memfd_nr_private(fd), nr_private);

	TEST_ASSERT_EQ(get_vm_stat(vm, "private_pages"), 0);
	pre_fault(vcpu, PRIVATE_GPA, TEST_SIZE - UNIT, 0, 0);
	pre_fault(vcpu, PRIVATE_GPA + TEST_SIZE - UNIT, UNIT + PAGE_SIZE, PAGE_SIZE, ENOENT);
	pre_fault(vcpu, PRIVATE_GPA + TEST_SIZE, PAGE_SIZE, PAGE_SIZE, ENOENT);

	/* All of it is mapped now, and none of it changed. */
	mapped = nr_private_mapped(vm);
	TEST_ASSERT(mapped == nr_private, "%lu of %lu private pages are mapped",
		    mapped, nr_private);
	TEST_ASSERT_EQ(memfd_nr_private(fd), nr_private);

	/* Once more, over what is mapped. */
	pre_fault(vcpu, PRIVATE_GPA, TEST_SIZE, 0, 0);

	vcpu_args_set(vcpu, 4, PRIVATE_GPA, gva, TEST_NPAGES, UNIT);
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(get_ucall(vcpu, NULL), UCALL_DONE);

	for (i = 0; i < TEST_NPAGES; i++) {
		bool private = page_is_private(pattern, i);
		uint64_t shared = *(uint64_t *)(hva + i * UNIT);

		TEST_ASSERT(found[i] == (private ? 0 : SHARED_VALUE(i)),
			    "The guest found %#lx in page %d, which is %s", found[i], i,
			    private ? "private" : "shared");
		TEST_ASSERT(shared == (private ? SHARED_VALUE(i) : PRIVATE_VALUE(i)),
			    "The host found %#lx in page %d, which is %s", shared, i,
			    private ? "private" : "shared");
	}
	TEST_ASSERT_EQ(memfd_nr_private(fd), nr_private);
	TEST_ASSERT_EQ(nr_private_mapped(vm), nr_private);

	kvm_vm_free(vm);
	close(fd);
}

/*
 * Where there is neither half: it fails and allocates nothing.  Only the guest
 * itself, by touching the page, lets the VMM know that it wants one.
 */
static void test_pre_fault_hole(void)
{
	/* There are some pages, a hole, and a page after it. */
	const uint64_t hole = nr_units(3, 3, 1), after = hole + 1;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int fd;

	pr_info("Testing holes of a private-only slot\n");

	vm = vm_create_private(1, guest_code, &vcpu);
	fd = private_memfd(TEST_SIZE);
	vm_add_private(vm, PRIVATE_SLOT, PRIVATE_GPA, TEST_SIZE,
		       map_no_shared_half(TEST_SIZE), fd, 0);

	pre_fault(vcpu, PRIVATE_GPA, TEST_SIZE, TEST_SIZE, EFAULT);
	TEST_ASSERT_EQ(memfd_nr_private(fd), 0);
	TEST_ASSERT_EQ(nr_private_mapped(vm), 0);

	/* Up to the first hole. */
	memfd_to_private(fd, 0, hole * UNIT);
	memfd_to_private(fd, after * UNIT, UNIT);
	pre_fault(vcpu, PRIVATE_GPA, TEST_SIZE, TEST_SIZE - hole * UNIT, EFAULT);
	TEST_ASSERT_EQ(memfd_nr_private(fd), hole + 1);
	TEST_ASSERT_EQ(nr_private_mapped(vm), hole);

	/* From behind it on. */
	pre_fault(vcpu, PRIVATE_GPA + after * UNIT, UNIT, 0, 0);
	TEST_ASSERT_EQ(nr_private_mapped(vm), hole + 1);

	memfd_to_private(fd, 0, TEST_SIZE);
	pre_fault(vcpu, PRIVATE_GPA, TEST_SIZE, 0, 0);
	TEST_ASSERT_EQ(memfd_nr_private(fd), TEST_NPAGES);
	TEST_ASSERT_EQ(nr_private_mapped(vm), TEST_NPAGES);

	/* What is punched is no longer mapped, and a hole again. */
	memfd_to_shared(fd, UNIT, UNIT);
	pre_fault(vcpu, PRIVATE_GPA + UNIT, UNIT, UNIT, EFAULT);
	TEST_ASSERT_EQ(memfd_nr_private(fd), TEST_NPAGES - 1);

	kvm_vm_free(vm);
	close(fd);
}

int main(int argc, char *argv[])
{
	static const char * const patterns[] = { "p", "s", "ps", "ppps", "sssp" };
	int i;

	require_private_mem();
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_PRE_FAULT_MEMORY));

	for (i = 0; i < ARRAY_SIZE(patterns) && !backing_is_1g(); i++) {
		test_pre_fault(patterns[i], 0, 0);
		test_pre_fault(patterns[i], 1, 0);
		test_pre_fault(patterns[i], 0, 1);
		test_pre_fault(patterns[i], 3, 1);
	}
	/* There isn't time to clear many GiB, nor for a million mappings of 4 KiB. */
	if (backing_is_1g()) {
		test_pre_fault("p", 0, 0);
		test_pre_fault("ps", 0, 1);
	}
	test_pre_fault_hole();

	return 0;
}
