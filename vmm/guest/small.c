// SPDX-License-Identifier: GPL-2.0
/*
 * The guest: runs from private memory, keeps a secret there, computes with it,
 * and hands over what it chooses to through pages it asks to be shared. What
 * it finds wrong it says on the console, and counts.
 */
#include <linux/kvm_para.h>
#include <stdbool.h>
#include <stddef.h>

#include "abi.h"
#include "../sha256.h"

#define __noreturn	__attribute__((noreturn))
#define __packed	__attribute__((packed))
#define gpa_ptr(gpa)	((void *)(unsigned long)(gpa))

static struct mailbox *const mailbox = gpa_ptr(MAILBOX_GPA);
static __u8 secret[SECRET_SIZE];
static bool string_io, intel;
static unsigned int failed;

/* --- the processor --- */

void *memset(void *to, int byte, size_t n)
{
	void *ret = to;

	asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(byte) : "memory");
	return ret;
}

void *memcpy(void *to, const void *from, size_t n)
{
	void *ret = to;

	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
	return ret;
}

static void out8(__u16 port, __u8 val)
{
	asm volatile("outb %0, %1" : : "a"(val), "Nd"(port));
}

static void out32(__u16 port, __u32 val)
{
	asm volatile("outl %0, %1" : : "a"(val), "Nd"(port));
}

static void cpuid(__u32 leaf, __u32 r[4])
{
	asm volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3])
		     : "a"(leaf), "c"(0));
}

static __u64 rdtsc(void)
{
	__u32 lo, hi;

	asm volatile("rdtsc" : "=a"(lo), "=d"(hi));
	return (__u64)hi << 32 | lo;
}

static __u64 random64(void)
{
	__u64 val;

	/* The carry flag says "none left"; then the TSC has to do. */
	asm volatile("rdrand %0; jc 1f; rdtsc; 1:" : "=a"(val) : : "rdx", "cc");
	return val;
}

static void your_turn(enum step step)
{
	asm volatile("" : : : "memory");
	out32(PORT_STEP, step);
}

static void __noreturn leave(__u32 code)
{
	out32(PORT_EXIT, code);
	for (;;)
		asm volatile("hlt");
}

/* --- saying things --- */

static void say(const char *s)
{
	size_t n = 0;

	while (s[n])
		n++;
	if (string_io)
		asm volatile("rep outsb" : "+S"(s), "+c"(n)
			     : "d"(PORT_CONSOLE) : "memory");
	else
		while (n--)
			out8(PORT_CONSOLE, *s++);
}

static void say_hex(const char *s, __u64 val)
{
	char buf[20], *p = buf + sizeof(buf);

	*--p = 0;
	*--p = '\n';
	do {
		*--p = "0123456789abcdef"[val & 15];
		val >>= 4;
	} while (val);
	say(s);
	say(" 0x");
	say(p);
}

static void __noreturn panic(const char *s)
{
	say("panic: ");
	say(s);
	say("\n");
	leave(EXIT_PANIC);
}

static void check(bool ok, const char *what)
{
	say(ok ? "ok: " : "FAILED: ");
	say(what);
	say("\n");
	failed += !ok;
}

/* --- exceptions: there should be none --- */

struct frame {
	__u64 vector, error, rip, cs, rflags, rsp, ss;
};

void guest_exception(const struct frame *f)
{
	__u64 cr2;

	asm volatile("mov %%cr2, %0" : "=r"(cr2));
	say_hex("exception, vector", f->vector);
	say_hex("error code", f->error);
	say_hex("rip", f->rip);
	say_hex("cr2", cr2);
	panic("exception");
}

static void catch_exceptions(void)
{
	static struct {
		__u16 low, selector, type, mid;
		__u32 high, zero;
	} idt[32];
	struct {
		__u16 limit;
		__u64 base;
	} __packed idtr = { sizeof(idt) - 1, (__u64)idt };
	__u64 stub;
	int i;

	asm("lea vectors(%%rip), %0" : "=r"(stub));
	for (i = 0; i < 32; i++, stub += 16) {
		idt[i].low = stub;
		idt[i].selector = 0x08;
		idt[i].type = 0x8e00;		/* present, interrupt gate */
		idt[i].mid = stub >> 16;
	}
	asm volatile("lidt %0" : : "m"(idtr));
}

/* --- the VMM's services --- */

static long map_gpa_range(__u64 gpa, __u64 len, __u64 attrs)
{
	long ret = KVM_HC_MAP_GPA_RANGE;

	attrs |= KVM_MAP_GPA_RANGE_PAGE_SZ_4K;
	/* KVM would patch the wrong vendor's instruction: code is private. */
	if (intel)
		asm volatile("vmcall" : "+a"(ret)
			     : "b"(gpa), "c"(len / PAGE_SIZE), "d"(attrs) : "memory");
	else
		asm volatile("vmmcall" : "+a"(ret)
			     : "b"(gpa), "c"(len / PAGE_SIZE), "d"(attrs) : "memory");
	return ret;
}

static long make_shared(__u64 gpa, __u64 len)
{
	return map_gpa_range(gpa, len, KVM_MAP_GPA_RANGE_DECRYPTED);
}

static long make_private(__u64 gpa, __u64 len)
{
	return map_gpa_range(gpa, len, KVM_MAP_GPA_RANGE_ENCRYPTED);
}

/* --- memory contents --- */

static bool is_zero(__u64 gpa, __u64 len)
{
	const __u64 *p = gpa_ptr(gpa), *end = gpa_ptr(gpa + len);

	while (p < end)
		if (*p++)
			return false;
	return true;
}

static void make_line(struct line *line, __u64 gpa)
{
	static const char text[sizeof(line->text)] = "private guest memory";
	size_t i;

	for (i = 0; i < SECRET_SIZE; i++)
		line->secret[i] = secret[i];
	line->gpa = gpa;
	for (i = 0; i < sizeof(text); i++)
		line->text[i] = text[i];
}

static void fill(__u64 gpa, __u64 len)
{
	__u64 end = gpa + len;

	for (; gpa < end; gpa += sizeof(struct line))
		make_line(gpa_ptr(gpa), gpa);
}

static bool is_filled(__u64 gpa, __u64 len)
{
	__u64 end = gpa + len;
	struct line line;
	size_t i;

	for (; gpa < end; gpa += sizeof(line)) {
		const __u64 *is = gpa_ptr(gpa), *want = (void *)&line;

		make_line(&line, gpa);
		for (i = 0; i < sizeof(line) / sizeof(*is); i++)
			if (is[i] != want[i])
				return false;
	}
	return true;
}

static unsigned int count_damage(void)
{
	unsigned int i, damaged = 0;

	for (i = 0; i < PATTERN_PAGES; i++)
		damaged += !is_filled(PATTERN_GPA + i * PAGE_SIZE, PAGE_SIZE);
	return damaged;
}

/* --- the steps --- */

static void look_around(void)
{
	__u32 r[4];

	cpuid(0, r);
	intel = r[2] == 0x6c65746e;		/* "ntel" */
	cpuid(KVM_CPUID_SIGNATURE, r);
	check(r[1] == 0x4b4d564b, "CPUID says KVM");	/* "KVMK" */
	cpuid(KVM_CPUID_FEATURES, r);
	check(r[0] & 1U << KVM_FEATURE_HC_MAP_GPA_RANGE,
	      "CPUID offers KVM_HC_MAP_GPA_RANGE");
}

/* Not from the VMM, so not by the input alone; good enough for a sample. */
static void make_secret(void)
{
	struct sha256 s;
	__u32 r[4];
	__u64 val;
	int i;

	cpuid(1, r);
	sha256_init(&s);
	for (i = 0; i < 8; i++) {
		val = rdtsc();
		sha256_update(&s, &val, sizeof(val));
		if (r[2] & 1U << 30) {
			val = random64();
			sha256_update(&s, &val, sizeof(val));
		}
	}
	sha256_final(&s, secret);
}

static void hash_input(struct result *res, __u32 len)
{
	struct sha256 s;

	sha256_init(&s);
	sha256_update(&s, gpa_ptr(INPUT_GPA), len);
	sha256_final(&s, res->plain);

	sha256_init(&s);
	sha256_update(&s, secret, sizeof(secret));
	sha256_update(&s, gpa_ptr(INPUT_GPA), len);
	sha256_final(&s, res->keyed);
}

/* The result, through a page that held the secret until it was converted. */
static void hand_over(const struct result *res)
{
	fill(RESULT_GPA - PAGE_SIZE, 3 * PAGE_SIZE);
	check(!make_shared(RESULT_GPA, PAGE_SIZE), "a page becomes shared");
	check(is_zero(RESULT_GPA, PAGE_SIZE), "... and reads as zero");
	memcpy(gpa_ptr(RESULT_GPA), res, sizeof(*res));
	your_turn(STEP_RESULT);

	check(!make_private(RESULT_GPA, PAGE_SIZE), "it becomes private again");
	check(is_zero(RESULT_GPA, PAGE_SIZE), "... and reads as zero");
	check(is_filled(RESULT_GPA - PAGE_SIZE, PAGE_SIZE) &&
	      is_filled(RESULT_GPA + PAGE_SIZE, PAGE_SIZE),
	      "... and the pages beside it kept their content");
	fill(RESULT_GPA, PAGE_SIZE);
}

/* A range that covers no huge page as a whole: there and back. */
static void convert_range(void)
{
	const __u64 gpa = AREA_GPA + HUGE_SIZE / 2 + 3 * PAGE_SIZE;
	const __u64 len = HUGE_SIZE - 2 * PAGE_SIZE;
	const __u64 end = gpa + len, area_end = AREA_GPA + AREA_SIZE;

	fill(AREA_GPA, AREA_SIZE);
	check(!make_shared(gpa, len), "510 pages across a 2 MiB line become shared");
	check(is_zero(gpa, len), "... and read as zero");
	memset(gpa_ptr(gpa), 0x55, len);
	check(!make_private(gpa, len), "they become private again");
	check(is_zero(gpa, len), "... and read as zero");
	check(is_filled(AREA_GPA, gpa - AREA_GPA) && is_filled(end, area_end - end),
	      "... and the pages beside them kept their content");
	check(!make_shared(gpa, len) && is_zero(gpa, len),
	      "shared once more, nothing of what was shared before is left");
	check(!make_private(gpa, len), "and private for good");
}

static void ask_nonsense(void)
{
	check(make_shared(RAM_SIZE, PAGE_SIZE) < 0, "past the end of RAM: refused");
	check(make_shared(AREA_GPA + 8, PAGE_SIZE) < 0, "not a page: refused");
	check(make_private(AREA_GPA, 0) < 0, "no page: refused");
	check(make_shared(LAST_PAGE_GPA, 2 * PAGE_SIZE) < 0, "half outside: refused");
}

void guest_main(void)
{
	struct mailbox mb = *mailbox;
	struct result res = { .magic = RESULT_MAGIC };
	size_t i;

	catch_exceptions();
	string_io = mb.flags & MAILBOX_OUTS;
	if (mb.magic != MAILBOX_MAGIC || mb.input_len > INPUT_MAX)
		panic("no mailbox");
	say("64-bit code, running from RAM of my own\n");
	look_around();
	if (mb.stage_len)
		check(!make_private(STAGE_GPA, STAGE_SIZE),
		      "the stage I came over is private now");

	make_secret();
	fill(PATTERN_GPA, PATTERN_PAGES * PAGE_SIZE);
	hash_input(&res, mb.input_len);
	for (i = 0; i < SECRET_SIZE; i++)
		res.masked[i] = secret[i] ^ mb.mask[i];
	say("secret made, RAM filled with it, input hashed\n");
	hand_over(&res);

	mailbox->damaged = count_damage();
	your_turn(STEP_TAKEN_BACK);

	/* The VMM can always take memory away; it can't have what was in it. */
	mb.taken_gpa = mailbox->taken_gpa;
	check(mb.taken_gpa >= PATTERN_GPA &&
	      mb.taken_gpa < PATTERN_GPA + PATTERN_PAGES * PAGE_SIZE &&
	      is_zero(mb.taken_gpa, PAGE_SIZE),
	      "the page the VMM took by force is empty");
	convert_range();
	ask_nonsense();
	say("done\n");
	leave(failed);
}
