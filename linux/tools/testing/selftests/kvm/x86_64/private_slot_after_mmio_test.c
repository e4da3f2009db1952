// SPDX-License-Identifier: GPL-2.0-only
/*
 * Private memory added where the guest has seen MMIO before.
 *
 * A guest access to a gfn without a memslot is emulated as MMIO, and KVM may
 * cache that fact in the page tables.  What the cache says is void once there
 * is a memslot, for private memory just as for shared memory.
 */
#include <unistd.h>

#include <linux/sizes.h>

#include "test_util.h"
#include "kvm_util.h"
#include "processor.h"

/* Arbitrarily chosen values that collide with nothing of the framework. */
#define SLOT			10
#define SLOT_GPA		0xc0000000ull
#define SLOT_SIZE		SZ_2M

#define MMIO_VALUE		0x6d6d696fbeef0001ull
#define SHARED_VALUE		0x736861726564beefull
#define WRITTEN_VALUE		0x7772697474656eefull

#define NR_ROUNDS		3
#define TIMEOUT_SECONDS		60
/* An exit that comes so many times in a row will come for ever. */
#define MAX_FAULT_EXITS		16

enum stage {
	STAGE_MMIO_DONE,
	STAGE_MEMORY_DONE,
};

/* What the guest finds in the slot, written by the host before each round. */
static u64 expected_value;

static void guest_code(bool write)
{
	u64 *ptr = (u64 *)SLOT_GPA;

	for (;;) {
		GUEST_ASSERT_EQ(READ_ONCE(*ptr), MMIO_VALUE);
		GUEST_SYNC(STAGE_MMIO_DONE);

		/* Now there is memory.  Let the first access be a @write. */
		if (write)
			WRITE_ONCE(*ptr, WRITTEN_VALUE);

		GUEST_ASSERT_EQ(READ_ONCE(*ptr),
				write ? WRITTEN_VALUE : READ_ONCE(expected_value));
		GUEST_SYNC(STAGE_MEMORY_DONE);
	}
}

static void run_vcpu(struct kvm_vcpu *vcpu, enum stage stage, const char *name)
{
	struct kvm_run *run = vcpu->run;
	const u64 value = MMIO_VALUE;
	int nr_faults = 0;
	struct ucall uc;

	while (_vcpu_run(vcpu)) {
		TEST_ASSERT(errno == EFAULT,
			    "%s: KVM_RUN failed, errno: %d (%s)",
			    name, errno, strerror(errno));
		if (++nr_faults == MAX_FAULT_EXITS)
			break;
	}

	TEST_ASSERT(!nr_faults,
		    "%s: %d times in a row%s EFAULT from KVM_RUN, exit reason %u (%s), gpa 0x%llx, flags 0x%llx",
		    name, nr_faults, nr_faults == MAX_FAULT_EXITS ? " and no end" : "",
		    run->exit_reason, exit_reason_str(run->exit_reason),
		    run->memory_fault.gpa, run->memory_fault.flags);

	if (stage == STAGE_MMIO_DONE) {
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
		TEST_ASSERT_EQ(run->mmio.phys_addr, SLOT_GPA);
		TEST_ASSERT_EQ(run->mmio.len, sizeof(value));
		TEST_ASSERT(!run->mmio.is_write, "%s: read exits as a write", name);
		memcpy(run->mmio.data, &value, sizeof(value));
		vcpu_run(vcpu);
	}

	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);

	switch (get_ucall(vcpu, &uc)) {
	case UCALL_SYNC:
		TEST_ASSERT_EQ(uc.args[1], stage);
		break;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
		break;
	default:
		TEST_FAIL("%s: unexpected ucall %lu", name, uc.cmd);
	}
}

static void test_slot_after_mmio(const char *name, bool private,
				 bool attributes_first, bool write)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 *hva;
	int i, gmem;

	vm = vm_create_shape_with_one_vcpu(shape, &vcpu, guest_code);
	vcpu_args_set(vcpu, 1, write);
	virt_map(vm, SLOT_GPA, SLOT_GPA, 1);

	hva = mmap(NULL, SLOT_SIZE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(hva != MAP_FAILED, "mmap() failed");

	/* Fresh private memory is zero. */
	write_guest_global(vm, expected_value, private ? 0 : SHARED_VALUE);

	for (i = 0; i < NR_ROUNDS; i++) {
		run_vcpu(vcpu, STAGE_MMIO_DONE, name);

		*hva = SHARED_VALUE;
		gmem = vm_create_guest_memfd(vm, SLOT_SIZE, 0);

		if (private && attributes_first)
			vm_mem_set_private(vm, SLOT_GPA, SLOT_SIZE);

		vm_set_user_memory_region2(vm, SLOT, KVM_MEM_GUEST_MEMFD,
					   SLOT_GPA, SLOT_SIZE, hva, gmem, 0);

		if (private && !attributes_first)
			vm_mem_set_private(vm, SLOT_GPA, SLOT_SIZE);

		run_vcpu(vcpu, STAGE_MEMORY_DONE, name);

		TEST_ASSERT_EQ(*hva, write && !private ? WRITTEN_VALUE : SHARED_VALUE);

		/* And back: shared and without a slot it is MMIO once more. */
		vm_set_user_memory_region2(vm, SLOT, 0, SLOT_GPA, 0, NULL, 0, 0);
		vm_mem_set_shared(vm, SLOT_GPA, SLOT_SIZE);
		close(gmem);
	}

	pr_info("%s: %d rounds\n", name, NR_ROUNDS);

	munmap(hva, SLOT_SIZE);
	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM));

	/* A vCPU that makes no progress is killed, and the test with it. */
	alarm(TIMEOUT_SECONDS);

	test_slot_after_mmio("shared memory, read", false, false, false);
	test_slot_after_mmio("shared memory, write", false, false, true);
	test_slot_after_mmio("private memory, read", true, false, false);
	test_slot_after_mmio("private memory, write", true, false, true);
	test_slot_after_mmio("private before the slot exists, read", true, true, false);
	test_slot_after_mmio("private before the slot exists, write", true, true, true);

	return 0;
}
