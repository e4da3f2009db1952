// SPDX-License-Identifier: GPL-2.0
/*
 * Does KVM really run code in this machine? A real-mode guest sends a byte through a port. Exit code 0: it arrived.
 * Decides whether hardware with nested virtualization may be used (ACCEL=auto): a /dev/kvm that opens proves nothing.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define PORT	0x10
#define BYTE	42
#define START	0x1000

static int fail(const char *what)
{
	perror(what);
	return 1;
}

int main(void)
{
	static const unsigned char code[] = { 0xb0, BYTE, 0xe6, PORT, 0xf4 };	/* mov al, BYTE; out PORT, al; hlt */
	struct kvm_userspace_memory_region region = { .guest_phys_addr = START, .memory_size = 0x1000 };
	struct kvm_regs regs = { .rip = START, .rflags = 2 };
	struct kvm_sregs sregs;
	struct kvm_run *run;
	int kvm, vm, vcpu;
	void *mem;

	kvm = open("/dev/kvm", O_RDWR);
	if (kvm < 0)
		return fail("/dev/kvm");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vm < 0 || vcpu < 0)
		return fail("create");

	mem = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (mem == MAP_FAILED || run == MAP_FAILED)
		return fail("mmap");
	memcpy(mem, code, sizeof(code));
	region.userspace_addr = (unsigned long)mem;
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
		return fail("memory");

	if (ioctl(vcpu, KVM_GET_SREGS, &sregs))
		return fail("sregs");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs) || ioctl(vcpu, KVM_SET_REGS, &regs))
		return fail("registers");
	if (ioctl(vcpu, KVM_RUN, 0))
		return fail("run");
	if (run->exit_reason != KVM_EXIT_IO || run->io.port != PORT ||
	    *((unsigned char *)run + run->io.data_offset) != BYTE) {
		fprintf(stderr, "exit reason %u, not the byte\n", run->exit_reason);
		return 1;
	}
	return 0;
}
