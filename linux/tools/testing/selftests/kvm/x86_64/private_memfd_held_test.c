// SPDX-License-Identifier: GPL-2.0
/*
 * Two sides of a race, one of which is held in the middle: a fault that has its
 * page, but has not mapped it yet, a slot that is being bound, or given up.
 * Meanwhile the other side does all that it wants to do, and is done or waits.
 *
 * That takes a module, which stops a task at a tracepoint and has to be built and
 * loaded first: see test_modules/hold.c.
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "private_memfd.h"

#define HOLD		"/sys/module/hold/parameters/"
#define CLOCK		"/sys/devices/system/clocksource/clocksource0/current_clocksource"
#define FAULT		"kvm_memfile_get_pfn"
#define OFFLINE		"/sys/devices/system/memory/hard_offline_page"

/* As many as a huge page has, if there are any. */
#define NR_PAGES	nr_units(backing_is_huge() ? PAGES_PER_2M : 8, 8, 2)
#define SIZE		(NR_PAGES * UNIT)

#define ALIAS		0x5a5a5a5a5a5a5a5aull
#define VALUE		0x9e9e9e9e9e9e9e9eull

/* In microseconds: long enough for who can go on, and no failure if it was not. */
#define SOME_TIME	100000

/* What the guest is to do: load, or store, or have it sent to a port, and load. */
static struct {
	uint64_t gpa;
	uint64_t store;
	uint64_t send;
} order;

#define PORT		0x40

/* By an instruction that KVM emulates, so that it is KVM who reads the page. */
static void send(uint64_t from)
{
	uint64_t nr = sizeof(uint64_t);

	asm volatile("rep outsb" : "+S" (from), "+c" (nr) : "d" (PORT) : "memory");
}

static void guest_code(void)
{
	for (;;) {
		uint64_t *p = (uint64_t *)order.gpa;

		if (order.store)
			WRITE_ONCE(*p, VALUE);
		if (order.send)
			send(order.gpa);
		GUEST_SYNC(READ_ONCE(*p));
	}
}

FIXTURE(held) {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	uint64_t *hva;
	int fd;
	/* Of the vCPU's thread. */
	pthread_t thread;
	int r;
	int error;
	bool returned;
	/* Of the one that deletes the slot. */
	bool deleted;
};

#define held_data FIXTURE_DATA(held)

static uint64_t *shared(held_data *self, uint64_t page)
{
	return (void *)self->hva + page * UNIT;
}

static bool hold_there(void)
{
	return !access(HOLD "at", W_OK);
}

/* What a file of sysfs says. */
static bool word_is(const char *path, const char *word)
{
	char now[32] = "";
	FILE *f = fopen(path, "r");
	bool read;

	TEST_ASSERT(f, "Can't read %s: %s", path, strerror(errno));
	read = fscanf(f, "%31s", now) == 1;
	fclose(f);
	return read && !strcmp(now, word);
}

/*
 * A second or two after it is up the kernel has measured the TSC and switches to
 * it, with all CPUs stopped. Whoever is held then is held for good, and so is who
 * would let go.
 */
static void wait_for_clock(void)
{
	int tries;

	for (tries = 0; tries < 1000 && word_is(CLOCK, "tsc-early"); tries++)
		usleep(10000);
	TEST_ASSERT(!word_is(CLOCK, "tsc-early"), "The kernel is still measuring the TSC");
}

static void held_create(held_data *self)
{
	uint64_t i;

	self->vm = vm_create_private(1, guest_code, &self->vcpu);
	self->fd = private_memfd(SIZE);
	self->hva = map_shared_half(SIZE);
	for (i = 0; i < NR_PAGES; i++)
		*shared(self, i) = ALIAS;
	vm_add_private(self->vm, PRIVATE_SLOT, PRIVATE_GPA, SIZE, self->hva, self->fd, 0);
	virt_map_private(self->vm, PRIVATE_GPA, SIZE);
	memfd_to_private(self->fd, 0, SIZE);
}

FIXTURE_SETUP(held)
{
	memset(self, 0, sizeof(*self));
	if (!hold_there())
		SKIP(return, "There is no module to hold a task with");
	wait_for_clock();
	held_create(self);
}

FIXTURE_TEARDOWN(held)
{
	if (!self->vm)
		return;
	kvm_vm_free(self->vm);
	close(self->fd);
}

/* --- to hold, and to let go --- */

static bool hold_is(const char *state)
{
	return word_is(HOLD "state", state);
}

static void hold_wait(void)
{
	int tries;

	for (tries = 0; tries < 30000 && !hold_is("held"); tries++)
		usleep(1000);
	TEST_ASSERT(hold_is("held"), "Nobody comes there");
}

/* The other side. */
static bool begun;

static void start(pthread_t *thread, void *(*fn)(void *), void *arg)
{
	WRITE_ONCE(begun, false);
	pthread_create(thread, NULL, fn, arg);
}

/* It is about to do what it is for. */
static void begin(void)
{
	WRITE_ONCE(begun, true);
}

/* It goes there, and is held when this returns. */
static void hold(const char *at, pthread_t *thread, void *(*fn)(void *), void *arg)
{
	write_text(HOLD "at", at);
	start(thread, fn, arg);
	hold_wait();
}

/* It has done so, or waits, unless this machine is very slow. */
static void give_time(void)
{
	while (!READ_ONCE(begun))
		usleep(1000);
	usleep(SOME_TIME);
}

/* In time, or what came in between has not come in between. */
static void let_go(void)
{
	TEST_ASSERT(hold_is("held"), "It was not held for long enough");
	write_text(HOLD "at", "\n");
	TEST_ASSERT(hold_is("free"), "It was not held for long enough");
}

static void *vcpu_thread(void *arg)
{
	held_data *self = arg;

	WRITE_ONCE(self->returned, false);
	begin();
	self->r = _vcpu_run(self->vcpu);
	self->error = errno;
	WRITE_ONCE(self->returned, true);
	return NULL;
}

static void give_order(held_data *self, uint64_t page, bool store)
{
	order.gpa = PRIVATE_GPA + page * UNIT;
	order.store = store;
	order.send = false;
	sync_global_to_guest(self->vm, order);
}

/* The guest's fault on @page is held when this returns. */
static void hold_fault(held_data *self, uint64_t page, bool store)
{
	give_order(self, page, store);
	hold(FAULT, &self->thread, vcpu_thread, self);
	TEST_ASSERT_EQ(read_number(HOLD "hits"), 1);
}

/* It goes on, and finds this. */
static void expect(held_data *self, uint64_t value)
{
	struct ucall uc;

	let_go();
	pthread_join(self->thread, NULL);
	TEST_ASSERT(!self->r, "KVM_RUN failed: %s", strerror(self->error));
	TEST_ASSERT_EQ(get_ucall(self->vcpu, &uc), UCALL_SYNC);
	TEST_ASSERT(uc.args[1] == value, "The guest finds %#lx for %#lx", uc.args[1], value);
}

/* Again, with nobody in between. */
static void expect_now(held_data *self, uint64_t page, uint64_t value)
{
	struct ucall uc;

	give_order(self, page, false);
	vcpu_run(self->vcpu);
	TEST_ASSERT_EQ(get_ucall(self->vcpu, &uc), UCALL_SYNC);
	TEST_ASSERT(uc.args[1] == value, "Page %lu has %#lx for %#lx", page, uc.args[1], value);
}

/* --- a fault, with its page in hand --- */

/*
 * Of a huge page that is to be split nobody else may have a reference, as the
 * fault has: then nothing changes.
 */
static bool punch_one(held_data *self, uint64_t page)
{
	if (backing_is_hugetlb() || !backing_is_huge()) {
		memfd_to_shared(self->fd, page * UNIT, UNIT);
		return true;
	}
	TEST_ASSERT(fallocate(self->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, page * UNIT,
			      UNIT) == -1 && errno == EBUSY, "A huge page in use has been split");
	TEST_ASSERT_EQ(memfd_nr_private(self->fd), NR_PAGES);
	return false;
}

static void punch(held_data *self, uint64_t page)
{
	if (!punch_one(self, page))
		memfd_to_shared(self->fd, 0, SIZE);
}

TEST_F_TIMEOUT(held, load_of_punched, TIMEOUT)
{
	hold_fault(self, 1, false);
	punch(self, 1);
	expect(self, ALIAS);
	TEST_ASSERT_EQ(nr_private_mapped(self->vm), 0);
}

/* The store goes where the page is by then; nothing of it is left behind. */
TEST_F_TIMEOUT(held, store_to_punched, TIMEOUT)
{
	hold_fault(self, 1, true);
	punch(self, 1);
	expect(self, VALUE);
	TEST_ASSERT_EQ(READ_ONCE(*shared(self, 1)), VALUE);
	memfd_to_private(self->fd, UNIT, UNIT);
	expect_now(self, 1, 0);
	TEST_ASSERT_EQ(READ_ONCE(*shared(self, 1)), VALUE);
}

/* As private as before, but another page: the fault has to ask again. */
TEST_F_TIMEOUT(held, store_to_replaced, TIMEOUT)
{
	hold_fault(self, 1, true);
	punch(self, 1);
	memfd_to_private(self->fd, UNIT, UNIT);
	expect(self, VALUE);
	TEST_ASSERT(read_number(HOLD "hits") > 1, "The fault has not asked again");
	TEST_ASSERT_EQ(READ_ONCE(*shared(self, 1)), ALIAS);
	expect_now(self, 1, VALUE);
}

/* A neighbour in what would be one mapping, if the pages are small. */
TEST_F_TIMEOUT(held, neighbour_punched, TIMEOUT)
{
	const uint64_t neighbour = NR_PAGES - 1;
	bool punched;

	hold_fault(self, 1, true);
	punched = punch_one(self, neighbour);
	expect(self, VALUE);
	expect_now(self, neighbour, punched ? ALIAS : 0);
	memfd_to_shared(self->fd, neighbour * UNIT, UNIT);
	expect_now(self, neighbour, ALIAS);
	expect_now(self, 1, VALUE);
	expect_now(self, 0, 0);
	TEST_ASSERT_EQ(READ_ONCE(*shared(self, 1)), ALIAS);
}

/* All there is, back and forth, so that each of them is over when the fault goes on. */
TEST_F_TIMEOUT(held, converted_often, TIMEOUT)
{
	uint64_t end;
	int i;

	hold_fault(self, 1, true);
	end = now_ms() + 2000;
	for (i = 0; i < 3 || (i < 50 && now_ms() < end); i++) {
		memfd_to_shared(self->fd, 0, SIZE);
		memfd_to_private(self->fd, 0, SIZE);
	}
	memfd_to_shared(self->fd, 0, SIZE);
	expect(self, VALUE);
	TEST_ASSERT_EQ(READ_ONCE(*shared(self, 1)), VALUE);
	TEST_ASSERT_EQ(nr_private_mapped(self->vm), 0);
}

static void *prefault_thread(void *arg)
{
	held_data *self = arg;
	struct kvm_pre_fault_memory range = { .gpa = PRIVATE_GPA + UNIT, .size = UNIT };

	begin();
	self->r = __vcpu_ioctl(self->vcpu, KVM_PRE_FAULT_MEMORY, &range);
	self->error = errno;
	return NULL;
}

/* It may map the shared page, or find nothing to do, but not the page that was there. */
TEST_F_TIMEOUT(held, prefault_of_punched, TIMEOUT)
{
	hold(FAULT, &self->thread, prefault_thread, self);
	punch(self, 1);
	let_go();
	pthread_join(self->thread, NULL);
	TEST_ASSERT(!self->r, "KVM_PRE_FAULT_MEMORY failed: %s", strerror(self->error));
	TEST_ASSERT_EQ(nr_private_mapped(self->vm), 0);
	expect_now(self, 1, ALIAS);
}

static void *delete_thread(void *arg)
{
	held_data *self = arg;

	begin();
	vm_delete_private(self->vm, PRIVATE_SLOT);
	WRITE_ONCE(self->deleted, true);
	return NULL;
}

/* Nobody gives up a slot under a fault: that waits. Then there is no memory. */
TEST_F_TIMEOUT(held, slot_deleted, TIMEOUT)
{
	pthread_t thread;

	hold_fault(self, 1, false);
	start(&thread, delete_thread, self);
	give_time();
	TEST_ASSERT(!READ_ONCE(self->deleted), "A slot was given up under a fault");
	let_go();
	pthread_join(self->thread, NULL);
	TEST_ASSERT_EQ(self->r, 0);
	pthread_join(thread, NULL);
	TEST_ASSERT_EQ(nr_private_mapped(self->vm), 0);
	/* The guest may have got to its load before the mapping was taken down again. */
	if (self->vcpu->run->exit_reason != KVM_EXIT_MMIO) {
		struct ucall uc;

		TEST_ASSERT_EQ(get_ucall(self->vcpu, &uc), UCALL_SYNC);
		TEST_ASSERT_EQ(uc.args[1], 0);
		vcpu_run(self->vcpu);
	}
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_MMIO);
}

struct offline {
	uint64_t pfn;
	int r;
};

static void *offline_thread(void *arg)
{
	struct offline *offline = arg;

	begin();
	offline->r = page_offline(OFFLINE, offline->pfn);
	return NULL;
}

static bool pages_can_fail(void)
{
	return !backing_is_1g() && !access(OFFLINE, W_OK) && !access(TRACE_EVENT, W_OK);
}

static void slot_again(held_data *self)
{
	vm_delete_private(self->vm, PRIVATE_SLOT);
	vm_add_private(self->vm, PRIVATE_SLOT, PRIVATE_GPA, SIZE, self->hva, self->fd, 0);
}

/* Which one it is that the guest has there, and maps. */
static uint64_t pfn_of(held_data *self, uint64_t page)
{
	uint64_t pfn;

	pfns_trace();
	expect_now(self, page, 0);
	pfns_read(PRIVATE_GPA + page * UNIT, 1, UNIT, &pfn);
	TEST_ASSERT(pfn, "Nothing is known of page %lu", page);
	return pfn;
}

static void assert_failed(held_data *self, uint64_t page)
{
	errno = self->error;
	assert_memory_fault(self->vcpu, self->r, EHWPOISON, KVM_MEMORY_EXIT_FLAG_PRIVATE,
			    PRIVATE_GPA + page * UNIT);
}

/* By itself, not as a part of a huge page, so that nobody gets the frame again. */
static void replace(held_data *self, uint64_t page)
{
	memfd_to_shared(self->fd, page * UNIT, UNIT);
	memfd_to_private(self->fd, page * UNIT, UNIT);
}

/*
 * The memory fails that the fault is about to map: the guest never gets it, or
 * loses it again, if the failure had to wait for the CPU that is held.
 */
TEST_F_TIMEOUT(held, page_failed, TIMEOUT)
{
	struct offline offline;
	pthread_t thread;

	if (!pages_can_fail())
		SKIP(return, "There is no " OFFLINE ", or the page is too large");

	offline.pfn = pfn_of(self, 1);
	slot_again(self);
	TEST_ASSERT_EQ(nr_private_mapped(self->vm), 0);

	hold_fault(self, 1, true);
	start(&thread, offline_thread, &offline);
	give_time();
	let_go();
	pthread_join(thread, NULL);
	pthread_join(self->thread, NULL);
	/* The fault has a reference: that is complained of, or the page can't be split. */
	TEST_ASSERT(!offline.r || offline.r == EBUSY || offline.r == EHWPOISON,
		    "Taking the page offline: %s", strerror(offline.r));
	pr_info("# offline: %s, KVM_RUN: %s\n", strerror(offline.r),
		self->r ? strerror(self->error) : "the page");

	/* The fault has seen it, or the page was taken away again. */
	if (!self->r)
		vcpu_thread(self);
	assert_failed(self, 1);

	replace(self, 1);
	vcpu_run(self->vcpu);
	expect_now(self, 1, VALUE);
}

/* Who dies in the middle of a fault leaves nothing. */
TEST_F_TIMEOUT(held, killed, TIMEOUT)
{
	struct counters before;
	held_data victim = {};
	int status;
	pid_t pid;

	read_counters(&before);
	pid = fork();
	if (!pid) {
		held_create(&victim);
		hold_fault(&victim, 1, true);
		pause();
	}
	hold_wait();
	kill(pid, SIGKILL);
	usleep(SOME_TIME);
	let_go();
	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	TEST_ASSERT(WIFSIGNALED(status), "Status %#x", status);
	assert_counters(&before, "A VMM killed in a fault");
}

/* --- a slot, with the file's lock in hand --- */

struct convert {
	int fd;
	bool allocate;		/* not a hole */
	bool done;
};

static void *convert_thread(void *arg)
{
	struct convert *convert = arg;

	begin();
	if (convert->allocate)
		memfd_to_private(convert->fd, UNIT, UNIT);
	else
		memfd_to_shared(convert->fd, UNIT, UNIT);
	WRITE_ONCE(convert->done, true);
	return NULL;
}

static void *add_thread(void *arg)
{
	held_data *self = arg;

	begin();
	vm_add_private(self->vm, PRIVATE_SLOT, PRIVATE_GPA, SIZE, self->hva, self->fd, 0);
	return NULL;
}

/* Neither side sees half of the other: conversions wait. */
static void convert_while(held_data *self, const char *at, void *(*fn)(void *))
{
	struct convert convert = { .fd = self->fd };
	pthread_t thread;

	hold(at, &self->thread, fn, self);
	start(&thread, convert_thread, &convert);
	give_time();
	TEST_ASSERT(!READ_ONCE(convert.done), "A conversion in the middle of it");
	TEST_ASSERT(memfd_is_private(self->fd, UNIT), "Half a conversion in the middle of it");
	let_go();
	pthread_join(self->thread, NULL);
	pthread_join(thread, NULL);
}

TEST_F_TIMEOUT(held, bind, TIMEOUT)
{
	vm_delete_private(self->vm, PRIVATE_SLOT);
	convert_while(self, "memfile_bind", add_thread);
	expect_now(self, 1, ALIAS);
	expect_now(self, 0, 0);
}

TEST_F_TIMEOUT(held, unbind, TIMEOUT)
{
	expect_now(self, 0, 0);
	expect_now(self, 1, 0);
	convert_while(self, "memfile_unbind", delete_thread);
	TEST_ASSERT_EQ(nr_private_mapped(self->vm), 0);
	add_thread(self);
	expect_now(self, 1, ALIAS);
	expect_now(self, 0, 0);
}

/* --- memory that fails: the guest has lost it by then, the file has not --- */

static void hold_failure(held_data *self, uint64_t page, pthread_t *thread,
			 struct offline *offline)
{
	offline->pfn = pfn_of(self, page);
	hold("memfile_zap", thread, offline_thread, offline);
}

static void failure_goes_on(pthread_t thread, struct offline *offline)
{
	let_go();
	pthread_join(thread, NULL);
	TEST_ASSERT(!offline->r || offline->r == EBUSY, "Taking the page offline: %s",
		    strerror(offline->r));
}

/* Who asks for it just then waits, or not. */
static void failure_and(held_data *self, void *(*fn)(void *))
{
	struct offline offline;
	pthread_t thread;

	hold_failure(self, 1, &thread, &offline);
	start(&self->thread, fn, self);
	give_time();
	failure_goes_on(thread, &offline);
	pthread_join(self->thread, NULL);
}

static void *store_thread(void *arg)
{
	give_order(arg, 1, true);
	return vcpu_thread(arg);
}

/* A fault does not get the page. */
TEST_F_TIMEOUT(held, failure_and_fault, TIMEOUT)
{
	if (!pages_can_fail())
		SKIP(return, "There is no " OFFLINE ", or the page is too large");
	failure_and(self, store_thread);
	assert_failed(self, 1);
	replace(self, 1);
	vcpu_run(self->vcpu);
	expect_now(self, 1, VALUE);
	expect_now(self, 0, 0);
}

/* Nor is it mapped in advance. */
TEST_F_TIMEOUT(held, failure_and_prefault, TIMEOUT)
{
	if (!pages_can_fail())
		SKIP(return, "There is no " OFFLINE ", or the page is too large");
	failure_and(self, prefault_thread);
	TEST_ASSERT(self->r && self->error == EHWPOISON, "KVM_PRE_FAULT_MEMORY: %d, %s", self->r,
		    strerror(self->error));
	replace(self, 1);
	expect_now(self, 1, 0);
	expect_now(self, 0, 0);
}

static void *send_thread(void *arg)
{
	held_data *self = arg;

	give_order(self, 1, false);
	order.send = true;
	sync_global_to_guest(self->vm, order);
	return vcpu_thread(self);
}

/* Nor read by KVM. */
TEST_F_TIMEOUT(held, failure_and_emulation, TIMEOUT)
{
	struct kvm_run *run = self->vcpu->run;
	struct ucall uc;
	int sent;

	if (!pages_can_fail())
		SKIP(return, "There is no " OFFLINE ", or the page is too large");
	failure_and(self, send_thread);
	assert_failed(self, 1);
	replace(self, 1);
	for (sent = 0; sent < sizeof(uint64_t); sent += run->io.count) {
		vcpu_run(self->vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
		TEST_ASSERT_EQ(run->io.port, PORT);
		TEST_ASSERT_EQ(*((char *)run + run->io.data_offset), 0);
	}
	vcpu_run(self->vcpu);
	TEST_ASSERT_EQ(get_ucall(self->vcpu, &uc), UCALL_SYNC);
	TEST_ASSERT_EQ(uc.args[1], 0);
	expect_now(self, 0, 0);
}

/* The page goes, one way or the other, and the next one is as good as any. */
TEST_F_TIMEOUT(held, failure_and_punch, TIMEOUT)
{
	struct convert convert = { .fd = self->fd };
	struct offline offline;
	pthread_t threads[2];

	if (!pages_can_fail())
		SKIP(return, "There is no " OFFLINE ", or the page is too large");
	hold_failure(self, 1, &threads[0], &offline);
	start(&threads[1], convert_thread, &convert);
	give_time();
	failure_goes_on(threads[0], &offline);
	pthread_join(threads[1], NULL);
	expect_now(self, 1, ALIAS);
	memfd_to_private(self->fd, UNIT, UNIT);
	expect_now(self, 1, 0);
	expect_now(self, 0, 0);
}

/* Slots that go and come in the middle of it have nothing of the page. */
TEST_F_TIMEOUT(held, failure_and_slots, TIMEOUT)
{
	struct offline offline;
	pthread_t thread;
	int i;

	if (!pages_can_fail())
		SKIP(return, "There is no " OFFLINE ", or the page is too large");
	hold_failure(self, 1, &thread, &offline);
	for (i = 0; i < 3; i++)
		slot_again(self);
	expect_now(self, 0, 0);
	failure_goes_on(thread, &offline);
	give_order(self, 1, false);
	vcpu_thread(self);
	assert_failed(self, 1);
	replace(self, 1);
	vcpu_run(self->vcpu);
	expect_now(self, 1, 0);
}

/* --- a conversion, with the file's lock in hand, before anybody is told --- */

/* A fault need not wait: it gets the page as it was, and loses it again. */
TEST_F_TIMEOUT(held, conversion, TIMEOUT)
{
	struct convert convert = { .fd = self->fd };
	pthread_t thread;

	hold("memfile_invalidate_start", &thread, convert_thread, &convert);
	expect_now(self, 1, 0);
	expect_now(self, 0, 0);
	let_go();
	pthread_join(thread, NULL);
	expect_now(self, 1, ALIAS);
	expect_now(self, 0, 0);
}

/*
 * Consumers are told, and the page is about to go.  A fault on it waits for what
 * comes of it; one next to it does not, and makes no mapping that covers it.
 */
TEST_F_TIMEOUT(held, middle_of_conversion, TIMEOUT)
{
	struct convert convert = { .fd = self->fd };
	pthread_t thread;

	expect_now(self, 1, 0);
	hold("mm_filemap_delete_from_page_cache", &thread, convert_thread, &convert);
	TEST_ASSERT_EQ(nr_private_mapped(self->vm), 0);
	expect_now(self, 0, 0);
	TEST_ASSERT_EQ(nr_private_mapped(self->vm), 1);
	give_order(self, 1, true);
	start(&self->thread, vcpu_thread, self);
	give_time();
	TEST_ASSERT(!READ_ONCE(self->returned), "A fault on a page that is just being converted");
	expect(self, VALUE);
	pthread_join(thread, NULL);
	TEST_ASSERT_EQ(READ_ONCE(*shared(self, 1)), VALUE);
	expect_now(self, 0, 0);
}

/*
 * The same the other way round: the page has come, and consumers wait for the
 * end. The shared one is out of reach, and nobody gets the private one yet.
 */
TEST_F_TIMEOUT(held, middle_of_allocation, TIMEOUT)
{
	struct convert convert = { .fd = self->fd, .allocate = true };
	pthread_t thread;

	memfd_to_shared(self->fd, 0, SIZE);
	expect_now(self, 1, ALIAS);
	expect_now(self, 0, ALIAS);
	hold("mm_filemap_add_to_page_cache", &thread, convert_thread, &convert);
	expect_now(self, 0, ALIAS);
	give_order(self, 1, true);
	start(&self->thread, vcpu_thread, self);
	give_time();
	TEST_ASSERT(!READ_ONCE(self->returned), "A fault on a page that is just being allocated");
	TEST_ASSERT_EQ(nr_private_mapped(self->vm), 0);
	expect(self, VALUE);
	pthread_join(thread, NULL);
	TEST_ASSERT_EQ(READ_ONCE(*shared(self, 1)), ALIAS);
	TEST_ASSERT_EQ(nr_private_mapped(self->vm), 1);
	expect_now(self, 0, ALIAS);
}

/* Told, and the lock not given back: another one waits. */
TEST_F_TIMEOUT(held, end_of_conversion, TIMEOUT)
{
	struct convert first = { .fd = self->fd }, second = { .fd = self->fd };
	pthread_t threads[2];

	hold("memfile_invalidate_end", &threads[0], convert_thread, &first);
	expect_now(self, 1, ALIAS);
	start(&threads[1], convert_thread, &second);
	give_time();
	TEST_ASSERT(!READ_ONCE(second.done), "Two conversions at once");
	let_go();
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
	expect_now(self, 1, ALIAS);
}

int main(int argc, char *argv[])
{
	require_private_mem();
	return test_harness_run(argc, argv);
}
