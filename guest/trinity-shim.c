// SPDX-License-Identifier: GPL-2.0
/*
 * Loaded into trinity (LD_PRELOAD), which knows neither inaccessible memfds nor how to bind them. Of the system calls that
 * it makes up a quarter stay as they are, a quarter goes to a file that is of interest here, and instead of the rest comes
 * what makes, converts and binds such files, with arguments that are not always refused at once. How often this has
 * succeeded is counted in the file that TRINITY_COUNTS names.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/kvm.h>
#include <linux/memfd.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef F_SEAL_INACCESSIBLE
#define F_SEAL_INACCESSIBLE	0x0040
#endif

#define PAGE		4096ul
#define FILE_PAGES	64
#define NR_FILES	8
#define NR_ARGS		6

/* Lines of text, so that the shell can read them. */
struct count {
	char digits[8];
	char name[16];
};

enum { CREATED, SEALED, ALLOCATED, PUNCHED, SOUGHT, BOUND, DELETED, PREFAULTED, NR_COUNTS };

static const char * const names[] = {
	"created", "sealed", "allocated", "punched", "sought", "bound", "deleted", "prefaulted",
};

static struct count *counts;

/* Of this process: a child has no use for its parent's VM. Half of the files all of them have in common. */
static pid_t owner;
static int files[NR_FILES], vm, vcpu;
static char *shared;
static uint64_t state;

static uint64_t rnd(uint64_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % below;
}

static void count(int what)
{
	char *digits = counts[what].digits;
	int i;

	for (i = 6; i >= 0 && ++digits[i] > '9'; i--)
		digits[i] = '0';
}

static int new_file(unsigned int flags)
{
	int fd = memfd_create("trinity", flags);

	if (fd >= 0 && ftruncate(fd, FILE_PAGES * PAGE))
		fd = -1;
	return fd;
}

static void new_files(int from, int to)
{
	int i;

	for (i = from; i < to; i++)
		files[i] = new_file(i % 2 ? MFD_ALLOW_SEALING : MFD_INACCESSIBLE);
}

static void __attribute__((constructor)) start(void)
{
	int fd = open(getenv("TRINITY_COUNTS") ?: "/dev/null", O_RDWR), i, j;

	counts = mmap(NULL, sizeof(*counts) * NR_COUNTS, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (counts == MAP_FAILED)
		_exit(2);
	for (i = 0; i < NR_COUNTS; i++) {
		for (j = 0; j < 7; j++)
			counts[i].digits[j] = '0';
		counts[i].digits[7] = ' ';
		for (j = 0; j < 15; j++)
			counts[i].name[j] = ' ';
		for (j = 0; names[i][j]; j++)
			counts[i].name[j] = names[i][j];
		counts[i].name[15] = '\n';
	}
	new_files(0, NR_FILES / 2);
}

static long raw(long nr, const long a[NR_ARGS])
{
	register long r10 asm("r10") = a[3], r8 asm("r8") = a[4], r9 asm("r9") = a[5];
	long ret;

	asm volatile("syscall" : "=a"(ret)
		     : "a"(nr), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	if (ret >= 0 || ret < -4095)
		return ret;
	errno = -ret;
	return -1;
}

/* What a process needs of its own. */
static void settle(void)
{
	if (owner == getpid())
		return;
	owner = getpid();
	state = 88172645463325252ull + owner * 7919ull;
	vm = -1;
	new_files(NR_FILES / 2, NR_FILES);
}

/* A child that never gets here is gone at once; who has had a VM waits for RCU. */
static void need_vm(void)
{
	int kvm;

	if (vm >= 0)
		return;
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	vm = ioctl(kvm, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM);
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	close(kvm);
	shared = mmap(NULL, FILE_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static int set_region(void)
{
	uint64_t first = rnd(FILE_PAGES), nr = rnd(3) ? 1 + rnd(FILE_PAGES - first) : 0;
	struct kvm_userspace_memory_region2 region = {
		.slot = rnd(2),
		.flags = rnd(8) ? KVM_MEM_PRIVATE : rnd(16),
		.guest_phys_addr = rnd(4) * FILE_PAGES * PAGE + first * PAGE,
		.memory_size = nr * PAGE,
		.userspace_addr = (uintptr_t)(shared + first * PAGE),
		.private_fd = files[rnd(NR_FILES)],
		.private_offset = first * PAGE,
	};
	int ret = ioctl(vm, rnd(4) ? KVM_SET_USER_MEMORY_REGION2 : KVM_SET_USER_MEMORY_REGION, &region);

	if (!ret)
		count(nr ? BOUND : DELETED);
	return ret;
}

static int prefault(void)
{
	struct kvm_pre_fault_memory range = {
		.gpa = rnd(4 * FILE_PAGES) * PAGE,
		.size = (1 + rnd(FILE_PAGES)) * PAGE,
	};
	int ret = ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);

	if (!ret)
		count(PREFAULTED);
	return ret;
}

/* With the arguments changed, so that it is about something of interest. */
static long ours(long nr, long a[NR_ARGS])
{
	static const int modes[] = { 0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE };
	int *file = &files[rnd(NR_FILES)];
	long ret;

	switch (nr) {
	case SYS_memfd_create:
		file = &files[NR_FILES / 2 + rnd(NR_FILES / 2)];
		a[0] = (long)"trinity";
		a[1] = rnd(4) ? MFD_INACCESSIBLE : MFD_ALLOW_SEALING;
		if (!rnd(4))
			a[1] |= rnd(64);
		ret = raw(nr, a);
		if (ret >= 0 && a[1] & MFD_INACCESSIBLE)
			count(CREATED);
		if (ret >= 0 && !ftruncate(ret, FILE_PAGES * PAGE)) {
			close(*file);
			*file = ret;
		}
		return ret;
	case SYS_ioctl:
		need_vm();
		return rnd(2) ? set_region() : prefault();
	case SYS_fallocate:
		a[0] = *file;
		a[1] = modes[rnd(3)];
		a[2] = rnd(FILE_PAGES) * PAGE;
		a[3] = (1 + rnd(FILE_PAGES)) * PAGE;
		ret = raw(nr, a);
		if (!ret)
			count(a[1] & FALLOC_FL_PUNCH_HOLE ? PUNCHED : ALLOCATED);
		return ret;
	case SYS_fcntl:
		a[0] = *file;
		if (rnd(4)) {
			a[1] = F_ADD_SEALS;
			a[2] = rnd(4) ? F_SEAL_INACCESSIBLE : rnd(128);
		}
		ret = raw(nr, a);
		if (!ret && a[1] == F_ADD_SEALS && a[2] & F_SEAL_INACCESSIBLE)
			count(SEALED);
		return ret;
	case SYS_lseek:
		a[2] = rnd(5);
		a[1] = rnd(FILE_PAGES) * PAGE;
		a[0] = *file;
		ret = raw(nr, a);
		if (ret >= 0)
			count(SOUGHT);
		return ret;
	case SYS_mmap:
		a[0] = 0;
		a[3] = MAP_SHARED;
		a[4] = *file;
		return raw(nr, a);
	default: /* of which the first argument is a file */
		a[0] = *file;
		return raw(nr, a);
	}
}

/* libc's, by which trinity makes its calls. */
long syscall(long nr, ...)
{
	static const long others[] = {
		SYS_memfd_create, SYS_fallocate, SYS_fallocate, SYS_fcntl, SYS_lseek, SYS_ioctl, SYS_ioctl, SYS_ioctl,
	};
	long a[NR_ARGS];
	va_list ap;
	int i;

	va_start(ap, nr);
	for (i = 0; i < NR_ARGS; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);

	settle();
	switch (rnd(4)) {
	case 0:
		return raw(nr, a);
	case 1:
		return ours(nr, a);
	default:
		return ours(others[rnd(sizeof(others) / sizeof(others[0]))], a);
	}
}
