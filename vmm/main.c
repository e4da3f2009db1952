// SPDX-License-Identifier: GPL-2.0
/*
 * The command line, and what is said about a run: a transcript of lines that
 * are ok or BAD, and a verdict.
 */
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "sha256.h"
#include "vmm.h"

static const char usage[] =
	"usage: vmm private|lazy|ordinary|guest_memfd [options]\n"
	"  -t N     watchdog, in seconds (default: 900)\n"
	"  -d       say all about the guest's state at the end\n"
	"  -w       keep the VM at the end, until standard input ends: for inspect\n"
	"Linux:\n"
	"  -k FILE  boot this kernel (bzImage); without it: the small guest\n"
	"  -r FILE  its initrd (default: initrd beside this program)\n"
	"  -a WORDS added to its command line\n"
	"  -m SIZE  RAM, as 256M or 4G (default: 256M)\n"
	"  -n N     vCPUs (default: 1)\n"
	"  -b STORE shmem or hugetlb, for private and lazy (default: shmem)\n"
	"  -s SIZE  cut RAM into slots of at most so much\n"
	"  -c       seal the file at birth: what is loaded is, and stays, in shared memory\n"
	"  -p       offer the guest all of KVM's paravirtual features\n"
	"  -v       show what the kernel says\n"
	"  -x       take all RAM away from the guest at work, and see what happens\n"
	"The small guest:\n"
	"  -g FILE  its image (default: guest.bin beside this program)\n"
	"  -i FILE  input to hash (default: this program), at most 256 KiB of it\n"
	"  -c       seal the file at birth: the guest copies itself from shared memory\n"
	"  -o       the guest prints with rep outsb\n"
	"Exit code 0: all as promised; 1: not; 2: usage.\n";

static unsigned int bad, skipped;

static void say(FILE *to, const char *prefix, const char *fmt, va_list ap)
{
	/* In one piece: other threads talk, too. */
	flockfile(to);
	fputs(prefix, to);
	vfprintf(to, fmt, ap);
}

static void said(FILE *to, const char *suffix)
{
	fputs(suffix, to);
	funlockfile(to);
}

int failed(const char *fmt, ...)
{
	int err = errno;
	va_list ap;

	fflush(stdout);
	va_start(ap, fmt);
	say(stderr, "vmm: ", fmt, ap);
	va_end(ap);
	fprintf(stderr, ": %s", strerror(err));
	said(stderr, "\n");
	return -1;
}

int refused(const char *fmt, ...)
{
	va_list ap;

	fflush(stdout);
	va_start(ap, fmt);
	say(stderr, "vmm: ", fmt, ap);
	va_end(ap);
	said(stderr, "\n");
	return -1;
}

bool check(bool ok, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(stdout, ok ? "  ok   " : "  BAD  ", fmt, ap);
	va_end(ap);
	said(stdout, "\n");
	bad += !ok;
	return ok;
}

void untried(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(stdout, "  skip ", fmt, ap);
	va_end(ap);
	said(stdout, "\n");
	skipped++;
}

void print_digest(const char *what, const __u8 *digest)
{
	int i;

	printf("  %s ", what);
	for (i = 0; i < SHA256_SIZE; i++)
		printf("%02x", digest[i]);
	putchar('\n');
}

double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

ssize_t read_file(const char *path, void *buf, size_t size)
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
	struct sha256 s;

	sha256_init(&s);
	sha256_update(&s, "abc", 3);
	sha256_final(&s, digest);
	return check(!memcmp(digest, abc, sizeof(abc)), "SHA-256 known answer");
}

/* --- the command line --- */

static void __attribute__((noreturn)) wrong(const char *what, const char *word)
{
	fprintf(stderr, "vmm: %s: %s\n%s", what, word, usage);
	exit(2);
}

static int pick(const char *word, const char *const *words)
{
	int i;

	for (i = 0; words[i]; i++)
		if (!strcmp(word, words[i]))
			return i;
	wrong("not known", word);
}

/* A number from @min to @max, in @unit or with a suffix of its own. */
static __u64 parse_number(const char *word, __u64 min, __u64 max)
{
	static const char suffixes[] = "KMG";
	const char *suffix;
	char *end;
	__u64 n;

	errno = 0;
	n = strtoull(word, &end, 10);
	suffix = *end ? strchr(suffixes, *end) : NULL;
	if (suffix) {
		int shift = 10 * (suffix - suffixes + 1);

		if (n << shift >> shift != n)
			wrong("out of range", word);
		n <<= shift;
		end++;
	}
	if (errno || end == word || *end || word[0] == '-')
		wrong("not a number", word);
	if (n < min || n > max)
		wrong("out of range", word);
	return n;
}

static const char *beside(const char *argv0, const char *name)
{
	const char *slash = strrchr(argv0, '/');
	char *path;

	if (asprintf(&path, "%.*s%s", slash ? (int)(slash - argv0 + 1) : 0, argv0, name) < 0)
		abort();
	return path;
}

static __u64 parse_size(const char *word)
{
	__u64 size = parse_number(word, HUGE_SIZE, RAM_MAX);

	if (size % HUGE_SIZE)
		wrong("not a multiple of 2M", word);
	return size;
}

/* What belongs to one guest only. */
static void check_options(struct options *opt, bool for_linux, bool for_small)
{
	if (opt->boot.kernel && for_small)
		wrong("not with -k", "-g, -i, -o");
	if (!opt->boot.kernel && for_linux)
		wrong("only with -k", "-a, -b, -m, -n, -p, -r, -s, -v, -x");
	if (!opt->boot.kernel && opt->ram.kind == RAM_GUEST_MEMFD)
		wrong("only with -k", "guest_memfd");
	if (!opt->boot.kernel) {
		opt->ram.size = RAM_SIZE;
		opt->vm.conversions = true;
	}
	opt->vm.irqchip = opt->boot.kernel;
	opt->boot.nr_vcpus = opt->vm.nr_vcpus;
}

static void parse(struct options *opt, int argc, char **argv)
{
	/* In the order of their enum. */
	static const char *const kinds[] = { "private", "lazy", "ordinary", "guest_memfd", NULL };
	static const char *const stores[] = { "shmem", "hugetlb", NULL };
	bool for_linux = false, for_small = false;
	unsigned int timeout = 900;
	int c;

	*opt = (struct options){
		.ram.size = 256UL << 20,
		.vm.nr_vcpus = 1,
		.boot.initrd = beside(argv[0], "initrd"),
		.guest = beside(argv[0], "guest.bin"),
		.input = "/proc/self/exe",
	};
	opt->ram.kind = pick(argc > 1 ? argv[1] : "no kind of RAM", kinds);
	while ((c = getopt(argc - 1, argv + 1, "a:b:cdg:i:k:m:n:opr:s:t:vwx")) != -1) {
		for_linux |= strchr("abmnprsvx", c) != NULL;
		for_small |= strchr("gio", c) != NULL;
		switch (c) {
		case 'a':
			opt->append = optarg;
			break;
		case 'b':
			opt->ram.hugetlb = pick(optarg, stores);
			break;
		case 'c':
			opt->ram.born_sealed = true;
			break;
		case 'd':
			opt->debug = true;
			break;
		case 'g':
			opt->guest = optarg;
			break;
		case 'i':
			opt->input = optarg;
			break;
		case 'k':
			opt->boot.kernel = optarg;
			break;
		case 'm':
			opt->ram.size = parse_size(optarg);
			break;
		case 'n':
			opt->vm.nr_vcpus = parse_number(optarg, 1, MAX_VCPUS);
			break;
		case 'o':
			opt->mailbox_flags |= MAILBOX_OUTS;
			break;
		case 'p':
			opt->vm.all_features = true;
			break;
		case 'r':
			opt->boot.initrd = optarg;
			break;
		case 's':
			opt->ram.slot_size = parse_size(optarg);
			break;
		case 't':
			timeout = parse_number(optarg, 1, 1000000);
			break;
		case 'v':
			opt->verbose = true;
			break;
		case 'w':
			opt->keep = true;
			break;
		case 'x':
			opt->take_away = true;
			break;
		default:
			fprintf(stderr, "%s", usage);
			exit(2);
		}
	}
	if (optind < argc - 1)
		wrong("not an option", argv[optind + 1]);
	check_options(opt, for_linux, for_small);
	opt->deadline = now() + timeout;
}

int main(int argc, char **argv)
{
	struct options opt;
	int ret = -1;

	setlinebuf(stdout);
	parse(&opt, argc, argv);
	vm_block_signals();
	printf("- set-up\n");
	if (known_answer())
		ret = opt.boot.kernel ? run_linux(&opt) : run_small(&opt);
	if (ret)
		printf("verdict: bad, the run did not get to its end\n");
	else if (bad)
		printf("verdict: bad, %u BAD lines above\n", bad);
	else
		printf("verdict: good%s\n", skipped ? ", as far as it was tried" : "");
	return ret || bad;
}
