// SPDX-License-Identifier: GPL-2.0
/*
 * What the rest of memory management does to a VM with private memory: limits
 * and the OOM killer, pools that shrink, pages that are compacted, reclaimed,
 * merged, migrated, taken offline; fork and exec of the VMM.  Meanwhile and
 * afterwards the guest compares all of its memory.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <linux/mempolicy.h>

#include "private_memfd.h"

#define NR_PAGES	nr_units(2048, 8, 4)
#define MAX_PAGES	2048
#define HALF		(NR_PAGES / 2)
#define SIZE		(NR_PAGES * UNIT)

/* What the shared half of a private page has all the time. */
#define ALIAS		0x5a5a5a5a5a5a5a5aull

/*
 * A VM with half a slot in which every other page is private, and another half
 * in which all are.  The rest is shared.
 */
struct vmm {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct agent *agent;
	void *hva;
	int fd;

	/* The guest walks over so many pages, that hold this; what it writes is ever new. */
	uint64_t nr;
	uint64_t expect[MAX_PAGES];
	uint64_t last;

	/* If it does so all the time. */
	pthread_t thread;
	uint64_t walks;

	/* And if somebody converts the second half. */
	pthread_t converter;
	uint64_t conversions, failures;
	int error;			/* what these may fail with */
	bool stop;

	/* When it had found everything. */
	uint64_t mapped, faults;
};

static bool starts_private(uint64_t page)
{
	return page >= HALF || page % 2;
}

static void *alias(struct vmm *vmm, uint64_t page)
{
	return vmm->hva + page * UNIT;
}

/* All that the guest walks over has what it should, and gets something new. */
static void vmm_order(struct vmm *vmm)
{
	uint64_t i;

	agent_order(vmm->agent, PRIVATE_GPA, vmm->nr, 0, 0);
	for (i = 0; i < vmm->nr; i++) {
		vmm->agent->page[i].expect = vmm->expect[i];
		vmm->expect[i] = ++vmm->last;
		vmm->agent->page[i].write = vmm->expect[i];
	}
}

static void vmm_walk(struct vmm *vmm)
{
	vmm_order(vmm);
	agent_run(vmm->vcpu, vmm->agent);
}

static void vmm_bind(struct vmm *vmm)
{
	vm_add_private(vmm->vm, PRIVATE_SLOT, PRIVATE_GPA, SIZE, vmm->hva, vmm->fd, 0);
}

static void vmm_create(struct vmm *vmm)
{
	uint64_t i;

	memset(vmm, 0, sizeof(*vmm));
	vmm->vm = vm_create_private(1, agent_code, &vmm->vcpu);
	vmm->agent = agent_create(vmm->vcpu);
	vmm->fd = private_memfd(SIZE);
	/* Of small pages, until somebody wants something else. */
	vmm->hva = map_shared_half(SIZE);
	madvise(vmm->hva, SIZE, MADV_NOHUGEPAGE);
	memset(vmm->hva, (uint8_t)ALIAS, SIZE);

	for (i = 1; i < HALF; i += 2)
		memfd_to_private(vmm->fd, i * UNIT, UNIT);
	memfd_to_private(vmm->fd, HALF * UNIT, HALF * UNIT);
	vmm_bind(vmm);
	virt_map_private(vmm->vm, PRIVATE_GPA, SIZE);

	vmm->nr = NR_PAGES;
	for (i = 0; i < NR_PAGES; i++)
		vmm->expect[i] = starts_private(i) ? 0 : ALIAS;
	vmm_walk(vmm);
	vmm->mapped = get_vm_stat(vmm->vm, "private_pages");
	vmm->faults = get_vm_stat(vmm->vm, "private_faults");
}

static void vmm_free(struct vmm *vmm)
{
	kvm_vm_free(vmm->vm);
	close(vmm->fd);
	munmap(vmm->hva, SIZE);
}

static void alias_fill(struct vmm *vmm, uint64_t page)
{
	int i;

	for (i = 0; i < NR_PROBES; i++)
		probe_write(alias(vmm, page), i, ALIAS);
}

/* Pages that somebody has allocated; what they had when shared is wiped out. */
static void now_private(struct vmm *vmm, uint64_t first, uint64_t nr)
{
	uint64_t i;

	for (i = first; i < first + nr; i++) {
		vmm->expect[i] = 0;
		alias_fill(vmm, i);
	}
}

static void to_private(struct vmm *vmm, uint64_t first, uint64_t nr)
{
	memfd_to_private(vmm->fd, first * UNIT, nr * UNIT);
	now_private(vmm, first, nr);
}

static void to_shared(struct vmm *vmm, uint64_t first, uint64_t nr)
{
	uint64_t i;

	memfd_to_shared(vmm->fd, first * UNIT, nr * UNIT);
	for (i = first; i < first + nr; i++)
		vmm->expect[i] = probe_read(alias(vmm, i), 0);
}

static void *vcpu_thread(void *arg)
{
	struct vmm *vmm = arg;

	while (!READ_ONCE(vmm->stop)) {
		vmm_walk(vmm);
		WRITE_ONCE(vmm->walks, vmm->walks + 1);
	}
	return NULL;
}

static void vmm_start(struct vmm *vmm)
{
	vmm->stop = false;
	pthread_create(&vmm->thread, NULL, vcpu_thread, vmm);
}

static void wait_for(uint64_t *counter, uint64_t more, const char *what)
{
	uint64_t start = READ_ONCE(*counter);
	int tries;

	for (tries = 0; READ_ONCE(*counter) - start < more; tries++) {
		TEST_ASSERT(tries < 60000, "No more %s", what);
		usleep(1000);
	}
}

/* Everything was looked at since. */
static void vmm_wait(struct vmm *vmm)
{
	wait_for(&vmm->walks, 2, "walks");
}

static void vmm_stop(struct vmm *vmm)
{
	WRITE_ONCE(vmm->stop, true);
	pthread_join(vmm->thread, NULL);
}

/* Nobody has taken a private page from the guest, if only to give it back. */
static void assert_undisturbed(struct vmm *vmm)
{
	TEST_ASSERT_EQ(get_vm_stat(vmm->vm, "private_pages"), vmm->mapped);
	TEST_ASSERT_EQ(get_vm_stat(vmm->vm, "private_faults"), vmm->faults);
}

/* The VMM sees what the guest has written to shared pages, and nothing else. */
static void assert_shared_half(struct vmm *vmm)
{
	uint64_t i, value;
	int j;

	for (i = 0; i < vmm->nr; i++) {
		value = memfd_is_private(vmm->fd, i * UNIT) ? ALIAS : vmm->expect[i];
		for (j = 0; j < NR_PROBES; j++)
			TEST_ASSERT(probe_read(alias(vmm, i), j) == value,
				    "The VMM finds %#lx for %#lx in page %lu",
				    probe_read(alias(vmm, i), j), value, i);
	}
}

/* Converts pages of the second half, which the guest doesn't look at. */
static void *converter_thread(void *arg)
{
	unsigned int seed = 1;
	struct vmm *vmm = arg;

	while (!READ_ONCE(vmm->stop)) {
		uint64_t first = HALF + rand_r(&seed) % HALF;
		uint64_t nr = 1 + rand_r(&seed) % (NR_PAGES - first);
		int mode = rand_r(&seed) % 2 ? FALLOC_FL_PUNCH_HOLE : 0;

		if (fallocate(vmm->fd, FALLOC_FL_KEEP_SIZE | mode, first * UNIT, nr * UNIT)) {
			TEST_ASSERT(!mode && errno == vmm->error, "A conversion failed: %s",
				    strerror(errno));
			vmm->failures++;
		}
		WRITE_ONCE(vmm->conversions, vmm->conversions + 1);
	}
	return NULL;
}

static void converter_start(struct vmm *vmm, int error)
{
	vmm->error = error;
	vmm->nr = HALF;
	vmm->stop = false;
	pthread_create(&vmm->converter, NULL, converter_thread, vmm);
}

/* The guest has all of its memory again. */
static void converter_stop(struct vmm *vmm)
{
	WRITE_ONCE(vmm->stop, true);
	pthread_join(vmm->converter, NULL);
	to_shared(vmm, HALF, HALF);
	to_private(vmm, HALF, HALF);
	vmm->nr = NR_PAGES;
}

FIXTURE(guest) {
	struct vmm vmm;
	struct counters before;
};

#define guest_data FIXTURE_DATA(guest)

FIXTURE_SETUP(guest)
{
	read_counters(&self->before);
	vmm_create(&self->vmm);
}

FIXTURE_TEARDOWN(guest)
{
	vmm_walk(&self->vmm);
	vmm_walk(&self->vmm);
	assert_shared_half(&self->vmm);
	vmm_free(&self->vmm);
	assert_counters(&self->before, "Pressure");
}

/* Of VMMs that are processes of their own, and end. */
FIXTURE(life) {
	struct counters before;
};

FIXTURE_SETUP(life)
{
	read_counters(&self->before);
}

FIXTURE_TEARDOWN(life)
{
	assert_counters(&self->before, "A VMM that has ended");
}

/* So that the limit is one.  There may be no swap. */
static void cgroup_no_swap(void)
{
	__write_text(CGROUP "/memory.swap.max", "0");
}

/* By a process that is in the group no longer than that. */
static int fallocate_in_cgroup(int fd, uint64_t first, uint64_t nr)
{
	int outside, status = 0, r;
	pid_t pid = fork();

	if (!pid) {
		outside = open("/sys/fs/cgroup/cgroup.procs", O_WRONLY);
		cgroup_join();
		r = fallocate(fd, FALLOC_FL_KEEP_SIZE, first * UNIT, nr * UNIT) ? errno : 0;
		_exit(write(outside, "0", 1) == 1 ? r : 255);
	}
	TEST_ASSERT(waitpid(pid, &status, 0) == pid && WIFEXITED(status),
		    "fallocate() was killed: %#x", status);
	return WEXITSTATUS(status);
}

/* More than is converted in one step. */
#define LIMIT		(HALF * 3 / 4)

/* The group's memory ends in the middle of a request; then there is more of it. */
TEST_F_TIMEOUT(guest, limit, TIMEOUT)
{
	struct vmm *vmm = &self->vmm;
	uint64_t full;
	char max[32];

	if (!cgroup_create())
		SKIP(return, "There is no memory controller of cgroup2");
	cgroup_no_swap();
	to_shared(vmm, HALF, HALF);
	vmm->nr = HALF;
	vmm_start(vmm);
	vmm_wait(vmm);

	snprintf(max, sizeof(max), "%lu", LIMIT * UNIT);
	cgroup_limit(max);
	TEST_ASSERT_EQ(fallocate_in_cgroup(vmm->fd, HALF, HALF),
		       backing_is_hugetlb() ? ENOSPC : ENOMEM);
	TEST_ASSERT_EQ(cgroup_oom_kills(), 0);
	full = lseek(vmm->fd, HALF * UNIT, SEEK_HOLE) / UNIT;
	TEST_ASSERT(full > HALF && full <= HALF + LIMIT, "%lu pages with a limit of %lu",
		    full - HALF, LIMIT);
	TEST_ASSERT(lseek(vmm->fd, full * UNIT, SEEK_DATA) == -1 && errno == ENXIO,
		    "There are pages after page %lu", full);
	vmm_wait(vmm);
	vmm_stop(vmm);

	now_private(vmm, HALF, full - HALF);
	vmm->nr = NR_PAGES;
	vmm_walk(vmm);
	vmm_walk(vmm);
	assert_shared_half(vmm);

	cgroup_limit("max");
	TEST_ASSERT_EQ(fallocate_in_cgroup(vmm->fd, full, NR_PAGES - full), 0);
	now_private(vmm, full, NR_PAGES - full);
	vmm_walk(vmm);
	vmm_walk(vmm);
	TEST_ASSERT_EQ(memfd_nr_private(vmm->fd), HALF + HALF / 2);

	/* Who allocates pays, and no longer than that. */
	to_shared(vmm, HALF, HALF);
	TEST_ASSERT(cgroup_wait(0), "%ld bytes are charged for nothing", cgroup_charged());
	cgroup_remove();
}

/* More than there is in the group, until the kernel kills somebody. */
static void eat_memory(void)
{
	const size_t size = SZ_512M;
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	memset(p, 1, size);
}

static void vmm_live_and_eat(uint64_t conversions)
{
	static struct vmm vmm;

	vmm_create(&vmm);
	converter_start(&vmm, ENOMEM);
	vmm_start(&vmm);
	wait_for(&vmm.conversions, conversions, "conversions");
	eat_memory();
}

static void assert_killed(pid_t pid)
{
	int status = 0;

	TEST_ASSERT(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) &&
		    WTERMSIG(status) == SIGKILL, "Not killed: %#x", status);
}

/* The OOM killer comes for a VMM whose guest runs and whose memory is being converted. */
TEST_F_TIMEOUT(life, oom_killed, TIMEOUT)
{
	pid_t pid;
	int i;

	for (i = 0; i < 2; i++) {
		if (!cgroup_create())
			SKIP(return, "There is no memory controller of cgroup2");
		cgroup_no_swap();
		write_text(CGROUP "/memory.max", "48M");
		pid = fork_in_cgroup();
		if (!pid) {
			vmm_live_and_eat(20 + i * 13);
			_exit(0);
		}
		assert_killed(pid);
		TEST_ASSERT_EQ(cgroup_oom_kills(), 1);
		TEST_ASSERT(cgroup_wait(0), "%ld bytes are left", cgroup_charged());
		cgroup_remove();
		assert_counters(&self->before, "A VMM that was killed");
	}
}

/* What a VMM was doing, and how often all of it worked; for who looks at it from outside. */
enum phase { CREATING, BINDING, ALLOCATING, FAULTING, FREEING, ENDING, NR_PHASES };

struct lives {
	enum phase phase;
	unsigned long complete;
};

/* Lives of VMMs, one after the other; each call may fail for lack of memory. */
static void vmm_live_again(struct lives *lives)
{
	enum phase *phase = &lives->phase;
	struct kvm_pre_fault_memory range;
	void *hva = map_no_shared_half(SIZE);
	int kvm, vm, vcpu, fd, i, failed;

	for (i = 0;; i++) {
		WRITE_ONCE(*phase, CREATING);
		kvm = open(KVM_DEV_PATH, O_RDWR);
		vm = ioctl(kvm, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM);
		vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
		fd = memfd_create("private", MFD_INACCESSIBLE | private_backing()->memfd_flags);
		ftruncate(fd, SIZE);
		WRITE_ONCE(*phase, BINDING);
		failed = __vm_fd_add_private(vm, PRIVATE_SLOT, PRIVATE_GPA, SIZE, hva, fd);
		WRITE_ONCE(*phase, ALLOCATING);
		failed |= fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, SIZE);
		WRITE_ONCE(*phase, FAULTING);
		range = (struct kvm_pre_fault_memory) { .gpa = PRIVATE_GPA, .size = SIZE };
		failed |= ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
		lives->complete += !failed;
		WRITE_ONCE(*phase, FREEING);
		if (i % 2)
			fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, SIZE);
		WRITE_ONCE(*phase, ENDING);
		close(fd);
		close(vcpu);
		close(vm);
		close(kvm);
	}
}

/* Another process of its group takes the memory, and the OOM killer comes for all of them. */
TEST_F_TIMEOUT(life, oom_killed_anywhere, TIMEOUT)
{
	unsigned long killed[NR_PHASES] = {};
	unsigned int seed = 1, met = 0, delay;
	struct lives *lives;
	pid_t vmm, eater;
	int i;

	lives = map_for_children(sizeof(*lives));
	/* Not charged to the group. */
	lives->phase = CREATING;
	for (i = 0; i < scaled(30) || (met < 4 && i < 120); i++) {
		if (!cgroup_create())
			SKIP(return, "There is no memory controller of cgroup2");
		cgroup_no_swap();
		write_text(CGROUP "/memory.max", "48M");
		write_text(CGROUP "/memory.oom.group", "1");
		delay = rand_r(&seed) % 50000;
		vmm = fork_in_cgroup();
		if (!vmm)
			vmm_live_again(lives);
		eater = fork_in_cgroup();
		if (!eater) {
			usleep(delay);
			eat_memory();
			_exit(0);
		}
		assert_killed(vmm);
		assert_killed(eater);
		met += !killed[READ_ONCE(lives->phase)]++;
		TEST_ASSERT(cgroup_wait(0), "%ld bytes are left", cgroup_charged());
		cgroup_remove();
	}
	for (i = 0; i < NR_PHASES; i++)
		pr_info("# phase %d: killed %lu times\n", i, killed[i]);
	TEST_ASSERT(met >= 4, "Always in the same places");
	TEST_ASSERT(lives->complete, "No VMM has ever had its memory");
	munmap(lives, sizeof(*lives));
}

static void pool_resize(long nr)
{
	char text[32];

	snprintf(text, sizeof(text), "%ld", nr);
	write_text(hugetlb_path("nr_hugepages"), text);
}

/* The pool of huge pages is taken away and comes back. */
TEST_F_TIMEOUT(guest, pool, TIMEOUT)
{
	struct vmm *vmm = &self->vmm;
	long nr, used, i;

	if (!backing_is_hugetlb())
		SKIP(return, "There is a pool only on hugetlbfs");
	nr = read_hugetlb("nr_hugepages");
	used = read_hugetlb_used();
	vmm_start(vmm);
	vmm_wait(vmm);

	/* What the guest has stays. */
	pool_resize(0);
	TEST_ASSERT_EQ(read_hugetlb("nr_hugepages"), used);
	TEST_ASSERT_EQ(read_hugetlb("surplus_hugepages"), used);
	vmm_wait(vmm);
	assert_undisturbed(vmm);

	/* What it gives back is gone. */
	vmm_stop(vmm);
	to_shared(vmm, NR_PAGES - 1, 1);
	TEST_ASSERT_EQ(read_hugetlb("nr_hugepages"), used - 1);
	TEST_ASSERT(fallocate(vmm->fd, FALLOC_FL_KEEP_SIZE, SIZE - UNIT, UNIT) &&
		    errno == ENOSPC, "Wanted ENOSPC, got %s", strerror(errno));
	vmm_walk(vmm);
	pool_resize(nr);
	TEST_ASSERT_EQ(read_hugetlb("nr_hugepages"), nr);
	TEST_ASSERT_EQ(read_hugetlb("surplus_hugepages"), 0);
	to_private(vmm, NR_PAGES - 1, 1);
	vmm_walk(vmm);

	/* Also while pages come and go. */
	converter_start(vmm, ENOSPC);
	vmm_start(vmm);
	for (i = 0; i < 8 || (!vmm->failures && i < 200); i++) {
		pool_resize(0);
		wait_for(&vmm->conversions, 4, "conversions");
		pool_resize(nr);
		wait_for(&vmm->conversions, 4, "conversions");
	}
	vmm_wait(vmm);
	vmm_stop(vmm);
	converter_stop(vmm);
	TEST_ASSERT(vmm->failures, "The pool was never too small");
	TEST_ASSERT_EQ(read_hugetlb("nr_hugepages"), nr);
	TEST_ASSERT_EQ(read_hugetlb("surplus_hugepages"), 0);
	TEST_ASSERT_EQ(read_hugetlb_used(), used);
}

/* --- what moves pages --- */

/* In which frames the private pages are. The slot comes anew, so that each is asked for. */
static void frames_read(struct vmm *vmm, uint64_t *pfns)
{
	vm_delete_private(vmm->vm, PRIVATE_SLOT);
	vmm_bind(vmm);
	pfns_trace();
	vmm_walk(vmm);
	pfns_read(PRIVATE_GPA, NR_PAGES, UNIT, pfns);
	vmm->mapped = get_vm_stat(vmm->vm, "private_pages");
	vmm->faults = get_vm_stat(vmm->vm, "private_faults");
}

/* Of a page in a huge mapping, or after it in one, none may be known. */
static uint64_t nr_same_frames(const uint64_t *before, const uint64_t *now, uint64_t nr)
{
	uint64_t i, same = 0;

	for (i = 0; i < nr; i++) {
		TEST_ASSERT(!before[i] || !now[i] || before[i] == now[i],
			    "Page %lu has moved from pfn %#lx to %#lx", i, before[i], now[i]);
		same += before[i] && now[i];
	}
	return same;
}

static void assert_same_frames(struct vmm *vmm, const uint64_t *before)
{
	uint64_t now[MAX_PAGES], nr;

	frames_read(vmm, now);
	nr = nr_same_frames(before, now, NR_PAGES);
	TEST_ASSERT(nr > HALF / 2, "Only %lu pages were found", nr);
}

/* Small anonymous pages, each second one: what is done to them could be done to others. */
#define CONTROL_PAGES	4096

struct control {
	void *mem;
	uint64_t entries[CONTROL_PAGES];	/* of pagemap */
};

static void pagemap_read(const void *p, uint64_t *entries, uint64_t nr)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);

	TEST_ASSERT(fd >= 0 && pread(fd, entries, nr * sizeof(*entries), (uintptr_t)p /
				     PAGE_SIZE * sizeof(*entries)) == nr * sizeof(*entries),
		    "Can't read pagemap: %s", strerror(errno));
	close(fd);
}

static uint64_t frame_of(const void *p)
{
	uint64_t entry;

	pagemap_read(p, &entry, 1);
	return entry & GENMASK_ULL(54, 0);
}

/* How many have moved, or are gone, since the last time. */
static uint64_t control_moved(struct control *control)
{
	static uint64_t entries[CONTROL_PAGES];
	uint64_t i, nr = 0;

	pagemap_read(control->mem, entries, CONTROL_PAGES);
	for (i = 1; i < CONTROL_PAGES; i += 2) {
		nr += entries[i] != control->entries[i];
		control->entries[i] = entries[i];
	}
	return nr;
}

static void control_create(struct control *control)
{
	const uint64_t size = CONTROL_PAGES * PAGE_SIZE;
	uint64_t i;

	control->mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			    -1, 0);
	TEST_ASSERT(control->mem != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	madvise(control->mem, size, MADV_NOHUGEPAGE);
	memset(control->mem, 1, size);
	for (i = 0; i < CONTROL_PAGES; i += 2)
		madvise(control->mem + i * PAGE_SIZE, PAGE_SIZE, MADV_DONTNEED);
	control_moved(control);
}

static void control_free(struct control *control)
{
	munmap(control->mem, CONTROL_PAGES * PAGE_SIZE);
}

static void do_compaction(struct control *control)
{
	uint64_t moved = 0, tries;

	for (tries = 0; tries < 10 && !moved; tries++) {
		/* It may all be where compaction would have it. */
		if (tries % 3 == 2) {
			control_free(control);
			control_create(control);
		}
		write_text("/proc/sys/vm/compact_memory", "1");
		moved += control_moved(control);
	}
	TEST_ASSERT(moved, "Compaction has moved nothing");
	pr_info("# compaction has moved %lu other pages\n", moved);
}

static void do_reclaim(struct control *control)
{
	uint64_t moved = 0, tries;
	int r;

	for (tries = 0; tries < 50 && !moved; tries++) {
		write_text("/proc/sys/vm/drop_caches", "3");
		r = __write_text(CGROUP "/memory.reclaim", "4M");
		TEST_ASSERT(!r || r == EAGAIN, "Reclaim failed: %s", strerror(r));
		moved += control_moved(control);
	}
	TEST_ASSERT(moved, "Nothing was reclaimed");
	pr_info("# reclaim has got %lu other pages\n", moved);
}

#define KHUGEPAGED	THP_DIR "khugepaged/"

struct setting {
	const char *path;
	long saved;
};

static void settings_set(struct setting *settings, int nr, const char *value)
{
	int i;

	for (i = 0; i < nr; i++) {
		settings[i].saved = read_number(settings[i].path);
		write_text(settings[i].path, value);
	}
}

static void settings_restore(struct setting *settings, int nr)
{
	char text[32];
	int i;

	for (i = 0; i < nr; i++) {
		snprintf(text, sizeof(text), "%ld", settings[i].saved);
		write_text(settings[i].path, text);
	}
}

/* As a control, the shared half becomes huge pages, also behind private pages. */
static void do_collapse(struct vmm *vmm)
{
	struct setting settings[] = {
		{ KHUGEPAGED "pages_to_scan" },
		{ KHUGEPAGED "scan_sleep_millisecs" },
		{ KHUGEPAGED "alloc_sleep_millisecs" },
	};
	long scans = read_number(KHUGEPAGED "full_scans");
	long collapsed = read_number(KHUGEPAGED "pages_collapsed");
	int tries;

	settings_set(settings, ARRAY_SIZE(settings), "4096");
	write_text(settings[1].path, "10");
	write_text(settings[2].path, "10");
	madvise(vmm->hva, SIZE, MADV_HUGEPAGE);
	for (tries = 0; tries < 500 &&
	     (read_number(KHUGEPAGED "full_scans") < scans + 2 ||
	      read_number(KHUGEPAGED "pages_collapsed") == collapsed); tries++)
		usleep(10000);
	settings_restore(settings, ARRAY_SIZE(settings));
	collapsed = read_number(KHUGEPAGED "pages_collapsed") - collapsed;
	scans = read_number(KHUGEPAGED "full_scans") - scans;
	TEST_ASSERT(collapsed && scans >= 2, "%ld collapsed in %ld scans", collapsed, scans);
	pr_info("# khugepaged has collapsed %ld others\n", collapsed);
}

/* Compaction, khugepaged, the split of huge pages, reclaim, the drop of caches. */
TEST_F_TIMEOUT(guest, moving, TIMEOUT)
{
	/* Free pages that CPUs keep to themselves are of no use for compaction. */
	struct setting batches = { "/proc/sys/vm/percpu_pagelist_high_fraction" };
	struct vmm *vmm = &self->vmm;
	uint64_t before[MAX_PAGES];
	struct control control;

	if (access(TRACE_EVENT, W_OK))
		SKIP(return, "There is no " TRACE_EVENT);
	if (!cgroup_create())
		SKIP(return, "There is no memory controller of cgroup2");

	/* All of it in the group, which is what is reclaimed. */
	vmm_free(vmm);
	cgroup_join();
	vmm_create(vmm);
	settings_set(&batches, 1, "1000000");
	control_create(&control);
	frames_read(vmm, before);
	vmm_start(vmm);
	vmm_wait(vmm);
	if (thp_available())
		do_collapse(vmm);
	do_compaction(&control);
	__write_text("/sys/kernel/debug/split_huge_pages", "1");
	vmm_wait(vmm);
	do_reclaim(&control);
	vmm_wait(vmm);
	vmm_stop(vmm);
	control_free(&control);
	settings_restore(&batches, 1);
	assert_undisturbed(vmm);
	assert_same_frames(vmm, before);
	cgroup_leave();
	cgroup_remove();
}

/* --- memory that is taken offline, or fails --- */

/* A page that is in no huge mapping, and one that may be. */
#define SMALL_PAGE	1
#define HUGE_PAGE	HALF

#define MEMORY		"/sys/devices/system/memory/"

/* EINTR if it would have gone on for ever, as that of pages that can't be moved does. */
static int block_offline(uint64_t block)
{
	char path[128];
	int status;
	pid_t pid = fork();

	if (!pid) {
		snprintf(path, sizeof(path), MEMORY "memory%lu/state", block);
		alarm(1);
		_exit(__write_text(path, "offline"));
	}
	TEST_ASSERT(waitpid(pid, &status, 0) == pid, "waitpid() failed: %s", strerror(errno));
	return WIFSIGNALED(status) ? EINTR : WEXITSTATUS(status);
}

static bool block_is_online(uint64_t block)
{
	char path[128];

	snprintf(path, sizeof(path), MEMORY "memory%lu/online", block);
	return read_number(path) == 1;
}

static void block_online(uint64_t block)
{
	char path[128];

	snprintf(path, sizeof(path), MEMORY "memory%lu/state", block);
	write_text(path, "online");
}

static uint64_t block_size(void)
{
	unsigned long size = 0;
	FILE *f = fopen(MEMORY "block_size_bytes", "r");

	if (f) {
		if (fscanf(f, "%lx", &size) != 1)
			size = 0;
		fclose(f);
	}
	return size;
}

/* As much as to have blocks of it and nothing else; but a pool is never that large. */
#define LARGE_SIZE	(backing_is_hugetlb() ? SIZE : (uint64_t)SZ_256M + SZ_128M)
#define LARGE_GPA	(2 * PRIVATE_GPA)
#define NR_LARGE	(LARGE_SIZE / SZ_2M)
#define MAX_BLOCKS	1024

/* Another slot, made anew each time, of which the guest uses a little here and there. */
static void large_walk(struct vmm *vmm, int fd, uint64_t expect, uint64_t *pfns)
{
	void *hva = map_no_shared_half(LARGE_SIZE);

	vm_add_private(vmm->vm, PRIVATE_SLOT + 1, LARGE_GPA, LARGE_SIZE, hva, fd, 0);
	pfns_trace();
	vmm->agent->unit = SZ_2M;
	agent_order(vmm->agent, LARGE_GPA, NR_LARGE, expect, 0x9);
	agent_run(vmm->vcpu, vmm->agent);
	vmm->agent->unit = UNIT;
	pfns_read(LARGE_GPA, NR_LARGE, SZ_2M, pfns);
}

static int large_create(struct vmm *vmm, uint64_t *pfns)
{
	int fd = private_memfd(LARGE_SIZE);

	memfd_to_private(fd, 0, LARGE_SIZE);
	virt_map_private(vmm->vm, LARGE_GPA, LARGE_SIZE);
	large_walk(vmm, fd, 0, pfns);
	return fd;
}

/* All of it is where it was. */
static void large_free(struct vmm *vmm, int fd, const uint64_t *before)
{
	uint64_t now[MAX_PAGES];

	vm_delete_private(vmm->vm, PRIVATE_SLOT + 1);
	large_walk(vmm, fd, 0x9, now);
	TEST_ASSERT_EQ(nr_same_frames(before, now, NR_LARGE), NR_LARGE);
	vm_delete_private(vmm->vm, PRIVATE_SLOT + 1);
	close(fd);
}

/* Marks blocks that have such pages. */
static void blocks_of(const uint64_t *pfns, uint64_t nr, uint64_t size, bool *found)
{
	uint64_t i, block;

	for (i = 0; i < nr; i++) {
		block = pfns[i] * PAGE_SIZE / size;
		if (pfns[i] && block < MAX_BLOCKS)
			found[block] = true;
	}
}

/* Blocks with private pages in them stay; others may go. */
TEST_F_TIMEOUT(guest, unplug, TIMEOUT)
{
	const long pool = backing_is_hugetlb() ? read_hugetlb("nr_hugepages") : 0;
	uint64_t pfns[MAX_PAGES], large_pfns[MAX_PAGES];
	unsigned int refused = 0, retried = 0, gone = 0;
	uint64_t block, size = block_size();
	bool found[MAX_BLOCKS] = {};
	struct vmm *vmm = &self->vmm;
	int large, r;

	if (access(TRACE_EVENT, W_OK))
		SKIP(return, "There is no " TRACE_EVENT);
	if (!size || access(MEMORY "memory0/state", W_OK))
		SKIP(return, "Memory can't be taken offline");

	large = large_create(vmm, large_pfns);
	frames_read(vmm, pfns);
	blocks_of(large_pfns, NR_LARGE, size, found);
	blocks_of(pfns, NR_PAGES, size, found);
	vmm_start(vmm);
	vmm_wait(vmm);
	for (block = 0; block < MAX_BLOCKS; block++) {
		if (!found[block])
			continue;
		r = block_offline(block);
		/* A block with more than one zone is not even tried. */
		TEST_ASSERT(r == EBUSY || r == EINTR || r == EINVAL, "Block %lu offline: %s",
			    block, strerror(r));
		TEST_ASSERT(block_is_online(block), "Block %lu is gone", block);
		refused++;
		retried += r == EINTR;
		vmm_wait(vmm);
	}
	TEST_ASSERT(refused, "There was no block with private pages");
	/* The kernel's own pages are elsewhere, if memory is not too fragmented. */
	pr_info("# %u of %u blocks have nothing else that can't be moved\n", retried, refused);
	TEST_ASSERT(retried || backing_is_hugetlb(), "Always other pages were in the way");

	for (block = MAX_BLOCKS; block-- > 0 && !gone;) {
		if (found[block] || !block_is_online(block) || block_offline(block))
			continue;
		TEST_ASSERT(!block_is_online(block), "Block %lu is there yet", block);
		gone++;
		vmm_wait(vmm);
		block_online(block);
	}
	TEST_ASSERT(gone, "No block could be taken offline");
	vmm_stop(vmm);
	large_free(vmm, large, large_pfns);
	/* Free ones of the pool may have been in a block that went. */
	if (pool)
		pool_resize(pool);
	assert_same_frames(vmm, pfns);
}

/* Frames that might fail soon: a page that can't be moved stays, and is fine. */
TEST_F_TIMEOUT(guest, soft_offline, TIMEOUT)
{
	const uint64_t pages[] = { SMALL_PAGE, HUGE_PAGE };
	struct vmm *vmm = &self->vmm;
	uint64_t pfns[MAX_PAGES], pfn, i;
	char *other;
	int r;

	if (access(TRACE_EVENT, W_OK))
		SKIP(return, "There is no " TRACE_EVENT);
	if (access(MEMORY "soft_offline_page", W_OK))
		SKIP(return, "There is no " MEMORY "soft_offline_page");

	/* As a control, an anonymous page does move. */
	other = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(other != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	*other = 1;
	pfn = frame_of(other);
	TEST_ASSERT_EQ(page_offline(MEMORY "soft_offline_page", pfn), 0);
	TEST_ASSERT(*other == 1 && frame_of(other) != pfn, "The page has not moved");
	munmap(other, PAGE_SIZE);

	frames_read(vmm, pfns);
	vmm_start(vmm);
	vmm_wait(vmm);
	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		/* And the last of the huge page. */
		pfn = pfns[pages[i]];
		TEST_ASSERT(pfn, "Nothing is known of page %lu", pages[i]);
		if (backing_is_hugetlb() || (pages[i] == HUGE_PAGE && backing_is_huge()))
			pfn += PAGES_PER_2M - 1;
		r = page_offline(MEMORY "soft_offline_page", pfn);
		TEST_ASSERT(r == EBUSY, "A page that can't be moved was taken offline: %s",
			    strerror(r));
		vmm_wait(vmm);
	}
	vmm_stop(vmm);
	assert_undisturbed(vmm);
	assert_same_frames(vmm, pfns);

	/* They are as good as any. */
	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		to_shared(vmm, pages[i], 1);
		to_private(vmm, pages[i], 1);
	}
}

/* Walk until it is done, as a VMM does that replaces pages that have failed. */
static uint64_t vmm_walk_mending(struct vmm *vmm, uint64_t page)
{
	const uint64_t gpa = PRIVATE_GPA + page * UNIT;
	struct kvm_run *run = vmm->vcpu->run;
	uint64_t mended = 0;

	vmm_order(vmm);
	while (_vcpu_run(vmm->vcpu)) {
		assert_memory_fault(vmm->vcpu, -1, EHWPOISON, KVM_MEMORY_EXIT_FLAG_PRIVATE,
				    run->memory_fault.gpa);
		TEST_ASSERT(run->memory_fault.gpa - gpa < UNIT, "gpa %#llx has failed, not %#lx",
			    run->memory_fault.gpa, gpa);
		TEST_ASSERT(!mended++, "Another page has failed, too");
		memfd_to_shared(vmm->fd, page * UNIT, UNIT);
		memfd_to_private(vmm->fd, page * UNIT, UNIT);
	}
	TEST_ASSERT_KVM_EXIT_REASON(vmm->vcpu, KVM_EXIT_IO);
	/* The guest has lost that page, and nothing else. */
	if (mended)
		TEST_ASSERT(vmm->agent->nr_bad <= NR_PROBES && !vmm->agent->bad_value &&
			    (!vmm->agent->nr_bad || vmm->agent->bad_gva - gpa < UNIT),
			    "%lu words wrong, one at %#lx: %#lx", vmm->agent->nr_bad,
			    vmm->agent->bad_gva, vmm->agent->bad_value);
	else
		agent_report(vmm->agent);
	return mended;
}

struct failing {
	struct vmm *vmm;
	uint64_t page, mended;
};

static void *mending_thread(void *arg)
{
	struct failing *failing = arg;
	struct vmm *vmm = failing->vmm;

	while (!READ_ONCE(vmm->stop)) {
		failing->mended += vmm_walk_mending(vmm, failing->page);
		WRITE_ONCE(vmm->walks, vmm->walks + 1);
	}
	return NULL;
}

/* Memory fails while the guest is using it. */
TEST_F_TIMEOUT(guest, hard_offline, TIMEOUT)
{
	const uint64_t pages[] = { SMALL_PAGE, HUGE_PAGE };
	struct vmm *vmm = &self->vmm;
	uint64_t pfns[MAX_PAGES], now[MAX_PAGES], i;
	struct failing failing = { .vmm = vmm };
	int r;

	if (access(TRACE_EVENT, W_OK))
		SKIP(return, "There is no " TRACE_EVENT);
	if (access(MEMORY "hard_offline_page", W_OK))
		SKIP(return, "There is no " MEMORY "hard_offline_page");

	frames_read(vmm, pfns);
	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		uint64_t pfn = pfns[pages[i]];

		failing.page = pages[i];
		failing.mended = 0;
		/* Huge ones are lost as a whole, whichever page of them has failed. */
		if (backing_is_hugetlb())
			pfn += PAGES_PER_2M - 1;
		vmm->stop = false;
		pthread_create(&vmm->thread, NULL, mending_thread, &failing);
		vmm_wait(vmm);
		r = page_offline(MEMORY "hard_offline_page", pfn);
		/* It says so if just then a fault has a reference; the page is bad all the same. */
		TEST_ASSERT(!r || r == EBUSY, "Page %lu offline: %s", failing.page, strerror(r));
		vmm_wait(vmm);
		vmm_stop(vmm);
		TEST_ASSERT(failing.mended == 1, "Page %lu has failed %lu times", failing.page,
			    failing.mended);
	}
	/* A frame that has failed is nobody's, and never free again. */
	self->before.hugetlb_used += backing_is_hugetlb() ? ARRAY_SIZE(pages) : 0;
	frames_read(vmm, now);
	for (i = 0; i < ARRAY_SIZE(pages); i++)
		TEST_ASSERT(now[pages[i]] && now[pages[i]] != pfns[pages[i]],
			    "Page %lu is in pfn %#lx again", pages[i], now[pages[i]]);
}

/* A VMM that is about to lose a page, and what it does then. */
struct dying {
	uint64_t pfn;
	bool go, ends;
};

static void *running_thread(void *arg)
{
	struct vmm *vmm = arg;

	/* Until a page has failed, or there is no VM. */
	while (!_vcpu_run(vmm->vcpu))
		;
	return NULL;
}

static void end_by_punch(struct vmm *vmm)
{
	memfd_to_shared(vmm->fd, 0, SIZE);
}

static void end_of_file(struct vmm *vmm)
{
	vm_delete_private(vmm->vm, PRIVATE_SLOT);
	close(vmm->fd);
}

static void end_of_vm(struct vmm *vmm)
{
	close(vmm->vm->fd);
	close(vmm->fd);
}

static void end_by_signal(struct vmm *vmm)
{
	kill(getpid(), SIGKILL);
}

static struct end {
	void (*fn)(struct vmm *vmm);
	const char *name;
	int lead;		/* of the failure, in microseconds; less than 0, of the end */
	int met;		/* how often both were under way */
} ends[] = {
	{ end_by_punch, "punches" },
	{ end_of_file, "closes the file" },
	{ end_of_vm, "closes the VM" },
	{ end_by_signal, "is killed" },
};

static void live_and_end(struct dying *dying, struct end *end)
{
	static uint64_t pfns[MAX_PAGES];
	static struct vmm vmm;

	vmm_create(&vmm);
	frames_read(&vmm, pfns);
	TEST_ASSERT(pfns[SMALL_PAGE], "Nothing is known of page %u", SMALL_PAGE);
	pthread_create(&vmm.thread, NULL, running_thread, &vmm);
	WRITE_ONCE(dying->pfn, pfns[SMALL_PAGE]);
	while (!READ_ONCE(dying->go))
		;
	usleep(max(end->lead, 0));
	WRITE_ONCE(dying->ends, true);
	end->fn(&vmm);
	_exit(0);
}

static bool has_ended(pid_t pid)
{
	siginfo_t info = {};

	TEST_ASSERT(!waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT), "waitid() failed: %s",
		    strerror(errno));
	return info.si_pid;
}

enum failed { IN_TIME, MEANWHILE, TOO_LATE };

/* When the page has failed: before the VMM began to end, before that was done, or after it. */
static enum failed fail_and_end(struct dying *dying, struct end *end)
{
	pid_t pid = fork();
	bool there, ending;
	int status;

	TEST_ASSERT(pid >= 0, "fork() failed: %s", strerror(errno));
	if (!pid)
		live_and_end(dying, end);
	while (!READ_ONCE(dying->pfn)) {
		TEST_ASSERT(!has_ended(pid), "A VMM has ended before its time");
		usleep(1000);
	}
	WRITE_ONCE(dying->go, true);
	usleep(max(-end->lead, 0));
	there = !has_ended(pid);
	/* Any result is right: the frame may be free by now, or somebody else's. */
	page_offline(MEMORY "hard_offline_page", dying->pfn);
	ending = READ_ONCE(dying->ends);
	TEST_ASSERT(waitpid(pid, &status, 0) == pid &&
		    (WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : !status),
		    "A VMM has ended with status %#x", status);
	return !there ? TOO_LATE : ending ? MEANWHILE : IN_TIME;
}

/*
 * Memory fails while the file, the VM or the process that has it ends.  Not that
 * of a huge page of shmem: while it can't be split, the failed frame is freed with
 * it, and comes back.
 */
TEST_F_TIMEOUT(life, hard_offline_and_end, TIMEOUT)
{
	const int nr = scaled(nr_units(40, 20, 4));
	struct dying *dying;
	struct end *end;
	int i, met = 0;

	if (access(TRACE_EVENT, W_OK))
		SKIP(return, "There is no " TRACE_EVENT);
	if (access(MEMORY "hard_offline_page", W_OK))
		SKIP(return, "There is no " MEMORY "hard_offline_page");

	dying = map_for_children(sizeof(*dying));
	for (i = 0; i < nr || (met < ARRAY_SIZE(ends) && i < 3 * nr); i++) {
		end = &ends[i % ARRAY_SIZE(ends)];
		*dying = (struct dying) {};
		switch (fail_and_end(dying, end)) {
		case IN_TIME:
			end->lead -= 250;
			break;
		case MEANWHILE:
			met += !end->met++;
			break;
		case TOO_LATE:
			end->lead += 300;
		}
	}
	munmap(dying, sizeof(*dying));
	for (end = ends; end < ends + ARRAY_SIZE(ends); end++) {
		pr_info("# %d of %lu failed while the VMM %s\n", end->met,
			i / ARRAY_SIZE(ends), end->name);
		TEST_ASSERT(end->met, "Always before or after the VMM %s", end->name);
	}
	/* A frame that has failed is nobody's, and never free again. */
	self->before.hugetlb_used += backing_is_hugetlb() ? i : 0;
}

/* --- what is done to the shared half --- */

#define KSM		"/sys/kernel/mm/ksm/"

/* All shared pages get what private ones have in the shared half: all of it is alike. */
static void make_alike(struct vmm *vmm)
{
	uint64_t i;

	agent_order(vmm->agent, PRIVATE_GPA, NR_PAGES, AGENT_NOTHING, AGENT_NOTHING);
	for (i = 0; i < NR_PAGES; i++) {
		if (starts_private(i))
			continue;
		vmm->agent->page[i].write = ALIAS;
		vmm->expect[i] = ALIAS;
	}
	agent_run(vmm->vcpu, vmm->agent);
}

/* Pages of the shared half are merged, and come apart when the guest writes to them. */
TEST_F_TIMEOUT(guest, merged, TIMEOUT)
{
	struct setting settings[] = {
		{ KSM "pages_to_scan" },
		{ KSM "sleep_millisecs" },
	};
	const long enough = SIZE / PAGE_SIZE / 2;
	struct vmm *vmm = &self->vmm;
	int tries;

	if (access(KSM "run", W_OK))
		SKIP(return, "There is no KSM");
	make_alike(vmm);
	TEST_ASSERT(!madvise(vmm->hva, SIZE, MADV_MERGEABLE), "madvise() failed: %s",
		    strerror(errno));
	settings_set(settings, ARRAY_SIZE(settings), "10");
	write_text(KSM "pages_to_scan", "4096");
	write_text(KSM "run", "1");
	for (tries = 0; tries < 1000 && read_number(KSM "pages_sharing") < enough; tries++)
		usleep(10000);
	TEST_ASSERT(read_number(KSM "pages_sharing") >= enough, "Only %ld pages are merged",
		    read_number(KSM "pages_sharing"));
	assert_undisturbed(vmm);
	assert_shared_half(vmm);

	vmm_start(vmm);
	vmm_wait(vmm);
	vmm_stop(vmm);
	settings_restore(settings, ARRAY_SIZE(settings));
	write_text(KSM "run", "2");
	write_text(KSM "run", "0");
	assert_undisturbed(vmm);
}

static void *walk_thread(void *arg)
{
	vmm_walk(arg);
	return NULL;
}

/* Who serves a userfaultfd in the shared half is asked for shared pages only. */
TEST_F_TIMEOUT(guest, missing, TIMEOUT)
{
	struct vmm *vmm = &self->vmm;
	uint64_t i, faults, nr = 0;
	int uffd;

	uffd = uffd_open(vmm->hva, SIZE);
	if (uffd < 0)
		SKIP(return, "There is no userfaultfd");
	TEST_ASSERT(!madvise(vmm->hva, SIZE, MADV_DONTNEED), "madvise() failed: %s",
		    strerror(errno));
	for (i = 0; i < NR_PAGES; i++) {
		if (starts_private(i))
			continue;
		vmm->expect[i] = ALIAS;
		nr += backing_is_hugetlb() ? NR_PROBES : 1;
	}
	/* Those of private pages are missed, too, but not there. */
	vm_delete_private(vmm->vm, PRIVATE_SLOT);
	vmm_bind(vmm);
	faults = get_vm_stat(vmm->vm, "private_faults");
	pthread_create(&vmm->thread, NULL, walk_thread, vmm);
	while (nr--) {
		void *page = uffd_wait(uffd);

		TEST_ASSERT(!starts_private((page - vmm->hva) / UNIT),
			    "The handler is asked for private page %lu",
			    (page - vmm->hva) / UNIT);
		uffd_fill(uffd, page, ALIAS);
	}
	pthread_join(vmm->thread, NULL);
	TEST_ASSERT(get_vm_stat(vmm->vm, "private_faults") > faults, "No private page was missed");
	close(uffd);
	for (i = 0; i < NR_PAGES; i++)
		if (starts_private(i))
			alias_fill(vmm, i);
}

#define NR_NODES	2

/* Returns how many pages of the shared half are on that node then. */
static long move_to(struct vmm *vmm, int node)
{
	const uint64_t nr = SIZE / PAGE_SIZE;
	void **pages = calloc(nr, sizeof(*pages));
	int *nodes = calloc(nr, sizeof(*nodes)), *status = calloc(nr, sizeof(*status));
	long i, r, moved = 0;

	for (i = 0; i < nr; i++) {
		pages[i] = vmm->hva + i * PAGE_SIZE;
		nodes[i] = node;
	}
	r = syscall(__NR_move_pages, 0, nr, pages, nodes, status, MPOL_MF_MOVE);
	TEST_ASSERT(r >= 0, "move_pages() failed: %s", strerror(errno));
	/* Asked, it says where they are. */
	r = syscall(__NR_move_pages, 0, nr, pages, NULL, status, 0);
	TEST_ASSERT(!r, "move_pages() failed: %s", strerror(errno));
	for (i = 0; i < nr; i++)
		moved += status[i] == node;
	free(pages);
	free(nodes);
	free(status);
	return moved;
}

/* The VMM goes to another node and comes back, with all that it has mapped. */
TEST_F_TIMEOUT(guest, migrated, TIMEOUT)
{
	const long enough = SIZE / PAGE_SIZE * 3 / 4;
	struct vmm *vmm = &self->vmm;
	uint64_t pfns[MAX_PAGES];
	unsigned long from, to;
	long i, moved;

	if (access(TRACE_EVENT, W_OK))
		SKIP(return, "There is no " TRACE_EVENT);
	if (access("/sys/devices/system/node/node1", F_OK))
		SKIP(return, "There is one node only");
	frames_read(vmm, pfns);
	vmm_start(vmm);
	vmm_wait(vmm);
	for (i = 0; i < NR_NODES; i++) {
		moved = move_to(vmm, i);
		TEST_ASSERT(moved >= enough, "Only %ld pages went to node %ld", moved, i);
		vmm_wait(vmm);
		from = BIT(i);
		to = BIT(!i);
		TEST_ASSERT(syscall(__NR_migrate_pages, 0, 8 * sizeof(from), &from, &to) >= 0,
			    "migrate_pages() failed: %s", strerror(errno));
		vmm_wait(vmm);
	}
	vmm_stop(vmm);
	assert_undisturbed(vmm);
	assert_same_frames(vmm, pfns);
}

#define BALANCING	"/proc/sys/kernel/numa_balancing"

/* By the VMM itself, which has all of its memory. */
static long nr_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt;
}

/* The kernel takes pages of the VMM away for a moment, to see who uses them from where. */
TEST_F_TIMEOUT(guest, balanced, TIMEOUT)
{
	struct vmm *vmm = &self->vmm;
	uint64_t pfns[MAX_PAGES], i;
	long faults;
	int tries;

	if (access(BALANCING, W_OK))
		SKIP(return, "There is no NUMA balancing");
	if (access("/sys/devices/system/node/node1", F_OK))
		SKIP(return, "There is one node only");
	write_text(BALANCING, "1");
	frames_read(vmm, pfns);
	vmm_start(vmm);
	faults = nr_faults();
	for (tries = 0; tries < 6000; tries++) {
		for (i = 0; i < NR_PAGES; i++)
			probe_read(alias(vmm, i), 0);
		if (nr_faults() - faults > (long)NR_PAGES)
			break;
		usleep(10000);
	}
	vmm_wait(vmm);
	vmm_stop(vmm);
	write_text(BALANCING, "0");
	pr_info("# %ld faults\n", nr_faults() - faults);
	TEST_ASSERT(tries < 6000, "The kernel doesn't look who uses these pages");
	assert_undisturbed(vmm);
	assert_same_frames(vmm, pfns);
}

/* --- fork and exec --- */

/* What a child of the VMM can see: shared pages as they were when it was born. */
static int child_looks(struct vmm *vmm)
{
	uint64_t word;
	struct iovec local = { &word, sizeof(word) };
	struct iovec remote = { alias(vmm, HALF), sizeof(word) };

	assert_shared_half(vmm);
	if (pread(vmm->fd, &word, sizeof(word), HALF * UNIT) != -1 || errno != EPERM)
		return 1;
	if (mmap(NULL, SIZE, PROT_READ, MAP_SHARED, vmm->fd, 0) != MAP_FAILED || errno != EPERM)
		return 2;
	if (process_vm_readv(getppid(), &local, 1, &remote, 1, 0) != sizeof(word) || word != ALIAS)
		return 3;
	return 0;
}

TEST_F_TIMEOUT(guest, forked, TIMEOUT)
{
	struct vmm *vmm = &self->vmm;
	int status, fds[2], i;
	char c = 0;
	pid_t pid;

	for (i = 0; i < 3; i++) {
		TEST_ASSERT(!pipe(fds), "pipe() failed: %s", strerror(errno));
		pid = fork();
		if (!pid) {
			status = child_looks(vmm);
			if (status || read(fds[0], &c, 1) != 1)
				_exit(status ?: 10);
			_exit(child_looks(vmm));
		}
		/* Both go on, the guest with the memory that the VMM has. */
		vmm_start(vmm);
		vmm_wait(vmm);
		TEST_ASSERT_EQ(write(fds[1], &c, 1), 1);
		TEST_ASSERT(waitpid(pid, &status, 0) == pid && !status, "The child: %#x", status);
		vmm_wait(vmm);
		vmm_stop(vmm);
		assert_shared_half(vmm);
		close(fds[0]);
		close(fds[1]);
	}
	assert_undisturbed(vmm);
}

/* This program is then another one. */
#define WAIT		"--wait"

static void vmm_live_until_exec(bool keep)
{
	static struct vmm vmm;

	vmm_create(&vmm);
	converter_start(&vmm, 0);
	vmm_start(&vmm);
	vmm_wait(&vmm);
	wait_for(&vmm.conversions, 10, "conversions");
	if (keep)
		fcntl(vmm.fd, F_SETFD, 0);
	/* Has a reference to a module, and is no business of ours. */
	fcntl(vmm.vm->kvm_fd, F_SETFD, FD_CLOEXEC);
	execl("/proc/self/exe", "private_memfd_pressure_test", WAIT, NULL);
}

/* The file and its content, without a VM. */
static void assert_file_left(const struct counters *before)
{
	const long size = HALF / 2 * UNIT;
	struct counters now;
	int tries;

	for (tries = 0; tries < 3000; tries++) {
		read_counters(&now);
		if (now.vms == before->vms)
			break;
		usleep(10000);
	}
	TEST_ASSERT_EQ(now.vms, before->vms);
	TEST_ASSERT(backing_is_hugetlb() ?
		    now.hugetlb_used >= before->hugetlb_used + size / (long)UNIT :
		    now.shmem_kb >= before->shmem_kb + size / SZ_1K,
		    "The file that was inherited is empty");
}

/* exec() ends the VM, with vCPUs in the guest and a conversion under way. */
TEST_F_TIMEOUT(life, exec, TIMEOUT)
{
	int status, fds[2], keep;
	pid_t pid;
	char c;

	for (keep = 0; keep < 2; keep++) {
		TEST_ASSERT(!pipe2(fds, O_CLOEXEC), "pipe2() failed: %s", strerror(errno));
		pid = fork();
		if (!pid) {
			vmm_live_until_exec(keep);
			_exit(1);
		}
		close(fds[1]);
		TEST_ASSERT_EQ(read(fds[0], &c, 1), 0);
		close(fds[0]);
		if (keep)
			assert_file_left(&self->before);
		else
			assert_counters(&self->before, "A VMM that is another program");
		kill(pid, SIGKILL);
		TEST_ASSERT(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) &&
			    WTERMSIG(status) == SIGKILL, "It has ended before: %#x", status);
		assert_counters(&self->before, "A program that was a VMM");
	}
}

int main(int argc, char *argv[])
{
	if (argc == 2 && !strcmp(argv[1], WAIT))
		return pause();

	require_private_mem();
	return test_harness_run(argc, argv);
}
