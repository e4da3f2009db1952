// SPDX-License-Identifier: GPL-2.0
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm.h"

#define MAP_LINES	40		/* of the private map */

const char *exit_name(__u32 reason)
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

/* --- KVM's binary statistics --- */

struct wanted {
	const char *name;
	__u64 sum;
};

static void add_wanted(void *arg, const char *name, __u64 value)
{
	struct wanted *w = arg;

	if (!strcmp(name, w->name))
		w->sum += value;
}

static __u64 stat_of(int fd, const char *name)
{
	struct wanted w = { .name = name };

	for_each_stat(fd, add_wanted, &w);
	return w.sum;
}

static __u64 stat_of_vcpus(struct vm *vm, const char *name)
{
	__u64 sum = 0;
	unsigned int i;

	for (i = 0; i < vm->config.nr_vcpus; i++)
		sum += stat_of(vm->vcpu[i].stats, name);
	return sum;
}

static void print_stat(void *arg, const char *name, __u64 value)
{
	if (value)
		printf("    %s %s %llu\n", (const char *)arg, name, value);
}

/* --- after any run --- */

/* The number of KiB that a file of /proc says after @key, or 0. */
static unsigned long kib_of(const char *path, const char *key)
{
	char line[128];
	unsigned long kib = 0;
	FILE *f = fopen(path, "re");

	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, key, strlen(key)))
			kib = strtoul(line + strlen(key), NULL, 10);
	if (f)
		fclose(f);
	return kib;
}

static void report_exits(struct vm *vm)
{
	unsigned int i, reason;
	unsigned long sum, errors = 0;

	printf("  exits: %llu, of these to the VMM:", stat_of_vcpus(vm, "exits"));
	for (reason = 0; reason < MAX_EXIT; reason++) {
		for (i = 0, sum = 0; i < vm->config.nr_vcpus; i++)
			sum += vm->vcpu[i].exits[reason];
		if (sum)
			printf(" %s %lu", exit_name(reason), sum);
	}
	for (i = 0; i < vm->config.nr_vcpus; i++)
		errors += vm->vcpu[i].errors;
	printf(" errors %lu; page faults %llu, halts %llu\n", errors,
	       stat_of_vcpus(vm, "pf_taken"), stat_of_vcpus(vm, "halt_exits"));
	printf("  devices: %lu port accesses, %lu bytes out and %lu in by the serial port\n",
	       vm->dev.pio, vm->dev.serial_out, vm->dev.serial_in);
}

/*
 * The file's pages, once, whoever has them mapped; what is this process's own;
 * and, as nothing else runs a VM here, all page tables for second stages.
 */
static void report_memory(struct vm *vm)
{
	struct ram *ram = vm->ram;
	struct stat st = { 0 };

	fstat(ram->fd, &st);
	printf("  memory: RAM %llu MiB, private %llu KiB, file %llu KiB, VMM's own %lu KiB, second stage's tables %lu KiB\n",
	       ram->config.size >> 20, ram_private_bytes(ram) >> 10,
	       (unsigned long long)st.st_blocks / 2,
	       kib_of("/proc/self/smaps_rollup", "Anonymous:"),
	       kib_of("/proc/meminfo", "SecPageTables:"));
	printf("  mapped: %llu pages of 4 KiB, %llu of 2 MiB, %llu of 1 GiB; private pages mapped %llu\n",
	       stat_of(vm->stats, "pages_4k"), stat_of(vm->stats, "pages_2m"),
	       stat_of(vm->stats, "pages_1g"), stat_of(vm->stats, "private_pages"));
	printf("  calls: %lu conversions to shared, %lu to private, %lu lazy allocations; sealing %.2f s, allocating %.2f s\n",
	       ram->to_shared, ram->to_private, ram->populated, ram->seal_seconds,
	       ram->alloc_seconds);
}

void report_summary(struct vm *vm)
{
	report_exits(vm);
	report_memory(vm);
}

/* --- after a failure --- */

static void report_registers(struct vcpu *vcpu)
{
	struct kvm_sregs s;
	struct kvm_regs r;
	struct kvm_mp_state mp = { 0 };

	if (ioctl(vcpu->fd, KVM_GET_REGS, &r) || ioctl(vcpu->fd, KVM_GET_SREGS, &s)) {
		failed("KVM_GET_REGS, KVM_GET_SREGS");
		return;
	}
	ioctl(vcpu->fd, KVM_GET_MP_STATE, &mp);
	printf("  vCPU %u: mp_state %u, last exit %s\n", vcpu->index, mp.mp_state,
	       exit_name(vcpu->run->exit_reason));
	printf("    rip %#llx rsp %#llx rflags %#llx cs %#x cpl %u\n",
	       r.rip, r.rsp, r.rflags, s.cs.selector, s.ss.dpl);
	printf("    rax %#llx rbx %#llx rcx %#llx rdx %#llx rsi %#llx rdi %#llx rbp %#llx\n",
	       r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp);
	printf("    r8 %#llx r9 %#llx r10 %#llx r11 %#llx r12 %#llx r13 %#llx r14 %#llx r15 %#llx\n",
	       r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15);
	printf("    cr0 %#llx cr2 %#llx cr3 %#llx cr4 %#llx efer %#llx gdt %#llx idt %#llx\n",
	       s.cr0, s.cr2, s.cr3, s.cr4, s.efer, s.gdt.base, s.idt.base);
}

static void report_vcpu_exits(struct vcpu *vcpu)
{
	unsigned int i;

	printf("    exits to the VMM:");
	for (i = 0; i < MAX_EXIT; i++)
		if (vcpu->exits[i])
			printf(" %s %lu", exit_name(i), vcpu->exits[i]);
	printf(" errors %lu\n", vcpu->errors);
	for_each_stat(vcpu->stats, print_stat, "vcpu");
}

static void print_range(void *arg, __u64 gpa, __u64 len)
{
	int *lines = arg;

	if (++*lines <= MAP_LINES)
		printf("    %#12llx-%#llx %llu KiB\n", gpa, gpa + len, len >> 10);
}

static void report_map(struct ram *ram)
{
	int lines = 0;

	printf("  %s, as lseek says:\n", ram_is_private(ram) ? "private" : "allocated");
	ram_for_each_private(ram, print_range, &lines);
	if (lines > MAP_LINES)
		printf("    ... and %d ranges more\n", lines - MAP_LINES);
}

void report_failure(struct vm *vm, bool all)
{
	unsigned int i;

	if (vm->dev.line_len)
		printf("  the guest was printing: %.*s\n", (int)vm->dev.line_len, vm->dev.line);
	for (i = 0; i < vm->config.nr_vcpus; i++) {
		if (vm->vcpu[i].fd < 0 || (!all && vm->source && vm->source != &vm->vcpu[i]))
			continue;
		report_registers(&vm->vcpu[i]);
		if (all)
			report_vcpu_exits(&vm->vcpu[i]);
	}
	if (!all)
		return;
	for_each_stat(vm->stats, print_stat, "vm");
	report_map(vm->ram);
}
