/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A small VMM for guests whose RAM is private: the contracts between its parts.
 *
 *   main.c	what a run does, step by step, and its verdict
 *   ram.c	guest RAM: the inaccessible file, the shared half, conversions
 *   vm.c	the KVM calls, and one handler for each exit
 *   attack.c	every way to the private content that this process has
 *   search.c	looking for the guest's secret
 *   guest/	the guest, and abi.h: what VMM and guest agree on
 *
 * Functions return 0, or -errno where the caller may want to tell errors
 * apart, or -1 when they have said on stderr what went wrong. One thread, one
 * vCPU: nothing converts memory while the guest runs.
 */
#ifndef VMM_H
#define VMM_H

#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/types.h>

#include "guest/abi.h"

#ifndef KVM_CAP_USER_MEMORY2
#error "needs the kernel headers of Linux 6.8 or later: make KHDR=<dir>"
#endif

/* Known to the headers of a kernel that has private memory. */
#ifndef MFD_INACCESSIBLE
#define MFD_INACCESSIBLE	0x0020U
#endif
#ifndef F_SEAL_INACCESSIBLE	/* <linux/fcntl.h> can't be had beside <fcntl.h> */
#define F_SEAL_INACCESSIBLE	0x0040
#endif
#ifndef KVM_MEM_PRIVATE
#define KVM_MEM_PRIVATE		0x0008UL
#endif
#ifndef KVM_CAP_PRIVATE_MEM
#define KVM_CAP_PRIVATE_MEM	1000
#endif

/* Known to every kernel this can run on, but not to every C library. */
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL		0x0008U
#endif
#ifndef MFD_EXEC
#define MFD_EXEC		0x0010U
#endif

#define __printf(fmt, args) __attribute__((format(printf, fmt, args)))
#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

/* --- main.c: saying things --- */

/* Print "vmm: ...: strerror(errno)" and return -1. */
int failed(const char *fmt, ...) __printf(1, 2);

/*
 * One line of the transcript, "ok" or "BAD". A run with a BAD line is bad.
 * Returns @ok.
 */
bool check(bool ok, const char *fmt, ...) __printf(2, 3);

/* The same, "skip": not tried here. The verdict says how many there were. */
void untried(const char *fmt, ...) __printf(1, 2);

/* --- ram.c: guest RAM --- */

enum ram_kind {
	RAM_PRIVATE,	/* private from the start, except for what must be shared */
	RAM_LAZY,	/* the same, allocated when the guest touches it */
	RAM_ORDINARY,	/* a plain memfd, mapped: the control */
};

/* How the guest's image gets into RAM. */
enum loader {
	LOAD_AUTO,	/* fill and seal where the kernel can, else copy */
	LOAD_SEAL,	/* the VMM fills the file, then seals it */
	LOAD_COPY,	/* sealed at birth; the guest copies itself from shared memory */
};

/*
 * RAM_SIZE bytes, guest physical address = file offset = offset in @hva.
 *
 * Private RAM has two halves: @fd, which nobody can read, write or map, and
 * anonymous memory at @hva. Which one the guest gets for a page is decided by
 * the file alone: a page is private if it is allocated there. For RAM_LAZY an
 * unallocated page may also be one that was not touched yet. That is the
 * VMM's business, so the VMM keeps it: @hva is PROT_NONE but for the pages in
 * @shared, one byte a page, and so KVM exits when the guest touches the rest.
 *
 * Ordinary RAM is @fd mapped at @hva: both halves are the same memory.
 */
struct ram {
	enum ram_kind kind;
	enum loader loader;	/* the one used, never LOAD_AUTO */
	int fd;
	__u8 *hva;
	__u8 *shared;
	__u64 entry;		/* where the image is to be started */
	unsigned long to_private, to_shared, populated;	/* calls, for the summary */
};

/*
 * Allocate RAM and load the image. The mailbox, and with LOAD_COPY the stage,
 * are shared afterwards. -1 on failure.
 */
int ram_create(struct ram *ram, enum ram_kind kind, enum loader loader,
	       const void *image, size_t len);
void ram_destroy(struct ram *ram);

/*
 * Convert exactly this range, as the guest asked; its content is lost, in both
 * halves. @gpa and @len are not trusted. 0 or -errno.
 */
int ram_to_private(struct ram *ram, __u64 gpa, __u64 len);
int ram_to_shared(struct ram *ram, __u64 gpa, __u64 len);

/*
 * Give the guest memory for @gpa and what else is missing in its 2 MiB, leaving
 * shared pages alone. Only for RAM_LAZY. 0 or -errno.
 */
int ram_populate(struct ram *ram, __u64 gpa);

/*
 * The bytes in [gpa, gpa + len) of the shared half. For RAM_LAZY only to be
 * touched where shared.
 */
void *ram_shared_half(struct ram *ram, __u64 gpa, size_t len);

/* How many bytes of RAM are private, by asking the file. */
__u64 ram_private_bytes(struct ram *ram);

/* --- vm.c: KVM --- */

struct vm {
	int kvm, fd, vcpu;
	unsigned long type;		/* KVM_X86_* */
	struct kvm_run *run;
	size_t run_size;
	struct ram *ram;
	char line[120];			/* what the guest printed of this line */
	unsigned int line_len;
	__u32 exit_code;		/* what the guest left with */
	__u64 last_fault;		/* where the last memory fault was... */
	unsigned int fault_repeats;	/* ... and how often in a row */
	unsigned long exits, io, hypercalls;
};

/* Why vm_run() returned. */
enum vm_event {
	VM_CONTINUE,	/* internal: re-enter */
	VM_TURN,	/* the guest halted: it is the VMM's turn */
	VM_LEFT,	/* the guest left, vm->exit_code says how */
	VM_FAILED,	/* said on stderr, with the registers */
};

/* The slot for all of @ram. */
struct kvm_userspace_memory_region2 vm_slot(const struct ram *ram);

/*
 * Create a VM with @ram as its only slot and one vCPU, about to start at
 * ram->entry. @ram must outlive it. -1 on failure; call vm_destroy() anyway.
 */
int vm_create(struct vm *vm, struct ram *ram);
void vm_destroy(struct vm *vm);

/* A second VM of the same type, without vCPU and memory. The fd, or -1. */
int vm_create_other(const struct vm *vm);

/* Run the guest until it wants something of the caller, or a signal comes. */
enum vm_event vm_run(struct vm *vm);

/* --- search.c: looking for the secret --- */

/*
 * What is searched for is masked ^ mask, which is nowhere in this process, so
 * finding it means having got it from the guest.
 */
struct needle {
	__u8 mask[SECRET_SIZE];
	__u8 masked[SECRET_SIZE];
};

/* The first place in @len bytes at @hay, or NULL. */
const __u8 *needle_find(const struct needle *needle, const void *hay, size_t len);

/*
 * Search all that is mapped in this process. Prints a summary; returns how
 * often the needle was found, -1 on failure.
 */
long search_own_memory(const struct needle *needle);

/* --- attack.c --- */

/*
 * Try to get at the content of [PATTERN_GPA, +PATTERN_PAGES pages), one line an
 * attempt. Reads aim at the first page, writes at a page each. On private RAM
 * each has to fail as the ABI says and none may give a byte of the content; on
 * ordinary RAM each has to succeed, reads with the secret. Leaves RAM usable.
 * Returns how many of the writes succeeded, -1 on failure.
 */
int attack(struct vm *vm, const struct needle *needle);

#endif
