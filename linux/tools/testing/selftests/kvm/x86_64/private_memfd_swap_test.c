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

static uint64_t value_of(uint64_t page)
{
	return 0x5ea1ed0000 + page;
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
			probe_write(p + i * PAGE_SIZE, j, value_of(i));
	}
	for (tries = 0; tries < 20 && nr_swapped(fd) < NR_PAGES / 2; tries++)
		madvise(p, SIZE, MADV_PAGEOUT);
	munmap(p, SIZE);
	TEST_ASSERT(nr_swapped(fd) >= NR_PAGES / 2, "%lu of %lu pages are in swap",
		    nr_swapped(fd), NR_PAGES);
	return fd;
}

/* As the guest does with its pages, but in a file that is nobody's. */
static void read_back(int fd)
{
	uint64_t i;
	void *p;

	p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
	TEST_ASSERT(p != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	for (i = 0; i < NR_PAGES; i++)
		TEST_ASSERT_EQ(probe_read(p + i * PAGE_SIZE, 0), value_of(i));
	munmap(p, SIZE);
	TEST_ASSERT_EQ(nr_swapped(fd), 0);
}

/* Until it has got at the pages of a file that has come back later than the guest's. */
static void reclaim_from(int control)
{
	int fd = open("/sys/fs/cgroup/memory.reclaim", O_WRONLY), tries;

	TEST_ASSERT(fd >= 0, "No memory.reclaim: %s", strerror(errno));
	for (tries = 0; tries < 100 && nr_swapped(control) < NR_PAGES / 2; tries++) {
		/* How much of it was found is of no interest. */
		if (write(fd, "8M", 2) < 0)
			TEST_ASSERT(errno == EAGAIN, "Reclaim failed: %s", strerror(errno));
	}
	close(fd);
	TEST_ASSERT(nr_swapped(control) >= NR_PAGES / 2, "Only %lu of %lu pages reclaimed",
		    nr_swapped(control), NR_PAGES);
}

static void walk(struct kvm_vcpu *vcpu, struct agent *agent, uint64_t add_expect,
		 uint64_t add_write)
{
	uint64_t i;

	agent_order(agent, PRIVATE_GPA, NR_PAGES, 0, 0);
	for (i = 0; i < NR_PAGES; i++) {
		agent->page[i].expect = value_of(i) + add_expect;
		agent->page[i].write = value_of(i) + add_write;
	}
	agent_run(vcpu, agent);
}

int main(int argc, char *argv[])
{
	struct kvm_vcpu *vcpu;
	struct agent *agent;
	struct kvm_vm *vm;
	int fd, control;

	require_private_mem();
	ksft_print_header();
	ksft_set_plan(2);

	fd = swapped_out_memfd();
	TEST_ASSERT(!fcntl(fd, F_ADD_SEALS, F_SEAL_INACCESSIBLE), "F_ADD_SEALS failed: %s",
		    strerror(errno));
	TEST_ASSERT(nr_swapped(fd) >= NR_PAGES / 4, "Sealing has brought the pages back");
	control = swapped_out_memfd();
	vm = vm_create_private(1, agent_code, &vcpu);
	agent = agent_create(vcpu);
	vm_add_private(vm, PRIVATE_SLOT, PRIVATE_GPA, SIZE, map_shared_half(SIZE), fd, 0);
	virt_map(vm, PRIVATE_GPA, PRIVATE_GPA, NR_PAGES);

	/* A swap entry is as private as a page. */
	TEST_ASSERT_EQ(memfd_nr_private(fd), NR_PAGES);
	walk(vcpu, agent, 0, SZ_4G);
	TEST_ASSERT_EQ(nr_swapped(fd), 0);
	TEST_ASSERT_EQ(get_vm_stat(vm, "private_pages"), NR_PAGES);
	ksft_test_result_pass("what was in swap comes back to the guest\n");

	read_back(control);
	reclaim_from(control);
	TEST_ASSERT_EQ(nr_swapped(fd), 0);
	TEST_ASSERT_EQ(get_vm_stat(vm, "private_pages"), NR_PAGES);
	walk(vcpu, agent, SZ_4G, 2ull * SZ_4G);
	ksft_test_result_pass("private pages of a bound file stay out of swap\n");

	kvm_vm_free(vm);
	close(fd);
	close(control);
	ksft_finished();
}
