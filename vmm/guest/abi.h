/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the VMM and its guest agree on: the memory map, the ports, and the two
 * structures they exchange. Everything the guest reads from shared memory
 * comes from the VMM and the other way round; neither trusts the other, so
 * both copy a field once and check it before use.
 */
#ifndef VMM_GUEST_ABI_H
#define VMM_GUEST_ABI_H

#define PAGE_SIZE	4096UL
#define HUGE_SIZE	(2UL << 20)
#define RAM_SIZE	(64UL << 20)

/*
 * The small guest: one slot of RAM_SIZE bytes at guest physical address 0, file offset equal to
 * guest physical address. All of it is private but for the mailbox, the pages
 * the guest asks to be shared, and, where the guest has to copy itself into
 * private memory, the stage its image is handed over in. The last page is left
 * alone by the guest. (Addresses without a suffix: the linker script reads them.)
 */
#define IMAGE_GPA	0x0200000	/* the guest's code, data, page tables */
#define PATTERN_GPA	0x0400000	/* a page full of the secret, many times */
#define PATTERN_PAGES	1024UL
#define RESULT_GPA	0x0805000	/* struct result; shared while it is handed over */
#define AREA_GPA	0x0a00000	/* two huge pages, for conversions inside */
#define AREA_SIZE	(2 * HUGE_SIZE)
#define STAGE_GPA	0x3c00000
#define STAGE_SIZE	HUGE_SIZE
#define MAILBOX_GPA	0x3e00000	/* struct mailbox */
#define INPUT_GPA	(MAILBOX_GPA + PAGE_SIZE)
#define INPUT_MAX	(256UL << 10)
#define LAST_PAGE_GPA	(RAM_SIZE - PAGE_SIZE)

/*
 * Ports, written by the guest. PORT_CONSOLE takes text, a byte at a time or as
 * a string instruction; PORT_DATA the same way, in bytes or words, what the VMM
 * is to know at the next step. PORT_STEP takes 32 bits, enum step: "your turn", and the guest
 * goes on when the VMM has done its part. PORT_EXIT takes 32 bits, how many of
 * the guest's checks failed, and ends the guest.
 */
#define PORT_CONSOLE	0xe9
#define PORT_DATA	0xea
#define PORT_STEP	0xf0
#define PORT_EXIT	0xf4
#define EXIT_PANIC	0xdeadU		/* the guest gave up */

#define MAILBOX_MAGIC	0x786f626c69616dULL
#define RESULT_MAGIC	0x746c75736572ULL
#define SECRET_SIZE	32

#ifndef __ASSEMBLER__
#include <linux/types.h>

enum step {
	STEP_NONE,
	/* the small guest's */
	STEP_RESULT,	/* struct result is at RESULT_GPA, in a shared page */
	STEP_TAKEN_BACK,	/* that page is private again, damage is counted */
	/* the Linux guest's */
	STEP_UP,	/* init runs, and waits on the console for a struct order as text */
	STEP_SECRET,	/* struct secret has come: search for it */
	STEP_WORKED,	/* struct work has come: what the guest computed */
	STEP_DAMAGE,	/* struct damage has come; then it ends */
};

#define MAILBOX_OUTS	0x1	/* print with rep outsb */

struct mailbox {
	/* from the VMM, complete before the guest starts */
	__u64 magic;
	__u32 flags;
	__u32 input_len;		/* bytes at INPUT_GPA */
	__u64 stage_len;		/* bytes at STAGE_GPA that are shared, or 0 */
	__u8 mask[SECRET_SIZE];		/* to reveal the secret under */
	/* from the VMM, at STEP_TAKEN_BACK */
	__u64 taken_gpa;		/* a pattern page taken away by force */
	/* from the guest */
	__u32 damaged;			/* pattern pages found changed */
};

/*
 * The secret is only ever handed out masked: the VMM can search for it without
 * having it in its memory, so that what a search finds is a leak.
 */
struct result {
	__u64 magic;
	__u8 plain[32];			/* SHA-256 of the input */
	__u8 keyed[32];			/* SHA-256 of the secret, then the input */
	__u8 masked[SECRET_SIZE];	/* secret ^ mask */
};

/*
 * What the Linux guest is told, as a line on its serial console: mask in hex,
 * seed in decimal. A line is less than ORDER_MAX bytes, its end included.
 */
#define ORDER_MAX	128
#define ORDER_FORMAT	"order %64s %llu"

/* What the Linux guest sends begins with it. */
#define WORK_MAGIC	0x6b726f77ULL

/* The Linux guest's secret, masked, and where its pages are. */
#define SECRET_PAGES	1024U

struct secret {
	__u64 magic;
	__u8 masked[SECRET_SIZE];
	__u64 gpa[SECRET_PAGES];
};

/* What it has done. The VMM can compute both sums from the seed. */
#define STREAM_SIZE	(4UL << 20)

struct work {
	__u64 magic;
	__u64 memory;			/* bytes filled, then summed */
	__u64 sum;			/* of their 64-bit words */
	__u8 stream[32];		/* SHA-256 of STREAM_SIZE bytes */
	__u32 cpus, processes, files, wrong;
};

struct damage {
	__u64 magic;
	__u32 pages;			/* of the secret's, found changed */
	__u32 reserved;
};

/* Word number @i of what is made from @seed (the finalizer of MurmurHash3). */
static inline __u64 made_of(__u64 seed, __u64 i)
{
	__u64 x = seed + i;

	x = (x ^ x >> 33) * 0xff51afd7ed558ccdULL;
	x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53ULL;
	return x ^ x >> 33;
}

/* The pattern: 64 lines a page, each beginning with the secret. */
struct line {
	__u8 secret[SECRET_SIZE];
	__u64 gpa;
	__u8 text[24];
};

#endif /* __ASSEMBLER__ */
#endif
