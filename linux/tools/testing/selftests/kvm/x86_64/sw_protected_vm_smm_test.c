// SPDX-License-Identifier: GPL-2.0-only
/*
 * System management mode and VMs with private memory.
 *
 * SMM lives in an address space of its own, and a VM with private memory has
 * only one.  Nobody may bring such a VM into SMM: not the VMM, by whatever
 * ioctl(), nor the guest by an interprocessor interrupt.
 */
#include <unistd.h>

#include "test_util.h"
#include "kvm_util.h"
#include "processor.h"
#include "apic.h"

#define TIMEOUT_SECONDS		60

static void guest_code(void)
{
	x2apic_enable();

	/* The host sends SMIs by all its means, one after the other. */
	GUEST_SYNC(1);
	GUEST_SYNC(2);
	GUEST_SYNC(3);

	/* Now try it alone: to itself, and to all including itself. */
	x2apic_write_reg(APIC_ICR, APIC_DEST_SELF | APIC_INT_ASSERT | APIC_DM_SMI);
	GUEST_SYNC(4);
	x2apic_write_reg(APIC_ICR, APIC_DEST_ALLINC | APIC_INT_ASSERT | APIC_DM_SMI);
	GUEST_SYNC(5);

	GUEST_DONE();
}

static void run_vcpu(struct kvm_vcpu *vcpu, u64 cmd, u64 stage,
		     const char *after)
{
	struct kvm_vcpu_events events;
	struct ucall uc;
	int ret;

	ret = _vcpu_run(vcpu);
	TEST_ASSERT(!ret, "KVM_RUN after %s failed, errno: %d (%s)",
		    after, errno, strerror(errno));
	TEST_ASSERT(vcpu->run->exit_reason == KVM_EXIT_IO,
		    "exit reason %u (%s) after %s", vcpu->run->exit_reason,
		    exit_reason_str(vcpu->run->exit_reason), after);
	TEST_ASSERT(!(vcpu->run->flags & KVM_RUN_X86_SMM), "in SMM after %s", after);

	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), cmd);
	if (cmd == UCALL_SYNC)
		TEST_ASSERT_EQ(uc.args[1], stage);

	vcpu_events_get(vcpu, &events);
	TEST_ASSERT(!events.smi.smm && !events.smi.pending,
		    "smm %u, pending %u after %s",
		    events.smi.smm, events.smi.pending, after);
}

static void set_events(struct kvm_vcpu *vcpu, u8 smm, u8 pending,
		       u8 inside_nmi, u8 latched_init, int expected)
{
	struct kvm_vcpu_events events, before, after;
	int ret;

	vcpu_events_get(vcpu, &before);

	events = before;
	events.flags |= KVM_VCPUEVENT_VALID_SMM;
	events.smi.smm = smm;
	events.smi.pending = pending;
	events.smi.smm_inside_nmi = inside_nmi;
	events.smi.latched_init = latched_init;
	/* Something that must not change when it is refused. */
	events.nmi.masked = !before.nmi.masked;

	ret = __vcpu_ioctl(vcpu, KVM_SET_VCPU_EVENTS, &events);
	TEST_ASSERT((ret ? errno : 0) == expected,
		    "KVM_SET_VCPU_EVENTS smm %u, pending %u, inside_nmi %u: %d, errno %d, expected %d",
		    smm, pending, inside_nmi, ret, errno, expected);

	vcpu_events_get(vcpu, &after);
	if (expected)
		TEST_ASSERT(!memcmp(&before, &after, sizeof(after)),
			    "a refused KVM_SET_VCPU_EVENTS changed something");
	else
		TEST_ASSERT_EQ(after.smi.latched_init, latched_init);

	vcpu_events_set(vcpu, &before);
}

static void test_no_smm(void)
{
	const struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};
	struct kvm_msi msi = {
		.address_lo = APIC_DEFAULT_GPA,
		.data = APIC_DM_SMI,
	};
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int ret;

	vm = vm_create_shape_with_one_vcpu(shape, &vcpu, guest_code);

	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_X86_SMM), 0);

	run_vcpu(vcpu, UCALL_SYNC, 1, "nothing");

	ret = __vcpu_ioctl(vcpu, KVM_SMI, NULL);
	TEST_ASSERT(ret == -1 && errno == ENOTTY,
		    "KVM_SMI: %d, errno: %d (%s), expected ENOTTY",
		    ret, errno, strerror(errno));
	run_vcpu(vcpu, UCALL_SYNC, 2, "KVM_SMI");

	/* What KVM_GET_VCPU_EVENTS returned can be set again. */
	set_events(vcpu, 0, 0, 0, 0, 0);
	set_events(vcpu, 0, 0, 0, 1, 0);
	set_events(vcpu, 1, 0, 0, 0, EINVAL);
	set_events(vcpu, 0, 1, 0, 0, EINVAL);
	set_events(vcpu, 1, 1, 1, 1, EINVAL);

	/* The return value tells nothing: no target and blocked look alike. */
	__vm_ioctl(vm, KVM_SIGNAL_MSI, &msi);
	run_vcpu(vcpu, UCALL_SYNC, 3, "an MSI of delivery mode SMI");

	run_vcpu(vcpu, UCALL_SYNC, 4, "an SMI of the guest to itself");
	run_vcpu(vcpu, UCALL_SYNC, 5, "an SMI of the guest to all");
	run_vcpu(vcpu, UCALL_DONE, 0, "all of them");

	kvm_vm_free(vm);
}

static void test_default_vm_keeps_smm(void)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	vm = vm_create_with_one_vcpu(&vcpu, guest_code);

	TEST_ASSERT_EQ(vm_check_cap(vm, KVM_CAP_X86_SMM),
		       kvm_check_cap(KVM_CAP_X86_SMM));
	vcpu_ioctl(vcpu, KVM_SMI, NULL);

	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_X86_SMM));
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM));

	/* A vCPU that makes no progress is killed, and the test with it. */
	alarm(TIMEOUT_SECONDS);

	test_no_smm();
	test_default_vm_keeps_smm();

	return 0;
}
