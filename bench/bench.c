// SPDX-License-Identifier: GPL-2.0
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"

#define MAX_FIGURES	1024
#define LOOPS		1000000UL

struct figure {
	char step[48];
	char store[24];
	char unit[16];
	double value;
	bool has_value;
};

static struct figure figures[MAX_FIGURES];
static size_t nr_figures;

void die(const char *fmt, ...)
{
	int err = errno;
	va_list ap;

	fflush(stdout);
	fprintf(stderr, "%s: ", program_invocation_short_name);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, ": %s\n", strerror(err));
	exit(1);
}

void check_ticks(void)
{
	__u64 best = ~0ULL;

	for (int i = 0; i < 5; i++) {
		unsigned long n = LOOPS;
		__u64 start = ticks(), took;

		asm volatile("1: dec %0; jnz 1b" : "+r"(n));
		took = ticks() - start;
		if (took < best)
			best = took;
	}
	if (best < 2 * LOOPS || best > 2 * LOOPS + LOOPS / 500) {
		errno = ENOTSUP;
		die("%lu instructions took %llu ticks: this machine doesn't count instructions",
		    2 * LOOPS, best);
	}
}

/*
 * Empty the lists of free pages of each CPU, as far as a low limit does, and let
 * them have a fixed one: higher, or each single page would make them too full.
 */
static void drain_free_lists(void)
{
	static const char limit[] = "/proc/sys/vm/percpu_pagelist_high_fraction";

	write_text(limit, "100000");
	for (int i = 0; i < 32; i++)
		write_text("/proc/sys/vm/stat_refresh", "1");
	write_text(limit, "1000");
}

/* The coarse clock moves with the timer tick. */
static void wait_for_tick(void)
{
	struct timespec start, now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &start);
	do {
		clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	} while (now.tv_nsec == start.tv_nsec);
}

/*
 * Everything in a boot repeats itself, so a tick that falls into a short step once
 * does so in all samples: each begins right behind one.
 */
__u64 begin(void)
{
	usleep(50000);
	drain_free_lists();
	wait_for_tick();
	return ticks();
}

static struct figure *find_figure(const char *step, const char *store,
				  const char *unit)
{
	struct figure *f;

	for (f = figures; f < figures + nr_figures; f++)
		if (!strcmp(f->step, step) && !strcmp(f->store, store))
			return f;
	if (nr_figures == MAX_FIGURES) {
		errno = ENOSPC;
		die("%s", step);
	}
	nr_figures++;
	snprintf(f->step, sizeof(f->step), "%s", step);
	snprintf(f->store, sizeof(f->store), "%s", store);
	snprintf(f->unit, sizeof(f->unit), "%s", unit);
	return f;
}

void sample(const char *step, const char *store, const char *unit, double value)
{
	struct figure *f = find_figure(step, store, unit);

	if (!f->has_value || value < f->value)
		f->value = value;
	f->has_value = true;
}

void no_sample(const char *step, const char *store, const char *unit)
{
	find_figure(step, store, unit);
}

void print_figures(void)
{
	const struct figure *f;

	for (f = figures; f < figures + nr_figures; f++) {
		printf("figure\t%s\t%s\t%s\t", f->step, f->store, f->unit);
		if (f->has_value)
			printf("%.4f\n", f->value);
		else
			printf("-\n");
	}
	fflush(stdout);
}

const char *text(const char *fmt, ...)
{
	va_list ap;
	char *s;

	va_start(ap, fmt);
	if (vasprintf(&s, fmt, ap) < 0)
		die("vasprintf");
	va_end(ap);
	return s;
}

const char *size_text(__u64 size)
{
	if (size >= SZ_1G)
		return text("%lluG", size / SZ_1G);
	if (size >= 1 << 20)
		return text("%lluM", size >> 20);
	return text("%lluK", size >> 10);
}

void write_text(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t len = strlen(value);

	if (fd < 0 || write(fd, value, len) != len)
		die("%s: %s", path, value);
	close(fd);
}

__u64 read_field(const char *path, const char *key)
{
	size_t len = strlen(key);
	FILE *f = fopen(path, "re");
	char line[256];

	if (!f)
		die("%s", path);
	while (fgets(line, sizeof(line), f)) {
		if (strncmp(line, key, len) || !strchr(": \t", line[len]))
			continue;
		fclose(f);
		return strtoull(line + len + 1, NULL, 10);
	}
	errno = ENOENT;
	die("%s in %s", key, path);
}
