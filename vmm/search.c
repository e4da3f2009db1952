// SPDX-License-Identifier: GPL-2.0
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "vmm.h"

#define WINDOW		0x100000UL
#define MAPS_SIZE	0x40000UL

static bool is_needle(const struct needle *needle, const __u8 *p)
{
	int i;

	for (i = 0; i < SECRET_SIZE; i++) {
		__u8 byte = p[i] ^ needle->mask[i];

		/*
		 * Keep the compiler from combining the two halves of the needle
		 * ahead of the loop: it would spill the secret to the stack,
		 * and the search would find itself.
		 */
		asm("" : "+r"(byte));
		if (byte != needle->masked[i])
			return false;
	}
	return true;
}

const __u8 *needle_find(const struct needle *needle, const void *hay, size_t len)
{
	const __u8 *p = hay, *end = p + len;

	while ((size_t)(end - p) >= SECRET_SIZE) {
		p = memchr(p, needle->masked[0] ^ needle->mask[0],
			   end - p - SECRET_SIZE + 1);
		if (!p || is_needle(needle, p))
			return p;
		p++;
	}
	return NULL;
}

/* A look at all of this process's memory. */
struct sweep {
	const struct needle *needle;
	bool quiet;
	int mem, pagemap;		/* /proc/self/... */
	__u8 *window;
	unsigned long mappings, bytes, unreadable;
	long found;
};

static long count(const struct needle *needle, const __u8 *hay, size_t len)
{
	const __u8 *end = hay + len;
	long found = 0;

	while ((hay = needle_find(needle, hay, end - hay))) {
		found++;
		hay++;
	}
	return found;
}

/*
 * How many bytes from @start to @end are in memory, or are not if @skip. What
 * is not in memory was not written to, and looking at it would bring it in.
 */
static unsigned long resident(struct sweep *s, unsigned long start, unsigned long end, bool skip)
{
	__u64 entry[512];
	unsigned long page = start / PAGE_SIZE, last = (end + PAGE_SIZE - 1) / PAGE_SIZE;
	size_t i, want;

	while (page < last) {
		want = MIN(last - page, ARRAY_SIZE(entry));
		if (pread(s->pagemap, entry, want * 8, page * 8) != (ssize_t)want * 8)
			break;
		/* Present, or swapped. */
		for (i = 0; i < want && !(entry[i] >> 62) == skip; i++)
			;
		page += i;
		if (i < want)
			break;
	}
	return MIN(page * PAGE_SIZE, end) - MIN(start, page * PAGE_SIZE);
}

/* Returns how often it was found in [start, end), counting unreadable pages. */
static long search_range(struct sweep *s, unsigned long start, unsigned long end)
{
	unsigned long len;
	long found = 0;
	ssize_t n;

	while (start < end) {
		len = resident(s, start, MIN(start + WINDOW, end), false);
		if (!len) {
			start += resident(s, start, end, true) ?: PAGE_SIZE;
			continue;
		}
		n = pread(s->mem, s->window, len, start);
		if (n <= 0) {
			s->unreadable += PAGE_SIZE;
			start += PAGE_SIZE;
			continue;
		}
		found += count(s->needle, s->window, n);
		s->bytes += n;
		start += n;
		/* One that lies across the edge: look at it again, as a whole. */
		if (start < end && n >= SECRET_SIZE) {
			s->bytes -= SECRET_SIZE - 1;
			start -= SECRET_SIZE - 1;
		}
	}
	return found;
}

static void search_mapping(struct sweep *s, const char *line)
{
	unsigned long start, end;
	char name[64] = "anonymous";
	long found;

	if (sscanf(line, "%lx-%lx %*s %*s %*s %*s %63[^\n]", &start, &end, name) < 2)
		return;
	/* Not what the search itself has read. */
	if (start <= (unsigned long)s->window && (unsigned long)s->window < end)
		return;
	s->mappings++;
	found = search_range(s, start, end);
	if (found && !s->quiet)
		printf("  found %ld times in %lx-%lx %s\n", found, start, end, name);
	s->found += found;
}

static char *read_maps(void)
{
	char *maps = calloc(1, MAPS_SIZE);
	int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	ssize_t n = -1;

	while (maps && fd >= 0 && len < MAPS_SIZE - 1 &&
	       (n = read(fd, maps + len, MAPS_SIZE - 1 - len)) > 0)
		len += n;
	if (fd >= 0)
		close(fd);
	if (!n)
		return maps;
	free(maps);
	return NULL;
}

long search_own_memory(const struct needle *needle, bool quiet, unsigned long long *bytes)
{
	struct sweep s = { .needle = needle, .quiet = quiet };
	char *maps, *line, *rest;

	/* A mapping of its own, so that it can be told from the rest. */
	s.window = mmap(NULL, WINDOW, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	s.mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	s.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	maps = read_maps();
	if (s.window == MAP_FAILED || s.mem < 0 || s.pagemap < 0 || !maps)
		return failed("searching /proc/self/mem");

	for (line = strtok_r(maps, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
		search_mapping(&s, line);

	free(maps);
	close(s.mem);
	close(s.pagemap);
	munmap(s.window, WINDOW);
	*bytes += s.bytes;
	if (!quiet)
		printf("  searched %lu mappings, %lu KiB (%lu KiB can't be read): secret found %ld times\n",
		       s.mappings, s.bytes >> 10, s.unreadable >> 10, s.found);
	return s.found;
}

/* --- all the time --- */

struct search {
	struct vm *vm;
	const struct needle *needle;
	const __u64 *gpa;
	unsigned int nr;
	pthread_t thread;
	bool stop;
	double started;
	struct search_result result;
};

static void add_found(struct search *s, long found)
{
	if (found <= 0)
		return;
	if (!s->result.found)
		s->result.first = now() - s->started;
	s->result.found += found;
}

static void *search_thread(void *arg)
{
	struct search *s = arg;
	struct search_result *r = &s->result;

	/* The guest comes first. Of a thread, on Linux. */
	if (setpriority(PRIO_PROCESS, gettid(), 10))
		failed("setpriority");
	do {
		add_found(s, attack_read(s->vm, s->needle, s->gpa[r->rounds % s->nr], r));
		add_found(s, search_own_memory(s->needle, true, &r->bytes));
		r->rounds++;
	} while (!__atomic_load_n(&s->stop, __ATOMIC_ACQUIRE));
	return NULL;
}

struct search *search_start(struct vm *vm, const struct needle *needle,
			    const __u64 *gpa, unsigned int nr)
{
	struct search *s = malloc(sizeof(*s));

	if (!s) {
		failed("malloc");
		return NULL;
	}
	*s = (struct search){ .vm = vm, .needle = needle, .gpa = gpa, .nr = nr, .started = now() };
	errno = pthread_create(&s->thread, NULL, search_thread, s);
	if (errno) {
		failed("pthread_create");
		free(s);
		return NULL;
	}
	return s;
}

void search_stop(struct search *s, struct search_result *result)
{
	__atomic_store_n(&s->stop, true, __ATOMIC_RELEASE);
	pthread_join(s->thread, NULL);
	*result = s->result;
	free(s);
}
