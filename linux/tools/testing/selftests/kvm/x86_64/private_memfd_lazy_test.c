// SPDX-License-Identifier: GPL-2.0
/*
 * Private-only slots: KVM_MEM_PRIVATE with nothing behind the shared half.  A
 * page that isn't there makes KVM_RUN return, the VMM allocates and goes on.
 * Also KVM_PRE_FAULT_MEMORY, slots that come late, and memory that fails.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "private_memfd.h"

/* A huge page, if there are any. */
#define NR_PAGES	nr_units(backing_is_huge() ? PAGES_PER_2M : 64, 64, 4)
#define SIZE		(NR_PAGES * UNIT)

FIXTURE(lazy) {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct agent *agent;
	void *hva;
	int fd;
};

#define lazy_data FIXTURE_DATA(lazy)

static void lazy_create(lazy_data *self, void *guest_code)
{
	self->vm = vm_create_private(1, guest_code, &self->vcpu);
	self->fd = private_memfd(SIZE);
	self->hva = map_no_shared_half(SIZE);
	vm_add_private(self->vm, PRIVATE_SLOT, PRIVATE_GPA, SIZE, self->hva, self->fd, 0);
	virt_map_private(self->vm, PRIVATE_GPA, SIZE);
}

static void lazy_free(lazy_data *self)
{
	kvm_vm_free(self->vm);
	close(self->fd);
}

FIXTURE_SETUP(lazy)
{
	lazy_create(self, agent_code);
	self->agent = agent_create(self->vcpu);
}

FIXTURE_TEARDOWN(lazy)
{
	lazy_free(self);
}

static uint64_t page_gpa(uint64_t i)
{
	return PRIVATE_GPA + i * UNIT;
}

static void order(lazy_data *self, uint64_t first, uint64_t nr, uint64_t expect, uint64_t write)
{
	agent_order(self->agent, page_gpa(first), nr, expect, write);
}

/* The guest goes on until it meets a hole. */
static void run_to_gpa(lazy_data *self, uint64_t gpa)
{
	assert_memory_fault(self->vcpu, _vcpu_run(self->vcpu), EFAULT,
			    KVM_MEMORY_EXIT_FLAG_PRIVATE, gpa);
}

static void run_to_hole(lazy_data *self, uint64_t page)
{
	run_to_gpa(self, page_gpa(page));
}

static void walk(lazy_data *self, uint64_t first, uint64_t nr, uint64_t expect, uint64_t write)
{
	order(self, first, nr, expect, write);
	agent_run(self->vcpu, self->agent);
}

static void to_private(lazy_data *self, uint64_t first, uint64_t nr)
{
	memfd_to_private(self->fd, first * UNIT, nr * UNIT);
}

static void to_shared(lazy_data *self, uint64_t first, uint64_t nr)
{
	memfd_to_shared(self->fd, first * UNIT, nr * UNIT);
}

/* Loads, stores; over and over; nobody but the VMM allocates. */
TEST_F_TIMEOUT(lazy, holes, TIMEOUT)
{
	const uint64_t last = NR_PAGES - 1, mid = nr_units(5, 5, 1);
	int i;

	/* A load, then a store to what is there by then. */
	order(self, 0, 1, 0, 0x9);
	for (i = 0; i < 3; i++) {
		run_to_hole(self, 0);
		TEST_ASSERT_EQ(memfd_nr_private(self->fd), 0);
		TEST_ASSERT_EQ(get_vm_stat(self->vm, "private_pages"), 0);
	}
	to_private(self, 0, 1);
	agent_run(self->vcpu, self->agent);

	/* A store. */
	order(self, last, 1, AGENT_NOTHING, 0x10);
	run_to_hole(self, last);
	run_to_hole(self, last);
	TEST_ASSERT_EQ(memfd_nr_private(self->fd), 1);
	to_private(self, last, 1);
	agent_run(self->vcpu, self->agent);
	walk(self, last, 1, 0x10, AGENT_NOTHING);

	/* Page after page. */
	order(self, 0, NR_PAGES, AGENT_NOTHING, 0x11);
	for (i = 1; i < last; i++) {
		run_to_hole(self, i);
		TEST_ASSERT_EQ(memfd_nr_private(self->fd), i + 1);
		to_private(self, i, 1);
	}
	agent_run(self->vcpu, self->agent);
	walk(self, 0, NR_PAGES, 0x11, 0x12);

	/* Given back, it is a hole as before, and empty when it is back. */
	to_shared(self, mid, 2);
	order(self, mid - 1, 4, AGENT_NOTHING, 0x13);
	run_to_hole(self, mid);
	to_private(self, mid, 1);
	run_to_hole(self, mid + 1);
	to_private(self, mid, 2);
	agent_run(self->vcpu, self->agent);
	to_shared(self, mid + 1, 1);
	to_private(self, mid + 1, 1);
	walk(self, mid + 1, 1, 0, AGENT_NOTHING);
	walk(self, mid - 1, 2, 0x13, AGENT_NOTHING);
	walk(self, mid + 3, NR_PAGES - mid - 3, 0x12, AGENT_NOTHING);
}

/* An access to two pages needs both of them. */
static void straddle_code(uint64_t unit)
{
	uint64_t *p = (void *)(PRIVATE_GPA + unit - 4);
	uint64_t value = READ_ONCE(*p);

	GUEST_ASSERT_EQ(value, 0ul);
	WRITE_ONCE(*p, 0x1122334455667788);
	GUEST_ASSERT_EQ(READ_ONCE(*(uint32_t *)(PRIVATE_GPA + unit)), 0x11223344u);
	GUEST_DONE();
}

TEST_F(lazy, straddle)
{
	const uint64_t end = page_gpa(1) - PAGE_SIZE;

	lazy_free(self);
	lazy_create(self, straddle_code);
	vcpu_args_set(self->vcpu, 1, UNIT);
	run_to_gpa(self, end);
	to_private(self, 0, 1);
	run_to_hole(self, 1);
	to_shared(self, 0, 1);
	to_private(self, 1, 1);
	run_to_gpa(self, end);
	to_private(self, 0, 1);
	vcpu_run(self->vcpu);
	assert_on_unhandled_exception(self->vcpu);
	TEST_ASSERT_EQ(get_ucall(self->vcpu, NULL), UCALL_DONE);
}

/* The same if the shared half is mapped, but not for this kind of access. */
TEST_F(lazy, read_only_shared_half)
{
	void *hva = self->hva;

	TEST_ASSERT(!mprotect(hva, SIZE, PROT_READ), "mprotect() failed: %s", strerror(errno));
	walk(self, 0, NR_PAGES, 0, AGENT_NOTHING);
	order(self, 0, 2, 0, 0x9);
	run_to_hole(self, 0);
	to_private(self, 0, 1);
	run_to_hole(self, 1);
	to_private(self, 1, 1);
	agent_run(self->vcpu, self->agent);
	walk(self, 0, 2, 0x9, AGENT_NOTHING);
	TEST_ASSERT_EQ(*(uint64_t *)hva, 0);

	/* And if it comes to be mapped: shared memory. */
	TEST_ASSERT(!mprotect(hva, SIZE, PROT_READ | PROT_WRITE), "mprotect() failed: %s",
		    strerror(errno));
	walk(self, 2, 2, 0, 0x10);
	TEST_ASSERT_EQ(*(uint64_t *)(hva + 2 * UNIT), 0x10);
	TEST_ASSERT_EQ(memfd_nr_private(self->fd), 2);
}

/* Several vCPUs at once; pages of one allocation are met by more than one. */
#define LOOP_VCPUS	4
#define LOOP_PAGES	nr_units(2048, 64, 4)
#define LOOP_SIZE	(LOOP_PAGES * UNIT)

struct loop {
	struct kvm_vcpu *vcpu;
	struct agent *agent;
	int fd;
	unsigned int id;
	unsigned long exits;
	unsigned long walks;
	bool *stop;
	unsigned int seed;
};

static void loop_walk(struct loop *loop)
{
	const uint64_t chunks[] = { 1, 1, 4, nr_units(16, 16, 1), nr_units(512, 64, 1) };

	for (;;) {
		uint64_t gpa, nr, page;
		int r = _vcpu_run(loop->vcpu);

		if (!r) {
			TEST_ASSERT_KVM_EXIT_REASON(loop->vcpu, KVM_EXIT_IO);
			assert_on_unhandled_exception(loop->vcpu);
			agent_report(loop->agent);
			loop->walks++;
			return;
		}

		gpa = loop->vcpu->run->memory_fault.gpa;
		assert_memory_fault(loop->vcpu, r, EFAULT, KVM_MEMORY_EXIT_FLAG_PRIVATE,
				    gpa & PAGE_MASK);
		nr = chunks[rand_r(&loop->seed) % ARRAY_SIZE(chunks)];
		page = (gpa - PRIVATE_GPA) / UNIT / nr * nr;
		memfd_to_private(loop->fd, page * UNIT, nr * UNIT);
		loop->exits++;
	}
}

static uint64_t loop_value(uint64_t page)
{
	return 0x1009 + page * 0x10001;
}

static void *loop_thread(void *arg)
{
	const uint64_t nr = LOOP_PAGES / LOOP_VCPUS;
	struct loop *loop = arg;
	uint64_t first = loop->id * nr, i;

	agent_order(loop->agent, page_gpa(first), nr, 0, AGENT_NOTHING);
	for (i = 0; i < nr; i++)
		loop->agent->page[i].write = loop_value(first + i);
	loop_walk(loop);

	for (i = 0; i < nr; i++) {
		loop->agent->page[i].expect = loop_value(first + i);
		loop->agent->page[i].write = AGENT_NOTHING;
	}
	loop_walk(loop);

	/* Pages go away all the time from here on. */
	agent_order(loop->agent, page_gpa(first), nr, AGENT_NOTHING, 0x9);
	while (!READ_ONCE(*loop->stop))
		loop_walk(loop);
	return NULL;
}

TEST_F_TIMEOUT(lazy, several_vcpus, TIMEOUT)
{
	struct kvm_vcpu *vcpus[LOOP_VCPUS];
	static struct loop loops[LOOP_VCPUS];
	struct kvm_vm *vm = vm_create_private(LOOP_VCPUS, agent_code, vcpus);
	unsigned long i, exits = 0, walks = 0;
	pthread_t threads[LOOP_VCPUS];
	int fd = private_memfd(LOOP_SIZE);
	bool stop = false;

	vm_add_private(vm, PRIVATE_SLOT, PRIVATE_GPA, LOOP_SIZE, map_no_shared_half(LOOP_SIZE),
		       fd, 0);
	virt_map_private(vm, PRIVATE_GPA, LOOP_SIZE);

	for (i = 0; i < LOOP_VCPUS; i++) {
		loops[i] = (struct loop) {
			.vcpu = vcpus[i],
			.agent = agent_create(vcpus[i]),
			.fd = fd,
			.id = i,
			.stop = &stop,
			.seed = i,
		};
		pthread_create(&threads[i], NULL, loop_thread, &loops[i]);
	}

	/* Not before the second walk is done is a missing page no mistake. */
	for (i = 0; i < LOOP_VCPUS; i++)
		while (READ_ONCE(loops[i].walks) < 2)
			usleep(1000);
	for (i = 0; i < LOOP_VCPUS; i++)
		exits += loops[i].exits;
	/* The largest chunk each time. */
	TEST_ASSERT(exits >= LOOP_PAGES / nr_units(512, 64, 4), "Only %lu exits for holes", exits);
	TEST_ASSERT_EQ(memfd_nr_private(fd), LOOP_PAGES);

	for (i = 0; i < scaled(nr_units(3000, 1000, 6)); i++) {
		memfd_to_shared(fd, random() % LOOP_PAGES * UNIT, UNIT);
		/* If most of them are holes by now, have them filled. */
		if (i % nr_units(256, 32, 2) == 0)
			for (walks = loops[0].walks; READ_ONCE(loops[0].walks) == walks;)
				usleep(100);
	}
	walks = 0;
	WRITE_ONCE(stop, true);
	for (i = 0, exits = -exits; i < LOOP_VCPUS; i++) {
		pthread_join(threads[i], NULL);
		exits += loops[i].exits;
		walks += loops[i].walks;
	}
	pr_info("# %lu more exits in %lu walks\n", exits, walks);
	TEST_ASSERT(exits, "No exits for pages that were punched");

	/* What is there now stays there. */
	memfd_to_private(fd, 0, LOOP_SIZE);
	agent_order(loops[0].agent, PRIVATE_GPA, LOOP_PAGES, AGENT_NOTHING, 0x10);
	agent_run(vcpus[0], loops[0].agent);
	agent_order(loops[1].agent, PRIVATE_GPA, LOOP_PAGES, 0x10, AGENT_NOTHING);
	agent_run(vcpus[1], loops[1].agent);
	kvm_vm_free(vm);
	close(fd);
}

/* All of the range, or up to the error that is returned; *left is what is not done. */
static int prefault(struct kvm_vcpu *vcpu, uint64_t gpa, uint64_t nr, uint64_t *left)
{
	struct kvm_pre_fault_memory range = {
		.gpa = gpa,
		.size = nr * UNIT,
	};
	int r;

	do {
		r = __vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
	} while (r ? errno == EINTR || errno == EAGAIN : range.size);

	*left = range.size / UNIT;
	return r ? errno : 0;
}

static void assert_prefault(struct kvm_vcpu *vcpu, uint64_t first, uint64_t nr,
			    int error, uint64_t left)
{
	uint64_t l;
	int r = prefault(vcpu, page_gpa(first), nr, &l);

	TEST_ASSERT(r == error && l == left,
		    "Prefault of %lu pages from %lu: wanted %s, %lu left, got %s, %lu left",
		    nr, first, strerror(error), left, strerror(r), l);
}

TEST_F_TIMEOUT(lazy, prefault, TIMEOUT)
{
	/* What is private: some pages, with others before and after them. */
	const uint64_t first = nr_units(8, 8, 1), nr = nr_units(24, 24, 2);
	const uint64_t end = first + nr, hole = first + nr / 3;
	uint64_t taken, faults;

	if (!kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY))
		SKIP(return, "There is no KVM_PRE_FAULT_MEMORY");

	/* Nothing there: nothing comes. */
	assert_prefault(self->vcpu, 0, 1, EFAULT, 1);
	assert_prefault(self->vcpu, 0, NR_PAGES, EFAULT, NR_PAGES);
	TEST_ASSERT_EQ(memfd_nr_private(self->fd), 0);
	TEST_ASSERT_EQ(nr_private_mapped(self->vm), 0);

	/* What is there is mapped, as far as it goes. */
	to_private(self, first, nr);
	assert_prefault(self->vcpu, first - 1, 2, EFAULT, 2);
	assert_prefault(self->vcpu, first, 1, 0, 0);
	TEST_ASSERT_EQ(nr_private_mapped(self->vm), 1);
	assert_prefault(self->vcpu, first, nr + 1, EFAULT, 1);
	TEST_ASSERT_EQ(nr_private_mapped(self->vm), nr);
	assert_prefault(self->vcpu, first, nr, 0, 0);
	TEST_ASSERT_EQ(memfd_nr_private(self->fd), nr);

	/* No fault is left for the guest. */
	walk(self, first, nr, 0, 0x9);
	walk(self, first, nr, 0x9, AGENT_NOTHING);
	faults = get_vm_stat(self->vm, "private_faults");
	to_shared(self, first, nr);
	to_private(self, first, nr);
	assert_prefault(self->vcpu, first, nr, 0, 0);
	TEST_ASSERT(get_vm_stat(self->vm, "private_faults") > faults, "Nothing was prefaulted");
	faults = get_vm_stat(self->vm, "private_faults");
	taken = get_vcpu_stat(self->vcpu, "pf_taken");
	walk(self, first, nr, 0, 0x9);
	TEST_ASSERT_EQ(get_vm_stat(self->vm, "private_faults"), faults);
	TEST_ASSERT_EQ(get_vcpu_stat(self->vcpu, "pf_taken"), taken);

	/* Punched, it is a hole again. */
	to_shared(self, hole, 1);
	assert_prefault(self->vcpu, first, nr, EFAULT, end - hole);
	TEST_ASSERT_EQ(memfd_nr_private(self->fd), nr - 1);

	/* With a shared half, that is what is mapped. */
	TEST_ASSERT(!mprotect(self->hva, SIZE, PROT_READ | PROT_WRITE), "mprotect() failed: %s",
		    strerror(errno));
	assert_prefault(self->vcpu, 0, NR_PAGES, 0, 0);
	TEST_ASSERT_EQ(memfd_nr_private(self->fd), nr - 1);
	TEST_ASSERT_EQ(nr_private_mapped(self->vm), nr - 1);
	taken = get_vcpu_stat(self->vcpu, "pf_taken");
	if (hole > first)
		walk(self, first, hole - first, 0x9, AGENT_NOTHING);
	walk(self, 0, first, 0, AGENT_NOTHING);
	TEST_ASSERT_EQ(get_vcpu_stat(self->vcpu, "pf_taken"), taken);

	/* Off the slot. */
	assert_prefault(self->vcpu, NR_PAGES, 1, ENOENT, 1);
}

struct prefaulter {
	struct kvm_vcpu *vcpu;
	bool stop;
	unsigned long done, failed;
	int strange;
};

static void *prefault_thread(void *arg)
{
	struct prefaulter *p = arg;

	while (!READ_ONCE(p->stop)) {
		uint64_t left;
		int error = prefault(p->vcpu, PRIVATE_GPA, NR_PAGES, &left);

		if (!error)
			p->done++;
		else if (error == EFAULT || error == ENOENT)
			p->failed++;
		else
			p->strange = error;
	}
	return NULL;
}

/* However busy the host is. */
static void wait_for_more(unsigned long *count)
{
	unsigned long before = READ_ONCE(*count);

	while (READ_ONCE(*count) == before)
		usleep(50);
}

/* Neither conversions nor the end of the slot have to wait for it. */
TEST_F_TIMEOUT(lazy, prefault_races, TIMEOUT)
{
	struct prefaulter p = { .vcpu = self->vcpu };
	pthread_t thread;
	unsigned long i;

	if (!kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY))
		SKIP(return, "There is no KVM_PRE_FAULT_MEMORY");

	pthread_create(&thread, NULL, prefault_thread, &p);
	for (i = 0; i < scaled(nr_units(1500, 100, 10)); i++) {
		uint64_t first = random() % NR_PAGES;
		uint64_t nr = 1 + random() % (NR_PAGES - first);

		to_private(self, first, nr);
		if (i % 8 == 0) {
			to_private(self, 0, NR_PAGES);
			wait_for_more(&p.done);
		}
		to_shared(self, first, nr);
		if (i % 8 == 4)
			wait_for_more(&p.failed);
	}
	to_private(self, 0, NR_PAGES);

	for (i = 0; i < scaled(nr_units(300, 300, 100)); i++) {
		vm_delete_private(self->vm, PRIVATE_SLOT);
		vm_add_private(self->vm, PRIVATE_SLOT, PRIVATE_GPA, SIZE, self->hva, self->fd, 0);
		if (i % 32 == 0)
			wait_for_more(&p.done);
	}
	WRITE_ONCE(p.stop, true);
	pthread_join(thread, NULL);
	TEST_ASSERT(!p.strange, "A prefault failed: %s", strerror(p.strange));
	assert_prefault(self->vcpu, 0, NR_PAGES, 0, 0);
	TEST_ASSERT_EQ(nr_private_mapped(self->vm), NR_PAGES);
	walk(self, 0, NR_PAGES, 0, 0x9);
	walk(self, 0, NR_PAGES, 0x9, AGENT_NOTHING);
}

static void mmio_code(uint64_t gva)
{
	for (;;) {
		GUEST_SYNC1(READ_ONCE(*(uint64_t *)gva));
		WRITE_ONCE(*(uint64_t *)gva, 0x9);
		GUEST_SYNC1(READ_ONCE(*(uint64_t *)gva));
	}
}

static void run_to_sync(struct kvm_vcpu *vcpu, uint64_t value)
{
	struct ucall uc;

	vcpu_run(vcpu);
	TEST_ASSERT(get_ucall(vcpu, &uc) == UCALL_SYNC, "Unexpected exit %s",
		    exit_reason_str(vcpu->run->exit_reason));
	TEST_ASSERT(uc.args[0] == value, "The guest found %#lx for %#lx", uc.args[0], value);
}

static void run_to_mmio(struct kvm_vcpu *vcpu, uint64_t gpa, bool write)
{
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MMIO);
	TEST_ASSERT(vcpu->run->mmio.phys_addr == gpa && vcpu->run->mmio.is_write == write,
		    "MMIO at %#llx, write %d", vcpu->run->mmio.phys_addr,
		    vcpu->run->mmio.is_write);
}

/* What KVM remembers of a gpa from before there was a slot is no use after that. */
TEST_F_TIMEOUT(lazy, mmio_before_slot, TIMEOUT)
{
	const uint64_t gpa = 2 * PRIVATE_GPA;
	uint64_t value = 0x1234567812345678;
	uint64_t *shared = map_shared_half(SIZE);
	int fd = private_memfd(SIZE);
	struct kvm_vcpu *vcpu;
	unsigned int i;

	lazy_free(self);
	lazy_create(self, mmio_code);
	vcpu = self->vcpu;
	virt_map(self->vm, gpa, gpa, 1);
	vcpu_args_set(vcpu, 1, gpa);

	for (i = 0; i < 16; i++) {
		bool only = i & 1, full = i & 2, prefaulted = i & 4;
		uint64_t left;

		run_to_mmio(vcpu, gpa, false);
		memcpy(vcpu->run->mmio.data, &value, sizeof(value));
		run_to_sync(vcpu, value);
		run_to_mmio(vcpu, gpa, true);

		/* The guest has seen MMIO, and sees memory from now on. */
		if (full)
			memfd_to_private(fd, 0, nr_units(NR_PAGES, NR_PAGES, 1) * UNIT);
		vm_add_private(self->vm, PRIVATE_SLOT + 1, gpa, SIZE, only ? self->hva : shared,
			       fd, 0);
		shared[0] = 0x5ed;
		if (prefaulted && kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY))
			prefault(vcpu, gpa, NR_PAGES, &left);
		if (!full && only) {
			assert_memory_fault(vcpu, _vcpu_run(vcpu), EFAULT,
					    KVM_MEMORY_EXIT_FLAG_PRIVATE, gpa);
			assert_memory_fault(vcpu, _vcpu_run(vcpu), EFAULT,
					    KVM_MEMORY_EXIT_FLAG_PRIVATE, gpa);
			memfd_to_private(fd, 0, UNIT);
			full = true;
		}
		run_to_sync(vcpu, full ? 0 : 0x5ed);
		run_to_sync(vcpu, full ? 0 : 0x5ed);
		run_to_sync(vcpu, 0x9);
		TEST_ASSERT_EQ(shared[0], full ? 0x5ed : 0x9);
		if (full)
			memfd_to_shared(fd, 0, SIZE);
		vm_delete_private(self->vm, PRIVATE_SLOT + 1);
	}
	close(fd);
}

#define CORRUPT_PFN	"/sys/kernel/debug/hwpoison/corrupt-pfn"

/* The pfn of a page that is allocated, but not mapped: mapping it is traced. */
static uint64_t find_pfn(lazy_data *self, uint64_t page)
{
	uint64_t pfn;

	pfns_trace();
	walk(self, page, 1, AGENT_NOTHING, 0xbad);
	pfns_read(page_gpa(page), 1, UNIT, &pfn);
	TEST_ASSERT(pfn, "Nothing traced of page %lu", page);
	return pfn;
}

static void outs_code(uint64_t gva)
{
	uint64_t nr = 8;

	asm volatile("rep outsb" : "+S" (gva), "+c" (nr) : "d" (0x40) : "memory");
}

/* Memory that fails under the guest: it is told, and nothing else is lost. */
TEST_F_TIMEOUT(lazy, poison, TIMEOUT)
{
	struct kvm_regs regs;
	const uint64_t bad = nr_units(17, 17, 1);
	char text[32];
	uint64_t pfn, left, i;
	int r;

	if (access(CORRUPT_PFN, W_OK))
		SKIP(return, "There is no " CORRUPT_PFN);
	if (access(TRACE_EVENT, W_OK))
		SKIP(return, "There is no " TRACE_EVENT);

	to_private(self, 0, NR_PAGES);
	pfn = find_pfn(self, bad);
	walk(self, 0, bad, 0, 0x9);
	walk(self, bad + 1, NR_PAGES - bad - 1, 0, 0x9);
	walk(self, bad, 1, 0xbad, AGENT_NOTHING);

	snprintf(text, sizeof(text), "%#lx", pfn);
	write_text(CORRUPT_PFN, text);

	/* Told at each access, by the prefault, too. */
	order(self, bad - 1, 3, AGENT_NOTHING, 0x10);
	for (i = 0; i < 3; i++) {
		r = _vcpu_run(self->vcpu);
		assert_memory_fault(self->vcpu, r, EHWPOISON, KVM_MEMORY_EXIT_FLAG_PRIVATE,
				    page_gpa(bad));
	}
	if (kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY)) {
		r = prefault(self->vcpu, page_gpa(bad - 1), 3, &left);
		TEST_ASSERT(r == EHWPOISON && left == 2, "Prefault: %s, %lu left",
			    strerror(r), left);
	}

	/* Also if it is KVM that reads it, for the guest. */
	vcpu_regs_get(self->vcpu, &regs);
	vcpu_arch_set_entry_point(self->vcpu, outs_code);
	vcpu_args_set(self->vcpu, 1, page_gpa(bad));
	for (i = 0; i < 3; i++) {
		r = _vcpu_run(self->vcpu);
		assert_memory_fault(self->vcpu, r, EHWPOISON, KVM_MEMORY_EXIT_FLAG_PRIVATE,
				    page_gpa(bad));
	}
	vcpu_regs_set(self->vcpu, &regs);

	/* It stays private, it stays bad, and fallocate() doesn't mend it. */
	TEST_ASSERT(memfd_is_private(self->fd, bad * UNIT), "Poison became shared");
	TEST_ASSERT_EQ(memfd_nr_private(self->fd), NR_PAGES);
	to_private(self, bad - 1, 3);
	r = _vcpu_run(self->vcpu);
	assert_memory_fault(self->vcpu, r, EHWPOISON, KVM_MEMORY_EXIT_FLAG_PRIVATE, page_gpa(bad));

	/* Nor does a new slot. */
	vm_delete_private(self->vm, PRIVATE_SLOT);
	vm_add_private(self->vm, PRIVATE_SLOT, PRIVATE_GPA, SIZE, self->hva, self->fd, 0);
	r = _vcpu_run(self->vcpu);
	assert_memory_fault(self->vcpu, r, EHWPOISON, KVM_MEMORY_EXIT_FLAG_PRIVATE, page_gpa(bad));

	/* Another page does. */
	to_shared(self, bad, 1);
	run_to_hole(self, bad);
	to_private(self, bad, 1);
	agent_run(self->vcpu, self->agent);
	walk(self, 0, bad - 1, 0x9, AGENT_NOTHING);
	walk(self, bad - 1, 3, 0x10, AGENT_NOTHING);
	walk(self, bad + 2, NR_PAGES - bad - 2, 0x9, AGENT_NOTHING);
	TEST_ASSERT_EQ(memfd_nr_private(self->fd), NR_PAGES);
	to_shared(self, 0, NR_PAGES);
	TEST_ASSERT_EQ(memfd_nr_private(self->fd), 0);
}

int main(int argc, char *argv[])
{
	require_private_mem();
	return test_harness_run(argc, argv);
}
