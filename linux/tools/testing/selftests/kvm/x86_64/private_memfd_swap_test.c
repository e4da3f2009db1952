// SPDX-License-Identifier: GPL-2.0
/*
 * Swap and KVM_MEM_PRIVATE slots: what was swapped out before the first bind
 * comes back when the guest wants it, and nothing is swapped out after that.
 */
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#include "private_memfd.h"

#define NR_PAGES	((uint64_t)2048)
#define SIZE		(NR_PAGES * PAGE_SIZE)

/* The same everywhere; the C library's headers may not know it yet. */
#define NR_CACHESTAT	451

/* Of what was written before the guest came. */
#define SWAPPED		0x7f

static uint64_t value_of(uint64_t page)
{
	return 0x5ea1ed000000 + page * 0x100;
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

/* A file with content in each page, most of it in swap. */
static int swapped_out_memfd(void)
{
	int fd = private_memfd_sized(SIZE, MFD_ALLOW_SEALING), tries, j;
	uint64_t i;
	void *p;

	p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	TEST_ASSERT(p != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	for (i = 0; i < NR_PAGES; i++) {
		for (j = 0; j < NR_PROBES; j++)
			probe_write(p + i * PAGE_SIZE, j, value_of(i) + SWAPPED);
	}
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

static void add_slot(struct kvm_vm *vm, uint64_t nr, int fd)
{
	uint64_t gpa = PRIVATE_GPA + nr * SIZE;

	vm_add_private(vm, PRIVATE_SLOT + nr, gpa, SIZE, map_shared_half(SIZE), fd, 0);
	virt_map(vm, gpa, gpa, NR_PAGES);
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

int main(int argc, char *argv[])
{
	int swapped, fresh, unbound;
	struct kvm_vcpu *vcpu;
	struct agent *agent;
	struct kvm_vm *vm;

	require_private_mem();
	ksft_print_header();
	ksft_set_plan(2);

	swapped = swapped_out_memfd();
	TEST_ASSERT(!fcntl(swapped, F_ADD_SEALS, F_SEAL_INACCESSIBLE),
		    "F_ADD_SEALS failed: %s", strerror(errno));
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
	add_slot(vm, 1, fresh);
	walk(vcpu, agent, 1, 0, 2);
	unbound = private_memfd(SIZE);
	memfd_to_private(unbound, 0, SIZE);
	reclaim_from(unbound);
	TEST_ASSERT_EQ(nr_swapped(swapped), 0);
	TEST_ASSERT_EQ(nr_swapped(fresh), 0);
	TEST_ASSERT_EQ(get_vm_stat(vm, "private_pages"), 2 * NR_PAGES);
	walk(vcpu, agent, 0, 1, 3);
	walk(vcpu, agent, 1, 2, 3);
	ksft_test_result_pass("private pages of a bound file stay out of swap\n");

	kvm_vm_free(vm);
	close(swapped);
	close(fresh);
	close(unbound);
	ksft_finished();
}
