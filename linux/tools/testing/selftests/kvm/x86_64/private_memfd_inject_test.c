// SPDX-License-Identifier: GPL-2.0
/*
 * Every operation on private memory, with the first, the second, the third...
 * of its allocations failing, until there is none left to fail, and then in
 * the same way with its copies from and to user space.  Either it works all the
 * same, or it fails with an error that it may fail with, and then nothing has
 * changed.
 *
 * Of the guest's page faults as of the rest: what a vCPU could not get for lack
 * of memory it gets when it is run again.
 *
 * Needs CONFIG_FAULT_INJECTION with CONFIG_FAILSLAB, CONFIG_FAIL_PAGE_ALLOC,
 * CONFIG_FAULT_INJECTION_USERCOPY and CONFIG_FAULT_INJECTION_STACKTRACE_FILTER.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include "private_memfd.h"

#define MAX_SITES	2000

/* What the guest finds in the shared half. */
#define SHARED_WORD	0x5ull
/* And what it has written to the private one. */
#define PRIVATE_WORD	0x9ull

struct world {
	uint64_t nr;		/* units in the file */
	uint64_t first, nr_op;	/* units the operation is about */
	void *hva;
	int fd;
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu, *other;
	struct agent *agent;
	bool bound;
	struct touch *touch;	/* of the other vCPU, while it runs */
	pthread_t thread;
	int new_fd, new_vcpu;	/* what the operation has opened */
	struct kvm_run *new_run;
	struct counters before;	/* without the file */
};

struct operation {
	const char *name;
	/* In front of each try; memory is there. */
	void (*prepare)(struct world *w);
	/* A single call, 0 or -1 and errno. */
	int (*run)(struct world *w);
	/* What the call may fail with, besides ENOMEM. */
	int error, other_error;
	/* After a call that has failed, and after one that hasn't. */
	void (*unchanged)(struct world *w);
	void (*done)(struct world *w);
	/* Another vCPU reads the units that it is about all the while. */
	bool in_use;
	/* Huge ones have no such thing, or too much of it. */
	bool of_small_pages;
};

/* --- making things fail --- */

enum failure {
	ALLOCATIONS,
	USER_COPIES,
	NR_FAILURES,
};

static const char * const kind_names[] = { "allocations", "user copies" };

static const struct {
	const char *name;
	enum failure kind;
} attrs[] = {
	{ "failslab", ALLOCATIONS },
	{ "fail_page_alloc", ALLOCATIONS },
	{ "fail_usercopy", USER_COPIES },
};

static int fail_nth_fd = -1;

static bool knob(const char *attr, const char *name, const char *value)
{
	char path[128];
	int fd, len = strlen(value);
	bool good;

	snprintf(path, sizeof(path), "/sys/kernel/debug/%s/%s", attr, name);
	fd = open(path, O_WRONLY);
	good = fd >= 0 && write(fd, value, len) == len;
	close(fd);
	return good;
}

/* Allocations of any kind, which may sleep, and with nothing on the console. */
static void require_fault_injection(void)
{
	int i;

	fail_nth_fd = open("/proc/thread-self/fail-nth", O_RDWR);
	__TEST_REQUIRE(fail_nth_fd >= 0, "There is no fault injection (CONFIG_FAULT_INJECTION)");
	for (i = 0; i < ARRAY_SIZE(attrs); i++) {
		__TEST_REQUIRE(knob(attrs[i].name, "verbose", "0"), "There is no %s in debugfs",
			       attrs[i].name);
		__TEST_REQUIRE(knob(attrs[i].name, "stacktrace-depth", "0"),
			       "%s has no filter", attrs[i].name);
		if (attrs[i].kind == ALLOCATIONS)
			TEST_ASSERT(knob(attrs[i].name, "ignore-gfp-wait", "N"), "Not to be set");
	}
	TEST_ASSERT(knob("fail_page_alloc", "ignore-gfp-highmem", "N") &&
		    knob("fail_page_alloc", "min-order", "0"), "Not to be set");
}

/*
 * What is of another kind is not counted: no stack trace, of which the filter has
 * none to look at, is in an empty range.
 */
static void count_only(enum failure kind)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(attrs); i++)
		TEST_ASSERT(knob(attrs[i].name, "require-end",
				 attrs[i].kind == kind ? "0xffffffffffffffff" : "0"),
			    "Not to be set");
}

/* The text is a user copy, too.  If it is the one that fails, none is left to fail. */
static void fail_nth(int n)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%d", n);

	if (pwrite(fail_nth_fd, text, len, 0) == len)
		return;
	TEST_ASSERT(errno == EFAULT && pwrite(fail_nth_fd, text, len, 0) == len, "fail-nth: %s",
		    strerror(errno));
}

/* Whether one has failed since.  Not if reading this is what fails. */
static bool has_failed(void)
{
	char text[16] = "1";

	TEST_ASSERT(pread(fail_nth_fd, text, sizeof(text) - 1, 0) > 0 || errno == EFAULT,
		    "fail-nth: %s", strerror(errno));
	fail_nth(0);
	return !atoi(text);
}

/* --- what the guest, the host and the file say --- */

static uint64_t *shared_word(struct world *w, uint64_t i)
{
	return w->hva + i * UNIT;
}

static bool is_private(struct world *w, uint64_t i)
{
	return memfd_is_private(w->fd, i * UNIT);
}

static void bind(struct world *w)
{
	vm_add_private(w->vm, PRIVATE_SLOT, PRIVATE_GPA, w->nr * UNIT, w->hva, w->fd, 0);
	w->bound = true;
}

static void unbind(struct world *w)
{
	if (w->bound)
		vm_delete_private(w->vm, PRIVATE_SLOT);
	w->bound = false;
}

/* Everything private and known to the guest but for @shared units from @first. */
static void populate(struct world *w, uint64_t first, uint64_t shared)
{
	uint64_t i;

	if (!w->bound)
		bind(w);
	/* Anew, so that huge pages are in one piece again. */
	memfd_to_shared(w->fd, 0, w->nr * UNIT);
	memfd_to_private(w->fd, 0, w->nr * UNIT);
	if (shared)
		memfd_to_shared(w->fd, first * UNIT, shared * UNIT);
	for (i = 0; i < w->nr; i++)
		WRITE_ONCE(*shared_word(w, i), SHARED_WORD);
	agent_order(w->agent, PRIVATE_GPA, w->nr, AGENT_NOTHING, PRIVATE_WORD);
	agent_run(w->vcpu, w->agent);
	for (i = 0; i < shared; i++)
		WRITE_ONCE(*shared_word(w, first + i), SHARED_WORD);
}

/* As populate() has left it, with units [@first, @first + @nr) as the file says. */
static void check_all(struct world *w, uint64_t first, uint64_t nr, uint64_t private_word)
{
	bool was_private = true;
	uint64_t i;

	agent_order(w->agent, PRIVATE_GPA, w->nr, PRIVATE_WORD, AGENT_NOTHING);
	for (i = 0; i < w->nr; i++) {
		bool private = is_private(w, i);

		if (i < first || i >= first + nr) {
			TEST_ASSERT(private, "Unit %lu became shared", i);
		} else {
			/* In order from the start. */
			TEST_ASSERT(!private || was_private || i == first,
				    "Unit %lu is private, the one before it is not", i);
			w->agent->page[i].expect = private ? private_word : AGENT_NOTHING;
			was_private = private;
		}
	}
	agent_run(w->vcpu, w->agent);

	/* A shared page is the host's. */
	for (i = first; i < first + nr; i++)
		if (!is_private(w, i))
			TEST_ASSERT_EQ(*shared_word(w, i), SHARED_WORD);
}

/* --- the operations: files --- */

static void nothing(struct world *w)
{
}

static int run_create(struct world *w)
{
	w->new_fd = memfd_create("private", MFD_CLOEXEC | MFD_INACCESSIBLE |
				 private_backing()->memfd_flags);
	return w->new_fd < 0 ? -1 : 0;
}

static void done_create(struct world *w)
{
	TEST_ASSERT_EQ(fcntl(w->new_fd, F_GET_SEALS) & F_SEAL_INACCESSIBLE, F_SEAL_INACCESSIBLE);
	close(w->new_fd);
	w->new_fd = -1;
}

static void prepare_resize(struct world *w)
{
	TEST_ASSERT(!run_create(w), "memfd_create() failed: %s", strerror(errno));
}

static int run_resize(struct world *w)
{
	return ftruncate(w->new_fd, 4 * UNIT);
}

static void unchanged_resize(struct world *w)
{
	TEST_ASSERT_EQ(lseek(w->new_fd, 0, SEEK_END), 0);
	done_create(w);
}

static void done_resize(struct world *w)
{
	TEST_ASSERT_EQ(lseek(w->new_fd, 0, SEEK_END), 4 * UNIT);
	done_create(w);
}

/* Content, then the seal. */
static void new_filled(struct world *w, uint64_t nr)
{
	uint64_t i;
	char *p;

	w->new_fd = backing_memfd(nr * UNIT, MFD_ALLOW_SEALING);
	p = mmap(NULL, nr * UNIT, PROT_READ | PROT_WRITE, MAP_SHARED, w->new_fd, 0);
	TEST_ASSERT(p != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	for (i = 0; i < nr; i++)
		p[i * UNIT] = i + 1;
	munmap(p, nr * UNIT);
}

static void prepare_seal(struct world *w)
{
	new_filled(w, w->nr_op);
}

/* And pages past the size, in part of a huge page that has some before it. */
#define NR_PAST		2

static void prepare_seal_past(struct world *w)
{
	new_filled(w, w->nr_op - NR_PAST);
	memfd_to_private(w->new_fd, (w->nr_op - NR_PAST) * UNIT, NR_PAST * UNIT);
}

static int seal(int fd)
{
	return fcntl(fd, F_ADD_SEALS, F_SEAL_INACCESSIBLE);
}

static int run_seal(struct world *w)
{
	return seal(w->new_fd);
}

static void assert_not_sealed(struct world *w, uint64_t nr)
{
	uint64_t i;
	char byte;

	TEST_ASSERT_EQ(fcntl(w->new_fd, F_GET_SEALS), 0);
	for (i = 0; i < nr; i++)
		TEST_ASSERT(pread(w->new_fd, &byte, 1, i * UNIT) == 1 && byte == (char)(i + 1),
			    "Content of unit %lu", i);
}

static void unchanged_seal(struct world *w)
{
	assert_not_sealed(w, w->nr_op);
	TEST_ASSERT_EQ(memfd_nr_private(w->new_fd), w->nr_op);
	close(w->new_fd);
}

/* Nobody has a use for what is past the size: it may be gone. */
static void unchanged_seal_past(struct world *w)
{
	assert_not_sealed(w, w->nr_op - NR_PAST);
	TEST_ASSERT(memfd_nr_private(w->new_fd) >= w->nr_op - NR_PAST, "Content is gone");
	close(w->new_fd);
}

static void assert_sealed(struct world *w, uint64_t nr)
{
	char byte;

	TEST_ASSERT(pread(w->new_fd, &byte, 1, 0) == -1 && errno == EPERM, "Not sealed");
	TEST_ASSERT_EQ(memfd_nr_private(w->new_fd), nr);
	done_create(w);
}

static void done_seal(struct world *w)
{
	assert_sealed(w, w->nr_op);
}

static void done_seal_past(struct world *w)
{
	assert_sealed(w, w->nr_op - NR_PAST);
}

static void prepare_holes(struct world *w)
{
	unbind(w);
	memfd_to_shared(w->fd, 0, w->nr * UNIT);
}

static int run_allocate(struct world *w)
{
	return fallocate(w->fd, FALLOC_FL_KEEP_SIZE, w->first * UNIT, w->nr_op * UNIT);
}

/* In order from the start, and nothing elsewhere. */
static void unchanged_holes(struct world *w)
{
	uint64_t nr = memfd_nr_private(w->fd), i;

	TEST_ASSERT(nr < w->nr_op, "Failed, but %lu units are there", nr);
	for (i = 0; i < w->nr; i++)
		TEST_ASSERT(is_private(w, i) == (i >= w->first && i < w->first + nr),
			    "Unit %lu of %lu", i, nr);
}

static void done_allocate(struct world *w)
{
	uint64_t i;

	TEST_ASSERT_EQ(memfd_nr_private(w->fd), w->nr_op);
	for (i = w->first; i < w->first + w->nr_op; i++)
		TEST_ASSERT(is_private(w, i), "Unit %lu is not", i);
}

/* --- conversions under a guest that has everything mapped --- */

static void prepare_shared(struct world *w)
{
	populate(w, w->first, w->nr_op);
}

static void unchanged_shared(struct world *w)
{
	check_all(w, w->first, w->nr_op, 0);
}

static void done_to_private(struct world *w)
{
	TEST_ASSERT_EQ(memfd_nr_private(w->fd), w->nr);
	check_all(w, w->first, w->nr_op, 0);
}

static void prepare_private(struct world *w)
{
	populate(w, 0, 0);
}

/* Three units, so that a huge page has to be split on both sides. */
static int run_punch(struct world *w)
{
	return fallocate(w->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
			 (w->first + 1) * UNIT, 3 * UNIT);
}

static void unchanged_private(struct world *w)
{
	TEST_ASSERT_EQ(memfd_nr_private(w->fd), w->nr);
	check_all(w, 0, 0, 0);
}

/*
 * hugetlbfs has to split an entry of its map of reservations.  If that fails
 * the hole is there all the same, but st_blocks doesn't know of it.
 */
static void done_punch(struct world *w)
{
	uint64_t i;

	for (i = w->first + 1; i < w->first + 4; i++)
		TEST_ASSERT(!is_private(w, i), "Unit %lu is still there", i);
	if (!backing_is_hugetlb())
		TEST_ASSERT_EQ(memfd_nr_private(w->fd), w->nr - 3);
	check_all(w, w->first + 1, 3, 0);
}

/* --- another vCPU, which looks at them meanwhile --- */

static struct touch {
	uint64_t gva, unit, nr, rounds, stop;
} touch;

static void touch_code(void)
{
	uint64_t i;

	for (;;) {
		while (!READ_ONCE(touch.stop)) {
			for (i = 0; i < touch.nr; i++)
				READ_ONCE(*(uint64_t *)(touch.gva + i * touch.unit));
			WRITE_ONCE(touch.rounds, touch.rounds + 1);
		}
		GUEST_SYNC(0);
	}
}

static void *touch_thread(void *arg)
{
	struct world *w = arg;

	vcpu_run(w->other);
	TEST_ASSERT_KVM_EXIT_REASON(w->other, KVM_EXIT_IO);
	return NULL;
}

static void touch_start(struct world *w)
{
	w->touch = addr_gva2hva(w->vm, (vm_vaddr_t)&touch);
	*w->touch = (struct touch) {
		.gva = PRIVATE_GPA + w->first * UNIT,
		.unit = UNIT,
		.nr = w->nr_op,
	};
	pthread_create(&w->thread, NULL, touch_thread, w);
	while (!READ_ONCE(w->touch->rounds))
		usleep(100);
}

static void touch_stop(struct world *w)
{
	WRITE_ONCE(w->touch->stop, true);
	pthread_join(w->thread, NULL);
}

/* --- slots --- */

static void prepare_unbound(struct world *w)
{
	populate(w, w->first, w->nr_op);
	unbind(w);
}

static int run_bind(struct world *w)
{
	return __vm_fd_add_private(w->vm->fd, PRIVATE_SLOT, PRIVATE_GPA, w->nr * UNIT, w->hva,
				   w->fd);
}

/* The ioctl from before there was a second struct, which looks at the flags first. */
static int run_bind_old(struct world *w)
{
	const struct kvm_userspace_memory_region2 region =
		private_region(PRIVATE_SLOT, PRIVATE_GPA, w->nr * UNIT, w->hva, w->fd);

	return ioctl(w->vm->fd, KVM_SET_USER_MEMORY_REGION, &region);
}

/* What has failed is not bound: it can be. */
static void unchanged_unbound(struct world *w)
{
	bind(w);
	check_all(w, w->first, w->nr_op, 0);
}

static void done_bind(struct world *w)
{
	w->bound = true;
	check_all(w, w->first, w->nr_op, 0);
}

static int run_delete(struct world *w)
{
	return __vm_set_user_memory_region(w->vm, PRIVATE_SLOT, 0, 0, 0, NULL);
}

static void done_delete(struct world *w)
{
	w->bound = false;
	TEST_ASSERT_EQ(get_vm_stat(w->vm, "private_pages"), 0);
	bind(w);
	check_all(w, w->first, w->nr_op, 0);
}

/* --- faults --- */

/* The slot is new, so the guest has nothing mapped. */
static void prepare_unmapped(struct world *w)
{
	uint64_t i;

	prepare_unbound(w);
	bind(w);
	agent_order(w->agent, PRIVATE_GPA, w->nr, PRIVATE_WORD, AGENT_NOTHING);
	for (i = w->first; i < w->first + w->nr_op; i++)
		w->agent->page[i].expect = AGENT_NOTHING;
}

static int run_vcpu(struct world *w)
{
	return __vcpu_run(w->vcpu);
}

static void unchanged_run(struct world *w)
{
	agent_run(w->vcpu, w->agent);
	check_all(w, w->first, w->nr_op, 0);
}

static void done_run(struct world *w)
{
	TEST_ASSERT_KVM_EXIT_REASON(w->vcpu, KVM_EXIT_IO);
	agent_report(w->agent);
	check_all(w, w->first, w->nr_op, 0);
}

/* Some pages of a file that was sealed later are in swap. */
#define NR_SWAPPED	8

static void prepare_swapped(struct world *w)
{
	const uint64_t size = w->nr * UNIT;
	unsigned char resident[NR_SWAPPED];
	uint64_t i;
	void *p;
	int tries;

	unbind(w);
	close(w->fd);
	w->fd = backing_memfd(size, MFD_ALLOW_SEALING);
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, w->fd, 0);
	TEST_ASSERT(p != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	for (i = 0; i < w->nr * NR_PROBES; i++)
		probe_write(p + i / NR_PROBES * UNIT, i % NR_PROBES, PRIVATE_WORD);
	for (tries = 0; tries < 100; tries++) {
		madvise(p, NR_SWAPPED * UNIT, MADV_PAGEOUT);
		TEST_ASSERT(!mincore(p, NR_SWAPPED * UNIT, resident), "mincore() failed: %s",
			    strerror(errno));
		if (!memchr(resident, 1, sizeof(resident)))
			break;
		usleep(1000);
	}
	TEST_ASSERT(tries < 100, "Pages are not swapped out");
	munmap(p, size);
	TEST_ASSERT(!seal(w->fd), "Sealing failed: %s", strerror(errno));
	bind(w);
	agent_order(w->agent, PRIVATE_GPA, w->nr, PRIVATE_WORD, AGENT_NOTHING);
}

static void unchanged_swapped(struct world *w)
{
	agent_run(w->vcpu, w->agent);
	check_all(w, 0, 0, 0);
}

static void done_swapped(struct world *w)
{
	TEST_ASSERT_KVM_EXIT_REASON(w->vcpu, KVM_EXIT_IO);
	agent_report(w->agent);
	check_all(w, 0, 0, 0);
}

/* Holes, without the pages to be read first. */
static int run_punch_swapped(struct world *w)
{
	return fallocate(w->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, UNIT, 3 * UNIT);
}

static void done_punch_swapped(struct world *w)
{
	TEST_ASSERT(is_private(w, 0) && is_private(w, 4), "Units beside the hole are gone");
	TEST_ASSERT_EQ(memfd_nr_private(w->fd), w->nr - 3);
	check_all(w, 1, 3, 0);
}

/* They are private, so there is nothing to do. */
static int run_allocate_swapped(struct world *w)
{
	return fallocate(w->fd, FALLOC_FL_KEEP_SIZE, 0, NR_SWAPPED * UNIT);
}

static int run_prefault(struct world *w)
{
	struct kvm_pre_fault_memory range = {
		.gpa = PRIVATE_GPA,
		.size = w->nr * UNIT,
	};

	return __vcpu_ioctl(w->vcpu, KVM_PRE_FAULT_MEMORY, &range);
}

static void after_prefault(struct world *w)
{
	unchanged_run(w);
}

/* --- a VM of its own that goes away --- */

/* With all of a file, which it takes over. */
static void new_vm(struct world *w, uint64_t gpa, int fd)
{
	int kvm = open_kvm_dev_path_or_exit();

	w->new_fd = ioctl(kvm, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM);
	TEST_ASSERT(w->new_fd >= 0, "KVM_CREATE_VM failed: %s", strerror(errno));
	TEST_ASSERT(!__vm_fd_add_private(w->new_fd, 1, gpa, 4 * UNIT, w->hva, fd),
		    "Binding failed: %s", strerror(errno));
	close(fd);
	close(kvm);
}

static void new_vcpu(struct world *w)
{
	w->new_vcpu = ioctl(w->new_fd, KVM_CREATE_VCPU, 0);
	TEST_ASSERT(w->new_vcpu >= 0, "KVM_CREATE_VCPU failed: %s", strerror(errno));
}

static void prepare_end(struct world *w)
{
	int fd = private_memfd(4 * UNIT);

	memfd_to_private(fd, 0, 4 * UNIT);
	new_vm(w, PRIVATE_GPA, fd);
}

static int run_end(struct world *w)
{
	return close(w->new_fd);
}

/* And one with a vCPU that has no memory in stock for its page tables. */
static void prepare_vcpu(struct world *w)
{
	prepare_end(w);
	new_vcpu(w);
}

static int run_first_prefault(struct world *w)
{
	struct kvm_pre_fault_memory range = {
		.gpa = PRIVATE_GPA,
		.size = 4 * UNIT,
	};

	return ioctl(w->new_vcpu, KVM_PRE_FAULT_MEMORY, &range);
}

static void after_first_prefault(struct world *w)
{
	TEST_ASSERT(!run_first_prefault(w), "KVM_PRE_FAULT_MEMORY failed: %s", strerror(errno));
	close(w->new_vcpu);
	close(w->new_fd);
}

/* Its first instruction, at 0 in real mode, is HLT. */
static void prepare_first_run(struct world *w)
{
	struct kvm_regs regs = { .rflags = 2 };
	int fd = backing_memfd(4 * UNIT, MFD_ALLOW_SEALING);
	struct kvm_sregs sregs;
	char *p;

	p = mmap(NULL, UNIT, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	TEST_ASSERT(p != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	*p = 0xf4;
	munmap(p, UNIT);
	TEST_ASSERT(!seal(fd), "Sealing failed: %s", strerror(errno));
	new_vm(w, 0, fd);
	new_vcpu(w);
	TEST_ASSERT(!ioctl(w->new_vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS failed");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	TEST_ASSERT(!ioctl(w->new_vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS failed");
	TEST_ASSERT(!ioctl(w->new_vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS failed");
	w->new_run = mmap(NULL, PAGE_SIZE, PROT_READ, MAP_SHARED, w->new_vcpu, 0);
	TEST_ASSERT(w->new_run != MAP_FAILED, "mmap() failed: %s", strerror(errno));
}

static int run_first_run(struct world *w)
{
	return ioctl(w->new_vcpu, KVM_RUN, NULL);
}

static void done_first_run(struct world *w)
{
	TEST_ASSERT_EQ(w->new_run->exit_reason, KVM_EXIT_HLT);
	munmap(w->new_run, PAGE_SIZE);
	close(w->new_vcpu);
	close(w->new_fd);
}

static void unchanged_first_run(struct world *w)
{
	TEST_ASSERT(!run_first_run(w), "KVM_RUN failed: %s", strerror(errno));
	done_first_run(w);
}

static const struct operation operations[] = {
	{ "memfd_create()", nothing, run_create, ENFILE, ENOSPC, nothing, done_create },
	{ "ftruncate()", prepare_resize, run_resize, 0, 0, unchanged_resize, done_resize },
	{ "F_SEAL_INACCESSIBLE", prepare_seal, run_seal, EBUSY, 0, unchanged_seal, done_seal },
	{ "F_SEAL_INACCESSIBLE, pages past the size", prepare_seal_past, run_seal, EBUSY, 0,
	  unchanged_seal_past, done_seal_past },
	{ "allocate, no slot", prepare_holes, run_allocate, ENOSPC, 0, unchanged_holes,
	  done_allocate },
	{ "allocate under a guest", prepare_shared, run_allocate, ENOSPC, 0, unchanged_shared,
	  done_to_private },
	{ "punch under a guest", prepare_private, run_punch, EBUSY, 0, unchanged_private,
	  done_punch },
	{ "allocate under a guest that looks", prepare_shared, run_allocate, ENOSPC, 0,
	  unchanged_shared, done_to_private, true },
	{ "punch under a guest that looks", prepare_private, run_punch, EBUSY, 0,
	  unchanged_private, done_punch, true },
	{ "add a slot", prepare_unbound, run_bind, 0, 0, unchanged_unbound, done_bind },
	{ "add a slot, KVM_SET_USER_MEMORY_REGION", prepare_unbound, run_bind_old, 0, 0,
	  unchanged_unbound, done_bind },
	{ "delete a slot", prepare_shared, run_delete, 0, 0, unchanged_shared, done_delete },
	{ "run: faults", prepare_unmapped, run_vcpu, 0, 0, unchanged_run, done_run },
	{ "run: faults on what is in swap", prepare_swapped, run_vcpu, EFAULT, EIO,
	  unchanged_swapped, done_swapped, .of_small_pages = true },
	{ "punch what is in swap", prepare_swapped, run_punch_swapped, EBUSY, 0,
	  unchanged_swapped, done_punch_swapped, .of_small_pages = true },
	{ "allocate what is in swap", prepare_swapped, run_allocate_swapped, ENOSPC, 0,
	  unchanged_swapped, unchanged_swapped, .of_small_pages = true },
	{ "run: the first one", prepare_first_run, run_first_run, 0, 0, unchanged_first_run,
	  done_first_run },
	{ "KVM_PRE_FAULT_MEMORY", prepare_unmapped, run_prefault, 0, 0, after_prefault,
	  after_prefault },
	{ "KVM_PRE_FAULT_MEMORY, the first one", prepare_vcpu, run_first_prefault, 0, 0,
	  after_first_prefault, after_first_prefault },
	{ "end of a VM", prepare_end, run_end, 0, 0, nothing, nothing },
};

/* How many calls have failed. */
static int nr_failures[NR_FAILURES];

static bool may_fail_with(const struct operation *op, enum failure kind, int error)
{
	if (kind == USER_COPIES)
		return error == EFAULT;
	return error == ENOMEM || (error && (error == op->error || error == op->other_error));
}

/* Nobody has anything then, so nothing may be missing. */
static void close_all(struct world *w, const char *what)
{
	unbind(w);
	close(w->fd);
	assert_counters(&w->before, what);
}

static void inject(struct world *w, const struct operation *op, enum failure kind)
{
	int n, failed = 0, survived = 0;
	bool injected = true;

	if (op->of_small_pages && backing_is_huge()) {
		ksft_test_result_skip("%s: a matter of small pages\n", op->name);
		return;
	}
	for (n = 1; injected; n++) {
		int r, error;

		TEST_ASSERT(n <= MAX_SITES, "%s never comes to an end", op->name);
		w->fd = private_memfd(w->nr * UNIT);
		op->prepare(w);
		if (op->in_use)
			touch_start(w);
		count_only(kind);
		fail_nth(n);
		r = op->run(w);
		error = errno;
		injected = has_failed();
		if (op->in_use)
			touch_stop(w);
		if (r) {
			TEST_ASSERT(may_fail_with(op, kind, error), "%s, %d of its %s: %s",
				    op->name, n, kind_names[kind], strerror(error));
			TEST_ASSERT(injected, "%s fails with nothing in its way: %s", op->name,
				    strerror(error));
			op->unchanged(w);
			failed++;
		} else {
			op->done(w);
			survived += injected;
		}
		close_all(w, op->name);
	}
	nr_failures[kind] += failed;
	ksft_test_result_pass("%s: %d %s, %d of them it can do without\n", op->name,
			      failed + survived, kind_names[kind], survived);
}

static void inject_all(void)
{
	struct world w = { .new_fd = -1 };
	struct kvm_vcpu *vcpus[2];
	enum failure kind;
	int i;

	/* fail-nth is that of a thread. */
	require_fault_injection();
	ksft_print_header();
	ksft_set_plan(NR_FAILURES * ARRAY_SIZE(operations));

	/* Of huge pages of shmem the second one; else a few units. */
	w.nr = backing_is_hugetlb() ? 12 : backing_is_huge() ? 2 * PAGES_PER_2M : 16;
	w.nr_op = backing_is_hugetlb() || !backing_is_huge() ? 6 : PAGES_PER_2M;
	w.first = w.nr - w.nr_op;
	w.hva = map_shared_half(w.nr * UNIT);
	w.vm = vm_create_private(ARRAY_SIZE(vcpus), agent_code, vcpus);
	w.vcpu = vcpus[0];
	w.other = vcpus[1];
	vcpu_arch_set_entry_point(w.other, touch_code);
	w.agent = agent_create(w.vcpu);
	virt_map_private(w.vm, PRIVATE_GPA, w.nr * UNIT);
	read_counters(&w.before);

	for (kind = 0; kind < NR_FAILURES; kind++) {
		for (i = 0; i < ARRAY_SIZE(operations); i++)
			inject(&w, &operations[i], kind);
		TEST_ASSERT(nr_failures[kind], "No call ever failed of its %s", kind_names[kind]);
	}
	kvm_vm_free(w.vm);
}

static long nr_dying_cgroups(void)
{
	return read_key("/sys/fs/cgroup/cgroup.stat", "nr_dying_descendants");
}

/* Each CPU keeps the group that it charged last; now it is another one. */
static void forget_cgroups(void)
{
	const size_t size = 256 * PAGE_SIZE;
	int cpu, status = 0;
	cpu_set_t cpus;
	pid_t pid;
	void *p;

	__TEST_REQUIRE(cgroup_create(), "There is no memory controller of cgroup2");
	pid = fork_in_cgroup();
	if (!pid) {
		for (cpu = 0; cpu < get_nprocs_conf(); cpu++) {
			CPU_ZERO(&cpus);
			CPU_SET(cpu, &cpus);
			if (sched_setaffinity(0, sizeof(cpus), &cpus))
				continue;
			p = mmap(NULL, size, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			memset(p, 1, size);
			munmap(p, size);
		}
		_exit(0);
	}
	TEST_ASSERT(waitpid(pid, &status, 0) == pid && !status, "Killed: %#x", status);
	cgroup_remove();
}

/* Who takes a page and forgets it keeps the group to which it is charged. */
int main(int argc, char *argv[])
{
	int status = 0, tries;
	long dying;
	pid_t pid;

	require_private_mem();
	forget_cgroups();
	dying = nr_dying_cgroups();
	__TEST_REQUIRE(cgroup_create(), "There is no memory controller of cgroup2");
	pid = fork_in_cgroup();
	if (!pid) {
		inject_all();
		ksft_finished();
	}
	TEST_ASSERT(waitpid(pid, &status, 0) == pid && WIFEXITED(status), "Killed: %#x", status);
	cgroup_remove();
	forget_cgroups();
	for (tries = 0; tries < 1000 && nr_dying_cgroups() > dying; tries++)
		usleep(10000);
	TEST_ASSERT(nr_dying_cgroups() <= dying, "Memory of the group is still in use");
	return WEXITSTATUS(status);
}
