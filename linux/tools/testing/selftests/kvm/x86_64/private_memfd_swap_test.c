// SPDX-License-Identifier: GPL-2.0
/*
 * Swap and KVM_MEM_PRIVATE slots: what was swapped out before the first bind
 * comes back when the guest wants it, and nothing is swapped out after that.  The
 * swap device is read to see, and so is a core dump of this process.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "private_memfd.h"

#define NR_PAGES	((uint64_t)2048)
#define SIZE		(NR_PAGES * PAGE_SIZE)

/* The same everywhere; the C library's headers may not know it yet. */
#define NR_CACHESTAT	451

/* What pages hold says who wrote it: a guest, by small numbers, or the host. */
#define SWAPPED		0x7f
#define UNBOUND		0x7e
#define SHARED		0x7d
#define NR_TAGS		0x100
#define VALUES		0x5ea1ed000000

static uint64_t value_of(uint64_t page)
{
	return VALUES + page * NR_TAGS;
}

/*
 * How many pages of each are found in a file or on a device.  Single words are in
 * orders to the guest, and on stacks.
 */
static void search(const char *path, int flags, uint64_t found[NR_TAGS])
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | flags);
	void *buf = aligned_alloc(PAGE_SIZE, SZ_1M), *page;
	ssize_t n;

	TEST_ASSERT(fd >= 0 && buf, "Can't read %s: %s", path, strerror(errno));
	memset(found, 0, NR_TAGS * sizeof(*found));
	while ((n = read(fd, buf, SZ_1M)) > 0) {
		for (page = buf; page + PAGE_SIZE <= buf + n; page += PAGE_SIZE) {
			uint64_t value = *probe(page, PAGE_SIZE, 0);

			if (value - VALUES < NR_PAGES * NR_TAGS &&
			    *probe(page, PAGE_SIZE, 1) == value &&
			    *probe(page, PAGE_SIZE, 2) == value)
				found[value % NR_TAGS]++;
		}
	}
	TEST_ASSERT(!n, "Reading %s failed: %s", path, strerror(errno));
	free(buf);
	close(fd);
}

static void read_line(const char *path, char *line, int size)
{
	FILE *f = fopen(path, "r");

	TEST_ASSERT(f && fgets(line, size, f), "Can't read %s: %s", path, strerror(errno));
	line[strcspn(line, "\n")] = '\0';
	fclose(f);
}

static void write_line(const char *path, const char *line)
{
	FILE *f = fopen(path, "w");

	TEST_ASSERT(f && fputs(line, f) >= 0 && !fclose(f), "Can't write %s: %s", path,
		    strerror(errno));
}

static void search_swap(uint64_t found[NR_TAGS])
{
	char path[128];
	FILE *f = fopen("/proc/swaps", "r");

	TEST_ASSERT(f && fscanf(f, "%*[^\n] %127s", path) == 1, "There is no swap");
	fclose(f);
	/* Past the cache, which knows nothing of swapping. */
	search(path, O_DIRECT, found);
}

/* How many pages of the file are in swap; that much may be known of it. */
static uint64_t nr_swapped(int fd)
{
	struct {
		uint64_t off, len;
	} range = { 0, SIZE };
	struct {
		uint64_t cache, dirty, writeback, evicted, recently_evicted;
	} cs;
	int r = syscall(NR_CACHESTAT, fd, &range, &cs, 0);

	TEST_ASSERT(!r, "cachestat() failed: %s", strerror(errno));
	TEST_ASSERT_EQ(cs.cache + cs.evicted, NR_PAGES);
	return cs.evicted;
}

static void fill(void *p, uint64_t tag)
{
	uint64_t i;
	int j;

	for (i = 0; i < NR_PAGES; i++) {
		for (j = 0; j < NR_PROBES; j++)
			probe_write(p + i * PAGE_SIZE, j, value_of(i) + tag);
	}
}

static void seal(int fd)
{
	TEST_ASSERT(!fcntl(fd, F_ADD_SEALS, F_SEAL_INACCESSIBLE), "F_ADD_SEALS failed: %s",
		    strerror(errno));
}

/* A file with content in each page, to be sealed. */
static int filled_memfd(uint64_t tag)
{
	int fd = private_memfd_sized(SIZE, MFD_ALLOW_SEALING);
	void *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	TEST_ASSERT(p != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	fill(p, tag);
	munmap(p, SIZE);
	return fd;
}

/* ... most of it in swap. */
static int swapped_out_memfd(void)
{
	int fd = filled_memfd(SWAPPED), tries;
	void *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	TEST_ASSERT(p != MAP_FAILED && !madvise(p, SIZE, MADV_POPULATE_READ),
		    "mmap() failed: %s", strerror(errno));
	for (tries = 0; tries < 20 && nr_swapped(fd) < NR_PAGES / 2; tries++)
		madvise(p, SIZE, MADV_PAGEOUT);
	munmap(p, SIZE);
	TEST_ASSERT(nr_swapped(fd) >= NR_PAGES / 2, "%lu of %lu pages are in swap",
		    nr_swapped(fd), NR_PAGES);
	return fd;
}

/*
 * Until it has got at the pages of an unbound file.  Those of a bound one that
 * were allocated before would have been first.
 */
static void reclaim_from(int unbound)
{
	int fd = open("/sys/fs/cgroup/memory.reclaim", O_WRONLY), tries;

	TEST_ASSERT(fd >= 0, "No memory.reclaim: %s", strerror(errno));
	for (tries = 0; tries < 100 && nr_swapped(unbound) < NR_PAGES / 2; tries++) {
		/* How much of it was found is of no interest. */
		if (write(fd, "8M", 2) < 0)
			TEST_ASSERT(errno == EAGAIN, "Reclaim failed: %s", strerror(errno));
	}
	close(fd);
	TEST_ASSERT(nr_swapped(unbound) >= NR_PAGES / 2, "Only %lu of %lu pages reclaimed",
		    nr_swapped(unbound), NR_PAGES);
}

static void *add_slot(struct kvm_vm *vm, uint64_t nr, int fd)
{
	uint64_t gpa = PRIVATE_GPA + nr * SIZE;
	void *hva = map_shared_half(SIZE);

	vm_add_private(vm, PRIVATE_SLOT + nr, gpa, SIZE, hva, fd, 0);
	virt_map(vm, gpa, gpa, NR_PAGES);
	return hva;
}

/* What a page holds, unless it is 0, and what is written to it depends on the page. */
static void walk(struct kvm_vcpu *vcpu, struct agent *agent, uint64_t slot,
		 uint64_t expect, uint64_t write)
{
	uint64_t i;

	agent_order(agent, PRIVATE_GPA + slot * SIZE, NR_PAGES, 0, 0);
	for (i = 0; i < NR_PAGES; i++) {
		agent->page[i].expect = expect ? value_of(i) + expect : 0;
		agent->page[i].write = value_of(i) + write;
	}
	agent_run(vcpu, agent);
}

/* A process with the mappings of this one dumps all of them. */
static void search_core_dump(uint64_t found[NR_TAGS])
{
	const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	static const char pattern[] = "/proc/sys/kernel/core_pattern";
	char saved[128], path[64];
	int status;
	pid_t pid;

	read_line(pattern, saved, sizeof(saved));
	write_line(pattern, "/dev/shm/private_memfd.%p");
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed: %s", strerror(errno));
	if (!pid) {
		setrlimit(RLIMIT_CORE, &unlimited);
		write_line("/proc/self/coredump_filter", "0x1ff");
		signal(SIGABRT, SIG_DFL);
		abort();
	}
	TEST_ASSERT(waitpid(pid, &status, 0) == pid, "waitpid() failed: %s", strerror(errno));
	write_line(pattern, saved);
	TEST_ASSERT(WIFSIGNALED(status) && WCOREDUMP(status), "No core dump: %#x", status);
	snprintf(path, sizeof(path), "/dev/shm/private_memfd.%d", pid);
	search(path, 0, found);
	unlink(path);
}

/* The guest has written by these numbers. */
static void assert_not_found(const uint64_t found[NR_TAGS], int tag, const char *where)
{
	TEST_ASSERT(!found[tag], "%lu pages of the guest are %s", found[tag], where);
}

int main(int argc, char *argv[])
{
	int swapped, fresh, unbound, tag;
	uint64_t found[NR_TAGS];
	struct kvm_vcpu *vcpu;
	struct agent *agent;
	struct kvm_vm *vm;
	void *hva;

	require_private_mem();
	ksft_print_header();
	ksft_set_plan(3);

	swapped = swapped_out_memfd();
	search_swap(found);
	TEST_ASSERT(found[SWAPPED] >= NR_PAGES / 2,
		    "Only %lu pages are found on the swap device", found[SWAPPED]);
	seal(swapped);
	TEST_ASSERT(nr_swapped(swapped) >= NR_PAGES / 4, "Sealing has brought the pages back");
	vm = vm_create_private(1, agent_code, &vcpu);
	agent = agent_create(vcpu);
	add_slot(vm, 0, swapped);

	/* A swap entry is as private as a page. */
	TEST_ASSERT_EQ(memfd_nr_private(swapped), NR_PAGES);
	walk(vcpu, agent, 0, SWAPPED, 1);
	TEST_ASSERT_EQ(nr_swapped(swapped), 0);
	TEST_ASSERT_EQ(get_vm_stat(vm, "private_pages"), NR_PAGES);
	ksft_test_result_pass("what was in swap comes back to the guest\n");

	fresh = private_memfd(SIZE);
	memfd_to_private(fresh, 0, SIZE);
	hva = add_slot(vm, 1, fresh);
	walk(vcpu, agent, 1, 0, 2);
	unbound = filled_memfd(UNBOUND);
	seal(unbound);
	reclaim_from(unbound);
	search_swap(found);
	TEST_ASSERT(found[UNBOUND] >= NR_PAGES / 2,
		    "Only %lu pages are found on the swap device", found[UNBOUND]);
	for (tag = 1; tag <= 2; tag++)
		assert_not_found(found, tag, "on the swap device");
	TEST_ASSERT_EQ(nr_swapped(swapped), 0);
	TEST_ASSERT_EQ(nr_swapped(fresh), 0);
	TEST_ASSERT_EQ(get_vm_stat(vm, "private_pages"), 2 * NR_PAGES);
	walk(vcpu, agent, 0, 1, 3);
	walk(vcpu, agent, 1, 2, 3);
	ksft_test_result_pass("private pages of a bound file stay out of swap\n");

	fill(hva, SHARED);
	search_core_dump(found);
	TEST_ASSERT(found[SHARED] == NR_PAGES,
		    "Only %lu pages of the shared half are in the core dump", found[SHARED]);
	for (tag = 1; tag <= 3; tag++)
		assert_not_found(found, tag, "in the core dump");
	walk(vcpu, agent, 1, 3, 4);
	ksft_test_result_pass("private pages are not in a core dump of the VMM\n");

	kvm_vm_free(vm);
	close(swapped);
	close(fresh);
	close(unbound);
	ksft_finished();
}
