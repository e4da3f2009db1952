// SPDX-License-Identifier: GPL-2.0
/*
 * A guest that runs from private memory: code, page tables, descriptor tables,
 * stack and data.  What KVM emulates for it must use the private pages, or be
 * refused, but never read or write the shared alias of a private page.
 *
 * The alias is full of traps for that: other instructions where the code is,
 * page tables that lead elsewhere, other data.  After each step it is compared
 * with what it was.
 */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <linux/kvm_para.h>

#include "private_memfd.h"

/* Ordinary memory, where the image is before it becomes private. */
#define LOW_SIZE	SZ_512K
#define LOW_LOADER	0x1000ul
#define LOW_STAGING	0x10000ul

/* The private slot, below 4 GiB for the loader's sake; gva and gpa are the same. */
#define BASE		((uint64_t)SZ_1G)
#define NR_PAGES	64
#define SLOT_SIZE	(NR_PAGES * PAGE_SIZE)

/* What is in its pages. */
#define PML4		0
#define PDPT		1
#define PD		2
#define PT		3
#define IDT		6
#define GDT		7
#define CODE		8		/* four pages */
#define STACK_END	16
#define DATA		16		/* full of words that tell where they are */
#define DECOY		31		/* where the page tables of the alias lead */
#define CHAIN		32		/* four more page tables, for CHAIN_GVA */
#define NR_IMAGE	48		/* the rest are holes */
#define SPARE		48

/*
 * Pages are pages here, however large the units.  If these are huge, the image
 * is at the end of one and the holes at the start of the next, which is as fine
 * as halves can be mixed.
 */
#define SLOT_OFFSET	(align_up(NR_IMAGE * PAGE_SIZE, UNIT) - NR_IMAGE * PAGE_SIZE)
#define FILE_SIZE	align_up(SLOT_OFFSET + SLOT_SIZE, UNIT)
#define HOLES_REASON	"Needs one hole after the other, not a unit of them"

/* It can be shared, and the page before it is private. */
#define EDGE		(backing_is_hugetlb() ? SPARE : DATA + 4)

/* These have no physical page of the same number. */
#define MMIO_PTE	256
#define AD_PTE		300
#define UNMAPPED_PTE	400

#define MMIO_GPA	0x90000000ul
#define CHAIN_GVA	BIT(39)	/* the second entry of the PML4 */

#define PTE_FLAGS	(PTE_PRESENT_MASK | PTE_WRITABLE_MASK)

#define PORT_DONE	0x10
#define PORT_EXCEPTION	0x11
#define PORT_IRQ	0x12
#define PORT		0x40
#define IRQ_VECTOR	0x40

#define gva_of(page)	(BASE + (page) * PAGE_SIZE)
#define gva_of_pte(i)	(BASE + (i) * PAGE_SIZE)

/*
 * Registers at the start are whatever the test sets; it reads the results from
 * the registers at the end, too.
 */
asm(".pushsection .rodata\n"
	"asm_code:\n"
	/* Exceptions, and all other vectors. */
	"asm_vectors:\n"
	".set vector, 0\n"
	".rept 256\n"
	"	.balign 16\n"
	"	movb $vector, %al\n"
	"	outb %al, $0x11\n"
	"1:	hlt\n"
	"	jmp 1b\n"
	"	.set vector, vector + 1\n"
	".endr\n"

	/* What a word is before the first exit, some exits, then EOI. */
	"asm_irq:\n"
	"	orq (%r14), %r13\n"
	"	outb %al, $0x12\n"
	"	outb %al, $0x12\n"
	"	outb %al, $0x12\n"
	"	movl $0x80b, %ecx\n"
	"	xorl %eax, %eax\n"
	"	xorl %edx, %edx\n"
	"	wrmsr\n"
	"	outb %al, $0x10\n"

	"asm_wait_for_irq:\n"
	"	sti\n"
	"1:	nop\n"
	"	jmp 1b\n"

	"asm_intercepts:\n"
	"	hlt\n"
	"	movl $0x40000000, %eax\n"
	"	xorl %ecx, %ecx\n"
	"	cpuid\n"
	"	movl %ebx, %r8d\n"
	"	movl $0x277, %ecx\n"		/* MSR_IA32_CR_PAT */
	"	rdmsr\n"
	"	movl $0x00070406, %eax\n"
	"	movl $0x00070401, %edx\n"
	"	wrmsr\n"
	"	xorl %eax, %eax\n"
	"	rdmsr\n"
	"	shlq $32, %rdx\n"
	"	orq %rdx, %rax\n"
	"	movq %rax, %r9\n"
	"	movq %cr0, %rax\n"
	"	movq %rax, %cr0\n"
	"	movq %cr4, %rax\n"
	"	movq %rax, %cr4\n"
	"	movq %cr8, %rax\n"
	"	movq %rax, %cr8\n"
	"	wbinvd\n"
	"	pause\n"
	"	hlt\n"
	"	movl $0x1234, %r10d\n"
	"	outb %al, $0x10\n"

	"asm_hypercalls:\n"
	"	movl $1, %eax\n"		/* KVM_HC_VAPIC_POLL_IRQ */
	"1:	vmcall\n"
	"	movq %rax, %r8\n"
	"	movl $1, %eax\n"
	"2:	vmmcall\n"
	"	movq %rax, %r9\n"
	"	movl 1b(%rip), %r10d\n"
	"	movl 2b(%rip), %r11d\n"
	"	outb %al, $0x10\n"

	"asm_ports:\n"
	"	movl $0x1a2b3c4d, %eax\n"
	"	movw $0x1234, %dx\n"
	"	outb %al, (%dx)\n"
	"	outl %eax, (%dx)\n"
	"	inl (%dx), %eax\n"
	"	movl %eax, %r8d\n"
	"	xorl %eax, %eax\n"
	"	inb $0x40, %al\n"
	"	movl %eax, %r9d\n"
	"	outw %ax, $0x40\n"
	"	outb %al, $0x10\n"

	"asm_mmio:\n"
	"	movq (%rsi), %r8\n"
	"	movzwl 2(%rsi), %r9d\n"
	"	movl $0x55667788, 8(%rsi)\n"
	"	addl $5, 16(%rsi)\n"
	"	pushq 24(%rsi)\n"
	"	popq %r10\n"
	"	cld\n"
	"	addq $32, %rsi\n"
	"	movl $3, %ecx\n"
	"	rep movsb\n"			/* to private memory */
	"	xchgq %rsi, %rdi\n"
	"	subq $2, %rsi\n"
	"	movl $3, %ecx\n"
	"	rep movsb\n"			/* and from it */
	"	outb %al, $0x10\n"

	"asm_outs:\n"
	"	cld\n"
	"	rep outsb\n"
	"	outb %al, $0x10\n"

	"asm_ins:\n"
	"	cld\n"
	"	rep insb\n"
	"	outb %al, $0x10\n"

	/* Forced to be emulated. */
	"asm_fep_load:\n"
	KVM_FEP "movq (%rsi), %rax\n"
	"	outb %al, $0x10\n"

	"asm_fep_store:\n"
	KVM_FEP "movq %rax, (%rdi)\n"
	"	outb %al, $0x10\n"

	"asm_fep_cmpxchg:\n"
	KVM_FEP "lock cmpxchgq %rbx, (%rdi)\n"
	"	setz %r8b\n"
	"	movzbl %r8b, %r8d\n"
	"	outb %al, $0x10\n"

	"asm_fep_cmpxchg_bytes:\n"
	KVM_FEP "lock cmpxchgb %bl, (%rdi)\n"
	"	setz %r8b\n"
	KVM_FEP "lock cmpxchgw %bx, 8(%rdi)\n"
	"	setz %r9b\n"
	KVM_FEP "lock cmpxchgl %ebx, 16(%rdi)\n"
	"	setz %r10b\n"
	KVM_FEP "lock xaddq %rbx, 24(%rdi)\n"
	"	movzbl %r8b, %r8d\n"
	"	movzbl %r9b, %r9d\n"
	"	movzbl %r10b, %r10d\n"
	"	outb %al, $0x10\n"

	"asm_fep_stack:\n"
	"	movl $0x1234, %eax\n"
	KVM_FEP "pushq %rax\n"
	KVM_FEP "popq %r8\n"
	KVM_FEP "call 1f\n"
	"	movl $0x5678, %r9d\n"
	"	outb %al, $0x10\n"
	"1:\n"
	KVM_FEP "ret\n"

	"asm_fep_sgdt:\n"
	KVM_FEP "sgdt (%rdi)\n"
	"	outb %al, $0x10\n"

	"asm_fep_movs:\n"
	"	cld\n"
	KVM_FEP "rep movsb\n"
	"	outb %al, $0x10\n"

	/* Not emulated. */
	"asm_load:\n"
	"	movq (%rsi), %rax\n"
	"	outb %al, $0x10\n"

	"asm_store:\n"
	"	movq %rax, (%rdi)\n"
	"	outb %al, $0x10\n"

	"asm_movs:\n"
	"	cld\n"
	"	rep movsb\n"
	"	outb %al, $0x10\n"

	"asm_call:\n"
	"	call *%rsi\n"
	"	outb %al, $0x10\n"

	"asm_wrmsr:\n"
	"	wrmsr\n"
	"	outb %al, $0x10\n"

	/* A device, or memory, and then what KVM reads or writes for it. */
	"asm_mmio_movs:\n"
	"	cld\n"
	"	rep movsb\n"
	"	outb %al, $0x10\n"

	"asm_mmio_cmps:\n"
	"	cld\n"
	"	repe cmpsb\n"
	"	sete %r8b\n"
	"	movzbl %r8b, %r8d\n"
	"	outb %al, $0x10\n"

	"asm_mmio_push:\n"
	"	pushq (%rsi)\n"
	"	outb %al, $0x10\n"

	"asm_mmio_call:\n"
	"	movl $0x1111, %r8d\n"
	"	call *(%rsi)\n"
	"	outb %al, $0x10\n"
	"asm_called:\n"
	"	movl $0x2222, %r8d\n"
	"	ret\n"

	"asm_mmio_segment:\n"
	"	movw (%rsi), %fs\n"
	"	movl $0x1234, %r8d\n"
	"	outb %al, $0x10\n"

	"asm_ins_backwards:\n"
	"	std\n"
	"	rep insb\n"
	"	cld\n"
	"	outb %al, $0x10\n"

	"asm_mmio_flds:\n"
	"	flds (%rsi)\n"
	"	outb %al, $0x10\n"

	"asm_vmrun:\n"
	"	vmrun %rax\n"
	"	outb %al, $0x10\n"

	"asm_vmload:\n"
	"	vmload %rax\n"
	"	outb %al, $0x10\n"

	"asm_vmsave:\n"
	"	vmsave %rax\n"
	"	outb %al, $0x10\n"

	/* A jump to another task. */
	".code32\n"
	"asm_task:\n"
	"	ljmp $0x28, $0\n"
	"1:	hlt\n"
	"	jmp 1b\n"
	"asm_task_two:\n"
	"	outb %al, $0x10\n"
	".code64\n"

	/* To be copied to pages of their own. */
	"asm_one:\n"
	KVM_FEP "movl $0x11111111, %eax\n"
	"	ret\n"
	"asm_two:\n"
	KVM_FEP "movl $0x22222222, %eax\n"
	"	nop\n"
	"	ret\n"
	"asm_done:\n"
	"	nop\n"
	"	nop\n"
	"	outb %al, $0x10\n"
	"asm_code_end:\n"

	/* In real mode, with segments without limits. */
	".code16\n"
	"asm_loader:\n"
	"	addr32 rep movsl\n"
	"	outb %al, $0x10\n"
	"asm_loader_end:\n"
	".code64\n"
	".popsection\n");

FIXTURE(emul) {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct kvm_regs regs;	/* to start with, and at the end */
	void *low;
	void *alias;		/* the shared half of the private slot */
	void *image;		/* what the private half held at the start */
	void *saved;		/* what the alias has to hold */
	int fd;
};

/* How the image gets into private memory. */
FIXTURE_VARIANT(emul) {
	bool sealed;
};

FIXTURE_VARIANT_ADD(emul, loaded) {
};

FIXTURE_VARIANT_ADD(emul, sealed) {
	.sealed = true,
};

#define emul_data FIXTURE_DATA(emul)

static uint64_t code_gva(const char *label)
{
	return gva_of(CODE) + (label - LABEL(code));
}

/* A word of a data page, and of its alias. */
static uint64_t data_word(uint64_t page, uint64_t offset)
{
	return 0xda7a0000ull << 32 | page << 16 | offset;
}

static uint64_t alias_word(uint64_t page, uint64_t offset)
{
	return 0xa11a0000ull << 32 | page << 16 | offset;
}

static void *page_of(void *base, uint64_t page)
{
	return base + page * PAGE_SIZE;
}

static void convert(emul_data *self, uint64_t page, uint64_t nr, bool private)
{
	uint64_t start = align_down(SLOT_OFFSET + page * PAGE_SIZE, UNIT);
	uint64_t end = align_up(SLOT_OFFSET + (page + nr) * PAGE_SIZE, UNIT);

	if (private)
		memfd_to_private(self->fd, start, end - start);
	else
		memfd_to_shared(self->fd, start, end - start);
}

static bool is_private(emul_data *self, uint64_t page)
{
	return memfd_is_private(self->fd, SLOT_OFFSET + page * PAGE_SIZE);
}

static void fill_words(void *base, uint64_t page, uint64_t (*word)(uint64_t, uint64_t))
{
	uint64_t *p = page_of(base, page);
	uint64_t i;

	for (i = 0; i < PAGE_SIZE; i += sizeof(*p))
		p[i / sizeof(*p)] = word(page, i);
}

static void make_tables(void *base, bool decoy)
{
	uint64_t *pt = page_of(base, PT), *chain = page_of(base, CHAIN + 3);
	uint64_t i;

	*(uint64_t *)page_of(base, PML4) = gva_of(PDPT) | PTE_FLAGS;
	((uint64_t *)page_of(base, PML4))[1] = gva_of(CHAIN + 1) | PTE_FLAGS;
	((uint64_t *)page_of(base, PDPT))[1] = gva_of(PD) | PTE_FLAGS;
	*(uint64_t *)page_of(base, PD) = gva_of(PT) | PTE_FLAGS;
	for (i = 0; i < NR_PAGES; i++)
		pt[i] = gva_of(decoy ? DECOY : i) | PTE_FLAGS;
	pt[MMIO_PTE] = (decoy ? gva_of(DECOY) : MMIO_GPA) | PTE_FLAGS;
	for (i = 0; i < 8; i++)
		pt[AD_PTE + i] = gva_of(decoy ? DECOY : DATA + i) | PTE_FLAGS;
	if (decoy)
		pt[UNMAPPED_PTE] = gva_of(DECOY) | PTE_FLAGS;

	*(uint64_t *)page_of(base, CHAIN + 1) = gva_of(CHAIN + 2) | PTE_FLAGS;
	*(uint64_t *)page_of(base, CHAIN + 2) = gva_of(CHAIN + 3) | PTE_FLAGS;
	chain[0] = gva_of(decoy ? DECOY : DATA) | PTE_FLAGS;
	chain[1] = gva_of(decoy ? DECOY : DATA + 1) | PTE_FLAGS;
}

static void make_image(emul_data *self)
{
	struct idt_entry *idt = page_of(self->image, IDT);
	uint64_t *gdt = page_of(self->image, GDT);
	uint64_t i;

	for (i = 0; i < NR_IMAGE; i++)
		fill_words(self->image, i, data_word);
	memset(self->image, 0, IDT * PAGE_SIZE);
	memset(page_of(self->image, CHAIN), 0, 4 * PAGE_SIZE);
	make_tables(self->image, false);

	for (i = 0; i < 256; i++) {
		uint64_t handler = i == IRQ_VECTOR ? code_gva(LABEL(irq)) :
						     code_gva(LABEL(vectors)) + 16 * i;

		idt[i] = (struct idt_entry) {
			.offset0 = handler,
			.offset1 = handler >> 16,
			.offset2 = handler >> 32,
			.selector = 8,
			.type = 14,
			.p = 1,
		};
	}
	gdt[1] = 0x00af9b000000ffff;
	gdt[2] = 0x00cf93000000ffff;
	memset(&gdt[256], 0, 104);	/* the TSS */
	TEST_ASSERT(LABEL(code_end) - LABEL(code) <= 4 * PAGE_SIZE, "The code is too large");
	memcpy(page_of(self->image, CODE), LABEL(code), LABEL(code_end) - LABEL(code));
}

static void make_alias(emul_data *self)
{
	uint16_t *code = page_of(self->alias, CODE);
	uint64_t i;

	for (i = 0; i < NR_PAGES; i++)
		fill_words(self->alias, i, alias_word);
	memset(self->alias, 0, IDT * PAGE_SIZE);
	memset(page_of(self->alias, CHAIN), 0, 4 * PAGE_SIZE);
	make_tables(self->alias, true);

	/* Five or ten bytes long, as no instruction of the code is. */
	for (i = 0; i < 4 * PAGE_SIZE / sizeof(*code); i++)
		code[i] = 0xb848;
	memcpy(self->saved, self->alias, SLOT_SIZE);
}

/* Pages that are shared at the moment may change. */
static void check_alias(emul_data *self)
{
	uint64_t i, j;

	for (i = 0; i < NR_PAGES; i++) {
		uint64_t *now = page_of(self->alias, i), *then = page_of(self->saved, i);

		if (!is_private(self, i))
			continue;
		for (j = 0; j < PAGE_SIZE / sizeof(*now); j++)
			TEST_ASSERT(now[j] == then[j],
				    "Alias of private page %lu, offset %#lx: %#lx became %#lx",
				    i, j * sizeof(*now), then[j], now[j]);
	}
}

static void set_segment(struct kvm_segment *segment, uint16_t selector, uint8_t type, bool l)
{
	*segment = (struct kvm_segment) {
		.selector = selector,
		.type = type,
		.limit = -1,
		.present = 1,
		.s = 1,
		.l = l,
		.db = !l,
		.g = 1,
	};
}

/* Ordinary instructions write what becomes private. */
static void load_image(emul_data *self)
{
	struct kvm_regs regs = {
		.rip = LOW_LOADER,
		.rflags = X86_EFLAGS_FIXED,
		.rsi = LOW_STAGING,
		.rdi = BASE,
		.rcx = NR_IMAGE * PAGE_SIZE / 4,
	};
	struct kvm_sregs sregs;

	memcpy(self->low + LOW_LOADER, LABEL(loader), LABEL(loader_end) - LABEL(loader));
	memcpy(self->low + LOW_STAGING, self->image, NR_IMAGE * PAGE_SIZE);
	convert(self, 0, NR_IMAGE, true);

	vcpu_sregs_get(self->vcpu, &sregs);
	set_segment(&sregs.cs, 0, 11, false);
	sregs.cs.db = 0;
	set_segment(&sregs.ds, 0, 3, false);
	sregs.es = sregs.ds;
	sregs.ss = sregs.ds;
	vcpu_sregs_set(self->vcpu, &sregs);
	vcpu_regs_set(self->vcpu, &regs);
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
	vcpu_run_complete_io(self->vcpu);
	vcpu_regs_get(self->vcpu, &regs);
	TEST_ASSERT(!regs.rcx, "The loader has left %#llx", regs.rcx);
	memset(self->low + LOW_STAGING, 0xcc, NR_IMAGE * PAGE_SIZE);
}

static void enter_long_mode(emul_data *self)
{
	struct kvm_sregs sregs;

	vcpu_sregs_get(self->vcpu, &sregs);
	set_segment(&sregs.cs, 8, 11, true);
	set_segment(&sregs.ds, 16, 3, false);
	sregs.es = sregs.ds;
	sregs.fs = sregs.ds;
	sregs.gs = sregs.ds;
	sregs.ss = sregs.ds;
	sregs.tr = (struct kvm_segment) {
		.base = gva_of(GDT) + 2048,
		.limit = 0x67,
		.selector = 24,
		.type = 11,
		.present = 1,
	};
	memset(&sregs.ldt, 0, sizeof(sregs.ldt));
	sregs.ldt.unusable = 1;
	sregs.gdt.base = gva_of(GDT);
	sregs.gdt.limit = 23;
	sregs.idt.base = gva_of(IDT);
	sregs.idt.limit = PAGE_SIZE - 1;
	sregs.cr0 = X86_CR0_PE | X86_CR0_NE | X86_CR0_WP | X86_CR0_PG;
	sregs.cr3 = gva_of(PML4);
	sregs.cr4 = X86_CR4_PAE | X86_CR4_OSFXSR;
	sregs.efer = EFER_LME | EFER_LMA | EFER_NX;
	vcpu_sregs_set(self->vcpu, &sregs);
}

/* Not every store can write(). */
static void fill_file(emul_data *self)
{
	void *p = mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);

	TEST_ASSERT(p != MAP_FAILED, "mmap() failed: %s", strerror(errno));
	memcpy(p + SLOT_OFFSET, self->image, NR_IMAGE * PAGE_SIZE);
	TEST_ASSERT(!munmap(p, FILE_SIZE), "munmap() failed: %s", strerror(errno));
}

static void emul_create(emul_data *self, bool sealed, bool irqchip)
{
	self->vm = vm_create_barebones_type(KVM_X86_SW_PROTECTED_VM);
	if (irqchip)
		vm_create_irqchip(self->vm);
	self->vcpu = __vm_vcpu_add(self->vm, 0);
	vcpu_init_cpuid(self->vcpu, kvm_get_supported_cpuid());

	self->low = map_shared_half(LOW_SIZE);
	vm_set_user_memory_region(self->vm, 0, 0, 0, LOW_SIZE, self->low);
	self->image = map_shared_half(SLOT_SIZE);
	self->saved = map_shared_half(SLOT_SIZE);
	self->alias = map_shared_half(SLOT_SIZE);
	make_image(self);
	make_alias(self);

	if (sealed) {
		self->fd = backing_memfd(FILE_SIZE, MFD_ALLOW_SEALING);
		fill_file(self);
		convert(self, SPARE, NR_PAGES - SPARE, false);
		TEST_ASSERT(!fcntl(self->fd, F_ADD_SEALS, F_SEAL_INACCESSIBLE),
			    "F_ADD_SEALS failed: %s", strerror(errno));
	} else {
		self->fd = private_memfd(FILE_SIZE);
	}
	vm_add_private(self->vm, PRIVATE_SLOT, BASE, SLOT_SIZE, self->alias, self->fd,
		       SLOT_OFFSET);
	if (!sealed)
		load_image(self);
	enter_long_mode(self);
	check_alias(self);
}

static bool can_seal(void)
{
	int fd = backing_memfd(UNIT, MFD_ALLOW_SEALING);
	bool can = !fcntl(fd, F_ADD_SEALS, F_SEAL_INACCESSIBLE);

	close(fd);
	return can;
}

FIXTURE_SETUP(emul)
{
	if (variant->sealed && !can_seal())
		SKIP(return, "This kernel can't seal a file that has content");
	emul_create(self, variant->sealed, false);
}

FIXTURE_TEARDOWN(emul)
{
	kvm_vm_free(self->vm);
	close(self->fd);
}

static void set_start(emul_data *self, const char *label)
{
	self->regs.rip = code_gva(label);
	self->regs.rsp = gva_of(STACK_END);
	self->regs.rflags = X86_EFLAGS_FIXED;
	vcpu_regs_set(self->vcpu, &self->regs);
}

/* Run to an exit of port I/O: writes are checked, reads filled in. */
static void run_to_port(emul_data *self, uint16_t port, int size, int count, bool in,
			const void *data)
{
	struct kvm_run *run = self->vcpu->run;

	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
	TEST_ASSERT(run->io.port == port && run->io.size == size && run->io.count == count &&
		    run->io.direction == (in ? KVM_EXIT_IO_IN : KVM_EXIT_IO_OUT),
		    "Wanted port %#x, size %d, count %d, got port %#x, size %d, count %d, data %#x",
		    port, size, count, run->io.port, run->io.size, run->io.count,
		    *((uint8_t *)run + run->io.data_offset));
	if (in)
		memcpy((void *)run + run->io.data_offset, data, size * count);
	else if (data)
		TEST_ASSERT(!memcmp((void *)run + run->io.data_offset, data, size * count),
			    "Port %#x: wrong data, first byte %#x", port,
			    *((uint8_t *)run + run->io.data_offset));
}

static void run_to_mmio(emul_data *self, uint64_t offset, int len, bool write, uint64_t data)
{
	struct kvm_run *run = self->vcpu->run;
	uint64_t value = 0;

	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_MMIO);
	TEST_ASSERT(run->mmio.phys_addr == MMIO_GPA + offset && run->mmio.len == len &&
		    run->mmio.is_write == write,
		    "Wanted %d bytes at offset %#lx, write %d, got %d at %#llx, write %d",
		    len, offset, write, run->mmio.len, run->mmio.phys_addr, run->mmio.is_write);
	if (write) {
		memcpy(&value, run->mmio.data, len);
		TEST_ASSERT(value == data, "Wrote %#lx for %#lx", value, data);
	} else {
		memcpy(run->mmio.data, &data, len);
	}
}

static void finish(emul_data *self)
{
	vcpu_run_complete_io(self->vcpu);
	vcpu_regs_get(self->vcpu, &self->regs);
	check_alias(self);
}

/* Run to the end of the piece of code. */
static void run_to_end(emul_data *self)
{
	struct kvm_run *run = self->vcpu->run;
	int r = _vcpu_run(self->vcpu);

	TEST_ASSERT(!r, "KVM_RUN failed: %s, exit %s, gpa %#llx", strerror(errno),
		    exit_reason_str(run->exit_reason), run->memory_fault.gpa);
	if (run->exit_reason == KVM_EXIT_IO && run->io.port == PORT_EXCEPTION) {
		struct kvm_regs regs;

		vcpu_regs_get(self->vcpu, &regs);
		TEST_FAIL("Exception %lld, rsp %#llx", regs.rax & 0xff, regs.rsp);
	}
	TEST_ASSERT(run->exit_reason == KVM_EXIT_IO && run->io.port == PORT_DONE,
		    "Unexpected exit %s", exit_reason_str(run->exit_reason));
	finish(self);
}

static void run_code(emul_data *self, const char *label)
{
	set_start(self, label);
	run_to_end(self);
}

/* Returns the vector if there was an exception, else -1. */
static int try_code(emul_data *self, const char *label)
{
	struct kvm_run *run = self->vcpu->run;
	int vector = -1;

	set_start(self, label);
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
	if (run->io.port == PORT_EXCEPTION)
		vector = *((uint8_t *)run + run->io.data_offset);
	else
		TEST_ASSERT_EQ(run->io.port, PORT_DONE);
	finish(self);
	return vector;
}

static uint64_t guest_load(emul_data *self, uint64_t gva)
{
	self->regs.rsi = gva;
	run_code(self, LABEL(load));
	return self->regs.rax;
}

static void guest_store(emul_data *self, uint64_t gva, uint64_t value)
{
	self->regs.rdi = gva;
	self->regs.rax = value;
	run_code(self, LABEL(store));
}

static void guest_copy(emul_data *self, uint64_t to, uint64_t from, uint64_t len)
{
	self->regs.rdi = to;
	self->regs.rsi = from;
	self->regs.rcx = len;
	run_code(self, LABEL(movs));
}

static uint64_t fep_load(emul_data *self, uint64_t gva)
{
	self->regs.rsi = gva;
	self->regs.rax = 0x6a6a6a6a;
	run_code(self, LABEL(fep_load));
	return self->regs.rax;
}

static void fep_store(emul_data *self, uint64_t gva, uint64_t value)
{
	self->regs.rdi = gva;
	self->regs.rax = value;
	run_code(self, LABEL(fep_store));
}

#define FEP_PARAM	"/sys/module/kvm/parameters/force_emulation_prefix"

/* Whether instructions with the prefix are emulated; main() puts it back. */
static bool fep_enabled(void)
{
	int fd = open(FEP_PARAM, O_WRONLY);
	bool done = fd >= 0 && write(fd, "1", 1) == 1;

	close(fd);
	return done;
}

/* Instructions that KVM has to skip, or to look at, after their exit. */
TEST_F(emul, intercepts)
{
	int i;

	for (i = 0; i < 3; i++) {
		set_start(self, LABEL(intercepts));
		vcpu_run(self->vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_HLT);
		check_alias(self);
		vcpu_run(self->vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_HLT);
		check_alias(self);
		run_to_end(self);
		TEST_ASSERT_EQ(self->regs.r8, 0x4b4d564bull);	/* "KVMK" */
		TEST_ASSERT_EQ(self->regs.r9, 0x0007040100070406ull);
		TEST_ASSERT_EQ(self->regs.r10, 0x1234ull);
	}
}

/* One of the two instructions is the other vendor's, and replaced in place. */
TEST_F(emul, hypercalls)
{
	uint32_t native = host_cpu_is_amd ? 0xd9010f : 0xc1010f;

	run_code(self, LABEL(hypercalls));
	TEST_ASSERT_EQ(self->regs.r8, 0ull);
	TEST_ASSERT_EQ(self->regs.r9, 0ull);
	TEST_ASSERT_EQ((uint32_t)self->regs.r10 & 0xffffff, native);
	TEST_ASSERT_EQ((uint32_t)self->regs.r11 & 0xffffff, native);
	run_code(self, LABEL(hypercalls));
	TEST_ASSERT_EQ(self->regs.r8, 0ull);
}

TEST_F(emul, ports)
{
	set_start(self, LABEL(ports));
	run_to_port(self, 0x1234, 1, 1, false, "\x4d");
	run_to_port(self, 0x1234, 4, 1, false, "\x4d\x3c\x2b\x1a");
	run_to_port(self, 0x1234, 4, 1, true, "\x01\x02\x03\x04");
	run_to_port(self, PORT, 1, 1, true, "\x77");
	run_to_port(self, PORT, 2, 1, false, "\x77");
	run_to_end(self);
	TEST_ASSERT_EQ(self->regs.r8, 0x04030201ull);
	TEST_ASSERT_EQ(self->regs.r9, 0x77ull);
}

/* The address is found by private page tables, the operand in private pages. */
TEST_F(emul, mmio)
{
	uint64_t at = gva_of(DATA) + PAGE_SIZE - 1;

	self->regs.rsi = gva_of_pte(MMIO_PTE);
	self->regs.rdi = at;
	set_start(self, LABEL(mmio));
	run_to_mmio(self, 0, 8, false, 0x1122334455667788);
	run_to_mmio(self, 2, 2, false, 0x99aa);
	run_to_mmio(self, 8, 4, true, 0x55667788);
	run_to_mmio(self, 16, 4, false, 0x10);
	run_to_mmio(self, 16, 4, true, 0x15);
	run_to_mmio(self, 24, 8, false, 0x0102030405060708);
	/* To the last byte of a page, and the first two of the next. */
	run_to_mmio(self, 32, 1, false, 0xa1);
	run_to_mmio(self, 33, 1, false, 0xa2);
	run_to_mmio(self, 34, 1, false, 0xa3);
	/* These two, and the one behind. */
	run_to_mmio(self, 35, 1, true, 0xa2);
	run_to_mmio(self, 36, 1, true, 0xa3);
	run_to_mmio(self, 37, 1, true, data_word(DATA + 1, 0) >> 16 & 0xff);
	run_to_end(self);
	TEST_ASSERT_EQ(self->regs.r8, 0x1122334455667788ull);
	TEST_ASSERT_EQ(self->regs.r9, 0x99aaull);
	TEST_ASSERT_EQ(self->regs.r10, 0x0102030405060708ull);
	TEST_ASSERT_EQ((uint32_t)guest_load(self, at) & 0xffffff, 0xa3a2a1u);
}

/* Run to an exit of "rep outsb", which may be several; returns what came. */
static void collect(emul_data *self, uint8_t *data, unsigned int len)
{
	struct kvm_run *run = self->vcpu->run;
	unsigned int got = 0;

	while (got < len) {
		vcpu_run(self->vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
		TEST_ASSERT(run->io.port == PORT && run->io.direction == KVM_EXIT_IO_OUT &&
			    run->io.size == 1 && got + run->io.count <= len,
			    "Port %#x, size %d, count %d", run->io.port, run->io.size,
			    run->io.count);
		memcpy(data + got, (void *)run + run->io.data_offset, run->io.count);
		got += run->io.count;
	}
}

static void supply(emul_data *self, const uint8_t *data, unsigned int len)
{
	struct kvm_run *run = self->vcpu->run;
	unsigned int done = 0;

	while (done < len) {
		vcpu_run(self->vcpu);
		TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
		TEST_ASSERT(run->io.port == PORT && run->io.direction == KVM_EXIT_IO_IN &&
			    run->io.size == 1 && done + run->io.count <= len,
			    "Port %#x, size %d, count %d", run->io.port, run->io.size,
			    run->io.count);
		memcpy((void *)run + run->io.data_offset, data + done, run->io.count);
		done += run->io.count;
	}
}

static void start_string(emul_data *self, const char *label, uint64_t gva, uint64_t len)
{
	self->regs.rsi = gva;
	self->regs.rdi = gva;
	self->regs.rcx = len;
	self->regs.rdx = PORT;
	set_start(self, label);
}

/* Over the edge between private pages, and to a shared one and back. */
TEST_F(emul, string_ports)
{
	const uint64_t edges[] = { gva_of(DATA + 1), gva_of(EDGE), gva_of(EDGE + 1) };
	uint8_t data[16], expect[16];
	int i, j;

	/* If it can be, of three pages the one in the middle becomes shared. */
	convert(self, EDGE, 1, false);
	for (i = 0; i < ARRAY_SIZE(edges); i++) {
		uint64_t offset = edges[i] - BASE - 8;

		for (j = 0; j < 16; j += 8) {
			uint64_t page = (offset + j) / PAGE_SIZE;

			memcpy(expect + j, (is_private(self, page) ?
					    self->image : self->alias) + offset + j, 8);
		}
		start_string(self, LABEL(outs), edges[i] - 8, 16);
		collect(self, data, 16);
		run_to_end(self);
		TEST_ASSERT(!memcmp(data, expect, 16), "Edge %d: %#lx, %#lx for %#lx, %#lx", i,
			    *(uint64_t *)data, *(uint64_t *)(data + 8),
			    *(uint64_t *)expect, *(uint64_t *)(expect + 8));

		for (j = 0; j < 16; j++)
			data[j] = i * 16 + j;
		start_string(self, LABEL(ins), edges[i] - 8, 16);
		supply(self, data, 16);
		run_to_end(self);
		for (j = 0; j < 16; j += 8)
			TEST_ASSERT_EQ(guest_load(self, edges[i] - 8 + j), *(uint64_t *)(data + j));
		/* So that the next edge finds what it looks for. */
		guest_store(self, edges[i] - 8, *(uint64_t *)expect);
		guest_store(self, edges[i], *(uint64_t *)(expect + 8));
	}
}

TEST_F(emul, forced)
{
	uint64_t at = gva_of(DATA) + 0x100, edge = gva_of(DATA + 1) - 4, i;

	if (!fep_enabled())
		SKIP(return, "Can't enable " FEP_PARAM);

	TEST_ASSERT_EQ(fep_load(self, at), data_word(DATA, 0x100));
	fep_store(self, at, 0x123456789);
	TEST_ASSERT_EQ(guest_load(self, at), 0x123456789ull);

	/* Over the edge of two private pages. */
	TEST_ASSERT_EQ(fep_load(self, edge), data_word(DATA, 0xff8) >> 32 |
					     data_word(DATA + 1, 0) << 32);
	fep_store(self, edge, 0x1122334455667788);
	TEST_ASSERT_EQ(guest_load(self, edge), 0x1122334455667788ull);

	/* Of a private and a shared page. */
	convert(self, EDGE, 1, false);
	edge = gva_of(EDGE) - 4;
	TEST_ASSERT_EQ(fep_load(self, edge), data_word(EDGE - 1, 0xff8) >> 32 |
					     alias_word(EDGE, 0) << 32);
	fep_store(self, edge, 0x1122334455667788);
	TEST_ASSERT_EQ(guest_load(self, edge), 0x1122334455667788ull);
	TEST_ASSERT_EQ(*(uint32_t *)page_of(self->alias, EDGE), 0x11223344u);

	/* Locked, successful and not. */
	for (i = 0; i < 2; i++) {
		self->regs.rdi = at;
		self->regs.rax = 0x123456789 + i;
		self->regs.rbx = 0x987654321;
		run_code(self, LABEL(fep_cmpxchg));
		TEST_ASSERT_EQ(self->regs.r8, 1 - i);
		if (i)
			TEST_ASSERT_EQ(self->regs.rax, 0x123456789ull);
		TEST_ASSERT_EQ(guest_load(self, at), i ? 0x123456789ull : 0x987654321ull);
		guest_store(self, at, 0x123456789);
	}

	/* All widths. */
	at = gva_of(DATA + 2);
	for (i = 0; i < 32; i += 8)
		guest_store(self, at + i, 0x1111111111111111);
	self->regs.rdi = at;
	self->regs.rax = 0x1111111111111111;
	self->regs.rbx = 0x2222222222222222;
	run_code(self, LABEL(fep_cmpxchg_bytes));
	TEST_ASSERT_EQ(self->regs.r8 + self->regs.r9 + self->regs.r10, 3ull);
	TEST_ASSERT_EQ(self->regs.rbx, 0x1111111111111111ull);
	TEST_ASSERT_EQ(guest_load(self, at), 0x1111111111111122ull);
	TEST_ASSERT_EQ(guest_load(self, at + 8), 0x1111111111112222ull);
	TEST_ASSERT_EQ(guest_load(self, at + 16), 0x1111111122222222ull);
	TEST_ASSERT_EQ(guest_load(self, at + 24), 0x3333333333333333ull);

	run_code(self, LABEL(fep_stack));
	TEST_ASSERT_EQ(self->regs.r8, 0x1234ull);
	TEST_ASSERT_EQ(self->regs.r9, 0x5678ull);
	TEST_ASSERT_EQ(self->regs.rsp, gva_of(STACK_END));

	/* From private to private, from private to shared, back. */
	self->regs.rsi = gva_of(DATA + 6) - 4;
	self->regs.rdi = gva_of(DATA + 8) - 4;
	self->regs.rcx = 8;
	run_code(self, LABEL(fep_movs));
	TEST_ASSERT_EQ(guest_load(self, gva_of(DATA + 8) - 4),
		       data_word(DATA + 5, 0xff8) >> 32 | data_word(DATA + 6, 0) << 32);
	self->regs.rsi = gva_of(DATA + 6) - 4;
	self->regs.rdi = gva_of(EDGE) + 64;
	self->regs.rcx = 8;
	run_code(self, LABEL(fep_movs));
	TEST_ASSERT_EQ(*(uint64_t *)(page_of(self->alias, EDGE) + 64),
		       data_word(DATA + 5, 0xff8) >> 32 | data_word(DATA + 6, 0) << 32);
	self->regs.rsi = gva_of(EDGE) + 128;
	self->regs.rdi = gva_of(DATA + 9);
	self->regs.rcx = 8;
	run_code(self, LABEL(fep_movs));
	TEST_ASSERT_EQ(guest_load(self, gva_of(DATA + 9)), alias_word(EDGE, 128));
}

#define AD(accessed, dirty) \
	(((accessed) ? PTE_ACCESSED_MASK : 0) | ((dirty) ? PTE_DIRTY_MASK : 0))

static void assert_pte(emul_data *self, uint64_t table, uint64_t index, uint64_t pte)
{
	uint64_t value = guest_load(self, gva_of(table) + index * 8);

	TEST_ASSERT(value == pte, "Entry %lu of page table %lu: %#lx for %#lx", index, table,
		    value, pte);
}

/* The emulator's page walk marks what it uses, where it is. */
TEST_F(emul, accessed_and_dirty)
{
	uint64_t *shared_pt = page_of(self->alias, SPARE);

	if (!fep_enabled())
		SKIP(return, "Can't enable " FEP_PARAM);

	/* Nobody has used these before. */
	assert_pte(self, PT, AD_PTE, gva_of(DATA) | PTE_FLAGS);
	TEST_ASSERT_EQ(fep_load(self, gva_of_pte(AD_PTE) + 8), data_word(DATA, 8));
	assert_pte(self, PT, AD_PTE, gva_of(DATA) | PTE_FLAGS | AD(1, 0));
	fep_store(self, gva_of_pte(AD_PTE + 1), 0x9);
	assert_pte(self, PT, AD_PTE + 1, gva_of(DATA + 1) | PTE_FLAGS | AD(1, 1));
	fep_store(self, gva_of_pte(AD_PTE) + 8, 0x10);
	assert_pte(self, PT, AD_PTE, gva_of(DATA) | PTE_FLAGS | AD(1, 1));
	self->regs.rdi = gva_of_pte(AD_PTE + 2);
	self->regs.rax = 0;
	run_code(self, LABEL(fep_cmpxchg));
	assert_pte(self, PT, AD_PTE + 2, gva_of(DATA + 2) | PTE_FLAGS | AD(1, 1));
	assert_pte(self, PT, AD_PTE + 3, gva_of(DATA + 3) | PTE_FLAGS);
	TEST_ASSERT_EQ(guest_load(self, gva_of(DATA)  + 8), 0x10ull);
	TEST_ASSERT_EQ(guest_load(self, gva_of(DATA + 1)), 0x9ull);

	/* At all levels. */
	assert_pte(self, PML4, 1, gva_of(CHAIN + 1) | PTE_FLAGS);
	TEST_ASSERT_EQ(fep_load(self, CHAIN_GVA + 16), data_word(DATA, 16));
	assert_pte(self, PML4, 1, gva_of(CHAIN + 1) | PTE_FLAGS | AD(1, 0));
	assert_pte(self, CHAIN + 1, 0, gva_of(CHAIN + 2) | PTE_FLAGS | AD(1, 0));
	assert_pte(self, CHAIN + 2, 0, gva_of(CHAIN + 3) | PTE_FLAGS | AD(1, 0));
	assert_pte(self, CHAIN + 3, 0, gva_of(DATA) | PTE_FLAGS | AD(1, 0));
	fep_store(self, CHAIN_GVA + PAGE_SIZE, 0x11);
	assert_pte(self, CHAIN + 3, 1, gva_of(DATA + 1) | PTE_FLAGS | AD(1, 1));
	assert_pte(self, CHAIN + 2, 0, gva_of(CHAIN + 3) | PTE_FLAGS | AD(1, 0));

	/* A shared page table is as good, and marked in the shared half. */
	shared_pt[0] = gva_of(DATA + 6) | PTE_FLAGS;
	guest_store(self, gva_of(CHAIN + 2) + 8, gva_of(SPARE) | PTE_FLAGS);
	TEST_ASSERT_EQ(fep_load(self, CHAIN_GVA + SZ_2M), data_word(DATA + 6, 0));
	TEST_ASSERT_EQ(shared_pt[0], gva_of(DATA + 6) | PTE_FLAGS | AD(1, 0));
	fep_store(self, CHAIN_GVA + SZ_2M, 0x12);
	TEST_ASSERT_EQ(shared_pt[0], gva_of(DATA + 6) | PTE_FLAGS | AD(1, 1));
	assert_pte(self, CHAIN + 2, 1, gva_of(SPARE) | PTE_FLAGS | AD(1, 0));

	/* A write to what is read-only ends in the guest, and marks nothing. */
	guest_store(self, gva_of(PT) + (AD_PTE + 4) * 8, gva_of(DATA + 4) | PTE_PRESENT_MASK);
	self->regs.rdi = gva_of_pte(AD_PTE + 4);
	TEST_ASSERT_EQ(try_code(self, LABEL(fep_store)), PF_VECTOR);
	assert_pte(self, PT, AD_PTE + 4, gva_of(DATA + 4) | PTE_PRESENT_MASK);
	self->regs.rsi = gva_of_pte(UNMAPPED_PTE);
	TEST_ASSERT_EQ(try_code(self, LABEL(fep_load)), PF_VECTOR);
}

/* Data, code and page tables change their half between two instructions. */
TEST_F_TIMEOUT(emul, converted_between, TIMEOUT)
{
	uint64_t one_size = LABEL(two) - LABEL(one), two_size = LABEL(done) - LABEL(two);
	uint64_t data = gva_of(SPARE), code = gva_of(SPARE + 1), table = gva_of(SPARE + 2);
	uint64_t *shared_pt = page_of(self->alias, SPARE + 2);
	int i;

	if (!fep_enabled())
		SKIP(return, "Can't enable " FEP_PARAM);

	memcpy(page_of(self->alias, SPARE + 1), LABEL(one), one_size);
	shared_pt[0] = gva_of(DATA) | PTE_FLAGS;
	guest_store(self, gva_of(CHAIN + 2) + 8, table | PTE_FLAGS);

	for (i = 0; i < nr_units(20, 20, 3); i++) {
		uint64_t value = i ? 0x5000 + i - 1 : alias_word(SPARE, 0);

		/* Shared. */
		TEST_ASSERT_EQ(fep_load(self, data), value);
		fep_store(self, data, 0x5000 + i);
		TEST_ASSERT_EQ(*(uint64_t *)page_of(self->alias, SPARE), 0x5000 + i);
		self->regs.rsi = code;
		run_code(self, LABEL(call));
		TEST_ASSERT_EQ(self->regs.rax, 0x11111111ull);
		TEST_ASSERT_EQ(fep_load(self, CHAIN_GVA + SZ_2M), data_word(DATA, 0));

		convert(self, SPARE, 3, true);
		memcpy(page_of(self->saved, SPARE), page_of(self->alias, SPARE), 3 * PAGE_SIZE);

		/* Private. */
		TEST_ASSERT_EQ(fep_load(self, data), 0ull);
		fep_store(self, data, 0x9000 + i);
		TEST_ASSERT_EQ(guest_load(self, data), 0x9000ull + i);
		guest_copy(self, code, code_gva(LABEL(two)), two_size);
		self->regs.rsi = code;
		run_code(self, LABEL(call));
		TEST_ASSERT_EQ(self->regs.rax, 0x22222222ull);
		self->regs.rsi = CHAIN_GVA + SZ_2M;
		TEST_ASSERT_EQ(try_code(self, LABEL(fep_load)), PF_VECTOR);
		guest_store(self, table, gva_of(DATA + 1) | PTE_FLAGS);
		TEST_ASSERT_EQ(fep_load(self, CHAIN_GVA + SZ_2M), data_word(DATA + 1, 0));

		convert(self, SPARE, 3, false);
	}
}

/* String instructions at a device, and over the edge between it and a private page. */
TEST_F(emul, strings_at_mmio)
{
	const uint64_t edge = gva_of_pte(MMIO_PTE);
	uint8_t data[4], expect[4];

	/* From a port to the device. */
	start_string(self, LABEL(ins), edge, 3);
	run_to_port(self, PORT, 1, 3, true, "\x01\x02\x03");
	run_to_mmio(self, 0, 3, true, 0x030201);
	run_to_end(self);

	/* And back. */
	start_string(self, LABEL(outs), edge, 2);
	run_to_mmio(self, 0, 1, false, 0x11);
	run_to_port(self, PORT, 1, 1, false, "\x11");
	run_to_mmio(self, 1, 1, false, 0x12);
	run_to_port(self, PORT, 1, 1, false, "\x12");
	run_to_end(self);

	/* From the device to itself. */
	self->regs.rsi = edge;
	self->regs.rdi = edge + 16;
	self->regs.rcx = 2;
	set_start(self, LABEL(movs));
	run_to_mmio(self, 0, 1, false, 0x21);
	run_to_mmio(self, 16, 1, true, 0x21);
	run_to_mmio(self, 1, 1, false, 0x22);
	run_to_mmio(self, 17, 1, true, 0x22);
	run_to_end(self);

	/* The page before the device is a private one. */
	guest_store(self, gva_of(PT) + (MMIO_PTE - 1) * 8, gva_of(DATA) | PTE_FLAGS);
	memcpy(expect, page_of(self->image, DATA + 1) - 2, 2);
	start_string(self, LABEL(outs), edge - 2, 4);
	collect(self, data, 2);
	TEST_ASSERT(!memcmp(data, expect, 2), "%#x %#x for %#x %#x", data[0], data[1],
		    expect[0], expect[1]);
	run_to_mmio(self, 0, 1, false, 0x31);
	run_to_port(self, PORT, 1, 1, false, "\x31");
	run_to_mmio(self, 1, 1, false, 0x32);
	run_to_port(self, PORT, 1, 1, false, "\x32");
	run_to_end(self);

	start_string(self, LABEL(ins), edge - 2, 4);
	run_to_port(self, PORT, 1, 2, true, "\x41\x42");
	run_to_port(self, PORT, 1, 2, true, "\x43\x44");
	run_to_mmio(self, 0, 2, true, 0x4443);
	run_to_end(self);
	TEST_ASSERT_EQ(guest_load(self, gva_of(DATA + 1) - 8) >> 48, 0x4241ull);
}

struct converter {
	emul_data *emul;
	uint64_t conversions;
	bool stop;
};

static void *convert_all_the_time(void *arg)
{
	struct converter *converter = arg;

	while (!READ_ONCE(converter->stop)) {
		convert(converter->emul, SPARE, 3, true);
		if (converter->conversions++ % 3)
			sched_yield();
		/* To zero it took seconds, and the guest has to see it, too. */
		if (backing_is_1g())
			usleep(100000);
		convert(converter->emul, SPARE, 3, false);
	}
	return NULL;
}

/*
 * What the guest executes may be anything by now, so it may end in any way that
 * the architecture has; but it does end, and KVM can say how.  Returns whether
 * that is the end of the piece of code.
 */
static bool run_to_any_end(emul_data *self, const char *label, const struct kvm_sregs *sregs)
{
	struct kvm_run *run = self->vcpu->run;
	struct kvm_vcpu_events events = {};
	bool done;

	set_start(self, label);
	vcpu_run(self->vcpu);
	done = run->exit_reason == KVM_EXIT_IO && run->io.port == PORT_DONE;
	switch (run->exit_reason) {
	case KVM_EXIT_IO:
	case KVM_EXIT_MMIO:
		vcpu_run_complete_io(self->vcpu);
		break;
	case KVM_EXIT_HLT:
	case KVM_EXIT_SHUTDOWN:
	case KVM_EXIT_INTERNAL_ERROR:
		break;
	default:
		TEST_FAIL("Unexpected exit %s", exit_reason_str(run->exit_reason));
	}
	vcpu_regs_get(self->vcpu, &self->regs);
	if (!done) {
		vcpu_sregs_set(self->vcpu, (struct kvm_sregs *)sregs);
		vcpu_events_set(self->vcpu, &events);
	}
	return done;
}

/* Both halves of the data, by loads and by locked accesses, and of the page table. */
static bool all_met(uint64_t seen[4][3])
{
	return seen[0][0] && seen[0][1] && seen[1][0] && seen[1][1] && seen[3][1] && seen[3][2];
}

/* Data, code and a page table change their half while KVM uses them. */
TEST_F_TIMEOUT(emul, converted_all_the_time, TIMEOUT)
{
	uint64_t data = gva_of(SPARE), code = gva_of(SPARE + 1), seen[4][3] = {};
	struct converter converter = { .emul = self };
	struct kvm_sregs sregs;
	pthread_t thread;
	time_t end;
	int i;

	if (!fep_enabled())
		SKIP(return, "Can't enable " FEP_PARAM);

	memcpy(page_of(self->alias, SPARE + 1), LABEL(one), LABEL(two) - LABEL(one));
	*(uint64_t *)page_of(self->alias, SPARE + 2) = gva_of(DATA) | PTE_FLAGS;
	/* Where the guest comes to if the code is gone. */
	memcpy(page_of(self->alias, SPARE + 3), LABEL(done), LABEL(code_end) - LABEL(done));
	guest_store(self, gva_of(CHAIN + 2) + 8, gva_of(SPARE + 2) | PTE_FLAGS);
	vcpu_sregs_get(self->vcpu, &sregs);
	pthread_create(&thread, NULL, convert_all_the_time, &converter);

	/* One of 1 GiB takes a while, and its page is random. */
	end = time(NULL) + 4;
	while (time(NULL) < end ||
	       ((READ_ONCE(converter.conversions) <= 10 || !all_met(seen)) &&
		time(NULL) < end + 60)) {
		self->regs.rsi = data + 8;
		TEST_ASSERT(run_to_any_end(self, LABEL(fep_load), &sregs), "The load failed");
		TEST_ASSERT(!self->regs.rax || self->regs.rax == alias_word(SPARE, 8),
			    "The guest has loaded %#llx", self->regs.rax);
		seen[0][!self->regs.rax]++;

		self->regs.rdi = data + 64;
		self->regs.rax = 0;
		self->regs.rbx = 1;
		TEST_ASSERT(run_to_any_end(self, LABEL(fep_cmpxchg), &sregs), "The cmpxchg failed");
		seen[1][self->regs.r8 == 1]++;

		self->regs.rsi = code;
		self->regs.rax = gva_of(DATA + 12);
		if (run_to_any_end(self, LABEL(call), &sregs))
			seen[2][(uint32_t)self->regs.rax == 0x11111111]++;
		else
			seen[2][2]++;

		self->regs.rsi = CHAIN_GVA + SZ_2M;
		self->regs.rax = 0;
		if (run_to_any_end(self, LABEL(fep_load), &sregs)) {
			TEST_ASSERT_EQ(self->regs.rax, data_word(DATA, 0));
			seen[3][1]++;
		} else {
			seen[3][2]++;
		}
	}

	WRITE_ONCE(converter.stop, true);
	pthread_join(thread, NULL);
	for (i = 0; i < 4; i++)
		pr_info("# %lu %lu %lu\n", seen[i][0], seen[i][1], seen[i][2]);
	pr_info("# %lu conversions\n", converter.conversions);
	TEST_ASSERT(all_met(seen), "Not both halves of data and page table have been met");

	/* Nothing else has changed. */
	check_alias(self);
	for (i = 1; i < 12; i++)
		TEST_ASSERT_EQ(guest_load(self, gva_of(DATA + i) + i * 8),
			       data_word(DATA + i, i * 8));
}

struct slot_changer {
	struct kvm_vm *vm;
	int fd;
	void *hva;
	int slot;
	int changes;
	bool stop;
};

static void *change_slot(void *arg)
{
	struct slot_changer *changer = arg;

	while (!READ_ONCE(changer->stop)) {
		vm_add_private(changer->vm, changer->slot, MMIO_GPA, SLOT_SIZE, changer->hva,
			       changer->fd, 0);
		vm_delete_private(changer->vm, changer->slot);
		changer->changes++;
	}
	return NULL;
}

/*
 * A locked access to a slot that comes and goes: to its page, or it is MMIO.  If the
 * slot comes in the middle it is executed anew.
 */
TEST_F_TIMEOUT(emul, slot_comes_and_goes, TIMEOUT)
{
	struct slot_changer changer = { .vm = self->vm, .slot = PRIVATE_SLOT + 1 };
	struct kvm_run *run = self->vcpu->run;
	uint64_t seen[2] = {}, anew = 0;
	pthread_t thread;
	time_t end;

	if (!fep_enabled())
		SKIP(return, "Can't enable " FEP_PARAM);

	changer.fd = private_memfd(FILE_SIZE);
	changer.hva = map_shared_half(SLOT_SIZE);
	memfd_to_private(changer.fd, 0, FILE_SIZE);
	pthread_create(&thread, NULL, change_slot, &changer);
	end = time(NULL) + 3;
	while (time(NULL) < end ||
	       ((!seen[0] || !seen[1] || !anew) && time(NULL) < end + 60)) {
		bool mmio = false;
		int r;

		self->regs.rdi = gva_of_pte(MMIO_PTE);
		self->regs.rax = 0;
		self->regs.rbx = 1;
		set_start(self, LABEL(fep_cmpxchg));
		while ((r = _vcpu_run(self->vcpu)) || run->exit_reason == KVM_EXIT_MMIO) {
			if (r) {
				assert_memory_fault(self->vcpu, r, EFAULT,
						    KVM_MEMORY_EXIT_FLAG_PRIVATE, MMIO_GPA);
				anew++;
				continue;
			}
			mmio = true;
			memset(run->mmio.data, 0, sizeof(run->mmio.data));
		}
		TEST_ASSERT(run->exit_reason == KVM_EXIT_IO && run->io.port == PORT_DONE,
			    "Unexpected exit %s", exit_reason_str(run->exit_reason));
		finish(self);
		seen[mmio]++;
	}
	WRITE_ONCE(changer.stop, true);
	pthread_join(thread, NULL);
	pr_info("# %lu to the page, %lu to the device, %lu anew, %d slots\n", seen[0], seen[1],
		anew, changer.changes);
	TEST_ASSERT(seen[0] && seen[1], "Not both of page and device have been met");
	TEST_ASSERT(anew, "The slot never came in the middle");
	close(changer.fd);
}

static void assert_translation(emul_data *self, uint64_t gva, bool valid, uint64_t gpa)
{
	struct kvm_translation tr = {
		.linear_address = gva,
	};

	vcpu_ioctl(self->vcpu, KVM_TRANSLATE, &tr);
	TEST_ASSERT(tr.valid == valid && (!valid || tr.physical_address == gpa),
		    "KVM_TRANSLATE of %#lx: valid %d, gpa %#llx for valid %d, gpa %#lx", gva,
		    tr.valid, tr.physical_address, valid, gpa);
	check_alias(self);
}

TEST_F(emul, translate)
{
	uint64_t *shared_pt = page_of(self->alias, SPARE);

	assert_translation(self, gva_of(DATA) + 0x123, true, gva_of(DATA) + 0x123);
	assert_translation(self, gva_of_pte(MMIO_PTE) + 8, true, MMIO_GPA + 8);
	assert_translation(self, CHAIN_GVA + PAGE_SIZE + 7, true, gva_of(DATA + 1) + 7);
	assert_translation(self, gva_of_pte(UNMAPPED_PTE), false, 0);

	/* By a shared page table, a private one, and one that isn't there. */
	shared_pt[0] = gva_of(DATA + 6) | PTE_FLAGS;
	guest_store(self, gva_of(CHAIN + 2) + 8, gva_of(SPARE) | PTE_FLAGS);
	assert_translation(self, CHAIN_GVA + SZ_2M, true, gva_of(DATA + 6));
	memcpy(self->saved, self->alias, SLOT_SIZE);
	convert(self, SPARE, 1, true);
	assert_translation(self, CHAIN_GVA + SZ_2M, false, 0);
	guest_store(self, gva_of(SPARE), gva_of(DATA + 7) | PTE_FLAGS);
	assert_translation(self, CHAIN_GVA + SZ_2M, true, gva_of(DATA + 7));
	convert(self, SPARE, 1, false);
	assert_translation(self, CHAIN_GVA + SZ_2M, true, gva_of(DATA + 6));
	TEST_ASSERT(!mprotect(shared_pt, PAGE_SIZE, PROT_NONE), "mprotect() failed");
	assert_translation(self, CHAIN_GVA + SZ_2M, false, 0);
	TEST_ASSERT_EQ(is_private(self, SPARE), false);
}

/* KVM reads the four entries of the PDPT itself. */
TEST_F(emul, pdptes)
{
	struct kvm_sregs2 sregs;
	uint64_t i;

	if (!kvm_has_cap(KVM_CAP_SREGS2))
		SKIP(return, "There is no KVM_SET_SREGS2");

	for (i = 0; i < 4; i++)
		guest_store(self, gva_of(DATA) + i * 8, gva_of(i + 1) | PTE_PRESENT_MASK);
	vcpu_ioctl(self->vcpu, KVM_GET_SREGS2, &sregs);
	set_segment((struct kvm_segment *)&sregs.cs, 8, 11, false);
	sregs.efer = 0;
	sregs.cr3 = gva_of(DATA);
	sregs.flags = 0;
	vcpu_ioctl(self->vcpu, KVM_SET_SREGS2, &sregs);
	memset(&sregs, 0, sizeof(sregs));
	vcpu_ioctl(self->vcpu, KVM_GET_SREGS2, &sregs);
	TEST_ASSERT(sregs.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID, "There are no PDPTEs");
	for (i = 0; i < 4; i++)
		TEST_ASSERT_EQ(sregs.pdptrs[i], gva_of(i + 1) | PTE_PRESENT_MASK);
	check_alias(self);
}

/* The guest goes on to a page that isn't there, twice; nobody allocates it. */
static void run_to_hole(emul_data *self, uint64_t page)
{
	int i;

	for (i = 0; i < 2; i++)
		assert_memory_fault(self->vcpu, _vcpu_run(self->vcpu), EFAULT,
				    KVM_MEMORY_EXIT_FLAG_PRIVATE, gva_of(page));
	TEST_ASSERT_EQ(is_private(self, page), false);
	check_alias(self);
}

/* The last pages of the slot have no shared half any more, nor the private yet. */
static void make_holes(emul_data *self)
{
	TEST_ASSERT(!mprotect(page_of(self->alias, SPARE), (NR_PAGES - SPARE) * PAGE_SIZE,
			      PROT_NONE), "mprotect() failed: %s", strerror(errno));
	self->saved = map_shared_half(SLOT_SIZE);
	memcpy(self->saved, self->alias, SPARE * PAGE_SIZE);
}

static void fill_hole(emul_data *self, uint64_t page)
{
	/* All holes are of one unit if units are huge. */
	uint64_t nr = backing_is_hugetlb() ? NR_PAGES - page : 1;

	/* Then it can be compared again. */
	memset(page_of(self->saved, page), 0, nr * PAGE_SIZE);
	TEST_ASSERT(mmap(page_of(self->alias, page), nr * PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED,
		    "mmap() failed: %s", strerror(errno));
	convert(self, page, nr, true);
}

#define TASK_CS		0x20
#define TASK_TSS	0x28

static uint64_t tss_descriptor(uint64_t base, uint8_t type)
{
	return 0x67 | (base & 0xffffff) << 16 | (uint64_t)(0x80 | type) << 40 |
	       (base >> 24 & 0xff) << 56;
}

/* Where KVM emulates task switches it reads and writes both TSS, and the GDT. */
static void start_task_switch(emul_data *self, uint64_t tss)
{
	struct kvm_sregs sregs;

	guest_store(self, gva_of(GDT) + 24, tss_descriptor(gva_of(GDT) + 2048, 11));
	guest_store(self, gva_of(GDT) + TASK_CS, 0x00cf9b000000ffff);
	guest_store(self, gva_of(GDT) + TASK_TSS, tss_descriptor(tss, 9));

	vcpu_sregs_get(self->vcpu, &sregs);
	set_segment(&sregs.cs, TASK_CS, 11, false);
	sregs.gdt.limit = TASK_TSS + 7;
	sregs.cr0 &= ~X86_CR0_PG;
	sregs.cr4 = 0;
	sregs.efer = 0;
	vcpu_sregs_set(self->vcpu, &sregs);
	set_start(self, LABEL(task));
}

TEST_F(emul, task_switch)
{
	const uint64_t tss = gva_of(DATA);
	struct kvm_sregs sregs;
	uint64_t i;

	for (i = 0; i < 104; i += 8)
		guest_store(self, tss + i, 0);
	guest_store(self, tss + 0x20, code_gva(LABEL(task_two)) | (uint64_t)X86_EFLAGS_FIXED << 32);
	guest_store(self, tss + 0x28, 0x1234);				/* eax */
	guest_store(self, tss + 0x48, 16 | (uint64_t)TASK_CS << 32);	/* es, cs */
	guest_store(self, tss + 0x50, 16 | 16ull << 32);		/* ss, ds */
	start_task_switch(self, tss);
	run_to_end(self);
	TEST_ASSERT_EQ(self->regs.rax, 0x1234ull);
	vcpu_sregs_get(self->vcpu, &sregs);
	TEST_ASSERT_EQ(sregs.tr.selector, TASK_TSS);
	TEST_ASSERT_EQ(sregs.tr.base, tss);
}

/*
 * KVM gives up on a task switch that it can't complete, as half of it may be done;
 * a CPU that does it by itself faults.
 */
TEST_F(emul, task_switch_to_hole)
{
	struct kvm_run *run = self->vcpu->run;
	int r;

	if (backing_is_hugetlb())
		SKIP(return, HOLES_REASON);
	make_holes(self);
	start_task_switch(self, gva_of(SPARE));
	r = _vcpu_run(self->vcpu);
	if (r)
		assert_memory_fault(self->vcpu, r, EFAULT, KVM_MEMORY_EXIT_FLAG_PRIVATE,
				    gva_of(SPARE));
	else
		TEST_ASSERT(run->exit_reason == KVM_EXIT_INTERNAL_ERROR &&
			    run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION,
			    "Unexpected exit %s", exit_reason_str(run->exit_reason));
	TEST_ASSERT_EQ(is_private(self, SPARE), false);
	check_alias(self);
}

/* Without any help by the emulator: data, code, a page table. */
TEST_F(emul, holes)
{
	if (backing_is_hugetlb())
		SKIP(return, HOLES_REASON);
	make_holes(self);

	self->regs.rsi = gva_of(SPARE) + 8;
	set_start(self, LABEL(load));
	run_to_hole(self, SPARE);
	fill_hole(self, SPARE);
	run_to_end(self);
	TEST_ASSERT_EQ(self->regs.rax, 0ull);

	self->regs.rsi = gva_of(SPARE + 1);
	set_start(self, LABEL(call));
	run_to_hole(self, SPARE + 1);
	fill_hole(self, SPARE + 1);
	guest_copy(self, gva_of(SPARE + 1), code_gva(LABEL(load)), LABEL(store) - LABEL(load));
	self->regs.rip = gva_of(SPARE + 1);
	self->regs.rsi = gva_of(DATA);
	vcpu_regs_set(self->vcpu, &self->regs);
	run_to_end(self);
	TEST_ASSERT_EQ(self->regs.rax, data_word(DATA, 0));

	guest_store(self, gva_of(CHAIN + 2) + 8, gva_of(SPARE + 2) | PTE_FLAGS);
	self->regs.rsi = CHAIN_GVA + SZ_2M;
	set_start(self, LABEL(load));
	run_to_hole(self, SPARE + 2);
	fill_hole(self, SPARE + 2);
	guest_store(self, gva_of(SPARE + 2), gva_of(DATA + 1) | PTE_FLAGS);
	TEST_ASSERT_EQ(guest_load(self, CHAIN_GVA + SZ_2M), data_word(DATA + 1, 0));
}

/* String I/O, which is always emulated. */
TEST_F(emul, holes_of_string_ports)
{
	uint8_t data[16];

	if (backing_is_hugetlb())
		SKIP(return, HOLES_REASON);
	make_holes(self);
	start_string(self, LABEL(outs), gva_of(SPARE), 8);
	run_to_hole(self, SPARE);
	fill_hole(self, SPARE);
	collect(self, data, 8);
	run_to_end(self);
	TEST_ASSERT_EQ(*(uint64_t *)data, 0);

	/* Half of it is there. */
	guest_store(self, gva_of(SPARE + 1) - 8, 0x0706050403020100);
	start_string(self, LABEL(outs), gva_of(SPARE + 1) - 8, 16);
	collect(self, data, 8);
	run_to_hole(self, SPARE + 1);
	fill_hole(self, SPARE + 1);
	collect(self, data + 8, 8);
	run_to_end(self);
	TEST_ASSERT_EQ(*(uint64_t *)data, 0x0706050403020100ull);
	TEST_ASSERT_EQ(*(uint64_t *)(data + 8), 0ull);
}

/*
 * What a device has given has nowhere to go: it must not get lost, nor be asked
 * for a second time, when the hole is filled.
 */
TEST_F(emul, hole_of_string_input)
{
	uint8_t data[16];
	int i;

	for (i = 0; i < sizeof(data); i++)
		data[i] = 0x10 + i;

	make_holes(self);
	start_string(self, LABEL(ins), gva_of(SPARE), 8);
	run_to_port(self, PORT, 1, 8, true, data);
	run_to_hole(self, SPARE);
	fill_hole(self, SPARE);
	run_to_end(self);
	TEST_ASSERT_EQ(guest_load(self, gva_of(SPARE)), *(uint64_t *)data);
	TEST_ASSERT_EQ(self->regs.rcx, 0ull);
	if (backing_is_hugetlb())
		return;

	/* Half of it has a place. */
	start_string(self, LABEL(ins), gva_of(SPARE + 1) - 8, 16);
	run_to_port(self, PORT, 1, 8, true, data);
	run_to_port(self, PORT, 1, 8, true, data + 8);
	run_to_hole(self, SPARE + 1);
	fill_hole(self, SPARE + 1);
	run_to_end(self);
	TEST_ASSERT_EQ(guest_load(self, gva_of(SPARE + 1) - 8), *(uint64_t *)data);
	TEST_ASSERT_EQ(guest_load(self, gva_of(SPARE + 1)), *(uint64_t *)(data + 8));

	/* From behind, byte by byte; KVM reads ahead what is in the page. */
	start_string(self, LABEL(ins_backwards), gva_of(SPARE + 2) + 3, 4);
	run_to_port(self, PORT, 1, 3, true, data);
	run_to_hole(self, SPARE + 2);
	fill_hole(self, SPARE + 2);
	run_to_port(self, PORT, 1, 1, true, data + 3);
	run_to_end(self);
	TEST_ASSERT_EQ(guest_load(self, gva_of(SPARE + 2)), 0x10111213ull);
}

/* The same for a device that is read by MMIO, once. */
static void start_mmio(emul_data *self, const char *label, uint64_t gva)
{
	self->regs.rsi = gva_of_pte(MMIO_PTE);
	self->regs.rdi = gva;
	self->regs.r8 = 0;
	set_start(self, label);
}

TEST_F(emul, holes_of_mmio)
{
	if (backing_is_hugetlb())
		SKIP(return, HOLES_REASON);
	make_holes(self);

	/* Two bytes to one page, one to the next. */
	fill_hole(self, SPARE);
	self->regs.rcx = 3;
	start_mmio(self, LABEL(mmio_movs), gva_of(SPARE + 1) - 2);
	run_to_mmio(self, 0, 1, false, 0xa1);
	run_to_mmio(self, 1, 1, false, 0xa2);
	run_to_mmio(self, 2, 1, false, 0xa3);
	run_to_hole(self, SPARE + 1);
	fill_hole(self, SPARE + 1);
	run_to_end(self);
	TEST_ASSERT_EQ(guest_load(self, gva_of(SPARE + 1) - 2) & 0xffffff, 0xa3a2a1ull);

	/* The CPU would look at the hole first, the emulator doesn't. */
	self->regs.rcx = 2;
	start_mmio(self, LABEL(mmio_cmps), gva_of(SPARE + 2) - 1);
	run_to_mmio(self, 0, 1, false, 0);
	run_to_mmio(self, 1, 1, false, 0);
	run_to_hole(self, SPARE + 2);
	fill_hole(self, SPARE + 2);
	run_to_end(self);
	TEST_ASSERT_EQ(self->regs.r8, 1ull);
	TEST_ASSERT_EQ(self->regs.rcx, 0ull);

	/* Not only strings: a stack, one with a return address on it. */
	start_mmio(self, LABEL(mmio_push), 0);
	self->regs.rsp = gva_of(SPARE + 4);
	vcpu_regs_set(self->vcpu, &self->regs);
	run_to_mmio(self, 0, 8, false, 0x1122334455667788);
	run_to_hole(self, SPARE + 3);
	fill_hole(self, SPARE + 3);
	run_to_end(self);
	TEST_ASSERT_EQ(self->regs.rsp, gva_of(SPARE + 4) - 8);
	TEST_ASSERT_EQ(guest_load(self, gva_of(SPARE + 4) - 8), 0x1122334455667788ull);

	start_mmio(self, LABEL(mmio_call), 0);
	self->regs.rsp = gva_of(SPARE + 5);
	vcpu_regs_set(self->vcpu, &self->regs);
	run_to_mmio(self, 0, 8, false, code_gva(LABEL(called)));
	run_to_hole(self, SPARE + 4);
	fill_hole(self, SPARE + 4);
	run_to_end(self);
	TEST_ASSERT_EQ(self->regs.r8, 0x2222ull);
	TEST_ASSERT_EQ(self->regs.rsp, gva_of(SPARE + 5));
}

/*
 * The descriptor table is in a hole.  KVM reads it as the system does, and what
 * goes wrong there looks like success: without an exit the guest would read its
 * device again and again.
 */
TEST_F(emul, hole_of_descriptor_table)
{
	struct kvm_sregs sregs;

	if (backing_is_hugetlb())
		SKIP(return, HOLES_REASON);
	make_holes(self);
	vcpu_sregs_get(self->vcpu, &sregs);
	sregs.gdt.base = gva_of(SPARE);
	vcpu_sregs_set(self->vcpu, &sregs);

	start_mmio(self, LABEL(mmio_segment), 0);
	run_to_mmio(self, 0, 2, false, 16);
	run_to_hole(self, SPARE);
	/* A shared page will do, and userspace can fill it. */
	TEST_ASSERT(!mprotect(page_of(self->alias, SPARE), PAGE_SIZE, PROT_READ | PROT_WRITE),
		    "mprotect() failed: %s", strerror(errno));
	memcpy(page_of(self->alias, SPARE), page_of(self->image, GDT), PAGE_SIZE);
	run_to_end(self);
	TEST_ASSERT_EQ(self->regs.r8, 0x1234ull);
	vcpu_sregs_get(self->vcpu, &sregs);
	TEST_ASSERT_EQ(sregs.fs.selector, 16);
}

/* The exit says what went wrong, not which bytes of private memory were fetched. */
TEST_F(emul, instruction_bytes)
{
	struct kvm_run *run = self->vcpu->run;
	const uint8_t *bytes = (void *)LABEL(mmio_flds);
	size_t i;

	vm_enable_cap(self->vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1);
	memset(&run->emulation_failure, 0xee, 16 * sizeof(uint64_t));
	start_mmio(self, LABEL(mmio_flds), 0);
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_INTERNAL_ERROR);
	TEST_ASSERT_EQ(run->emulation_failure.suberror, KVM_INTERNAL_ERROR_EMULATION);
	TEST_ASSERT(run->emulation_failure.ndata >= 1, "There are no flags");
	TEST_ASSERT_EQ(run->emulation_failure.flags, 0ull);
	for (i = 0; i < sizeof(run->padding) - 4; i++)
		TEST_ASSERT(memcmp(run->padding + i, bytes, 4),
			    "The instruction is at byte %lu of the exit", i);
	check_alias(self);
}

/* The rest of the emulator: each kind of access to a hole. */
TEST_F(emul, holes_when_forced)
{
	const struct {
		const char *name;
		const char *label;
	} tries[] = {
		{ "load", LABEL(fep_load) },
		{ "store", LABEL(fep_store) },
		{ "cmpxchg", LABEL(fep_cmpxchg) },
		{ "movs", LABEL(fep_movs) },
	};
	int i;

	if (!fep_enabled())
		SKIP(return, "Can't enable " FEP_PARAM);

	if (backing_is_hugetlb())
		SKIP(return, HOLES_REASON);
	make_holes(self);
	for (i = 0; i < ARRAY_SIZE(tries); i++) {
		pr_info("# %s\n", tries[i].name);
		self->regs.rsi = gva_of(SPARE + i);
		self->regs.rdi = gva_of(SPARE + i);
		self->regs.rax = 0;
		self->regs.rbx = 0x9;
		self->regs.rcx = 1;
		set_start(self, tries[i].label);
		run_to_hole(self, SPARE + i);
		fill_hole(self, SPARE + i);
		run_to_end(self);
	}
	TEST_ASSERT_EQ(guest_load(self, gva_of(SPARE + 2)), 0x9ull);

	/* Over the edge, done again as a whole. */
	pr_info("# straddle\n");
	self->regs.rdi = gva_of(SPARE + 4) - 4;
	self->regs.rax = 0x1122334455667788;
	set_start(self, LABEL(fep_store));
	run_to_hole(self, SPARE + 4);
	fill_hole(self, SPARE + 4);
	run_to_end(self);
	TEST_ASSERT_EQ(guest_load(self, gva_of(SPARE + 4) - 4), 0x1122334455667788ull);

	/* What KVM takes for an access by the system. */
	pr_info("# sgdt\n");
	self->regs.rdi = gva_of(SPARE + 8);
	set_start(self, LABEL(fep_sgdt));
	run_to_hole(self, SPARE + 8);
	fill_hole(self, SPARE + 8);
	run_to_end(self);
	TEST_ASSERT(guest_load(self, gva_of(SPARE + 8)), "SGDT has stored nothing");

	/* The page table. */
	pr_info("# page walk\n");
	guest_store(self, gva_of(CHAIN + 2) + 8, gva_of(SPARE + 5) | PTE_FLAGS);
	self->regs.rsi = CHAIN_GVA + SZ_2M;
	set_start(self, LABEL(fep_load));
	run_to_hole(self, SPARE + 5);
	fill_hole(self, SPARE + 5);
	guest_store(self, gva_of(SPARE + 5), gva_of(DATA + 1) | PTE_FLAGS);
	TEST_ASSERT_EQ(fep_load(self, CHAIN_GVA + SZ_2M), data_word(DATA + 1, 0));

	/* The instruction: its prefix is on one page, the rest on the next. */
	pr_info("# fetch\n");
	fill_hole(self, SPARE + 6);
	guest_copy(self, gva_of(SPARE + 7) - 5, code_gva(LABEL(fep_load)), 5);
	self->regs.rip = gva_of(SPARE + 7) - 5;
	self->regs.rsi = gva_of(DATA + 2);
	vcpu_regs_set(self->vcpu, &self->regs);
	run_to_hole(self, SPARE + 7);
	fill_hole(self, SPARE + 7);
	guest_copy(self, gva_of(SPARE + 7), code_gva(LABEL(fep_load)) + 5,
		   LABEL(fep_store) - LABEL(fep_load) - 5);
	self->regs.rip = gva_of(SPARE + 7) - 5;
	self->regs.rsi = gva_of(DATA + 2);
	vcpu_regs_set(self->vcpu, &self->regs);
	run_to_end(self);
	TEST_ASSERT_EQ(self->regs.rax, data_word(DATA + 2, 0));
}

/* Paravirtual structures that KVM writes by itself, at almost any time. */
static const struct {
	const char *name;
	uint32_t msr;
	uint32_t bits;
	bool idle;		/* nothing is written before there is a fault */
	bool exits;		/* rather than let the guest go on without */
} pv_msrs[] = {
	{ "wall clock, old", MSR_KVM_WALL_CLOCK, 0, .exits = true },
	{ "system time, old", MSR_KVM_SYSTEM_TIME, 1, .exits = true },
	{ "wall clock", MSR_KVM_WALL_CLOCK_NEW, 0, .exits = true },
	{ "system time", MSR_KVM_SYSTEM_TIME_NEW, 1, .exits = true },
	{ "steal time", MSR_KVM_STEAL_TIME, KVM_MSR_ENABLED },
	{ "PV EOI", MSR_KVM_PV_EOI_EN, KVM_MSR_ENABLED },
	{ "async page faults", MSR_KVM_ASYNC_PF_EN, KVM_ASYNC_PF_ENABLED, .idle = true },
};

FIXTURE(pv) {
};

FIXTURE_SETUP(pv)
{
}

FIXTURE_TEARDOWN(pv)
{
}

static bool guest_wrmsr(emul_data *self, uint32_t msr, uint64_t value)
{
	int vector;

	self->regs.rcx = msr;
	self->regs.rax = value & 0xffffffff;
	self->regs.rdx = value >> 32;
	vector = try_code(self, LABEL(wrmsr));
	TEST_ASSERT(vector == -1 || vector == GP_VECTOR, "Exception %d", vector);
	return vector == -1;
}

/*
 * Whatever makes KVM update its structures: entries, sleeping, an interrupt.
 * Returns what was at @gva when that had just come in.
 */
static uint64_t provoke(emul_data *self, uint64_t gva)
{
	struct kvm_msi msi = {
		.address_lo = 0xfee00000,
		.data = IRQ_VECTOR,
	};
	struct kvm_clock_data clock;
	int i;

	for (i = 0; i < 4; i++) {
		guest_load(self, gva_of(DATA));
		vm_ioctl(self->vm, KVM_GET_CLOCK, &clock);
		clock.flags = 0;
		vm_ioctl(self->vm, KVM_SET_CLOCK, &clock);
		usleep(1000);
	}

	self->regs.r13 = 0;
	self->regs.r14 = gva;
	set_start(self, LABEL(wait_for_irq));
	TEST_ASSERT(__vm_ioctl(self->vm, KVM_SIGNAL_MSI, &msi) == 1, "KVM_SIGNAL_MSI failed");
	for (i = 0; i < 3; i++)
		run_to_port(self, PORT_IRQ, 1, 1, false, NULL);
	run_to_end(self);
	return self->regs.r13;
}

/*
 * Any exit between the interrupt and its handler's look at @gva takes a PV EOI back,
 * and the host has interrupts of its own: what @i does is seen by some attempts.
 */
static uint64_t provoke_msr(emul_data *self, int i, uint64_t gva)
{
	int attempts = pv_msrs[i].msr == MSR_KVM_PV_EOI_EN ? 50 : 1;
	uint64_t value = 0;

	while (!value && attempts--)
		value = provoke(self, gva);
	return value;
}

static void pv_create(emul_data *self)
{
	struct kvm_sregs sregs;

	memset(self, 0, sizeof(*self));
	emul_create(self, false, true);
	vcpu_sregs_get(self->vcpu, &sregs);
	sregs.apic_base = 0xfee00d00;	/* x2APIC, of the boot CPU */
	vcpu_sregs_set(self->vcpu, &sregs);
	TEST_ASSERT(guest_wrmsr(self, 0x80f, 0x1ff), "The APIC can't be enabled");
}

static bool has_msr(uint32_t msr)
{
	const struct kvm_msr_list *list = kvm_get_msr_index_list();
	int i;

	for (i = 0; i < list->nmsrs; i++)
		if (list->indices[i] == msr)
			return true;
	return false;
}

/* In a private page from the start. */
TEST_F_TIMEOUT(pv, msrs_of_private_pages, TIMEOUT)
{
	const uint64_t gva = gva_of(DATA + 1), offset = 0x40;
	emul_data data, *emul = &data;
	uint64_t value, j;
	int i;

	for (i = 0; i < ARRAY_SIZE(pv_msrs); i++) {
		bool taken, changed;

		TEST_ASSERT(has_msr(pv_msrs[i].msr), "There is no MSR %#x", pv_msrs[i].msr);
		pv_create(emul);
		for (j = 0; j < 128; j += 8)
			guest_store(emul, gva + offset + j, 0);
		value = provoke(emul, gva + offset);
		TEST_ASSERT_EQ(value, 0);
		taken = guest_wrmsr(emul, pv_msrs[i].msr, (gva + offset) | pv_msrs[i].bits);
		changed = provoke_msr(emul, i, gva + offset);
		for (j = 0; j < PAGE_SIZE; j += 8) {
			value = guest_load(emul, gva + j);
			if (j >= offset && j < offset + 128)
				changed |= value != 0;
			else
				TEST_ASSERT_EQ(value, data_word(DATA + 1, j));
		}
		pr_info("# %s: %s, %s\n", pv_msrs[i].name, taken ? "taken" : "#GP",
			changed ? "works" : "nothing is written");
		TEST_ASSERT(taken && changed == !pv_msrs[i].idle, "%s doesn't work",
			    pv_msrs[i].name);

		/* Punched, the other half is the right one, if any. */
		if (!backing_is_hugetlb())
			convert(emul, DATA + 1, 1, false);
		provoke(emul, gva + offset);
		kvm_vm_free(emul->vm);
		close(emul->fd);
	}
}

static bool is_wall_clock(int i)
{
	return pv_msrs[i].msr == MSR_KVM_WALL_CLOCK || pv_msrs[i].msr == MSR_KVM_WALL_CLOCK_NEW;
}

/* Whether KVM has written to a structure that was all zero. */
static bool pv_works(emul_data *self, int i, uint64_t gva)
{
	uint64_t value;
	int j;

	/* That one is written when the guest asks for it, and then no more. */
	if (is_wall_clock(i))
		guest_wrmsr(self, pv_msrs[i].msr, gva);
	/* A page that isn't mapped would be one exit in each attempt. */
	guest_load(self, gva);
	value = provoke_msr(self, i, gva);
	for (j = 0; j < 64; j += 8)
		value |= guest_load(self, gva + j);
	return value;
}

/* In a shared page, which becomes private under KVM, and shared again. */
TEST_F_TIMEOUT(pv, msrs_of_converted_pages, TIMEOUT)
{
	emul_data data, *emul = &data;
	int i, round;

	for (i = 0; i < ARRAY_SIZE(pv_msrs); i++) {
		uint64_t *shared;

		pv_create(emul);
		shared = page_of(emul->alias, SPARE);
		TEST_ASSERT(guest_wrmsr(emul, pv_msrs[i].msr, gva_of(SPARE) | pv_msrs[i].bits),
			    "%s: #GP", pv_msrs[i].name);
		for (round = 0; round < nr_units(3, 3, 1); round++) {
			bool in_shared, in_private;

			memset(shared, 0, PAGE_SIZE);
			in_shared = pv_works(emul, i, gva_of(SPARE));
			convert(emul, SPARE, 1, true);
			memcpy(page_of(emul->saved, SPARE), shared, PAGE_SIZE);
			in_private = pv_works(emul, i, gva_of(SPARE));
			convert(emul, SPARE, 1, false);
			TEST_ASSERT(!memcmp(page_of(emul->saved, SPARE), shared, PAGE_SIZE),
				    "%s: the shared half was written", pv_msrs[i].name);
			TEST_ASSERT(in_shared == !pv_msrs[i].idle &&
				    in_private == !pv_msrs[i].idle,
				    "%s, round %d: written when shared: %d, when private: %d",
				    pv_msrs[i].name, round, in_shared, in_private);
		}
		kvm_vm_free(emul->vm);
		close(emul->fd);
	}
}

/*
 * In a hole: it works once there is a page.  Of a clock the guest can't tell that
 * it has not been written, so there is an exit first.
 */
TEST_F_TIMEOUT(pv, msrs_of_holes, TIMEOUT)
{
	emul_data data, *emul = &data;
	int i;

	for (i = 0; i < ARRAY_SIZE(pv_msrs); i++) {
		pv_create(emul);
		make_holes(emul);
		emul->regs.rcx = pv_msrs[i].msr;
		emul->regs.rax = gva_of(SPARE) | pv_msrs[i].bits;
		emul->regs.rdx = 0;
		set_start(emul, LABEL(wrmsr));
		if (pv_msrs[i].exits)
			run_to_hole(emul, SPARE);
		else
			run_to_end(emul);
		if (!pv_msrs[i].exits)
			provoke(emul, gva_of(DATA));
		TEST_ASSERT_EQ(is_private(emul, SPARE), false);
		fill_hole(emul, SPARE);
		if (pv_msrs[i].exits)
			run_to_end(emul);
		TEST_ASSERT(pv_works(emul, i, gva_of(SPARE)) == !pv_msrs[i].idle,
			    "%s doesn't work", pv_msrs[i].name);
		kvm_vm_free(emul->vm);
		close(emul->fd);
	}
}

/* The wall clock has 12 bytes, which may be in two pages: either may be the hole. */
TEST_F_TIMEOUT(pv, wall_clock_in_two_pages, TIMEOUT)
{
	const uint64_t clock = gva_of(SPARE + 1) - 4;
	emul_data data, *emul = &data;
	int i;

	if (backing_is_hugetlb())
		SKIP(return, "A unit has no holes");

	for (i = 0; i < ARRAY_SIZE(pv_msrs); i++) {
		uint64_t first;

		if (!is_wall_clock(i))
			continue;
		for (first = SPARE; first <= SPARE + 1; first++) {
			uint64_t second = first == SPARE ? SPARE + 1 : SPARE;

			pv_create(emul);
			make_holes(emul);
			fill_hole(emul, first);
			emul->regs.rcx = pv_msrs[i].msr;
			emul->regs.rax = clock;
			emul->regs.rdx = 0;
			set_start(emul, LABEL(wrmsr));
			run_to_hole(emul, second);
			fill_hole(emul, second);
			run_to_end(emul);
			TEST_ASSERT(guest_load(emul, clock + 4), "%s: no time", pv_msrs[i].name);
			kvm_vm_free(emul->vm);
			close(emul->fd);
		}
	}
}

/* Nested virtualization can't use private memory: the guest isn't told of it. */
FIXTURE(nested) {
	emul_data emul;
};

FIXTURE_SETUP(nested)
{
	emul_create(&self->emul, false, false);
}

FIXTURE_TEARDOWN(nested)
{
	kvm_vm_free(self->emul.vm);
	close(self->emul.fd);
}

static void assert_no_nested_virt(struct kvm_vcpu *vcpu)
{
	vcpu_ioctl(vcpu, KVM_GET_CPUID2, vcpu->cpuid);
	TEST_ASSERT(!kvm_cpuid_has(vcpu->cpuid, X86_FEATURE_SVM) &&
		    !kvm_cpuid_has(vcpu->cpuid, X86_FEATURE_VMX),
		    "The guest is told of nested virtualization");
}

TEST_F(nested, cpuid)
{
	struct kvm_vcpu *vcpu = self->emul.vcpu;

	TEST_ASSERT(kvm_cpu_has(X86_FEATURE_SVM) || kvm_cpu_has(X86_FEATURE_VMX),
		    "KVM has no nested virtualization at all");

	/* What userspace has set is what KVM supports. */
	assert_no_nested_virt(vcpu);
	vcpu_ioctl(vcpu, KVM_SET_CPUID2, kvm_get_supported_cpuid());
	assert_no_nested_virt(vcpu);
	guest_load(&self->emul, gva_of(DATA));
	/* It can't be changed any more, only set to what it is. */
	vcpu_ioctl(vcpu, KVM_SET_CPUID2, vcpu->cpuid);
	vcpu_ioctl(vcpu, KVM_SET_CPUID2, kvm_get_supported_cpuid());
	assert_no_nested_virt(vcpu);
}

TEST_F(nested, svm)
{
	struct kvm_vcpu *vcpu = self->emul.vcpu;
	const char * const labels[] = { LABEL(vmrun), LABEL(vmload), LABEL(vmsave) };
	emul_data *emul = &self->emul;
	struct kvm_sregs sregs;
	uint64_t efer;
	int i, r;

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "There is no nested SVM");

	/* By the guest, and by userspace. */
	vcpu_sregs_get(vcpu, &sregs);
	efer = sregs.efer;
	TEST_ASSERT(guest_wrmsr(emul, MSR_EFER, efer), "EFER can't be written");
	TEST_ASSERT(!guest_wrmsr(emul, MSR_EFER, efer | EFER_SVME), "The guest has set EFER.SVME");
	sregs.efer |= EFER_SVME;
	r = _vcpu_sregs_set(vcpu, &sregs);
	TEST_ASSERT(r == -1 && errno == EINVAL, "KVM_SET_SREGS has set EFER.SVME");
	TEST_ASSERT(!_vcpu_set_msr(vcpu, MSR_EFER, efer | EFER_SVME),
		    "KVM_SET_MSRS has set EFER.SVME");
	TEST_ASSERT_EQ(_vcpu_set_msr(vcpu, MSR_EFER, efer), 1);

	for (i = 0; i < ARRAY_SIZE(labels); i++) {
		emul->regs.rax = gva_of(DATA);
		TEST_ASSERT_EQ(try_code(emul, labels[i]), UD_VECTOR);
	}
}

/* A nested guest that comes from elsewhere. */
TEST_F(nested, state)
{
	struct {
		struct kvm_nested_state hdr;
		uint8_t vmcb[KVM_STATE_NESTED_SVM_VMCB_SIZE];
	} state = {
		.hdr = {
			.format = KVM_STATE_NESTED_FORMAT_SVM,
			.flags = KVM_STATE_NESTED_GUEST_MODE | KVM_STATE_NESTED_GIF_SET,
			.size = sizeof(state),
			.hdr.svm.vmcb_pa = gva_of(DATA),
		},
	};
	int r;

	if (!kvm_cpu_has(X86_FEATURE_SVM))
		SKIP(return, "There is no nested SVM");

	r = __vcpu_ioctl(self->emul.vcpu, KVM_SET_NESTED_STATE, &state.hdr);
	TEST_ASSERT(r == -1 && errno == EINVAL, "KVM_SET_NESTED_STATE: %d (%s)",
		    r, strerror(errno));
}

int main(int argc, char *argv[])
{
	char saved[16] = "";
	int fd, r;

	require_private_mem();

	fd = open(FEP_PARAM, O_RDWR);
	if (fd >= 0 && read(fd, saved, sizeof(saved) - 1) < 0)
		saved[0] = '\0';
	r = test_harness_run(argc, argv);
	if (saved[0])
		TEST_ASSERT(write(fd, saved, strlen(saved)) > 0, "Can't restore " FEP_PARAM);
	return r;
}
