/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A small VMM for guests whose RAM is private: the contracts between its parts.
 *
 *   main.c	the command line, what is said, the verdict
 *   linux.c	a run of Linux, step by step
 *   small.c	a run of the small guest, which converts memory
 *   boot.c	bzImage and initrd into RAM by the 64-bit boot protocol
 *   acpi.c	the tables a stock kernel wants to see
 *   ram.c	guest RAM: the inaccessible file, the shared half, conversions
 *   vm.c	the KVM calls, one thread a vCPU, one handler for each exit
 *   report.c	what can be said about a guest nobody can read
 *   stats.c	KVM's binary statistics
 *   inspect.c	a program of its own: the private maps of a VMM that runs
 *   sha256.c	SHA-256, which the guest works out, too
 *   devices.c	serial port, power, reset, and the ports of guest/abi.h
 *   attack.c	every way to the private content that this process has
 *   search.c	looking for the guest's secret
 *   guest/	the guests, and abi.h: what VMM and guests agree on
 *
 * Functions return 0, or -errno where the caller may want to tell errors
 * apart, or -1 when they have said on stderr what went wrong.
 *
 * Threads: the main one creates everything, waits for what the guest wants
 * (vm_wait()), and tears down; each vCPU has one, and so has the search.
 */
#ifndef VMM_H
#define VMM_H

#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/types.h>
#include <pthread.h>
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
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB		(21U << 26)
#endif

#define __printf(fmt, args) __attribute__((format(printf, fmt, args)))
#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)	((a) < (b) ? (a) : (b))

/* --- main.c: saying things --- */

/* Print "vmm: ...: strerror(errno)" and return -1. */
int failed(const char *fmt, ...) __printf(1, 2);

/* Print "vmm: ..." and return -1: what is wrong is not an errno. */
int refused(const char *fmt, ...) __printf(1, 2);

/*
 * One line of the transcript, "ok" or "BAD". A run with a BAD line is bad.
 * Returns @ok.
 */
bool check(bool ok, const char *fmt, ...) __printf(2, 3);

/* The same, "skip": not tried here. The verdict says how many there were. */
void untried(const char *fmt, ...) __printf(1, 2);

/* A line with a SHA-256. */
void print_digest(const char *what, const __u8 *digest);

/* Seconds of the monotonic clock. */
double now(void);

/* --- ram.c: guest RAM --- */

enum ram_kind {
	RAM_PRIVATE,	/* private from the start, except for what must be shared */
	RAM_LAZY,	/* the same, allocated when the guest touches it */
	RAM_ORDINARY,	/* a plain memfd, mapped: the control */
	RAM_GUEST_MEMFD,	/* the peer: private by KVM_SET_MEMORY_ATTRIBUTES */
};

struct ram_config {
	enum ram_kind kind;
	bool hugetlb;		/* on 2 MiB pages of hugetlbfs; else on shmem */
	/*
	 * Sealed at birth: what is filled in can't get into the file, goes to
	 * the shared half, and stays shared. So it is with guest_memfd.
	 */
	bool born_sealed;
	__u64 size;
	__u64 slot_size;	/* cut into slots of at most so much, or 0 */
};

/* Twice that is an address that any processor has. */
#define RAM_MAX		(1UL << 37)

/* The hole for devices: RAM continues after it. */
#define RAM_HOLE_START	0xc0000000UL
#define RAM_HOLE_END	0x100000000UL

/*
 * RAM in one file. The offset in the file is the guest physical address, less
 * the hole below 4 GiB for what is above it; @hva is indexed by it, too.
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
	struct ram_config config;
	int fd;
	__u64 unit;		/* what can be converted: a page of the file */
	__u8 *hva;
	__u8 *window;		/* hugetlbfs can't be written to, only mapped */
	__u8 *shared;
	pthread_mutex_t lock;	/* conversions and lazy allocation */
	unsigned long to_private, to_shared, populated;	/* calls, for the summary */
	double seal_seconds, alloc_seconds;
};

/*
 * Allocate RAM, all of it private but for what was asked to be shared and what
 * had to be filled in shared memory:
 *
 *	ram_create()	the file and the shared half
 *	ram_fill()	as often as needed
 *	ram_share()	pages that are to be shared at the start
 *	ram_close()	seal the file, allocate
 *
 * -1 on failure; call ram_destroy() anyway.
 */
int ram_create(struct ram *ram, const struct ram_config *config);
int ram_fill(struct ram *ram, __u64 gpa, const void *data, size_t len);
void ram_share(struct ram *ram, __u64 gpa, __u64 len);
int ram_close(struct ram *ram);
void ram_destroy(struct ram *ram);

/* guest_memfd comes from a VM: its fd, to be had between create and close. */
int ram_set_guest_memfd(struct ram *ram, int vm);

/* Where [gpa, gpa + len) is in the file, or -1 where it is not all RAM. */
off_t ram_offset(const struct ram *ram, __u64 gpa, __u64 len);

/* The @i'th slot. False: there is none. */
bool ram_slot(const struct ram *ram, __u32 i, struct kvm_userspace_memory_region2 *slot);

/*
 * Convert exactly this range, as the guest asked; its content is lost, in both
 * halves. @gpa and @len are not trusted. 0 or -errno.
 */
int ram_to_private(struct ram *ram, __u64 gpa, __u64 len);
int ram_to_shared(struct ram *ram, __u64 gpa, __u64 len);

/*
 * Punch a hole into the file: what a conversion to shared does, and what the
 * VMM can do at any time, unasked. The content is lost. 0 or -errno.
 */
int ram_punch(struct ram *ram, off_t off, __u64 len);

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

/* Call @fn for each range of guest physical addresses that is private. */
void ram_for_each_private(struct ram *ram, void (*fn)(void *arg, __u64 gpa, __u64 len), void *arg);

/* Whether the kind of RAM promises that the VMM can't read it. */
static inline bool ram_is_private(const struct ram *ram)
{
	return ram->config.kind != RAM_ORDINARY;
}

/* --- boot.c, acpi.c: what is in RAM at the start --- */

/* Where the first vCPU starts: in flat 32-bit mode, or in 64-bit mode. */
struct entry {
	bool long_mode;
	__u64 rip, rsi;
	__u64 cr3, gdt;
	__u16 gdt_limit;
};

struct boot_config {
	const char *kernel, *initrd;
	const char *cmdline;
	unsigned int nr_vcpus;
};

/* Fill in kernel, initrd, and what the protocol wants beside them. */
int boot_load(struct ram *ram, const struct boot_config *config, struct entry *entry);

/* The tables, for RAM at ACPI_GPA; at most ACPI_MAX bytes. Returns their length. */
#define ACPI_GPA	0xe0000UL	/* at its start: the RSDP */
#define ACPI_MAX	0x2000UL
size_t acpi_tables(void *buf, unsigned int nr_vcpus);

/* Registers of the machine that the tables tell of. */
#define ACPI_PM1_EVENT	0x600
#define ACPI_PM1_CONTROL	0x604
#define ACPI_SCI	9
#define RESET_PORT	0xcf9
#define RESET_VALUE	0x06
#define SLEEP_TYPE_OFF	5

/* --- devices.c --- */

/* Why vm_wait() returned. */
enum vm_event {
	VM_CONTINUE,	/* internal: re-enter */
	VM_STEP,	/* it is the VMM's turn, vm->step says at what */
	VM_LEFT,	/* the guest left, vm->exit_code says how */
	VM_POWER_OFF,
	VM_RESET,
	VM_FAILED,	/* said on stderr */
	VM_STOPPED,	/* by a signal, or the watchdog; said on stderr */
};

#define SERIAL_PORT	0x3f8
#define SERIAL_IRQ	4
#define SERIAL_QUEUE	4096U

struct serial {
	__u8 ier, lcr, mcr, fcr, scr, dll, dlm;
	bool thr_empty;			/* its interrupt is pending */
	__u8 queue[SERIAL_QUEUE];	/* to the guest */
	unsigned int head, tail;
	int line;			/* of the interrupt, as KVM knows it */
};

struct devices {
	pthread_mutex_t lock;
	int vm;				/* for interrupts, -1: there are none */
	struct serial serial;
	__u16 pm1_enable, pm1_control;
	__u8 *data;			/* what came through PORT_DATA */
	size_t data_len;
	char line[200];			/* what the guest printed of this line */
	unsigned int line_len;
	const char *how;		/* it ended */
	__u32 step, exit_code;
	unsigned long serial_out, serial_in, pio;	/* for the summary */
};

void devices_init(struct devices *dev);
void devices_destroy(struct devices *dev);

/* An access to @port of 1, 2 or 4 bytes. */
void devices_in(struct devices *dev, __u16 port, void *data, unsigned int size);
enum vm_event devices_out(struct devices *dev, __u16 port, const void *data, unsigned int size);

/* Type @len bytes into the serial console. What doesn't fit is dropped. */
void devices_type(struct devices *dev, const void *bytes, size_t len);

/* Take what has come through PORT_DATA. To be freed by the caller. */
void *devices_take_data(struct devices *dev, size_t *len);

/* --- vm.c: KVM --- */

#define MAX_VCPUS	64
#define MAX_EXIT	64		/* reasons, for counting */

struct vcpu {
	struct vm *vm;
	unsigned int index;
	int fd, stats;
	pthread_t thread;
	struct kvm_run *run;
	unsigned long exits[MAX_EXIT], errors;
	__u64 last_fault;		/* where the last memory fault was... */
	unsigned int fault_repeats;	/* ... and how often in a row */
};

struct vm_config {
	unsigned int nr_vcpus;
	bool irqchip;			/* interrupt controllers and timer, in the kernel */
	bool conversions;		/* the guest may ask for them */
	bool all_features;		/* all paravirtual features KVM has; else none */
};

struct vm {
	struct vm_config config;
	int kvm, fd;
	int stats;			/* kept open: so others can have it, see inspect.c */
	unsigned long type;		/* KVM_X86_* */
	size_t run_size;
	struct ram *ram;
	struct devices dev;
	struct vcpu vcpu[MAX_VCPUS];
	unsigned int nr_threads;
	unsigned long hypercalls;
	double started;			/* when the vCPUs were */

	/* Between the vCPUs' threads and vm_wait(). */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int doorbell;			/* eventfd: there is an event */
	int signals;			/* signalfd: SIGINT, SIGTERM */
	bool input;			/* standard input has not ended */
	enum vm_event event;
	__u32 step;
	struct vcpu *source;		/* of the event */
	bool stop;
};

/*
 * Create a VM with @ram as its memory, in three calls, as guest_memfd is made
 * by the VM, and a kernel wants to be told the frequency of the TSC: the VM;
 * what it consists of; its start. @ram must outlive it. -1 on failure; call
 * vm_destroy() anyway.
 */
int vm_create(struct vm *vm, struct ram *ram, const struct vm_config *config);
int vm_set_up(struct vm *vm, const struct entry *entry);
int vm_start(struct vm *vm);
void vm_destroy(struct vm *vm);

/* Frequency of the guest's TSC, 0 when KVM does not say. */
long vm_tsc_khz(const struct vm *vm);

/* A second VM of the same type, without vCPU and memory. The fd, or -1. */
int vm_create_other(const struct vm *vm);

/*
 * Let the guest go on until it wants something of the caller, a signal comes,
 * or it is @deadline. Standard input goes to the guest's console meanwhile.
 */
enum vm_event vm_wait(struct vm *vm, double deadline);

/* Stop all vCPUs for good: their state can be looked at. */
void vm_stop(struct vm *vm);

/* Block the signals that are the main thread's business. Before any thread. */
void vm_block_signals(void);

/* Wait, with the VM as it is, until standard input ends, or for a signal. */
void vm_keep(void);

/* --- stats.c --- */

typedef void (*stat_fn)(void *arg, const char *name, __u64 value);

/* Call @fn for each of the numbers that a file of KVM_GET_STATS_FD has. */
void for_each_stat(int fd, stat_fn fn, void *arg);

/* --- report.c --- */

const char *exit_name(__u32 reason);

/* What is worth knowing after any run: one line each for exits and memory. */
void report_summary(struct vm *vm);

/* And after one that failed: registers, exits of each vCPU, the private map. */
void report_failure(struct vm *vm, bool all);

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

struct search_result {
	unsigned long rounds, attempts;
	unsigned long long bytes;
	unsigned long long found;
	double first;		/* seconds from the start to the first hit */
};

/*
 * Search all of this process that is in memory, by /proc/self/mem. Says what
 * it finds, and unless @quiet how much that was. Returns how often the needle
 * was found, -1 on failure; *@bytes grows by what was looked at.
 */
long search_own_memory(const struct needle *needle, bool quiet, unsigned long long *bytes);

/*
 * Search, in a thread of its own, all the time, by all that attack_read() can
 * do to the pages at @gpa and by search_own_memory(). search_stop() ends it
 * after the round it is in; at least one is complete.
 */
struct search;
struct search *search_start(struct vm *vm, const struct needle *needle,
			    const __u64 *gpa, unsigned int nr);
void search_stop(struct search *search, struct search_result *result);

/* --- attack.c --- */

/* So many pages attack() wants: one is read, each of the others written to. */
#define ATTACK_PAGES	32

/*
 * Try to get at the content of the @nr pages at @gpa, one line an attempt. On
 * private RAM each has to fail as the ABI says and none may give a byte of the
 * content; on ordinary RAM each has to succeed, reads with the secret. Leaves
 * RAM usable. Returns how many of the writes succeeded, -1 on failure.
 */
int attack(struct vm *vm, const struct needle *needle, const __u64 *gpa, unsigned int nr);

/*
 * The reads of attack(), at one page, without a word. Returns how many of them
 * brought the secret, -1 on failure.
 */
int attack_read(struct vm *vm, const struct needle *needle, __u64 gpa,
		struct search_result *result);

/* --- the command line --- */

struct options {
	struct ram_config ram;
	struct vm_config vm;
	struct boot_config boot;	/* kernel NULL: the small guest */
	const char *append;
	const char *guest, *input;
	__u32 mailbox_flags;
	bool verbose, debug, keep, take_away;
	double deadline;
};

/* Run a guest to its end. -1 when it didn't get there. */
int run_linux(const struct options *opt);
int run_small(const struct options *opt);

/* Read all of a file, at most @size bytes. How many, or -1. */
ssize_t read_file(const char *path, void *buf, size_t size);

#endif
