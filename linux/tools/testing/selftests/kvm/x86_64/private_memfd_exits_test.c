// SPDX-License-Identifier: GPL-2.0-only
/*
 * Exits from accesses to KVM_MEM_PRIVATE slots: what private_mem_kvm_exits_test
 * checks of guest_memfd slots, and what is different here.
 *
 * There is no such thing as an access of the wrong kind, as the file alone says
 * what is private.  What is left of KVM_EXIT_MEMORY_FAULT says that there is
 * nothing behind the shared half, so that only a private page would do.
 */
#include <pthread.h>
#include <stdint.h>

#include <linux/kvm.h>

#include "private_memfd.h"

/* Aligned for units of any size, and beyond anything else. */
#define EXITS_TEST_GVA		PRIVATE_GPA
#define EXITS_TEST_GPA		EXITS_TEST_GVA
#define EXITS_TEST_NPAGES	4
#define EXITS_TEST_SIZE		(EXITS_TEST_NPAGES * UNIT)
#define EXITS_TEST_SLOT		10

#define STRING_IO_PORT		0x80

#define PRIVATE_VALUE		0xdeadbeeful
#define SHARED_VALUE		0x5a5a5a5aul

static void guest_write_and_repeatedly_read(void)
{
	WRITE_ONCE(*(uint64_t *)EXITS_TEST_GVA, PRIVATE_VALUE);
	GUEST_SYNC(0);

	while (true)
		READ_ONCE(*(uint64_t *)EXITS_TEST_GVA);
}

static struct kvm_vm *create_vm(struct kvm_vcpu **vcpu, void *guest_code)
{
	return vm_create_private(1, guest_code, vcpu);
}

static void map_test_pages(struct kvm_vm *vm)
{
	virt_map_private(vm, EXITS_TEST_GPA, EXITS_TEST_SIZE);
}

static void set_private_attribute(struct kvm_vm *vm, uint64_t gpa, uint64_t size)
{
	vm_set_memory_attributes(vm, gpa, size, KVM_MEMORY_ATTRIBUTE_PRIVATE);
}

static void *vcpu_thread(void *arg)
{
	vcpu_run(arg);
	return NULL;
}

/*
 * Without the slot nobody knows what is private: the access is MMIO, as it is
 * without any slot.  The content stays in the file, for when the slot is back.
 */
static void test_private_access_memslot_deleted(void)
{
	struct kvm_vcpu *vcpu;
	pthread_t thread;
	struct kvm_vm *vm;
	int fd, i;

	vm = create_vm(&vcpu, guest_write_and_repeatedly_read);
	map_test_pages(vm);
	fd = private_memfd(EXITS_TEST_SIZE);
	memfd_to_private(fd, 0, EXITS_TEST_SIZE);
	vm_add_private(vm, EXITS_TEST_SLOT, EXITS_TEST_GPA, EXITS_TEST_SIZE,
		       map_shared_half(EXITS_TEST_SIZE), fd, 0);

	/* It has the page mapped. */
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, NULL), UCALL_SYNC);
	TEST_ASSERT_EQ(nr_private_mapped(vm), 1);

	for (i = 0; i < 10; i++) {
		pthread_create(&thread, NULL, vcpu_thread, vcpu);
		usleep(20000);
		vm_delete_private(vm, EXITS_TEST_SLOT);
		pthread_join(thread, NULL);

		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
		TEST_ASSERT_EQ(vcpu->run->mmio.phys_addr, EXITS_TEST_GPA);
		TEST_ASSERT_EQ(vcpu->run->mmio.len, 8);
		TEST_ASSERT(!vcpu->run->mmio.is_write, "The guest only reads");
		TEST_ASSERT_EQ(get_vm_stat(vm, "private_pages"), 0);
		TEST_ASSERT_EQ(memfd_nr_private(fd), EXITS_TEST_NPAGES);

		vm_add_private(vm, EXITS_TEST_SLOT, EXITS_TEST_GPA, EXITS_TEST_SIZE,
			       map_shared_half(EXITS_TEST_SIZE), fd, 0);
	}

	kvm_vm_free(vm);
	close(fd);
}

static void guest_read_once(void)
{
	GUEST_SYNC(READ_ONCE(*(uint64_t *)EXITS_TEST_GVA));
	GUEST_DONE();
}

static uint64_t run_to_sync(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
	return uc.args[1];
}

/* The attribute and the file are two things, in one VM... */
static void test_private_attribute_other_memslot(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int fd, r;

	vm = create_vm(&vcpu, guest_read_once);
	map_test_pages(vm);
	fd = private_memfd(EXITS_TEST_SIZE);
	memfd_to_private(fd, 0, EXITS_TEST_SIZE);
	vm_add_private(vm, EXITS_TEST_SLOT, EXITS_TEST_GPA + EXITS_TEST_SIZE,
		       EXITS_TEST_SIZE, map_shared_half(EXITS_TEST_SIZE), fd, 0);

	/* A slot without a private half. */
	vm_set_user_memory_region2(vm, EXITS_TEST_SLOT + 1, 0, EXITS_TEST_GPA,
				   EXITS_TEST_SIZE, map_shared_half(EXITS_TEST_SIZE), -1, 0);
	set_private_attribute(vm, EXITS_TEST_GPA, EXITS_TEST_SIZE);

	r = _vcpu_run(vcpu);
	assert_memory_fault(vcpu, r, EFAULT, KVM_MEMORY_EXIT_FLAG_PRIVATE, EXITS_TEST_GPA);

	kvm_vm_free(vm);
	close(fd);
}

/* ...and the attribute means nothing to a slot that has the file. */
static void test_private_attribute_before_memslot(bool private)
{
	uint64_t *hva = map_shared_half(EXITS_TEST_SIZE);
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	uint64_t value;
	int fd;

	vm = create_vm(&vcpu, guest_read_once);
	map_test_pages(vm);
	set_private_attribute(vm, EXITS_TEST_GPA, EXITS_TEST_SIZE);

	*hva = SHARED_VALUE;
	fd = private_memfd(EXITS_TEST_SIZE);
	if (private)
		memfd_to_private(fd, 0, EXITS_TEST_SIZE);
	vm_add_private(vm, EXITS_TEST_SLOT, EXITS_TEST_GPA, EXITS_TEST_SIZE, hva, fd, 0);

	value = run_to_sync(vcpu);
	TEST_ASSERT(value == (private ? 0 : SHARED_VALUE), "Read %#lx from a %s page",
		    value, private ? "private" : "shared");
	TEST_ASSERT_EQ(memfd_nr_private(fd), private ? EXITS_TEST_NPAGES : 0);

	kvm_vm_free(vm);
	close(fd);
}

/*
 * A slot with nothing behind its shared half: each way to touch a hole of it
 * ends in the same exit.  With a private page in place the same instruction
 * goes on as if nothing had been.
 */
static void guest_hole_read(uint64_t gva)
{
	GUEST_ASSERT_EQ(READ_ONCE(*(uint64_t *)gva), 0ul);
	GUEST_DONE();
}

static void guest_hole_write(uint64_t gva)
{
	WRITE_ONCE(*(uint64_t *)gva, PRIVATE_VALUE);
	GUEST_ASSERT_EQ(READ_ONCE(*(uint64_t *)gva), PRIVATE_VALUE);
	GUEST_DONE();
}

static void guest_hole_locked(uint64_t gva)
{
	uint64_t value = PRIVATE_VALUE;

	asm volatile("xchg %0, %1" : "+r"(value), "+m"(*(uint64_t *)gva) : : "memory");
	GUEST_ASSERT_EQ(value, 0ul);
	GUEST_ASSERT_EQ(READ_ONCE(*(uint64_t *)gva), PRIVATE_VALUE);
	GUEST_DONE();
}

/*
 * A page of zeroes is 2048 times "add %al, (%rax)", and then the next page is
 * executed.
 */
static void guest_hole_fetch(uint64_t gva)
{
	uint64_t scratch;

	asm volatile("jmp *%0" : : "r"(gva), "a"(&scratch) : "memory");
}

/* String I/O is emulated, and with it the access to memory. */
static void guest_hole_outs(uint64_t gva)
{
	uint64_t count = 8;

	asm volatile("rep outsb" : "+S"(gva), "+c"(count) : "d"(STRING_IO_PORT) : "memory");
	GUEST_DONE();
}

static void guest_hole_ins(uint64_t gva)
{
	uint64_t count = 8, va = gva;

	asm volatile("rep insb" : "+D"(va), "+c"(count) : "d"(STRING_IO_PORT) : "memory");
	GUEST_ASSERT_EQ(READ_ONCE(*(uint64_t *)gva), ~0ul);
	GUEST_DONE();
}

/*
 * Run to the next exit that is none of the string I/O.  What that puts into the
 * guest's memory comes from here.
 */
static int run_string_io(struct kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	int r;

	while (!(r = _vcpu_run(vcpu)) && run->exit_reason == KVM_EXIT_IO &&
	       run->io.port == STRING_IO_PORT) {
		if (run->io.direction == KVM_EXIT_IO_IN)
			memset((void *)run + run->io.data_offset, 0xff,
			       run->io.size * run->io.count);
	}
	return r;
}

static void test_hole(const char *name, void (*guest_code)(uint64_t gva))
{
	/* Code runs on from the end of one unit to the next; not through it if that takes long. */
	const bool fetch = guest_code == guest_hole_fetch, next = !fetch || !backing_is_hugetlb();
	const uint64_t gpa = EXITS_TEST_GPA + (fetch ? 2 * UNIT - PAGE_SIZE : UNIT);
	struct kvm_vcpu *vcpu;
	struct kvm_regs regs;
	struct kvm_vm *vm;
	struct ucall uc;
	uint64_t rip;
	int fd, i, r;

	pr_info("Testing a hole: %s\n", name);

	vm = create_vm(&vcpu, guest_code);
	map_test_pages(vm);
	fd = private_memfd(EXITS_TEST_SIZE);
	/* Not the page before, nor the one after. */
	memfd_to_private(fd, 0, UNIT);
	if (next)
		memfd_to_private(fd, 2 * UNIT, UNIT);
	vm_add_private(vm, EXITS_TEST_SLOT, EXITS_TEST_GPA, EXITS_TEST_SIZE,
		       map_no_shared_half(EXITS_TEST_SIZE), fd, 0);
	vcpu_args_set(vcpu, 1, gpa);

	/* As often as the VMM likes, and nothing changes by it. */
	for (i = 0; i < 3; i++) {
		r = run_string_io(vcpu);
		assert_memory_fault(vcpu, r, EFAULT, KVM_MEMORY_EXIT_FLAG_PRIVATE, gpa);
		TEST_ASSERT_EQ(memfd_nr_private(fd), next ? 2 : 1);

		vcpu_regs_get(vcpu, &regs);
		if (!i)
			rip = regs.rip;
		TEST_ASSERT_EQ(regs.rip, rip);
	}

	/* With the page in place the instruction goes on as if nothing had been. */
	memfd_to_private(fd, UNIT, UNIT);
	r = run_string_io(vcpu);

	if (fetch) {
		uint64_t end = EXITS_TEST_GPA + (next ? 3 : 2) * UNIT;

		/* Through this page and the next, to the hole behind them. */
		assert_memory_fault(vcpu, r, EFAULT, KVM_MEMORY_EXIT_FLAG_PRIVATE, end);
		vcpu_regs_get(vcpu, &regs);
		TEST_ASSERT_EQ(regs.rip, end);
	} else {
		TEST_ASSERT(!r, KVM_IOCTL_ERROR(KVM_RUN, r));
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
		if (get_ucall(vcpu, &uc) == UCALL_ABORT)
			REPORT_GUEST_ASSERT(uc);
		TEST_ASSERT_EQ(uc.cmd, UCALL_DONE);
	}
	TEST_ASSERT_EQ(memfd_nr_private(fd), next ? 3 : 2);

	kvm_vm_free(vm);
	close(fd);
}

int main(int argc, char *argv[])
{
	require_private_mem();

	test_private_access_memslot_deleted();
	test_private_attribute_other_memslot();
	test_private_attribute_before_memslot(false);
	test_private_attribute_before_memslot(true);

	test_hole("read", guest_hole_read);
	test_hole("write", guest_hole_write);
	test_hole("locked access", guest_hole_locked);
	test_hole("instruction fetch", guest_hole_fetch);
	test_hole("emulated read", guest_hole_outs);
	test_hole("emulated write", guest_hole_ins);

	return 0;
}
