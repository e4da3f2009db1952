/* SPDX-License-Identifier: GPL-2.0 */
/*
 * From the VMM's hands to C. The VMM starts the vCPU in flat 32-bit protected
 * mode with paging off, at the first byte of the image, and says in %esi where
 * that is. Elsewhere than linked for means: in shared memory, for want of a
 * way to put it into private memory from outside. The image then copies itself
 * over. The page tables are part of the image, so they are private too.
 */
	.section .head, "ax"
	.code32
	.globl	_start
_start:
	cld
	cmpl	$_start, %esi
	je	1f
	movl	$_start, %edi
	movl	$_image_words, %ecx
	rep movsl
	movl	$1f, %eax
	jmp	*%eax

1:	movl	%cr4, %eax
	orl	$0x20, %eax		/* PAE */
	movl	%eax, %cr4
	movl	$pml4, %eax
	movl	%eax, %cr3
	movl	$0xc0000080, %ecx	/* EFER */
	rdmsr
	orl	$0x100, %eax		/* LME */
	wrmsr
	movl	%cr0, %eax
	orl	$0x80010000, %eax	/* PG, WP */
	movl	%eax, %cr0
	lgdt	gdt_ptr
	ljmp	$0x08, $long_mode

	.code64
long_mode:
	movl	$0x10, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	$stack_top, %esp
	movl	$_bss, %edi
	movl	$_bss_words, %ecx
	xorl	%eax, %eax
	rep stosq
	call	guest_main
2:	hlt
	jmp	2b

/* One stub a vector, 16 bytes each; those without an error code push a 0. */
	.globl	vectors
	.balign	16
vectors:
	.set	i, 0
	.rept	32
	.balign	16
	.if	!(i == 8 || (i >= 10 && i <= 14) || i == 17 || i == 21 || i == 29 || i == 30)
	pushq	$0
	.endif
	pushq	$i
	jmp	exception
	.set	i, i + 1
	.endr

exception:
	movq	%rsp, %rdi
	call	guest_exception		/* does not return */

	.data
	.balign	8
gdt:	.quad	0
	.quad	0x00209b0000000000	/* 0x08: 64-bit code */
	.quad	0x0000930000000000	/* 0x10: data */
gdt_ptr:
	.word	. - gdt - 1
	.quad	gdt

/* The first GiB, mapped to itself in 2 MiB pages, present and writable. */
	.balign	4096
pml4:	.quad	pdpt + 3
	.fill	511, 8, 0
pdpt:	.quad	pd + 3
	.fill	511, 8, 0
pd:	.set	i, 0
	.rept	512
	.quad	(i << 21) + 0x83
	.set	i, i + 1
	.endr

	.bss
	.balign	16
	.skip	16384
stack_top:

	.section .note.GNU-stack, "", @progbits
