/* SPDX-License-Identifier: GPL-2.0 */
#ifndef STORE_H
#define STORE_H

#include "vm.h"

enum store_kind {
	GUEST_MEMFD,	/* the peer: guest_memfd and memory attributes */
	PRIVATE_MEMFD,	/* KVM_MEM_PRIVATE on an inaccessible memfd */
	SHARED,		/* an ordinary slot: the reference */
};

struct store {
	const char *name;
	enum store_kind kind;
	bool huge;		/* 2 MiB where there is a choice */
	unsigned int hugetlb;	/* MFD_HUGE_*, 0: not hugetlbfs */
	__u64 granule;		/* of conversions */
	__u64 min_size;
};

extern const struct store stores[];
extern const size_t nr_stores;

const struct store *store_by_name(const char *name);

/* Whether this kernel has it: KVM_CAP_PRIVATE_MEM says so for a VM. */
bool store_there(const struct store *store);

/*
 * Guest memory of one kind: @nr_files files, each cut into slots of the same
 * size, one after the other from MEM_GPA on.
 */
struct mem {
	const struct store *store;
	struct vm *vm;
	__u64 size;
	__u64 file_size;
	int nr_files;
	int nr_slots;
	int *fds;
	__u8 *hva;
};

void mem_create(struct mem *mem, const struct store *store, struct vm *vm,
		__u64 size, int nr_files, int nr_slots);
void mem_destroy(struct mem *mem);

/* One conversion, by as few calls as the interface allows. */
void mem_to_private(struct mem *mem, __u64 offset, __u64 len);
void mem_to_shared(struct mem *mem, __u64 offset, __u64 len);

/* Let the guest write to each 4 KiB of the range. */
void mem_touch(struct mem *mem, __u64 offset, __u64 len);

#endif
