// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_PRE_FAULT_MEMORY that fails between an exit and the next KVM_RUN.
 *
 * struct kvm_run describes the last exit until the next KVM_RUN, which may
 * take the VMM's answer out of it.  Prefaulting is no exit: whatever becomes
 * of it, the description and the answer stay what they are.
 */
#include <unistd.h>

#include "test_util.h"
#include "kvm_util.h"
#include "processor.h"

/* Arbitrarily chosen values that collide with nothing of the framework. */
#define SLOT			10
#define SLOT_GPA		0xc0000000ull
#define SLOT_NPAGES		2
#define PRIVATE_GPA		(SLOT_GPA + PAGE_SIZE)
#define NO_SLOT_GPA		0xd0000000ull
#define MMIO_GPA		0xe0000000ull

#define MMIO_VALUE		0x6d6d696fbeef0001ull
#define TIMEOUT_SECONDS		60

static void guest_code(void)
{
	GUEST_ASSERT_EQ(READ_ONCE(*(u64 *)MMIO_GPA), MMIO_VALUE);

	/* Nothing can back a private page of a slot without guest_memfd. */
	READ_ONCE(*(u64 *)PRIVATE_GPA);

	GUEST_DONE();
}

static void prefault_page(struct kvm_vcpu *vcpu, u64 gpa, int expected)
{
	struct kvm_pre_fault_memory range = {
		.gpa = gpa,
		.size = PAGE_SIZE,
	};
	struct kvm_run before;
	int ret, err;

	memcpy(&before, vcpu->run, sizeof(before));

	do {
		ret = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
		err = ret ? errno : 0;
	} while (err == EINTR);

	TEST_ASSERT(err == expected, "prefault of gpa 0x%lx: %d, errno: %d, expected: %d",
		    gpa, ret, err, expected);
	TEST_ASSERT(vcpu->run->exit_reason == before.exit_reason,
		    "prefault of gpa 0x%lx turned exit %u (%s) into exit %u (%s)", gpa,
		    before.exit_reason, exit_reason_str(before.exit_reason),
		    vcpu->run->exit_reason, exit_reason_str(vcpu->run->exit_reason));
	TEST_ASSERT(!memcmp(vcpu->run, &before, sizeof(before)),
		    "prefault of gpa 0x%lx changed struct kvm_run", gpa);
}

static void prefault_everything(struct kvm_vcpu *vcpu)
{
	prefault_page(vcpu, SLOT_GPA, 0);
	prefault_page(vcpu, NO_SLOT_GPA, ENOENT);
	prefault_page(vcpu, PRIVATE_GPA, EFAULT);
}

int main(int argc, char *argv[])
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};
	const u64 value = MMIO_VALUE;
	struct kvm_vcpu *vcpu;
	struct kvm_run *run;
	struct kvm_vm *vm;
	struct ucall uc;
	int i, ret;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM));

	/* A vCPU that makes no progress is killed, and the test with it. */
	alarm(TIMEOUT_SECONDS);

	vm = vm_create_shape_with_one_vcpu(shape, &vcpu, guest_code);
	run = vcpu->run;

	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, SLOT_GPA, SLOT,
				    SLOT_NPAGES, 0);
	vm_mem_set_private(vm, PRIVATE_GPA, PAGE_SIZE);
	virt_map(vm, SLOT_GPA, SLOT_GPA, SLOT_NPAGES);
	virt_map(vm, MMIO_GPA, MMIO_GPA, 1);

	/* An exit that wants an answer, which the VMM gives and then prefaults. */
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	TEST_ASSERT_EQ(run->mmio.phys_addr, MMIO_GPA);
	memcpy(run->mmio.data, &value, sizeof(value));
	prefault_everything(vcpu);

	/* The guest got the answer if it comes to an exit without one. */
	for (i = 0; i < 2; i++) {
		ret = _vcpu_run(vcpu);
		if (!ret && get_ucall(vcpu, &uc) == UCALL_ABORT)
			REPORT_GUEST_ASSERT(uc);
		TEST_ASSERT(ret == -1 && errno == EFAULT, "KVM_RUN: %d, errno: %d",
			    ret, errno);
		TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MEMORY_FAULT);
		TEST_ASSERT_EQ(run->memory_fault.flags, KVM_MEMORY_EXIT_FLAG_PRIVATE);
		TEST_ASSERT_EQ(run->memory_fault.gpa, PRIVATE_GPA);
		TEST_ASSERT_EQ(run->memory_fault.size, PAGE_SIZE);
		prefault_everything(vcpu);
	}

	/* Let the guest have the page after all. */
	vm_mem_set_shared(vm, PRIVATE_GPA, PAGE_SIZE);
	prefault_page(vcpu, PRIVATE_GPA, 0);
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_DONE);

	kvm_vm_free(vm);
	return 0;
}
