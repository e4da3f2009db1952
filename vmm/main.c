// SPDX-License-Identifier: GPL-2.0
/*
 * One run: make a guest, let it compute with a secret, try to get at the
 * secret, and say whether what came out is what the kind of RAM promises.
 */
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "sha256.h"
#include "vmm.h"

static const char usage[] =
	"usage: vmm private|lazy|ordinary [options]\n"
	"  -g FILE  guest image (default: guest.bin beside this program)\n"
	"  -i FILE  input to hash (default: this program), at most 256 KiB of it\n"
	"  -l HOW   load the guest by auto|seal|copy (default: auto)\n"
	"  -o       the guest prints with rep outsb\n"
	"  -t N     watchdog, in seconds (default: 300)\n"
	"Exit code 0: all as promised; 1: not; 2: usage.\n";

struct options {
	enum ram_kind kind;
	enum loader loader;
	const char *guest, *input;
	__u32 mailbox_flags;
	unsigned int timeout;
};

static unsigned int bad, skipped;

int failed(const char *fmt, ...)
{
	int err = errno;
	va_list ap;

	fflush(stdout);
	fprintf(stderr, "vmm: ");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, ": %s\n", strerror(err));
	return -1;
}

bool check(bool ok, const char *fmt, ...)
{
	va_list ap;

	fputs(ok ? "  ok   " : "  BAD  ", stdout);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	bad += !ok;
	return ok;
}

void untried(const char *fmt, ...)
{
	va_list ap;

	fputs("  skip ", stdout);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	skipped++;
}

/* --- files --- */

static ssize_t read_file(const char *path, void *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = 0;
	size_t len = 0;

	if (fd < 0)
		return failed("%s", path);
	while (len < size && (n = read(fd, (char *)buf + len, size - len)) > 0)
		len += n;
	if (n < 0)
		failed("%s", path);
	close(fd);
	return n < 0 ? -1 : (ssize_t)len;
}

static const char *guest_beside(const char *argv0)
{
	static char path[4096];
	const char *slash = strrchr(argv0, '/');

	snprintf(path, sizeof(path), "%.*sguest.bin",
		 slash ? (int)(slash - argv0 + 1) : 0, argv0);
	return path;
}

/* --- SHA-256 --- */

static void hash(const void *key, size_t key_len, const void *data, size_t len, __u8 *digest)
{
	struct sha256 s;

	sha256_init(&s);
	sha256_update(&s, key, key_len);
	sha256_update(&s, data, len);
	sha256_final(&s, digest);
}

/* FIPS 180-4's example, so that agreeing with the guest means something. */
static bool known_answer(void)
{
	static const __u8 abc[SHA256_SIZE] = {
		0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea,
		0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23,
		0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c,
		0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad,
	};
	__u8 digest[SHA256_SIZE];

	hash("", 0, "abc", 3, digest);
	return check(!memcmp(digest, abc, sizeof(abc)), "SHA-256 known answer");
}

static void print_digest(const char *what, const __u8 *digest)
{
	int i;

	printf("  %s ", what);
	for (i = 0; i < SHA256_SIZE; i++)
		printf("%02x", digest[i]);
	putchar('\n');
}

/* --- the run --- */

struct session {
	struct vm vm;
	struct ram ram;
	struct mailbox *mailbox;	/* shared with the guest: copy, then check */
	struct needle needle;
	struct result result;
	__u32 input_len;
	int writes;			/* attempts to write that succeeded */
};

static bool is_private(const struct session *s)
{
	return s->ram.kind != RAM_ORDINARY;
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
		.stage_len = s->ram.loader == LOAD_COPY ? STAGE_SIZE : 0,
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

	if (s->ram.kind == RAM_PRIVATE)
		check(is == want, "%s: lseek says %llu KiB are private, want %llu", when,
		      is >> 10, want >> 10);
	else if (s->ram.kind == RAM_LAZY)
		printf("  %s: lseek says %llu KiB are private\n", when, is >> 10);
}

static int run_to(struct session *s, enum step step)
{
	enum vm_event event = vm_run(&s->vm);

	if (event == VM_LEFT)
		fprintf(stderr, "vmm: the guest left early, code %#x\n", s->vm.exit_code);
	if (event != VM_TURN)
		return -1;
	if (!check(s->mailbox->step == step, "the guest reached step %d", step))
		return -1;
	return 0;
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

static int search(struct session *s)
{
	long found = search_own_memory(&s->needle);

	if (found < 0)
		return -1;
	if (is_private(s))
		check(!found, "the secret is nowhere in this process");
	else
		check(found > 0, "the secret is in this process (as it has to be here)");
	return 0;
}

static void check_damage(struct session *s)
{
	__u32 damaged = s->mailbox->damaged;

	if (is_private(s))
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

	if (s->ram.kind == RAM_LAZY)
		mprotect(p, PAGE_SIZE, PROT_READ);
	for (i = 0; i < PAGE_SIZE && !p[i]; i++)
		;
	if (s->ram.kind == RAM_LAZY)
		mprotect(p, PAGE_SIZE, PROT_NONE);
	check(i == PAGE_SIZE, "%s: the shared half reads as zero", what);
}

/* Unasked. The guest loses the page, and nobody gets it. */
static int take_by_force(struct session *s)
{
	__u64 gpa = PATTERN_GPA + (PATTERN_PAGES - 1) * PAGE_SIZE;

	if (fallocate(s->ram.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, gpa, PAGE_SIZE))
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

static int run_guest(struct session *s)
{
	printf("- the guest computes\n");
	check_private_bytes(s, s->ram.loader == LOAD_COPY ? STAGE_SIZE / PAGE_SIZE : 0,
			    "at the start");
	if (run_to(s, STEP_RESULT) || take_result(s))
		return -1;
	check_private_bytes(s, 1, "with the result shared");

	printf("- this process tries to get at the guest's memory\n");
	s->writes = attack(&s->vm, &s->needle);
	if (s->writes < 0 || search(s))
		return -1;

	printf("- the guest goes on\n");
	if (run_to(s, STEP_TAKEN_BACK))
		return -1;
	check_damage(s);
	check_private_bytes(s, 0, "with the result taken back");
	if (is_private(s))
		check_alias(s, RESULT_GPA, "the result taken back");
	if (take_by_force(s) || search(s))
		return -1;
	if (vm_run(&s->vm) != VM_LEFT)
		return -1;
	check(!s->vm.exit_code, "the guest left, %u of its checks failed", s->vm.exit_code);
	check_private_bytes(s, s->ram.kind == RAM_PRIVATE, "at the end");
	check_keyed(s);
	return 0;
}

static int load(struct session *s, const struct options *opt)
{
	static __u8 image[STAGE_SIZE];
	ssize_t len = read_file(opt->guest, image, sizeof(image));

	if (len < 0 || ram_create(&s->ram, opt->kind, opt->loader, image, len))
		return -1;
	printf("  guest: %zd bytes, %s\n", len,
	       s->ram.loader == LOAD_COPY ? "copying itself out of shared memory" :
	       is_private(s) ? "filled in, then sealed" : "filled in");
	return 0;
}

static int run(const struct options *opt)
{
	struct session s = { .ram.fd = -1, .vm = { .kvm = -1, .fd = -1, .vcpu = -1 } };
	int ret = -1;

	printf("- set-up\n");
	if (known_answer() && !load(&s, opt) && !vm_create(&s.vm, &s.ram) &&
	    !fill_mailbox(&s, opt)) {
		alarm(opt->timeout);
		ret = run_guest(&s);
		alarm(0);
		printf("  %lu exits, %lu port accesses, %lu hypercalls\n",
		       s.vm.exits, s.vm.io, s.vm.hypercalls);
		printf("  %lu conversions to shared, %lu to private, %lu lazy allocations\n",
		       s.ram.to_shared, s.ram.to_private, s.ram.populated);
		if (!ret && opt->kind == RAM_LAZY)
			check(s.ram.populated, "memory was allocated lazily");
	}
	vm_destroy(&s.vm);
	ram_destroy(&s.ram);
	return ret;
}

/* --- the command line --- */

static int pick(const char *word, const char *const *words)
{
	int i;

	for (i = 0; words[i]; i++)
		if (!strcmp(word, words[i]))
			return i;
	fprintf(stderr, "%s", usage);
	exit(2);
}

static void parse(struct options *opt, int argc, char **argv)
{
	/* In the order of their enums. */
	static const char *const kinds[] = { "private", "lazy", "ordinary", NULL };
	static const char *const loaders[] = { "auto", "seal", "copy", NULL };
	int c;

	*opt = (struct options){
		.guest = guest_beside(argv[0]),
		.input = "/proc/self/exe",
		.timeout = 300,
	};
	opt->kind = pick(argc > 1 ? argv[1] : "", kinds);
	while ((c = getopt(argc - 1, argv + 1, "g:i:l:ot:")) != -1) {
		switch (c) {
		case 'g':
			opt->guest = optarg;
			break;
		case 'i':
			opt->input = optarg;
			break;
		case 'l':
			opt->loader = pick(optarg, loaders);
			break;
		case 'o':
			opt->mailbox_flags |= MAILBOX_OUTS;
			break;
		case 't':
			opt->timeout = atoi(optarg);
			break;
		default:
			pick("", kinds);
		}
	}
}

int main(int argc, char **argv)
{
	struct options opt;
	int ret;

	setlinebuf(stdout);
	parse(&opt, argc, argv);
	ret = run(&opt);
	if (ret)
		printf("verdict: bad, the run did not get to its end\n");
	else if (bad)
		printf("verdict: bad, %u BAD lines above\n", bad);
	else
		printf("verdict: good%s\n", skipped ? ", as far as it was tried" : "");
	return ret || bad;
}
