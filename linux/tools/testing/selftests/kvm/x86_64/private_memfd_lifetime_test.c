// SPDX-License-Identifier: GPL-2.0
/*
 * Slots pin files, files don't pin VMs, and everything may end in any order:
 * the fd, the slot, the VM, the vCPU, the process; while another process that
 * has the file converts it back and forth.  Nothing may be left behind then.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "private_memfd_machine.h"

#define SIZE		MACHINE_SIZE

FIXTURE(lifetime) {
	struct machine m;
	struct counters before;
};

#define lifetime_data FIXTURE_DATA(lifetime)

FIXTURE_SETUP(lifetime)
{
	read_counters(&self->before);
	self->m.fd = private_memfd(SIZE);
	self->m.hva = map_shared_half(SIZE);
}

FIXTURE_TEARDOWN(lifetime)
{
}

/* Who else has the file: nobody, one who converts it, or one who takes it over. */
FIXTURE(orders) {
	struct counters before;
};

FIXTURE_VARIANT(orders) {
	bool converted;
	bool inherited;
};

#define orders_variant FIXTURE_VARIANT(orders)

FIXTURE_VARIANT_ADD(orders, alone) {
};

FIXTURE_VARIANT_ADD(orders, converted) {
	.converted = true,
};

FIXTURE_VARIANT_ADD(orders, inherited) {
	.inherited = true,
};

FIXTURE_SETUP(orders)
{
	read_counters(&self->before);
}

FIXTURE_TEARDOWN(orders)
{
}

enum step {
	CLOSE_FD,
	DELETE_SLOT,
	CLOSE_VM,
	CLOSE_VCPU,
	NR_STEPS,
};

static const char * const step_names[] = { "fd", "slot", "VM", "vCPU" };

struct life {
	enum step steps[NR_STEPS];
	int nr;
	bool running;		/* the vCPU, to begin with */
	bool killed;		/* or it ends by itself */
	char name[128];
	const orders_variant *variant;
	const struct counters *before;
	int heir;		/* socket */
	int fd;			/* that is converted */
};

/* The pages are there as long as anyone has the file, the VM as long as anyone has it. */
static void assert_left(const struct life *life, bool file, bool vm, const char *when)
{
	const bool debugfs = !access("/sys/kernel/debug/kvm", F_OK);
	const struct counters *before = life->before;
	struct counters now;
	bool users;
	long size;
	int tries;

	for (tries = 0; tries < 3000; tries++) {
		read_counters(&now);
		size = backing_is_hugetlb() ?
		       (now.hugetlb_used - before->hugetlb_used) * (long)UNIT :
		       (now.shmem_kb - before->shmem_kb) * SZ_1K;
		users = now.vendor_users > before->vendor_users;
		if (size == (file ? SIZE : 0) && (!debugfs || now.vms - before->vms == vm) &&
		    (before->vendor_users < 0 || users == vm))
			return;
		usleep(10000);
	}
	TEST_FAIL("%s, %s: %ld kB, %ld VMs, %s module; want %lu kB, %d VMs", life->name, when,
		  size / SZ_1K, now.vms - before->vms, users ? "used" : "unused",
		  file ? SIZE / SZ_1K : 0, vm);
}

/* KVM as modules goes when there is no VM, wherever the files are.  Only if asked to. */
#define UNLOAD_ENV	"PRIVATE_MEMFD_UNLOAD"

static const char *vendor_module(void)
{
	return host_cpu_is_amd ? "kvm_amd" : "kvm_intel";
}

static void kvm_unload(const struct life *life, bool vm, const char *when)
{
	int tries, r = -1;

	if (!getenv(UNLOAD_ENV))
		return;

	/* Who is gone may be in use for a moment. */
	for (tries = 0; tries < 3000 && r; tries++) {
		r = syscall(__NR_delete_module, vendor_module(), O_NONBLOCK);
		if (vm || !r || errno != EWOULDBLOCK)
			break;
		usleep(10000);
	}
	if (vm)
		TEST_ASSERT(r && errno == EWOULDBLOCK, "%s, %s: the VM has lost its module",
			    life->name, when);
	else
		TEST_ASSERT(!r || errno == ENOENT, "%s, %s: %s can't be unloaded: %s", life->name,
			    when, vendor_module(), strerror(errno));
	if (!r)
		TEST_ASSERT(!syscall(__NR_delete_module, "kvm", O_NONBLOCK),
			    "%s, %s: kvm can't be unloaded: %s", life->name, when, strerror(errno));
}

static void kvm_load(void)
{
	char command[64];

	if (!getenv(UNLOAD_ENV))
		return;
	snprintf(command, sizeof(command), "modprobe %s", vendor_module());
	TEST_ASSERT(!system(command), "'%s' failed", command);
}

/* Does as it is told, and exits; or waits for being killed. */
static void one_life(const struct life *life, int ready)
{
	const bool converted = life->variant->converted;
	bool running = true, file, vm;
	bool has[NR_STEPS] = { true, true, true, true };
	struct machine m = {};
	int i;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	m.fd = converted ? life->fd : private_memfd(SIZE);
	m.hva = map_shared_half(SIZE);
	if (!converted)
		memfd_to_private(m.fd, 0, SIZE);
	if (life->variant->inherited)
		send_fd(life->heir, m.fd);
	machine_create(&m);
	close(m.vm->kvm_fd);
	machine_must_bind(&m);
	machine_start(&m);
	machine_wait(&m);
	if (!converted)
		TEST_ASSERT(get_vm_stat(m.vm, "private_pages") >= 6, "The pages are not mapped");
	if (!life->running) {
		machine_stop(&m);
		running = false;
	}

	for (i = 0; i < life->nr; i++) {
		const enum step step = life->steps[i];

		switch (step) {
		case CLOSE_FD:
			close(m.fd);
			break;
		case DELETE_SLOT:
			/* No more than EBADF if the VM is closed. */
			__vm_set_user_memory_region(m.vm, PRIVATE_SLOT, 0, 0, 0, NULL);
			if (!has[CLOSE_VM])
				continue;
			break;
		case CLOSE_VM:
			close(m.vm->fd);
			break;
		case CLOSE_VCPU:
			close(m.vcpu->fd);
			/* In the midst of conversions it goes on, to its last exit. */
			if (running && converted) {
				running = false;
				break;
			}
			if (running)
				machine_stop(&m);
			machine_unmap_vcpu(&m);
			running = false;
			break;
		default:
			TEST_FAIL("No such step");
		}
		if (running)
			machine_wait(&m);
		has[step] = false;
		vm = has[CLOSE_VM] || has[CLOSE_VCPU];
		file = has[CLOSE_FD] || (has[DELETE_SLOT] && vm) || life->variant->inherited;
		if (!converted)
			assert_left(life, file, vm, step_names[step]);
		/* A vCPU that goes on in the midst of conversions has the VM for longer. */
		if (!converted || !life->running)
			kvm_unload(life, vm, step_names[step]);
	}

	TEST_ASSERT(write(ready, "", 1) == 1, "write() failed");
	while (life->killed)
		pause();
	/* Not only _exit(): with the threads. */
	exit(0);
}

/* The content stays its dead owner's until it is gone; then the file is the heir's. */
static void take_over(const struct life *life)
{
	struct machine m = { .fd = receive_fd(life->heir) };
	int r;

	assert_left(life, true, false, "dead");
	kvm_unload(life, false, "dead");
	TEST_ASSERT_EQ(memfd_nr_private(m.fd), SIZE / UNIT);
	memfd_to_shared(m.fd, 0, UNIT);
	kvm_load();

	m.hva = map_shared_half(SIZE);
	machine_create(&m);
	r = machine_bind(&m);
	TEST_ASSERT(r == EBUSY, "%s: the heir's bind: wanted EBUSY, got %s", life->name,
		    strerror(r));
	memfd_to_shared(m.fd, 0, SIZE);
	machine_must_bind(&m);
	memfd_to_private(m.fd, 0, SIZE);
	machine_start(&m);
	machine_wait(&m);
	TEST_ASSERT(get_vm_stat(m.vm, "private_pages") >= 6, "%s: the heir has no use of it",
		    life->name);
	machine_stop(&m);
	kvm_vm_free(m.vm);
	munmap(m.code, PAGE_SIZE);
	munmap(m.hva, SIZE);
	close(m.fd);
}

static void try_life(struct life *life)
{
	int ready[2], heir[2], status, i;
	const char *what = life->name;
	char byte, *end = life->name;
	pid_t pid, others = 0;

	for (i = 0; i < life->nr; i++)
		end += sprintf(end, "%s, ", step_names[life->steps[i]]);
	sprintf(end, "process %s%s", life->killed ? "killed" : "ended",
		life->running ? ", vCPU running" : "");

	/* Before there is a pipe: they must not have the other end of it. */
	if (life->variant->converted) {
		life->fd = private_memfd(SIZE);
		others = converter_start(life->fd);
	}
	TEST_ASSERT(!pipe(ready) && !socketpair(AF_UNIX, SOCK_STREAM, 0, heir),
		    "No pipe or socket: %s", strerror(errno));
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed: %s", strerror(errno));
	if (!pid) {
		close(ready[0]);
		close(heir[0]);
		life->heir = heir[1];
		one_life(life, ready[1]);
	}
	close(ready[1]);
	close(heir[1]);
	life->heir = heir[0];
	TEST_ASSERT(read(ready[0], &byte, 1) == 1, "%s: it failed", what);
	close(ready[0]);
	if (life->killed)
		kill(pid, SIGKILL);
	TEST_ASSERT(waitpid(pid, &status, 0) == pid &&
		    (life->killed ? WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL :
				    WIFEXITED(status) && !WEXITSTATUS(status)),
		    "%s: status %#x", what, status);
	if (life->variant->inherited) {
		take_over(life);
	} else {
		kvm_unload(life, false, "dead");
		kvm_load();
	}
	/* Who converts the file does so to the end, KVM or not. */
	if (others) {
		converter_stop(others);
		close(life->fd);
	}
	close(heir[0]);
	assert_counters(life->before, what);
}

/*
 * All sequences of steps that begin with those of @life, each with the vCPU
 * running and without, killed in the end.  In the midst of conversions no two are
 * the same: there killed or not, and running or not, are every other one's turn.
 */
static unsigned long try_lives(struct life *life)
{
	/* Percent of them; each clears some units. */
	const unsigned long share = scaled(nr_units(100, 100, 10));
	static unsigned int turn;
	unsigned long tried = 0;
	enum step next;
	int i, j;

	turn++;
	for (i = 0; i < 4; i++) {
		life->running = i & 1;
		life->killed = i & 2;
		if (life->variant->converted ? (i + (i >> 1) + turn) & 1 : !life->killed)
			continue;
		if (random() % 100 >= share)
			continue;
		try_life(life);
		tried++;
	}

	for (next = 0; next < NR_STEPS && life->nr < NR_STEPS; next++) {
		for (j = 0; j < life->nr && life->steps[j] != next; j++)
			;
		if (j < life->nr)
			continue;
		life->steps[life->nr++] = next;
		tried += try_lives(life);
		life->nr--;
	}
	return tried;
}

TEST_F_TIMEOUT(orders, all, 2 * TIMEOUT)
{
	struct life life = {
		.variant = variant,
		.before = &self->before,
	};

	TEST_ASSERT(!getenv(UNLOAD_ENV) || self->before.vendor_users >= 0, "KVM is no module");
	pr_info("# %lu lives\n", try_lives(&life));
}

/* The slot goes and comes while the guest counts in it, first alone, then not. */
TEST_F_TIMEOUT(lifetime, delete_running, TIMEOUT)
{
	struct machine *m = &self->m;
	pid_t pid = 0;
	int phase, i;

	machine_create(m);
	memfd_to_private(m->fd, 0, SIZE);
	machine_must_bind(m);
	machine_start(m);
	for (phase = 0; phase < 2; phase++) {
		if (phase)
			pid = converter_start(m->fd);
		for (i = 0; i < scaled(nr_units(60, 60, 20)); i++) {
			if (i % 4 == 0)
				machine_wait(m);
			vm_delete_private(m->vm, PRIVATE_SLOT);
			TEST_ASSERT_EQ(get_vm_stat(m->vm, "private_pages"), 0);
			if (i % 4 == 1)
				machine_wait(m);
			machine_must_bind(m);
		}
	}
	machine_wait(m);
	converter_stop(pid);

	/* Nothing is left over from the conversions that would keep it from going on. */
	memfd_to_private(m->fd, 0, SIZE);
	machine_wait(m);
	TEST_ASSERT(get_vm_stat(m->vm, "private_pages") >= 6, "Not all is mapped");
	memfd_to_shared(m->fd, 0, SIZE);
	memset(m->hva, 0, SIZE);
	machine_wait(m);
	TEST_ASSERT(*(uint32_t *)m->hva, "The guest doesn't write to the shared half");
	TEST_ASSERT_EQ(get_vm_stat(m->vm, "private_pages"), 0);
	machine_stop(m);
	kvm_vm_free(m->vm);
	close(m->fd);
	assert_counters(&self->before, "Slots that were deleted");
}

/* It stops where it is, with content in the file. */
static void converter_pause(pid_t pid, int fd)
{
	int status;

	for (;;) {
		kill(pid, SIGSTOP);
		TEST_ASSERT(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status),
			    "The conversions ended: %#x", status);
		if (memfd_nr_private(fd))
			return;
		kill(pid, SIGCONT);
		usleep(100);
	}
}

/* VMs that end in the midst of conversions.  The next one can bind when the file is empty. */
TEST_F_TIMEOUT(lifetime, destroy_converting, TIMEOUT)
{
	struct machine *m = &self->m;
	unsigned long busy = 0, paused = 0;
	pid_t pid;
	int i;

	pid = converter_start(m->fd);
	for (i = 0; i < scaled(nr_units(40, 40, 10)); i++) {
		int r, tries = 0;

		machine_create(m);
		while ((r = machine_bind(m))) {
			TEST_ASSERT(r == EBUSY, "Binding failed: %s", strerror(r));
			TEST_ASSERT(tries++ < 100000, "The file is never empty");
			busy += tries == 1;
			kill(pid, SIGCONT);
			usleep(100);
		}
		TEST_ASSERT(busy >= paused, "A VM was given the content of the one before");
		machine_start(m);
		machine_wait(m);
		/* By the time that there is another one the file may have been empty, or not. */
		if (i % 4 == 3) {
			converter_pause(pid, m->fd);
			paused++;
		}
		/* With the vCPU's last mappings just made, or not. */
		if (i % 2)
			machine_stop(m);
		close(m->vm->fd);
		if (!(i % 2))
			machine_stop(m);
		close(m->vcpu->fd);
		machine_unmap_vcpu(m);
		close(m->vm->kvm_fd);
		munmap(m->code, PAGE_SIZE);
	}
	kill(pid, SIGCONT);
	converter_stop(pid);
	pr_info("# %d VMs, %lu times the file was not theirs yet\n", i, busy);
	TEST_ASSERT(busy, "No VM ever met the content of the one before");
	close(m->fd);
	assert_counters(&self->before, "VMs that ended");
}

/* How a VMM gives up what it has; all at once, each in a thread of its own. */
struct end {
	pthread_barrier_t *barrier;
	struct machine *m;
	void (*fn)(struct machine *m);
	unsigned int pause;
	pthread_t thread;
};

/* Where a life is, and how often it got so far; for who looks at it from outside. */
enum phase { SETTING_UP, RUNNING, ENDING, NR_PHASES };

struct lives {
	enum phase phase;
	unsigned long slots;	/* deleted before the VM's descriptor was closed */
	unsigned long rounds;	/* of the guests */
};

static struct lives *lives;

/* One call, no other descriptor is needed for it: the numbers may be others' by now. */
static void end_slot(struct machine *m)
{
	struct kvm_userspace_memory_region2 region = { .slot = PRIVATE_SLOT };
	int r = ioctl(m->vm->fd, KVM_SET_USER_MEMORY_REGION2, &region);

	TEST_ASSERT(!r || errno == EBADF, "Deleting a slot failed: %s", strerror(errno));
	lives->slots += !r;
}

static void end_vm(struct machine *m)
{
	close(m->vm->fd);
}

/* What of the vCPU is mapped keeps it, and the VM, until its thread is done. */
static void end_vcpu(struct machine *m)
{
	close(m->vcpu->fd);
}

static void end_file(struct machine *m)
{
	close(m->fd);
}

static void *end_thread(void *arg)
{
	struct end *end = arg;

	pthread_barrier_wait(end->barrier);
	usleep(end->pause);
	end->fn(end->m);
	return NULL;
}

static void end_all(struct machine *m)
{
	pthread_barrier_t barrier;
	struct end ends[] = {
		{ .fn = end_slot }, { .fn = end_vm }, { .fn = end_vcpu }, { .fn = end_file },
	};
	int i;

	pthread_barrier_init(&barrier, NULL, ARRAY_SIZE(ends));
	for (i = 0; i < ARRAY_SIZE(ends); i++) {
		ends[i].barrier = &barrier;
		ends[i].m = m;
		ends[i].pause = random() % 200;
		pthread_create(&ends[i].thread, NULL, end_thread, &ends[i]);
	}
	for (i = 0; i < ARRAY_SIZE(ends); i++)
		pthread_join(ends[i].thread, NULL);
	pthread_barrier_destroy(&barrier);
}

/* A VM that ends under its guest, in no order.  The file goes on, with the converter. */
static void live_and_end(struct machine *m, int fd)
{
	int r, tries = 0;

	WRITE_ONCE(lives->phase, SETTING_UP);
	m->fd = dup(fd);
	machine_create(m);
	while ((r = machine_bind(m))) {
		TEST_ASSERT(r == EBUSY, "Binding failed: %s", strerror(r));
		TEST_ASSERT(tries++ < 100000, "The file is never empty");
		memfd_to_shared(fd, 0, SIZE);
	}
	machine_start(m);
	WRITE_ONCE(lives->phase, RUNNING);
	usleep(random() % 5000);
	WRITE_ONCE(lives->phase, ENDING);
	end_all(m);
	machine_stop(m);
	lives->rounds += *(uint32_t *)(m->code + CODE_PROGRESS);
	machine_unmap_vcpu(m);
	close(m->vm->kvm_fd);
	munmap(m->code, PAGE_SIZE);
}

TEST_F_TIMEOUT(lifetime, ends_at_once, TIMEOUT)
{
	struct machine *m = &self->m;
	int fd = m->fd, i, nr = scaled(nr_units(100, 60, 5));
	pid_t pid;

	lives = map_for_children(PAGE_SIZE);
	pid = converter_start(fd);
	for (i = 0; i < nr; i++)
		live_and_end(m, fd);
	converter_stop(pid);
	close(fd);
	pr_info("# %d VMs, %lu slots deleted in time, %lu rounds of the guests\n", nr,
		lives->slots, lives->rounds);
	/* A few say nothing of that. */
	TEST_ASSERT(backing_is_1g() || (lives->slots && lives->slots < nr && lives->rounds),
		    "Always the same order, or no guest has run");
	munmap(lives, PAGE_SIZE);
	assert_counters(&self->before, "VMs that ended in no order");
}

/* The same, and killed anywhere in it: while it sets up, runs, or ends. */
TEST_F_TIMEOUT(lifetime, killed_anywhere, TIMEOUT)
{
	struct machine *m = &self->m;
	unsigned long killed[NR_PHASES] = {};
	int fd = m->fd, status, i, nr = scaled(nr_units(100, 60, 5));
	pid_t pid, child;
	uint64_t life;

	lives = map_for_children(PAGE_SIZE);
	pid = converter_start(fd);
	life = now_ms();
	live_and_end(m, fd);
	life = now_ms() - life + 1;
	/* Their end is short, and what this is about. */
	for (i = 0; i < nr || (!backing_is_1g() && !killed[ENDING] && i < 20 * nr); i++) {
		child = fork();
		TEST_ASSERT(child >= 0, "fork() failed: %s", strerror(errno));
		if (!child) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			srandom(i);
			for (;;)
				live_and_end(m, fd);
		}
		usleep(random() % (2 * life * 1000));
		kill(child, SIGKILL);
		TEST_ASSERT_EQ(waitpid(child, &status, 0), child);
		TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
			    "A VMM has ended with status %#x", status);
		killed[lives->phase]++;
	}
	converter_stop(pid);
	close(fd);
	pr_info("# killed %lu times setting up, %lu running, %lu ending\n", killed[SETTING_UP],
		killed[RUNNING], killed[ENDING]);
	TEST_ASSERT(backing_is_1g() || (killed[SETTING_UP] && killed[ENDING]),
		    "Never in one of the places that this is about");
	munmap(lives, PAGE_SIZE);
	assert_counters(&self->before, "VMMs that were killed");
}

/*
 * Binding in the midst of conversions: it sees both ends of each of them or
 * neither.  One end only and the vCPU would retry for ever, or not at all.
 */
TEST_F_TIMEOUT(lifetime, bind_converting, TIMEOUT)
{
	uint64_t i, j, private = 0, nr = SIZE / UNIT;
	struct agent *agent;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	uint64_t *hva = self->m.hva;
	int fd = self->m.fd;
	pid_t pid;

	vm = vm_create_private(1, agent_code, &vcpu);
	agent = agent_create(vcpu);
	virt_map_private(vm, PRIVATE_GPA, SIZE);
	pid = converter_start(fd);
	for (i = 0; i < scaled(nr_units(300, 300, 30)); i++) {
		vm_add_private(vm, PRIVATE_SLOT, PRIVATE_GPA, SIZE, hva, fd, 0);
		if (i % 64 == 0) {
			agent_order(agent, PRIVATE_GPA, nr, AGENT_NOTHING, 0x9);
			agent_run(vcpu, agent);
		}
		vm_delete_private(vm, PRIVATE_SLOT);
	}
	vm_add_private(vm, PRIVATE_SLOT, PRIVATE_GPA, SIZE, hva, fd, 0);
	converter_stop(pid);

	for (i = 0; i < nr; i++)
		for (j = 0; j < NR_PROBES; j++)
			probe_write((void *)hva + i * UNIT, j, 0x5ed);
	agent_order(agent, PRIVATE_GPA, nr, AGENT_NOTHING, 0x10);
	agent_run(vcpu, agent);
	for (i = 0; i < nr; i++) {
		bool is_private = memfd_is_private(fd, i * UNIT);

		TEST_ASSERT(hva[i * UNIT / 8] == (is_private ? 0x5ed : 0x10),
			    "Shared half of %s page %lu: %#lx", is_private ? "private" : "shared",
			    i, hva[i * UNIT / 8]);
		private += is_private;
	}
	TEST_ASSERT_EQ(nr_private_mapped(vm), private);
	memfd_to_private(fd, 0, SIZE);
	memfd_to_shared(fd, 0, SIZE);
	agent_order(agent, PRIVATE_GPA, 1, private == nr ? 0x5ed : AGENT_NOTHING, AGENT_NOTHING);
	agent_run(vcpu, agent);
	TEST_ASSERT_EQ(get_vm_stat(vm, "private_pages"), 0);
	kvm_vm_free(vm);
	close(fd);
	assert_counters(&self->before, "Slots that came and went");
}

/* Binds that fail hold nothing, and drop nothing that they don't hold. */
TEST_F_TIMEOUT(lifetime, failed_binds, TIMEOUT)
{
	struct machine *m = &self->m, other = { .fd = m->fd, .hva = m->hva };
	int i, r;

	memfd_to_private(m->fd, 0, SIZE);
	machine_create(m);
	machine_create(&other);
	machine_must_bind(m);
	for (i = 0; i < 1000; i++) {
		r = machine_bind(&other);
		TEST_ASSERT(r == EBUSY, "Wanted EBUSY, got %s", strerror(r));
		r = __vm_add_private(m->vm, PRIVATE_SLOT + 1, PRIVATE_GPA, SIZE, m->hva, m->fd, 0);
		TEST_ASSERT(r && errno == EEXIST, "Wanted EEXIST, got %s", strerror(errno));
		r = __vm_add_private(m->vm, PRIVATE_SLOT + 1, PRIVATE_GPA, SIZE, m->hva, m->fd,
				     PAGE_SIZE);
		TEST_ASSERT(r && errno == EINVAL, "Wanted EINVAL, got %s", strerror(errno));
	}
	vm_delete_private(m->vm, PRIVATE_SLOT);
	for (i = 0; i < 1000; i++) {
		/* No machine can address as much: fails when it is bound already. */
		r = __vm_add_private(m->vm, PRIVATE_SLOT, 1ull << 55, SIZE, m->hva, m->fd, 0);
		TEST_ASSERT(r && errno == EINVAL, "Wanted EINVAL, got %s", strerror(errno));
	}
	/* The file is there as long as somebody has it. */
	machine_must_bind(m);
	TEST_ASSERT_EQ(memfd_nr_private(m->fd), SIZE / UNIT);
	close(m->fd);
	machine_start(m);
	machine_wait(m);
	TEST_ASSERT(get_vm_stat(m->vm, "private_pages") >= 6, "The guest lost its memory");
	machine_stop(m);
	kvm_vm_free(other.vm);
	kvm_vm_free(m->vm);
	assert_counters(&self->before, "Binds that failed");
}

struct in_vain {
	struct machine *m;
	bool stop;
	long binds;
};

static void *bind_in_vain(void *arg)
{
	struct in_vain *in_vain = arg;
	struct machine *m = in_vain->m;

	while (!READ_ONCE(in_vain->stop)) {
		int r = __vm_add_private(m->vm, PRIVATE_SLOT, 1ull << 55, SIZE, m->hva, m->fd, 0);

		TEST_ASSERT(r && errno == EINVAL, "Wanted EINVAL, got %s", strerror(errno));
		WRITE_ONCE(in_vain->binds, in_vain->binds + 1);
	}
	return NULL;
}

/* Content that nobody has come to own can be swapped and moved as before. */
TEST_F_TIMEOUT(lifetime, failed_binds_leave_pages_evictable, TIMEOUT)
{
	struct machine *m = &self->m;
	struct in_vain in_vain = { .m = m };
	const uint64_t nr = SIZE / PAGE_SIZE;
	pthread_t thread;
	long before;
	uint64_t i;

	if (backing_is_hugetlb())
		SKIP(return, "Huge pages are never evicted");
	machine_create(m);
	/* So that it has content, and each bind is one for the first time. */
	memfd_to_private(m->fd, 0, PAGE_SIZE);
	read_number("/proc/sys/vm/stat_refresh");
	before = read_key("/proc/vmstat", "nr_unevictable");
	pthread_create(&thread, NULL, bind_in_vain, &in_vain);
	while (!READ_ONCE(in_vain.binds))
		usleep(100);
	for (i = 1; i < nr; i++) {
		const long binds = READ_ONCE(in_vain.binds);

		memfd_to_private(m->fd, i * PAGE_SIZE, PAGE_SIZE);
		while (i % 4 == 0 && READ_ONCE(in_vain.binds) == binds)
			sched_yield();
	}
	WRITE_ONCE(in_vain.stop, true);
	pthread_join(thread, NULL);
	pr_info("# %ld binds\n", in_vain.binds);

	read_number("/proc/sys/vm/stat_refresh");
	TEST_ASSERT_EQ(read_key("/proc/vmstat", "nr_unevictable"), before);
	kvm_vm_free(m->vm);
	close(m->fd);
	assert_counters(&self->before, "Binds that failed");
}

/* A child has the VM's fds but can't use them, nor is anything lost when it ends. */
TEST_F(lifetime, forks)
{
	struct machine *m = &self->m;
	int status, i;
	pid_t pid;

	machine_create(m);
	memfd_to_private(m->fd, 0, SIZE);
	machine_must_bind(m);
	machine_start(m);
	for (i = 0; i < 4; i++) {
		machine_wait(m);
		pid = fork();
		if (!pid) {
			int r = __vm_add_private(m->vm, PRIVATE_SLOT + 1, PRIVATE_GPA, PAGE_SIZE,
						 m->hva, m->fd, 0);

			_exit(r == -1 && errno == EIO ? 0 : 1);
		}
		TEST_ASSERT(waitpid(pid, &status, 0) == pid && !status,
			    "A child could use the VM: %#x", status);
		machine_wait(m);
	}
	TEST_ASSERT_EQ(memfd_nr_private(m->fd), SIZE / UNIT);
	machine_stop(m);
	close(m->fd);
	kvm_vm_free(m->vm);
	assert_counters(&self->before, "Forks");
}

/* Who allocates pays, until the memory is gone. */
TEST_F_TIMEOUT(lifetime, memcg, TIMEOUT)
{
	/* Half of it, if it has halves. */
	const long left = SIZE - align_up(SIZE / 2, UNIT);
	struct machine *m = &self->m;

	if (!cgroup_create())
		SKIP(return, "There is no memory controller of cgroup2");
	cgroup_join();
	TEST_ASSERT(cgroup_wait(0), "%ld bytes to begin with", cgroup_charged());

	machine_create(m);
	machine_must_bind(m);
	memfd_to_private(m->fd, 0, SIZE);
	TEST_ASSERT(cgroup_wait(SIZE), "%ld bytes, %ld allocated", cgroup_charged(), SIZE);
	machine_start(m);
	machine_wait(m);
	memfd_to_shared(m->fd, align_down(SIZE / 4, UNIT), align_up(SIZE / 2, UNIT));
	TEST_ASSERT(cgroup_wait(left), "%ld bytes, %ld allocated", cgroup_charged(), left);
	machine_wait(m);
	machine_stop(m);

	/* The file is pinned, but not what isn't there. */
	close(m->fd);
	TEST_ASSERT(cgroup_wait(left), "%ld bytes, %ld allocated", cgroup_charged(), left);
	kvm_vm_free(m->vm);
	TEST_ASSERT(cgroup_wait(0), "%ld bytes in the end", cgroup_charged());

	cgroup_leave();
	cgroup_remove();
	assert_counters(&self->before, "The group");
}

/* What the shared half is, and how it is given back. */
FIXTURE(discard) {
	struct counters before;
};

FIXTURE_VARIANT(discard) {
	bool file;
	unsigned int memfd_flags;
	int advice;
};

FIXTURE_VARIANT_ADD(discard, anonymous) {
	.advice = MADV_DONTNEED,
};

FIXTURE_VARIANT_ADD(discard, shmem) {
	.file = true,
	.advice = MADV_REMOVE,
};

FIXTURE_VARIANT_ADD(discard, hugetlb) {
	.file = true,
	.memfd_flags = MFD_HUGETLB | MEMFD_HUGE_2MB,
	.advice = MADV_REMOVE,
};

FIXTURE_SETUP(discard)
{
	read_counters(&self->before);
}

FIXTURE_TEARDOWN(discard)
{
}

/*
 * After a conversion the shared half is of no use, and may be given back.  The
 * host then has each page once; the private mappings don't notice.
 */
TEST_F_TIMEOUT(discard, once, TIMEOUT)
{
	const long shared_size = SZ_8M;
	struct machine m = {};
	uint64_t faults, mapped;
	int fd = -1, i;
	long before;

	if (variant->file) {
		fd = memfd_create("shared", variant->memfd_flags);
		TEST_ASSERT(fd >= 0 && !ftruncate(fd, SIZE), "memfd_create() failed: %s",
			    strerror(errno));
		m.hva = mmap(NULL, shared_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (m.hva == MAP_FAILED)
			SKIP(return, "There are no huge pages for the shared half");
		munmap(m.hva, shared_size);
		m.hva = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
		TEST_ASSERT(m.hva != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	} else {
		m.hva = map_shared_half(SIZE);
	}
	if (!cgroup_create())
		SKIP(return, "There is no memory controller of cgroup2");
	cgroup_join();

	before = cgroup_all();
	m.fd = private_memfd(SIZE);
	machine_create(&m);
	memset(m.hva, 0x5e, shared_size);
	machine_must_bind(&m);
	machine_start(&m);
	machine_wait(&m);
	assert_cgroup_all(before, shared_size, "All shared");

	memfd_to_private(m.fd, 0, SIZE);
	machine_wait(&m);
	assert_cgroup_all(before, shared_size + SIZE, "All private, shared half in place");

	faults = get_vm_stat(m.vm, "private_faults");
	mapped = get_vm_stat(m.vm, "private_pages");
	TEST_ASSERT(mapped >= 6, "%lu private pages are mapped", mapped);
	for (i = 0; i < 3; i++) {
		TEST_ASSERT(!madvise(m.hva, shared_size, variant->advice), "madvise() failed: %s",
			    strerror(errno));
		TEST_ASSERT_EQ(get_vm_stat(m.vm, "private_pages"), mapped);
		machine_wait(&m);
		TEST_ASSERT_EQ(get_vm_stat(m.vm, "private_pages"), mapped);
		TEST_ASSERT_EQ(get_vm_stat(m.vm, "private_faults"), faults);
		assert_cgroup_all(before, SIZE, "All private, shared half discarded");
		if (i < 2)
			memset(m.hva, 0x5f, shared_size);
	}

	/* Shared again: there is neither half until the guest comes. */
	machine_stop(&m);
	memfd_to_shared(m.fd, 0, SIZE);
	assert_cgroup_all(before, 0, "All shared again");
	TEST_ASSERT_EQ(get_vm_stat(m.vm, "private_pages"), 0);
	kvm_vm_free(m.vm);
	close(m.fd);
	munmap(m.hva, SIZE);
	if (fd >= 0)
		close(fd);
	cgroup_leave();
	cgroup_remove();
	assert_counters(&self->before, "Shared halves that were discarded");
}

int main(int argc, char *argv[])
{
	require_private_mem();
	return test_harness_run(argc, argv);
}
