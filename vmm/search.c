// SPDX-License-Identifier: GPL-2.0
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

struct search {
	const struct needle *needle;
	int mem;			/* /proc/self/mem */
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

/* Returns how often it was found in [start, end), counting unreadable pages. */
static long search_range(struct search *s, unsigned long start, unsigned long end)
{
	unsigned long len;
	long found = 0;
	ssize_t n;

	while (start < end) {
		len = end - start < WINDOW ? end - start : WINDOW;
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

static void search_mapping(struct search *s, const char *line)
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
	if (found)
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

long search_own_memory(const struct needle *needle)
{
	struct search s = { .needle = needle };
	char *maps, *line;

	/* A mapping of its own, so that it can be told from the rest. */
	s.window = mmap(NULL, WINDOW, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	s.mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	maps = read_maps();
	if (s.window == MAP_FAILED || s.mem < 0 || !maps)
		return failed("searching /proc/self/mem");

	for (line = strtok(maps, "\n"); line; line = strtok(NULL, "\n"))
		search_mapping(&s, line);

	free(maps);
	close(s.mem);
	munmap(s.window, WINDOW);
	printf("  searched %lu mappings, %lu KiB (%lu KiB can't be read): secret found %ld times\n",
	       s.mappings, s.bytes >> 10, s.unreadable >> 10, s.found);
	return s.found;
}
