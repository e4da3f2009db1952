// SPDX-License-Identifier: GPL-2.0
#include <asm/kvm_para.h>
#include <errno.h>
#include <linux/kvm_para.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "vmm.h"

#define MAX_CPUID	256
#define MAX_FAULTS	16	/* at one address in a row */

static volatile sig_atomic_t stopped_by;
static struct kvm_run *interruptible;

/* --- set-up --- */

/* Between two KVM_RUN a signal would be lost, but for immediate_exit. */
static void on_signal(int sig)
{
	stopped_by = sig;
	if (interruptible)
		interruptible->immediate_exit = 1;
}

static void catch_signals(struct vm *vm)
{
	struct sigaction sa = { .sa_handler = on_signal };

	interruptible = vm->run;
	sigaction(SIGALRM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
}

static int cap(int fd, int nr)
{
	int ret = ioctl(fd, KVM_CHECK_EXTENSION, nr);

	return ret < 0 ? 0 : ret;
}

static int create_vm(struct vm *vm)
{
	bool private = vm->ram->kind != RAM_ORDINARY;

	vm->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->kvm < 0)
		return failed("/dev/kvm");
	if (ioctl(vm->kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		return failed("KVM_GET_API_VERSION");

	/* The control has the same type of VM where there is that type. */
	if (private || cap(vm->kvm, KVM_CAP_VM_TYPES) & 1 << KVM_X86_SW_PROTECTED_VM)
		vm->type = KVM_X86_SW_PROTECTED_VM;
	else
		vm->type = KVM_X86_DEFAULT_VM;
	vm->fd = ioctl(vm->kvm, KVM_CREATE_VM, vm->type);
	if (vm->fd < 0)
		return failed("KVM_CREATE_VM of type %lu", vm->type);

	printf("  VM type %lu, KVM_CAP_PRIVATE_MEM: %#x of /dev/kvm, %#x of this VM\n",
	       vm->type, cap(vm->kvm, KVM_CAP_PRIVATE_MEM),
	       cap(vm->fd, KVM_CAP_PRIVATE_MEM));
	if (private && !(cap(vm->fd, KVM_CAP_PRIVATE_MEM) & 1)) {
		errno = EOPNOTSUPP;
		return failed("KVM_CAP_PRIVATE_MEM");
	}
	return 0;
}

/* The guest asks for conversions by KVM_HC_MAP_GPA_RANGE: send it here. */
static int want_hypercalls(struct vm *vm)
{
	struct kvm_enable_cap want = {
		.cap = KVM_CAP_EXIT_HYPERCALL,
		.args[0] = 1 << KVM_HC_MAP_GPA_RANGE,
	};

	if (ioctl(vm->fd, KVM_ENABLE_CAP, &want))
		return failed("KVM_ENABLE_CAP(KVM_CAP_EXIT_HYPERCALL)");
	return 0;
}

struct kvm_userspace_memory_region2 vm_slot(const struct ram *ram)
{
	struct kvm_userspace_memory_region2 slot = {
		.guest_phys_addr = 0,
		.memory_size = RAM_SIZE,
		.userspace_addr = (unsigned long)ram->hva,
	};

	if (ram->kind != RAM_ORDINARY) {
		slot.flags = KVM_MEM_PRIVATE;
		slot.guest_memfd = ram->fd;
		slot.guest_memfd_offset = 0;
	}
	return slot;
}

static int add_ram(struct vm *vm)
{
	struct kvm_userspace_memory_region2 slot = vm_slot(vm->ram);

	if (ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION2, &slot))
		return failed("KVM_SET_USER_MEMORY_REGION2, flags %#x", slot.flags);
	return 0;
}

static int set_cpuid(struct vm *vm)
{
	struct kvm_cpuid2 *cpuid;
	__u32 i;
	int ret;

	cpuid = calloc(1, sizeof(*cpuid) + MAX_CPUID * sizeof(cpuid->entries[0]));
	if (!cpuid)
		return failed("calloc");
	cpuid->nent = MAX_CPUID;
	ret = ioctl(vm->kvm, KVM_GET_SUPPORTED_CPUID, cpuid);
	if (!ret) {
		/* Not by default: it needs a VMM that answers. */
		for (i = 0; i < cpuid->nent; i++)
			if (cpuid->entries[i].function == KVM_CPUID_FEATURES)
				cpuid->entries[i].eax |= 1U << KVM_FEATURE_HC_MAP_GPA_RANGE;
		ret = ioctl(vm->vcpu, KVM_SET_CPUID2, cpuid);
	}
	free(cpuid);
	return ret ? failed("KVM_GET_SUPPORTED_CPUID, KVM_SET_CPUID2") : 0;
}

/* Flat 32-bit protected mode, paging off; the image takes it from there. */
static int set_registers(struct vm *vm)
{
	const struct kvm_segment code = {
		.limit = ~0U, .selector = 0x08, .type = 0xb,
		.present = 1, .db = 1, .s = 1, .g = 1,
	};
	struct kvm_segment data = code;
	struct kvm_sregs sregs;
	struct kvm_regs regs = {
		.rip = vm->ram->entry,
		.rsi = vm->ram->entry,
		.rflags = 2,
	};

	data.selector = 0x10;
	data.type = 0x3;
	if (ioctl(vm->vcpu, KVM_GET_SREGS, &sregs))
		return failed("KVM_GET_SREGS");
	sregs.cs = code;
	sregs.ds = data;
	sregs.es = data;
	sregs.fs = data;
	sregs.gs = data;
	sregs.ss = data;
	sregs.cr0 = 0x11;	/* PE, ET */
	if (ioctl(vm->vcpu, KVM_SET_SREGS, &sregs) ||
	    ioctl(vm->vcpu, KVM_SET_REGS, &regs))
		return failed("KVM_SET_SREGS, KVM_SET_REGS");
	return 0;
}

static int create_vcpu(struct vm *vm)
{
	int size = ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	vm->vcpu = ioctl(vm->fd, KVM_CREATE_VCPU, 0);
	if (vm->vcpu < 0 || size < 0)
		return failed("KVM_CREATE_VCPU, KVM_GET_VCPU_MMAP_SIZE");
	vm->run_size = size;
	vm->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu, 0);
	if (vm->run == MAP_FAILED) {
		vm->run = NULL;
		return failed("mmap of struct kvm_run");
	}
	return 0;
}

int vm_create(struct vm *vm, struct ram *ram)
{
	*vm = (struct vm){ .kvm = -1, .fd = -1, .vcpu = -1, .ram = ram };
	if (create_vm(vm) || want_hypercalls(vm) || add_ram(vm) ||
	    create_vcpu(vm) || set_cpuid(vm) || set_registers(vm))
		return -1;
	catch_signals(vm);
	return 0;
}

int vm_create_other(const struct vm *vm)
{
	return ioctl(vm->kvm, KVM_CREATE_VM, vm->type);
}

void vm_destroy(struct vm *vm)
{
	interruptible = NULL;
	if (vm->run)
		munmap(vm->run, vm->run_size);
	if (vm->vcpu >= 0)
		close(vm->vcpu);
	if (vm->fd >= 0)
		close(vm->fd);
	if (vm->kvm >= 0)
		close(vm->kvm);
}

/* --- giving up --- */

static const char *exit_name(__u32 reason)
{
#define NAME(x) { KVM_EXIT_##x, #x }
	static const struct {
		__u32 reason;
		const char *name;
	} names[] = {
		NAME(UNKNOWN), NAME(EXCEPTION), NAME(IO), NAME(HYPERCALL),
		NAME(DEBUG), NAME(HLT), NAME(MMIO), NAME(IRQ_WINDOW_OPEN),
		NAME(SHUTDOWN), NAME(FAIL_ENTRY), NAME(INTR), NAME(SET_TPR),
		NAME(TPR_ACCESS), NAME(NMI), NAME(INTERNAL_ERROR),
		NAME(SYSTEM_EVENT), NAME(IOAPIC_EOI), NAME(HYPERV),
		NAME(X86_RDMSR), NAME(X86_WRMSR), NAME(DIRTY_RING_FULL),
		NAME(X86_BUS_LOCK), NAME(XEN), NAME(NOTIFY), NAME(MEMORY_FAULT),
	};
#undef NAME
	size_t i;

	for (i = 0; i < ARRAY_SIZE(names); i++)
		if (names[i].reason == reason)
			return names[i].name;
	return "?";
}

static enum vm_event dump(struct vm *vm)
{
	struct kvm_sregs s;
	struct kvm_regs r;

	if (vm->line_len)
		fprintf(stderr, "vmm: the guest was printing: %.*s\n",
			(int)vm->line_len, vm->line);
	if (ioctl(vm->vcpu, KVM_GET_REGS, &r) || ioctl(vm->vcpu, KVM_GET_SREGS, &s)) {
		failed("KVM_GET_REGS, KVM_GET_SREGS");
		return VM_FAILED;
	}
	fprintf(stderr, "vmm: rip %#llx rsp %#llx rflags %#llx after %lu exits\n",
		r.rip, r.rsp, r.rflags, vm->exits);
	fprintf(stderr, "vmm: rax %#llx rbx %#llx rcx %#llx rdx %#llx rsi %#llx rdi %#llx\n",
		r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi);
	fprintf(stderr, "vmm: cr0 %#llx cr2 %#llx cr3 %#llx cr4 %#llx efer %#llx cs %#x\n",
		s.cr0, s.cr2, s.cr3, s.cr4, s.efer, s.cs.selector);
	return VM_FAILED;
}

/* --- exits --- */

static void console(struct vm *vm, char c)
{
	if (c != '\n' && vm->line_len < sizeof(vm->line)) {
		vm->line[vm->line_len++] = c >= ' ' && c <= '~' ? c : '?';
		return;
	}
	printf("  guest: %.*s\n", (int)vm->line_len, vm->line);
	vm->line_len = 0;
	if (c != '\n')
		console(vm, c);
}

static enum vm_event handle_io(struct vm *vm)
{
	struct kvm_run *run = vm->run;
	char *data = (char *)run + run->io.data_offset;
	__u32 i, bytes = run->io.size * run->io.count;

	vm->io++;
	if (run->io.direction == KVM_EXIT_IO_IN) {
		memset(data, 0xff, bytes);	/* nothing there */
		return VM_CONTINUE;
	}
	switch (run->io.port) {
	case PORT_CONSOLE:
		for (i = 0; i < bytes; i++)
			console(vm, data[i]);
		return VM_CONTINUE;
	case PORT_EXIT:
		vm->exit_code = 0;
		memcpy(&vm->exit_code, data, bytes < 4 ? bytes : 4);
		return VM_LEFT;
	default:
		return VM_CONTINUE;		/* nothing there */
	}
}

static enum vm_event handle_hypercall(struct vm *vm)
{
	struct kvm_run *run = vm->run;
	__u64 gpa = run->hypercall.args[0], npages = run->hypercall.args[1];
	__u64 attrs = run->hypercall.args[2];
	int ret = -KVM_EINVAL;

	vm->hypercalls++;
	if (run->hypercall.nr != KVM_HC_MAP_GPA_RANGE)
		ret = -KVM_ENOSYS;
	else if (npages <= RAM_SIZE / PAGE_SIZE && attrs & KVM_MAP_GPA_RANGE_ENCRYPTED)
		ret = ram_to_private(vm->ram, gpa, npages * PAGE_SIZE);
	else if (npages <= RAM_SIZE / PAGE_SIZE)
		ret = ram_to_shared(vm->ram, gpa, npages * PAGE_SIZE);
	run->hypercall.ret = ret;
	return VM_CONTINUE;
}

/*
 * KVM_RUN failed with EFAULT or EHWPOISON and this exit reason. On lazy RAM
 * EFAULT means: nothing there yet. Never answer it by punching a hole.
 */
static enum vm_event handle_memory_fault(struct vm *vm, int err)
{
	__u64 gpa = vm->run->memory_fault.gpa;
	int ret = -err;

	if (gpa == vm->last_fault)
		vm->fault_repeats++;
	else
		vm->fault_repeats = 0;
	vm->last_fault = gpa;

	if (err == EFAULT && vm->fault_repeats < MAX_FAULTS)
		ret = ram_populate(vm->ram, gpa);
	if (!ret)
		return VM_CONTINUE;
	fprintf(stderr, "vmm: memory fault at %#llx, size %#llx, flags %#llx\n", gpa,
		vm->run->memory_fault.size, vm->run->memory_fault.flags);
	fprintf(stderr, "vmm: KVM_RUN said %s, allocating said %s\n", strerror(err),
		strerror(-ret));
	return dump(vm);
}

static enum vm_event handle_run_error(struct vm *vm, int err)
{
	switch (err) {
	case EINTR:
		vm->run->immediate_exit = 0;
		if (!stopped_by)
			return VM_CONTINUE;
		fprintf(stderr, "vmm: stopped by signal %d (%s)\n", (int)stopped_by,
			stopped_by == SIGALRM ? "the watchdog" : strsignal(stopped_by));
		return dump(vm);
	case EAGAIN:
		return VM_CONTINUE;
	case EFAULT:
	case EHWPOISON:
		if (vm->run->exit_reason == KVM_EXIT_MEMORY_FAULT)
			return handle_memory_fault(vm, err);
		break;
	}
	fprintf(stderr, "vmm: KVM_RUN: %s, exit reason %u (%s)\n", strerror(err),
		vm->run->exit_reason, exit_name(vm->run->exit_reason));
	return dump(vm);
}

static enum vm_event handle_exit(struct vm *vm)
{
	struct kvm_run *run = vm->run;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		return handle_io(vm);
	case KVM_EXIT_HYPERCALL:
		return handle_hypercall(vm);
	case KVM_EXIT_HLT:
		return VM_TURN;
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		return VM_CONTINUE;
	case KVM_EXIT_SHUTDOWN:
		fprintf(stderr, "vmm: the guest shut down (triple fault)\n");
		break;
	case KVM_EXIT_MMIO:
		fprintf(stderr, "vmm: the guest %s %u bytes at %#llx, where nothing is\n",
			run->mmio.is_write ? "wrote" : "read", run->mmio.len,
			run->mmio.phys_addr);
		break;
	case KVM_EXIT_FAIL_ENTRY:
		fprintf(stderr, "vmm: the CPU refused the guest, reason %#llx\n",
			run->fail_entry.hardware_entry_failure_reason);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		fprintf(stderr, "vmm: KVM gave up, internal error %u\n",
			run->internal.suberror);
		break;
	case KVM_EXIT_SYSTEM_EVENT:
		fprintf(stderr, "vmm: system event %u\n", run->system_event.type);
		break;
	default:
		fprintf(stderr, "vmm: exit %u (%s), not asked for\n",
			run->exit_reason, exit_name(run->exit_reason));
	}
	return dump(vm);
}

enum vm_event vm_run(struct vm *vm)
{
	enum vm_event event;

	do {
		int ret = ioctl(vm->vcpu, KVM_RUN, 0);

		vm->exits++;
		event = ret < 0 ? handle_run_error(vm, errno) : handle_exit(vm);
	} while (event == VM_CONTINUE);
	return event;
}
