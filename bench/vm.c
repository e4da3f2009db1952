// SPDX-License-Identifier: GPL-2.0
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vm.h"

#define OWN_SIZE	SZ_64K
#define CODE_GPA	0x1000
#define PML4_GPA	0x2000
#define PDPT_GPA	0x3000
#define BOX_GPA(i)	(0x4000 + (i) * 0x1000UL)

#define PTE_PRESENT_RW	0x3
#define PTE_HUGE	0x80

#define CR0_PE_PG	0x80000011
#define CR4_PAE		0x20
#define EFER_LME_LMA	0x500

#define MAX_CPUID	256

struct mailbox {
	volatile __u64 addr;
	volatile __u64 stride;
	volatile __u64 nr;
};

/* %rbx: the mailbox. No stack, no interrupts. */
asm(".pushsection .rodata\n"
    "guest_code:\n"
    "1:	mov	(%rbx), %rdi\n"
    "	mov	8(%rbx), %rdx\n"
    "	mov	16(%rbx), %rcx\n"
    "	jrcxz	3f\n"
    "2:	movb	$1, (%rdi)\n"
    "	add	%rdx, %rdi\n"
    "	dec	%rcx\n"
    "	jnz	2b\n"
    "3:	hlt\n"
    "	jmp	1b\n"
    "guest_code_end:\n"
    ".popsection\n");
extern const __u8 guest_code[], guest_code_end[];

void vm_set_slot(struct vm *vm, int slot, __u32 flags, __u64 gpa, __u64 size,
		 void *hva, int fd, __u64 offset)
{
	struct kvm_userspace_memory_region2 region = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (unsigned long)hva,
	};

	if (flags) {
		region.guest_memfd = fd;
		region.guest_memfd_offset = offset;
	}
	if (ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION2, &region))
		die("KVM_SET_USER_MEMORY_REGION2, slot %d, flags %#x", slot, flags);
}

/* Code, and page tables that map 512 GiB one to one. */
static void create_own(struct vm *vm)
{
	__u64 *pdpt;

	vm->own = mmap(NULL, OWN_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (vm->own == MAP_FAILED)
		die("mmap");
	memcpy(vm->own + CODE_GPA, guest_code, guest_code_end - guest_code);
	*(__u64 *)(vm->own + PML4_GPA) = PDPT_GPA | PTE_PRESENT_RW;
	pdpt = (__u64 *)(vm->own + PDPT_GPA);
	for (unsigned long i = 0; i < 512; i++)
		pdpt[i] = i << 30 | PTE_HUGE | PTE_PRESENT_RW;
	vm_set_slot(vm, OWN_SLOT, 0, 0, OWN_SIZE, vm->own, -1, 0);
}

static void set_cpuid(struct vm *vm, struct vcpu *vcpu)
{
	struct kvm_cpuid2 *cpuid;

	cpuid = calloc(1, sizeof(*cpuid) + MAX_CPUID * sizeof(cpuid->entries[0]));
	if (!cpuid)
		die("calloc");
	cpuid->nent = MAX_CPUID;
	if (ioctl(vm->kvm, KVM_GET_SUPPORTED_CPUID, cpuid) ||
	    ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid))
		die("KVM_GET_SUPPORTED_CPUID, KVM_SET_CPUID2");
	free(cpuid);
}

/* 64-bit mode right away. */
static void set_registers(struct vcpu *vcpu, unsigned long box)
{
	const struct kvm_segment code = {
		.limit = ~0U, .selector = 0x08, .type = 0xb,
		.present = 1, .l = 1, .s = 1, .g = 1,
	};
	struct kvm_regs regs = { .rip = CODE_GPA, .rbx = box, .rflags = 2 };
	struct kvm_segment data = code;
	struct kvm_sregs sregs;

	data.selector = 0x10;
	data.type = 0x3;
	data.l = 0;
	data.db = 1;
	if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs))
		die("KVM_GET_SREGS");
	sregs.cs = code;
	sregs.ds = data;
	sregs.es = data;
	sregs.fs = data;
	sregs.gs = data;
	sregs.ss = data;
	sregs.cr0 = CR0_PE_PG;
	sregs.cr3 = PML4_GPA;
	sregs.cr4 = CR4_PAE;
	sregs.efer = EFER_LME_LMA;
	if (ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) ||
	    ioctl(vcpu->fd, KVM_SET_REGS, &regs))
		die("KVM_SET_SREGS, KVM_SET_REGS");
}

static void create_vcpu(struct vm *vm, int i)
{
	int size = ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct vcpu *vcpu = &vm->vcpus[i];

	vcpu->fd = ioctl(vm->fd, KVM_CREATE_VCPU, i);
	if (vcpu->fd < 0 || size < 0)
		die("KVM_CREATE_VCPU, KVM_GET_VCPU_MMAP_SIZE");
	vcpu->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED)
		die("mmap of struct kvm_run");
	vcpu->stats = ioctl(vcpu->fd, KVM_GET_STATS_FD, 0);
	if (vcpu->stats < 0)
		die("KVM_GET_STATS_FD");
	vcpu->box = (void *)(vm->own + BOX_GPA(i));
	set_cpuid(vm, vcpu);
	set_registers(vcpu, BOX_GPA(i));
	/* Whatever happens once only, happens here. */
	vcpu_touch(vcpu, 0, 0, 0);
}

void vm_create(struct vm *vm, int nr_vcpus)
{
	vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm < 0)
		die("/dev/kvm");
	vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM);
	if (vm->fd < 0)
		die("KVM_CREATE_VM");
	create_own(vm);
	for (vm->nr_vcpus = 0; vm->nr_vcpus < nr_vcpus; vm->nr_vcpus++)
		create_vcpu(vm, vm->nr_vcpus);
}

void vm_destroy(struct vm *vm)
{
	int size = ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	for (int i = 0; i < vm->nr_vcpus; i++) {
		munmap(vm->vcpus[i].run, size);
		close(vm->vcpus[i].stats);
		close(vm->vcpus[i].fd);
	}
	close(vm->fd);
	close(vm->kvm);
	munmap(vm->own, OWN_SIZE);
}

void vcpu_touch(struct vcpu *vcpu, __u64 gpa, __u64 stride, __u64 nr)
{
	vcpu->box->addr = gpa;
	vcpu->box->stride = stride;
	vcpu->box->nr = nr;
	while (ioctl(vcpu->fd, KVM_RUN, 0))
		if (errno != EINTR && errno != EAGAIN)
			die("KVM_RUN, exit reason %u, gpa %#llx", vcpu->run->exit_reason,
			    vcpu->run->memory_fault.gpa);
	if (vcpu->run->exit_reason != KVM_EXIT_HLT) {
		errno = EPROTO;
		die("KVM_RUN, exit reason %u", vcpu->run->exit_reason);
	}
}

void vcpu_prefault(struct vcpu *vcpu, __u64 gpa, __u64 size)
{
	struct kvm_pre_fault_memory range = { .gpa = gpa, .size = size };

	while (range.size)
		if (ioctl(vcpu->fd, KVM_PRE_FAULT_MEMORY, &range) &&
		    errno != EINTR && errno != EAGAIN)
			die("KVM_PRE_FAULT_MEMORY at %#llx", range.gpa);
}

__u64 vcpu_stat(struct vcpu *vcpu, const char *name)
{
	struct kvm_stats_header header;
	struct kvm_stats_desc *desc;
	__u64 value = 0;
	size_t size;
	__u32 i;

	if (pread(vcpu->stats, &header, sizeof(header), 0) != sizeof(header))
		die("header of the statistics");
	size = sizeof(*desc) + header.name_size;
	desc = malloc(size);
	if (!desc)
		die("malloc");
	for (i = 0; i < header.num_desc; i++) {
		if (pread(vcpu->stats, desc, size, header.desc_offset + i * size) != (ssize_t)size)
			die("description of a statistic");
		if (strcmp(desc->name, name))
			continue;
		if (pread(vcpu->stats, &value, sizeof(value),
			  header.data_offset + desc->offset) != sizeof(value))
			die("%s", name);
		break;
	}
	if (i == header.num_desc) {
		errno = ENOENT;
		die("statistic %s", name);
	}
	free(desc);
	return value;
}
