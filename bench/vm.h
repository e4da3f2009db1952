/* SPDX-License-Identifier: GPL-2.0 */
#ifndef VM_H
#define VM_H

#include <linux/kvm.h>

#include "bench.h"

/* Known to the headers of a kernel that has private memory. */
#ifndef KVM_MEM_PRIVATE
#define KVM_MEM_PRIVATE		(1UL << 3)
#endif
#ifndef KVM_CAP_PRIVATE_MEM
#define KVM_CAP_PRIVATE_MEM	1000
#endif

#define MAX_VCPUS	4

/* Where the memory that is measured begins; below is the guest's own. */
#define MEM_GPA		SZ_4G
#define OWN_SLOT	511

struct mailbox;

struct vcpu {
	int fd;
	int stats;
	struct kvm_run *run;
	struct mailbox *box;	/* its orders, in the guest's own memory */
};

struct vm {
	int kvm;
	int fd;
	__u8 *own;		/* code, page tables, mailboxes */
	int nr_vcpus;
	struct vcpu vcpus[MAX_VCPUS];
};

/* A software-protected VM with its own memory in OWN_SLOT, and vCPUs ready to run. */
void vm_create(struct vm *vm, int nr_vcpus);
void vm_destroy(struct vm *vm);

/* KVM_SET_USER_MEMORY_REGION2; @fd is for the flags that want one. */
void vm_set_slot(struct vm *vm, int slot, __u32 flags, __u64 gpa, __u64 size,
		 void *hva, int fd, __u64 offset);

/* Let the guest write one byte to @nr places, the first at @gpa, @stride apart. */
void vcpu_touch(struct vcpu *vcpu, __u64 gpa, __u64 stride, __u64 nr);

/* Map [@gpa, @gpa + @size) by KVM_PRE_FAULT_MEMORY. */
void vcpu_prefault(struct vcpu *vcpu, __u64 gpa, __u64 size);

/* A counter of the binary statistics. */
__u64 vcpu_stat(struct vcpu *vcpu, const char *name);

#endif
