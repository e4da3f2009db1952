// SPDX-License-Identifier: GPL-2.0
/*
 * What KVM shares with a guest for the sake of paravirtualization, in private
 * memory: clocks, steal time with the flag of preempted vCPUs and requests for
 * TLB flushes, async page faults.  It works as in shared memory, in the half that
 * the guest sees, also if that changes all the time; or it is refused, as are the
 * pages of Xen, and one of Hyper-V.
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include <asm/pvclock.h>
#include <asm/pvclock-abi.h>
#include <linux/kvm_para.h>

#include "apic.h"
#include "hyperv.h"
#include "private_memfd.h"

/* One unit for the structures, and one on each side to see that it is only that. */
#define NR_UNITS	3
#define SIZE		(NR_UNITS * UNIT)
#define PV_GPA		(PRIVATE_GPA + UNIT)

/* In its first page. */
#define CLOCK		0x000
#define WALL_CLOCK	0x040
#define STEAL_TIME	0x080
#define APF		0x0c0
#define EOI		0x100
#define VAPIC		0x140
#define PAIRING		0x180

#define NEIGHBOUR	0x5ec4e7aa5ec4e7aaull
#define ALIAS		0xa5
#define APF_VECTOR	0x50
#define IPI_VECTOR	0x51
#define APIC_SELF_IPI	0x3f0

FIXTURE(pv) {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[2];
	void *hva;
	int fd;
};

/* Which half the structures are in. */
FIXTURE_VARIANT(pv) {
	bool private;
};

FIXTURE_VARIANT_ADD(pv, private) {
	.private = true,
};

FIXTURE_VARIANT_ADD(pv, shared) {
};

#define pv_data FIXTURE_DATA(pv)

static void create(pv_data *self, void *hva)
{
	self->vm = vm_create_private(ARRAY_SIZE(self->vcpus), NULL, self->vcpus);
	self->fd = private_memfd(SIZE);
	self->hva = hva;
	vm_add_private(self->vm, PRIVATE_SLOT, PRIVATE_GPA, SIZE, hva, self->fd, 0);
	virt_map_private(self->vm, PRIVATE_GPA, SIZE);
}

FIXTURE_SETUP(pv)
{
	create(self, map_shared_half(SIZE));
	if (!variant->private)
		return;
	memfd_to_private(self->fd, UNIT, UNIT);
	memset(self->hva + UNIT, ALIAS, PAGE_SIZE);
}

FIXTURE_TEARDOWN(pv)
{
	kvm_vm_free(self->vm);
	close(self->fd);
}

static void assert_alias(pv_data *self, bool private)
{
	uint8_t *alias = self->hva + UNIT;
	int i;

	for (i = 0; private && i < PAGE_SIZE; i++)
		TEST_ASSERT(alias[i] == ALIAS, "Byte %#x of the alias became %#x", i, alias[i]);
}

static void set_code(struct kvm_vcpu *vcpu, void *code)
{
	vcpu_arch_set_entry_point(vcpu, code);
	vcpu_args_set(vcpu, 1, PV_GPA);
}

static void run_to_sync(struct kvm_vcpu *vcpu, struct ucall *uc)
{
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	switch (get_ucall(vcpu, uc)) {
	case UCALL_SYNC:
		break;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(*uc);
		break;
	default:
		TEST_FAIL("Unexpected ucall %lu", uc->cmd);
	}
}

/* The clocks. */
static uint64_t read_clock(struct pvclock_vcpu_time_info *clock, uint8_t *flags)
{
	uint32_t version;
	uint64_t ns;

	do {
		version = READ_ONCE(clock->version);
		barrier();
		ns = __pvclock_read_cycles(clock, rdtsc());
		*flags = clock->flags;
		barrier();
	} while (version & 1 || version != READ_ONCE(clock->version));
	GUEST_ASSERT(version);
	return ns;
}

static void clock_code(uint64_t gpa)
{
	struct pvclock_vcpu_time_info *clock = (void *)gpa + CLOCK;
	struct pvclock_wall_clock *wall = (void *)gpa + WALL_CLOCK;
	uint8_t flags = 0;
	uint64_t ns;

	wrmsr(MSR_KVM_WALL_CLOCK_NEW, gpa + WALL_CLOCK);
	wrmsr(MSR_KVM_SYSTEM_TIME_NEW, (gpa + CLOCK) | KVM_MSR_ENABLED);
	for (;;) {
		GUEST_ASSERT(wall->version && !(wall->version & 1));
		ns = read_clock(clock, &flags);
		GUEST_SYNC_ARGS(0, ns, flags, wall->sec, wall->nsec);
	}
}

#define NSEC	1000000000ull

static uint64_t kvm_clock(pv_data *self)
{
	struct kvm_clock_data data = {};

	vm_ioctl(self->vm, KVM_GET_CLOCK, &data);
	return data.clock;
}

TEST_F(pv, clock)
{
	const uint64_t jumps[] = { 0, 180, 7200, 90 };
	uint64_t from, to, clock, wall;
	struct timespec now;
	struct ucall uc;
	int i;

	set_code(self->vcpus[0], clock_code);
	for (i = 0; i < ARRAY_SIZE(jumps); i++) {
		if (jumps[i]) {
			struct kvm_clock_data data = { .clock = jumps[i] * NSEC };

			vm_ioctl(self->vm, KVM_SET_CLOCK, &data);
		}
		from = kvm_clock(self);
		run_to_sync(self->vcpus[0], &uc);
		to = kvm_clock(self);
		clock = uc.args[2];
		TEST_ASSERT(clock + NSEC > from && clock < to + NSEC,
			    "Clock %lu, should be from %lu to %lu", clock, from, to);
		if (i)
			continue;
		clock_gettime(CLOCK_REALTIME, &now);
		wall = uc.args[4] * NSEC + uc.args[5] + clock;
		TEST_ASSERT(llabs((int64_t)(wall / NSEC) - now.tv_sec) <= 2,
			    "It is %lu, not %lu", now.tv_sec, (unsigned long)(wall / NSEC));
	}

	TEST_ASSERT(!(uc.args[3] & PVCLOCK_GUEST_STOPPED), "The guest was not stopped");
	vcpu_ioctl(self->vcpus[0], KVM_KVMCLOCK_CTRL, NULL);
	run_to_sync(self->vcpus[0], &uc);
	TEST_ASSERT(uc.args[3] & PVCLOCK_GUEST_STOPPED, "The guest isn't told of the stop");
	assert_alias(self, variant->private);
}

/* Steal time, of a vCPU that has to share its CPU with one that looks at it. */
static struct {
	uint64_t stop;
	uint64_t loops;
	uint64_t running_preempted;	/* must not be */
	uint64_t seen;
	uint64_t asked;
	uint64_t steal;
} steal;

static void stolen_code(uint64_t gpa)
{
	struct kvm_steal_time *st = (void *)gpa + STEAL_TIME;

	wrmsr(MSR_KVM_STEAL_TIME, (gpa + STEAL_TIME) | KVM_MSR_ENABLED);
	GUEST_SYNC(0);
	while (!READ_ONCE(steal.stop)) {
		if (READ_ONCE(st->preempted))
			steal.running_preempted++;
		WRITE_ONCE(steal.loops, steal.loops + 1);
	}
	GUEST_ASSERT(st->version && !(st->version & 1));
	steal.steal = st->steal;
	GUEST_SYNC(1);
}

static void watch_code(uint64_t gpa)
{
	struct kvm_steal_time *st = (void *)gpa + STEAL_TIME;
	uint8_t old;

	GUEST_SYNC(0);
	while (!READ_ONCE(steal.stop)) {
		old = READ_ONCE(st->preempted);
		if (!(old & KVM_VCPU_PREEMPTED))
			continue;
		WRITE_ONCE(steal.seen, steal.seen + 1);
		if (old & KVM_VCPU_FLUSH_TLB)
			continue;
		asm volatile("lock cmpxchgb %2, %1\n\tjne 1f\n\tlock incq %3\n1:"
			     : "+a" (old), "+m" (st->preempted)
			     : "q" ((uint8_t)(old | KVM_VCPU_FLUSH_TLB)), "m" (steal.asked)
			     : "memory", "cc");
	}
	GUEST_SYNC(1);
}

/* The first one that this process may use: not CPU 0, if that is to be left alone. */
static void pin_to_first_cpu(void)
{
	cpu_set_t cpus;
	int cpu = 0;

	TEST_ASSERT(!sched_getaffinity(0, sizeof(cpus), &cpus), "sched_getaffinity() failed");
	while (!CPU_ISSET(cpu, &cpus))
		cpu++;
	kvm_pin_this_task_to_pcpu(cpu);
}

static void *on_first_cpu(void *vcpu)
{
	struct ucall uc;

	pin_to_first_cpu();
	run_to_sync(vcpu, &uc);
	return NULL;
}

TEST_F_TIMEOUT(pv, steal_time, TIMEOUT)
{
	pthread_t threads[2];
	uint64_t flushed;
	struct ucall uc;
	int i;

	memset(&steal, 0, sizeof(steal));
	sync_global_to_guest(self->vm, steal);
	set_code(self->vcpus[0], stolen_code);
	set_code(self->vcpus[1], watch_code);
	for (i = 0; i < 2; i++)
		run_to_sync(self->vcpus[i], &uc);
	flushed = get_vcpu_stat(self->vcpus[0], "tlb_flush");
	for (i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, on_first_cpu, self->vcpus[i]);
	for (i = 0; i < 200 && steal.asked < 20; i++) {
		usleep(100000);
		sync_global_from_guest(self->vm, steal);
	}
	steal.stop = 1;
	*(uint64_t *)addr_gva2hva(self->vm, (vm_vaddr_t)&steal.stop) = 1;
	for (i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	sync_global_from_guest(self->vm, steal);
	flushed = get_vcpu_stat(self->vcpus[0], "tlb_flush") - flushed;

	pr_info("# preempted: seen %lu times, %lu flushes asked for, %lu done, %lu ns stolen\n",
		steal.seen, steal.asked, flushed, steal.steal);
	TEST_ASSERT_EQ(steal.running_preempted, 0);
	TEST_ASSERT(steal.asked >= 20, "%lu requests only", steal.asked);
	TEST_ASSERT(flushed >= steal.asked, "%lu flushes for %lu requests", flushed, steal.asked);
	TEST_ASSERT(steal.steal, "Nothing was stolen");
	assert_alias(self, variant->private);
}

/* Async page faults: of a page in ordinary memory, which userspace holds back. */
#define SLOW_GPA	(PRIVATE_GPA + SIZE)
#define SLOW_VALUE	0x510e510e510e510eull
#define APF_EVERYBODY	0xffffffffu

static struct {
	uint64_t not_present;
	uint64_t ready;
	uint32_t token;
	uint32_t ready_token;
} apf;

static struct kvm_vcpu_pv_apf_data *apf_data;

static void page_fault_handler(struct ex_regs *regs)
{
	uint64_t cr2;

	GUEST_ASSERT_EQ(apf_data->flags, KVM_PV_REASON_PAGE_NOT_PRESENT);
	apf_data->flags = 0;
	asm volatile("mov %%cr2, %0" : "=r" (cr2));
	apf.token = cr2;
	apf.not_present++;
}

static void apf_ready_handler(struct ex_regs *regs)
{
	/* Enabling it wakes up everybody. */
	if (apf_data->token != APF_EVERYBODY) {
		apf.ready_token = apf_data->token;
		apf.ready++;
	}
	apf_data->token = 0;
	wrmsr(MSR_KVM_ASYNC_PF_ACK, 1);
	x2apic_write_reg(APIC_EOI, 0);
}

static void apf_code(uint64_t gpa, uint64_t slow_gpa)
{
	uint64_t value;

	apf_data = (void *)gpa + APF;
	x2apic_enable();
	wrmsr(MSR_KVM_ASYNC_PF_INT, APF_VECTOR);
	wrmsr(MSR_KVM_ASYNC_PF_EN, (gpa + APF) | KVM_ASYNC_PF_ENABLED |
	      KVM_ASYNC_PF_SEND_ALWAYS | KVM_ASYNC_PF_DELIVERY_AS_INT);
	asm volatile("sti");
	value = READ_ONCE(*(uint64_t *)slow_gpa);
	while (!READ_ONCE(apf.ready))
		cpu_relax();
	asm volatile("cli");
	GUEST_SYNC_ARGS(0, value, apf.not_present, apf.token, apf.ready_token);
}

static void *fill_slowly(void *arg)
{
	static uint64_t data[PAGE_SIZE / sizeof(uint64_t)] __aligned(PAGE_SIZE) = { SLOW_VALUE };
	int uffd = *(int *)arg;
	struct uffd_msg msg;
	struct uffdio_copy copy = {
		.src = (uintptr_t)data,
		.len = PAGE_SIZE,
	};

	TEST_ASSERT(read(uffd, &msg, sizeof(msg)) == sizeof(msg), "No message: %s",
		    strerror(errno));
	usleep(300000);
	copy.dst = msg.arg.pagefault.address & PAGE_MASK;
	TEST_ASSERT(!ioctl(uffd, UFFDIO_COPY, &copy), "UFFDIO_COPY failed: %s", strerror(errno));
	return NULL;
}

TEST_F(pv, async_page_faults)
{
	pthread_t thread;
	struct ucall uc;
	void *slow;
	int uffd;

	slow = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TEST_ASSERT(slow != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	uffd = uffd_open(slow, PAGE_SIZE);
	if (uffd < 0)
		SKIP(return, "There is no userfaultfd");
	vm_set_user_memory_region(self->vm, PRIVATE_SLOT + 1, 0, SLOW_GPA, PAGE_SIZE, slow);
	virt_map(self->vm, SLOW_GPA, SLOW_GPA, 1);
	memset(&apf, 0, sizeof(apf));
	sync_global_to_guest(self->vm, apf);
	vm_install_exception_handler(self->vm, PF_VECTOR, page_fault_handler);
	vm_install_exception_handler(self->vm, APF_VECTOR, apf_ready_handler);

	set_code(self->vcpus[0], apf_code);
	vcpu_args_set(self->vcpus[0], 2, PV_GPA, SLOW_GPA);
	pthread_create(&thread, NULL, fill_slowly, &uffd);
	run_to_sync(self->vcpus[0], &uc);
	pthread_join(thread, NULL);
	TEST_ASSERT_EQ(uc.args[2], SLOW_VALUE);
	TEST_ASSERT(uc.args[3], "The fault was not asynchronous");
	TEST_ASSERT(uc.args[4] == uc.args[5] && uc.args[4], "Token %#lx, then %#lx",
		    uc.args[4], uc.args[5]);
	assert_alias(self, variant->private);
	close(uffd);
}

/* The task priority that userspace has KVM keep in guest memory. */
static void vapic_code(uint64_t gpa)
{
	uint32_t *tpr = (void *)gpa + VAPIC, seen;

	x2apic_enable();
	x2apic_write_reg(APIC_TASKPRI, 0x20);
	GUEST_SYNC(0);
	seen = READ_ONCE(*tpr);
	WRITE_ONCE(*tpr, 0x40);
	GUEST_SYNC(1);
	GUEST_SYNC_ARGS(2, seen, x2apic_read_reg(APIC_TASKPRI), 0, 0);
}

TEST_F(pv, vapic)
{
	struct kvm_vapic_addr addr = { .vapic_addr = PV_GPA + VAPIC };
	struct kvm_vcpu_events events;
	struct ucall uc;

	set_code(self->vcpus[0], vapic_code);
	run_to_sync(self->vcpus[0], &uc);
	vcpu_ioctl(self->vcpus[0], KVM_SET_VAPIC_ADDR, &addr);
	/* Has KVM look at the APIC, which is when it writes there. */
	vcpu_events_get(self->vcpus[0], &events);
	vcpu_events_set(self->vcpus[0], &events);
	run_to_sync(self->vcpus[0], &uc);
	run_to_sync(self->vcpus[0], &uc);
	TEST_ASSERT_EQ(uc.args[2] & 0xff, 0x20);
	TEST_ASSERT_EQ(uc.args[3], 0x40);
	assert_alias(self, variant->private);
}

/* What a hypercall returns in memory. */
static void pairing_code(uint64_t gpa)
{
	struct kvm_clock_pairing *pairing = (void *)gpa + PAIRING;
	uint64_t r = kvm_hypercall(KVM_HC_CLOCK_PAIRING, gpa + PAIRING,
				   KVM_CLOCK_PAIRING_WALLCLOCK, 0, 0);

	GUEST_SYNC_ARGS(0, r, pairing->sec, pairing->tsc, 0);
}

TEST_F(pv, clock_pairing)
{
	struct timespec now;
	struct ucall uc;

	set_code(self->vcpus[0], pairing_code);
	run_to_sync(self->vcpus[0], &uc);
	assert_alias(self, variant->private);
	if ((int64_t)uc.args[2] == -KVM_EOPNOTSUPP)
		SKIP(return, "The host's clock is not the TSC");
	TEST_ASSERT_EQ(uc.args[2], 0);
	clock_gettime(CLOCK_REALTIME, &now);
	TEST_ASSERT(labs((long)(uc.args[3] - now.tv_sec)) <= 2, "It is %lu, not %lu",
		    now.tv_sec, uc.args[3]);
}

/* Xen's pages stay mapped by KVM: they can't be in such a slot, in either half. */
TEST_F(pv, xen)
{
	const struct {
		const char *name;
		uint16_t type;
	} attrs[] = {
		{ "vcpu_info", KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO },
		{ "vcpu_time_info", KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO },
		{ "runstate", KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR },
	};
	struct kvm_xen_hvm_config config = { .msr = 0x40000200 };
	struct kvm_xen_hvm_attr shinfo = {
		.type = KVM_XEN_ATTR_TYPE_SHARED_INFO,
		.u.shared_info.gfn = PV_GPA / PAGE_SIZE,
	};
	struct ucall uc;
	uint8_t *page;
	int i, r;

	if (!kvm_has_cap(KVM_CAP_XEN_HVM))
		SKIP(return, "There is no Xen");

	page = malloc(PAGE_SIZE);
	memcpy(page, self->hva + UNIT, PAGE_SIZE);
	vm_ioctl(self->vm, KVM_XEN_HVM_CONFIG, &config);
	r = __vm_ioctl(self->vm, KVM_XEN_HVM_SET_ATTR, &shinfo);
	TEST_ASSERT(r == -1 && errno == EFAULT, "shared_info: %d (%s)", r, strerror(errno));
	for (i = 0; i < ARRAY_SIZE(attrs); i++) {
		struct kvm_xen_vcpu_attr attr = {
			.type = attrs[i].type,
			.u.gpa = PV_GPA + i * 256,
		};

		r = __vcpu_ioctl(self->vcpus[0], KVM_XEN_VCPU_SET_ATTR, &attr);
		TEST_ASSERT(r == -1 && errno == EFAULT, "%s: %d (%s)", attrs[i].name, r,
			    strerror(errno));
	}

	/* Nor does KVM write there later. */
	set_code(self->vcpus[0], watch_code);
	run_to_sync(self->vcpus[0], &uc);
	TEST_ASSERT(!memcmp(page, self->hva + UNIT, PAGE_SIZE), "The shared half was written");
	free(page);
}

/* Of Hyper-V's pages KVM copies to and from all but one, which is refused. */
static void hyperv_code(uint64_t gpa)
{
	uint8_t vector;

	wrmsr(HV_X64_MSR_GUEST_OS_ID, HYPERV_LINUX_OS_ID);
	vector = wrmsr_safe(HV_X64_MSR_VP_ASSIST_PAGE, gpa | HV_X64_MSR_VP_ASSIST_PAGE_ENABLE);
	wrmsr(HV_X64_MSR_HYPERCALL, gpa | 1);
	GUEST_SYNC_ARGS(0, vector, *(uint64_t *)gpa, 0, 0);
}

TEST_F(pv, hyperv)
{
	struct ucall uc;

	if (!kvm_has_cap(KVM_CAP_HYPERV))
		SKIP(return, "There is no Hyper-V");

	vcpu_set_hv_cpuid(self->vcpus[0]);
	set_code(self->vcpus[0], hyperv_code);
	run_to_sync(self->vcpus[0], &uc);
	TEST_ASSERT_EQ(uc.args[2], variant->private ? GP_VECTOR : 0);
	TEST_ASSERT(uc.args[3] && uc.args[3] != 0xa5a5a5a5a5a5a5a5ull,
		    "The hypercall page begins with %#lx", uc.args[3]);
	assert_alias(self, variant->private);
}

/* Bad input: all of it in a unit that is converted all the time. */
FIXTURE(storm) {
	pv_data pv;
	uint64_t stop;
	uint64_t conversions;
	uint64_t exits;
	bool alias;
};

/* Whether there is something behind the shared half. */
FIXTURE_VARIANT(storm) {
	bool holes;
};

FIXTURE_VARIANT_ADD(storm, shared) {
};

FIXTURE_VARIANT_ADD(storm, holes) {
	.holes = true,
};

#define storm_data FIXTURE_DATA(storm)

FIXTURE_SETUP(storm)
{
	create(&self->pv, variant->holes ? map_no_shared_half(SIZE) : map_shared_half(SIZE));
	self->alias = !variant->holes;
	memfd_to_private(self->pv.fd, 0, UNIT);
	memfd_to_private(self->pv.fd, 2 * UNIT, UNIT);
}

FIXTURE_TEARDOWN(storm)
{
	kvm_vm_free(self->pv.vm);
	close(self->pv.fd);
}

static uint64_t storm_ipis, storm_stop;

static void storm_ipi_handler(struct ex_regs *regs)
{
	storm_ipis++;
	x2apic_write_reg(APIC_EOI, 0);
}

static void storm_code(uint64_t gpa)
{
	uint64_t *before = (uint64_t *)(gpa - 8), *after = (uint64_t *)(gpa + (gpa - PRIVATE_GPA));

	WRITE_ONCE(*before, NEIGHBOUR);
	WRITE_ONCE(*after, NEIGHBOUR);
	x2apic_enable();
	wrmsr(MSR_KVM_SYSTEM_TIME_NEW, (gpa + CLOCK) | KVM_MSR_ENABLED);
	wrmsr(MSR_KVM_STEAL_TIME, (gpa + STEAL_TIME) | KVM_MSR_ENABLED);
	wrmsr(MSR_KVM_PV_EOI_EN, (gpa + EOI) | KVM_MSR_ENABLED);
	apf_data = (void *)gpa + APF;
	wrmsr(MSR_KVM_ASYNC_PF_INT, APF_VECTOR);
	wrmsr(MSR_KVM_ASYNC_PF_EN, (gpa + APF) | KVM_ASYNC_PF_ENABLED |
	      KVM_ASYNC_PF_SEND_ALWAYS | KVM_ASYNC_PF_DELIVERY_AS_INT);
	asm volatile("sti");
	while (!READ_ONCE(storm_stop)) {
		x2apic_write_reg(APIC_SELF_IPI, IPI_VECTOR);
		wrmsr(MSR_KVM_WALL_CLOCK_NEW, gpa + WALL_CLOCK);
		wrmsr(MSR_KVM_SYSTEM_TIME_NEW, (gpa + CLOCK) | KVM_MSR_ENABLED);
		GUEST_ASSERT_EQ(READ_ONCE(*before), NEIGHBOUR);
		GUEST_ASSERT_EQ(READ_ONCE(*after), NEIGHBOUR);
	}
	asm volatile("cli");
	GUEST_SYNC(0);
}

/* One more on the same CPU, to preempt the other. */
static void spin_code(uint64_t gpa)
{
	while (!READ_ONCE(storm_stop))
		cpu_relax();
	GUEST_SYNC(0);
}

struct storm_thread {
	storm_data *storm;
	struct kvm_vcpu *vcpu;
};

static void *storm_vcpu(void *arg)
{
	struct storm_thread *thread = arg;
	struct kvm_run *run = thread->vcpu->run;
	struct ucall uc;

	pin_to_first_cpu();
	while (_vcpu_run(thread->vcpu)) {
		TEST_ASSERT(errno == EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
			    align_down(run->memory_fault.gpa, UNIT) == PV_GPA,
			    "KVM_RUN failed: %s, exit %s, gpa %#llx", strerror(errno),
			    exit_reason_str(run->exit_reason), run->memory_fault.gpa);
		thread->storm->exits++;
		memfd_to_private(thread->storm->pv.fd, UNIT, UNIT);
	}
	TEST_ASSERT_KVM_EXIT_REASON(thread->vcpu, KVM_EXIT_IO);
	if (get_ucall(thread->vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	return NULL;
}

/* While the page is private KVM has no business there, save for who was just about to write. */
static void assert_alias_stays(storm_data *self)
{
	void *alias = self->pv.hva + UNIT;
	uint8_t before[PAGE_SIZE];
	int tries;

	for (tries = 0; tries < 3; tries++) {
		memcpy(before, alias, PAGE_SIZE);
		usleep(2000);
		if (!memcmp(before, alias, PAGE_SIZE))
			return;
	}
	TEST_FAIL("KVM goes on to write to the shared half of a private page");
}

static void *storm_convert(void *arg)
{
	storm_data *self = arg;

	while (!READ_ONCE(self->stop)) {
		memfd_to_private(self->pv.fd, UNIT, UNIT);
		if (self->alias && self->conversions % 16 == 0)
			assert_alias_stays(self);
		if (self->conversions++ % 3)
			sched_yield();
		memfd_to_shared(self->pv.fd, UNIT, UNIT);
	}
	return NULL;
}

TEST_F_TIMEOUT(storm, converted, TIMEOUT)
{
	struct storm_thread vcpus[2];
	pthread_t threads[2], converter;
	int i;

	storm_stop = 0;
	storm_ipis = 0;
	sync_global_to_guest(self->pv.vm, storm_stop);
	sync_global_to_guest(self->pv.vm, storm_ipis);
	vm_install_exception_handler(self->pv.vm, IPI_VECTOR, storm_ipi_handler);
	vm_install_exception_handler(self->pv.vm, APF_VECTOR, apf_ready_handler);
	for (i = 0; i < 2; i++) {
		vcpus[i].storm = self;
		vcpus[i].vcpu = self->pv.vcpus[i];
		set_code(vcpus[i].vcpu, i ? spin_code : storm_code);
		pthread_create(&threads[i], NULL, storm_vcpu, &vcpus[i]);
	}
	pthread_create(&converter, NULL, storm_convert, self);
	sleep(3);
	*(uint64_t *)addr_gva2hva(self->pv.vm, (vm_vaddr_t)&storm_stop) = 1;
	for (i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	WRITE_ONCE(self->stop, 1);
	pthread_join(converter, NULL);
	sync_global_from_guest(self->pv.vm, storm_ipis);
	pr_info("# %lu conversions, %lu exits, %lu interrupts\n", self->conversions, self->exits,
		storm_ipis);
	TEST_ASSERT(self->conversions > 10 && storm_ipis > 10, "Nothing has happened");
	TEST_ASSERT(!variant->holes || self->exits, "There were no holes");
}

int main(int argc, char *argv[])
{
	require_private_mem();
	return test_harness_run(argc, argv);
}
