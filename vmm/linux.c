// SPDX-License-Identifier: GPL-2.0
/*
 * Linux, with guest/init.c as its init: it makes a secret, works, and turns the
 * machine off. From the moment the secret is there until the end this process
 * looks for it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "sha256.h"
#include "vmm.h"

#define CMDLINE_MAX	2048

struct session {
	struct vm vm;
	struct ram ram;
	struct needle needle;
	__u64 seed;
	__u64 gpa[SECRET_PAGES];	/* checked: RAM */
	int writes;			/* attempts to write that succeeded */
	struct search *search;
	double deadline;
};

/* --- what the guest sends --- */

/* Exactly @size bytes, and its first eight a magic, or nothing. */
static int take(struct session *s, void *to, size_t size, const char *what)
{
	const __u64 magic = WORK_MAGIC;
	size_t len;
	void *data = devices_take_data(&s->vm.dev, &len);
	bool ok = data && len == size && !memcmp(data, &magic, sizeof(magic));

	if (ok)
		memcpy(to, data, size);
	free(data);
	return check(ok, "the guest sent %s", what) ? 0 : -1;
}

static int run_to(struct session *s, enum step step)
{
	enum vm_event event = vm_wait(&s->vm, s->deadline);

	if (event == VM_POWER_OFF || event == VM_RESET)
		refused("the guest ended early, by %s", s->vm.dev.how);
	else if (event == VM_STEP && s->vm.step != step)
		refused("the guest is at step %u, not at %u", s->vm.step, step);
	return event == VM_STEP && s->vm.step == step ? 0 : -1;
}

/* --- the steps --- */

static int give_order(struct session *s)
{
	char line[ORDER_MAX], hex[2 * SECRET_SIZE + 1];
	int i;

	if (getrandom(s->needle.mask, SECRET_SIZE, 0) != SECRET_SIZE ||
	    getrandom(&s->seed, sizeof(s->seed), 0) != sizeof(s->seed))
		return failed("getrandom");
	for (i = 0; i < SECRET_SIZE; i++)
		sprintf(hex + 2 * i, "%02x", s->needle.mask[i]);
	i = snprintf(line, sizeof(line), ORDER_FORMAT "\n", hex, s->seed);
	devices_type(&s->vm.dev, line, i);
	return 0;
}

static int take_secret(struct session *s)
{
	struct secret secret;
	unsigned int i;

	if (take(s, &secret, sizeof(secret), "a masked secret, and where it keeps it"))
		return -1;
	memcpy(s->needle.masked, secret.masked, SECRET_SIZE);
	for (i = 0; i < SECRET_PAGES; i++) {
		s->gpa[i] = secret.gpa[i];
		if (ram_offset(&s->ram, s->gpa[i], PAGE_SIZE) < 0 || s->gpa[i] % PAGE_SIZE)
			return refused("%#llx is no page of the guest's", s->gpa[i]);
	}
	return 0;
}

static __u64 sum_made_of(__u64 seed, __u64 words)
{
	__u64 i, sum = 0;

	for (i = 0; i < words; i++)
		sum += made_of(seed, i);
	return sum;
}

static int take_work(struct session *s)
{
	__u8 digest[SHA256_SIZE];
	struct work work;

	if (take(s, &work, sizeof(work), "what it computed"))
		return -1;
	if (work.memory > s->ram.config.size)
		return refused("the guest worked on %llu MiB, more than it has", work.memory >> 20);
	check(work.sum == sum_made_of(s->seed, work.memory / sizeof(work.sum)),
	      "the sum of %llu MiB of its memory, %016llx, is the VMM's",
	      work.memory >> 20, work.sum);
	sha256_made_of(s->seed, STREAM_SIZE / 8, digest);
	print_digest("guest's SHA-256 of 4 MiB made of the seed", work.stream);
	check(!memcmp(work.stream, digest, sizeof(digest)), "... is the VMM's");
	check(work.cpus == s->vm.config.nr_vcpus, "it ran on %u vCPUs of %u", work.cpus,
	      s->vm.config.nr_vcpus);
	check(!work.wrong && work.processes && work.files,
	      "%u processes and %u files came and went, %u went wrong",
	      work.processes, work.files, work.wrong);
	return 0;
}

static void judge_search(struct session *s)
{
	struct search_result r;

	search_stop(s->search, &r);
	s->search = NULL;
	printf("  search: %lu rounds, %lu attempts, %llu MiB looked at\n", r.rounds, r.attempts,
	       r.bytes >> 20);
	if (ram_is_private(&s->ram))
		check(!r.found, "the secret was seen %llu times", r.found);
	else
		check(r.found > 0, "the secret was seen %llu times, first after %.2f s (as it has to)",
		      r.found, r.first);
}

static int take_damage(struct session *s)
{
	struct damage damage;

	if (take(s, &damage, sizeof(damage), "how it found its pages"))
		return -1;
	if (ram_is_private(&s->ram))
		check(!damage.pages, "%u of its pages were changed", damage.pages);
	else
		check(s->writes > 0 && damage.pages == (__u32)s->writes,
		      "%u of its pages were changed, %d were written to", damage.pages, s->writes);
	return 0;
}

/* From under its feet, one huge page after the other. The content is lost. */
static void take_away(struct session *s)
{
	off_t off, size = s->ram.config.size;
	unsigned int kept = 0;

	for (off = 0; off < size; off += HUGE_SIZE)
		kept += ram_punch(&s->ram, off, HUGE_SIZE) != 0;
	check(!kept, "the VMM takes all RAM away: %u of %lu times it can't, %llu KiB are private",
	      kept, size / HUGE_SIZE, ram_private_bytes(&s->ram) >> 10);
}

/* Linux asks for no conversions: what was private at the start still is. */
static void check_private(struct session *s)
{
	__u64 is = ram_private_bytes(&s->ram), size = s->ram.config.size;

	if (s->ram.config.kind == RAM_PRIVATE)
		check(is == size, "%llu KiB of RAM are private, as lseek says, of %llu",
		      is >> 10, size >> 10);
	else if (s->ram.config.kind == RAM_LAZY)
		check(is && is <= size, "%llu KiB of RAM were wanted and are private, of %llu",
		      is >> 10, size >> 10);
}

static int run_guest(struct session *s, const struct options *opt)
{
	printf("- the guest boots\n");
	if (run_to(s, STEP_UP))
		return -1;
	printf("  boot: %.1f s to init\n", now() - s->vm.started);
	if (give_order(s) || run_to(s, STEP_SECRET) || take_secret(s))
		return -1;

	printf("- this process tries to get at the guest's memory\n");
	s->writes = attack(&s->vm, &s->needle, s->gpa, SECRET_PAGES);
	if (s->writes < 0)
		return -1;
	printf("- the guest works, this process searches\n");
	s->search = search_start(&s->vm, &s->needle, s->gpa, SECRET_PAGES);
	if (!s->search)
		return -1;
	if (opt->take_away)
		take_away(s);
	if (run_to(s, STEP_WORKED) || take_work(s))
		return -1;
	if (run_to(s, STEP_DAMAGE) || take_damage(s))
		return -1;
	judge_search(s);
	check_private(s);
	return 0;
}

/* A kernel without ACPI can't turn the machine off: it resets it. */
static int run_to_end(struct session *s)
{
	enum vm_event event = vm_wait(&s->vm, s->deadline);
	bool ended = event == VM_POWER_OFF || event == VM_RESET;

	if (ended)
		check(true, "the guest %s, by %s", event == VM_RESET ? "reset the machine" :
		      "turned the machine off", s->vm.dev.how);
	return ended ? 0 : -1;
}

/* --- set-up --- */

/*
 * Few words, and each has a reason. console: the only one there is. panic: a
 * guest that dies resets the machine, which ends the run. tsc_early_khz: KVM
 * knows the frequency; without kvmclock the kernel would measure it, by a timer
 * that is late on a busy host. tsc=reliable, no_timer_check: for the same
 * reason, don't judge one by the other.
 */
static const char *make_cmdline(const struct options *opt, long tsc_khz)
{
	static char line[CMDLINE_MAX];
	int len;

	len = snprintf(line, sizeof(line),
		       "console=ttyS0 panic=-1 tsc=reliable no_timer_check%s",
		       opt->verbose ? " earlyprintk=ttyS0" : " quiet");
	if (tsc_khz)
		len += snprintf(line + len, sizeof(line) - len, " tsc_early_khz=%ld", tsc_khz);
	if (opt->append)
		len += snprintf(line + len, sizeof(line) - len, " %s", opt->append);
	if (len < (int)sizeof(line))
		return line;
	refused("the command line is longer than %zu bytes", sizeof(line) - 1);
	return NULL;
}

static int load(struct session *s, const struct options *opt, struct entry *entry)
{
	struct boot_config boot = opt->boot;

	boot.cmdline = make_cmdline(opt, vm_tsc_khz(&s->vm));
	if (!boot.cmdline || boot_load(&s->ram, &boot, entry) || ram_close(&s->ram))
		return -1;
	printf("  kernel: %s, %llu MiB of RAM, %u vCPUs\n", boot.kernel,
	       s->ram.config.size >> 20, s->vm.config.nr_vcpus);
	printf("  command line: %s\n", boot.cmdline);
	return 0;
}

int run_linux(const struct options *opt)
{
	static struct session s;
	struct search_result ignored;
	struct entry entry;
	int ret = -1;

	s = (struct session){ .deadline = opt->deadline };
	if (!ram_create(&s.ram, &opt->ram) && !vm_create(&s.vm, &s.ram, &opt->vm) &&
	    !load(&s, opt, &entry) && !vm_set_up(&s.vm, &entry) && !vm_start(&s.vm)) {
		ret = run_guest(&s, opt) || run_to_end(&s) ? -1 : 0;
		if (s.search)
			search_stop(s.search, &ignored);
		vm_stop(&s.vm);
		report_summary(&s.vm);
		if (ret || opt->debug)
			report_failure(&s.vm, opt->debug);
		if (opt->keep)
			vm_keep();
	}
	vm_destroy(&s.vm);
	ram_destroy(&s.ram);
	return ret;
}
