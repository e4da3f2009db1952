// SPDX-License-Identifier: GPL-2.0
#include <asm/kvm_para.h>
#include <errno.h>
#include <linux/kvm_para.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "vmm.h"

#define MAX_CPUID	256
#define MAX_FAULTS	16	/* at one address in a row */

/* --- the VM --- */

static int cap(int fd, int nr)
{
	int ret = ioctl(fd, KVM_CHECK_EXTENSION, nr);

	return ret < 0 ? 0 : ret;
}

static int create_vm(struct vm *vm)
{
	const int want = vm->ram->config.hugetlb ? 2 : 1;

	vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm < 0)
		return failed("/dev/kvm");
	if (ioctl(vm->kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return failed("KVM_GET_API_VERSION");

	vm->type = ram_is_private(vm->ram) ? KVM_X86_SW_PROTECTED_VM : KVM_X86_DEFAULT_VM;
	vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, vm->type);
	if (vm->fd < 0)
		return failed("KVM_CREATE_VM of type %lu", vm->type);
	vm->stats = ioctl(vm->fd, KVM_GET_STATS_FD, NULL);
	if (vm->stats < 0)
		return failed("KVM_GET_STATS_FD");

	printf("  VM type %lu, KVM_CAP_PRIVATE_MEM: %#x of /dev/kvm, %#x of this VM\n",
	       vm->type, cap(vm->kvm, KVM_CAP_PRIVATE_MEM), cap(vm->fd, KVM_CAP_PRIVATE_MEM));
	switch (vm->ram->config.kind) {
	case RAM_ORDINARY:
		return 0;
	case RAM_GUEST_MEMFD:
		return ram_set_guest_memfd(vm->ram, vm->fd);
	default:
		if (cap(vm->fd, KVM_CAP_PRIVATE_MEM) & want)
			return 0;
		return refused("this kernel's KVM can't have private memory of this kind");
	}
}

/* The guest asks for conversions by KVM_HC_MAP_GPA_RANGE: send it here. */
static int want_hypercalls(struct vm *vm)
{
	struct kvm_enable_cap want = {
		.cap = KVM_CAP_EXIT_HYPERCALL,
		.args[0] = 1 << KVM_HC_MAP_GPA_RANGE,
	};

	if (vm->config.conversions && ioctl(vm->fd, KVM_ENABLE_CAP, &want))
		return failed("KVM_ENABLE_CAP(KVM_CAP_EXIT_HYPERCALL)");
	return 0;
}

/* Before the vCPUs: they get their local APICs so. */
static int create_irqchip(struct vm *vm)
{
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };

	if (!vm->config.irqchip)
		return 0;
	if (ioctl(vm->fd, KVM_SET_TSS_ADDR, 0xfffbd000UL) ||
	    ioctl(vm->fd, KVM_CREATE_IRQCHIP, 0) || ioctl(vm->fd, KVM_CREATE_PIT2, &pit))
		return failed("KVM_SET_TSS_ADDR, KVM_CREATE_IRQCHIP, KVM_CREATE_PIT2");
	vm->dev.vm = vm->fd;
	return 0;
}

int vm_create(struct vm *vm, struct ram *ram, const struct vm_config *config)
{
	unsigned int i;

	*vm = (struct vm){ .config = *config, .kvm = -1, .fd = -1, .stats = -1, .ram = ram };
	devices_init(&vm->dev);
	pthread_mutex_init(&vm->lock, NULL);
	pthread_cond_init(&vm->changed, NULL);
	vm->doorbell = vm->signals = -1;
	for (i = 0; i < config->nr_vcpus; i++)
		vm->vcpu[i] = (struct vcpu){ .vm = vm, .index = i, .fd = -1, .stats = -1 };
	return create_vm(vm) || want_hypercalls(vm) || create_irqchip(vm) ? -1 : 0;
}

int vm_create_other(const struct vm *vm)
{
	return ioctl(vm->kvm, KVM_CREATE_VM, vm->type);
}

long vm_tsc_khz(const struct vm *vm)
{
	long khz = ioctl(vm->fd, KVM_GET_TSC_KHZ, 0);

	return khz > 0 ? khz : 0;
}

/* --- what it consists of --- */

static int set_attributes(struct vm *vm, __u64 gpa, __u64 len, __u64 attributes)
{
	struct kvm_memory_attributes attrs = {
		.address = gpa, .size = len, .attributes = attributes,
	};

	return ioctl(vm->fd, KVM_SET_MEMORY_ATTRIBUTES, &attrs) ?
	       failed("KVM_SET_MEMORY_ATTRIBUTES %#llx at %#llx", attributes, gpa) : 0;
}

/* guest_memfd keeps it in the VM: all is private but for what was filled in. */
static int set_all_attributes(struct vm *vm)
{
	const struct ram *ram = vm->ram;
	struct kvm_userspace_memory_region2 slot;
	__u64 gpa, end, start;
	__u32 i;

	for (i = 0; ram_slot(ram, i, &slot); i++) {
		end = slot.guest_phys_addr + slot.memory_size;
		if (set_attributes(vm, slot.guest_phys_addr, slot.memory_size,
				   KVM_MEMORY_ATTRIBUTE_PRIVATE))
			return -1;
		for (gpa = start = slot.guest_phys_addr; gpa <= end; gpa += PAGE_SIZE) {
			if (gpa < end && ram->shared[ram_offset(ram, gpa, PAGE_SIZE) / PAGE_SIZE])
				continue;
			if (gpa > start && set_attributes(vm, start, gpa - start, 0))
				return -1;
			start = gpa + PAGE_SIZE;
		}
	}
	return 0;
}

static int add_ram(struct vm *vm)
{
	struct kvm_userspace_memory_region2 slot;
	__u32 i;

	for (i = 0; ram_slot(vm->ram, i, &slot); i++) {
		slot.slot = i;
		if (ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION2, &slot))
			return failed("KVM_SET_USER_MEMORY_REGION2, slot %u, flags %#x", i,
				      slot.flags);
	}
	return vm->ram->config.kind == RAM_GUEST_MEMFD ? set_all_attributes(vm) : 0;
}

/* One thread a core, one core a package. */
static void set_topology(struct kvm_cpuid_entry2 *e, unsigned int index)
{
	switch (e->function) {
	case 1:
		e->ebx = (e->ebx & 0xffff) | 1 << 16 | index << 24;
		e->edx &= ~(1U << 28);			/* HTT */
		break;
	case 4:
		e->eax &= 0x3fff;			/* nothing is shared */
		break;
	case 0xb:
	case 0x1f:
		e->eax = 0;
		e->ebx = e->ecx < 0x100 ? 0 : 1;
		e->edx = index;
		break;
	case 0x80000008:
		e->ecx = 0;
		break;
	case 0x8000001d:
		e->eax &= 0x3fff;
		break;
	case 0x8000001e:
		e->eax = index;
		e->ebx = index & 0xff;
		e->ecx = 0;
		break;
	}
}

/*
 * Of what KVM offers a guest: paravirtual features where asked for, as they
 * are about memory that guest and KVM share; no nested guests, which are
 * refused in private memory.
 */
static void set_features(const struct vm *vm, struct kvm_cpuid_entry2 *e)
{
	switch (e->function) {
	case 1:
		e->ecx |= 1U << 31;			/* there is a hypervisor */
		if (vm->config.irqchip && cap(vm->kvm, KVM_CAP_TSC_DEADLINE_TIMER))
			e->ecx |= 1U << 24;
		e->ecx &= ~(1U << 5);			/* VMX */
		break;
	case 0x80000001:
		e->ecx &= ~(1U << 2);			/* SVM */
		break;
	case KVM_CPUID_FEATURES:
		if (!vm->config.all_features)
			e->eax = e->edx = 0;
		if (vm->config.conversions)
			e->eax |= 1U << KVM_FEATURE_HC_MAP_GPA_RANGE;
		break;
	}
}

static int set_cpuid(struct vcpu *vcpu)
{
	struct vm *vm = vcpu->vm;
	struct kvm_cpuid2 *cpuid;
	__u32 i;
	int ret;

	cpuid = calloc(1, sizeof(*cpuid) + MAX_CPUID * sizeof(cpuid->entries[0]));
	if (!cpuid)
		return failed("calloc");
	cpuid->nent = MAX_CPUID;
	ret = ioctl(vm->kvm, KVM_GET_SUPPORTED_CPUID, cpuid);
	for (i = 0; !ret && i < cpuid->nent; i++) {
		set_topology(&cpuid->entries[i], vcpu->index);
		set_features(vm, &cpuid->entries[i]);
	}
	if (!ret)
		ret = ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid);
	free(cpuid);
	return ret ? failed("KVM_GET_SUPPORTED_CPUID, KVM_SET_CPUID2") : 0;
}

/* What firmware leaves behind: all memory is write-back. */
static int set_msrs(struct vcpu *vcpu)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} msrs = {
		.head.nmsrs = 1,
		.entry = { .index = 0x2ff, .data = 0x806 },	/* MTRRdefType */
	};

	return ioctl(vcpu->fd, KVM_SET_MSRS, &msrs) == 1 ? 0 : failed("KVM_SET_MSRS");
}

/*
 * Flat 32-bit protected mode with paging off, or 64-bit mode with the page
 * tables and selectors of the boot protocol.
 */
static int set_registers(struct vcpu *vcpu, const struct entry *entry)
{
	const struct kvm_segment code = {
		.limit = ~0U, .selector = entry->long_mode ? 0x10 : 0x08, .type = 0xb,
		.present = 1, .db = !entry->long_mode, .l = entry->long_mode, .s = 1, .g = 1,
	};
	struct kvm_segment data = code;
	struct kvm_sregs sregs;
	struct kvm_regs regs = {
		.rip = entry->rip,
		.rsi = entry->rsi,
		.rflags = 2,
	};

	data.selector += 8;
	data.type = 0x3;
	data.l = 0;
	data.db = 1;
	if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs))
		return failed("KVM_GET_SREGS");
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr0 = 0x11;		/* PE, ET */
	if (entry->long_mode) {
		sregs.gdt.base = entry->gdt;
		sregs.gdt.limit = entry->gdt_limit;
		sregs.idt.limit = 0;
		sregs.cr0 |= 0x80000000;	/* PG */
		sregs.cr3 = entry->cr3;
		sregs.cr4 |= 0x20;		/* PAE */
		sregs.efer |= 0x500;		/* LME, LMA */
	}
	if (ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) ||
	    ioctl(vcpu->fd, KVM_SET_REGS, &regs))
		return failed("KVM_SET_SREGS, KVM_SET_REGS");
	return 0;
}

static int create_vcpu(struct vm *vm, struct vcpu *vcpu)
{
	vcpu->fd = ioctl(vm->fd, KVM_CREATE_VCPU, vcpu->index);
	if (vcpu->fd < 0)
		return failed("KVM_CREATE_VCPU %u", vcpu->index);
	vcpu->stats = ioctl(vcpu->fd, KVM_GET_STATS_FD, NULL);
	if (vcpu->stats < 0)
		return failed("KVM_GET_STATS_FD of vCPU %u", vcpu->index);
	vcpu->run = mmap(NULL, vm->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED) {
		vcpu->run = NULL;
		return failed("mmap of struct kvm_run");
	}
	return set_cpuid(vcpu) || set_msrs(vcpu) ? -1 : 0;
}

int vm_set_up(struct vm *vm, const struct entry *entry)
{
	int size = ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	unsigned int i;

	if (size < 0)
		return failed("KVM_GET_VCPU_MMAP_SIZE");
	vm->run_size = size;
	if (add_ram(vm))
		return -1;
	for (i = 0; i < vm->config.nr_vcpus; i++)
		if (create_vcpu(vm, &vm->vcpu[i]))
			return -1;
	/* The others wait for the first one to start them. */
	return set_registers(&vm->vcpu[0], entry);
}

void vm_destroy(struct vm *vm)
{
	unsigned int i;

	vm_stop(vm);
	for (i = 0; i < vm->config.nr_vcpus; i++) {
		if (vm->vcpu[i].run)
			munmap(vm->vcpu[i].run, vm->run_size);
		if (vm->vcpu[i].stats >= 0)
			close(vm->vcpu[i].stats);
		if (vm->vcpu[i].fd >= 0)
			close(vm->vcpu[i].fd);
	}
	if (vm->stats >= 0)
		close(vm->stats);
	if (vm->fd >= 0)
		close(vm->fd);
	if (vm->kvm >= 0)
		close(vm->kvm);
	if (vm->doorbell >= 0)
		close(vm->doorbell);
	if (vm->signals >= 0)
		close(vm->signals);
	devices_destroy(&vm->dev);
}

/* --- exits --- */

static enum vm_event handle_io(struct vcpu *vcpu)
{
	struct devices *dev = &vcpu->vm->dev;
	struct kvm_run *run = vcpu->run;
	__u8 *data = (__u8 *)run + run->io.data_offset;
	enum vm_event event = VM_CONTINUE;
	__u32 i;

	for (i = 0; i < run->io.count; i++, data += run->io.size) {
		if (run->io.direction == KVM_EXIT_IO_IN)
			devices_in(dev, run->io.port, data, run->io.size);
		else
			event = devices_out(dev, run->io.port, data, run->io.size) ?: event;
	}
	return event;
}

static enum vm_event handle_hypercall(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	struct ram *ram = vcpu->vm->ram;
	__u64 gpa = run->hypercall.args[0], npages = run->hypercall.args[1];
	__u64 attrs = run->hypercall.args[2];
	int ret = -KVM_EINVAL;

	__atomic_add_fetch(&vcpu->vm->hypercalls, 1, __ATOMIC_RELAXED);
	if (run->hypercall.nr != KVM_HC_MAP_GPA_RANGE)
		ret = -KVM_ENOSYS;
	else if (npages <= ram->config.size / PAGE_SIZE && attrs & KVM_MAP_GPA_RANGE_ENCRYPTED)
		ret = ram_to_private(ram, gpa, npages * PAGE_SIZE);
	else if (npages <= ram->config.size / PAGE_SIZE)
		ret = ram_to_shared(ram, gpa, npages * PAGE_SIZE);
	run->hypercall.ret = ret;
	return VM_CONTINUE;
}

/*
 * KVM_RUN failed with EFAULT or EHWPOISON and this exit reason. On lazy RAM
 * EFAULT means: nothing there yet. Never answer it by punching a hole.
 */
static enum vm_event handle_memory_fault(struct vcpu *vcpu, int err)
{
	__u64 gpa = vcpu->run->memory_fault.gpa;
	int ret = -err;

	if (gpa == vcpu->last_fault)
		vcpu->fault_repeats++;
	else
		vcpu->fault_repeats = 0;
	vcpu->last_fault = gpa;

	if (err == EFAULT && vcpu->fault_repeats < MAX_FAULTS)
		ret = ram_populate(vcpu->vm->ram, gpa);
	if (!ret)
		return VM_CONTINUE;
	refused("vCPU %u: memory fault at %#llx, size %#llx, flags %#llx; KVM_RUN said %s, allocating said %s",
		vcpu->index, gpa, vcpu->run->memory_fault.size, vcpu->run->memory_fault.flags,
		strerror(err), strerror(-ret));
	return VM_FAILED;
}

static enum vm_event handle_run_error(struct vcpu *vcpu, int err)
{
	vcpu->errors++;
	switch (err) {
	case EINTR:
	case EAGAIN:
		return VM_CONTINUE;
	case EFAULT:
	case EHWPOISON:
		if (vcpu->run->exit_reason == KVM_EXIT_MEMORY_FAULT)
			return handle_memory_fault(vcpu, err);
		break;
	}
	refused("vCPU %u: KVM_RUN: %s, exit reason %u (%s)", vcpu->index, strerror(err),
		vcpu->run->exit_reason, exit_name(vcpu->run->exit_reason));
	return VM_FAILED;
}

/* Nothing is there: reads give ones, writes are lost. As on a PC. */
static enum vm_event handle_mmio(struct vcpu *vcpu)
{
	if (!vcpu->run->mmio.is_write)
		memset(vcpu->run->mmio.data, 0xff, sizeof(vcpu->run->mmio.data));
	return VM_CONTINUE;
}

static enum vm_event handle_exit(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	if (run->exit_reason < MAX_EXIT)
		vcpu->exits[run->exit_reason]++;
	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		return handle_io(vcpu);
	case KVM_EXIT_MMIO:
		return handle_mmio(vcpu);
	case KVM_EXIT_HYPERCALL:
		return handle_hypercall(vcpu);
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		return VM_CONTINUE;
	case KVM_EXIT_SHUTDOWN:
		refused("vCPU %u: the guest shut down (triple fault)", vcpu->index);
		break;
	case KVM_EXIT_FAIL_ENTRY:
		refused("vCPU %u: the CPU refused the guest, reason %#llx", vcpu->index,
			run->fail_entry.hardware_entry_failure_reason);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		refused("vCPU %u: KVM gave up, internal error %u%s", vcpu->index,
			run->internal.suberror,
			run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION ?
			" (an instruction it can't emulate)" : "");
		break;
	case KVM_EXIT_SYSTEM_EVENT:
		refused("vCPU %u: system event %u", vcpu->index, run->system_event.type);
		break;
	default:
		refused("vCPU %u: exit %u (%s), not asked for", vcpu->index,
			run->exit_reason, exit_name(run->exit_reason));
	}
	return VM_FAILED;
}

/* --- threads --- */

/* Tell vm_wait(), and wait until it lets the guest go on. False: it does not. */
static bool post(struct vcpu *vcpu, enum vm_event event)
{
	struct vm *vm = vcpu->vm;
	__u64 one = 1;
	bool stop;

	pthread_mutex_lock(&vm->lock);
	while (vm->event && !vm->stop)
		pthread_cond_wait(&vm->changed, &vm->lock);
	if (!vm->stop) {
		vm->event = event;
		vm->step = vm->dev.step;
		vm->source = vcpu;
		if (write(vm->doorbell, &one, sizeof(one)) < 0)
			abort();
		while (vm->event && !vm->stop)
			pthread_cond_wait(&vm->changed, &vm->lock);
	}
	stop = vm->stop;
	pthread_mutex_unlock(&vm->lock);
	return !stop;
}

static void *vcpu_thread(void *arg)
{
	struct vcpu *vcpu = arg;
	enum vm_event event;

	/* A signal before KVM_RUN is not lost: immediate_exit is set before it. */
	while (!__atomic_load_n(&vcpu->vm->stop, __ATOMIC_ACQUIRE)) {
		int ret = ioctl(vcpu->fd, KVM_RUN, 0);

		event = ret < 0 ? handle_run_error(vcpu, errno) : handle_exit(vcpu);
		if (event != VM_CONTINUE && !post(vcpu, event))
			break;
	}
	return NULL;
}

static void kicked(int sig)
{
	(void)sig;
}

static sigset_t end_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	return set;
}

void vm_block_signals(void)
{
	sigset_t set = end_signals();

	pthread_sigmask(SIG_BLOCK, &set, NULL);
}

void vm_keep(void)
{
	sigset_t set = end_signals();
	char c;

	printf("  process %d keeps the VM until its standard input ends\n", getpid());
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	while (read(STDIN_FILENO, &c, 1) > 0)
		;
	pthread_sigmask(SIG_BLOCK, &set, NULL);
}

int vm_start(struct vm *vm)
{
	struct sigaction sa = { .sa_handler = kicked };
	sigset_t set = end_signals();
	unsigned int i;

	sigaction(SIGUSR1, &sa, NULL);
	vm->doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	vm->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (vm->doorbell < 0 || vm->signals < 0)
		return failed("eventfd, signalfd");

	vm->input = true;
	vm->started = now();
	for (i = 0; i < vm->config.nr_vcpus; i++, vm->nr_threads++) {
		errno = pthread_create(&vm->vcpu[i].thread, NULL, vcpu_thread, &vm->vcpu[i]);
		if (errno)
			return failed("pthread_create");
	}
	return 0;
}

void vm_stop(struct vm *vm)
{
	unsigned int i;

	pthread_mutex_lock(&vm->lock);
	__atomic_store_n(&vm->stop, true, __ATOMIC_RELEASE);
	pthread_cond_broadcast(&vm->changed);
	pthread_mutex_unlock(&vm->lock);
	for (i = 0; i < vm->nr_threads; i++) {
		vm->vcpu[i].run->immediate_exit = 1;
		pthread_kill(vm->vcpu[i].thread, SIGUSR1);
	}
	for (i = 0; i < vm->nr_threads; i++)
		pthread_join(vm->vcpu[i].thread, NULL);
	vm->nr_threads = 0;
}

/* --- waiting --- */

static void resume(struct vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	vm->event = VM_CONTINUE;
	pthread_cond_broadcast(&vm->changed);
	pthread_mutex_unlock(&vm->lock);
}

static enum vm_event take_signal(struct vm *vm)
{
	struct signalfd_siginfo si;

	if (read(vm->signals, &si, sizeof(si)) != sizeof(si))
		return VM_CONTINUE;
	refused("stopped by %s", strsignal(si.ssi_signo));
	return VM_STOPPED;
}

static void take_input(struct vm *vm)
{
	char buf[256];
	ssize_t n = read(STDIN_FILENO, buf, sizeof(buf));

	if (n > 0)
		devices_type(&vm->dev, buf, n);
	else
		vm->input = false;
}

enum vm_event vm_wait(struct vm *vm, double deadline)
{
	if (vm->event == VM_STEP)
		resume(vm);
	for (;;) {
		struct pollfd fds[] = {
			{ .fd = vm->signals, .events = POLLIN },
			{ .fd = vm->doorbell, .events = POLLIN },
			{ .fd = vm->input ? STDIN_FILENO : -1, .events = POLLIN },
		};
		double left = deadline - now();
		__u64 rings;

		if (left <= 0) {
			refused("the watchdog stops the guest");
			return VM_STOPPED;
		}
		if (poll(fds, ARRAY_SIZE(fds), left * 1000 + 1) < 0 && errno != EINTR) {
			failed("poll");
			return VM_FAILED;
		}
		if (fds[0].revents && take_signal(vm))
			return VM_STOPPED;
		if (fds[1].revents && read(vm->doorbell, &rings, sizeof(rings)) > 0)
			return vm->event;
		if (fds[2].revents)
			take_input(vm);
	}
}
