// SPDX-License-Identifier: GPL-2.0
/*
 * The small guest converts its memory, which Linux never asks for, and looks
 * at the edges while it does: it makes a secret, computes with it, hands a
 * result over in a page that it shares, and takes that back.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "sha256.h"
#include "vmm.h"

struct session {
	struct vm vm;
	struct ram ram;
	struct mailbox *mailbox;	/* shared with the guest: copy, then check */
	struct needle needle;
	struct result result;
	__u64 stage_len;		/* what the guest has to copy itself from */
	__u32 input_len;
	int writes;			/* attempts to write that succeeded */
	double deadline;
};

static void hash(const void *key, size_t key_len, const void *data, size_t len, __u8 *digest)
{
	struct sha256 s;

	sha256_init(&s);
	sha256_update(&s, key, key_len);
	sha256_update(&s, data, len);
	sha256_final(&s, digest);
}

static int fill_mailbox(struct session *s, const struct options *opt)
{
	ssize_t len;

	if (getrandom(s->needle.mask, SECRET_SIZE, 0) != SECRET_SIZE)
		return failed("getrandom");
	len = read_file(opt->input, ram_shared_half(&s->ram, INPUT_GPA, INPUT_MAX), INPUT_MAX);
	if (len < 0)
		return -1;
	s->input_len = len;
	s->mailbox = ram_shared_half(&s->ram, MAILBOX_GPA, sizeof(*s->mailbox));
	*s->mailbox = (struct mailbox){
		.magic = MAILBOX_MAGIC,
		.flags = opt->mailbox_flags,
		.input_len = len,
		.stage_len = s->stage_len,
	};
	memcpy(s->mailbox->mask, s->needle.mask, SECRET_SIZE);
	printf("  input: %zd bytes of %s\n", len, opt->input);
	return 0;
}

/* What the file says is private, against what was asked for so far. */
static void check_private_bytes(struct session *s, __u64 shared_pages, const char *when)
{
	__u64 want = MAILBOX_GPA - shared_pages * PAGE_SIZE;
	__u64 is = ram_private_bytes(&s->ram);

	if (s->ram.config.kind == RAM_PRIVATE)
		check(is == want, "%s: lseek says %llu KiB are private, want %llu", when,
		      is >> 10, want >> 10);
	else if (s->ram.config.kind == RAM_LAZY)
		printf("  %s: lseek says %llu KiB are private\n", when, is >> 10);
}

static int run_to(struct session *s, enum step step)
{
	enum vm_event event = vm_wait(&s->vm, s->deadline);

	if (event == VM_LEFT)
		refused("the guest left early, code %#x", s->vm.dev.exit_code);
	if (event != VM_STEP)
		return -1;
	return check(s->vm.step == step, "the guest reached step %d", step) ? 0 : -1;
}

static int take_result(struct session *s)
{
	__u8 plain[SHA256_SIZE];

	memcpy(&s->result, ram_shared_half(&s->ram, RESULT_GPA, sizeof(s->result)),
	       sizeof(s->result));
	memcpy(s->needle.masked, s->result.masked, SECRET_SIZE);
	if (!check(s->result.magic == RESULT_MAGIC, "a result in the page the guest shared"))
		return -1;
	hash("", 0, ram_shared_half(&s->ram, INPUT_GPA, s->input_len), s->input_len, plain);
	print_digest("guest's SHA-256 of the input", s->result.plain);
	check(!memcmp(plain, s->result.plain, sizeof(plain)), "... is the VMM's");
	return 0;
}

static int try_attacks(struct session *s)
{
	__u64 gpa[ATTACK_PAGES];
	unsigned int i;

	for (i = 0; i < ATTACK_PAGES; i++)
		gpa[i] = PATTERN_GPA + i * PAGE_SIZE;
	s->writes = attack(&s->vm, &s->needle, gpa, ATTACK_PAGES);
	return s->writes < 0 ? -1 : 0;
}

static int search(struct session *s)
{
	unsigned long long bytes = 0;
	long found = search_own_memory(&s->needle, false, &bytes);

	if (found < 0)
		return -1;
	if (ram_is_private(&s->ram))
		check(!found, "the secret is nowhere in this process");
	else
		check(found > 0, "the secret is in this process (as it has to be here)");
	return 0;
}

static void check_damage(struct session *s)
{
	__u32 damaged = s->mailbox->damaged;

	if (ram_is_private(&s->ram))
		check(!damaged, "guest found %u of its pages changed", damaged);
	else
		check(s->writes > 0 && damaged == (__u32)s->writes,
		      "guest found %u of its pages changed, %d were written to",
		      damaged, s->writes);
}

/* Is the shared half free of what was there, after a conversion or a theft? */
static void check_alias(struct session *s, __u64 gpa, const char *what)
{
	__u8 *p = ram_shared_half(&s->ram, gpa, PAGE_SIZE);
	size_t i;

	if (s->ram.config.kind == RAM_LAZY)
		mprotect(p, PAGE_SIZE, PROT_READ);
	for (i = 0; i < PAGE_SIZE && !p[i]; i++)
		;
	if (s->ram.config.kind == RAM_LAZY)
		mprotect(p, PAGE_SIZE, PROT_NONE);
	check(i == PAGE_SIZE, "%s: the shared half reads as zero", what);
}

/* Unasked. The guest loses the page, and nobody gets it. */
static int take_by_force(struct session *s)
{
	__u64 gpa = PATTERN_GPA + (PATTERN_PAGES - 1) * PAGE_SIZE;

	errno = -ram_punch(&s->ram, gpa, PAGE_SIZE);
	if (errno)
		return failed("punching a hole");
	s->mailbox->taken_gpa = gpa;
	check_alias(s, gpa, "a page taken by force");
	return 0;
}

static void check_keyed(struct session *s)
{
	__u8 secret[SECRET_SIZE], keyed[SHA256_SIZE];
	int i;

	/* Only now: nothing is searched for any more. */
	for (i = 0; i < SECRET_SIZE; i++)
		secret[i] = s->needle.masked[i] ^ s->needle.mask[i];
	hash(secret, sizeof(secret), ram_shared_half(&s->ram, INPUT_GPA, s->input_len),
	     s->input_len, keyed);
	print_digest("guest's SHA-256 of secret and input", s->result.keyed);
	check(!memcmp(keyed, s->result.keyed, sizeof(keyed)), "... is the VMM's");
}

/* Looked at while there is nobody yet who could ask for a change. */
static int start_guest(struct session *s)
{
	check_private_bytes(s, s->stage_len / PAGE_SIZE, "at the start");
	printf("- the guest computes\n");
	return vm_start(&s->vm);
}

static int run_guest(struct session *s)
{
	if (run_to(s, STEP_RESULT) || take_result(s))
		return -1;
	check_private_bytes(s, 1, "with the result shared");

	printf("- this process tries to get at the guest's memory\n");
	if (try_attacks(s) || search(s))
		return -1;

	printf("- the guest goes on\n");
	if (run_to(s, STEP_TAKEN_BACK))
		return -1;
	check_damage(s);
	check_private_bytes(s, 0, "with the result taken back");
	if (ram_is_private(&s->ram))
		check_alias(s, RESULT_GPA, "the result taken back");
	if (take_by_force(s) || search(s))
		return -1;
	if (vm_wait(&s->vm, s->deadline) != VM_LEFT)
		return -1;
	check(!s->vm.dev.exit_code, "the guest left, %u of its checks failed",
	      s->vm.dev.exit_code);
	check_private_bytes(s, s->ram.config.kind == RAM_PRIVATE, "at the end");
	check_keyed(s);
	if (s->ram.config.kind == RAM_LAZY)
		check(s->ram.populated, "memory was allocated lazily");
	return 0;
}

/*
 * Sealed at birth, the image can't get into the file: it is handed over in
 * shared memory, and copies itself.
 */
static int load(struct session *s, const struct options *opt, struct entry *entry)
{
	static __u8 image[STAGE_SIZE];
	ssize_t len = read_file(opt->guest, image, sizeof(image));

	if (len < 0)
		return -1;
	if (len > (ssize_t)(PATTERN_GPA - IMAGE_GPA))
		return refused("%s is too large for a small guest", opt->guest);
	s->stage_len = opt->ram.born_sealed ? STAGE_SIZE : 0;
	entry->rip = entry->rsi = s->stage_len ? STAGE_GPA : IMAGE_GPA;
	ram_share(&s->ram, MAILBOX_GPA, RAM_SIZE - MAILBOX_GPA);
	if (s->stage_len)
		ram_share(&s->ram, STAGE_GPA, STAGE_SIZE);
	printf("  guest: %zd bytes, %s\n", len, s->stage_len ?
	       "copying itself out of shared memory" : "filled in, then sealed");
	return ram_fill(&s->ram, entry->rip, image, len) || ram_close(&s->ram) ? -1 : 0;
}

int run_small(const struct options *opt)
{
	static struct session s;
	struct entry entry = { 0 };
	int ret = -1;

	s = (struct session){ .deadline = opt->deadline };
	if (!ram_create(&s.ram, &opt->ram) && !vm_create(&s.vm, &s.ram, &opt->vm) &&
	    !load(&s, opt, &entry) && !vm_set_up(&s.vm, &entry) && !fill_mailbox(&s, opt) &&
	    !start_guest(&s)) {
		ret = run_guest(&s);
		vm_stop(&s.vm);
		report_summary(&s.vm);
		printf("  %lu hypercalls\n", s.vm.hypercalls);
		if (ret || opt->debug)
			report_failure(&s.vm, opt->debug);
		if (opt->keep)
			vm_keep();
	}
	vm_destroy(&s.vm);
	ram_destroy(&s.ram);
	return ret;
}
