// SPDX-License-Identifier: GPL-2.0
/*
 * Swap and KVM_MEM_PRIVATE slots: what was swapped out before the first bind
 * comes back when the guest wants it, and nothing is swapped out after that.
 */
#include <stdio.h>
#include <string.h>

#include "private_memfd.h"

#define NR_PAGES	((uint64_t)2048)
#define SIZE		(NR_PAGES * PAGE_SIZE)
#define SIZE_KB		(SIZE / 1024)

/* Reclaim from everybody. */
#define RECLAIM		"/sys/fs/cgroup/memory.reclaim"

static uint64_t value_of(uint64_t page)
{
	return 0x5ea1ed0000 + page;
}

static uint64_t swap_used_kb(void)
{
	uint64_t total = 0, free = 0;
	char line[128];
	FILE *f;

	f = fopen("/proc/meminfo", "r");
	TEST_ASSERT(f, "Can't read /proc/meminfo: %s", strerror(errno));
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "SwapTotal: %lu", &total) == 1)
			continue;
		if (sscanf(line, "SwapFree: %lu", &free) == 1)
			break;
	}
	fclose(f);
	return total - free;
}

/* It is reclaim's business how much of this it manages, and what it reports. */
static bool reclaim(void)
{
	int fd = open(RECLAIM, O_WRONLY), i;

	if (fd < 0)
		return false;
	for (i = 0; i < 10; i++) {
		if (write(fd, "16M", 3) < 0 && errno != EAGAIN && errno != EINTR)
			break;
	}
	close(fd);
	return i == 10;
}

/* A sealed file with content in each page, most of it in swap. */
static int swapped_out_memfd(void)
{
	int fd = private_memfd_sized(SIZE, MFD_ALLOW_SEALING);
	uint64_t before = swap_used_kb(), i;
	void *p;
	int j;

	p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	TEST_ASSERT(p != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	for (i = 0; i < NR_PAGES; i++) {
		for (j = 0; j < NR_PROBES; j++)
			probe_write(p + i * PAGE_SIZE, j, value_of(i));
	}
	/* What others have swapped in meanwhile doesn't make up for half of it. */
	for (j = 0; j < 20 && swap_used_kb() < before + SIZE_KB / 2; j++)
		madvise(p, SIZE, MADV_PAGEOUT);
	TEST_ASSERT(swap_used_kb() >= before + SIZE_KB / 2, "%lu kB of %lu swapped out",
		    swap_used_kb() - before, SIZE_KB);
	munmap(p, SIZE);

	TEST_ASSERT(!fcntl(fd, F_ADD_SEALS, F_SEAL_INACCESSIBLE), "F_ADD_SEALS failed: %s",
		    strerror(errno));
	TEST_ASSERT(swap_used_kb() >= before + SIZE_KB / 4, "Sealing has swapped it in");
	return fd;
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
	uint64_t before, with_guest;
	struct kvm_vcpu *vcpu;
	struct agent *agent;
	struct kvm_vm *vm;
	int fd;

	require_private_mem();
	ksft_print_header();
	ksft_set_plan(2);

	before = swap_used_kb();
	fd = swapped_out_memfd();
	vm = vm_create_private(1, agent_code, &vcpu);
	agent = agent_create(vcpu);
	vm_add_private(vm, PRIVATE_SLOT, PRIVATE_GPA, SIZE, map_shared_half(SIZE), fd, 0);
	virt_map(vm, PRIVATE_GPA, PRIVATE_GPA, NR_PAGES);

	/* A swap entry is as private as a page. */
	TEST_ASSERT_EQ(memfd_nr_private(fd), NR_PAGES);
	walk(vcpu, agent, 0, SZ_4G);
	TEST_ASSERT_EQ(get_vm_stat(vm, "private_pages"), NR_PAGES);
	ksft_test_result_pass("what was in swap comes back to the guest\n");

	/* Reclaim finds other pages, but none of these. */
	with_guest = swap_used_kb();
	TEST_ASSERT(reclaim(), "No reclaim by " RECLAIM);
	TEST_ASSERT_EQ(get_vm_stat(vm, "private_pages"), NR_PAGES);
	walk(vcpu, agent, SZ_4G, 2ull * SZ_4G);
	TEST_ASSERT(swap_used_kb() < with_guest + SIZE_KB / 4,
		    "%lu kB were swapped out under a guest", swap_used_kb() - with_guest);
	ksft_test_result_pass("private pages of a bound file stay out of swap\n");

	/* Freed with the file: no entry is left in swap. */
	kvm_vm_free(vm);
	close(fd);
	TEST_ASSERT(swap_used_kb() < before + SIZE_KB / 4, "%lu kB of swap are lost",
		    swap_used_kb() - before);
	ksft_finished();
}
